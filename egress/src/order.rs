//! What the supervisor tells the broker while a job runs: doors, changes of the policy, connections it has begun.
//!
//! Invariant: an order is read with the channel's bound, and one that is none ends the broker: only the supervisor speaks here.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::policy::{Policy, PolicyError, Target};
use crate::rule::Rule;
use crate::url::UrlRule;

/// What `agentd allow` and `agentd deny` say of a running job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// What is allowed from now on; a denial in the same words is taken back.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub allow: Vec<Ruling>,
    /// What is denied from now on, whatever allows it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub deny: Vec<Ruling>,
}

/// A rule for hosts, or one for single requests to a host; its words tell which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Ruling {
    /// For hosts.
    Host(Rule),
    /// For requests.
    Request(UrlRule),
}

impl fmt::Display for Ruling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ruling::Host(rule) => rule.fmt(f),
            Ruling::Request(rule) => rule.fmt(f),
        }
    }
}

impl Policy {
    /// The policy after a change.
    ///
    /// # Errors
    /// Too many rules or ports; a rule for requests that nobody could keep, since nobody reads them all.
    pub fn changed(&self, change: &Change) -> Result<Policy, PolicyError> {
        let mut changed = self.clone();
        for rule in &change.allow {
            match rule {
                Ruling::Host(rule) => {
                    changed.deny.retain(|denial| denial != rule);
                    add(&mut changed.allow, rule);
                }
                Ruling::Request(rule) => {
                    let inspected = &mut changed.inspected;
                    if inspected.late.iter().any(|denial| denial.covers(rule)) {
                        // What is not denied the key allows; an allowance would bound that.
                        inspected.late.retain(|denial| denial != rule);
                        continue;
                    }
                    if !inspected.allow.iter().any(|own| own.is_about(&rule.host, rule.port)) {
                        return Err(PolicyError::NoRequests(rule.to_string()));
                    }
                    inspected.deny.retain(|denial| denial != rule);
                    add(&mut inspected.allow, rule);
                }
            }
        }
        for rule in &change.deny {
            match rule {
                Ruling::Host(rule) => add(&mut changed.deny, rule),
                Ruling::Request(rule) => {
                    let (host, port) = (&rule.host, rule.port);
                    let is_unread = changed.decide(&Target::Name(host.clone()), port).is_ok();
                    let inspected = &mut changed.inspected;
                    let has_key = inspected.keys(host, port).next().is_some();
                    // Else nobody could read what programs ask for by TLS: the box believes no certificate of ours for it.
                    if inspected.terminated().contains(&host) {
                        add(&mut inspected.deny, rule);
                    } else if has_key && !is_unread {
                        // Only in the plain is the host reached, and stays so.
                        add(&mut inspected.late, rule);
                    } else {
                        return Err(PolicyError::NoRequests(rule.to_string()));
                    }
                }
            }
        }
        let inspected = changed.inspected.clone();
        let changed = changed.checked()?;
        if inspected.is_empty() { Ok(changed) } else { changed.inspecting(inspected) }
    }

    /// The denial that keeps `rule` from allowing anything, where one does so at all of its ports, or for all of its requests.
    #[must_use]
    pub fn denial_of(&self, rule: &Ruling) -> Option<Ruling> {
        match rule {
            Ruling::Host(rule) => self.deny.iter().find(|denial| denial.covers(rule)).cloned().map(Ruling::Host),
            Ruling::Request(rule) => {
                let mut denials = self.inspected.denials();
                let of_requests = denials.find(|denial| denial.covers(rule)).cloned().map(Ruling::Request);
                let host = format!("{}:{}", rule.host, rule.port).parse::<Rule>().ok().map(Ruling::Host);
                of_requests.or_else(|| self.denial_of(&host?))
            }
        }
    }

    /// Ports that need a listener and are not among those that have one.
    #[must_use]
    pub fn ports_beyond(&self, open: &BTreeSet<u16>) -> Vec<u16> {
        self.ports().difference(open).copied().collect()
    }
}

fn add<R: PartialEq + Clone>(rules: &mut Vec<R>, rule: &R) {
    if !rules.contains(rule) {
        rules.push(rule.clone());
    }
}

/// A program of the box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// What it calls itself.
    #[serde(rename = "name")]
    pub untrusted_name: String,
    /// Its number inside.
    pub pid: u32,
}

