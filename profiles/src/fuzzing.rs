//! Entry points for the fuzz targets: untrusted text in, a panic out when something is wrong.
//!
//! Invariant: what is compared here is what a start does with a file, under the interpreter that the tests use.
#![expect(clippy::missing_panics_doc, reason = "a panic is how a fuzz target reports")]

#[path = "../tests/program/calls.rs"]
mod calls;
#[path = "../tests/program/interpret.rs"]
mod interpret;

use crate::evaluate::{Call, verdict};
use crate::{Arch, BuiltIn, SeccompRules, Verdict, load, profile, tighten};

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

/// Every number with no arguments; and near the file's own rules, which come first, what they compare with.
fn tried(rules: &SeccompRules, arch: Arch) -> Vec<Call> {
    let built_in = profile(BuiltIn::Default);
    let own: Vec<_> =
        rules.rules.iter().filter(|rule| !built_in.seccomp.rules.contains(rule)).take(4).cloned().collect();
    let near = SeccompRules { rules: own.into(), ..rules.clone() };
    let numbers = (0..NUMBERS).map(|nr| Call { arch: arch.audit_word(), nr, args: [0; 6] });
    // The combinations grow with the conditions; a fuzzer comes back.
    calls::boundaries(&near, arch).into_iter().take(20_000).chain(numbers).collect()
}
