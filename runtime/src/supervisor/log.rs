//! What is kept of a stream: the newest of it, in files that say by their names where in the stream they begin.
//!
//! ```text
//! stdout.log            from byte 0
//! stdout.log.33554432   from byte 33,554,432; the one before is removed when a third begins
//! stdout.log.times      when which byte came: 16 bytes each, milliseconds and offset, once a second at most
//! ```
//!
//! Invariant: the files of a stream hold at most the bound together, and no byte is missing without a trace: where a file
//! begins later than the one before ends, that many bytes are not kept (`--max-output`, a disk that took no more).

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::redact::{Redacted, Redactor};
use crate::job::logs::{Moment, STEP, segment_name, times_name};

/// Files at most: each time that the disk takes no more, a new one begins when it does again.
const MOST_SEGMENTS: usize = 16;
/// Bytes of log for each moment that is kept, on average.
const BYTES_A_MOMENT: u64 = 64;

/// What is kept of a stream.
#[derive(Debug)]
pub(super) struct Log {
    directory: PathBuf,
    name: &'static str,
    bound: u64,
    segments: VecDeque<Segment>,
    file: Option<File>,
    /// Bytes of the stream so far, kept or not.
    seen: u64,
    /// When the last moment was noted, and how many of this segment were.
    noted: Option<(Instant, u64)>,
    /// Takes the job's secrets out, where it has any.
    redacted: Option<Redacted>,
}

#[derive(Debug)]
struct Segment {
    base: u64,
    length: u64,
}

impl Log {
    /// Of the stream called `name`; nothing is made before its first byte.
    pub(super) fn new(directory: &Path, name: &'static str, bound: u64) -> Self {
        Log {
            directory: directory.to_owned(),
            name,
            bound,
            segments: VecDeque::new(),
            file: None,
            seen: 0,
            noted: None,
            redacted: None,
        }
    }

    /// Has `redactor` clean what is kept from now on.
    pub(super) fn redact(&mut self, redactor: &Redactor) {
        match &mut self.redacted {
            Some(redacted) => redacted.renew(redactor.clone()),
            None => self.redacted = Some(Redacted::new(redactor.clone())),
        }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        match &mut self.redacted {
            Some(redacted) => {
                let clean = redacted.push(bytes);
                self.keep(&clean);
            }
            None => self.keep(bytes),
        }
    }

    /// Keeps what was held back; gives the bytes that are not kept.
    pub(super) fn close(&mut self) -> u64 {
        if let Some(mut redacted) = self.redacted.take() {
            self.keep(&redacted.finish());
        }
        self.seen - self.kept()
    }

    fn kept(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    /// Half of the bound: the newest of two files is filled while the other is kept whole.
    fn longest(&self) -> u64 {
        (self.bound / 2).max(1)
    }

    /// Keeps `bytes`. A disk that takes no more costs output on disk, not the job.
    fn keep(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.append(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) => {
                    tracing::debug!(%error, "output could not be kept");
                    self.file = None;
                    self.forget_empty();
                    self.seen += bytes.len() as u64;
                    return;
                }
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let longest = self.longest();
        let full = self.segments.back().is_none_or(|segment| segment.length >= longest);
        if full || self.file.is_none() {
            self.begin()?;
        }
        // Before the bytes: whoever has read them finds their time.
        self.note(self.seen);
        let (Some(file), Some(segment)) = (&mut self.file, self.segments.back_mut()) else { return Ok(0) };
        let room = usize::try_from(longest - segment.length).unwrap_or(usize::MAX).min(bytes.len());
        let written = file.write(&bytes[..room])?;
        segment.length += written as u64;
        self.seen += written as u64;
        Ok(written)
    }

    fn begin(&mut self) -> io::Result<()> {
        while !self.segments.is_empty()
            && (self.kept() + self.longest() > self.bound || self.segments.len() >= MOST_SEGMENTS)
        {
            if let Some(oldest) = self.segments.pop_front() {
                self.remove(&oldest);
            }
        }
        self.file = None;
        let path = self.directory.join(segment_name(self.name, self.seen));
        self.file = Some(File::options().append(true).create(true).mode(0o600).open(path)?);
        self.segments.push_back(Segment { base: self.seen, length: 0 });
        self.noted = None;
        Ok(())
    }

    /// A file that the disk took, but no byte for it: more of them would push out what is kept.
    fn forget_empty(&mut self) {
        if let Some(empty) = self.segments.pop_back_if(|segment| segment.length == 0) {
            self.remove(&empty);
        }
    }

    /// What a job's directory holds too much is seen by nobody but its user, who may have taken it away.
    fn remove(&self, segment: &Segment) {
        let name = segment_name(self.name, segment.base);
        fs::remove_file(self.directory.join(times_name(&name))).unwrap_or_default();
        fs::remove_file(self.directory.join(name)).unwrap_or_default();
    }

    /// Notes when byte `at` came. A job that is over within a second makes no file for that.
    fn note(&mut self, at: u64) {
        let now = Instant::now();
        let Some((last, count)) = self.noted else {
            self.noted = Some((now, 0));
            return;
        };
        if now.duration_since(last) < Duration::from_millis(STEP) || count > self.longest() / BYTES_A_MOMENT {
            return;
        }
        self.noted = Some((now, count + 1));
        let Some(segment) = self.segments.back() else { return };
        let path = self.directory.join(times_name(&segment_name(self.name, segment.base)));
        let file = File::options().append(true).create(true).mode(0o600).open(path);
        // Without it `--since` is less exact.
        file.and_then(|mut file| file.write_all(&Moment::now(at).encode())).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::logs::{Part, Reader};
    use proptest::prelude::*;

    fn read_back(directory: &Path) -> (u64, Vec<u8>) {
        let mut reader = Reader::new(directory, "stdout");
        let (mut missing, mut bytes) = (0, Vec::new());
        loop {
            match reader.part().unwrap() {
                Part::Bytes(more) => bytes.extend(more),
                Part::Missing(count) => missing += count,
                Part::End => return (missing, bytes),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_newest_bytes_are_kept_and_the_rest_is_counted(
            bound in 1_u64..200,
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..70), 0..20),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let mut log = Log::new(directory.path(), "stdout", bound);
            chunks.iter().for_each(|chunk| log.take(chunk));
            let whole = chunks.concat();
            let dropped = log.close();
            let (missing, bytes) = read_back(directory.path());
            prop_assert!(bytes.len() as u64 <= bound);
            prop_assert!(bytes.len() as u64 >= (whole.len() as u64).min(bound / 2));
            prop_assert!(whole.ends_with(&bytes));
            prop_assert_eq!(dropped, (whole.len() - bytes.len()) as u64);
            prop_assert_eq!(missing, dropped);
        }
    }

    #[test]
    fn what_the_disk_did_not_take_is_a_gap_that_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::new(directory.path(), "stdout", 1000);
        log.take(b"before ");
        // No file can be opened where a directory is missing; root is stopped by that as well.
        let real = std::mem::replace(&mut log.directory, directory.path().join("missing"));
        log.file = None;
        log.take(b"lost");
        log.directory = real;
        log.take(b"after");
        assert_eq!(log.close(), 4);
        assert_eq!(read_back(directory.path()), (4, b"before after".to_vec()));
    }
}