/// A message to the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// A socket of the box comes along.
    Door,
    /// The policy changes.
    Change(Change),
    /// A connection that was asked for by [`crate::Told::Dial`] comes along, begun; without one it cannot be made.
    Dialled(u64),
    /// Whose the socket is that was asked about by [`crate::Told::Whose`], where that can be seen.
    Whose {
        /// Of the question.
        id: u64,
        /// The program.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        program: Option<Program>,
    },
}

impl Order {
    /// The message as it is sent.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Of numbers and texts JSON can always be made.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The inverse; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::Credential;
    use crate::inspected::Inspected;
    use crate::name::Name;
    use proptest::prelude::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// As it comes over a channel.
    fn ruling(text: &str) -> Ruling {
        serde_json::from_value(text.into()).unwrap()
    }

    fn hosts(texts: &[&str]) -> Vec<Ruling> {
        texts.iter().map(|text| ruling(text)).collect()
    }

    fn allow(text: &str) -> Change {
        Change { allow: hosts(&[text]), deny: Vec::new() }
    }

    fn deny(text: &str) -> Change {
        Change { allow: Vec::new(), deny: hosts(&[text]) }
    }

    #[test]
    fn requests_are_decided_on_anew_where_they_were_from_the_start() {
        let inspected = Inspected {
            credentials: vec![Credential::bound("T", "k.org").unwrap()],
            allow: vec!["GET https://a.org/x/*".parse().unwrap()],
            deny: vec!["GET https://a.org/x/no".parse().unwrap()],
            ..Inspected::default()
        };
        let policy = Policy::new(rules(&["h.org"]), Vec::new(), Vec::new()).unwrap().inspecting(inspected).unwrap();
        let a_org = Name::new("a.org").unwrap();
        let decides =
            |policy: &Policy, method, path| policy.inspected().decide((&a_org, 443), (method, path), None).is_ok();
        let terminated = |policy: &Policy| policy.inspected().terminated().into_iter().cloned().collect::<Vec<_>>();

        let more = policy.changed(&allow("POST https://a.org/y")).unwrap();
        assert!(!decides(&policy, "POST", "/y") && decides(&more, "POST", "/y") && !decides(&more, "POST", "/z"));
        let back = more.changed(&allow("GET https://a.org/x/no")).unwrap();
        assert!(!decides(&more, "GET", "/x/no") && decides(&back, "GET", "/x/no"));
        let less = back.changed(&deny("https://a.org/x/*")).unwrap();
        assert!(!decides(&less, "GET", "/x/no") && decides(&less, "POST", "/y"));
        for policy in [&policy, &more, &back, &less] {
            assert_eq!(terminated(policy), std::slice::from_ref(&a_org), "what the box believes does not change");
        }
        // A wider denial is told; so is that of the host.
        assert_eq!(less.denial_of(&ruling("GET https://a.org/x/y")), Some(ruling("https://a.org/x/*")));
        assert_eq!(less.denial_of(&ruling("GET https://a.org/*")), None);
        let none = less.changed(&deny("*.org")).unwrap();
        assert_eq!(none.denial_of(&ruling("POST https://a.org/y")), Some(ruling("*.org")));
        // Elsewhere the box believes no certificate of ours, and a first allowance would take away what a key gives.
        for other in ["GET https://h.org/x", "GET https://k.org/x", "GET https://a.org:8443/x", "GET https://new.org/x"]
        {
            assert!(matches!(policy.changed(&allow(other)), Err(PolicyError::NoRequests(_))), "{other}");
        }
        for other in ["GET https://h.org/x", "GET https://k.org:8443/x", "GET https://new.org/x"] {
            assert!(matches!(policy.changed(&deny(other)), Err(PolicyError::NoRequests(_))), "{other}");
        }
        assert!(policy.changed(&deny("GET https://a.org:53/x")).is_err());
    }

