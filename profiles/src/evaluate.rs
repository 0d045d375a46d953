//! The meaning of a rule list, said as plainly as possible.
//!
//! Invariant: this is the reference. The compiled program is tested against it, so nothing here is shared with the compiler.

use crate::rule::{Arch, Condition, SeccompRule, SeccompRules, Test, Verdict};

/// A system call as a filter sees it (`struct seccomp_data`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The `AUDIT_ARCH_*` word of the entry that was used.
    pub arch: u32,
    /// The number in the register, unsigned.
    pub nr: u32,
    /// The argument registers, whole.
    pub args: [u64; 6],
}

/// What `rules` say to `call` on a machine of architecture `arch`.
#[must_use]
pub fn verdict(rules: &SeccompRules, arch: Arch, call: &Call) -> Verdict {
    if call.arch != arch.audit_word() {
        return Verdict::Kill;
    }
    deciding(rules, arch, call).map_or(Verdict::Refuse(rules.unlisted), |rule| rule.verdict)
}

/// The rule that decides about a call by the machine's own entry; `None` where no rule names it.
#[must_use]
pub fn deciding<'a>(rules: &'a SeccompRules, arch: Arch, call: &Call) -> Option<&'a SeccompRule> {
    rules.rules.iter().find(|rule| {
        let named = rule.syscalls.iter().any(|syscall| syscall.number(arch) == Some(call.nr));
        named && rule.when.iter().all(|condition| holds(condition, call))
    })
}

/// An argument the call does not have holds nothing: the compiler refuses such rules.
fn holds(condition: &Condition, call: &Call) -> bool {
    let Some(arg) = call.args.get(usize::from(condition.arg)) else { return false };
    let bits = arg & u64::from(condition.mask);
    let found = condition.test.values().iter().any(|value| u64::from(*value) == bits);
    match condition.test {
        Test::Is(_) => found,
        Test::IsNot(_) => !found,
    }
}
