//! Refusals that somebody should hear of: those that programs take for a denial, not those they take for an old kernel.
//!
//! Invariant: a filter that tells refuses exactly what the filter it was made from refuses; it only leaves the errno to the
//! listener.

use libc::sock_filter;

use crate::rule::{Errno, Verdict};

impl Verdict {
    /// Whether a program that gets this answer was denied something. ENOSYS and EPROTONOSUPPORT are what older kernels say,
    /// and what C libraries and language runtimes ask for at each start (clone3, MPTCP).
    #[must_use]
    pub const fn is_denial(self) -> bool {
        matches!(self, Self::Refuse(Errno::Eperm | Errno::Eafnosupport))
    }
}

/// `program`, compiled by this crate, with every denial left to a listener (seccomp_unotify(2)).
#[must_use]
pub fn notifying(program: &[sock_filter]) -> Vec<sock_filter> {
    let denials = [Errno::Eperm, Errno::Eafnosupport].map(|errno| Verdict::Refuse(errno).action());
    let is_denial = |i: &sock_filter| u32::from(i.code) == libc::BPF_RET | libc::BPF_K && denials.contains(&i.k);
    let told = |i: &sock_filter| sock_filter { k: if is_denial(i) { libc::SECCOMP_RET_USER_NOTIF } else { i.k }, ..*i };
    program.iter().map(told).collect()
}

/// `program`, compiled by this crate, with every refusal left to a listener: for learning what a program asks for. What is
/// only pretended is none.
#[must_use]
pub fn asking(program: &[sock_filter]) -> Vec<sock_filter> {
    let is_refusal = |i: &sock_filter| {
        u32::from(i.code) == libc::BPF_RET | libc::BPF_K
            && i.k & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_ERRNO
            && i.k != Verdict::Pretend.action()
    };
    let asked =
        |i: &sock_filter| sock_filter { k: if is_refusal(i) { libc::SECCOMP_RET_USER_NOTIF } else { i.k }, ..*i };
    program.iter().map(asked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BuiltIn;

    #[test]
    fn only_the_answers_of_denials_differ() {
        for built_in in BuiltIn::FOR_PAYLOADS {
            let plain = crate::seccomp(built_in);
            let mut told = 0;
            for (one, other) in plain.iter().zip(notifying(plain)) {
                assert_eq!((one.code, one.jt, one.jf), (other.code, other.jt, other.jf));
                if one.k != other.k {
                    assert!([0x0005_0001, 0x0005_0061].contains(&one.k) && other.k == 0x7fc0_0000, "{:#x}", one.k);
                    told += 1;
                }
            }
            assert_eq!(told, 2, "{built_in}");
            assert_eq!(notifying(&notifying(plain)).iter().filter(|i| i.k == 0x7fc0_0000).count(), 2);
        }
    }
    /// What is killed stays killed, and what is allowed is not asked about.
    #[test]
    fn learning_asks_about_every_refusal_and_nothing_else() {
        for built_in in BuiltIn::FOR_PAYLOADS {
            let plain = crate::seccomp(built_in);
            let returns = |program: &[sock_filter]| -> std::collections::BTreeSet<u32> {
                program.iter().filter(|i| u32::from(i.code) == libc::BPF_RET | libc::BPF_K).map(|i| i.k).collect()
            };
            assert_eq!(returns(&asking(plain)), [0x7fc0_0000, 0x7fff_0000, 0x8000_0000].into());
            assert!(returns(plain).len() >= 5, "{built_in}");
        }
    }
}
