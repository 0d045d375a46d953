//! What reading requests needs of the host, taken along before the broker gives its files up: the authorities that servers
//! are believed by, and keys. And the job's own authority, whose key is made here and never leaves this process.
//!
//! Invariant: the job's authority can vouch for the hosts that it was made for and for no other, and for no address
//! (RFC 5280, 4.2.1.10).

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use zeroize::Zeroizing;

use crate::inspected::Inspected;
use crate::name::Name;

/// For how long a certificate of the job's authority holds, and how much before now it begins: clocks differ.
const VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);
const BEFORE_NOW: Duration = Duration::from_secs(24 * 3600);

/// Bytes of a file of authorities.
const MOST_AUTHORITIES: u64 = 4 << 20;

/// A key and its secret's name.
pub struct Key {
    /// The secret's name.
    pub name: String,
    /// What [`crate::key`] has found to be one.
    pub value: Zeroizing<Vec<u8>>,
}

impl Key {
    /// As a message to the broker, which puts it in the place of the one it has.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([&[RENEWAL][..], self.name.as_bytes(), &[0], &self.value].concat())
    }

    /// The inverse; `None` for any other message.
    pub(crate) fn decode(message: &[u8]) -> Option<Self> {
        let rest = message.strip_prefix(&[RENEWAL])?;
        let (name, value) = rest.split_at_checked(rest.iter().position(|byte| *byte == 0)?)?;
        let value = crate::credential::key(value.get(1..)?).ok()?;
        Some(Key { name: String::from_utf8(name.to_vec()).ok()?, value: Zeroizing::new(value.to_vec()) })
    }
}

/// How such a message begins.
const RENEWAL: u8 = b'K';

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.name)
    }
}

/// Everything that was prepared.
pub(in crate::broker) struct Prepared {
    /// How servers are talked to.
    pub(in crate::broker) client: Arc<ClientConfig>,
    /// The job's own authority, where TLS is ended here.
    pub(in crate::broker) authority: Option<Authority>,
    keys: RefCell<Vec<Key>>,
}

impl Prepared {
    pub(in crate::broker) fn new(inspected: &Inspected, keys: Vec<Key>) -> io::Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let roots = roots(inspected.authorities.as_deref())?;
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let client = client.with_safe_default_protocol_versions().map_err(io::Error::other)?;
        let mut client = client.with_root_certificates(roots).with_no_client_auth();
        client.alpn_protocols = vec![HTTP.to_vec()];
        let terminated = inspected.terminated();
        let authority = if terminated.is_empty() { None } else { Some(Authority::new(&terminated, provider)?) };
        Ok(Prepared { client: Arc::new(client), authority, keys: RefCell::new(keys) })
    }

    /// Puts a key in the place of the one it has.
    pub(in crate::broker) fn renew(&self, new: Key) {
        if let Some(known) = self.keys.borrow_mut().iter_mut().find(|known| known.name == new.name) {
            *known = new;
        }
    }

    /// Looks at a key.
    pub(in crate::broker) fn with_key<T>(&self, name: &str, look: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.keys.borrow().iter().find(|key| key.name == name).map(|key| look(&key.value))
    }
}

const HTTP: &[u8] = b"http/1.1";

fn roots(file: Option<&Path>) -> io::Result<RootCertStore> {
    let certificates: Vec<CertificateDer<'static>> = match file {
        None => rustls_native_certs::load_native_certs().certs,
        Some(path) => {
            let wrong = |error: io::Error| io::Error::other(format!("cannot read {}: {error}", path.display()));
            let mut pem = Vec::new();
            let file = std::fs::File::open(path).map_err(wrong)?;
            io::Read::read_to_end(&mut io::Read::take(file, MOST_AUTHORITIES), &mut pem).map_err(wrong)?;
            let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>();
            found
                .map_err(|error| io::Error::other(format!("{} is no file of certificates: {error}", path.display())))?
        }
    };
    let mut roots = RootCertStore::empty();
    // One that cannot be read vouches for nobody, which is safe.
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() {
        let place = file.map_or_else(|| "this host".to_owned(), |path| path.display().to_string());
        let hint = "install ca-certificates, or give --upstream-ca FILE";
        return Err(io::Error::other(format!("{place} has no certificate authorities to know servers by; {hint}")));
    }
    Ok(roots)
}

