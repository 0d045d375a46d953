//! A layer's archive on its way to a file: entries through tar, hash, zstd and hash again.
//!
//! ustar headers, and PAX records for what does not fit: long names, nanoseconds, attributes, holes (GNU's sparse format
//! 1.0). Invariant: every owner is 0:0, so that an archive depends on what was written and not on who wrote it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use tar::{Builder, EntryType, Header};

use crate::digest::{Digest, Hasher};

/// Bytes between two looks at whether to go on.
const LOOK_EVERY: u64 = 1 << 20;
/// Bytes of a name in a header.
const NAME: usize = 100;
const BLOCK: usize = 512;

/// Seconds since the epoch, and nanoseconds.
pub(super) type Mtime = (i64, u32);

/// What an entry is, but for its data.
#[derive(Debug)]
pub(super) struct Meta<'m> {
    /// Without a slash at either end.
    pub(super) path: &'m [u8],
    pub(super) kind: EntryType,
    pub(super) mode: u32,
    pub(super) mtime: Mtime,
    /// Target of a link.
    pub(super) link: Option<&'m [u8]>,
    pub(super) xattrs: &'m [(String, Vec<u8>)],
}

/// The digests of what was written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) diff_id: Digest,
}

type Compressed = zstd::stream::write::Encoder<'static, Hashed<File>>;

pub(super) struct Writer<'s> {
    tar: Builder<Watched<'s>>,
}

impl<'s> Writer<'s> {
    /// `stop` is asked now and then, and ends the writing.
    pub(super) fn new(file: File, stop: &'s mut dyn FnMut() -> bool) -> io::Result<Writer<'s>> {
        let zstd = Compressed::new(Hashed::new(file), zstd::DEFAULT_COMPRESSION_LEVEL)?;
        Ok(Writer { tar: Builder::new(Watched { to: Hashed::new(zstd), stop, looked: 0 }) })
    }

    /// An entry without data.
    pub(super) fn entry(&mut self, meta: &Meta<'_>) -> io::Result<()> {
        self.append(meta, Vec::new(), 0, io::empty())
    }

    /// A file, `size` bytes long; `segments` are offsets and lengths of what is in it between its holes.
    pub(super) fn file(&mut self, meta: &Meta<'_>, file: &File, size: u64, segments: &[(u64, u64)]) -> io::Result<()> {
        let stored: u64 = segments.iter().map(|(_, length)| length).sum();
        let data = Segments { file, left: segments.iter().rev().copied().collect() };
        if stored == size {
            return self.append(meta, Vec::new(), size, data);
        }
        let mut map = format!("{}\n", segments.len());
        for (offset, length) in segments {
            map.push_str(&format!("{offset}\n{length}\n"));
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK), 0);
        let records = vec![
            ("GNU.sparse.major", b"1".to_vec()),
            ("GNU.sparse.minor", b"0".to_vec()),
            ("GNU.sparse.name", meta.path.to_vec()),
            ("GNU.sparse.realsize", size.to_string().into_bytes()),
        ];
        let on_tape = stored + map.len() as u64;
        self.append(meta, records, on_tape, map.chain(data))
    }

    fn append(
        &mut self,
        meta: &Meta<'_>,
        mut records: Vec<(&str, Vec<u8>)>,
        size: u64,
        data: impl Read,
    ) -> io::Result<()> {
        let mut header = Header::new_ustar();
        let mut path = meta.path.to_vec();
        if meta.kind == EntryType::Directory {
            path.push(b'/');
        }
        let old = header.as_old_mut();
        if !fill(&mut old.name, &path) && records.is_empty() {
            records.push(("path", path));
        }
        if let Some(link) = meta.link
            && !fill(&mut old.linkname, link)
        {
            records.push(("linkpath", link.to_vec()));
        }
        let (seconds, nanoseconds) = meta.mtime;
        header.set_mtime(u64::try_from(seconds).unwrap_or_default());
        if seconds < 0 || nanoseconds > 0 {
            records.push(("mtime", decimal(meta.mtime).into_bytes()));
        }
        header.set_entry_type(meta.kind);
        header.set_mode(meta.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        header.set_cksum();
        let xattrs: Vec<(String, &[u8])> =
            meta.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice())).collect();
        let records = records.iter().map(|(key, value)| (*key, value.as_slice()));
        self.tar.append_pax_extensions(records.chain(xattrs.iter().map(|(key, value)| (key.as_str(), *value))))?;
        self.tar.append(&header, data)
    }

    /// Whether writing ended because it was asked to.
    pub(super) fn is_stopped(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Stopped>())
    }

    /// Writes what ends the archive. Nobody waits for the disk: what a crash of the machine damages, its digest tells.
    pub(super) fn finish(self) -> io::Result<Written> {
        let diff = self.tar.into_inner()?.to;
        let blob = diff.to.finish()?;
        Ok(Written { digest: blob.hasher.finish(), size: blob.bytes, diff_id: diff.hasher.finish() })
    }
}

/// Puts a name into a header's field, as much of it as fits; whether that is all.
///
/// A name is not cut after a slash: readers take a file whose header ends in one for a directory.
fn fill(field: &mut [u8; NAME], name: &[u8]) -> bool {
    let fits = name.len() <= NAME;
    let mut part = &name[..name.len().min(NAME)];
    while let (false, [rest @ .., b'/']) = (fits, part) {
        part = rest;
    }
    field[..part.len()].copy_from_slice(part);
    fits
}

/// As PAX has it: a fraction counts away from zero.
fn decimal((seconds, nanoseconds): Mtime) -> String {
    match (seconds, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanoseconds:09}"),
        _ => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
    }
}

/// Writes on, and hashes.
struct Hashed<W> {
    to: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(to: W) -> Hashed<W> {
        Hashed { to, hasher: Hasher::sha256(), bytes: 0 }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Writes on until it is to stop.
struct Watched<'s> {
    to: Hashed<Compressed>,
    stop: &'s mut dyn FnMut() -> bool,
    looked: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Stopped;

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.to.bytes >= self.looked {
            self.looked = self.to.bytes + LOOK_EVERY;
            if (self.stop)() {
                return Err(io::Error::other(Stopped));
            }
        }
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The data of a file without its holes.
struct Segments<'f> {
    file: &'f File,
    /// Offsets and lengths, the last first.
    left: Vec<(u64, u64)>,
}

impl Read for Segments<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some((offset, length)) = self.left.last_mut() else { return Ok(0) };
            if *length == 0 {
                self.left.pop();
                continue;
            }
            let most = usize::try_from(*length).unwrap_or(usize::MAX).min(buffer.len());
            match self.file.read_at(&mut buffer[..most], *offset) {
                Ok(0) if most > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    *offset += n as u64;
                    *length -= n as u64;
                    return Ok(n);
                }
                Err(error) => return Err(error),
            }
        }
    }
}
