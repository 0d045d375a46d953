//! The vocabulary of a path policy: places, what may be done below them, and which of it a kernel must enforce, said
//! without Landlock's bit sets.
//!
//! Invariant: grants add up. A rule gives rights below its place and takes none away; what no rule gives is refused.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing that may be done below a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathRight {
    /// Read files and list directories.
    Read,
    /// Execute files.
    Execute,
    /// Write to files that exist, and cut them short.
    Write,
    /// Make, link, rename and remove files of every kind but device nodes.
    Create,
    /// Requests to device nodes (ioctl).
    Ioctl,
}

impl PathRight {
    /// Every right.
    pub const ALL: [Self; 5] = [Self::Read, Self::Execute, Self::Write, Self::Create, Self::Ioctl];

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for PathRight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Execute => "execute",
            Self::Write => "write",
            Self::Create => "create",
            Self::Ioctl => "ioctl",
        })
    }
}

/// A set of rights; written as a list of their words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<PathRight>", into = "Vec<PathRight>")]
pub struct PathAccess(pub(crate) u8);

impl PathAccess {
    /// What a read-only root gives.
    pub const READ_EXECUTE: Self = Self(PathRight::Read.bit() | PathRight::Execute.bit());

    /// The rights in it, in the order of [`PathRight::ALL`].
    pub fn rights(self) -> impl Iterator<Item = PathRight> {
        PathRight::ALL.into_iter().filter(move |right| self.0 & right.bit() != 0)
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether `right` is in it.
    #[must_use]
    pub const fn has(self, right: PathRight) -> bool {
        self.0 & right.bit() != 0
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in it and not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl From<Vec<PathRight>> for PathAccess {
    fn from(rights: Vec<PathRight>) -> Self {
        Self(rights.iter().fold(0, |bits, right| bits | right.bit()))
    }
}

impl From<PathAccess> for Vec<PathRight> {
    fn from(access: PathAccess) -> Self {
        access.rights().collect()
    }
}

impl fmt::Display for PathAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for right in self.rights() {
            write!(f, "{between}{right}")?;
            between = ", ";
        }
        if between.is_empty() { f.write_str("nothing") } else { Ok(()) }
    }
}

/// Where a rule holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Place {
    /// An absolute path inside the box.
    Path(Cow<'static, str>),
    /// The workspace, unless the job gives it read-only.
    Workspace,
    /// What every box may write and nobody keeps: /tmp, /run, /scratch, the home directory.
    Scratch,
    /// What the job mounts for writing.
    Mounts,
    /// The root of a job that may write it.
    WritableRoot,
}

impl Place {
    /// The word for a class of places; a path for a path.
    #[must_use]
    pub fn word(&self) -> &str {
        match self {
            Self::Path(path) => path,
            Self::Workspace => "workspace",
            Self::Scratch => "scratch",
            Self::Mounts => "mounts",
            Self::WritableRoot => "writable-root",
        }
    }

    /// Whether everything at this place lies below the absolute path `above`. Where a class lies is the job's to say,
    /// but it is somewhere below `/`.
    #[must_use]
    pub fn lies_below(&self, above: &str) -> bool {
        match self {
            Self::Path(path) => std::path::Path::new(path.as_ref()).starts_with(above),
            _ => above == "/",
        }
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        place.word().to_owned()
    }
}

impl TryFrom<String> for Place {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let classes = [Self::Workspace, Self::Scratch, Self::Mounts, Self::WritableRoot];
        if let Some(class) = classes.into_iter().find(|class| class.word() == text) {
            return Ok(class);
        }
        let parts = || text.split('/').skip(1);
        if text != "/" && (!text.starts_with('/') || parts().any(|part| matches!(part, "" | "." | ".."))) {
            return Err(format!(
                "{text:?} is no place: write an absolute path without `.` and `..`, workspace, scratch, mounts or writable-root"
            ));
        }
        Ok(Self::Path(text.into()))
    }
}

/// One grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathRule {
    /// Where.
    #[serde(rename = "path")]
    pub place: Place,
    /// What is granted below it.
    pub access: PathAccess,
    /// Why.
    pub reason: Cow<'static, str>,
}

/// A part of Landlock that came with an ABI of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LandlockRight {
    /// Reading, executing, writing, making and removing files.
    Files,
    /// Renames and links across directories; without it they are always refused.
    Refer,
    /// Cutting files short.
    Truncate,
    /// Requests to device nodes.
    Ioctl,
    /// Signals to processes outside the box.
    Signals,
    /// Abstract unix sockets of processes outside the box.
    AbstractSockets,
}

impl LandlockRight {
    /// Every right.
    pub const ALL: [Self; 6] =
        [Self::Files, Self::Refer, Self::Truncate, Self::Ioctl, Self::Signals, Self::AbstractSockets];

    /// The first ABI that enforces it (landlock(7)).
    #[must_use]
    pub const fn since(self) -> u32 {
        match self {
            Self::Files => 1,
            Self::Refer => 2,
            Self::Truncate => 3,
            Self::Ioctl => 5,
            Self::Signals | Self::AbstractSockets => 6,
        }
    }

    /// Whether it is about files; such a right forbids every change of the mount tree as well.
    #[must_use]
    pub const fn is_about_files(self) -> bool {
        !matches!(self, Self::Signals | Self::AbstractSockets)
    }
}

impl fmt::Display for LandlockRight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files => "files",
            Self::Refer => "refer",
            Self::Truncate => "truncate",
            Self::Ioctl => "ioctl",
            Self::Signals => "signals",
            Self::AbstractSockets => "abstract-sockets",
        })
    }
}

/// A right that a job may do without on a kernel too old for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MayMiss {
    /// The right.
    pub right: LandlockRight,
    /// Why.
    pub reason: Cow<'static, str>,
}
