//! What a profile enforces, as one value: two profiles with the same digest refuse and grant the same.
//!
//! Invariant: words that are only for people (names, reasons) do not count; the filter counts as the kernel gets it.

use libc::sock_filter;
use sha2::{Digest as _, Sha256};

use crate::profile::Profile;

/// `sha256:` and 64 hexadecimal digits, of `program`, the rules about paths and whether namespaces may be made.
#[must_use]
pub fn digest(profile: &Profile, program: impl IntoIterator<Item = sock_filter>) -> String {
    let mut hash = Sha256::new();
    for sock_filter { code, jt, jf, k } in program {
        let ([c0, c1], [k0, k1, k2, k3]) = (code.to_le_bytes(), k.to_le_bytes());
        hash.update([c0, c1, jt, jf, k0, k1, k2, k3]);
    }
    for rule in profile.paths.iter() {
        hash.update(format!("\0{}\0{}", rule.place.word(), rule.access));
    }
    hash.update([0, profile.namespaces.allowed.into()]);
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use crate::{BuiltIn, built_in_digest, profile, seccomp};

    use super::digest;

    #[test]
    fn what_counts_is_what_is_enforced() {
        let all = [BuiltIn::Default, BuiltIn::Strict, BuiltIn::Nested, BuiltIn::Init, BuiltIn::Broker];
        for built_in in all {
            let (own, program) = (profile(built_in), seccomp(built_in).iter().copied());
            assert_eq!(built_in_digest(built_in), digest(own, program.clone()));
            let mut other = own.clone();
            other.about = "other words".into();
            assert_eq!(built_in_digest(built_in), digest(&other, program.clone()));
            other.namespaces.allowed ^= true;
            assert_ne!(built_in_digest(built_in), digest(&other, program.clone()));
            assert_ne!(built_in_digest(built_in), digest(own, program.skip(1)));
        }
        let different: std::collections::BTreeSet<_> = all.map(built_in_digest).into();
        assert_eq!(different.len(), all.len());
    }
}
