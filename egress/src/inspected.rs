//! Hosts whose requests the broker reads: those that a key is added for, and those of which only some requests are allowed.
//!
//! Invariant: what is read is decided on request by request; a host that is listed here is not reached past that by a rule
//! that this list itself implies.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::credential::Credential;
use crate::name::Name;
use crate::policy::Refusal;
use crate::rule::{DEFAULT_PORT, Rule};
use crate::url::{UrlRule, decode};

/// The port at which a box asks for a host of [`DEFAULT_PORT`] without TLS.
const PLAIN_PORT: u16 = 80;

/// What the user said about requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspected {
    /// Keys, and the hosts that they are for: which so are allowed, unless rules for their paths are there.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub credentials: Vec<Credential>,
    /// Requests that are allowed.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub allow: Vec<UrlRule>,
    /// Requests that are denied before that.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub deny: Vec<UrlRule>,
    /// The same, said while the job ran, of hosts with a key for which TLS is not ended at the broker: it cannot be any more,
    /// for the box believes no certificate for them.
    #[serde(skip)]
    pub late: Vec<UrlRule>,
    /// Whether TLS to hosts with a key is ended at the broker, with a certificate of the job's own authority.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub terminate: bool,
    /// A file of authorities that servers are believed by, instead of the host's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub authorities: Option<PathBuf>,
}

/// A host at a port of the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Site {
    /// Its port, where it speaks TLS.
    pub(crate) port: u16,
    /// Whether a client may speak TLS, too.
    pub(crate) terminates: bool,
}

