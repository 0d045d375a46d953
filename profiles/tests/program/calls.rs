//! The calls programs are tried with: every number and value a rule names, its neighbours, and rubbish in the bits nobody should look at.

use std::collections::BTreeSet;

use agentd_profiles::evaluate::Call;
use agentd_profiles::{Arch, Condition, SeccompRules};

/// i386, 32-bit Arm, big-endian Arm, nothing.
pub(crate) const FOREIGN: [u32; 4] = [0x4000_0003, 0x4000_0028, 0x8000_00b7, 0];
const RUBBISH: u64 = 0xdead_beef_0000_0000;

pub(crate) fn numbers(rules: &SeccompRules, arch: Arch) -> BTreeSet<u32> {
    let named = rules.rules.iter().flat_map(|rule| rule.syscalls.iter()).filter_map(|syscall| syscall.number(arch));
    let near = named.flat_map(|nr| [nr.wrapping_sub(1), nr, nr.wrapping_add(1)]);
    let aliased: BTreeSet<u32> = near.flat_map(|nr| [nr, nr | 0x4000_0000, nr | 0x8000_0000]).collect();
    aliased
        .into_iter()
        .chain([0, 1, 0x3fff_ffff, 0x4000_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX - 1, u32::MAX])
        .collect()
}

/// Values worth trying against a condition.
pub(crate) fn values(condition: &Condition) -> BTreeSet<u32> {
    let named = condition.test.values().iter().copied();
    let near = named.flat_map(|value| [value.wrapping_sub(1), value, value.wrapping_add(1), value | !condition.mask]);
    let bits = (0..32).map(|bit| 1 << bit).filter(|bit| condition.mask != u32::MAX && bit & condition.mask != 0);
    near.chain(bits).chain([0, 1, u32::MAX]).collect()
}

/// The values for each argument of a call and its neighbours: a search that is off by one treats it as one of those.
pub(crate) fn pools(rules: &SeccompRules, arch: Arch, nr: u32) -> [BTreeSet<u32>; 6] {
    let mut pools: [BTreeSet<u32>; 6] = Default::default();
    let close = |number: Option<u32>| number.is_some_and(|number| number.abs_diff(nr) <= 1);
    let about = rules.rules.iter().filter(|rule| rule.syscalls.iter().any(|syscall| close(syscall.number(arch))));
    for condition in about.flat_map(|rule| rule.when.iter()) {
        if let Some(pool) = pools.get_mut(usize::from(condition.arg)) {
            pool.extend(values(condition));
        }
    }
    pools
}

/// Every interesting number with every combination of interesting arguments, each also with rubbish in the upper halves.
pub(crate) fn boundaries(rules: &SeccompRules, arch: Arch) -> Vec<Call> {
    let mut calls = Vec::new();
    for nr in numbers(rules, arch) {
        let mut vectors = vec![[0; 6]];
        for (arg, pool) in pools(rules, arch, nr).iter().enumerate().filter(|(_, pool)| !pool.is_empty()) {
            let with = |value: &u32| {
                vectors.iter().map(|args: &[u64; 6]| set(*args, arg, u64::from(*value))).collect::<Vec<_>>()
            };
            vectors = pool.iter().flat_map(with).collect();
        }
        calls.extend(FOREIGN.map(|arch| Call { arch, nr, args: [0; 6] }));
        for args in vectors {
            let arch = arch.audit_word();
            calls.extend([Call { arch, nr, args }, Call { arch, nr, args: args.map(|arg| arg | RUBBISH) }]);
        }
    }
    calls
}

fn set(mut args: [u64; 6], arg: usize, value: u64) -> [u64; 6] {
    if let Some(slot) = args.get_mut(arg) {
        *slot = value;
    }
    args
}
