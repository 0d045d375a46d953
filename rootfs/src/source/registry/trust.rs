//! Whose certificates are believed: the machine's authorities, and those of one registry's own directory in `certs.d`;
//! and the certificate by which a registry knows the user (containers-certs.d(5)).
//!
//! Invariant: an authority found in `certs.d/HOST:PORT` vouches for that host and no other, and no other host is shown the
//! user's certificate.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::error::RegistryError;
use super::files;

/// The places of certificates.
#[derive(Debug)]
pub(super) struct Trust {
    /// Directories with a directory a registry, named `HOST[:PORT]`, of `*.crt`, `*.cert` and `*.key` files.
    pub(super) per_registry: Vec<PathBuf>,
    /// Instead of the machine's own authorities.
    pub(super) file: Option<PathBuf>,
    pub(super) directories: Vec<PathBuf>,
    pub(super) machine: OnceLock<Arc<Vec<Certificate<'static>>>>,
}

impl Trust {
    /// For connections to `host` (with its port, if it has one in the image's name); `lenient` believes anybody.
    pub(super) fn config(&self, host: &str, lenient: bool) -> Result<TlsConfig, RegistryError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = TlsConfig::builder().unversioned_rustls_crypto_provider(provider).client_cert(self.own(host)?);
        if lenient {
            return Ok(builder.disable_verification(true).build());
        }
        let mut certificates = self.machine.get_or_init(|| Arc::new(self.load())).as_ref().clone();
        for directory in &self.per_registry {
            for path in files::listing(&directory.join(host), "crt")? {
                certificates.extend(chain(&path)?);
            }
        }
        if certificates.is_empty() {
            return Err(RegistryError::NoAuthorities { host: host.to_owned() });
        }
        Ok(builder.root_certs(RootCerts::new_with_certs(&certificates)).build())
    }

    /// What the user is known by at `host`, with its key: the first directory that has it counts.
    fn own(&self, host: &str) -> Result<Option<ClientCert>, RegistryError> {
        for directory in &self.per_registry {
            let found = files::listing(&directory.join(host), "cert")?;
            let [path, more @ ..] = &found[..] else { continue };
            let bad =
                |path: &Path, reason: &str| RegistryError::File { path: files::shown(path), reason: reason.into() };
            if !more.is_empty() {
                return Err(bad(
                    path,
                    "there is another one beside it, and only one can be shown; move one of them away",
                ));
            }
            let key = path.with_extension("key");
            let pem = files::bytes(&key)?
                .ok_or_else(|| bad(path, "its key is not beside it, in a file of the same name with .key"))?;
            let chain = chain(path)?;
            let fits = PrivateKeyDer::from_pem_slice(&pem).is_ok_and(|key| {
                let certificates = chain.iter().map(|certificate| CertificateDer::from(certificate.der().to_vec()));
                // ureq panics where rustls refuses.
                CertifiedKey::from_der(certificates.collect(), key, &rustls::crypto::ring::default_provider()).is_ok()
            });
            let key = PrivateKey::from_pem(&pem).ok().filter(|_| fits);
            let key = key
                .ok_or_else(|| bad(path, "its key, in the file of the same name with .key, is none or not its own"))?;
            return Ok(Some(ClientCert::new_with_certs(&chain, key)));
        }
        Ok(None)
    }

    /// The machine's authorities: where OpenSSL has them, or where the user says. One that cannot be read vouches for
    /// nobody, which is safe.
    fn load(&self) -> Vec<Certificate<'static>> {
        let found = if self.file.is_none() && self.directories.is_empty() {
            rustls_native_certs::load_native_certs().certs
        } else {
            let mut found = rustls_native_certs::load_certs_from_paths(self.file.as_deref(), None).certs;
            for directory in &self.directories {
                found.extend(rustls_native_certs::load_certs_from_paths(None, Some(directory)).certs);
            }
            found
        };
        found.iter().map(|certificate| Certificate::from_der(certificate.as_ref()).to_owned()).collect()
    }
}

/// The certificates in a file.
fn chain(path: &Path) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let pem = files::bytes(path)?.unwrap_or_default();
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            Ok(_) => {}
            Err(_detail) => {
                let reason = "it is not a certificate in PEM form".to_owned();
                return Err(RegistryError::File { path: files::shown(path), reason });
            }
        }
    }
    Ok(certificates)
}
