//! Rule lists and profiles nobody would write, and calls to try them with.

use std::collections::BTreeSet;

use agentd_profiles::evaluate::Call;
use agentd_profiles::{Arch, BuiltIn, Condition, Errno, SeccompRule, SeccompRules, Syscall, Test, Verdict, profile};
use proptest::prelude::*;

use crate::calls::{FOREIGN, numbers, pools, values};

fn list(rules: Vec<SeccompRule>) -> SeccompRules {
    SeccompRules { rules: rules.into(), unlisted: Errno::Enosys, unlisted_reason: "test".into() }
}

fn rule(number: u32, when: Vec<Condition>, verdict: Verdict) -> SeccompRule {
    let syscall = Syscall { name: format!("call {number}").into(), x86_64: Some(number), aarch64: Some(number) };
    SeccompRule {
        group: "test".into(),
        syscalls: vec![syscall].into(),
        when: when.into(),
        verdict,
        reason: "test".into(),
    }
}

/// Every second number is allowed: no two ranges can be joined.
pub(crate) fn alternating(count: u32) -> SeccompRules {
    list((0..count).map(|index| rule(2 * index, Vec::new(), Verdict::Allow)).collect())
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Allow),
        Just(Verdict::Refuse(Errno::Eperm)),
        Just(Verdict::Refuse(Errno::Enosys)),
        Just(Verdict::Pretend),
        Just(Verdict::Kill)
    ]
}

/// Few distinct arguments, masks and values, so that conditions meet; a few impossible ones, which must be refused.
fn condition() -> impl Strategy<Value = Condition> {
    let mask = prop_oneof![Just(u32::MAX), Just(0xf), Just(0x7), Just(0x7e02_0000)];
    let values = proptest::collection::vec(prop_oneof![Just(0), 0..8_u32], 1..4);
    let arg = prop_oneof![40 => 0..3_u8, 1 => 5..7_u8];
    (arg, mask, values, any::<bool>()).prop_map(|(arg, mask, values, positive)| {
        let values: Vec<u32> =
            values.into_iter().map(|value| if mask > 7 && mask < u32::MAX { value & mask } else { value }).collect();
        Condition { arg, mask, test: if positive { Test::Is(values.into()) } else { Test::IsNot(values.into()) } }
    })
}

/// The rules of one call: some with conditions, then one without.
fn decision(number: u32) -> impl Strategy<Value = Vec<SeccompRule>> {
    let conditional = (proptest::collection::vec(condition(), 1..4), verdict());
    (proptest::collection::vec(conditional, 0..4), verdict()).prop_map(move |(conditional, always)| {
        let mut rules: Vec<_> = conditional.into_iter().map(|(when, verdict)| rule(number, when, verdict)).collect();
        rules.push(rule(number, Vec::new(), always));
        rules
    })
}

pub(crate) fn rules() -> impl Strategy<Value = SeccompRules> {
    let number = prop_oneof![20 => 0..200_u32, 1 => any::<u32>(), 1 => Just(u32::MAX)];
    let numbers = proptest::collection::btree_set(number, 0..40);
    numbers
        .prop_flat_map(|numbers| numbers.into_iter().map(decision).collect::<Vec<_>>())
        .prop_map(|decisions| list(decisions.into_iter().flatten().collect()))
}

/// Random calls, most of them near something a rule names.
pub(crate) fn near_rules(rules: &'static SeccompRules, arch: Arch) -> impl Strategy<Value = Call> {
    let known: Vec<u32> = numbers(rules, arch).into_iter().collect();
    let conditioned: Vec<u32> =
        known.iter().copied().filter(|nr| pools(rules, arch, *nr).iter().any(|pool| !pool.is_empty())).collect();
    let nr = prop_oneof![4 => proptest::sample::select(known), 4 => proptest::sample::select(conditioned), 1 => 0..1024_u32, 1 => any::<u32>()];
    let word =
        prop_oneof![9 => Just(arch.audit_word()), 1 => proptest::sample::select(&FOREIGN[..]), 1 => any::<u32>()];
    let pool: BTreeSet<u32> = rules.rules.iter().flat_map(|rule| rule.when.iter()).flat_map(values).collect();
    let value = proptest::sample::select(pool.into_iter().collect::<Vec<_>>());
    let arg = prop_oneof![
        3 => value.clone().prop_map(u64::from),
        3 => (value, any::<u32>()).prop_map(|(low, high)| u64::from(low) | u64::from(high) << 32),
        1 => any::<u64>(),
    ];
    (word, nr, proptest::array::uniform6(arg)).prop_map(|(arch, nr, args)| Call { arch, nr, args })
}

/// Names that the random profiles have rules for: every one of `default`.
fn name() -> impl Strategy<Value = String> {
    let known = profile(BuiltIn::Default).seccomp.rules.iter().flat_map(|rule| rule.syscalls.iter());
    let names: BTreeSet<String> = known.map(|call| call.name.to_string()).collect();
    proptest::sample::select(names.into_iter().collect::<Vec<_>>())
}

fn written(condition: &Condition) -> String {
    let word = match condition.test {
        Test::Is(_) => "is",
        Test::IsNot(_) => "is-not",
    };
    format!("{{ arg = {}, mask = {}, {word} = {:?} }}", condition.arg, condition.mask, condition.test.values())
}

/// The text of a profile: alone, or extending a built-in one. Most are sound.
pub(crate) fn profile_text() -> impl Strategy<Value = String> {
    let rule =
        (proptest::collection::btree_set(name(), 1..4), proptest::collection::vec(condition(), 0..3), any::<bool>());
    let rule = rule.prop_map(|(names, when, allow)| {
        let when: Vec<_> = when.iter().map(written).collect();
        let verdict = if allow { "allow" } else { "EPERM" };
        let names: Vec<_> = names.into_iter().collect();
        format!(
            "[[seccomp.rule]]\ngroup = \"g\"\nsyscalls = {names:?}\nwhen = [{}]\nverdict = \"{verdict}\"\nreason = \"r\"\n",
            when.join(", ")
        )
    });
    let base = prop_oneof![
        Just("[seccomp.unlisted]\nverdict = \"ENOSYS\"\nreason = \"r\"\n"),
        Just("extends = \"default\"\n"),
        Just("extends = \"strict\"\n"),
        Just("extends = \"nested\"\n"),
    ];
    (base, proptest::collection::vec(rule, 0..12))
        .prop_map(|(base, rules)| format!("schema = 1\nname = \"random\"\n{base}{}", rules.concat()))
}
