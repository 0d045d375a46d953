//! HTTP for registries: connections, redirects, bounded answers.
//!
//! Invariant: an `Authorization` header goes to the host it was made for and no other, a redirect never leads from
//! HTTPS to HTTP unless the registry is one that HTTP is good enough for, and of an answer no more is held than its bound.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ureq::http::uri::{Authority, PathAndQuery, Scheme};
use ureq::http::{HeaderMap, HeaderValue, Response, Uri};
use ureq::{Agent, Body, Error, Proxy};

use super::error::RegistryError;
use super::patience::{Patience, Stop};
use super::proxy::Proxies;
use super::trust::Trust;
use crate::printable::printable;

/// As many as curl follows unless told otherwise; registries need one or two.
const REDIRECTS: usize = 10;
/// Of an error's explanation.
const EXPLANATION: u64 = 16 << 10;

/// What is asked for.
#[derive(Debug)]
pub(super) struct Request<'r> {
    pub(super) uri: Uri,
    /// In words, for messages.
    pub(super) object: &'r str,
    pub(super) accept: &'static str,
    /// The first byte wanted.
    pub(super) from: u64,
    pub(super) authorization: Option<&'r HeaderValue>,
    /// Whether HTTP, and any certificate of this host, are good enough.
    pub(super) lenient: bool,
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub(super) struct Answer {
    /// Who gave it: the registry or whom it redirected to.
    pub(super) host: String,
    pub(super) redirected: bool,
    response: Response<Body>,
}

/// Who is spoken to, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Peer {
    https: bool,
    host: String,
    /// Whether any certificate is believed.
    lenient: bool,
}

/// All connections of one pull.
#[derive(Debug)]
pub(super) struct Http {
    trust: Trust,
    proxies: Proxies,
    pub(super) patience: Patience,
    pub(super) stop: Stop,
    /// `None` once it is stopped.
    agents: Mutex<Option<HashMap<Peer, Agent>>>,
}

impl Http {
    pub(super) fn new(trust: Trust, proxies: Proxies, patience: Patience) -> Http {
        Http { trust, proxies, patience, stop: Stop::default(), agents: Mutex::new(Some(HashMap::new())) }
    }

