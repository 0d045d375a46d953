//! One place that may have the image: its addresses, whether it speaks HTTPS, and requests with all that authentication
//! takes.
//!
//! Invariant: HTTP is spoken only where configuration allows it or on loopback, and only after HTTPS was tried there;
//! a certificate that is refused on loopback is an error, not a reason for HTTP.

use std::sync::OnceLock;

use ureq::http::Uri;
use ureq::http::uri::Scheme;

use super::credentials::Keepers;
use super::error::RegistryError;
use super::http::{Answer, Http, Request, address};
use super::login::Login;
use super::mirrors::Location;
use super::patience::Tries;
use super::proxy::is_loopback;
use crate::digest::Digest;
use crate::printable::printable;

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Object<'o> {
    /// By a tag or a digest.
    Manifest(&'o str),
    Blob(&'o Digest),
}

/// A document as it came.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) bytes: Vec<u8>,
    /// `Content-Type`, without parameters.
    pub(super) media_type: Option<String>,
    /// `Docker-Content-Digest`.
    pub(super) digest: Option<String>,
}

/// A registry with a repository in it.
#[derive(Debug)]
pub(super) struct Endpoint {
    location: Location,
    login: Login,
    /// Whether HTTP is good enough; how it is spoken to is found out once.
    lenient: bool,
    scheme: OnceLock<Scheme>,
    /// Tries of a request: few where another place can be asked.
    pub(super) tries: u32,
}

impl Endpoint {
    pub(super) fn new(location: Location, keepers: Keepers, tries: u32) -> Endpoint {
        let login = Login::new(&location.host, &location.repository, keepers);
        let bare = host_without_port(&location.host);
        let lenient = location.insecure || is_loopback(bare);
        Endpoint { location, login, lenient, scheme: OnceLock::new(), tries }
    }

    /// As configured or named by the user.
    pub(super) fn host(&self) -> &str {
        &self.location.host
    }

    /// In words, for messages.
    pub(super) fn object(&self, object: Object<'_>) -> String {
        let repository = &self.location.repository;
        match object {
            Object::Manifest(digest) if digest.contains(':') => format!("image `{repository}@{digest}`"),
            Object::Manifest(tag) => format!("image `{repository}:{tag}`"),
            Object::Blob(digest) => format!("blob {digest} of `{repository}`"),
        }
    }

    /// A whole document, asked for until it comes or patience ends.
    pub(super) fn document(&self, http: &Http, object: Object<'_>, limit: u64) -> Result<Document, RegistryError> {
        let mut tries = Tries::new(&http.patience, &http.stop, self.tries);
        loop {
            match self.document_once(http, object, limit) {
                Ok(document) => return Ok(document),
                Err(error) => tries.again(error)?,
            }
        }
    }

    fn document_once(&self, http: &Http, object: Object<'_>, limit: u64) -> Result<Document, RegistryError> {
        let answer = self.get(http, object, 0)?;
        let shown = self.object(object);
        if answer.status() != 200 {
            return Err(http.refused(answer, &shown));
        }
        let media_type = answer.header("content-type").and_then(|value| value.split(';').next());
        let media_type = media_type.map(|value| value.trim().to_ascii_lowercase());
        let digest = answer.header("docker-content-digest").map(str::to_owned);
        let (host, promised) = (answer.host.clone(), answer.length());
        let bytes = http.document(answer, &shown, limit)?;
        let length = bytes.len() as u64;
        if promised.is_some_and(|promised| promised != length) {
            return Err(RegistryError::CutShort { host, object: shown, bytes: length });
        }
        Ok(Document { bytes, media_type, digest })
    }

