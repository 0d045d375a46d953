//! Text from an image or a job, made safe to print.
//!
//! Invariant: no control character reaches a terminal or a log, and none that changes the direction of text or that
//! cannot be seen: with those one name reads as another.

/// Longest text quoted in a message, in characters.
const LONGEST: usize = 256;

/// The bytes as text for a message: lossy, control and direction-changing characters escaped, cut when long.
pub(crate) fn printable(untrusted_bytes: &[u8]) -> String {
    // Cut the bytes first, so that a long name costs no more than a short one.
    let cut = untrusted_bytes.get(..LONGEST * 4).unwrap_or(untrusted_bytes);
    let lossy = String::from_utf8_lossy(cut);
    let mut text = shown(lossy.chars().take(LONGEST));
    if cut.len() < untrusted_bytes.len() || lossy.chars().nth(LONGEST).is_some() {
        text.push('…');
    }
    text
}

/// The characters, [`is_unprintable`] ones escaped; of any length.
pub fn shown(untrusted: impl Iterator<Item = char>) -> String {
    let mut text = String::new();
    for c in untrusted {
        if is_unprintable(c) {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    text
}

/// Whether a terminal would obey the character, or not show it. All of these have four hexadecimal digits at most.
#[must_use]
pub fn is_unprintable(c: char) -> bool {
    let is_unseen = matches!(
        c,
        '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    );
    c.is_control() || is_unseen
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn control_characters_do_not_pass() {
        for (bytes, want) in [
            (&b"usr/bin/x"[..], "usr/bin/x"),
            (b"a\x1b[2Jb\n", "a\\u{1b}[2Jb\\n"),
            (b"\xff", "\u{fffd}"),
            ("a\u{202e}b".as_bytes(), "a\\u{202e}b"),
            ("a\u{61c}\u{2067}\u{feff}".as_bytes(), "a\\u{61c}\\u{2067}\\u{feff}"),
            ("naïve".as_bytes(), "naïve"),
        ] {
            assert_eq!(printable(bytes), want);
        }
        let long = printable(&[b'x'; 5000]);
        assert_eq!(long.chars().count(), 257);
    }
}
