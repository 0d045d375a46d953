//! The compiled programs mean what the rule lists say.
//!
//! Three readings of one list are compared: `evaluate` (straight through the rules), our program under an interpreter, and programs that
//! seccompiler makes of the same rules. A comparison that could not fail would prove nothing, so it is also shown programs with one fault each.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the modules beside it")]

mod calls;
mod interpret;
mod longest;
mod oracle;
mod random;

use std::sync::LazyLock;

use agentd_profiles::compile::compile;
use agentd_profiles::evaluate::{Call, verdict};
use agentd_profiles::{Arch, BuiltIn, NATIVE, SeccompRules, fake_root, fake_root_seccomp, load, profile, seccomp};
use libc::sock_filter;
use proptest::prelude::*;

use interpret::run;

const ARCHES: [Arch; 2] = [Arch::X86_64, Arch::Aarch64];
const PROFILES: [BuiltIn; 5] = [BuiltIn::Default, BuiltIn::Strict, BuiltIn::Nested, BuiltIn::Init, BuiltIn::Broker];

fn rules(built_in: BuiltIn) -> &'static SeccompRules {
    &profile(built_in).seccomp
}

/// What the rules say to every call worth trying.
fn expected(rules: &SeccompRules, arch: Arch) -> Vec<(Call, u32)> {
    let calls = calls::boundaries(rules, arch).into_iter();
    calls.map(|call| (call, verdict(rules, arch, &call).action())).collect()
}

/// The first call for which the program differs, or does something the kernel forbids.
fn disagreement(program: &[sock_filter], expected: &[(Call, u32)]) -> Option<String> {
    expected.iter().find_map(|(call, action)| match run(program, call) {
        Ok(found) if found == *action => None,
        outcome => Some(format!("{call:x?}: program {outcome:x?}, rules {action:x}")),
    })
}

#[test]
fn agrees_with_the_rules_at_every_boundary() {
    for (profile, arch) in PROFILES.into_iter().flat_map(|profile| ARCHES.map(|arch| (profile, arch))) {
        let program = compile(rules(profile), arch).unwrap();
        assert_eq!(disagreement(&program, &expected(rules(profile), arch)), None, "{profile:?} {arch:?}");
    }
}

fn words(program: &[sock_filter]) -> Vec<(u16, u8, u8, u32)> {
    program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect()
}

#[test]
fn embedded_program_is_the_compiled_one() {
    for profile in PROFILES {
        let compiled = compile(rules(profile), NATIVE).unwrap();
        assert_eq!(words(seccomp(profile)), words(&compiled), "{profile:?}");
    }
}

/// The profiles with `--fake-root`.
#[test]
fn a_fake_root_is_compiled_as_its_rules_say() {
    for (built_in, arch) in BuiltIn::FOR_PAYLOADS.into_iter().flat_map(|profile| ARCHES.map(|arch| (profile, arch))) {
        let rules = fake_root(profile(built_in)).seccomp;
        let program = compile(&rules, arch).unwrap();
        assert_eq!(disagreement(&program, &expected(&rules, arch)), None, "{built_in:?} {arch:?}");
        let oracle = oracle::Oracle::new(&rules, arch);
        for call in calls::boundaries(&rules, arch) {
            assert_eq!(run(&program, &call), oracle.action(&call), "{built_in:?} {arch:?} {call:x?}");
        }
        if arch == NATIVE {
            assert_eq!(words(fake_root_seccomp(built_in)), words(&program), "{built_in:?}");
        }
        assert!(program.len() <= seccomp(built_in).len() + 30, "{built_in:?} {arch:?}: {}", program.len());
    }
}

#[test]
fn agrees_with_seccompiler_at_every_boundary() {
    for (profile, arch) in PROFILES.into_iter().flat_map(|profile| ARCHES.map(|arch| (profile, arch))) {
        let program = compile(rules(profile), arch).unwrap();
        let oracle = oracle::Oracle::new(rules(profile), arch);
        for call in calls::boundaries(rules(profile), arch) {
            assert_eq!(run(&program, &call), oracle.action(&call), "{profile:?} {arch:?} {call:x?}");
        }
    }
}

/// Every instruction of every program is broken in two ways, one at a time; the comparison must notice each.
#[test]
fn a_single_fault_is_found() {
    for (profile, arch) in PROFILES.into_iter().flat_map(|profile| ARCHES.map(|arch| (profile, arch))) {
        let program = compile(rules(profile), arch).unwrap();
        let expected = expected(rules(profile), arch);
        for at in 0..program.len() {
            let mut operand = program.clone();
            operand[at].k = operand[at].k.wrapping_add(1);
            assert!(disagreement(&operand, &expected).is_some(), "{profile:?} {arch:?}: operand of {at}");

            let mut jump = program.clone();
            let instruction = &mut jump[at];
            if instruction.jt != instruction.jf {
                (instruction.jt, instruction.jf) = (instruction.jf, instruction.jt);
                assert!(disagreement(&jump, &expected).is_some(), "{profile:?} {arch:?}: jump at {at}");
            }
        }
    }
}

/// Loading costs 0.6 µs an instruction at every start; run with `--nocapture` for the numbers.
#[test]
fn programs_are_small() {
    for (profile, limit) in [
        (BuiltIn::Default, 185),
        (BuiltIn::Strict, 230),
        (BuiltIn::Nested, 200),
        (BuiltIn::Init, 60),
        (BuiltIn::Broker, 130),
    ] {
        for arch in ARCHES {
            let program = compile(rules(profile), arch).unwrap();
            let (all, by_number) = (longest::longest_path(&program, true), longest::longest_path(&program, false));
            println!(
                "{profile:?} {arch:?}: {} instructions, longest path {all}, {by_number} without arguments",
                program.len()
            );
            assert!(program.len() <= limit, "{profile:?} {arch:?} has {} instructions", program.len());
        }
    }
}

