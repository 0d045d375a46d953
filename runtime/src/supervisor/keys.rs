//! The keys that leave an attached terminal and let the job go on.
//!
//! Invariant: every byte that is not part of the whole sequence is passed on, in order; the beginning of one is held back
//! until it is clear what it is.

use std::str::FromStr;

/// A sequence of keys, and how far what was typed last agrees with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    sequence: Vec<u8>,
    matched: usize,
}

/// What is no sequence of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` are no keys: write letters, or ctrl- and one of a-z @ [ \\ ] ^ _, with commas between", .0.escape_debug())]
pub struct KeysError(String);

impl FromStr for Keys {
    type Err = KeysError;

    fn from_str(text: &str) -> Result<Self, KeysError> {
        let error = || KeysError(text.to_owned());
        let key = |word: &str| match (word.strip_prefix("ctrl-").map(str::as_bytes), word.as_bytes()) {
            (Some(&[letter @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]), _) => Ok(letter & 0x1f),
            (None, &[letter @ b'!'..=b'~']) => Ok(letter),
            _ => Err(error()),
        };
        let sequence: Vec<u8> = text.split(',').map(key).collect::<Result<_, _>>()?;
        if sequence.len() > 16 { Err(error()) } else { Ok(Keys { sequence, matched: 0 }) }
    }
}

impl Keys {
    /// Takes the sequence out of `bytes`; true when it was whole: what comes after it is dropped.
    pub(super) fn filter(&mut self, bytes: &mut Vec<u8>) -> bool {
        let mut passed = Vec::with_capacity(bytes.len() + self.matched);
        for byte in std::mem::take(bytes) {
            if self.sequence.get(self.matched) == Some(&byte) {
                self.matched += 1;
                if self.matched == self.sequence.len() {
                    *bytes = passed;
                    self.matched = 0;
                    return true;
                }
                continue;
            }
            passed.extend_from_slice(&self.sequence[..self.matched]);
            self.matched = usize::from(self.sequence.first() == Some(&byte));
            if self.matched == 0 {
                passed.push(byte);
            }
        }
        *bytes = passed;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> Keys {
        "ctrl-p,ctrl-q".parse().unwrap()
    }

    #[test]
    fn keys_are_written_as_docker_has_them() {
        assert_eq!(keys().sequence, [16, 17]);
        assert_eq!("a,ctrl-@,ctrl-_".parse::<Keys>().unwrap().sequence, [b'a', 0, 31]);
        for bad in ["", "ctrl-", "ctrl-A", "ab", "a,,b", "é", &"a,".repeat(20)] {
            assert!(bad.parse::<Keys>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_sequence_is_found_across_reads_and_its_halves_are_passed_on() {
        let mut keys = keys();
        let mut typed = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            (keys.filter(&mut bytes), bytes)
        };
        assert_eq!(typed(b"a\x10"), (false, b"a".to_vec()));
        assert_eq!(typed(b"b\x10\x10"), (false, b"\x10b\x10".to_vec()));
        assert_eq!(typed(b"\x11rest"), (true, Vec::new()));
        assert_eq!(typed(b"\x11"), (false, b"\x11".to_vec()));
    }

    proptest! {
        #[test]
        fn without_the_sequence_nothing_is_lost(chunks in proptest::collection::vec(proptest::collection::vec(0x0f_u8..0x12, 0..9), 0..9)) {
            let mut keys = keys();
            let mut passed = Vec::new();
            let whole = chunks.concat();
            let mut found = false;
            for mut chunk in chunks {
                found |= keys.filter(&mut chunk);
                passed.extend(chunk);
                if found { break; }
            }
            let at = whole.windows(2).position(|two| two == [16, 17]);
            prop_assert_eq!(found, at.is_some());
            match at {
                Some(at) => prop_assert_eq!(&passed[..], &whole[..at]),
                None => {
                    passed.extend_from_slice(&keys.sequence[..keys.matched]);
                    prop_assert_eq!(passed, whole);
                }
            }
        }
    }
}
