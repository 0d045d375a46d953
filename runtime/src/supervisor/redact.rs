//! Takes known secrets out of what is kept of a job: its logs, its record, its plan. What passes through to the user's own
//! streams is not touched.
//!
//! Looked for: each line of a value as it is, in lower case, as JSON writes it and percent-encoded, and the whole value in
//! both alphabets of base64, wherever in a longer text it stands (`Authorization: Basic …`). This stops accidents, not a
//! payload that means to tell: docs/secrets.md says so.
//!
//! Invariant: no byte of an occurrence is kept, however the output was cut into reads; every other byte is, in order. Of a
//! line, fewer bytes than the longest form has are held back until more comes.

use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickKind, BuildError};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::job::record::{Record, State};

/// What stands where a secret was.
const MARK: &str = "[redacted]";

/// A form with fewer bytes would be found in what is none.
pub(crate) const LEAST_BYTES: usize = 8;

/// The forms of all secrets of a job.
#[derive(Debug, Clone)]
pub(super) struct Redactor {
    forms: AhoCorasick,
    /// The same apart, to look for more later.
    all: Arc<[Vec<u8>]>,
    longest: usize,
}

impl Redactor {
    /// `None` where there is nothing to look for.
    pub(super) fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<Self>, BuildError> {
        Self::of(values.into_iter().flat_map(forms).collect())
    }

    /// For one more value.
    pub(super) fn and(&self, value: &[u8]) -> Result<Self, BuildError> {
        let more = Self::of(self.all.iter().cloned().chain(forms(value)).collect())?;
        Ok(more.unwrap_or_else(|| self.clone()))
    }

    fn of(mut forms: Vec<Vec<u8>>) -> Result<Option<Self>, BuildError> {
        forms.sort_unstable();
        forms.dedup();
        let Some(longest) = forms.iter().map(Vec::len).max() else { return Ok(None) };
        // Its size grows with the forms'; a DFA's would with their number of distinct bytes too.
        let kind = Some(AhoCorasickKind::ContiguousNFA);
        let automaton = AhoCorasick::builder().kind(kind).build(&forms)?;
        Ok(Some(Redactor { forms: automaton, all: forms.into(), longest }))
    }

    /// A short text of agentd's own.
    fn text(&self, text: &mut String) {
        let mut stream = Redacted::new(self.clone());
        let mut clean = stream.push(text.as_bytes());
        clean.extend(stream.finish());
        if clean != text.as_bytes() {
            *text = String::from_utf8_lossy(&clean).into_owned();
        }
    }

    /// Words of a command line or an environment.
    pub(super) fn texts<'a>(&self, texts: impl IntoIterator<Item = &'a mut String>) {
        texts.into_iter().for_each(|text| self.text(text));
    }

    /// A record, where it quotes what the user or the payload said.
    pub(super) fn record(&self, record: &mut Record) {
        self.texts(record.command.iter_mut().chain(&mut record.warnings).chain(&mut record.left));
        self.texts(&mut record.workspace);
        match &mut record.state {
            State::Exited { reason, .. } => self.texts(reason),
            State::Failed { reason, .. } | State::Lost { reason } => self.text(reason),
            State::Running => {}
        }
    }
}

/// What is looked for. None holds a line's end, so none can begin in one line and end in the next.
fn forms(value: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for line in value.split(|byte| matches!(byte, b'\n' | b'\r')).filter(|line| line.len() >= LEAST_BYTES) {
        // Host names are kept in lower case.
        forms.extend([line.to_vec(), line.to_ascii_lowercase(), percent_encoded(line)]);
        if let Some(quoted) = std::str::from_utf8(line).ok().and_then(|line| serde_json::to_string(line).ok()) {
            forms.push(quoted.trim_start_matches('"').as_bytes().strip_suffix(b"\"").unwrap_or_default().to_vec());
        }
    }
    let whole = value.trim_ascii_end();
    if whole.len() >= LEAST_BYTES {
        for before in 0..3 {
            // Three bytes are four digits: what stands before moves the digits, and those that hold a bit of a neighbour
            // are not looked for.
            let moved = [&[0; 3][..before], whole].concat();
            let (first, end) = ((before * 8).div_ceil(6), moved.len() * 8 / 6);
            for text in [STANDARD_NO_PAD.encode(&moved), URL_SAFE_NO_PAD.encode(&moved)] {
                forms.extend(text.as_bytes().get(first..end).map(<[u8]>::to_vec));
            }
        }
    }
    forms.retain(|form| form.len() >= LEAST_BYTES);
    forms
}

