//! The tar reader: headers and extension records in, [`Entry`] out, nothing written.
//!
//! The `tar` crate supplies the header layout only. Its own iterator reads long names without a bound and cuts PAX
//! records at newlines, which loses a `size` that follows a binary attribute. Invariant: where GNU tar, bsdtar and Go
//! disagree about what an archive holds (RUSTSEC-2026-0068, CVE-2025-62518), it is refused.

use std::collections::BTreeMap;

use tar::Header;

use super::pax::{Pax, PaxError};
use crate::limits::{LimitError, Limits};
use crate::printable::printable;
use crate::stream::{LayerStream, StreamError};

pub(crate) const BLOCK: u64 = 512;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The bytes could not be had.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A limit.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The archive breaks off.
    #[error("the archive breaks off inside {0}")]
    Truncated(&'static str),
    /// A header whose checksum is wrong.
    #[error("header number {0} has a wrong checksum")]
    Checksum(u64),
    /// A number field that is none.
    #[error("the header's {0} is not a number")]
    Number(&'static str),
    /// A PAX record.
    #[error("the PAX record is malformed: {0}")]
    Pax(&'static str),
    /// Records that describe nothing, or the same thing twice.
    #[error("{0}")]
    Ambiguous(&'static str),
    /// Data where none can be.
    #[error("{0} that says it holds data: programs disagree on where the next entry starts")]
    UnexpectedData(&'static str),
    /// An entry type this does not know.
    #[error("the entry type `{0}` is not supported")]
    Type(String),
    /// A sparse map that contradicts itself.
    #[error("the sparse map is malformed: {0}")]
    Sparse(&'static str),
}

impl From<PaxError> for TarError {
    fn from(error: PaxError) -> TarError {
        TarError::Pax(error.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    Directory,
    Fifo,
    Device,
}

/// Seconds and nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mtime {
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
}

/// Where the data of a sparse file goes.
#[derive(Debug)]
pub(super) struct Sparse {
    pub(super) real_size: u64,
    /// Offset and length, ascending, together as long as the stored data.
    pub(super) segments: Vec<(u64, u64)>,
}

#[derive(Debug)]
pub(super) struct Entry {
    /// As in the archive: unchecked.
    pub(super) untrusted_path: Vec<u8>,
    /// Target of a hard link or symlink: unchecked.
    pub(super) untrusted_link: Vec<u8>,
    pub(super) kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub(super) mode: u32,
    pub(super) mtime: Mtime,
    /// Bytes of data that follow in the archive.
    pub(super) size: u64,
    pub(super) sparse: Option<Sparse>,
    /// `user.*` attributes; others are counted only.
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) dropped_xattrs: u64,
}

pub(super) struct Archive<'s> {
    pub(super) stream: LayerStream<'s>,
    limits: &'s Limits,
    headers: u64,
    /// A PAX record was read.
    has_pax: bool,
    /// Bytes of the current entry's data not yet taken, and of its padding.
    data: u64,
    padding: u64,
}

/// What extension headers said about the next entry.
#[derive(Default)]
struct Pending {
    pax: Option<Pax>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<'s> Archive<'s> {
    pub(super) fn new(stream: LayerStream<'s>, limits: &'s Limits) -> Archive<'s> {
        Archive { stream, limits, headers: 0, has_pax: false, data: 0, padding: 0 }
    }

    /// Headers read so far.
    pub(super) fn headers(&self) -> u64 {
        self.headers
    }

    /// The next entry; the data of the one before is skipped where it was not taken.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut pending = Pending::default();
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else {
                if pending.pax.is_some() || pending.long_path.is_some() || pending.long_link.is_some() {
                    return Err(TarError::Ambiguous("the archive ends after a record that describes a next entry"));
                }
                return Ok(None);
            };
            let twice = |seen: bool, what| if seen { Err(TarError::Ambiguous(what)) } else { Ok(()) };
            let old = header.as_old();
            match old.linkflag[0] {
                // PAX and GNU records describe the next *file*, never the records in between: a PAX size does not
                // apply to an `L` header.
                b'L' => {
                    twice(pending.long_path.is_some(), "two long names for one entry")?;
                    pending.long_path = Some(until_nul(&self.record(&old.size)?).to_vec());
                }
                b'K' => {
                    twice(pending.long_link.is_some(), "two long link targets for one entry")?;
                    pending.long_link = Some(until_nul(&self.record(&old.size)?).to_vec());
                }
                b'x' => {
                    twice(pending.pax.is_some(), "two PAX records for one entry")?;
                    self.has_pax = true;
                    pending.pax = Some(Pax::parse(&self.record(&old.size)?)?);
                }
                b'g' => {
                    // Go and containerd ignore global records, GNU tar obeys them.
                    self.has_pax = true;
                    if Pax::parse(&self.record(&old.size)?)?.changes_layout() {
                        return Err(TarError::Ambiguous("a global PAX record that sets a path or a size"));
                    }
                }
                flag => return self.entry(&header, flag, pending).map(Some),
            }
        }
    }

    fn entry(&mut self, header: &Header, flag: u8, pending: Pending) -> Result<Entry, TarError> {
        let old = header.as_old();
        let mut pax = pending.pax.unwrap_or_default();
        let mut size = match pax.size {
            Some(size) => size,
            None => unsigned(&old.size, "size")?,
        };
        // GNU tar believes the PAX record, bsdtar and Go the long name.
        let untrusted_path = match (pending.long_path, pax.path.take()) {
            (Some(_), Some(_)) => return Err(TarError::Ambiguous("two names for one entry, a long one and a PAX one")),
            (Some(path), None) | (None, Some(path)) => path,
            (None, None) => header.path_bytes().into_owned(),
        };
        let untrusted_link = match (pending.long_link, pax.link.take()) {
            (Some(_), Some(_)) => return Err(TarError::Ambiguous("two link targets for one entry")),
            (Some(link), None) | (None, Some(link)) => link,
            (None, None) => until_nul(&old.linkname).to_vec(),
        };
        let kind = match flag {
            // Before POSIX, a directory was a file whose name ends in a slash.
            b'0' | b'\0' if untrusted_path.ends_with(b"/") => Kind::Directory,
            b'0' | b'\0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(TarError::Type(printable(&[other]))),
        };
        match kind {
            Kind::File => {}
            _ if size == 0 => {}
            // bsdtar reads data there as soon as it has seen a PAX record; GNU tar and Go never do.
            Kind::HardLink if self.has_pax => return Err(TarError::UnexpectedData("a hard link")),
            // The size of a link is that of its target for some old writers; no data follows.
            Kind::HardLink => size = 0,
            Kind::Symlink => return Err(TarError::UnexpectedData("a symlink")),
            Kind::Directory => return Err(TarError::UnexpectedData("a directory")),
            Kind::Fifo | Kind::Device => return Err(TarError::UnexpectedData("a FIFO or device")),
        }
        let mut entry = Entry {
            untrusted_path,
            untrusted_link,
            kind,
            mode: u32::try_from(signed(&old.mode, "mode")? & 0o7777).map_err(|_range| TarError::Number("mode"))?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => Mtime { seconds: signed(&old.mtime, "mtime")?, nanoseconds: 0 },
            },
            size,
            sparse: None,
            xattrs: std::mem::take(&mut pax.xattrs),
            dropped_xattrs: pax.dropped_xattrs.len() as u64,
        };
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK;
        if flag == b'S' {
            self.gnu_sparse(header, &mut entry)?;
        } else if pax.sparse {
            if entry.kind != Kind::File {
                return Err(TarError::Ambiguous("a sparse map for what is not a file"));
            }
            match pax.sparse_version {
                (Some(1), Some(0)) => self.pax_sparse(pax, &mut entry)?,
                (None, None) | (Some(0), Some(0 | 1)) => pax_sparse_0(pax, &mut entry)?,
                _ => return Err(TarError::Sparse("only the GNU formats old, 0.0, 0.1 and 1.0 are known")),
            }
        }
        Ok(entry)
    }

    /// The next header; `None` at a zero block or at the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        if self.stream.peek()?.is_empty() {
            // Some writers leave the trailer out; GNU tar and Go accept that.
            return Ok(None);
        }
        self.read_exact(header.as_mut_bytes(), "a header")?;
        let bytes = header.as_bytes();
        if bytes.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        self.headers += 1;
        LimitError::check("entries", self.headers, self.limits.entries)?;
        if !checksum_is_right(&header) {
            return Err(TarError::Checksum(self.headers));
        }
        Ok(Some(header))
    }

    /// The data of an extension record.
    fn record(&mut self, size_field: &[u8]) -> Result<Vec<u8>, TarError> {
        let size = unsigned(size_field, "size")?;
        LimitError::check("record-bytes", size, self.limits.record_bytes)?;
        let mut record = vec![0; usize::try_from(size).map_err(|_range| TarError::Number("size"))?];
        self.read_exact(&mut record, "a PAX record or long name")?;
        self.padding = size.wrapping_neg() % BLOCK;
        Ok(record)
    }

    /// Old GNU sparse: four segments in the header, more in blocks that follow it.
    fn gnu_sparse(&mut self, header: &Header, entry: &mut Entry) -> Result<(), TarError> {
        let gnu = header.as_gnu().ok_or(TarError::Sparse("the header is not GNU's"))?;
        let mut segments = Vec::new();
        let mut add = |offset: &[u8], length: &[u8]| -> Result<(), TarError> {
            if offset[0] != 0 && length[0] != 0 {
                segments.push((unsigned(offset, "sparse offset")?, unsigned(length, "sparse length")?));
            }
            Ok(())
        };
        for segment in &gnu.sparse {
            add(&segment.offset, &segment.numbytes)?;
        }
        let mut more = gnu.isextended[0] != 0;
        let mut map_bytes = 0;
        while more {
            map_bytes += BLOCK;
            LimitError::check("record-bytes", map_bytes, self.limits.record_bytes)?;
            let mut block = tar::GnuExtSparseHeader::new();
            self.read_exact(block.as_mut_bytes(), "a sparse map")?;
            for segment in block.sparse() {
                add(&segment.offset, &segment.numbytes)?;
            }
            more = block.isextended[0] != 0;
        }
        entry.sparse = Some(Sparse::checked(unsigned(&gnu.realsize, "real size")?, segments, entry.size)?);
        Ok(())
    }

    /// GNU's sparse format 1.0 in PAX, what `tar --format=pax --sparse` writes: the map leads the data.
    fn pax_sparse(&mut self, pax: Pax, entry: &mut Entry) -> Result<(), TarError> {
        if !pax.sparse_map.is_empty() {
            return Err(TarError::Sparse("there are two"));
        }
        let real_size = pax.sparse_real_size.ok_or(TarError::Sparse("it has no real size"))?;
        entry.untrusted_path = pax.sparse_name.ok_or(TarError::Sparse("it has no name"))?;
        let mut numbers: Vec<u64> = Vec::new();
        let mut digits = String::new();
        let mut map_bytes = 0;
        // The count comes first, then twice as many numbers.
        while numbers.first().is_none_or(|count| (numbers.len() as u64 - 1) / 2 < *count) {
            map_bytes += BLOCK;
            LimitError::check("record-bytes", map_bytes, self.limits.record_bytes)?;
            let mut block = [0; 512];
            self.data = self.data.checked_sub(BLOCK).ok_or(TarError::Sparse("it is longer than the entry"))?;
            self.read_exact(&mut block, "a sparse map")?;
            for byte in block {
                match byte {
                    b'0'..=b'9' if digits.len() < 20 => digits.push(char::from(byte)),
                    b'\n' => {
                        numbers.push(digits.parse().map_err(|_e| TarError::Sparse("a number is not one"))?);
                        digits.clear();
                    }
                    0 => break,
                    _ => return Err(TarError::Sparse("a number is not one")),
                }
            }
        }
        let segments = segments(numbers.get(1..).unwrap_or_default());
        let exact = numbers.len() == 1 + 2 * segments.len();
        if !exact || numbers.first().copied() != Some(segments.len() as u64) || !digits.is_empty() {
            return Err(TarError::Sparse("its count is wrong"));
        }
        entry.size = self.data;
        entry.sparse = Some(Sparse::checked(real_size, segments, entry.size)?);
        Ok(())
    }

    /// The next bytes of the current entry's data; empty at its end.
    pub(super) fn data(&mut self) -> Result<&[u8], TarError> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let left = usize::try_from(self.data).unwrap_or(usize::MAX);
        let chunk = self.stream.peek()?;
        if chunk.is_empty() {
            return Err(TarError::Truncated("an entry's data"));
        }
        Ok(&chunk[..chunk.len().min(left)])
    }

    /// Takes `n` bytes of what [`Archive::data`] returned.
    pub(super) fn consume(&mut self, n: usize) {
        self.stream.consume(n);
        self.data = self.data.saturating_sub(n as u64);
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        loop {
            let n = self.data()?.len();
            if n == 0 {
                break;
            }
            self.consume(n);
        }
        let mut padding = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or(0);
        while padding > 0 {
            let n = self.stream.peek()?.len().min(padding);
            if n == 0 {
                // Some writers (umoci insert) leave the last padding out, and the end after it.
                break;
            }
            self.stream.consume(n);
            padding -= n;
        }
        Ok(())
    }

    fn read_exact(&mut self, mut into: &mut [u8], what: &'static str) -> Result<(), TarError> {
        while !into.is_empty() {
            let chunk = self.stream.peek()?;
            let n = chunk.len().min(into.len());
            if n == 0 {
                return Err(TarError::Truncated(what));
            }
            into[..n].copy_from_slice(&chunk[..n]);
            into = &mut into[n..];
            self.stream.consume(n);
        }
        Ok(())
    }
}

