//! One layer of an image: what goes into its archive, and the archive's way through hash, compressor, hash and file.
//!
//! Headers are built here and not by `tar::Builder`'s path functions, because those refuse the names (`..`, absolute)
//! that tests exist to try.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use tempfile::NamedTempFile;

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// A plain tar archive.
    Plain,
    /// gzip, fast level.
    #[default]
    Gzip,
    /// Zstandard, level 1.
    Zstd,
}

impl Compression {
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// These bytes as one member or frame.
    fn apply(self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(bytes.to_vec()),
            Self::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(bytes)?;
                gzip.finish()
            }
            Self::Zstd => {
                let mut zstd = zstd::Encoder::new(Vec::new(), 1)?;
                // 8 MiB, as Go's writers of images have it.
                zstd.window_log(23)?;
                zstd.write_all(bytes)?;
                zstd.finish()
            }
        }
    }
}

/// What a layer is made from.
#[derive(Debug, Clone)]
pub enum Layer {
    /// Archive entries in this order.
    Entries(Vec<Entry>),
    /// Everything below a directory of this machine, sorted by name, owned by 0:0, hard links as separate files.
    Tree(PathBuf),
    /// The bytes of an archive, or of something that is not quite one.
    Raw(Vec<u8>),
    /// The bytes of an archive but its end, so many times: each time compressed apart, a gzip member or zstd frame. However
    /// large it becomes, it is never held in memory.
    Repeated(Vec<u8>, usize),
    /// A blob that is compressed already, and the archive it should turn into; the compression only names its type.
    Stored {
        /// The bytes as they are stored.
        blob: Vec<u8>,
        /// What the DiffID is taken of.
        archive: Vec<u8>,
    },
}

/// One archive entry, written as it is given.
#[derive(Debug, Clone)]
pub struct Entry {
    name: Vec<u8>,
    header: Header,
    link: Option<Vec<u8>>,
    contents: Vec<u8>,
    claimed: Option<u64>,
    base256: bool,
    pax: Vec<(String, Vec<u8>)>,
}

impl Entry {
    /// An entry of any type; the type byte decides what the link and the contents mean.
    #[must_use]
    pub fn new(name: &str, kind: EntryType) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        Self {
            name: name.into(),
            header,
            link: None,
            contents: Vec::new(),
            claimed: None,
            base256: false,
            pax: Vec::new(),
        }
    }

    /// A directory, 0755.
    #[must_use]
    pub fn dir(name: &str) -> Self {
        Self::new(name, EntryType::Directory).mode(0o755)
    }

    /// A regular file, 0644.
    #[must_use]
    pub fn file(name: &str, contents: impl AsRef<[u8]>) -> Self {
        let mut entry = Self::new(name, EntryType::Regular);
        entry.contents = contents.as_ref().to_vec();
        entry
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(name: &str, target: &str) -> Self {
        Self::new(name, EntryType::Symlink).mode(0o777).link(target)
    }

    /// A hard link.
    #[must_use]
    pub fn hardlink(name: &str, target: &str) -> Self {
        Self::new(name, EntryType::Link).link(target)
    }

    /// A named pipe.
    #[must_use]
    pub fn fifo(name: &str) -> Self {
        Self::new(name, EntryType::Fifo)
    }

    /// A character device.
    #[must_use]
    pub fn char_device(name: &str, major: u32, minor: u32) -> Self {
        let mut entry = Self::new(name, EntryType::Char);
        if let Some(header) = entry.header.as_gnu_mut() {
            header.set_device_major(major);
            header.set_device_minor(minor);
        }
        entry
    }

    /// The whiteout that deletes `path` of the layers below.
    #[must_use]
    pub fn whiteout(path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').map_or(("", path), |(p, n)| (p, n));
        let slash = if parent.is_empty() { "" } else { "/" };
        Self::file(&format!("{parent}{slash}.wh.{name}"), "")
    }

    /// The whiteout that hides what the layers below have in `dir`.
    #[must_use]
    pub fn opaque(dir: &str) -> Self {
        Self::file(&format!("{dir}/.wh..wh..opq"), "")
    }

    /// Mode bits.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.header.set_mode(mode);
        self
    }

    /// Owner and group.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.header.set_uid(uid);
        self.header.set_gid(gid);
        self
    }

    /// Modification time in seconds since the epoch.
    #[must_use]
    pub fn mtime(mut self, seconds: u64) -> Self {
        self.header.set_mtime(seconds);
        self
    }

    /// Link target.
    #[must_use]
    pub fn link(mut self, target: &str) -> Self {
        self.link = Some(target.into());
        self
    }

    /// The size that its header claims, whatever the contents are.
    #[must_use]
    pub fn claims(mut self, size: u64) -> Self {
        self.claimed = Some(size);
        self
    }

    /// The type byte, also one that no [`EntryType`] has.
    #[must_use]
    pub fn kind(mut self, kind: u8) -> Self {
        self.header.set_entry_type(EntryType::new(kind));
        self
    }

    /// The size that its header claims as GNU's base-256 number.
    #[must_use]
    pub fn base256_size(mut self, size: u64) -> Self {
        self.claimed = Some(size);
        self.base256 = true;
        self
    }

    /// No entry, but the block of zeros that ends an archive.
    #[must_use]
    pub fn zeros() -> Self {
        let mut entry = Self::new("", EntryType::Regular);
        entry.header.as_mut_bytes().fill(0);
        entry
    }

    /// A PAX record before the entry, `SCHILY.xattr.…` for an extended attribute.
    #[must_use]
    pub fn pax(mut self, key: &str, value: &[u8]) -> Self {
        self.pax.push((key.to_owned(), value.to_owned()));
        self
    }

    fn append(&self, out: &mut Builder<impl Write>) -> io::Result<()> {
        if !self.pax.is_empty() {
            out.append_pax_extensions(self.pax.iter().map(|(k, v)| (k.as_str(), v.as_slice())))?;
        }
        if self.header.as_bytes().iter().all(|byte| *byte == 0) {
            return out.append(&self.header, io::empty());
        }
        let Some(claimed) = self.claimed else {
            let size = self.contents.len();
            return append(out, self.header.clone(), &self.name, self.link.as_deref(), &self.contents[..], size);
        };
        let mut header = self.header.clone();
        fits(&mut header, &self.name, |gnu| &mut gnu.name);
        fits(&mut header, self.link.as_deref().unwrap_or_default(), |gnu| &mut gnu.linkname);
        header.set_size(claimed);
        if self.base256 {
            let size = &mut header.as_old_mut().size;
            size.fill(if claimed > u64::MAX / 2 { 0xff } else { 0 });
            size[4..].copy_from_slice(&claimed.to_be_bytes());
            size[0] |= 0x80;
        }
        header.set_cksum();
        out.append(&header, &self.contents[..])
    }
}