    /// They are read in any case, as long as TLS to the host is refused.
    #[test]
    fn requests_with_a_key_are_denied_late_and_allowed_again() {
        let credentials = vec![Credential::bound("T", "k.org").unwrap()];
        let inspected = Inspected { credentials, ..Inspected::default() };
        let policy = Policy::new(Vec::new(), Vec::new(), Vec::new()).unwrap().inspecting(inspected).unwrap();
        let k_org = Name::new("k.org").unwrap();
        let decides =
            |policy: &Policy, method| policy.inspected().decide((&k_org, 443), (method, "/x"), None).map_err(drop);
        let is_read = |policy: &Policy| policy.inspected().is_read_always(&k_org, 443);

        let denial = "DELETE,PUT https://k.org/*";
        let less = policy.changed(&deny(denial)).unwrap();
        assert_eq!([decides(&less, "GET"), decides(&less, "DELETE")], [Ok("--secret T".to_owned()), Err(())]);
        assert!(less.inspected().terminated().is_empty(), "what the box believes does not change");
        assert!(is_read(&less) && !is_read(&policy));
        // A host that is allowed later is no way past it.
        let host_too = less.changed(&allow("k.org")).unwrap();
        assert!(is_read(&host_too) && decides(&host_too, "DELETE").is_err());
        let narrower = allow("PUT https://k.org/x");
        assert_eq!(less.changed(&narrower).unwrap().denial_of(&narrower.allow[0]), Some(ruling(denial)));
        assert_eq!(less.changed(&allow(denial)), Ok(policy.clone()));
        // By such a rule TLS passes unread already.
        let by_host = policy.changed(&allow("k.org")).unwrap();
        assert!(matches!(by_host.changed(&deny(denial)), Err(PolicyError::NoRequests(_))));
    }

    #[test]
    fn a_denial_of_requests_covers_what_lies_within_it() {
        for (denial, rule, covers) in [
            ("https://a.org/x*", "GET https://a.org/x/y", true),
            ("GET https://a.org/x*", "https://a.org/x/y", false),
            ("GET,POST https://a.org/x*", "POST https://a.org/x*", true),
            ("GET https://a.org/x", "GET https://a.org/x*", false),
            ("GET https://a.org/x", "GET https://a.org/x", true),
            ("https://a.org/%78*", "GET https://a.org/x", true),
            ("https://b.org/x*", "GET https://a.org/x", false),
        ] {
            let [denial, rule]: [UrlRule; 2] = [denial, rule].map(|text| text.parse().unwrap());
            assert_eq!(denial.covers(&rule), covers, "{denial} {rule}");
        }
    }

    #[test]
    fn a_change_adds_and_takes_a_denial_in_the_same_words_back() {
        let policy = Policy::new(rules(&["a.org"]), rules(&["b.org"]), Vec::new()).unwrap();
        let allows = |policy: &Policy, host: &str| policy.decide(&Target::Name(Name::new(host).unwrap()), 443).is_ok();
        let more = policy.changed(&Change { allow: hosts(&["b.org", "a.org"]), deny: Vec::new() }).unwrap();
        assert!(allows(&more, "a.org") && allows(&more, "b.org"));
        assert_eq!((more.allowed().len(), more.denied().len()), (2, 0));
        let less = more.changed(&Change { allow: Vec::new(), deny: hosts(&["*.org", "b.org"]) }).unwrap();
        assert!(!allows(&less, "a.org") && !allows(&less, "b.org"));
        let still = less.changed(&Change { allow: hosts(&["b.org"]), deny: Vec::new() }).unwrap();
        assert!(!allows(&still, "b.org"));
        assert_eq!(still.denial_of(&hosts(&["b.org"])[0]), hosts(&["*.org"]).pop());
        assert_eq!(still.denial_of(&hosts(&["b.net"])[0]), None);
        let many: Vec<String> = (0..300).map(|number| format!("a.org:{}", 1000 + number)).collect();
        let many = Change { allow: many.iter().map(|text| ruling(text)).collect(), deny: Vec::new() };
        assert!(policy.changed(&many).is_err());
        assert!(policy.changed(&Change { allow: hosts(&["a.org:53"]), deny: Vec::new() }).is_err());
    }

    #[test]
    fn a_new_port_needs_a_listener() {
        let policy = Policy::new(rules(&["a.org:22", "b.org:5432-5433"]), Vec::new(), Vec::new()).unwrap();
        assert_eq!(policy.ports_beyond(&[22, 80, 443, 5433].into()), [5432]);
    }

    #[test]
    fn a_denial_covers_what_lies_within_it() {
        for (denial, rule, covers) in [
            ("*.a.org", "b.a.org:80", true),
            ("*.a.org", "*.b.a.org", true),
            ("*.a.org", "a.org", false),
            ("a.org:443", "a.org", true),
            ("a.org:443", "a.org:80-443", false),
            ("10.0.0.0/8", "10.1.0.0/16:22", true),
            ("10.1.0.0/16", "10.0.0.0/8", false),
            ("10.0.0.0/8", "a.org", false),
        ] {
            assert_eq!(rules(&[denial])[0].covers(&rules(&[rule])[0]), covers, "{denial} {rule}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_order_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(order) = Order::decode(&bytes) {
                prop_assert_eq!(Order::decode(&order.encode()), Some(order));
            }
        }
    }
}
