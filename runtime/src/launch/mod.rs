//! From a spec to a plan: everything about the host and the image is looked up here, once.
//!
//! Invariant: a plan that was made names every host object by path, device and inode, and needs no further decision.

mod fake_root;
pub(crate) mod host_root;
mod image_config;
pub mod image_root;
pub mod keys;
mod mounts;
pub mod network;
pub mod plan;
mod policy;
pub mod profile;
pub mod protect;
pub mod secrets;
pub mod subids;
mod ulimit;
pub(crate) mod write_back;

use std::io;
use std::path::{Path, PathBuf};

use agentd_init::plan::{Kind, Source};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, accessat, fstat, openat2, statat};
use rustix::io::Errno;

use crate::cgroup;

/// A spec that this host or this image cannot fulfil.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The image.
    #[error(transparent)]
    Image(#[from] agentd_rootfs::ImageError),
    /// The store of unpacked layers.
    #[error(transparent)]
    Store(#[from] agentd_rootfs::StoreError),
    /// The user, in the image's passwd and group files.
    #[error(transparent)]
    User(#[from] agentd_rootfs::user::UserError),
    /// A host path.
    #[error("{what} {} cannot be used: {cause}{}", path.display(), hint.unwrap_or(""))]
    HostPath {
        /// What it was to be.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Why not: part of the message, because what to do comes after it.
        cause: io::Error,
        /// What to do.
        hint: Option<&'static str>,
    },
    /// Nothing to run.
    #[error("no command to run: {image} has none of its own; give one after `--`, as in: agentd run -- bash")]
    NoCommand {
        /// The image.
        image: String,
    },
    /// Landlock is a requirement.
    #[error("this kernel cannot confine with Landlock: {cause}; boot one ≥ 5.13 with `landlock` in its lsm= list")]
    NoLandlock {
        /// The errno.
        cause: io::Error,
    },
    /// The rules of the network.
    #[error(transparent)]
    Network(#[from] agentd_egress::PolicyError),
    /// The profile.
    #[error(transparent)]
    Profile(#[from] profile::ProfileError),
    /// Several ids.
    #[error(transparent)]
    SubIds(#[from] subids::SubIdError),
    /// A limit that cannot be enforced.
    #[error("{flags} cannot be enforced: {why}; or leave it out, or add --best-effort-limits to go without")]
    Limits {
        /// The flags.
        flags: String,
        /// Why not, and what would help.
        why: cgroup::Unenforceable,
    },
    /// A limit of each process that cannot be.
    #[error(transparent)]
    Ulimit(#[from] ulimit::UlimitError),
    /// A process for what nobody waits for.
    #[error("cannot write the image store back")]
    WriteBack(#[source] io::Error),
    /// agentd's own directories stay out of boxes.
    #[error("{} cannot be shown to a job: agentd keeps its own files in {}; give a directory beside it", path.display(), own.display())]
    OwnDirectory {
        /// What was to be shown.
        path: PathBuf,
        /// agentd's own.
        own: PathBuf,
    },
    /// A protected file that can be written through another name.
    #[error("{} has a second name (a hard link), through which the job could change it; make it a file of its own: `cp -p F G && mv G F`, or give --unprotect {relative}", path.display())]
    Linked {
        /// The file.
        path: PathBuf,
        /// The same, for `--unprotect`.
        relative: String,
    },
    /// Two mounts at one place.
    #[error("--mount target {0} is where agentd puts something of its own; choose another")]
    TargetTaken(String),
    /// Not representable in the plan.
    #[error("cannot find out {what}")]
    Host {
        /// What.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Looks a host object up: its absolute path, device, inode and kind.
fn source(path: &Path, what: &'static str) -> Result<(Source, Kind), PlanError> {
    let error = |errno: Errno| PlanError::HostPath {
        what,
        path: path.to_owned(),
        cause: errno.into(),
        hint: (errno == Errno::LOOP).then_some("; a part of it became a symbolic link just now"),
    };
    // The path was resolved at the edge: a link in it now was put there since.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).map_err(error)?;
    let stat = fstat(&opened).map_err(error)?;
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let kind = if is_directory { Kind::Directory } else { Kind::File };
    Ok((Source { path: path.to_owned(), device: stat.st_dev, inode: stat.st_ino }, kind))
}

/// The same for a layer of the store, with one look: there are many, and PID 1 refuses to follow a link to them anyway.
fn layer(path: PathBuf) -> Result<Source, PlanError> {
    match statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Source { path, device: stat.st_dev, inode: stat.st_ino }),
        Err(errno) => Err(PlanError::HostPath { what: "layer", path, cause: errno.into(), hint: None }),
    }
}

/// Whether the user may list and enter a directory. PID 1 could, with the capabilities it has over the user's own files.
fn may_enter(path: &Path, what: &'static str) -> Result<(), PlanError> {
    accessat(CWD, path, Access::READ_OK | Access::EXEC_OK, AtFlags::EACCESS).map_err(|errno| PlanError::HostPath {
        what,
        path: path.to_owned(),
        cause: errno.into(),
        hint: Some("; you may not list and enter it"),
    })
}

/// The same for what has to be a directory.
fn directory(path: &Path, what: &'static str) -> Result<Source, PlanError> {
    match source(path, what)? {
        (source, Kind::Directory) => Ok(source),
        (source, Kind::File) => Err(PlanError::HostPath {
            what,
            path: source.path,
            cause: io::ErrorKind::NotADirectory.into(),
            hint: Some("; give a directory"),
        }),
    }
}
