//! What the schema refuses, that nothing makes it panic, and that the built-in policy leaves no known call to chance.

use proptest::prelude::*;

use super::*;
use crate::compile::{CompileError, compile};
use crate::rule::Arch;

const HEAD: &str = "schema = 1\nname = \"t\"\n[seccomp.unlisted]\nverdict = \"ENOSYS\"\nreason = \"r\"\n";

fn with_rule(rule: &str) -> Result<Profile, SchemaError> {
    parse(&format!("{HEAD}[[seccomp.rule]]\ngroup = \"g\"\n{rule}"))
}

#[test]
fn every_call_of_both_tables_is_named() {
    let profile = parse(include_str!("../../profiles/default.toml")).unwrap();
    let named: BTreeSet<&str> =
        profile.seccomp.rules.iter().flat_map(|rule| rule.syscalls.iter()).map(|call| &*call.name).collect();
    let x86_64 = syscalls::x86_64::Sysno::iter().map(|call| call.name());
    let aarch64 = syscalls::aarch64::Sysno::iter().map(|call| call.name());
    let missing: Vec<_> = x86_64.chain(aarch64).filter(|name| !named.contains(name)).collect();
    assert!(missing.is_empty(), "no rule says what becomes of {missing:?}");
}

#[test]
fn the_statics_are_the_files() {
    for (name, text, built_in) in [
        ("default", include_str!("../../profiles/default.toml"), crate::BuiltIn::Default),
        ("init", include_str!("../../profiles/init.toml"), crate::BuiltIn::Init),
    ] {
        let profile = parse(text).unwrap();
        assert_eq!(profile.name, name);
        assert_eq!(&profile.seccomp, crate::rules(built_in));
        assert_eq!(profile.paths, crate::path_rules(built_in));
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    for (rule, says) in [
        ("syscalls = [\"raed\"]\nverdict = \"allow\"\nreason = \"r\"", "\"raed\" is not known"),
        ("syscalls = [\"read\", \"read\"]\nverdict = \"allow\"\nreason = \"r\"", "\"read\" twice"),
        ("syscalls = []\nverdict = \"allow\"\nreason = \"r\"", "nothing at all"),
        ("syscalls = [\"read\"]\nverdict = \"allow\"\nreason = \" \"", "no reason"),
        ("syscalls = [\"read\"]\nwhen = [{ arg = 0 }]\nverdict = \"allow\"\nreason = \"r\"", "either `is` or `is-not`"),
        (
            "syscalls = [\"read\"]\nwhen = [{ arg = 0, is = [1], is-not = [2] }]\nverdict = \"allow\"\nreason = \"r\"",
            "either `is` or `is-not`",
        ),
        (
            "syscalls = [\"read\"]\nverdict = \"allow\"\nreason = \"r\"\n[[path]]\npath = \"x\"\naccess = \"read-write\"\nreason = \"r\"",
            "not absolute",
        ),
    ] {
        let error = with_rule(rule).unwrap_err().to_string();
        assert!(error.contains(says), "{rule}: {error}");
    }
    for rule in [
        "syscalls = [\"read\"]\nverdict = \"alow\"\nreason = \"r\"",
        "syscalls = [\"read\"]\nverdict = \"EWHATEVER\"\nreason = \"r\"",
        "syscalls = [\"read\"]\nverdict = \"kill\"\nreason = \"r\"",
        "syscalls = [\"read\"]\nverdict = \"allow\"",
        "syscalls = [\"read\"]\nverdict = \"allow\"\nreason = \"r\"\nwehn = []",
        "syscalls = [\"read\"]\nwhen = [{ arg = 0, is = [0x100000000] }]\nverdict = \"allow\"\nreason = \"r\"",
        "syscalls = [\"read\"]\nwhen = [{ arg = 0, is = [-1] }]\nverdict = \"allow\"\nreason = \"r\"",
    ] {
        assert!(matches!(with_rule(rule), Err(SchemaError::Form(_))), "{rule}");
    }
    let rule = "group = \"g\"\nsyscalls = [\"read\"]\nverdict = \"allow\"\nreason = \"r\"\n";
    let whole = format!("{HEAD}[[seccomp.rule]]\n{rule}");
    assert!(parse(&whole).is_ok());
    assert!(matches!(parse(&whole.replace("schema = 1", "schema = 2")), Err(SchemaError::Version { found: 2 })));
    assert!(
        matches!(parse(&whole.replace("ENOSYS", "allow")), Err(SchemaError::Form(_))),
        "unnamed numbers are refused"
    );
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
        prop_assert!(parse(&text).is_err());
    }

    /// One character of a real profile changed: an error or another profile, never a panic, nor from the compiler.
    #[test]
    fn no_typing_error_makes_it_panic(at in 0..20_000_usize, with in any::<char>()) {
        let mut text: Vec<char> = include_str!("../../profiles/default.toml").chars().collect();
        let at = at % text.len();
        text[at] = with;
        if let Ok(profile) = parse(&text.into_iter().collect::<String>()) {
            for arch in [Arch::X86_64, Arch::Aarch64] {
                if let Ok(program) = compile(&profile.seccomp, arch) {
                    prop_assert!(!program.is_empty());
                }
            }
        }
    }
}
