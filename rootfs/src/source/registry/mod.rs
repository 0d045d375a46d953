//! Registries: the client of the OCI distribution protocol (distribution-spec 1.1, "Pull").
//!
//! ```text
//! Name -> mirrors: locations, in order -> endpoint: addresses, HTTPS or HTTP -> login: tokens -> http: redirects, bounds
//!                                             blob: a layer's bytes, resumed over and over -> the pull's pipeline
//! ```
//! Invariant: documents are verified before they are parsed, every answer is bounded, every wait ends, and credentials
//! go nowhere but to the registry they are stored for.

mod blob;
mod challenge;
mod credentials;
mod endpoint;
mod error;
mod files;
mod http;
mod login;
mod mirrors;
mod patience;
mod proxy;
#[cfg(test)]
mod tests;
mod trust;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

pub use error::RegistryError;
pub use proxy::Proxies;

use crate::digest::{Digest, Hasher};
use crate::limits::Limits;
use crate::reference::Name;
use crate::source::document::{Kind, Pointer, resolve};
use crate::source::{Layer, Manifest, Source, SourceError};
use blob::{Blob, KEPT_FROM};
use credentials::Keepers;
use endpoint::{Document, Endpoint, Object};
use http::Http;
use patience::Patience;
use trust::Trust;

/// What a registry sends and what a file of credentials holds, for fuzz targets: how many of each.
#[cfg(feature = "fuzzing")]
pub(crate) fn count_challenges_and_credentials(untrusted: &[u8]) -> (usize, usize) {
    let challenges = std::str::from_utf8(untrusted).ok().and_then(|header| challenge::parse(header).ok());
    (challenges.map_or(0, |challenges| challenges.len()), credentials::decode_all(untrusted))
}

/// Tries of a request where another place can be asked.
const MIRROR_TRIES: u32 = 2;
/// How soon a wait for documents ends when it is told to.
const WATCHED_EVERY: Duration = Duration::from_millis(100);

/// Where this user's and this machine's settings for registries are. Nothing here reads the environment itself.
#[derive(Clone, Debug, Default)]
pub struct RegistryConfig {
    /// The name as the user gave it, without its tag, where it says no registry: `debian`, `user/name`.
    pub short_name: Option<String>,
    /// Files with credentials, as podman and docker write them; the first that knows a registry counts.
    pub auth_files: Vec<PathBuf>,
    /// `registries.conf` of the user, then of the machine: the first that is there counts, and what lies in
    /// `registries.conf.d` beside each.
    pub registries: Vec<PathBuf>,
    /// Directories with certificate authorities, `HOST[:PORT]/*.crt`, and what the user is known by there, `*.cert` and `*.key`.
    pub certificates: Vec<PathBuf>,
    /// A file of certificate authorities instead of the machine's.
    pub authorities_file: Option<PathBuf>,
    /// Directories of certificate authorities instead of the machine's.
    pub authorities_dirs: Vec<PathBuf>,
    /// Proxies.
    pub proxies: Proxies,
}

/// What a pull from a registry stands on.
#[derive(Clone, Copy)]
pub(crate) struct Remote<'r> {
    pub(crate) config: &'r RegistryConfig,
    /// The file that keeps a blob's bytes from one pull to the next, ours alone, open for reading and for appending;
    /// `None` where there is none to be had.
    pub(crate) partial: &'r (dyn Fn(&Digest) -> Option<File> + Sync),
    /// Set to end the pull.
    pub(crate) stop: &'r AtomicBool,
}

/// Whether a layer's bytes ended because [`Source::stop`] was called.
pub(crate) fn is_stopped(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(error, Some(RegistryError::Stopped))
}

/// An image in a registry.
pub(crate) struct Registry<'r> {
    name: Name,
    http: Http,
    /// In the order they are asked; the last is the origin.
    endpoints: Vec<Endpoint>,
    /// The one that had the manifest: it is asked first for the rest.
    preferred: AtomicUsize,
    /// How many places were left for good, for layers of which other bytes came.
    left: Mutex<HashMap<Digest, usize>>,
    remote: Remote<'r>,
}