impl Layer {
    /// Streams the layer into a blob of the layout; also returns its DiffID.
    pub(super) fn write(&self, dir: &Path, compression: Compression) -> io::Result<(Blob, String)> {
        let mut stored = Hashed::new(NamedTempFile::new_in(dir)?);
        if let Self::Stored { blob, archive } = self {
            stored.write_all(blob)?;
            return Ok((stored.into_blob(dir)?, super::sha256(archive)));
        }
        if let Self::Repeated(bytes, times) = self {
            let mut plain = Hashed::new(io::sink());
            let end = [0; 1024];
            let parts = [compression.apply(bytes)?, compression.apply(&end)?];
            for _ in 0..*times {
                stored.write_all(&parts[0])?;
                plain.write_all(bytes)?;
            }
            stored.write_all(&parts[1])?;
            plain.write_all(&end)?;
            return Ok((stored.into_blob(dir)?, plain.digest()));
        }
        match compression {
            Compression::Plain => {
                let (stored, diff_id) = self.archive(stored)?;
                Ok((stored.into_blob(dir)?, diff_id))
            }
            Compression::Gzip => {
                let (gzip, diff_id) =
                    self.archive(flate2::write::GzEncoder::new(stored, flate2::Compression::fast()))?;
                Ok((gzip.finish()?.into_blob(dir)?, diff_id))
            }
            Compression::Zstd => {
                let (zstd, diff_id) = self.archive(zstd::Encoder::new(stored, 1)?)?;
                Ok((zstd.finish()?.into_blob(dir)?, diff_id))
            }
        }
    }

    /// The layer's archive, uncompressed.
    ///
    /// # Errors
    /// Whatever reading a tree says.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        Ok(self.archive(Vec::new())?.0)
    }

    fn archive<W: Write>(&self, out: W) -> io::Result<(W, String)> {
        // The archive crate writes headers one by one; without the buffer each is a call of the compressor.
        let mut out = io::BufWriter::with_capacity(1 << 17, Hashed::new(out));
        match self {
            Self::Raw(bytes) | Self::Stored { archive: bytes, .. } => out.write_all(bytes)?,
            Self::Repeated(bytes, times) => {
                (0..*times).try_for_each(|_| out.write_all(bytes))?;
                out.write_all(&[0; 1024])?;
            }
            Self::Entries(entries) => {
                let mut builder = Builder::new(&mut out);
                entries.iter().try_for_each(|entry| entry.append(&mut builder))?;
                builder.finish()?;
            }
            Self::Tree(root) => {
                let mut builder = Builder::new(&mut out);
                append_tree(&mut builder, root, Path::new(""))?;
                builder.finish()?;
            }
        }
        let hashed = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((hashed.inner, digest_text(hashed.context)))
    }
}

