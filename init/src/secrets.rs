//! Secret values on their way into the box, and the file system they are read from there.
//!
//! Invariant: a value is in no plan and in no message. It is here, in memory that is overwritten when it is let go of; PID 1
//! lets go of all once they are delivered, and the payload's process never has those that become files.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use agentd_sys::mount::{Attributes, set_attributes};
use rustix::mount::{FsOpenFlags, MountAttrFlags, fsconfig_set_string, fsopen};
use zeroize::Zeroizing;

use crate::mounts::{READ_ONLY, attach};
use crate::plan::Kind;
use crate::root::attach_new;
use crate::step::{At, Failure, Step};
use crate::tree;

/// One secret.
pub struct Secret {
    /// Name of its file, or of its variable.
    pub name: String,
    /// The value.
    pub value: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.name)
    }
}

/// The secrets of a job.
#[derive(Debug, Default)]
pub struct Secrets {
    /// Those that become files.
    pub files: Vec<Secret>,
    /// Those that become variables of the payload; free of NUL bytes.
    pub variables: Vec<Secret>,
    /// Certificates, which are no secrets and come with them, for a plan is made before they are.
    pub certificates: Vec<Secret>,
}

impl Secrets {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.variables.is_empty() && self.certificates.is_empty()
    }
}

/// Mounts the files called `names` at `target`, which nobody can write; gives its place.
pub(crate) fn deliver(root: &OwnedFd, target: &str, names: &[String], secrets: &[Secret]) -> Result<String, Failure> {
    let at = Step::DeliverSecrets;
    // Its pages are never swapped, on any kernel. The tmpfs option for that (`noswap`, Linux 6.4) is refused to who mounts in
    // a user namespace. It has no bound, but only this process ever writes to it.
    let context = fsopen("ramfs", FsOpenFlags::FSOPEN_CLOEXEC).at(at, "ramfs")?;
    fsconfig_set_string(&context, "mode", "0500").at(at, "mode")?;
    let confined =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = attach_new(&context, confined).at(at, "ramfs")?;
    for name in names {
        let Some(secret) = secrets.iter().find(|secret| secret.name == *name) else {
            return Err(Failure::new(at, name, libc::ENOENT));
        };
        let file = tree::file(mount.as_fd(), name, 0o400).at(at, name)?;
        File::from(file).write_all(&secret.value).at(at, name)?;
    }
    set_attributes(mount.as_fd(), Attributes { no_exec: true, ..READ_ONLY }, false).at(at, target)?;
    attach(&mount, root, target, Kind::Directory, at)
}
