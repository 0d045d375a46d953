//! What the store knows images by: a small file a name, and the documents (manifests, configs) they lead to.
//!
//! ```text
//! images/HEX                  JSON: the reference, digests of manifest and config, when it was pulled
//! blobs/ALGORITHM/HEX         a manifest or a config, byte for byte
//! ```
//! HEX of a name is the SHA-256 of the reference, so no reference is a path. Invariant: a document is believed after its
//! digest was checked, and a name only if it is whole and says the reference it was looked up by; so neither needs to be on
//! the disk before a crash: what a crash damaged is as good as missing.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::place::directory;
use super::{Store, StoreError};
use crate::digest::{Digest, Hasher};
use crate::lock::Lock;
use crate::source::Manifest;

/// Version of the file; readers accept every older one.
const SCHEMA: u32 = 1;

/// Bytes of a name's file: a reference is a path at most.
const LONGEST: u64 = 64 << 10;

/// A name, and the image it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// The reference in its canonical form.
    pub(crate) reference: String,
    /// Of the manifest; of the config, where the source has no manifest.
    pub(crate) digest: Digest,
    pub(crate) config: Digest,
    /// Seconds since 1970.
    pub(crate) pulled: u64,
}

#[derive(Serialize, Deserialize)]
struct File {
    schema: u32,
    reference: String,
    digest: String,
    config: String,
    pulled: u64,
}

impl Named {
    /// `None` for what is no whole record.
    fn parse(bytes: &[u8]) -> Result<Option<Named>, Newer> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        match serde_json::from_slice::<Version>(bytes) {
            Ok(Version { schema }) if schema > SCHEMA => return Err(Newer(schema)),
            Ok(_) => {}
            Err(_) => return Ok(None),
        }
        let Ok(file) = serde_json::from_slice::<File>(bytes) else { return Ok(None) };
        let (Ok(digest), Ok(config)) = (file.digest.parse(), file.config.parse()) else { return Ok(None) };
        Ok(Some(Named { reference: file.reference, digest, config, pulled: file.pulled }))
    }

    fn file_name(&self) -> String {
        file_name(&self.reference)
    }
}

/// A name that a later agentd wrote.
struct Newer(u32);

pub(super) fn file_name(reference: &str) -> String {
    let mut hasher = Hasher::sha256();
    hasher.update(reference.as_bytes());
    hasher.finish().hex().to_owned()
}

/// The names of a store, and how many of its files are no names any more.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) whole: Vec<Named>,
    /// File names in `images/`.
    pub(super) damaged: Vec<String>,
}

impl Store {
    /// The image that is known by `reference`: the own store's, else that of the first other one.
    pub(super) fn named(&self, reference: &str) -> Result<Option<Named>, StoreError> {
        for root in self.roots() {
            let path = format!("images/{}", file_name(reference));
            let Some(bytes) = self.read(root, &path, LONGEST)? else { continue };
            match Named::parse(&bytes) {
                Ok(Some(named)) if named.reference == reference => return Ok(Some(named)),
                Ok(_) => {}
                Err(Newer(schema)) => return Err(self.newer(schema)),
            }
        }
        Ok(None)
    }

    /// Every name in one store.
    pub(super) fn names(&self, root: &OwnedFd) -> Result<Names, StoreError> {
        let mut names = Names::default();
        for file in self.list(root, "images")? {
            // Gone since it was listed, or one of the two.
            let Some(bytes) = self.read(root, format!("images/{file}"), LONGEST)? else { continue };
            match Named::parse(&bytes) {
                Ok(Some(named)) if named.file_name() == file => names.whole.push(named),
                Ok(_) => names.damaged.push(file),
                Err(Newer(schema)) => return Err(self.newer(schema)),
            }
        }
        names.whole.sort_by(|one, other| one.reference.cmp(&other.reference));
        Ok(names)
    }

    fn newer(&self, schema: u32) -> StoreError {
        StoreError::Newer { path: self.shown(), schema }
    }

