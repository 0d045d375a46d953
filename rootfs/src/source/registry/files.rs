//! Files of the user's and the machine's that say how registries are spoken to.
//!
//! Invariant: only regular files are read, and no more than [`LONGEST`] bytes; of one that cannot be read or
//! understood the message never quotes the content, which may be a secret.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::error::RegistryError;
use crate::printable::printable;

/// Far above any of them.
const LONGEST: u64 = 4 << 20;

pub(super) fn shown(path: &Path) -> String {
    printable(path.as_os_str().as_bytes())
}

/// The file's bytes; none where there is no file.
pub(super) fn bytes(path: &Path) -> Result<Option<Vec<u8>>, RegistryError> {
    let bad = |reason: String| RegistryError::File { path: shown(path), reason };
    // A FIFO would not open, or not end.
    let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    let file = match opened.map(File::from).map_err(std::io::Error::from) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(bad(error.to_string())),
    };
    let metadata = file.metadata().map_err(|error| bad(error.to_string()))?;
    if !metadata.is_file() {
        return Err(bad("it is not a regular file".into()));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(|error| bad(error.to_string()))?;
    if bytes.len() as u64 > LONGEST {
        return Err(bad(format!("it has more than {LONGEST} bytes")));
    }
    Ok(Some(bytes))
}

/// The file's text; none where there is no file.
pub(super) fn text(path: &Path) -> Result<Option<String>, RegistryError> {
    let Some(bytes) = bytes(path)? else { return Ok(None) };
    let bad = |_not_text| RegistryError::File { path: shown(path), reason: "it is not UTF-8 text".into() };
    String::from_utf8(bytes).map(Some).map_err(bad)
}

/// The paths in `directory` that end in `.EXTENSION`, sorted; none where there is no directory.
pub(super) fn listing(directory: &Path, extension: &str) -> Result<Vec<PathBuf>, RegistryError> {
    let bad = |error: std::io::Error| RegistryError::File { path: shown(directory), reason: error.to_string() };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(error) => return Err(bad(error)),
    };
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(bad)?;
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    Ok(paths)
}
