//! Entry points for the fuzz targets: untrusted text in, a panic out when something is wrong.
//!
//! Invariant: what is compared here is what a start does with a file, under the interpreter that the tests use.
#![expect(clippy::missing_panics_doc, clippy::expect_used, reason = "a panic is how a fuzz target reports")]

#[path = "../tests/program/calls.rs"]
mod calls;
#[path = "../tests/program/interpret.rs"]
mod interpret;

use crate::evaluate::{Call, verdict};
use std::borrow::Cow;

use crate::{Arch, BuiltIn, Lessons, NATIVE, SeccompRule, SeccompRules, Verdict, load, parse, profile, tighten};

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

/// A workspace's profile: an error, or something that allows no more than what it tightens, and hides no denial.
pub fn workspace_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for base in BuiltIn::FOR_PAYLOADS.map(profile) {
        let Ok(tight) = tighten(base, text) else { continue };
        for arch in [Arch::X86_64, Arch::Aarch64] {
            for call in tried(&tight.seccomp, arch) {
                let (before, after) = (verdict(&base.seccomp, arch, &call), verdict(&tight.seccomp, arch, &call));
                assert!(after != Verdict::Allow || before == Verdict::Allow, "{call:x?} is opened");
                assert!(after.is_denial() || !before.is_denial(), "{call:x?} is hidden");
            }
        }
        for rule in tight.paths.iter() {
            assert!(base.access(&rule.place).contains(rule.access), "{}", rule.place.word());
        }
    }
}

/// What a payload can put into the registers of refused calls and into its name: each call is judged, and what comes of
/// it is a profile under which those that were carried out pass, and no other number does.
pub fn lessons(data: &[u8]) {
    let (Some((pick, data)), built_ins) = (data.split_first(), [BuiltIn::Default, BuiltIn::Strict]) else { return };
    let base = profile(built_ins.into_iter().nth(usize::from(pick & 1)).unwrap_or(BuiltIn::Default));
    let mut lessons = Lessons::new(Cow::Borrowed(base));
    let (mut taught, mut names) = (Vec::new(), std::collections::BTreeSet::new());
    // A number, which argument is odd, its value, and as many bytes of a name.
    for record in data.chunks_exact(16).take(400) {
        let (numbers, name) = record.split_at(12);
        let word =
            |at: usize| numbers.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes);
        let mut call = Call { arch: NATIVE.audit_word(), nr: word(0) % NUMBERS, args: [0; 6] };
        if *pick & 2 != 0 {
            call.nr = word(0);
        }
        for (at, arg) in call.args.iter_mut().enumerate() {
            *arg = if word(4) >> at & 1 == 0 { u64::from(word(8) >> (4 * at)) } else { u64::from(word(8)) << (8 * at) };
        }
        if lessons.judge(&base.seccomp, &call, &String::from_utf8_lossy(name)) {
            taught.push(call);
            names.insert(call.nr);
        }
    }
    let text = lessons.text("learned", &String::from_utf8_lossy(data)).expect("what is learned makes a profile");
    let learned = parse(&text).expect("and is read back");
    for call in &taught {
        assert_eq!(verdict(&learned.seccomp, NATIVE, call), Verdict::Allow, "{call:x?}");
    }
    // A part of the numbers each time: the reference reads every rule for each.
    for call in
        (u32::from(*pick >> 5)..NUMBERS).step_by(8).map(|nr| Call { arch: NATIVE.audit_word(), nr, args: [0; 6] })
    {
        let (before, after) = (verdict(&base.seccomp, NATIVE, &call), verdict(&learned.seccomp, NATIVE, &call));
        assert!(before == after || names.contains(&call.nr), "{call:x?}");
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
        let mut calls = vec![1];
        for (nr, value) in [(101_u32, 0_u32), (135, 0x8), (41, 16), (272, 0x1000_0000), (135, 0x4_0000)] {
            for word in [nr, 0, value] {
                calls.extend(word.to_le_bytes());
            }
            calls.extend(b"a\"\n\xff");
        }
        lessons(&calls);
    }
}
