//! Reading what is kept of a job's streams, while it runs or afterwards.
//!
//! Invariant: a reader goes through a stream by its offset, and tells of every byte that is not there.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// Milliseconds between two moments that are kept, at least.
pub(crate) const STEP: u64 = 1000;
/// Bytes that are read at once.
const BLOCK: usize = 64 * 1024;
/// Longest list of moments that is read, in bytes.
const MAX_TIMES: u64 = 64 << 20;

/// When a byte came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Milliseconds since 1970.
    time: u64,
    /// Where in the stream.
    offset: u64,
}

impl Moment {
    /// Byte `offset` came now.
    pub(crate) fn now(offset: u64) -> Self {
        Moment { time: milliseconds(SystemTime::now()), offset }
    }

    /// Two numbers, little endian.
    pub(crate) fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.time.to_le_bytes());
        bytes[8..].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (time, rest) = bytes.split_first_chunk::<8>()?;
        let (offset, _) = rest.split_first_chunk::<8>()?;
        Some(Moment { time: u64::from_le_bytes(*time), offset: u64::from_le_bytes(*offset) })
    }
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Name of the file of stream `name` that begins at `base`.
pub(crate) fn segment_name(name: &str, base: u64) -> String {
    if base == 0 { format!("{name}.log") } else { format!("{name}.log.{base}") }
}

/// Name of the file that says when the bytes of a segment came.
pub(crate) fn times_name(segment: &str) -> String {
    format!("{segment}.times")
}

/// What comes next in a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// Bytes.
    Bytes(Vec<u8>),
    /// So many are not kept here.
    Missing(u64),
    /// Nothing yet, or nothing more.
    End,
}

/// When the bytes of a stream came, to a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Times(Vec<Moment>);

impl Times {
    /// When byte `offset` came; of one before all that is kept, when the first of that did.
    #[must_use]
    pub fn of(&self, offset: u64) -> SystemTime {
        let next = self.0.partition_point(|moment| moment.offset <= offset);
        let moment = self.0.get(next.saturating_sub(1));
        let time = moment.map_or(0, |moment| moment.time);
        UNIX_EPOCH.checked_add(Duration::from_millis(time)).unwrap_or(UNIX_EPOCH)
    }
}

/// A stream of a job.
#[derive(Debug)]
pub struct Reader {
    directory: PathBuf,
    name: &'static str,
    at: u64,
    /// The segment that is read, and where it begins.
    open: Option<(u64, File)>,
}

impl Reader {
    /// The stream called `name`, from its beginning.
    #[must_use]
    pub fn new(directory: &Path, name: &'static str) -> Self {
        Reader { directory: directory.to_owned(), name, at: 0, open: None }
    }

