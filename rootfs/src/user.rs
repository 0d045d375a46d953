//! The user an image names, looked up in the image's own `etc/passwd` and `etc/group`.
//!
//! Invariant: files are found through the layers as overlayfs would show them, never outside a layer's root, and only
//! a regular file is ever opened (CVE-2026-47262: bounded; CVE-2024-40635: no id wraps round).

mod lookup;

use std::path::PathBuf;

use self::lookup::Stack;
use crate::printable::printable;

/// Largest `etc/passwd` or `etc/group` that is read.
pub(crate) const FILE_BYTES: u64 = 4 << 20;
/// Largest id, as in runc and Docker: beyond it ids turn negative in places.
const LARGEST_ID: u64 = 0x7fff_ffff;

/// Ids inside the box, as the image means them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id in the image.
    pub uid: u32,
    /// Group id in the image.
    pub gid: u32,
    /// Home directory, where the image has an entry for the user with an absolute path.
    pub home: Option<String>,
}

/// Why a user cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// `:group` or `user:`.
    #[error("user `{0}` has an empty part; write UID, UID:GID, NAME or NAME:GROUP")]
    Empty(String),
    /// An id that does not fit.
    #[error("user `{spec}`: the id {id} is not between 0 and {LARGEST_ID}")]
    Range {
        /// What was asked for.
        spec: String,
        /// The id.
        id: String,
    },
    /// No such name.
    #[error("user `{spec}`: there is no `{name}` in the image's /{file}")]
    Unknown {
        /// What was asked for.
        spec: String,
        /// The name.
        name: String,
        /// Where it was looked for.
        file: &'static str,
    },
    /// A file that cannot be read.
    #[error("cannot read /{file} of the image")]
    File {
        /// Which.
        file: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

const PASSWD: &str = "etc/passwd";
const GROUP: &str = "etc/group";

/// The user database of a root: its `etc/passwd` and `etc/group`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// passwd(5); empty where the root has none. Bytes that are no UTF-8 are replaced.
    pub passwd: String,
    /// group(5), likewise.
    pub group: String,
}

impl Accounts {
    /// Reads both files of a root given as its layers, lowest first.
    ///
    /// # Errors
    /// [`UserError::File`], also for what is not a regular file or is larger than 4 MiB.
    pub fn read(layers_or_root: &[PathBuf]) -> Result<Accounts, UserError> {
        let mut stack = Stack::open(layers_or_root).map_err(|source| UserError::File { file: PASSWD, source })?;
        let mut read = |file: &'static str| match stack.read(file, FILE_BYTES) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(source) => Err(UserError::File { file, source }),
        };
        Ok(Accounts { passwd: read(PASSWD)?, group: read(GROUP)? })
    }

    /// Resolves `spec` ("uid", "uid:gid", "name", "name:group"; "" is root).
    ///
    /// A spec of digits is an id, never a name. Without a group, the user's own from `etc/passwd` counts, else 0.
    ///
    /// # Errors
    /// The other variants of [`UserError`].
    pub fn resolve(&self, spec: &str) -> Result<ResolvedUser, UserError> {
        resolve(self.passwd.as_bytes(), self.group.as_bytes(), spec)
    }
}

fn resolve(passwd: &[u8], group_file: &[u8], spec: &str) -> Result<ResolvedUser, UserError> {
    let shown = || printable(spec.as_bytes());
    let spec_or_root = if spec.is_empty() { "0" } else { spec };
    let (user, group) = match spec_or_root.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec_or_root, None),
    };
    if user.is_empty() || group == Some("") {
        return Err(UserError::Empty(shown()));
    }
    let id = |text: &[u8]| id(text).map_err(|id| UserError::Range { spec: shown(), id });
    let unknown = |name: &str, file| UserError::Unknown { spec: shown(), name: printable(name.as_bytes()), file };

    let (uid, entry) = match id(user.as_bytes())? {
        Some(uid) => (uid, find(passwd, |entry| matches!(id(entry.id), Ok(Some(id)) if id == uid))),
        None => {
            let entry = find(passwd, |entry| entry.name == user.as_bytes()).ok_or_else(|| unknown(user, PASSWD))?;
            (id(entry.id)?.ok_or_else(|| unknown(user, PASSWD))?, Some(entry))
        }
    };
    let gid = match group {
        None => match entry.as_ref().and_then(|entry| entry.gid) {
            Some(gid) => id(gid)?.unwrap_or(0),
            None => 0,
        },
        Some(group) => match id(group.as_bytes())? {
            Some(gid) => gid,
            None => {
                let entry =
                    find(group_file, |entry| entry.name == group.as_bytes()).ok_or_else(|| unknown(group, GROUP))?;
                id(entry.id)?.ok_or_else(|| unknown(group, GROUP))?
            }
        },
    };
    let home = entry.and_then(|entry| entry.home).and_then(|home| std::str::from_utf8(home).ok());
    let home = home.filter(|home| home.starts_with('/') && !home.chars().any(char::is_control));
    Ok(ResolvedUser { uid, gid, home: home.map(str::to_owned) })
}

/// A line of passwd(5) or group(5): both start `name:password:id`.
struct Entry<'f> {
    name: &'f [u8],
    id: &'f [u8],
    gid: Option<&'f [u8]>,
    home: Option<&'f [u8]>,
}

/// The first line that is meant. Lines with fewer than three fields are no entries.
fn find<'f>(file: &'f [u8], is_meant: impl Fn(&Entry<'f>) -> bool) -> Option<Entry<'f>> {
    for line in file.split(|b| *b == b'\n') {
        let mut fields = line.trim_ascii().split(|b| *b == b':');
        let (Some(name), Some(_password), Some(id)) = (fields.next(), fields.next(), fields.next()) else { continue };
        if name.is_empty() || name.starts_with(b"#") {
            continue;
        }
        let gid = fields.next();
        let entry = Entry { name, id, gid, home: fields.nth(1) };
        if is_meant(&entry) {
            return Some(entry);
        }
    }
    None
}

/// `Ok(None)`: not a number at all. `Err`: a number that is no id.
fn id(text: &[u8]) -> Result<Option<u32>, String> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Ok(None);
    }
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok());
    match number.filter(|id| *id <= LARGEST_ID).and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok(Some(id)),
        None => Err(printable(text)),
    }
}

#[cfg(test)]
mod tests;