fn append_tree(out: &mut Builder<impl Write>, root: &Path, below: &Path) -> io::Result<()> {
    let mut names = fs::read_dir(root.join(below))?.map(|e| Ok(e?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    for name in names {
        let inside = below.join(name);
        let path = root.join(&inside);
        let meta = path.symlink_metadata()?;
        let mut header = Header::new_gnu();
        header.set_mode(meta.permissions().mode() & 0o7777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
        let bytes = inside.as_os_str().as_bytes();
        if meta.is_dir() {
            header.set_entry_type(EntryType::Directory);
            append(out, header, bytes, None, io::empty(), 0)?;
            append_tree(out, root, &inside)?;
        } else if meta.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            append(out, header, bytes, Some(fs::read_link(&path)?.as_os_str().as_bytes()), io::empty(), 0)?;
        } else if meta.is_file() {
            header.set_entry_type(EntryType::Regular);
            let size = usize::try_from(meta.size()).map_err(io::Error::other)?;
            append(out, header, bytes, None, File::open(&path)?, size)?;
        } else {
            return Err(io::Error::other(format!("{}: neither file, directory nor symlink", path.display())));
        }
    }
    Ok(())
}

/// Writes name and link raw, by GNU `L` and `K` records where they do not fit the header.
fn append(
    out: &mut Builder<impl Write>,
    mut header: Header,
    name: &[u8],
    link: Option<&[u8]>,
    contents: impl Read,
    size: usize,
) -> io::Result<()> {
    if let Some(link) = link
        && !fits(&mut header, link, |gnu| &mut gnu.linkname)
    {
        append_long(out, EntryType::GNULongLink, link)?;
    }
    if !fits(&mut header, name, |gnu| &mut gnu.name) {
        append_long(out, EntryType::GNULongName, name)?;
    }
    header.set_size(size as u64);
    header.set_cksum();
    // `append` pads to the size that was really read, so a file that changed meanwhile must be noticed here.
    let mut counted = contents.take(size as u64);
    out.append(&header, &mut counted)?;
    if counted.limit() == 0 { Ok(()) } else { Err(io::Error::other("a file shrank while it was archived")) }
}

/// Stores `value` in a field of the header, cut where it is too long; says whether it was not.
fn fits(header: &mut Header, value: &[u8], field: impl Fn(&mut tar::GnuHeader) -> &mut [u8; 100]) -> bool {
    if let Some(gnu) = header.as_gnu_mut() {
        let field = field(gnu);
        let kept = value.len().min(field.len());
        field[..kept].copy_from_slice(&value[..kept]);
    }
    value.len() <= 100
}

fn append_long(out: &mut Builder<impl Write>, kind: EntryType, value: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    fits(&mut header, b"././@LongLink", |gnu| &mut gnu.name);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(value.len() as u64 + 1);
    header.set_cksum();
    out.append(&header, value.chain(&b"\0"[..]))
}

/// A writer that hashes and counts what passes.
pub(super) struct Hashed<W> {
    inner: W,
    context: Context,
    size: u64,
}

impl<W: Write> Hashed<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, context: Context::new(&SHA256), size: 0 }
    }

    pub(super) fn digest(self) -> String {
        digest_text(self.context)
    }
}

impl Hashed<NamedTempFile> {
    /// Publishes what was written under its digest.
    pub(super) fn into_blob(self, dir: &Path) -> io::Result<Blob> {
        let digest = digest_text(self.context);
        publish(self.inner, &super::Written::blob(dir, &digest))?;
        Ok(Blob { digest, size: self.size })
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.inner.write(bytes)?;
        self.context.update(&bytes[..taken]);
        self.size += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A blob of the layout.
pub(super) struct Blob {
    pub(super) digest: String,
    size: u64,
}

impl Blob {
    pub(super) fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.size })
    }
}

/// Renames into place, readable for everyone: a layout is made by one user and read by others.
pub(super) fn publish(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.persist(path)?;
    Ok(())
}

pub(super) fn digest_text(context: Context) -> String {
    use std::fmt::Write as _;
    context.finish().as_ref().iter().fold("sha256:".to_owned(), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}
