//! Authentication at one place: Basic, or Bearer with tokens of the service that the challenge names (distribution's
//! "Token Authentication Specification").
//!
//! Invariant: credentials leave only for the registry they are stored for and for the token service it names, never
//! over HTTP unless the registry itself is spoken to so; tokens are asked for pulling one repository, whatever the
//! challenge suggests.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use ureq::http::uri::Scheme;
use ureq::http::{HeaderValue, Uri};

use super::challenge::{self, Challenge};
use super::credentials::{self, Credential, Keepers};
use super::error::RegistryError;
use super::http::{Answer, Http, Request, host_of};

/// Tokens of Harbor and ACR have some kilobytes.
const TOKEN_DOCUMENT: u64 = 1 << 20;
/// What a token lives when its service does not say; and the least, as its specification has it.
const LIFE: u64 = 60;
/// Before its end a token is renewed, so that it does not end on the way.
const MARGIN: Duration = Duration::from_secs(10);

/// The way into one repository of one registry.
#[derive(Debug)]
pub(super) struct Login {
    /// As in the image's name: credentials are stored under it.
    registry: String,
    repository: String,
    keepers: Keepers,
    credential: OnceLock<Option<Credential>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts what was got, so that of many that are refused together only one asks anew.
    generation: u64,
    grant: Option<Grant>,
}

#[derive(Clone, Debug)]
struct Grant {
    /// Marked sensitive, so no `Debug` shows it.
    header: HeaderValue,
    /// With what it is renewed when its time has come.
    renewal: Option<(Bearer, Instant)>,
}

/// A bearer challenge that can be followed.
#[derive(Clone, Debug)]
struct Bearer {
    realm: Uri,
    service: Option<String>,
}

/// What a request is sent with.
#[derive(Debug)]
pub(super) struct Pass {
    generation: u64,
    pub(super) header: Option<HeaderValue>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Login {
    pub(super) fn new(registry: &str, repository: &str, keepers: Keepers) -> Login {
        Login {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            keepers,
            credential: OnceLock::new(),
            state: Mutex::new(State::default()),
        }
    }

    /// What is known to work so far; a token whose end is near is renewed first.
    pub(super) fn pass(&self, http: &Http, plain: bool) -> Result<Pass, RegistryError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Grant { renewal: Some((bearer, until)), .. }) = &state.grant
            && Instant::now() >= *until
        {
            let bearer = bearer.clone();
            state.grant = Some(self.fetch_token(http, bearer, plain)?);
            state.generation += 1;
        }
        Ok(Pass { generation: state.generation, header: state.grant.as_ref().map(|grant| grant.header.clone()) })
    }

    /// Does what the answer to a request with `refused` asks for.
    pub(super) fn answer(
        &self,
        http: &Http,
        answer: &Answer,
        refused: &Pass,
        plain: bool,
    ) -> Result<Pass, RegistryError> {
        // The lock is held while the token is fetched: others that were refused wait for it instead of fetching theirs.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.generation == refused.generation {
            state.grant = Some(self.grant(http, answer, refused, plain)?);
            state.generation += 1;
        }
        Ok(Pass { generation: state.generation, header: state.grant.as_ref().map(|grant| grant.header.clone()) })
    }

    fn grant(&self, http: &Http, answer: &Answer, refused: &Pass, plain: bool) -> Result<Grant, RegistryError> {
        let mut challenges = Vec::new();
        for header in answer.headers("www-authenticate") {
            let parsed = challenge::parse(header);
            challenges.extend(parsed.map_err(|error| self.not_understood(&answer.host, error.to_string()))?);
        }
        let of = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        match (of("bearer"), of("basic")) {
            (Some(bearer), _) => {
                let bearer = self.bearer(&answer.host, bearer, plain)?;
                self.fetch_token(http, bearer, plain)
            }
            // The same password would be refused again.
            (None, Some(_)) if refused.header.is_some() => Err(self.denied()),
            (None, Some(_)) => match self.credential()? {
                Some(Credential::Password { user, password }) => {
                    Ok(Grant { header: self.header(&credentials::basic(user, password))?, renewal: None })
                }
                Some(Credential::IdentityToken(_)) => {
                    let reason = "it wants a password, and an identity token is stored for it".to_owned();
                    Err(self.not_understood(&answer.host, reason))
                }
                None => Err(self.denied()),
            },
            (None, None) => Err(self.not_understood(&answer.host, "it offers neither Bearer nor Basic".into())),
        }
    }

    fn bearer(&self, host: &str, challenge: &Challenge, plain: bool) -> Result<Bearer, RegistryError> {
        let bad = |reason: &str| self.not_understood(host, reason.to_owned());
        let realm = challenge.param("realm").ok_or_else(|| bad("the challenge names no token service"))?;
        let realm: Uri = realm.parse().map_err(|_detail| bad("the address of its token service is none"))?;
        let named = realm.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        let safe = realm.scheme() == Some(&Scheme::HTTPS) || realm.scheme() == Some(&Scheme::HTTP) && plain;
        if !named || !safe {
            return Err(bad("the address of its token service is not https://HOST/…"));
        }
        Ok(Bearer { realm, service: challenge.param("service").map(str::to_owned) })
    }

    fn fetch_token(&self, http: &Http, bearer: Bearer, plain: bool) -> Result<Grant, RegistryError> {
        const OBJECT: &str = "a token";
        let service = host_of(&bearer.realm);
        let bad = |reason: &str| RegistryError::Token {
            host: self.registry.clone(),
            service: service.clone(),
            reason: reason.to_owned(),
        };
        let scope = format!("repository:{}:pull", self.repository);
        let credential = self.credential()?;
        // Any certificate is good enough where the registry's own need not be good, but only at the registry itself.
        let lenient = plain && service == self.registry;
        let answer = match credential {
            Some(Credential::IdentityToken(token)) => {
                let mut form = vec![("grant_type", "refresh_token"), ("refresh_token", token.as_str())];
                form.extend([("scope", scope.as_str()), ("client_id", "agentd")]);
                form.extend(bearer.service.as_deref().map(|service| ("service", service)));
                http.post(&bearer.realm, &form, lenient)?
            }
            password => {
                let mut query = vec![("scope", scope.as_str())];
                query.extend(bearer.service.as_deref().map(|service| ("service", service)));
                let mut header = None;
                if let Some(Credential::Password { user, password }) = password {
                    query.push(("account", user.as_str()));
                    header = Some(self.header(&credentials::basic(user, password))?);
                }
                let request = Request {
                    uri: with_query(&bearer.realm, &query).ok_or_else(|| bad("its address is none"))?,
                    object: OBJECT,
                    accept: "application/json",
                    from: 0,
                    authorization: header.as_ref(),
                    lenient,
                };
                http.get(&request)?
            }
        };
        match answer.status() {
            200 => {}
            401 | 403 => return Err(self.denied()),
            _ => return Err(http.refused(answer, OBJECT)),
        }
        let document = http.document(answer, OBJECT, TOKEN_DOCUMENT)?;
        // What is wrong with it is not told: the message would quote it.
        let token: Token = serde_json::from_slice(&document).map_err(|_secret| bad("its answer is not a token's"))?;
        let text = token.token.or(token.access_token).filter(|text| !text.is_empty());
        let text = text.ok_or_else(|| bad("its answer holds no token"))?;
        let life = Duration::from_secs(token.expires_in.unwrap_or(LIFE).clamp(LIFE, 24 * 3600));
        let header = self.header(&format!("Bearer {text}"))?;
        Ok(Grant { header, renewal: Some((bearer, Instant::now() + life - MARGIN)) })
    }

    fn credential(&self) -> Result<Option<&Credential>, RegistryError> {
        if self.credential.get().is_none() {
            let found = self.keepers.find(&self.registry, &self.repository)?;
            // Set meanwhile by another thread, it is the same.
            self.credential.set(found).ok();
        }
        Ok(self.credential.get().and_then(Option::as_ref))
    }

    fn header(&self, text: &str) -> Result<HeaderValue, RegistryError> {
        let mut header = HeaderValue::from_str(text).map_err(|_secret| {
            self.not_understood(&self.registry, "the credentials or the token hold control characters".into())
        })?;
        header.set_sensitive(true);
        Ok(header)
    }

    fn not_understood(&self, host: &str, reason: String) -> RegistryError {
        RegistryError::Challenge { host: host.to_owned(), reason }
    }

    /// Refused, with what is known about why.
    pub(super) fn denied(&self) -> RegistryError {
        let host = self.registry.clone();
        let login = format!("log in with `podman login {host}` or `docker login {host}`");
        let hint = match self.credential.get() {
            Some(Some(_)) => format!(" with the credentials stored for it; {login} anew, or check the name"),
            _ => format!("; {login}, or check the name: many registries say so of what they do not have"),
        };
        RegistryError::Denied { host, repository: self.repository.clone(), hint }
    }
}

