//! The same rules through seccompiler: one filter a rule, since a filter of its has a single match action; the first that matches decides.

use std::collections::BTreeMap;

use agentd_profiles::evaluate::Call;
use agentd_profiles::{Arch, Condition, SeccompRule, SeccompRules, Test, Verdict};
use libc::sock_filter;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, TargetArch,
};

use crate::interpret::run;

pub(crate) struct Oracle {
    filters: Vec<Vec<sock_filter>>,
    unlisted: u32,
}

impl Oracle {
    pub(crate) fn new(rules: &SeccompRules, arch: Arch) -> Self {
        let filters = rules.rules.iter().map(|rule| filter(rule, arch)).collect();
        Self { filters, unlisted: Verdict::Refuse(rules.unlisted).action() }
    }

    pub(crate) fn action(&self, call: &Call) -> Result<u32, String> {
        for filter in &self.filters {
            let action = run(filter, call)?;
            if action != u32::from(SeccompAction::Log) {
                return Ok(action);
            }
        }
        Ok(self.unlisted)
    }
}

fn filter(rule: &SeccompRule, arch: Arch) -> Vec<sock_filter> {
    let numbers = rule.syscalls.iter().filter_map(|syscall| syscall.number(arch));
    let chains: BTreeMap<i64, _> = numbers.map(|number| (i64::from(number), chain(&rule.when))).collect();
    let action = match rule.verdict {
        Verdict::Allow => SeccompAction::Allow,
        Verdict::Refuse(errno) => SeccompAction::Errno(errno as u32),
        Verdict::Pretend => SeccompAction::Errno(0),
        Verdict::Kill => SeccompAction::KillProcess,
    };
    let target = match arch {
        Arch::X86_64 => TargetArch::x86_64,
        Arch::Aarch64 => TargetArch::aarch64,
    };
    let filter = SeccompFilter::new(chains, SeccompAction::Log, action, target).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    program.iter().map(|i| sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect()
}

/// The conjunction of the conditions as seccompiler takes it: alternatives, each a conjunction. None means always.
fn chain(when: &[Condition]) -> Vec<seccompiler::SeccompRule> {
    let mut alternatives: Vec<Vec<SeccompCondition>> = vec![Vec::new()];
    for any_of in when.iter().flat_map(clauses) {
        let with = |head: &Vec<SeccompCondition>| {
            any_of.iter().map(|tail| [head.as_slice(), std::slice::from_ref(tail)].concat()).collect::<Vec<_>>()
        };
        alternatives = alternatives.iter().flat_map(with).collect();
    }
    if when.is_empty() {
        return Vec::new();
    }
    alternatives.into_iter().map(|all_of| seccompiler::SeccompRule::new(all_of).unwrap()).collect()
}

/// A condition as clauses, all of which must hold; of each clause one alternative must.
fn clauses(condition: &Condition) -> Vec<Vec<SeccompCondition>> {
    let make = |operator, value: u32| {
        SeccompCondition::new(condition.arg, SeccompCmpArgLen::Dword, operator, u64::from(value)).unwrap()
    };
    let mask = u64::from(condition.mask);
    match &condition.test {
        Test::Is(values) => vec![values.iter().map(|value| make(SeccompCmpOp::MaskedEq(mask), *value)).collect()],
        Test::IsNot(values) if condition.mask == u32::MAX => {
            values.iter().map(|value| vec![make(SeccompCmpOp::Ne, *value)]).collect()
        }
        // There is no "masked and unequal": some bit of the mask differs.
        Test::IsNot(values) => values
            .iter()
            .map(|value| {
                let bits = (0..32).map(|bit| 1_u32 << bit).filter(|bit| condition.mask & bit != 0);
                bits.map(|bit| make(SeccompCmpOp::MaskedEq(u64::from(bit)), !value & bit)).collect()
            })
            .collect(),
    }
}
