//! Text from an image, made safe to print.
//!
//! Invariant: no control character and no bidirectional override of an image reaches a terminal or a log.

/// Longest text quoted in a message, in characters.
const LONGEST: usize = 256;

/// The bytes as text for a message: lossy, control and direction-changing characters escaped, cut when long.
pub(crate) fn printable(untrusted_bytes: &[u8]) -> String {
    // Cut the bytes first, so that a long name costs no more than a short one.
    let cut = untrusted_bytes.get(..LONGEST * 4).unwrap_or(untrusted_bytes);
    let mut text = String::new();
    let lossy = String::from_utf8_lossy(cut);
    for (count, c) in lossy.chars().enumerate() {
        if count == LONGEST {
            break;
        }
        if c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    if cut.len() < untrusted_bytes.len() || lossy.chars().nth(LONGEST).is_some() {
        text.push('…');
    }
    text
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
            ("naïve".as_bytes(), "naïve"),
        ] {
            assert_eq!(printable(bytes), want);
        }
        let long = printable(&[b'x'; 5000]);
        assert_eq!(long.chars().count(), 257);
    }
}
