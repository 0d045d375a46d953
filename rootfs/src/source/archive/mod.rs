//! Images in one tar file: an index of its members, made in one pass over their headers, and the members' bytes, read
//! in place.
//!
//! Invariant: nothing is unpacked to disk, a member is named by the archive and opened by offset, and no name of it ever
//! reaches the file system. Where programs disagree about what an archive holds, it is refused.

mod docker;
mod oci;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::Errno;
use tar::Header;

use crate::limits::{LimitError, Limits};
use crate::printable::printable;
use crate::source::SourceError;
use crate::unpack::TarError;
use crate::unpack::archive::{BLOCK, checksum_is_right, unsigned, until_nul};
use crate::unpack::pax::Pax;

pub(crate) use docker::DockerArchive;
pub(crate) use oci::OciArchive;

/// Far above four members a layer, which is what `docker save` wrote at most.
const MEMBERS: u64 = 16 << 10;
/// Far above `blobs/sha512/…`: members hold no paths of their own.
const NAME_BYTES: u64 = 1024;
/// Links to links of members are made by nobody.
const LINKS: usize = 4;

/// Why a file is not an archive of images.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// No such file.
    #[error("image archive `{file}` does not exist")]
    Missing {
        /// The file.
        file: String,
    },
    /// Something blobs cannot be read from at any offset.
    #[error("image archive `{file}` is {kind}; it is read in many places, so write it to a regular file first")]
    NotAFile {
        /// The file.
        file: String,
        /// What it is.
        kind: &'static str,
    },
    /// Compressed as a whole.
    #[error("image archive `{file}` is compressed as a whole; it is read in place, so run `{command}` on it first")]
    Compressed {
        /// The file.
        file: String,
        /// What takes the compression away.
        command: &'static str,
    },
    /// Not a tar archive, or a damaged one.
    #[error("image archive `{file}` cannot be read as tar, at byte {at}")]
    Tar {
        /// The file.
        file: String,
        /// Where.
        at: u64,
        /// Why.
        source: TarError,
    },
    /// A member that has to be there.
    #[error("image archive `{file}` has no `{member}`{hint}")]
    NoMember {
        /// The file.
        file: String,
        /// Which.
        member: String,
        /// What to do, where that is known.
        hint: &'static str,
    },
    /// A member of which no bytes can be read.
    #[error("in the image archive `{file}`, `{member}` {reason}")]
    Member {
        /// The file.
        file: String,
        /// Which.
        member: String,
        /// Why not.
        reason: &'static str,
    },
}

/// Where the bytes of a member are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    offset: u64,
    size: u64,
}

#[derive(Debug)]
enum Member {
    File(Span),
    /// To another member, by its whole name.
    Link(String),
    Other,
}

/// An opened tar file and what is where in it.
struct Archive {
    file: File,
    shown: String,
    members: BTreeMap<String, Member>,
}