/// GNU's sparse formats 0.0 and 0.1: the map is in the PAX record, the data as in the old format.
fn pax_sparse_0(pax: Pax, entry: &mut Entry) -> Result<(), TarError> {
    let segments = segments(&pax.sparse_map);
    let exact = pax.sparse_map.len() == 2 * segments.len();
    // With a size alone, GNU tar takes the entry for an ordinary file.
    if !exact || segments.is_empty() || pax.sparse_count != Some(segments.len() as u64) {
        return Err(TarError::Sparse("its count is wrong"));
    }
    // Format 0.0 has the name where it always is.
    if let Some(name) = pax.sparse_name {
        entry.untrusted_path = name;
    }
    let real_size = pax.sparse_real_size.ok_or(TarError::Sparse("it has no real size"))?;
    entry.sparse = Some(Sparse::checked(real_size, segments, entry.size)?);
    Ok(())
}

/// Offsets and lengths in turn.
fn segments(numbers: &[u64]) -> Vec<(u64, u64)> {
    numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
}

impl Sparse {
    fn checked(real_size: u64, segments: Vec<(u64, u64)>, stored: u64) -> Result<Sparse, TarError> {
        let mut end = 0u64;
        let mut data = 0u64;
        for (offset, length) in &segments {
            // Each segment starts a block in the archive, so only the last may be uneven.
            if *offset < end || (*length != 0 && !data.is_multiple_of(BLOCK)) {
                return Err(TarError::Sparse("segments overlap or are uneven"));
            }
            end = offset.checked_add(*length).ok_or(TarError::Sparse("a segment ends beyond 2^64"))?;
            data = data.checked_add(*length).ok_or(TarError::Sparse("segments are longer than 2^64"))?;
        }
        if end > real_size || data != stored {
            return Err(TarError::Sparse("segments and sizes disagree"));
        }
        Ok(Sparse { real_size, segments })
    }
}