    /// What comes next.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn part(&mut self) -> io::Result<Part> {
        loop {
            if let Some((base, file)) = &mut self.open {
                file.seek(SeekFrom::Start(self.at - *base))?;
                let mut bytes = vec![0; BLOCK];
                let read = file.read(&mut bytes)?;
                if read > 0 {
                    bytes.truncate(read);
                    self.at += read as u64;
                    return Ok(Part::Bytes(bytes));
                }
            }
            let from = self.open.as_ref().map(|(base, _)| *base);
            // One without a byte may go again: what is missing before it is told when it has one.
            let next = self.segments()?.into_iter().find(|base| match from {
                Some(from) => *base > from && self.length(*base) > 0,
                None => self.length(*base) > 0,
            });
            let Some(base) = next else { return Ok(Part::End) };
            match File::open(self.directory.join(segment_name(self.name, base))) {
                // Removed meanwhile, because newer ones are there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => {
                    let (before, at) = (self.at, self.at.max(base));
                    (self.open, self.at) = (Some((base, opened?)), at);
                    if at > before {
                        return Ok(Part::Missing(at - before));
                    }
                }
            }
        }
    }

    /// Goes on where the bytes begin that came at `since` or later, as exactly as is known: to a second.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn skip_to(&mut self, since: SystemTime) -> io::Result<()> {
        let since = milliseconds(since);
        let (moments, end) = self.moments()?;
        // What came after a moment and before the next came within a step of it.
        let first = moments.iter().find(|moment| moment.time.saturating_add(STEP) > since);
        self.at = first.map_or(end, |moment| moment.offset);
        self.enter()
    }

    /// Where in the stream the next byte comes from.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Bytes that are not kept before the last that is.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn gaps(&self) -> io::Result<u64> {
        let (mut end, mut kept) = (0_u64, 0_u64);
        for base in self.segments()? {
            let length = self.length(base);
            if length > 0 {
                (end, kept) = (base.saturating_add(length), kept.saturating_add(length));
            }
        }
        Ok(end.saturating_sub(kept))
    }

    /// When the bytes came that are there now.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn times(&self) -> io::Result<Times> {
        Ok(Times(self.moments()?.0))
    }

    /// The moments that are kept, in order, and where the stream ends.
    fn moments(&self) -> io::Result<(Vec<Moment>, u64)> {
        let mut moments = Vec::new();
        let mut end = 0;
        for base in self.segments()? {
            let path = self.directory.join(segment_name(self.name, base));
            // Not by the standard library, which knows no time of birth where the C library is musl.
            let wanted = StatxFlags::BTIME | StatxFlags::MTIME | StatxFlags::SIZE;
            let Ok(found) = statx(CWD, &path, AtFlags::empty(), wanted) else { continue };
            // Its first bytes came when it was made.
            let has_birth = found.stx_mask & StatxFlags::BTIME.bits() != 0;
            let made = if has_birth { found.stx_btime } else { found.stx_mtime };
            let time = u64::try_from(made.tv_sec).unwrap_or_default() * 1000 + u64::from(made.tv_nsec) / 1_000_000;
            moments.push(Moment { time, offset: base });
            end = base + found.stx_size;
            let mut times = Vec::new();
            if let Ok(file) = File::open(self.directory.join(times_name(&segment_name(self.name, base)))) {
                file.take(MAX_TIMES).read_to_end(&mut times)?;
            }
            moments.extend(times.chunks_exact(16).filter_map(Moment::decode));
        }
        Ok((moments, end))
    }

    /// Goes on where the last `lines` lines begin, unless it is there already.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn skip_to_last(&mut self, lines: usize) -> io::Result<()> {
        let mut starts = std::collections::VecDeque::new();
        let mut ahead = Reader { directory: self.directory.clone(), open: None, ..*self };
        ahead.enter()?;
        let mut at_start = true;
        loop {
            match ahead.part()? {
                Part::End => break,
                Part::Missing(_) => at_start = true,
                Part::Bytes(bytes) => {
                    let begin = ahead.at - bytes.len() as u64;
                    for (offset, byte) in (begin..).zip(bytes) {
                        if at_start {
                            starts.push_back(offset);
                            if starts.len() > lines {
                                starts.pop_front();
                            }
                        }
                        at_start = byte == b'\n';
                    }
                }
            }
        }
        self.at = starts.front().copied().unwrap_or(ahead.at);
        self.enter()
    }

    /// Opens the segment that holds the place.
    fn enter(&mut self) -> io::Result<()> {
        self.open = None;
        if let Some(base) = self.segments()?.into_iter().rfind(|base| *base <= self.at) {
            match File::open(self.directory.join(segment_name(self.name, base))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => self.open = Some((base, opened?)),
            }
        }
        Ok(())
    }

    /// Bytes of the segment that begins at `base`; none of one that is gone.
    fn length(&self, base: u64) -> u64 {
        fs::metadata(self.directory.join(segment_name(self.name, base))).map_or(0, |found| found.len())
    }

    /// Where the segments begin, in order.
    fn segments(&self) -> io::Result<Vec<u64>> {
        let mut bases = Vec::new();
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(bases),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(self.name)?.strip_prefix(".log")) else {
                continue;
            };
            match rest.strip_prefix('.') {
                None if rest.is_empty() => bases.push(0),
                Some(base) => bases.extend(base.parse::<u64>()),
                None => {}
            }
        }
        bases.sort_unstable();
        Ok(bases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn all(reader: &mut Reader) -> String {
        let mut text = String::new();
        loop {
            match reader.part().unwrap() {
                Part::Bytes(bytes) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
                Part::Missing(count) => text.push_str(&format!("<{count}>")),
                Part::End => return text,
            }
        }
    }

    fn directory(segments: &[(u64, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (base, text) in segments {
            fs::write(directory.path().join(segment_name("stdout", *base)), text).unwrap();
        }
        directory
    }

    #[test]
    fn a_stream_is_read_across_its_files_and_while_it_grows() {
        let directory = directory(&[(4, "e\nf\n"), (12, "g\n")]);
        let mut reader = Reader::new(directory.path(), "stdout");
        assert_eq!(all(&mut reader), "<4>e\nf\n<4>g\n");
        fs::write(directory.path().join(segment_name("stdout", 12)), "g\nh\n").unwrap();
        assert_eq!(all(&mut reader), "h\n");
        fs::write(directory.path().join(segment_name("stdout", 16)), "i").unwrap();
        assert_eq!(all(&mut reader), "i");
        assert_eq!(all(&mut Reader::new(directory.path(), "stderr")), "");
        fs::write(directory.path().join("stdout.log.x"), "noise").unwrap();
        fs::write(directory.path().join("stdout.logs"), "noise").unwrap();
        assert_eq!(all(&mut Reader::new(directory.path(), "stdout")), "<4>e\nf\n<4>g\nh\ni");
    }

    #[test]
    fn the_last_lines_are_found() {
        let directory = directory(&[(0, "a\nb"), (3, "c\n"), (5, "d\ne")]);
        for (lines, expected) in [(0, ""), (1, "e"), (2, "d\ne"), (3, "bc\nd\ne"), (9, "a\nbc\nd\ne")] {
            let mut reader = Reader::new(directory.path(), "stdout");
            reader.skip_to_last(lines).unwrap();
            assert_eq!(all(&mut reader), expected, "{lines}");
        }
    }

    #[test]
    fn moments_say_where_to_begin() {
        let directory = directory(&[(0, "old\nnew\n")]);
        let now = SystemTime::now();
        let soon = Moment { time: milliseconds(now) + 100_000, offset: 4 };
        fs::write(directory.path().join("stdout.log.times"), soon.encode()).unwrap();
        let from = |seconds| {
            let mut reader = Reader::new(directory.path(), "stdout");
            reader.skip_to(now + std::time::Duration::from_secs(seconds)).unwrap();
            all(&mut reader)
        };
        assert_eq!(
            (from(0), from(50), from(100), from(200)),
            ("old\nnew\n".into(), "new\n".into(), "new\n".into(), String::new())
        );
    }

    #[test]
    fn each_byte_has_the_time_of_the_moment_before_it() {
        let second = |second: u64, offset| Moment { time: second * 1000, offset };
        let times = Times(vec![second(10, 5), second(20, 8), second(30, 100)]);
        let of = |offset| times.of(offset).duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!([0, 5, 7, 8, 99, 100, u64::MAX].map(of), [10, 10, 10, 20, 20, 30, 30]);
        assert_eq!(Times(Vec::new()).of(3), UNIX_EPOCH);
    }

    proptest! {
        #[test]
        fn whatever_stands_in_a_list_of_moments_is_survived(times in proptest::collection::vec(any::<u8>(), 0..100)) {
            let directory = directory(&[(0, "abc")]);
            fs::write(directory.path().join("stdout.log.times"), times).unwrap();
            let mut reader = Reader::new(directory.path(), "stdout");
            reader.skip_to(SystemTime::now()).unwrap();
            all(&mut reader);
            assert!(reader.times().unwrap().of(1) >= UNIX_EPOCH);
        }
    }
}
