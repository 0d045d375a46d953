//! The vocabulary of a path policy: what a profile itself grants below a path, said without Landlock's bit sets.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// What may be done below a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathAccess {
    /// Read files, list directories, execute.
    ReadExecute,
    /// `ReadExecute`, and write to or truncate files that exist, and ioctls on devices; nothing is created or removed.
    WriteExisting,
    /// `WriteExisting`, and create, rename and remove.
    ReadWrite,
}

/// One grant. Grants add up: below `/dev`, those of `/` hold too.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathRule {
    /// Absolute, inside the box.
    pub path: Cow<'static, str>,
    /// What is granted below it.
    pub access: PathAccess,
    /// Why.
    pub reason: Cow<'static, str>,
}
