//! What the schema refuses, that nothing makes it panic, and that the built-in policy leaves no known call to chance.

use proptest::prelude::*;

use super::*;
use crate::compile::{CompileError, compile};
use crate::evaluate::{self, Call};
use crate::rule::Arch;

const HEAD: &str = "schema = 1\nname = \"t\"\n[seccomp.unlisted]\nverdict = \"ENOSYS\"\nreason = \"r\"\n";
const READ: &str = "syscalls = [\"read\"]\nverdict = \"allow\"\nreason = \"r\"\n";

fn with_rule(rule: &str) -> Result<Profile, SchemaError> {
    crate::parse(&format!("{HEAD}[[seccomp.rule]]\ngroup = \"g\"\n{rule}"))
}

#[test]
fn every_call_of_both_tables_is_named() {
    let profile = crate::profile(crate::BuiltIn::Default);
    let named: BTreeSet<&str> =
        profile.seccomp.rules.iter().flat_map(|rule| rule.syscalls.iter()).map(|call| &*call.name).collect();
    let x86_64 = syscalls::x86_64::Sysno::iter().map(|call| call.name());
    let aarch64 = syscalls::aarch64::Sysno::iter().map(|call| call.name());
    let missing: Vec<_> = x86_64.chain(aarch64).filter(|name| !named.contains(name)).collect();
    assert!(missing.is_empty(), "no rule says what becomes of {missing:?}");
}

#[test]
fn the_statics_are_the_files() {
    for (text, built_in) in [
        (include_str!("../../profiles/default.toml"), crate::BuiltIn::Default),
        (include_str!("../../profiles/strict.toml"), crate::BuiltIn::Strict),
        (include_str!("../../profiles/nested.toml"), crate::BuiltIn::Nested),
        (include_str!("../../profiles/init.toml"), crate::BuiltIn::Init),
        (include_str!("../../profiles/broker.toml"), crate::BuiltIn::Broker),
    ] {
        assert_eq!(&crate::parse(text).unwrap(), crate::profile(built_in));
    }
}