    /// A manifest or config, verified; `None` where no store has it whole.
    pub(crate) fn document(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let path = format!("blobs/{}/{}", digest.algorithm(), digest.hex());
        for root in self.roots() {
            // What lies here was bounded when it was pulled, and its bytes are the same.
            let Some(bytes) = self.read(root, &path, u64::MAX)? else { continue };
            let mut hasher = digest.hasher();
            hasher.update(&bytes);
            if hasher.finish() == *digest {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// Remembers that `reference` is this image. Its layers must be there.
    pub(super) fn remember(&self, reference: &str, manifest: &Manifest) -> Result<(), StoreError> {
        let named = Named {
            reference: reference.to_owned(),
            digest: manifest.digest.clone(),
            config: manifest.config_digest.clone(),
            pulled: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        };
        let documents = [(&manifest.config_digest, &manifest.config_bytes), (&manifest.digest, &manifest.bytes)];
        for (digest, bytes) in documents.into_iter().filter(|(_, bytes)| !bytes.is_empty()) {
            if self.document(digest)?.is_none() {
                let blobs =
                    directory(&self.root, c"blobs").map_err(StoreError::io("make a directory in", &self.path))?;
                let algorithm = CString::new(digest.algorithm()).unwrap_or_default();
                let dir = directory(&blobs, &algorithm).map_err(StoreError::io("make a directory in", &self.path))?;
                self.put(&dir, digest.hex(), bytes)?;
            }
        }
        let Named { reference, digest, config, pulled } = &named;
        let (reference, digest, config) = (reference.clone(), digest.to_string(), config.to_string());
        let file = File { schema: SCHEMA, reference, digest, config, pulled: *pulled };
        let bytes = serde_json::to_vec(&file).map_err(StoreError::io("write to", &self.path))?;
        let images = directory(&self.root, c"images").map_err(StoreError::io("make a directory in", &self.path))?;
        self.put(&images, &named.file_name(), &bytes)
    }

    /// Writes a file that is there whole or not at all.
    pub(super) fn put(&self, dir: &OwnedFd, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let written = || -> std::io::Result<()> {
            let key = format!("document-{name}");
            let _lock = Lock::acquire(self.tmp.as_fd(), &key, &mut || {})?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = openat(&self.tmp, &key, flags, Mode::RUSR | Mode::WUSR)?;
            std::io::Write::write_all(&mut std::fs::File::from(file), bytes)?;
            Ok(renameat(&self.tmp, &key, dir, name)?)
        };
        written().map_err(|source| StoreError::Io { action: "write to", path: self.shown(), source })
    }

    /// Takes a name away; the image stays.
    pub(super) fn forget(&self, file: &str) -> Result<(), StoreError> {
        self.unlink(&format!("images/{file}"))
    }

    /// Takes a document away.
    pub(super) fn forget_document(&self, digest: &Digest) -> Result<(), StoreError> {
        self.unlink(&format!("blobs/{}/{}", digest.algorithm(), digest.hex()))
    }

    fn unlink(&self, path: &str) -> Result<(), StoreError> {
        match unlinkat(&self.root, path, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(StoreError::io("remove from", &self.path)(errno)),
        }
    }

    /// Every document of the own store, and its bytes.
    pub(super) fn documents(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let mut found = Vec::new();
        for algorithm in self.list(&self.root, "blobs")? {
            for hex in self.list(&self.root, &format!("blobs/{algorithm}"))? {
                let Ok(digest) = format!("{algorithm}:{hex}").parse() else { continue };
                let stat = statat(&self.root, format!("blobs/{algorithm}/{hex}"), AtFlags::SYMLINK_NOFOLLOW);
                found.push((digest, stat.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))));
            }
        }
        Ok(found)
    }

    /// The names in a directory of a store; none where it is not there.
    pub(super) fn list(&self, root: &OwnedFd, path: &str) -> Result<Vec<String>, StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let listed = match openat(root, path, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(errno) => Err(errno),
            Ok(dir) => Dir::new(dir).and_then(|dir| {
                let names = dir.map(|entry| Ok(entry?.file_name().to_str().unwrap_or_default().to_owned()));
                names.collect::<Result<Vec<_>, Errno>>()
            }),
        };
        let mut names = listed.map_err(StoreError::io("list", &self.path))?;
        names.retain(|name| !name.is_empty() && !name.starts_with('.'));
        Ok(names)
    }

    /// A file, no more than `most` bytes of it; `None` where there is none, or a longer one.
    pub(super) fn read(
        &self,
        root: impl AsFd,
        path: impl AsRef<Path>,
        most: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let read = || -> std::io::Result<Option<Vec<u8>>> {
            let file = match openat(&root, path.as_ref(), flags, Mode::empty()) {
                Err(Errno::NOENT) => return Ok(None),
                file => file?,
            };
            let stat = fstat(&file)?;
            let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || size > most {
                return Ok(None);
            }
            let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
            std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::from(file), most), &mut bytes)?;
            Ok(Some(bytes))
        };
        read().map_err(|source| StoreError::Io { action: "read from", path: self.shown(), source })
    }
}

/// Opens a directory by its absolute path, following no link at its end.
pub(super) fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(CWD, path, super::place::DIRECTORY, Mode::empty())
}
