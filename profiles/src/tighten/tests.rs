//! What a workspace may say, what it may not, and that whatever it says opens nothing.

use proptest::prelude::*;

use super::*;
use crate::evaluate::{Call, verdict};
use crate::{Arch, BuiltIn, PathRight, profile};

fn rule(syscall: &str, when: &str, verdict: &str) -> String {
    format!(
        "[[seccomp.rule]]\ngroup = \"mine\"\nsyscalls = [\"{syscall}\"]\nwhen = [{when}]\nverdict = \"{verdict}\"\nreason = \"r\"\n"
    )
}

fn path(path: &str, access: &str) -> String {
    format!("[[path]]\npath = \"{path}\"\naccess = [{access}]\nreason = \"r\"\n")
}

fn tightened(base: BuiltIn, rules: &str) -> Result<Profile, SchemaError> {
    tighten(profile(base), &format!("schema = 1\n{rules}"))
}

#[test]
fn a_widening_is_refused_with_the_rule_and_the_line() {
    for (rules, says) in [
        (
            rule("ptrace", "", "EPERM") + &rule("bpf", "", "allow"),
            "line 8: a workspace's profile may only refuse, and this rule of group \"mine\" allows \"bpf\"",
        ),
        (
            rule("ptrace", "", "ENOSYS") + &rule("mount", "", "ENOSYS"),
            "line 8: a workspace's profile may not hide a denial: group \"mine\" answers ENOSYS to \"mount\"",
        ),
        (rule("socket", "{ arg = 0, is = [1] }", "EPROTONOSUPPORT"), "EPROTONOSUPPORT to \"socket\""),
        (rule("sendmsg", "{ arg = 0, is = [7] }", "EPERM"), "may not refuse \"sendmsg\", as group \"mine\" does"),
        // Allowed already; but who could say so for rules with conditions, at a glance?
        (rule("read", "", "allow"), "line 2: a workspace's profile may only refuse"),
        (path("/proc", "\"read\", \"write\", \"create\""), "\"/proc\" would have more than its read, write: create"),
        (path("/dev/shm", "\"ioctl\""), "\"/dev/shm\" would have more"),
        (path("/etc", "\"read\""), "no grant of its own at \"/etc\""),
        (path("/proc", "\"write\""), "taking read from \"/proc\" changes nothing: \"/\" grants it too"),
        (path("/dev/shm", "\"read\", \"create\""), "taking write from \"/dev/shm\" changes nothing: \"/dev\""),
        ("extends = \"nested\"".into(), "unknown field `extends`"),
        ("[namespaces]\nallow = true\nreason = \"r\"".into(), "unknown field `namespaces`"),
        ("[[landlock.may-miss]]\nright = \"ioctl\"\nreason = \"r\"".into(), "unknown field `landlock`"),
        ("[seccomp.unlisted]\nverdict = \"ENOSYS\"\nreason = \"r\"".into(), "unknown field `unlisted`"),
    ] {
        let error = tightened(BuiltIn::Default, &rules).unwrap_err().to_string();
        assert!(error.contains(says), "{rules}: {error}");
    }
}

#[test]
fn a_tightening_takes_away() {
    let rules = rule("socket", "{ arg = 0, is-not = [1] }", "EAFNOSUPPORT") + &path("workspace", "\"read\"");
    let tight = tightened(BuiltIn::Default, &rules).unwrap();
    let socket = |profile: &Profile, family| {
        let call = Call { arch: Arch::X86_64.audit_word(), nr: 41, args: [family, 1, 0, 0, 0, 0] };
        verdict(&profile.seccomp, Arch::X86_64, &call)
    };
    for family in [1, 2] {
        assert_eq!(socket(profile(BuiltIn::Default), family), Verdict::Allow);
    }
    assert_eq!(socket(&tight, 1), Verdict::Allow);
    assert_ne!(socket(&tight, 2), Verdict::Allow);
    assert!(profile(BuiltIn::Default).access(&Place::Workspace).has(PathRight::Write));
    assert!(!tight.access(&Place::Workspace).has(PathRight::Write));
    assert_eq!(tight.access(&Place::Scratch), profile(BuiltIn::Default).access(&Place::Scratch));
    assert_eq!(&tightened(BuiltIn::Strict, "").unwrap(), profile(BuiltIn::Strict));
}