/// Whether a header is one: its checksum is taken with its own field as eight spaces.
pub(crate) fn checksum_is_right(header: &Header) -> bool {
    let sum: u64 = header.as_bytes().iter().map(|b| u64::from(*b)).sum();
    let field = header.as_old().cksum;
    let field_sum: u64 = field.iter().map(|b| u64::from(*b)).sum();
    unsigned(&field, "checksum").ok() == Some(sum - field_sum + 8 * 32)
}

pub(crate) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

pub(crate) fn unsigned(field: &[u8], what: &'static str) -> Result<u64, TarError> {
    u64::try_from(signed(field, what)?).map_err(|_negative| TarError::Number(what))
}

/// A header number: octal between spaces and NULs, blank for 0, or GNU's base-256 two's complement.
fn signed(field: &[u8], what: &'static str) -> Result<i64, TarError> {
    let bad = || TarError::Number(what);
    let first = *field.first().ok_or_else(bad)?;
    if first & 0x80 != 0 {
        // Bit 0x40 of the first byte is the sign.
        let mut value: i64 = if first & 0x40 != 0 { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = if at == 0 && first & 0x40 == 0 { byte & 0x7f } else { *byte };
            value = value.checked_mul(256).ok_or_else(bad)? | i64::from(byte);
        }
        return Ok(value);
    }
    let text = until_nul(field).trim_ascii();
    if text.iter().any(|b| !matches!(b, b'0'..=b'7')) || text.len() > 20 {
        return Err(bad());
    }
    text.iter().try_fold(0i64, |value, b| value.checked_mul(8).map(|v| v | i64::from(b - b'0'))).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (field, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b" 644 \0", Some(0o644)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"\0\0\0\0", Some(0)),
            (b"    ", Some(0)),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"-1\0", None),
            (b"+1\0", None),
            (b"8\0", None),
            (b"1 1\0", None),
        ] {
            assert_eq!(signed(field, "x").ok(), want, "{field:x?}");
        }
        assert!(unsigned(b"\xff\xff\xff\xff\xff\xff\xff\xff", "x").is_err());
    }

    #[test]
    fn sparse_maps_are_consistent_or_refused() {
        assert!(Sparse::checked(4096, vec![(0, 512), (2048, 100)], 612).is_ok());
        assert!(Sparse::checked(4096, vec![], 0).is_ok());
        for (size, segments, stored) in [
            (100, vec![(0, 512)], 512),
            (4096, vec![(512, 512), (0, 512)], 1024),
            (4096, vec![(0, 512), (256, 512)], 1024),
            (4096, vec![(0, 100), (1024, 512)], 612),
            (4096, vec![(0, 512)], 513),
            (u64::MAX, vec![(u64::MAX, 512)], 512),
        ] {
            assert!(Sparse::checked(size, segments, stored).is_err());
        }
    }
}
