//! OCI image layouts on disk: index → manifest → config (image-spec, "Image Layout Specification").
//!
//! Invariant: a blob is believed only after its size and digest were checked, and no document is read beyond its limit.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageIndex;
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use crate::digest::Digest;
use crate::limits::Limits;
use crate::printable::printable;
use crate::reference::Selector;
use crate::source::document::{self, Pointer};
use crate::source::{Layer, Manifest, Source, SourceError, index};

/// Why something is not an image layout.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// No such directory.
    #[error("image layout `{layout}` does not exist; make one with `skopeo copy docker://IMAGE oci:{layout}`")]
    Missing {
        /// The directory.
        layout: String,
    },
    /// Not a layout.
    #[error(
        "`{layout}` is not an OCI image layout: it has no `{file}` file; make one with `skopeo copy docker://IMAGE oci:{layout}`"
    )]
    NotALayout {
        /// The directory.
        layout: String,
        /// What is not there.
        file: &'static str,
    },
    /// A layout version this does not know.
    #[error("{place} has the version `{version}`; only 1.0.0 is known, which `skopeo copy` writes")]
    Version {
        /// The layout or archive.
        place: String,
        /// Its version.
        version: String,
    },
}

/// An opened layout, and where in it the image that is meant begins.
pub(crate) struct Layout {
    directory: Directory,
    first: Pointer,
}

/// Its files.
struct Directory {
    dir: OwnedFd,
    path: PathBuf,
}

impl Layout {
    pub(crate) fn open(path: &Path, select: &Selector, limits: &Limits) -> Result<Layout, SourceError> {
        let directory = Directory::open(path)?;
        let place = directory.place();
        check_version(&place, &directory.file("oci-layout", limits)?)?;
        let index = directory.file("index.json", limits)?;
        let index: ImageIndex = document::parse(&format!("index.json of {place}"), &index)?;
        let first = index::choose(&index, select, &place, || format!("oci:{}:TAG", directory.shown()))?;
        Ok(Layout { first: Pointer::from_descriptor(first, "index.json")?, directory })
    }
}

impl Directory {
    fn open(path: &Path) -> Result<Directory, SourceError> {
        let shown = printable(path.as_os_str().as_encoded_bytes());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Err(LayoutError::Missing { layout: shown }.into()),
            Err(Errno::NOTDIR) => return Err(LayoutError::NotALayout { layout: shown, file: "oci-layout" }.into()),
            Err(e) => return Err(SourceError::Io { object: format!("image layout `{shown}`"), source: e.into() }),
        };
        Ok(Directory { dir, path: path.to_owned() })
    }

    fn shown(&self) -> String {
        printable(self.path.as_os_str().as_encoded_bytes())
    }

    fn place(&self) -> String {
        format!("image layout `{}`", self.shown())
    }

    /// A top-level file, bounded.
    fn file(&self, name: &'static str, limits: &Limits) -> Result<Vec<u8>, SourceError> {
        let object = || format!("`{}/{name}`", self.shown());
        let io = |source: std::io::Error| SourceError::Io { object: object(), source };
        let (file, size) = match self.regular(name) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(LayoutError::NotALayout { layout: self.shown(), file: name }.into());
            }
            other => other.map_err(io)?,
        };
        SourceError::limit("document-bytes", size, limits.document_bytes, object)?;
        read(file, size).map_err(io)
    }

    /// A blob, its size checked but not its bytes.
    fn open_blob(&self, digest: &Digest, expected: Option<u64>) -> Result<(File, u64), SourceError> {
        let path = format!("blobs/{}/{}", digest.algorithm(), digest.hex());
        let (file, actual) = match self.regular(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(SourceError::NoBlob { digest: digest.clone(), place: self.place() });
            }
            other => other.map_err(|source| SourceError::Io { object: format!("blob {digest}"), source })?,
        };
        // Before the digest: a truncated download is the common case, and costs no hashing to see.
        match expected {
            Some(expected) if actual != expected => Err(SourceError::Size { digest: digest.clone(), actual, expected }),
            _ => Ok((file, actual)),
        }
    }

    /// A regular file and its size. Symlinks are followed: some build tools link blobs, and the digest is checked.
    fn regular(&self, path: &str) -> std::io::Result<(File, u64)> {
        // NONBLOCK, so that a FIFO in its place does not hang us.
        let file = openat(&self.dir, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        Ok((File::from(file), u64::try_from(stat.st_size).unwrap_or(0)))
    }
}

impl Source for Layout {
    fn digest(&self) -> Option<&Digest> {
        Some(&self.first.digest)
    }

    fn manifest(&self, limits: &Limits) -> Result<Manifest, SourceError> {
        let fetch = |_, digest: &Digest, size: Option<u64>| {
            let (file, size) = self.directory.open_blob(digest, size)?;
            SourceError::limit("document-bytes", size, limits.document_bytes, || format!("blob {digest}"))?;
            read(file, size).map_err(|source| SourceError::Io { object: format!("blob {digest}"), source })
        };
        document::resolve(self.first.clone(), &fetch, limits)
    }

    fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        let (file, _size) = self.directory.open_blob(layer.name(), Some(layer.size))?;
        Ok(Box::new(file))
    }
}

/// The content of `oci-layout`.
pub(crate) fn check_version(place: &str, bytes: &[u8]) -> Result<(), SourceError> {
    #[derive(serde::Deserialize)]
    struct Header {
        #[serde(rename = "imageLayoutVersion")]
        version: String,
    }
    let header: Header = document::parse(&format!("oci-layout of {place}"), bytes)?;
    if header.version == "1.0.0" {
        return Ok(());
    }
    Err(LayoutError::Version { place: place.to_owned(), version: printable(header.version.as_bytes()) }.into())
}

fn read(file: File, size: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(size).read_to_end(&mut bytes)?;
    Ok(bytes)
}