#[test]
fn what_is_not_understood_is_refused_with_its_line() {
    let many = |count: usize| vec!["1"; count].join(", ");
    let path = |path: &str| format!("{READ}[[path]]\n{path}\nreason = \"r\"");
    for (rule, at, says) in [
        ("syscalls = [\"raed\"]\nverdict = \"allow\"\nreason = \"r\"".into(), 6, "\"raed\" is not known"),
        (
            "syscalls = [\"read\", \"read\"]\nverdict = \"allow\"\nreason = \"r\"".into(),
            6,
            "\"read\" stands there twice",
        ),
        ("syscalls = []\nverdict = \"allow\"\nreason = \"r\"".into(), 6, "nothing does"),
        ("syscalls = [\"read\"]\nverdict = \"allow\"\nreason = \" \"".into(), 6, "needs a reason"),
        (format!("syscalls = [\"read\"]\nverdict = \"allow\"\nreason = \"{}\"", many(400)), 6, "needs a reason"),
        (READ.to_owned() + "when = [{ arg = 0 }]", 6, "either `is` or `is-not`"),
        (READ.to_owned() + "when = [{ arg = 0, is = [1], is-not = [2] }]", 6, "either `is` or `is-not`"),
        (format!("{READ}when = [{{ arg = 0, is = [{}] }}]", many(65)), 6, "more than 64 values"),
        (format!("{READ}when = [{}]", ["{ arg = 0, is = [1] }"; 9].join(",")), 6, "more than 8 conditions"),
        (path("path = \"x\"\naccess = [\"read\"]"), 12, "is no place"),
        (path("path = \"/x/../y\"\naccess = [\"read\"]"), 12, "is no place"),
        (path("path = \"/\"\naccess = [\"reed\"]"), 13, "reed"),
        (path("path = \"/\"\naccess = []") + "\n" + &path("path = \"/\"\naccess = []").replace(READ, ""), 15, "twice"),
        (READ.replace("\"allow\"", "\"alow\""), 9, "expected one of `allow`, `success`, `EPERM`"),
        (READ.replace("\"allow\"", "\"EWHATEVER\""), 9, "expected one of `allow`, `success`, `EPERM`"),
        (READ.replace("\"allow\"", "\"kill\""), 9, "expected one of `allow`, `success`, `EPERM`"),
        (READ.replace("reason = \"r\"\n", ""), 6, "missing field `reason`"),
        (READ.to_owned() + "wehn = []", 11, "unknown field `wehn`"),
        (READ.to_owned() + "when = [{ arg = 0, is = [0x100000000] }]", 11, "u32"),
        (READ.to_owned() + "when = [{ arg = 0, is = [-1] }]", 11, "u32"),
        (READ.to_owned() + "[[landlock.may-miss]]\nright = \"files\"\nreason = \"r\"", 11, "may not be missing"),
        (READ.to_owned() + "[namespaces]\nallow = 1\nreason = \"r\"", 12, "boolean"),
    ] {
        let error = with_rule(&rule).unwrap_err();
        let SchemaError::Line { line, .. } = error else { panic!("{rule}: {error}") };
        assert!(error.to_string().contains(says), "{rule}: {error}");
        assert_eq!(line, at, "{rule}: {error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    let whole = format!("{HEAD}[[seccomp.rule]]\ngroup = \"g\"\n{READ}");
    assert!(crate::parse(&whole).is_ok());
    for (from, to, says) in [
        ("schema = 1", "schema = 2", "schema 2"),
        ("\"t\"", "\"T\"", "no name"),
        ("\"t\"", "\"\"", "no name"),
        ("name = \"t\"", "name = \"t\"\nextends = \"init\"", "line 3: `extends` names no built-in"),
        ("ENOSYS", "allow", "line 4"),
        ("[seccomp.unlisted]\nverdict = \"ENOSYS\"\nreason = \"r\"\n", "", "needs [seccomp.unlisted]"),
    ] {
        let error = crate::parse(&whole.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(says), "{to}: {error}");
    }
}

#[test]
fn a_file_has_bounds() {
    let long = format!("{HEAD}#{}", "x".repeat(MAX_BYTES));
    assert!(matches!(crate::parse(&long), Err(SchemaError::TooLong)));
    let rules = format!("[[seccomp.rule]]\ngroup = \"g\"\n{READ}").repeat(1001);
    let error = crate::parse(&format!("{HEAD}{rules}")).unwrap_err().to_string();
    assert_eq!(error, "there are more than 1000 rules");
    // Fits the file, not the kernel; and is refused before it is built.
    let names: Vec<_> = syscalls::x86_64::Sysno::iter().map(|call| format!("{:?}", call.name())).collect();
    let values: Vec<_> = (1..=64).map(|value| value.to_string()).collect();
    let when = vec![format!("{{ arg = 0, is = [{}] }}", values.join(",")); 8].join(",");
    let rule = format!("syscalls = [{}]\nwhen = [{when}]\nverdict = \"allow\"\nreason = \"r\"", names.join(","));
    let text = format!(
        "schema = 1\nname = \"t\"\nextends = \"default\"\n{}",
        format!("[[seccomp.rule]]\ngroup = \"g\"\n{rule}\n").repeat(30)
    );
    let error = crate::load(&text, Arch::X86_64).unwrap_err().to_string();
    assert!(error.contains("the kernel takes 4096"), "{error}");
}

#[test]
fn a_profile_that_extends_another_is_asked_first() {
    let text = "schema = 1\nname = \"t\"\nextends = \"default\"\n[[seccomp.rule]]\ngroup = \"g\"\nsyscalls = [\"bpf\", \"reboot\"]\n\
                verdict = \"allow\"\nreason = \"r\"\n[[seccomp.rule]]\ngroup = \"g\"\nsyscalls = [\"read\"]\nwhen = [{ arg = 0, is = [7] }]\n\
                verdict = \"EPERM\"\nreason = \"r\"\n[[path]]\npath = \"/dev\"\naccess = [\"read\"]\nreason = \"r\"\n\
                [[path]]\npath = \"/x\"\naccess = [\"write\"]\nreason = \"r\"";
    let (profile, program) = crate::load(text, Arch::X86_64).unwrap();
    assert!(!program.is_empty());
    let verdict = |nr: u32, first: u64| {
        let call = Call { arch: Arch::X86_64.audit_word(), nr, args: [first, 0, 0, 0, 0, 0] };
        evaluate::verdict(&profile.seccomp, Arch::X86_64, &call)
    };
    assert_eq!(verdict(321, 0), Verdict::Allow, "bpf");
    assert_eq!(verdict(169, 0), Verdict::Allow, "reboot");
    assert_eq!(verdict(298, 0), Verdict::Refuse(Errno::Eperm), "perf_event_open stands with bpf in default");
    assert_eq!((verdict(0, 7), verdict(0, 8)), (Verdict::Refuse(Errno::Eperm), Verdict::Allow), "read");
    let access = |path: &'static str| profile.access(&crate::Place::Path(path.into())).to_string();
    assert_eq!([access("/dev"), access("/x"), access("/dev/shm")], ["read", "write", "read, write, create"]);
    assert_eq!(profile.may_miss, crate::profile(crate::BuiltIn::Default).may_miss);
    assert!(!profile.namespaces.allowed);
}

#[test]
fn rules_and_namespaces_agree() {
    let text = |allow: bool, base: &str, rule: &str| {
        format!("schema = 1\nname = \"t\"\nextends = \"{base}\"\n[namespaces]\nallow = {allow}\nreason = \"r\"\n{rule}")
    };
    let rule = |call: &str| {
        format!("[[seccomp.rule]]\ngroup = \"g\"\nsyscalls = [\"{call}\"]\nverdict = \"allow\"\nreason = \"r\"")
    };
    for arch in [Arch::X86_64, Arch::Aarch64] {
        assert!(crate::load(&text(true, "nested", ""), arch).is_ok());
        assert!(crate::load(&text(false, "strict", ""), arch).is_ok());
        let error = |text: String| crate::load(&text, arch).unwrap_err().to_string();
        assert!(error(text(false, "nested", "")).contains("let unshare make"));
        assert!(error(text(false, "default", &rule("clone3"))).contains("let clone3 make"));
        assert!(error(text(false, "default", &rule("clone"))).contains("let clone make"));
        assert!(error(text(true, "default", "")).contains("set `allow = false`"));
    }
}

#[test]
fn a_right_is_missing_only_where_the_profile_says_so() {
    use crate::LandlockRight::{AbstractSockets, Files, Ioctl, Refer, Signals, Truncate};
    let [default, strict, nested] = crate::BuiltIn::FOR_PAYLOADS.map(crate::profile);
    let all = vec![Files, Refer, Truncate, Ioctl, Signals, AbstractSockets];
    for profile in [default, strict] {
        assert_eq!(profile.landlock(7).unwrap(), all);
        assert_eq!(profile.landlock(6).unwrap(), all);
    }
    assert_eq!(default.landlock(1).unwrap(), [Files]);
    assert_eq!(default.landlock(4).unwrap(), [Files, Refer, Truncate]);
    assert_eq!(strict.landlock(5).unwrap_err().right, Signals);
    assert_eq!(strict.landlock(1).unwrap_err().right, Refer);
    assert_eq!(default.landlock(0).unwrap_err().right, Files);
    // A file rule would forbid every mount.
    assert_eq!(nested.landlock(7).unwrap(), [Signals, AbstractSockets]);
    assert_eq!(nested.landlock(5).unwrap(), []);
}

#[test]
fn rules_that_contradict_themselves_have_no_program() {
    let call = |when: &str| format!("syscalls = [\"read\"]\n{when}\nverdict = \"allow\"\nreason = \"r\"\n");
    let again = |when: &str| format!("[[seccomp.rule]]\ngroup = \"g\"\n{}", call(when));
    let error = |rules: String| compile(&with_rule(&rules).unwrap().seccomp, Arch::X86_64).unwrap_err();
    let syscall = || "read".to_owned();
    assert_eq!(error(call("") + &again("")), CompileError::Unreachable { syscall: syscall() });
    assert_eq!(error(call("when = [{ arg = 0, is = [1] }]")), CompileError::OpenEnded { syscall: syscall() });
    let argument = CompileError::NoSuchArgument { syscall: syscall(), arg: 6 };
    assert_eq!(error(call("when = [{ arg = 6, is = [1] }]") + &again("")), argument);
    for idle in ["mask = 2, is = [1]", "mask = 0, is = [0]", "is = []"] {
        let expected = CompileError::IdleCondition { syscall: syscall(), arg: 0 };
        assert_eq!(error(call(&format!("when = [{{ arg = 0, {idle} }}]")) + &again("")), expected, "{idle}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,200}") {
        prop_assert!(crate::parse(&text).is_err());
        prop_assert!(crate::tighten(crate::profile(crate::BuiltIn::Default), &text).is_err());
    }

    /// One character of a real profile changed: an error or another profile, never a panic, nor from the compiler.
    #[test]
    fn no_typing_error_makes_it_panic(at in 0..20_000_usize, with in any::<char>()) {
        for text in [include_str!("../../profiles/default.toml"), include_str!("../../profiles/nested.toml")] {
            let mut text: Vec<char> = text.chars().collect();
            let at = at % text.len();
            text[at] = with;
            let text: String = text.into_iter().collect();
            for arch in [Arch::X86_64, Arch::Aarch64] {
                match crate::load(&text, arch) {
                    Ok((_, program)) => prop_assert!(!program.is_empty()),
                    Err(error) => prop_assert!(!error.to_string().contains('\n')),
                }
            }
        }
    }
}
