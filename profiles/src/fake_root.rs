//! `--fake-root`: rules that have a box with one id report success where its root cannot change owners and ids.
//!
//! Invariant: what they let through every profile lets through, and what they pretend is not done. So a profile with them
//! allows no call that it does not allow without.

use libc::sock_filter;

use crate::profile::Profile;
use crate::rule::{SeccompRule, SeccompRules};
use crate::{BuiltIn, built_in, schema};

/// The rules.
pub static FAKE_ROOT: &[SeccompRule] = &built_in::FAKE_ROOT;

/// `base`, with [`FAKE_ROOT`] asked first.
#[must_use]
pub fn fake_root(base: &Profile) -> Profile {
    let SeccompRules { unlisted, unlisted_reason, .. } = base.seccomp.clone();
    let rules = schema::before(FAKE_ROOT.to_vec(), &base.seccomp.rules).into();
    Profile { seccomp: SeccompRules { rules, unlisted, unlisted_reason }, ..base.clone() }
}

/// The filter of [`fake_root`] of a built-in profile, compiled when agentd was built.
#[must_use]
pub fn fake_root_seccomp(base: BuiltIn) -> &'static [sock_filter] {
    match base {
        BuiltIn::Default => &built_in::DEFAULT_FAKE_ROOT_PROGRAM,
        BuiltIn::Strict => &built_in::STRICT_FAKE_ROOT_PROGRAM,
        BuiltIn::Nested => &built_in::NESTED_FAKE_ROOT_PROGRAM,
        // No payload has these.
        BuiltIn::Init | BuiltIn::Broker => crate::seccomp(base),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::{Call, verdict};
    use crate::{Arch, Verdict};

    fn call(nr: u32, args: [u64; 6]) -> Call {
        Call { arch: Arch::X86_64.audit_word(), nr, args }
    }

    #[test]
    fn what_the_map_has_is_left_to_the_kernel_and_the_rest_is_pretended() {
        const LEAVE: u64 = 0xffff_ffff;
        for built_in in BuiltIn::FOR_PAYLOADS {
            let rules = fake_root(crate::profile(built_in)).seccomp;
            let says = |nr, args| verdict(&rules, Arch::X86_64, &call(nr, args));
            for (nr, ids) in [(92, 1), (93, 1), (94, 1), (260, 2)] {
                let with = |uid, gid| {
                    let mut args = [0; 6];
                    (args[ids], args[ids + 1]) = (uid, gid);
                    says(nr, args)
                };
                assert_eq!(
                    (with(0, 0), with(LEAVE, 0), with(0, LEAVE)),
                    (Verdict::Allow, Verdict::Allow, Verdict::Allow)
                );
                assert_eq!(
                    (with(42, 0), with(0, 42), with(LEAVE, 42)),
                    (Verdict::Pretend, Verdict::Pretend, Verdict::Pretend)
                );
            }
            for nr in [105, 106, 113, 114, 116, 117, 119] {
                assert_eq!(says(nr, [42, 42, 42, 0, 0, 0]), Verdict::Pretend, "{nr}");
            }
        }
    }

    /// Every call that it allows its base allows.
    #[test]
    fn nothing_more_is_allowed() {
        for built_in in BuiltIn::FOR_PAYLOADS {
            let base = crate::profile(built_in);
            let faked = fake_root(base);
            for arch in [Arch::X86_64, Arch::Aarch64] {
                for nr in 0..600 {
                    for args in [[0; 6], [u64::from(u32::MAX); 6], [0o104_755; 6], [0, 0, 42, 42, 0, 0]] {
                        let call = Call { arch: arch.audit_word(), nr, args };
                        let (with, without) =
                            (verdict(&faked.seccomp, arch, &call), verdict(&base.seccomp, arch, &call));
                        assert!(with == without || with == Verdict::Pretend, "{built_in} {arch:?} {call:?}: {with}");
                    }
                }
            }
        }
    }
}