#[test]
fn no_argument_upper_half_and_no_x32_alias_opens_a_refused_call() {
    let rules = rules(BuiltIn::Default);
    let program = compile(rules, Arch::X86_64).unwrap();
    let act = |nr: u32, args: [u64; 6]| run(&program, &Call { arch: Arch::X86_64.audit_word(), nr, args }).unwrap();
    let allow = libc::SECCOMP_RET_ALLOW;
    // ioctl(0, TIOCSTI): the kernel takes the command as an unsigned int.
    assert_ne!(act(16, [0, 0x5412, 0, 0, 0, 0]), allow);
    assert_ne!(act(16, [0, 0x1_0000_5412, 0, 0, 0, 0]), allow);
    assert_eq!(act(16, [0, 0x5401, 0, 0, 0, 0]), allow);
    // clone(CLONE_NEWUSER | SIGCHLD).
    assert_ne!(act(56, [0x1000_0011, 0, 0, 0, 0, 0]), allow);
    assert_ne!(act(56, [0xffff_ffff_1000_0011, 0, 0, 0, 0, 0]), allow);
    assert_eq!(act(56, [0x11, 0, 0, 0, 0, 0]), allow);
    for nr in 0..1024 {
        assert_eq!(act(nr | 0x4000_0000, [0; 6]), libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs(), "x32 {nr}");
    }
}

#[test]
fn errno_numbers_are_the_c_library_s() {
    use agentd_profiles::Errno::{Eafnosupport, Enosys, Eperm, Eprotonosupport};
    let ours = [Eperm, Enosys, Eprotonosupport, Eafnosupport].map(|errno| i32::from(errno as u16));
    assert_eq!(ours, [libc::EPERM, libc::ENOSYS, libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT]);
}

/// Every profile for each architecture.
static PROGRAMS: LazyLock<Vec<(BuiltIn, Arch, Vec<sock_filter>)>> = LazyLock::new(|| {
    let all = PROFILES.into_iter().flat_map(|profile| ARCHES.map(|arch| (profile, arch)));
    all.map(|(profile, arch)| (profile, arch, compile(rules(profile), arch).unwrap())).collect()
});

fn near(arch: Arch) -> impl Strategy<Value = (Arch, Call)> {
    random::near_rules(rules(BuiltIn::Default), arch).prop_map(move |call| (arch, call))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_rules((arch, call) in prop_oneof![near(Arch::X86_64), near(Arch::Aarch64)]) {
        for (profile, _, program) in PROGRAMS.iter().filter(|(_, of, _)| *of == arch) {
            prop_assert_eq!(run(program, &call), Ok(verdict(rules(*profile), arch, &call).action()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn any_rule_list_is_compiled_right_or_refused(rules in random::rules()) {
        for arch in ARCHES {
            match compile(&rules, arch) {
                Ok(program) => prop_assert_eq!(disagreement(&program, &expected(&rules, arch)), None, "{:?}", arch),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, ..ProptestConfig::default() })]

    /// As a start does it with a file: text to rules to program, for both architectures, tried near the boundaries of
    /// the file's own rules and at every number either table has.
    #[test]
    fn any_profile_is_compiled_right_or_refused(text in random::profile_text()) {
        for arch in ARCHES {
            let Ok((profile, program)) = load(&text, arch) else { continue };
            let own = profile.seccomp.rules.iter().take_while(|rule| rule.group == "g").cloned().collect::<Vec<_>>();
            let near = SeccompRules { rules: own.into(), ..profile.seccomp.clone() };
            let numbers = (0..480).map(|nr| Call { arch: arch.audit_word(), nr, args: [0; 6] });
            let boundaries = calls::boundaries(&near, arch);
            // The reference reads every rule for every call, and these are many: a few thousand, evenly spread.
            let step = boundaries.len() / 3_000 + 1;
            let calls = boundaries.into_iter().step_by(step).chain(numbers);
            let expected: Vec<_> = calls.map(|call| (call, verdict(&profile.seccomp, arch, &call).action())).collect();
            prop_assert_eq!(disagreement(&program, &expected), None, "{:?} {}", arch, text);
        }
    }
}

/// The property above compiles most of what it makes.
#[test]
fn most_random_profiles_are_sound() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let made = (0..100).map(|_| random::profile_text().new_tree(&mut runner).unwrap().current());
    let sound = made.filter(|text| load(text, NATIVE).is_ok()).count();
    assert!(sound > 20, "{sound} of 100");
}

/// Jumps reach 255 instructions; these lists need further ones, and finally more instructions than there may be.
#[test]
fn long_programs_keep_their_jumps() {
    for count in [0, 1, 2, 250, 255, 256, 257, 258, 300, 600, 900] {
        let rules = random::alternating(count);
        let program = compile(&rules, Arch::X86_64).unwrap();
        let expected = expected(&rules, Arch::X86_64);
        assert_eq!(disagreement(&program, &expected), None, "{count} numbers, {} instructions", program.len());
    }
    let error = compile(&random::alternating(2_400), Arch::X86_64).unwrap_err();
    assert!(error.to_string().contains("the kernel takes 4096"), "{error}");
}