impl Inspected {
    /// Whether there is no such host.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hosts().next().is_none()
    }

    /// Every such host with its port, some of them more than once.
    pub fn hosts(&self) -> impl Iterator<Item = (&Name, u16)> {
        let rules = self.allow.iter().chain(self.denials()).map(|rule| (&rule.host, rule.port));
        self.credentials.iter().map(|credential| (&credential.host, credential.port)).chain(rules)
    }

    /// What is denied of requests, since whenever.
    pub(crate) fn denials(&self) -> impl Iterator<Item = &UrlRule> {
        self.deny.iter().chain(&self.late)
    }

    /// The hosts for which TLS is ended at the broker, each once.
    #[must_use]
    pub fn terminated(&self) -> Vec<&Name> {
        let mut names: Vec<&Name> =
            self.hosts().filter(|(name, port)| self.terminates(name, *port)).map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        names
    }

    fn terminates(&self, name: &Name, port: u16) -> bool {
        // Without, rules for its requests could not be kept where programs speak TLS.
        let has_rules = self.allow.iter().chain(&self.deny).any(|rule| rule.is_about(name, port));
        self.terminate || has_rules
    }

    /// The host behind a name at a port of the box.
    pub(crate) fn site(&self, name: &Name, port: u16) -> Option<Site> {
        let is_there = |port: u16| self.hosts().any(|(own, at)| own == name && at == port);
        let behind = if port == PLAIN_PORT && !is_there(PLAIN_PORT) { DEFAULT_PORT } else { port };
        is_there(behind).then(|| Site { port: behind, terminates: port == behind && self.terminates(name, behind) })
    }

    /// Whether nothing for a name at a port of the box may pass unread. TLS may where only a key is added, if a rule of the
    /// user's own allows it, and none denies single requests.
    pub(crate) fn is_read_always(&self, name: &Name, port: u16) -> bool {
        let is_denied_late = self.late.iter().any(|rule| rule.is_about(name, port));
        is_denied_late || self.site(name, port).is_some_and(|site| site.terminates || site.port != port)
    }

    /// The keys for requests to a host.
    pub(crate) fn keys(&self, name: &Name, port: u16) -> impl Iterator<Item = &Credential> {
        self.credentials.iter().filter(move |credential| credential.host == *name && credential.port == port)
    }

    /// What allows a request to a host of this list; `by_host` is the rule that allows all of them, if there is one.
    pub(crate) fn decide(
        &self,
        (name, port): (&Name, u16),
        (method, path): (&str, &str),
        by_host: Option<&Rule>,
    ) -> Result<String, Refusal> {
        let is_about = |rule: &UrlRule| rule.is_about(name, port);
        let has_allowances = self.allow.iter().any(is_about);
        if has_allowances || self.denials().any(is_about) {
            let decoded = decode(path).map_err(Refusal::because)?;
            let matches = |rule: &&UrlRule| rule.matches(name, port, method, &decoded);
            if let Some(rule) = self.denials().find(matches) {
                let why = format!("denied by --deny '{rule}'");
                return Err(Refusal { why, rule: Some(rule.to_string()), allow: None });
            }
            if let Some(rule) = self.allow.iter().find(matches) {
                return Ok(rule.to_string());
            }
        }
        if let Some(rule) = by_host {
            return Ok(rule.to_string());
        }
        match self.keys(name, port).next() {
            Some(credential) if !has_allowances => Ok(format!("--secret {}", credential.secret)),
            _ => {
                let refusal = Refusal::because("no rule allows this request");
                // It is meant to be copied to a shell: nothing of the box stands in it that a shell reads.
                let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-_.~".contains(c);
                let is_short = path.len() <= 100 && path.chars().all(is_plain);
                let at = if port == DEFAULT_PORT { String::new() } else { format!(":{port}") };
                let path = if is_short { path } else { "/…" };
                let method: String = method.chars().filter(char::is_ascii_uppercase).take(32).collect();
                Err(refusal.unless(format_args!("'{method} https://{name}{at}{path}'")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn inspected(keys: &[&str], allow: &[&str], deny: &[&str]) -> Inspected {
        let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let credentials = keys.iter().map(|text| Credential::bound("T", text).unwrap()).collect();
        Inspected { credentials, allow: rules(allow), deny: rules(deny), ..Inspected::default() }
    }

    fn decides(of: &Inspected, method: &str, path: &str) -> Result<String, Refusal> {
        of.decide((&name("a.org"), 443), (method, path), None)
    }

    #[test]
    fn a_key_implies_its_host_and_a_rule_for_its_paths_bounds_it() {
        let key = inspected(&["a.org"], &[], &[]);
        assert_eq!(decides(&key, "GET", "/x//y").unwrap(), "--secret T");
        let bounded = inspected(&["a.org"], &["GET https://a.org/x/*"], &[]);
        assert_eq!(decides(&bounded, "GET", "/x/y").unwrap(), "GET https://a.org/x/*");
        let refusal = decides(&bounded, "POST", "/x/y").unwrap_err();
        assert_eq!(refusal.allow.as_deref(), Some("--allow 'POST https://a.org/x/y'"));
        let odd = decides(&bounded, "POST", "/x/'$(id)").unwrap_err();
        assert_eq!(odd.allow.as_deref(), Some("--allow 'POST https://a.org/…'"));
        assert!(decides(&bounded, "GET", "/x/%2e%2e/y").unwrap_err().why.contains("climbs"));
        let denied = inspected(&["a.org"], &[], &["DELETE https://a.org/*"]);
        assert!(decides(&denied, "GET", "/x").is_ok());
        assert!(decides(&denied, "DELETE", "/x").unwrap_err().why.contains("--deny 'DELETE"));
        let rule: Rule = "a.org".parse().unwrap();
        assert_eq!(bounded.decide((&name("a.org"), 443), ("POST", "/z"), Some(&rule)).unwrap(), "a.org");
    }

    #[test]
    fn a_site_is_asked_for_at_its_port_or_in_the_plain() {
        let some = inspected(&["a.org", "b.org:8443"], &["https://c.org/*"], &[]);
        let site = |host: &str, port| some.site(&name(host), port).map(|site| (site.port, site.terminates));
        assert_eq!([site("a.org", 80), site("a.org", 443)], [Some((443, false)); 2]);
        assert_eq!([site("b.org", 8443), site("b.org", 80), site("b.org", 443)], [Some((8443, false)), None, None]);
        assert_eq!([site("c.org", 80), site("c.org", 443)], [Some((443, false)), Some((443, true))]);
        assert_eq!(site("d.org", 443), None);
        assert_eq!(some.terminated(), [&name("c.org")]);
        let unread = |host: &str, port| !some.is_read_always(&name(host), port);
        assert!(unread("a.org", 443) && unread("d.org", 443) && !unread("a.org", 80) && !unread("c.org", 443));
        let all = Inspected { terminate: true, ..some.clone() };
        assert_eq!(all.terminated().len(), 3);
        assert!(all.site(&name("b.org"), 8443).unwrap().terminates);
        assert!(Inspected::default().is_empty() && !some.is_empty());
    }
}