/// The address with more words in its query.
fn with_query(uri: &Uri, words: &[(&str, &str)]) -> Option<Uri> {
    let mut text = uri.path().to_owned();
    let mut separator = '?';
    if let Some(query) = uri.query() {
        text.push('?');
        text.push_str(query);
        separator = '&';
    }
    for (name, value) in words {
        text.push(separator);
        text.push_str(name);
        text.push('=');
        text.push_str(&escaped(value));
        separator = '&';
    }
    super::http::address(uri.scheme().cloned(), uri.authority().cloned(), text.parse().ok()?)
}

/// RFC 3986, section 2.1: all but the unreserved, and `:` and `/`, which token services know unescaped.
fn escaped(value: &str) -> String {
    let mut text = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_added_to_an_address() {
        let with =
            |uri: &str| with_query(&uri.parse().unwrap(), &[("scope", "repository:a/b:pull"), ("account", "a&b c")]);
        for (uri, want) in [
            ("https://a.example", "https://a.example/?scope=repository:a/b:pull&account=a%26b%20c"),
            ("https://a.example/t?x=y", "https://a.example/t?x=y&scope=repository:a/b:pull&account=a%26b%20c"),
        ] {
            assert_eq!(with(uri).unwrap().to_string(), want);
        }
    }

    #[test]
    fn a_token_service_over_http_needs_a_registry_over_http() {
        let login = Login::new("r.example", "a/b", Keepers::default());
        let challenge = |realm: &str| challenge::parse(&format!("Bearer realm=\"{realm}\"")).unwrap().remove(0);
        for (realm, plain, followed) in [
            ("http://a.example/t", false, false),
            ("http://a.example/t", true, true),
            ("https://a.example/t", false, true),
        ] {
            assert_eq!(login.bearer("r.example", &challenge(realm), plain).is_ok(), followed, "{realm} {plain}");
        }
    }
}