fn percent_encoded(text: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(text.len());
    for byte in text {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            encoded.push(*byte);
        } else {
            encoded.extend(format!("%{byte:02X}").bytes());
        }
    }
    encoded
}

/// One stream without its secrets.
#[derive(Debug)]
pub(super) struct Redacted {
    redactor: Redactor,
    /// What came and was not given on: it may be the beginning of a secret.
    held: Vec<u8>,
    /// How much of that is part of a secret whose mark was given.
    covered: usize,
}

impl Redacted {
    pub(super) fn new(redactor: Redactor) -> Self {
        Redacted { redactor, held: Vec::new(), covered: 0 }
    }

    /// Looks for what `redactor` looks for from now on.
    pub(super) fn renew(&mut self, redactor: Redactor) {
        self.redactor = redactor;
    }

    /// What of the stream so far can be kept now.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        // An occurrence that begins before either place has come to its end.
        let lines = self.held.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')).map_or(0, |end| end + 1);
        let whole = (self.held.len() + 1).saturating_sub(self.redactor.longest);
        self.give(lines.max(whole))
    }

    /// The rest of a stream that has ended.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.give(self.held.len())
    }

    fn give(&mut self, end: usize) -> Vec<u8> {
        let mut found: Vec<_> = self.redactor.forms.find_overlapping_iter(&self.held).map(|one| one.range()).collect();
        found.sort_unstable_by_key(|one| (one.start, one.end));
        let mut given = Vec::with_capacity(end);
        for one in found.into_iter().filter(|one| one.start < end) {
            // What overlaps is one secret to a reader.
            if one.start >= self.covered {
                given.extend_from_slice(&self.held[self.covered..one.start]);
                given.extend_from_slice(MARK.as_bytes());
            }
            self.covered = self.covered.max(one.end);
        }
        if self.covered < end {
            given.extend_from_slice(&self.held[self.covered..end]);
            self.covered = end;
        }
        self.held.drain(..end);
        self.covered -= end;
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn redact<'a>(secrets: &[&[u8]], reads: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut stream = Redacted::new(Redactor::new(secrets.iter().copied()).unwrap().unwrap());
        let mut kept: Vec<u8> = reads.into_iter().flat_map(|read| stream.push(read)).collect();
        kept.extend(stream.finish());
        kept
    }

    fn shown(secret: &str, text: &str) -> String {
        String::from_utf8(redact(&[secret.as_bytes()], [text.as_bytes()])).unwrap()
    }

    /// Every occurrence of every form, looked for the slow way, and marked where it begins.
    fn slowly(secrets: &[&[u8]], text: &[u8]) -> Vec<u8> {
        let forms: Vec<Vec<u8>> = secrets.iter().copied().flat_map(forms).collect();
        let (mut kept, mut covered) = (Vec::new(), 0);
        for at in 0..text.len() {
            let longest = forms.iter().filter(|form| text[at..].starts_with(form)).map(Vec::len).max();
            if let Some(longest) = longest {
                if at >= covered {
                    kept.extend(MARK.bytes());
                }
                covered = covered.max(at + longest);
            }
            if at >= covered {
                kept.push(text[at]);
            }
        }
        kept
    }

    #[test]
    fn a_value_that_comes_later_is_found_beside_the_first() {
        let first = Redactor::new([&b"first-secret"[..]]).unwrap().unwrap();
        let mut stream = Redacted::new(first.clone());
        let mut kept = stream.push(b"a first-secret, second-secret, fir");
        stream.renew(first.and(b"second-secret").unwrap());
        kept.extend(stream.push(b"st-secret second-sec"));
        kept.extend(stream.push(b"ret"));
        kept.extend(stream.finish());
        assert!(kept.ends_with(b", [redacted] [redacted]"), "{}", String::from_utf8_lossy(&kept));
        assert_eq!(first.and(b"short").unwrap().all, first.all);
    }

    #[test]
    fn forms_that_programs_print_are_found() {
        let secret = "s3cr3t/with\"quote+";
        for text in [
            secret.to_owned(),
            serde_json::to_string(secret).unwrap(),
            "https://u:s3cr3t%2Fwith%22quote%2B@host".to_owned(),
            base64::engine::general_purpose::STANDARD.encode(secret),
            URL_SAFE_NO_PAD.encode(secret),
            base64::engine::general_purpose::STANDARD.encode(format!("user:{secret}\n")),
            base64::engine::general_purpose::STANDARD.encode(format!("a:{secret}x")),
            base64::engine::general_purpose::STANDARD.encode(format!("ab:{secret}")),
        ] {
            let shown = shown(secret, &text);
            assert!(shown.contains(MARK) && shown.len() < MARK.len() + 20, "{text}: {shown}");
        }
    }

    #[test]
    fn a_secret_that_was_asked_for_as_a_name_is_found() {
        assert_eq!(shown("AbCdEfGh", "--allow abcdefgh.example.org"), "--allow [redacted].example.org");
    }

    #[test]
    fn a_key_of_many_lines_is_found_as_a_terminal_shows_it() {
        let key = "-----BEGIN KEY-----\nMIIEvAIBADANBg\nshort\nkqhkiG9w0BAQEF\n-----END KEY-----\n";
        let seen = shown(key, &format!("{}done\r\n", key.replace('\n', "\r\n")));
        assert_eq!(seen, format!("{MARK}\r\n{MARK}\r\nshort\r\n{MARK}\r\n{MARK}\r\ndone\r\n"));
    }

    #[test]
    fn a_line_is_kept_when_it_ends() {
        let secret = "a".repeat(1000);
        let mut stream = Redacted::new(Redactor::new([secret.as_bytes()]).unwrap().unwrap());
        assert_eq!(stream.push(b"prompt> "), b"");
        assert_eq!(stream.push(b"ls\nout"), b"prompt> ls\n");
        assert_eq!(stream.finish(), b"out");
    }

    #[test]
    fn values_too_short_to_be_told_apart_are_left_alone() {
        assert!(Redactor::new([&b"1234567"[..], b"", b"a\nb\nc\nd\ne"]).unwrap().is_none_or(|redactor| {
            // The last has a base64 form.
            let mut text = "1234567 a b c".to_owned();
            redactor.text(&mut text);
            text == "1234567 a b c"
        }));
    }

    proptest! {
        /// Two letters and a newline: secrets overlap themselves and each other all the time.
        #[test]
        fn however_the_stream_is_cut_nothing_of_a_secret_is_kept_and_nothing_else_is_lost(
            one in "[ab\n]{8,20}",
            other in "[ab]{8,12}",
            text in "[ab\n]{0,30}",
            parts in proptest::collection::vec((0..3_u8, "[ab\n]{0,6}"), 0..8),
            cuts in proptest::collection::vec(0..200_usize, 0..12),
        ) {
            let mut text = text;
            for (which, between) in parts {
                text.push_str([one.as_str(), &other, "abab"][usize::from(which)]);
                text.push_str(&between);
            }
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let reads = cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]);
            let secrets = [one.as_bytes(), other.as_bytes()];
            prop_assert_eq!(redact(&secrets, reads), slowly(&secrets, text.as_bytes()));
        }
    }
}