/// Some calls that rules with conditions decide, and some others.
const CALLS: [&str; 12] = [
    "read",
    "clone",
    "socket",
    "ioctl",
    "prctl",
    "openat",
    "personality",
    "bpf",
    "setsockopt",
    "unshare",
    "ptrace",
    "fchmodat2",
];

fn any_rules() -> impl Strategy<Value = String> {
    let condition = (
        0..3_u8,
        prop_oneof![Just(u32::MAX), Just(0xf_u32)],
        proptest::collection::vec(0..16_u32, 1..4),
        any::<bool>(),
    );
    let condition = condition.prop_map(|(arg, mask, values, positive)| {
        format!("{{ arg = {arg}, mask = {mask}, {} = {values:?} }}", if positive { "is" } else { "is-not" })
    });
    let verdict = prop_oneof![14 => Just("EPERM"), 2 => Just("ENOSYS"), 1 => Just("allow"), 1 => Just("success")];
    let conditions = proptest::collection::vec(condition, 0..3);
    let rule = (0..CALLS.len(), conditions, verdict)
        .prop_map(|(call, when, verdict)| rule(CALLS[call], &when.join(", "), verdict));
    let right =
        prop_oneof![Just("\"read\""), Just("\"write\""), Just("\"create\""), Just("\"ioctl\""), Just("\"execute\"")];
    let place =
        prop_oneof![Just("/dev"), Just("/proc"), Just("workspace"), Just("scratch"), Just("/"), Just("/dev/shm")];
    let path =
        (place, proptest::collection::vec(right, 0..5)).prop_map(|(place, access)| path(place, &access.join(", ")));
    (proptest::collection::vec(rule, 0..5), proptest::collection::vec(path, 0..2))
        .prop_map(|(rules, paths)| rules.concat() + &paths.concat())
}

fn any_call() -> impl Strategy<Value = Call> {
    let number = prop_oneof![
        4 => (0..CALLS.len()).prop_map(|call| crate::syscall(CALLS[call]).unwrap().x86_64.unwrap()),
        1 => 0..480_u32,
        1 => any::<u32>(),
    ];
    let arg = prop_oneof![3 => 0..20_u64, 1 => any::<u64>(), 1 => Just(0x1000_0000), 1 => Just(0xffff_ffff_0000_0001)];
    (number, proptest::array::uniform6(arg)).prop_map(|(nr, args)| Call { arch: Arch::X86_64.audit_word(), nr, args })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn no_tightening_opens_or_hides_anything(rules in any_rules(), calls in proptest::collection::vec(any_call(), 50)) {
        for base in BuiltIn::FOR_PAYLOADS {
            let Ok(tight) = tightened(base, &rules) else { continue };
            let base = profile(base);
            for call in &calls {
                let is_allowed = |profile: &Profile| verdict(&profile.seccomp, Arch::X86_64, call) == Verdict::Allow;
                prop_assert!(!is_allowed(&tight) || is_allowed(base), "{call:x?} by\n{rules}");
                let is_denied = |profile: &Profile| verdict(&profile.seccomp, Arch::X86_64, call).is_denial();
                prop_assert!(!is_denied(base) || is_denied(&tight), "{call:x?} is hidden by\n{rules}");
            }
            for rule in tight.paths.iter() {
                prop_assert!(base.access(&rule.place).contains(rule.access), "{} by\n{rules}", rule.place.word());
            }
            prop_assert_eq!(tight.paths.len(), base.paths.len());
            prop_assert_eq!(&tight.may_miss, &base.may_miss);
            prop_assert_eq!(&tight.namespaces, &base.namespaces);
            prop_assert_eq!(tight.seccomp.unlisted, base.seccomp.unlisted);
        }
    }
}

/// The property above has something to look at: most of what it makes is accepted, and some of it takes away.
#[test]
fn what_is_tried_is_accepted_often_enough() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let made: Vec<String> = (0..200).map(|_| any_rules().new_tree(&mut runner).unwrap().current()).collect();
    let accepted: Vec<Profile> = made.iter().filter_map(|rules| tightened(BuiltIn::Default, rules).ok()).collect();
    let changed = accepted.iter().filter(|tight| *tight != profile(BuiltIn::Default)).count();
    assert!(accepted.len() > 50 && changed > 40, "{} accepted, {changed} of them changed", accepted.len());
}