impl<'r> Registry<'r> {
    /// Reads the configuration; nothing is sent yet.
    pub(crate) fn open(name: &Name, remote: &Remote<'r>) -> Result<Registry<'r>, RegistryError> {
        Registry::with_patience(name, remote, Patience::default())
    }

    fn with_patience(name: &Name, remote: &Remote<'r>, patience: Patience) -> Result<Registry<'r>, RegistryError> {
        // Before any thread of the pull looks up a name.
        agentd_sys::names::use_builtin().map_err(RegistryError::Names)?;
        let config = remote.config;
        let by_digest = name.digest().is_some();
        let settings = mirrors::read(&config.registries)?;
        if let Some(short) = &config.short_name {
            settings.check_alias(short, name)?;
        }
        let locations = mirrors::locations(&settings, name.registry(), name.repository(), by_digest)?;
        let keepers = Keepers { auth_files: config.auth_files.clone(), helpers: settings.helpers };
        let trust = Trust {
            per_registry: config.certificates.clone(),
            file: config.authorities_file.clone(),
            directories: config.authorities_dirs.clone(),
            machine: OnceLock::new(),
        };
        let origin = locations.len() - 1;
        let endpoints = locations.into_iter().enumerate().map(|(number, location)| {
            let tries = if number == origin { patience.tries } else { MIRROR_TRIES };
            Endpoint::new(location, keepers.clone(), tries)
        });
        Ok(Registry {
            name: name.clone(),
            endpoints: endpoints.collect(),
            http: Http::new(trust, config.proxies.clone(), patience),
            preferred: AtomicUsize::new(0),
            left: Mutex::default(),
            remote: *remote,
        })
    }

    /// The places from the preferred one on, then those before it.
    fn in_order(&self) -> impl Iterator<Item = (usize, &Endpoint)> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let numbered = || self.endpoints.iter().enumerate();
        numbered().skip(preferred).chain(numbered().take(preferred))
    }

    /// A document from the first place that has it as it should be.
    fn document(
        &self,
        object: Object<'_>,
        digest: Option<&Digest>,
        limit: u64,
    ) -> Result<(Document, Digest), RegistryError> {
        let mut last = RegistryError::Stopped;
        for (number, endpoint) in self.in_order() {
            let document = endpoint.document(&self.http, object, limit);
            match document.and_then(|document| verified(endpoint, object, document, digest)) {
                Ok(verified) => {
                    self.preferred.store(number, Ordering::Relaxed);
                    return Ok(verified);
                }
                Err(RegistryError::Stopped) => return Err(RegistryError::Stopped),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn find_manifest(&self, limits: &Limits) -> Result<Manifest, SourceError> {
        let reference = match (self.name.digest(), self.name.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let limit = limits.document_bytes;
        let object = Object::Manifest(&reference);
        let found = self.document(object, self.name.digest(), limit);
        let (document, digest) = found.map_err(|error| match error {
            RegistryError::TooLong { host, object, limit, .. } => {
                RegistryError::TooLong { host, object, limit, hint: "; --image-limit document-bytes=VALUE sets it" }
            }
            error => error,
        })?;
        // Servers that know no better say application/json or octets; the document itself says more.
        let known = document.media_type.filter(|kind| kind.starts_with("application/vnd."));
        let size = document.bytes.len() as u64;
        let first = Pointer::new(digest.clone(), Some(size), known);
        let fetch = |kind, wanted: &Digest, size: Option<u64>| {
            if *wanted == digest {
                return Ok(document.bytes.clone());
            }
            let limit = size.unwrap_or(limit).min(limit);
            let text = wanted.to_string();
            let object = if kind == Kind::Manifest { Object::Manifest(&text) } else { Object::Blob(wanted) };
            Ok(self.document(object, Some(wanted), limit)?.0.bytes)
        };
        resolve(first, &fetch, limits)
    }
}

/// The document with its digest, which is `digest` where that is known, and what the registry says it is.
fn verified(
    endpoint: &Endpoint,
    object: Object<'_>,
    document: Document,
    digest: Option<&Digest>,
) -> Result<(Document, Digest), RegistryError> {
    let stated = match &document.digest {
        Some(text) => Some(text.parse::<Digest>().map_err(|error| RegistryError::Protocol {
            host: endpoint.host().to_owned(),
            object: endpoint.object(object),
            reason: format!("a digest that is none: {error}"),
        })?),
        None => None,
    };
    for wanted in [digest, stated.as_ref()].into_iter().flatten() {
        let mut hasher = wanted.hasher();
        hasher.update(&document.bytes);
        let actual = hasher.finish();
        if actual != *wanted {
            let (host, object) = (endpoint.host().to_owned(), endpoint.object(object));
            return Err(RegistryError::Content { host, object, actual });
        }
    }
    let digest = digest.cloned().or(stated).unwrap_or_else(|| {
        let mut hasher = Hasher::sha256();
        hasher.update(&document.bytes);
        hasher.finish()
    });
    Ok((document, digest))
}

impl Source for Registry<'_> {
    fn manifest(&self, limits: &Limits) -> Result<Manifest, SourceError> {
        // Who pulls waits here, so somebody else has to see that it is told to stop.
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let watch = scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    if self.remote.stop.load(Ordering::Relaxed) {
                        return self.http.stop();
                    }
                    thread::park_timeout(WATCHED_EVERY);
                }
            });
            let manifest = self.find_manifest(limits);
            done.store(true, Ordering::Release);
            watch.thread().unpark();
            manifest
        })
    }

    fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        let Some(digest) = &layer.digest else {
            let object = format!("a layer of {}", self.name);
            return Err(SourceError::Unsupported { object, reason: "has no digest".into() });
        };
        let partial = if layer.size >= KEPT_FROM { (self.remote.partial)(digest) } else { None };
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner).get(digest).copied().unwrap_or(0);
        let endpoints = match left {
            0 => self.in_order().map(|(_, endpoint)| endpoint).collect(),
            // As the file has them: the origin is the last to be left, whoever had the manifest.
            left => self.endpoints.iter().skip(left).collect(),
        };
        Ok(Box::new(Blob::new(&self.http, endpoints, digest.clone(), layer.size, partial)))
    }

    /// Leaves the first place, whoever the bytes were from: others may have gone on where it ended.
    fn leave(&self, layer: &Layer) -> bool {
        let Some(digest) = &layer.digest else { return false };
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let left = left.entry(digest.clone()).or_default();
        let is_more = *left + 1 < self.endpoints.len();
        *left += usize::from(is_more);
        is_more
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn stop(&self) {
        self.http.stop();
    }
}
