//! Named sets of rules: what a well-known tool needs, as data (`sets.toml`) with a reason for each rule.
//!
//! Invariant: every set is made of rules that parse; a test holds that.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::rule::Rule;

const TEXT: &str = include_str!("../sets.toml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    #[expect(dead_code, reason = "for readers of the file")]
    about: String,
    rules: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    allow: String,
    #[expect(dead_code, reason = "for readers of the file")]
    why: String,
}

fn all() -> BTreeMap<String, Set> {
    // A part of the program: a test holds that it parses.
    toml::from_str(TEXT).unwrap_or_default()
}

/// The rules of a set; `None` where there is no set of that name.
#[must_use]
pub fn set(name: &str) -> Option<Vec<Rule>> {
    // Most words are hosts: the file is read only for what could be a set.
    if name.contains(['.', ':']) {
        return None;
    }
    let set = all().remove(name)?;
    Some(set.rules.iter().filter_map(|entry| entry.allow.parse().ok()).collect())
}

/// The names of the sets, for messages.
#[derive(Debug)]
pub struct SetNames;

impl std::fmt::Display for SetNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&all().into_keys().collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_is_made_of_rules() {
        assert_eq!(SetNames.to_string(), "claude, crates, debian, github, huggingface, npm, pypi");
        for (name, entries) in all() {
            let rules = set(&name).unwrap();
            assert_eq!(rules.len(), entries.rules.len(), "{name}");
            assert!(!rules.is_empty() && rules.iter().all(|rule| rule.allowed_ports().0 != 22), "{name}");
        }
        assert_eq!(set("github").unwrap()[0].to_string(), "github.com");
        assert!(set("nothing").is_none() && set("github.com").is_none());
    }
}
