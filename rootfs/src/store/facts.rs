//! What is known of an unpacked layer, kept in one attribute of its directory and read with one system call.
//!
//! Invariant: a directory without the attribute is no layer: copied without its attributes it would have lost its opaque
//! directories too.

use std::fmt;
use std::str::FromStr;

/// On `layers/KEY`, not on `fs`, whose mode is the image's and may deny reading.
pub(super) const FACTS: &str = "user.agentd.layer";

/// Longest value.
pub(super) const LONGEST: usize = 96;

/// What unpacking found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The layer hides everything below it.
    pub(crate) opaque_root: bool,
    /// Bytes of its files.
    pub(crate) bytes: u64,
    /// Device nodes left out.
    pub(crate) skipped_devices: u64,
    /// Extended attributes left out.
    pub(crate) dropped_xattrs: u64,
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Facts { opaque_root, bytes, skipped_devices, dropped_xattrs } = self;
        write!(f, "{} {bytes} {skipped_devices} {dropped_xattrs}", u8::from(*opaque_root))
    }
}

/// A value that is no [`Facts`].
#[derive(Debug)]
pub(crate) struct Malformed;

impl FromStr for Facts {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Facts, Malformed> {
        let mut words = text.split(' ').map(|word| word.parse::<u64>().map_err(|_not_a_number| Malformed));
        let mut next = || words.next().ok_or(Malformed)?;
        let opaque_root = match next()? {
            0 => false,
            1 => true,
            _ => return Err(Malformed),
        };
        let facts = Facts { opaque_root, bytes: next()?, skipped_devices: next()?, dropped_xattrs: next()? };
        if words.next().is_some() { Err(Malformed) } else { Ok(facts) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_round_trip_and_nothing_else_parses() {
        for facts in [
            Facts::default(),
            Facts { opaque_root: true, bytes: u64::MAX, skipped_devices: u64::MAX, dropped_xattrs: u64::MAX },
        ] {
            let text = facts.to_string();
            assert!(text.len() <= LONGEST);
            assert_eq!(text.parse::<Facts>().unwrap(), facts);
        }
        for bad in ["", "0", "2 0 0 0", "0 0 0 0 0", "0 0 0 -1", "0  0 0 0", "0 0 0 18446744073709551616"] {
            assert!(bad.parse::<Facts>().is_err(), "{bad}");
        }
    }
}