impl Archive {
    fn open(path: &Path) -> Result<Archive, SourceError> {
        let shown = printable(path.as_os_str().as_encoded_bytes());
        let io = |e: Errno| SourceError::Io { object: format!("image archive `{shown}`"), source: e.into() };
        // NONBLOCK, so that a FIFO does not hang us.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Err(ArchiveError::Missing { file: shown }.into()),
            other => other.map_err(io)?,
        };
        let stat = fstat(&file).map_err(io)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => None,
            FileType::Directory => Some("a directory"),
            FileType::Fifo | FileType::Socket => Some("a pipe"),
            _ => Some("a device"),
        };
        if let Some(kind) = kind {
            return Err(ArchiveError::NotAFile { file: shown, kind }.into());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut archive = Archive { file: file.into(), shown, members: BTreeMap::new() };
        archive.refuse_compressed()?;
        let mut walk = Walk { file: &archive.file, size, at: 0, headers: 0 };
        match walk.all() {
            Ok(members) => archive.members = members,
            Err(source) => return Err(ArchiveError::Tar { file: archive.shown, at: walk.at, source }.into()),
        }
        Ok(archive)
    }

    fn place(&self) -> String {
        format!("image archive `{}`", self.shown)
    }

    /// Says what a compressed archive is, which would else be a tar with a wrong checksum.
    fn refuse_compressed(&self) -> Result<(), SourceError> {
        let mut magic = [0; 6];
        let n = self.file.read_at(&mut magic, 0).map_err(|source| self.io("", source))?;
        let command = match magic.get(..n).unwrap_or_default() {
            [0x1f, 0x8b, ..] => "gunzip",
            [0x28, 0xb5, 0x2f, 0xfd, ..] => "unzstd",
            [0xfd, b'7', b'z', b'X', b'Z', 0] => "unxz",
            [b'B', b'Z', b'h', ..] => "bunzip2",
            _ => return Ok(()),
        };
        Err(ArchiveError::Compressed { file: self.shown.clone(), command }.into())
    }

    fn io(&self, member: &str, source: io::Error) -> SourceError {
        let member = printable(member.as_bytes());
        SourceError::Io { object: format!("{}, `{member}`", self.place()), source }
    }

    /// Where a member is, its links followed; `None` where it is not there.
    fn find(&self, name: &str) -> Result<Option<Span>, SourceError> {
        let refuse = |reason| {
            let (file, member) = (self.shown.clone(), printable(name.as_bytes()));
            Err(ArchiveError::Member { file, member, reason }.into())
        };
        let mut at = normal(name.as_bytes());
        for _ in 0..=LINKS {
            match at.as_deref().and_then(|at| self.members.get(at)) {
                None => return Ok(None),
                Some(Member::File(span)) => return Ok(Some(*span)),
                Some(Member::Link(to)) => at = Some(to.clone()),
                Some(Member::Other) => return refuse("is not a plain file"),
            }
        }
        refuse("is a link to a link to a link")
    }

    fn need(&self, name: &str, hint: &'static str) -> Result<Span, SourceError> {
        self.find(name)?.ok_or_else(|| {
            let (file, member) = (self.shown.clone(), printable(name.as_bytes()));
            ArchiveError::NoMember { file, member, hint }.into()
        })
    }

    fn reader(&self, span: Span) -> Reader<'_> {
        Reader { file: &self.file, at: span.offset, left: span.size }
    }

    /// All of a member that is a document.
    fn document(&self, name: &str, span: Span, limits: &Limits) -> Result<Vec<u8>, SourceError> {
        let object = || format!("`{}` in the {}", printable(name.as_bytes()), self.place());
        SourceError::limit("document-bytes", span.size, limits.document_bytes, object)?;
        let mut bytes = Vec::with_capacity(usize::try_from(span.size).unwrap_or(0));
        self.reader(span).read_to_end(&mut bytes).map_err(|source| self.io(name, source))?;
        Ok(bytes)
    }
}

/// The bytes of a member.
struct Reader<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut buf[..most], self.at)?;
        if n == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive became shorter while it was read"));
        }
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

/// One pass over the headers of a tar file.
struct Walk<'a> {
    file: &'a File,
    size: u64,
    at: u64,
    headers: u64,
}

