//! What the supervisor tells the broker while a job runs: doors, changes of the policy, connections it has begun.
//!
//! Invariant: an order is read with the channel's bound, and one that is none ends the broker: only the supervisor speaks here.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::policy::{Policy, PolicyError};
use crate::rule::Rule;

/// What `agentd allow` and `agentd deny` say of a running job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// What is allowed from now on; a denial in the same words is taken back.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub allow: Vec<Rule>,
    /// What is denied from now on, whatever allows it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub deny: Vec<Rule>,
}

impl Policy {
    /// The policy after a change.
    ///
    /// # Errors
    /// Too many rules or ports.
    pub fn changed(&self, change: &Change) -> Result<Policy, PolicyError> {
        let mut changed = self.clone();
        changed.deny.retain(|rule| !change.allow.contains(rule));
        for (rules, more) in [(&mut changed.allow, &change.allow), (&mut changed.deny, &change.deny)] {
            for rule in more {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
        changed.checked()
    }

    /// The denial that keeps `rule` from allowing anything, where one does so at all of its ports.
    #[must_use]
    pub fn denial_of(&self, rule: &Rule) -> Option<&Rule> {
        self.deny.iter().find(|denial| denial.covers(rule))
    }

    /// Ports that need a listener and are not among those that have one.
    #[must_use]
    pub fn ports_beyond(&self, open: &BTreeSet<u16>) -> Vec<u16> {
        self.ports().difference(open).copied().collect()
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
    use crate::name::Name;
    use crate::policy::Target;
    use proptest::prelude::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_change_adds_and_takes_a_denial_in_the_same_words_back() {
        let policy = Policy::new(rules(&["a.org"]), rules(&["b.org"]), Vec::new()).unwrap();
        let allows = |policy: &Policy, host: &str| policy.decide(&Target::Name(Name::new(host).unwrap()), 443).is_ok();
        let more = policy.changed(&Change { allow: rules(&["b.org", "a.org"]), deny: Vec::new() }).unwrap();
        assert!(allows(&more, "a.org") && allows(&more, "b.org"));
        assert_eq!((more.allowed().len(), more.denied().len()), (2, 0));
        let less = more.changed(&Change { allow: Vec::new(), deny: rules(&["*.org", "b.org"]) }).unwrap();
        assert!(!allows(&less, "a.org") && !allows(&less, "b.org"));
        let still = less.changed(&Change { allow: rules(&["b.org"]), deny: Vec::new() }).unwrap();
        assert!(!allows(&still, "b.org"));
        assert_eq!(still.denial_of(&rules(&["b.org"])[0]), Some(&rules(&["*.org"])[0]));
        assert_eq!(still.denial_of(&rules(&["b.net"])[0]), None);
        let many: Vec<String> = (0..300).map(|number| format!("a.org:{}", 1000 + number)).collect();
        let many = Change { allow: many.iter().map(|text| text.parse().unwrap()).collect(), deny: Vec::new() };
        assert!(policy.changed(&many).is_err());
        assert!(policy.changed(&Change { allow: rules(&["a.org:53"]), deny: Vec::new() }).is_err());
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