    /// Ends every connection and every wait, and refuses new ones.
    pub(super) fn stop(&self) {
        self.stop.stop();
        let agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner).take();
        agents.into_iter().flatten().for_each(|(_, agent)| agent.shutdown());
    }

    /// Asks, following redirects.
    pub(super) fn get(&self, request: &Request<'_>) -> Result<Answer, RegistryError> {
        let first = host_of(&request.uri);
        let mut uri = request.uri.clone();
        let mut own = true;
        for hop in 0..=REDIRECTS {
            let host = host_of(&uri);
            let agent = self.agent(&uri, own && request.lenient)?;
            let mut asked = agent.get(uri.clone()).header("accept", request.accept);
            if let Some(authorization) = request.authorization.filter(|_| own) {
                asked = asked.header("authorization", authorization);
            }
            if request.from > 0 {
                asked = asked.header("range", format!("bytes={}-", request.from));
            }
            let response = asked.call().map_err(|error| self.failed(&host, error))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { host, redirected: hop > 0, response });
            }
            let refused = |reason: &str| RegistryError::Redirect {
                host: first.clone(),
                object: request.object.to_owned(),
                reason: reason.to_owned(),
            };
            let next = target(&uri, response.headers()).map_err(refused)?;
            if is_downgrade(&uri, &next) && !request.lenient {
                return Err(refused(&format!("from HTTPS to HTTP at `{}`, which is refused", host_of(&next))));
            }
            // Once elsewhere, a way back is not believed either: that request is no longer ours.
            own &= same_origin(&uri, &next);
            uri = next;
        }
        Err(RegistryError::Redirect {
            host: first,
            object: request.object.to_owned(),
            reason: format!("more than {REDIRECTS} times"),
        })
    }

    /// Sends a form; a redirect is an answer like any other.
    pub(super) fn post(&self, uri: &Uri, form: &[(&str, &str)], lenient: bool) -> Result<Answer, RegistryError> {
        let host = host_of(uri);
        let asked = self.agent(uri, lenient)?.post(uri.clone()).header("accept", "application/json");
        let sent = asked.send_form(form.iter().copied());
        let response = sent.map_err(|error| self.failed(&host, error))?;
        Ok(Answer { host, redirected: false, response })
    }

    fn agent(&self, uri: &Uri, lenient: bool) -> Result<Agent, RegistryError> {
        let host = host_of(uri);
        let https = uri.scheme() == Some(&Scheme::HTTPS);
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let agents = agents.as_mut().ok_or(RegistryError::Stopped)?;
        let peer = Peer { https, host, lenient };
        if let Some(agent) = agents.get(&peer) {
            return Ok(agent.clone());
        }
        let host = &peer.host;
        let proxy = self.proxies.of(https, uri.host().unwrap_or_default()).map(Proxy::new).transpose();
        let proxy = proxy.map_err(|_may_hold_a_password| RegistryError::Proxy { host: host.clone() })?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections_per_host(6)
            .user_agent(concat!("agentd/", env!("CARGO_PKG_VERSION")))
            // A blob's bytes are what its digest is of; nobody may pack them once more.
            .accept_encoding("identity")
            .timeout_connect(Some(self.patience.connect))
            .timeout_send_request(Some(self.patience.read))
            .timeout_recv_response(Some(self.patience.answer))
            .timeout_per_read(Some(self.patience.read))
            .timeout_per_write(Some(self.patience.read));
        if https || proxy.is_some() {
            config = config.tls_config(self.trust.config(host, lenient)?);
        }
        let agent: Agent = config.proxy(proxy).build().into();
        agents.insert(peer, agent.clone());
        Ok(agent)
    }

    /// What a failure to connect, to send or to receive is.
    fn failed(&self, host: &str, error: Error) -> RegistryError {
        if self.stop.wait(Duration::ZERO).is_err() {
            return RegistryError::Stopped;
        }
        let host = host.to_owned();
        match tls(&error) {
            Some(rustls::Error::InvalidCertificate(_)) => RegistryError::Certificate { host, source: error.into() },
            _ if is_unknown_host(&error) => RegistryError::UnknownHost { host },
            _ => RegistryError::Unreachable { host, source: without_address(error) },
        }
    }

    /// The whole body of an answer, if it is not more than `limit`.
    pub(super) fn document(&self, answer: Answer, object: &str, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let host = answer.host.clone();
        let too_long = || RegistryError::TooLong { host: host.clone(), object: object.to_owned(), limit, hint: "" };
        let promised = answer.response.body().content_length();
        if promised.is_some_and(|length| length > limit) {
            return Err(too_long());
        }
        let begin = Instant::now();
        let mut reader = answer.into_reader().take(limit + 1);
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = reader.read(&mut buffer).map_err(|error| self.failed(&host, Error::from(error)))?;
            bytes.extend_from_slice(&buffer[..read]);
            let length = bytes.len() as u64;
            if length > limit {
                return Err(too_long());
            }
            if read == 0 {
                return Ok(bytes);
            }
            if begin.elapsed() > self.patience.document {
                return Err(RegistryError::Stalled { host, bytes: length, time: begin.elapsed() });
            }
        }
    }

    /// The error that an answer with an error's status is.
    pub(super) fn refused(&self, answer: Answer, object: &str) -> RegistryError {
        let (host, object) = (answer.host.clone(), object.to_owned());
        let status = answer.status();
        if status == 404 {
            return RegistryError::NotFound { host, object };
        }
        let seconds: Option<u64> = answer.header("retry-after").and_then(|value| value.trim().parse().ok());
        let retry_after = seconds.map(Duration::from_secs);
        let said = self.document(answer, &object, EXPLANATION).ok().and_then(|body| explanation(&body));
        let mut said = said.map(|said| format!(": {said}")).unwrap_or_default();
        if let Some(seconds) = seconds.filter(|seconds| *seconds > 0) {
            said.push_str(&format!("; it asks to be left alone for {seconds} s"));
        }
        RegistryError::Status { host, status, object, said, retry_after }
    }
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// A header's value, where it is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The values of a header that may stand there several times.
    pub(super) fn headers(&self, name: &str) -> impl Iterator<Item = &str> {
        self.response.headers().get_all(name).iter().filter_map(|value| value.to_str().ok())
    }

    /// Bytes of the body, where it says.
    pub(super) fn length(&self) -> Option<u64> {
        self.response.body().content_length()
    }

    pub(super) fn into_reader(self) -> impl Read + Send + 'static {
        self.response.into_body().into_reader()
    }
}

/// `HOST[:PORT]` as it stands in an address.
pub(super) fn host_of(uri: &Uri) -> String {
    uri.authority().map(ToString::to_string).unwrap_or_default()
}

/// Whether a redirect gives up TLS.
fn is_downgrade(from: &Uri, to: &Uri) -> bool {
    from.scheme() == Some(&Scheme::HTTPS) && to.scheme() != Some(&Scheme::HTTPS)
}

fn same_origin(one: &Uri, other: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 });
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    one.scheme() == other.scheme() && host(one) == host(other) && port(one) == port(other)
}

/// Where a redirect leads.
fn target(from: &Uri, headers: &HeaderMap) -> Result<Uri, &'static str> {
    const BAD: &str = "to an address that is none";
    let location = headers.get("location").ok_or("nowhere")?.to_str().map_err(|_not_ascii| BAD)?;
    let (scheme, authority) = (from.scheme().cloned(), from.authority().cloned());
    let uri = if let Some(rest) = location.strip_prefix("//") {
        let text = format!("{}://{rest}", from.scheme_str().unwrap_or("https"));
        text.parse::<Uri>().map_err(|_detail| BAD)?
    } else if location.starts_with('/') {
        let path = location.split('#').next().unwrap_or(location);
        let path = path.parse::<PathAndQuery>().map_err(|_detail| BAD)?;
        address(scheme, authority, path).ok_or(BAD)?
    } else {
        location.parse::<Uri>().map_err(|_detail| BAD)?
    };
    let known = [&Scheme::HTTPS, &Scheme::HTTP].map(Some).contains(&uri.scheme());
    let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    if known && plain { Ok(uri) } else { Err("to an address that is not https://HOST/…") }
}

