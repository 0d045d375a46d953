//! Whose certificates are believed: the machine's authorities, and those of one registry's own directory in `certs.d`.
//!
//! Invariant: an authority found in `certs.d/HOST:PORT` vouches for that host and no other.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::error::RegistryError;
use super::files;

/// The places of certificates.
#[derive(Debug)]
pub(super) struct Trust {
    /// Directories with a directory a registry, named `HOST[:PORT]`, of `*.crt` files.
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
        let builder = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
        if lenient {
            return Ok(builder.disable_verification(true).build());
        }
        let mut certificates = self.machine.get_or_init(|| Arc::new(self.load())).as_ref().clone();
        for directory in &self.per_registry {
            for path in files::listing(&directory.join(host), "crt")? {
                let pem = files::bytes(&path)?.unwrap_or_default();
                for item in parse_pem(&pem) {
                    match item {
                        Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
                        Ok(_) => {}
                        Err(_detail) => {
                            let reason = "it is not a certificate in PEM form".to_owned();
                            return Err(RegistryError::File { path: files::shown(&path), reason });
                        }
                    }
                }
            }
        }
        if certificates.is_empty() {
            return Err(RegistryError::NoAuthorities { host: host.to_owned() });
        }
        Ok(builder.root_certs(RootCerts::new_with_certs(&certificates)).build())
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
