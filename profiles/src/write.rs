//! A profile as text: what [`crate::parse`] reads back as the same profile.
//!
//! Invariant: whatever a name or a reason holds, it stays one string of the text.

use crate::path::{MayMiss, PathRight, PathRule};
use crate::profile::{Namespaces, Profile};
use crate::rule::{Condition, SeccompRule, Test, Verdict};

/// A TOML string.
pub(crate) fn string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// One rule.
pub(crate) fn rule(rule: &SeccompRule) -> String {
    let SeccompRule { group, syscalls, when, verdict, reason } = rule;
    let names: Vec<String> = syscalls.iter().map(|call| string(&call.name)).collect();
    let mut text = format!("\n[[seccomp.rule]]\ngroup = {}\nsyscalls = [{}]\n", string(group), names.join(", "));
    if !when.is_empty() {
        let conditions: Vec<String> = when.iter().map(condition).collect();
        text.push_str(&format!("when = [{}]\n", conditions.join(", ")));
    }
    text.push_str(&format!("verdict = {}\nreason = {}\n", verdict_word(*verdict), string(reason)));
    text
}

fn condition(condition: &Condition) -> String {
    let mut text = format!("{{ arg = {}", condition.arg);
    if condition.mask != u32::MAX {
        text.push_str(&format!(", mask = {:#x}", condition.mask));
    }
    let word = match condition.test {
        Test::Is(_) => "is",
        Test::IsNot(_) => "is-not",
    };
    let values: Vec<String> = condition.test.values().iter().map(|value| format!("{value:#x}")).collect();
    text.push_str(&format!(", {word} = [{}] }}", values.join(", ")));
    text
}

fn verdict_word(verdict: Verdict) -> String {
    string(&verdict.to_string())
}

/// All of a profile, without what it may extend.
pub(crate) fn whole(profile: &Profile) -> String {
    let Profile { namespaces: Namespaces { allowed, reason }, seccomp, paths, may_miss, .. } = profile;
    let mut text = format!("\n[namespaces]\nallow = {allowed}\nreason = {}\n", string(reason));
    for MayMiss { right, reason } in may_miss.iter() {
        let right = string(&right.to_string());
        text.push_str(&format!("\n[[landlock.may-miss]]\nright = {right}\nreason = {}\n", string(reason)));
    }
    let unlisted = verdict_word(Verdict::Refuse(seccomp.unlisted));
    let reason = string(&seccomp.unlisted_reason);
    text.push_str(&format!("\n[seccomp.unlisted]\nverdict = {unlisted}\nreason = {reason}\n"));
    for one in seccomp.rules.iter() {
        text.push_str(&rule(one));
    }
    for PathRule { place, access, reason } in paths.iter() {
        let rights: Vec<String> = access.rights().map(|right: PathRight| string(&right.to_string())).collect();
        let (place, rights) = (string(place.word()), rights.join(", "));
        text.push_str(&format!("\n[[path]]\npath = {place}\naccess = [{rights}]\nreason = {}\n", string(reason)));
    }
    text
}

/// The head of a document.
pub(crate) fn head(name: &str, about: &str) -> String {
    format!("schema = 1\nname = {}\nabout = {}\n", string(name), string(about))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BuiltIn, parse, profile};

    #[test]
    fn what_is_written_is_read_as_the_same() {
        for built_in in BuiltIn::FOR_PAYLOADS {
            let profile = profile(built_in);
            let text = head(&profile.name, &profile.about) + &whole(profile);
            assert_eq!(&parse(&text).unwrap(), profile);
        }
        for text in ["a\"b\\", "\u{1b}[2J\n\r\t\0", "'''", "\u{202e}é", "", "# x"] {
            assert_eq!(
                toml::from_str::<toml::Table>(&format!("x = {}", string(text))).unwrap()["x"].as_str(),
                Some(text)
            );
        }
    }
}