/// The authority of one job.
pub(in crate::broker) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    provider: Arc<CryptoProvider>,
    configs: RefCell<HashMap<Name, Arc<ServerConfig>>>,
}

impl Authority {
    fn new(names: &[&Name], provider: Arc<CryptoProvider>) -> io::Result<Self> {
        let mut params = params("agentd: the authority of one job")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let permitted_subtrees = names.iter().map(|name| GeneralSubtree::DnsName(name.to_string())).collect();
        // What is permitted of names says nothing of addresses.
        let addresses = [CidrSubnet::V4([0; 4], [0; 4]), CidrSubnet::V6([0; 16], [0; 16])];
        let excluded_subtrees = addresses.map(GeneralSubtree::IpAddress).to_vec();
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees });
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(io::Error::other)?;
        Ok(Authority { issuer, provider, configs: RefCell::default() })
    }

    /// What a box has to believe.
    pub(in crate::broker) fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// How a client is talked to that asks for `name`.
    pub(in crate::broker) fn certify(&self, name: &Name) -> io::Result<Arc<ServerConfig>> {
        if let Some(known) = self.configs.borrow().get(name) {
            return Ok(Arc::clone(known));
        }
        let config = Arc::new(self.config(name.as_str())?);
        self.configs.borrow_mut().insert(name.clone(), Arc::clone(&config));
        Ok(config)
    }

    fn config(&self, host: &str) -> io::Result<ServerConfig> {
        let mut params = params(host)?;
        params.subject_alt_names =
            CertificateParams::new([host.to_owned()]).map_err(io::Error::other)?.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(io::Error::other)?;
        let config = ServerConfig::builder_with_provider(Arc::clone(&self.provider));
        let config = config.with_safe_default_protocol_versions().map_err(io::Error::other)?.with_no_client_auth();
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(io::Error::other)?;
        let mut config = config.with_single_cert(vec![certificate.der().clone()], key).map_err(io::Error::other)?;
        config.alpn_protocols = vec![HTTP.to_vec()];
        Ok(config)
    }
}

fn params(common_name: &str) -> io::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new()).map_err(io::Error::other)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    params.distinguished_name = subject;
    let now = SystemTime::now();
    params.not_before = (now - BEFORE_NOW).into();
    params.not_after = (now + VALIDITY).into();
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_key_is_read_as_it_was_sent() {
        let key = Key { name: "TOKEN".into(), value: Zeroizing::new(b"sesame".to_vec()) };
        let read = Key::decode(&key.encode()).unwrap();
        assert_eq!((read.name.as_str(), &read.value[..]), ("TOKEN", &b"sesame"[..]));
        for other in [&b"D"[..], b"", b"K", b"KTOKEN", b"KTOKEN\0", b"KTOKEN\0a b", b"\0", b"K\xff\0a"] {
            assert!(Key::decode(other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn an_authority_vouches_for_its_hosts_only() {
        let provider = Arc::new(ring::default_provider());
        let authority = Authority::new(&[&Name::new("a.test").unwrap()], Arc::clone(&provider)).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.certificate().as_bytes()).unwrap()).unwrap();
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
        for (host, is_believed) in [("a.test", true), ("b.test", false), ("192.0.2.1", false), ("2001:db8::1", false)] {
            let mut client = rustls::ClientConnection::new(Arc::clone(&client), host.try_into().unwrap()).unwrap();
            let mut server = rustls::ServerConnection::new(Arc::new(authority.config(host).unwrap())).unwrap();
            let mut shaken = Ok(());
            while shaken.is_ok() && (client.is_handshaking() || server.is_handshaking()) {
                let mut wire = Vec::new();
                client.write_tls(&mut wire).unwrap();
                server.read_tls(&mut &wire[..]).unwrap();
                server.process_new_packets().unwrap();
                wire.clear();
                server.write_tls(&mut wire).unwrap();
                client.read_tls(&mut &wire[..]).unwrap();
                shaken = client.process_new_packets().map(drop);
            }
            assert_eq!(shaken.is_ok(), is_believed, "{host}");
        }
    }
}