/// Puts an address together.
pub(super) fn address(scheme: Option<Scheme>, authority: Option<Authority>, path: PathAndQuery) -> Option<Uri> {
    let mut parts = ureq::http::uri::Parts::default();
    (parts.scheme, parts.authority, parts.path_and_query) = (scheme, authority, Some(path));
    Uri::from_parts(parts).ok()
}

/// What TLS says about it, if it was TLS that failed.
pub(super) fn tls(error: &Error) -> Option<&rustls::Error> {
    match error {
        Error::Rustls(error) => Some(error),
        Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

/// Whether the name service says that there is no such name, rather than nothing. The standard library has no kind for
/// it, only getaddrinfo's words (EAI_NONAME of glibc, of musl), which are ours: the C library is linked in.
fn is_unknown_host(error: &Error) -> bool {
    let Error::Io(error) = error else { return matches!(error, Error::HostNotFound) };
    let said = error.to_string();
    said.starts_with("failed to lookup address information")
        && ["Name or service not known", "No address associated", "Name does not resolve"]
            .iter()
            .any(|w| said.contains(w))
}

/// The error without the address that some of them quote: it may be signed.
fn without_address(error: Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        Error::BadUri(_) => "its address is none".into(),
        Error::Io(error) => error.into(),
        error => error.into(),
    }
}

/// What the body of an error says (distribution-spec, "Error Codes"; token services have `details`).
fn explanation(untrusted_body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<Reason>,
        details: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct Reason {
        message: Option<String>,
        code: Option<String>,
    }
    let errors: Errors = serde_json::from_slice(untrusted_body).ok()?;
    let first = errors.errors.into_iter().next().and_then(|reason| reason.message.or(reason.code));
    first.or(errors.details).filter(|said| !said.is_empty()).map(|said| printable(said.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        for (location, want) in [
            ("https://cdn.example/x?sig=%2F", Ok("https://cdn.example/x?sig=%2F")),
            ("http://cdn.example", Ok("http://cdn.example/")),
            ("//cdn.example/x", Ok("https://cdn.example/x")),
            ("/v2/x?y#z", Ok("https://r.example:5000/v2/x?y")),
            ("x/y", Err(())),
            ("ftp://cdn.example/x", Err(())),
            ("https://user:password@cdn.example/x", Err(())),
            ("https:///x", Err(())),
            ("https://cdn.example/a b", Err(())),
            ("", Err(())),
        ] {
            let from: Uri = "https://r.example:5000/v2/a/blobs/b".parse().unwrap();
            let mut headers = HeaderMap::new();
            headers.insert("location", location.parse().unwrap());
            let got = target(&from, &headers).map(|uri| uri.to_string()).map_err(drop);
            assert_eq!(got.as_deref(), want.as_deref(), "{location}");
        }
        assert_eq!(target(&"https://r.example/".parse().unwrap(), &HeaderMap::new()), Err("nowhere"));
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for (one, other, same) in [
            ("https://a.example/x", "https://A.example:443/y", true),
            ("https://a.example/", "http://a.example/", false),
            ("https://a.example/", "https://a.example:444/", false),
            ("https://a.example/", "https://b.a.example/", false),
        ] {
            assert_eq!(same_origin(&one.parse().unwrap(), &other.parse().unwrap()), same, "{one} {other}");
        }
    }

    #[test]
    fn a_redirect_gives_up_tls_or_does_not() {
        for (from, to, gives_up) in [
            ("https://r.example/v2/", "http://r.example/v2/", true),
            ("https://r.example/v2/", "HTTP://cdn.example/x", true),
            ("https://r.example/v2/", "http://r.example:443/v2/", true),
            ("https://r.example/v2/", "https://cdn.example/x", false),
            ("http://r.example/v2/", "http://cdn.example/x", false),
            ("http://r.example/v2/", "https://cdn.example/x", false),
        ] {
            assert_eq!(is_downgrade(&from.parse().unwrap(), &to.parse().unwrap()), gives_up, "{from} {to}");
        }
    }

    #[test]
    fn what_an_error_says_is_escaped_and_cut() {
        let said = |body: &str| explanation(body.as_bytes());
        assert_eq!(said(r#"{"errors":[{"code":"DENIED","message":"no\u001b[2J"}]}"#).unwrap(), "no\\u{1b}[2J");
        assert_eq!(said(r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#).unwrap(), "TOOMANYREQUESTS");
        assert_eq!(said(r#"{"details":"incorrect username or password"}"#).unwrap(), "incorrect username or password");
        assert_eq!(said("<html>"), None);
        assert_eq!(said("{}"), None);
        assert!(said(&format!(r#"{{"details":"{}"}}"#, "x".repeat(9000))).unwrap().chars().count() < 300);
    }
}