    /// One request from byte `from` on, with as many more as authentication takes. Any status but 401 and 403 comes back.
    pub(super) fn get(&self, http: &Http, object: Object<'_>, from: u64) -> Result<Answer, RegistryError> {
        let scheme = self.scheme(http)?;
        let plain = *scheme == Scheme::HTTP || self.location.insecure;
        let (path, accept) = match object {
            Object::Manifest(reference) => (format!("manifests/{reference}"), MANIFESTS),
            Object::Blob(digest) => (format!("blobs/{digest}"), "*/*"),
        };
        let uri = self.address(scheme, &format!("{}/{path}", self.location.repository))?;
        let shown = self.object(object);
        let ask = |authorization| {
            let uri = uri.clone();
            http.get(&Request { uri, object: &shown, accept, from, authorization, lenient: plain })
        };
        let pass = self.login.pass(http, plain)?;
        let mut answer = ask(pass.header.as_ref())?;
        if answer.status() == 401 && !answer.redirected {
            let pass = self.login.answer(http, &answer, &pass, plain)?;
            answer = ask(pass.header.as_ref())?;
        }
        match answer.status() {
            401 | 403 if !answer.redirected => Err(self.login.denied()),
            // A signed address that has run out: asking the registry again gives another.
            401 | 403 => {
                let reason = "an address that no longer works".to_owned();
                Err(RegistryError::Unreachable { host: answer.host, source: reason.into() })
            }
            _ => Ok(answer),
        }
    }

    /// How it is spoken to: HTTPS, unless HTTP is good enough and it knows no TLS.
    fn scheme(&self, http: &Http) -> Result<&Scheme, RegistryError> {
        if let Some(scheme) = self.scheme.get() {
            return Ok(scheme);
        }
        let scheme = if self.lenient { self.find_scheme(http)? } else { Scheme::HTTPS };
        Ok(self.scheme.get_or_init(|| scheme))
    }

    fn find_scheme(&self, http: &Http) -> Result<Scheme, RegistryError> {
        let ping = |scheme: Scheme| {
            let uri = self.address(&scheme, "")?;
            let lenient = self.location.insecure;
            match http.get(&Request {
                uri,
                object: "its version",
                accept: "*/*",
                from: 0,
                authorization: None,
                lenient,
            }) {
                // Whatever it says, it says it in this way.
                Ok(_) | Err(RegistryError::Redirect { .. }) => Ok(scheme),
                Err(error) => Err(error),
            }
        };
        let mut tries = Tries::new(&http.patience, &http.stop, self.tries);
        loop {
            let error = match ping(Scheme::HTTPS) {
                Ok(scheme) => return Ok(scheme),
                Err(error) => error,
            };
            if matches!(error, RegistryError::Unreachable { .. } | RegistryError::NoAuthorities { .. })
                && let Ok(scheme) = ping(Scheme::HTTP)
            {
                return Ok(scheme);
            }
            tries.again(error)?;
        }
    }

    fn address(&self, scheme: &Scheme, path: &str) -> Result<Uri, RegistryError> {
        let host = host_of_api(&self.location.host);
        let path = format!("/v2/{path}");
        let uri = match (host.parse(), path.parse()) {
            (Ok(host), Ok(path)) => address(Some(scheme.clone()), Some(host), path),
            _ => None,
        };
        uri.ok_or_else(|| RegistryError::Protocol {
            host: printable(host.as_bytes()),
            object: printable(path.as_bytes()),
            reason: "no address: the name cannot be put into one".to_owned(),
        })
    }
}

/// Who answers for a registry: Docker Hub's lives elsewhere than its name says.
fn host_of_api(host: &str) -> &str {
    if host == "docker.io" { "registry-1.docker.io" } else { host }
}

/// Without `:PORT`, IPv6 addresses in brackets left as they are.
fn host_without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((bare, port)) if port.bytes().all(|b| b.is_ascii_digit()) => bare,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Name;

    #[test]
    fn docker_hub_is_asked_at_its_registry_and_others_at_their_names() {
        for (name, want) in [
            ("debian", "https://registry-1.docker.io/v2/library/debian/manifests/latest"),
            ("docker.io/user/name", "https://registry-1.docker.io/v2/user/name/manifests/latest"),
            ("ghcr.io/owner/tools", "https://ghcr.io/v2/owner/tools/manifests/latest"),
            ("r.example:5000/docker.io/x", "https://r.example:5000/v2/docker.io/x/manifests/latest"),
        ] {
            let name: Name = name.parse().unwrap();
            let (host, repository) = (name.registry().to_owned(), name.repository().to_owned());
            let path = format!("{repository}/manifests/latest");
            let location = Location { host, repository, insecure: false };
            let endpoint = Endpoint::new(location, Keepers { auth_files: Vec::new(), helpers: None }, 1);
            assert_eq!(endpoint.address(&Scheme::HTTPS, &path).unwrap().to_string(), want);
        }
    }
}
