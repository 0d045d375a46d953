//! Rule lists nobody would write.

use agentd_profiles::{Condition, Errno, SeccompRule, SeccompRules, Syscall, Test, Verdict};
use proptest::prelude::*;

fn list(rules: Vec<SeccompRule>) -> SeccompRules {
    SeccompRules { rules: rules.into(), unlisted: Errno::Enosys, unlisted_reason: "test".into() }
}

fn rule(number: u32, when: Vec<Condition>, verdict: Verdict) -> SeccompRule {
    let syscall = Syscall { name: format!("call {number}").into(), x86_64: Some(number), aarch64: None };
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