/// What extension records said about the next member.
#[derive(Default)]
struct Pending {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Walk<'_> {
    fn all(&mut self) -> Result<BTreeMap<String, Member>, TarError> {
        let mut members = BTreeMap::new();
        let mut pending = Pending::default();
        while let Some(header) = self.header()? {
            let old = header.as_old();
            let flag = old.linkflag[0];
            let data = self.at + BLOCK;
            // A PAX size is that of the next file, never of a record before it.
            let own = if matches!(flag, b'L' | b'K' | b'x' | b'g') { None } else { pending.pax.as_ref() };
            let size = match (flag, own.and_then(|pax| pax.size)) {
                // The size of a link is that of its target for some writers; no data follows.
                (b'1', _) => 0,
                (_, Some(size)) => size,
                (_, None) => unsigned(&old.size, "size")?,
            };
            let end = data.checked_add(size).filter(|end| *end <= self.size);
            let end = end.ok_or(TarError::Truncated("a member's data"))?;
            let twice = |seen: bool| match seen {
                true => Err(TarError::Ambiguous("two records of one kind for one member")),
                false => Ok(()),
            };
            match flag {
                b'L' => {
                    twice(pending.long_name.is_some())?;
                    pending.long_name = Some(until_nul(&self.record(data, size)?).to_vec());
                }
                b'K' => {
                    twice(pending.long_link.is_some())?;
                    pending.long_link = Some(until_nul(&self.record(data, size)?).to_vec());
                }
                b'x' => {
                    twice(pending.pax.is_some())?;
                    pending.pax = Some(Pax::parse(&self.record(data, size)?)?);
                }
                b'g' => {
                    if Pax::parse(&self.record(data, size)?)?.changes_layout() {
                        return Err(TarError::Ambiguous("a global PAX record that sets a path or a size"));
                    }
                }
                flag => {
                    let span = Span { offset: data, size };
                    let member = named(&header, flag, std::mem::take(&mut pending), span)?;
                    if let Some((name, member)) = member
                        && members.insert(name, member).is_some()
                    {
                        return Err(TarError::Ambiguous("two members of one name: programs disagree on which counts"));
                    }
                }
            }
            // Some writers leave the last padding out.
            self.at = end.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX).min(self.size.max(end));
        }
        Ok(members)
    }

    /// The next header; `None` at a zero block or at the end of the file.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        if self.at >= self.size {
            return Ok(None);
        }
        let mut header = Header::new_old();
        self.read(header.as_mut_bytes(), self.at)?;
        if header.as_bytes().iter().all(|b| *b == 0) {
            return Ok(None);
        }
        self.headers += 1;
        LimitError::check("members of an image archive", self.headers, MEMBERS)?;
        if checksum_is_right(&header) { Ok(Some(header)) } else { Err(TarError::Checksum(self.headers)) }
    }

    fn record(&self, at: u64, size: u64) -> Result<Vec<u8>, TarError> {
        // A record may hold a name and a link beside attributes that are of no interest here.
        LimitError::check("bytes of a PAX record or long name", size, 64 * NAME_BYTES)?;
        let mut record = vec![0; usize::try_from(size).map_err(|_range| TarError::Number("size"))?];
        self.read(&mut record, at)?;
        Ok(record)
    }

    fn read(&self, into: &mut [u8], at: u64) -> Result<(), TarError> {
        self.file.read_exact_at(into, at).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Truncated("a header"),
            _ => TarError::Stream(crate::stream::StreamError::Read(e)),
        })
    }
}

/// A member by its name; `None` for a directory.
fn named(header: &Header, flag: u8, pending: Pending, span: Span) -> Result<Option<(String, Member)>, TarError> {
    let pax = pending.pax.unwrap_or_default();
    let name = match (pending.long_name, pax.path) {
        (Some(name), _) | (None, Some(name)) => name,
        (None, None) => header.path_bytes().into_owned(),
    };
    let link = match (pending.long_link, pax.link) {
        (Some(link), _) | (None, Some(link)) => link,
        (None, None) => until_nul(&header.as_old().linkname).to_vec(),
    };
    let longest = name.len().max(link.len()) as u64;
    LimitError::check("bytes of a member's name", longest, NAME_BYTES)?;
    // A name outside the archive cannot be asked for, so it is of no interest.
    let Some(known) = normal(&name) else { return Ok(None) };
    let link_or_other = |to: Option<String>| to.map_or(Member::Other, Member::Link);
    let member = match flag {
        b'0' | b'\0' if name.ends_with(b"/") => return Ok(None),
        b'5' => return Ok(None),
        b'0' | b'\0' | b'7' if !pax.sparse => Member::File(span),
        b'1' => link_or_other(normal(&link)),
        b'2' if link.starts_with(b"/") => Member::Other,
        b'2' => {
            let above = known.rsplit_once('/').map_or("", |(above, _)| above);
            link_or_other(normal(&[above.as_bytes(), b"/", &link].concat()))
        }
        _ => Member::Other,
    };
    Ok(Some((known, member)))
}

/// A member's name without `.`, `..` and empty parts; `None` for one outside the archive or that is no text.
fn normal(name: &[u8]) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in std::str::from_utf8(name).ok()?.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop()?,
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}
