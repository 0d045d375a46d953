//! Entry points for the fuzz targets: untrusted text in, a panic out when something is wrong.
//!
//! Invariant: what is compared here is what a start does with a file, under the interpreter that the tests use.
#![expect(clippy::missing_panics_doc, reason = "a panic is how a fuzz target reports")]

#[path = "../tests/program/calls.rs"]
mod calls;
#[path = "../tests/program/interpret.rs"]
mod interpret;

use crate::evaluate::{Call, verdict};
use crate::{Arch, BuiltIn, SeccompRule, SeccompRules, Verdict, load, profile, tighten};

/// Numbers that are tried with every program, whatever it says of them.
const NUMBERS: u32 = 480;

/// A profile's text: an error, or a program that says for each call what the rules say.
pub fn profile_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let Ok((profile, program)) = load(text, arch) else { continue };
        for call in tried(&profile.seccomp, arch) {
            assert_eq!(
                interpret::run(&program, &call),
                Ok(verdict(&profile.seccomp, arch, &call).action()),
                "{call:x?}"
            );
        }
    }
}

/// A workspace's profile: an error, or something that allows no more than what it tightens.
pub fn workspace_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for base in BuiltIn::FOR_PAYLOADS.map(profile) {
        let Ok(tight) = tighten(base, text) else { return };
        for call in tried(&tight.seccomp, Arch::X86_64) {
            let allows = |rules| verdict(rules, Arch::X86_64, &call) == Verdict::Allow;
            assert!(!allows(&tight.seccomp) || allows(&base.seccomp), "{call:x?}");
        }
        for rule in tight.paths.iter() {
            assert!(base.access(&rule.place).contains(rule.access), "{}", rule.place.word());
        }
    }
}

/// Every number with no arguments; and, one by one, near the file's own rules, which come first.
fn tried(rules: &SeccompRules, arch: Arch) -> Vec<Call> {
    let built_in = profile(BuiltIn::Default);
    let mut calls: Vec<Call> = (0..NUMBERS).map(|nr| Call { arch: arch.audit_word(), nr, args: [0; 6] }).collect();
    let own = rules.rules.iter().filter(|rule| !built_in.seccomp.rules.contains(rule));
    // What is tried is a product over conditions, values and names: of a large rule, a part.
    for rule in
        own.filter(|rule| rule.when.len() <= 2 && rule.when.iter().all(|when| when.test.values().len() <= 4)).take(8)
    {
        let part = SeccompRule { syscalls: rule.syscalls.iter().take(2).cloned().collect(), ..rule.clone() };
        let near = calls::boundaries(&SeccompRules { rules: vec![part].into(), ..rules.clone() }, arch);
        let step = near.len() / 500 + 1;
        calls.extend(near.into_iter().step_by(step));
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds of the fuzz targets go through; a filter that lies would not (`tests/program` shows that).
    #[test]
    fn built_in_profiles_and_a_tightening_pass() {
        for text in [include_str!("../profiles/strict.toml"), include_str!("../profiles/nested.toml")] {
            profile_text(text.as_bytes());
        }
        let rule = "[[seccomp.rule]]\ngroup = \"g\"\nsyscalls = [\"socket\"]\nwhen = [{ arg = 0, is-not = [1] }]\n";
        workspace_text(format!("schema = 1\n{rule}verdict = \"EPERM\"\nreason = \"r\"\n").as_bytes());
        profile_text(b"\xff");
    }
}
