//! The root of the box: the stage (its one tmpfs), the overlay, the change of root.
//!
//! ```text
//! stage (tmpfs, bounded)     over the host's /sys, until the host's root goes and takes it along
//! ├── root/                  mount point of the new root
//! ├── own/1, own/2, …        bound as /tmp, /run, /scratch, /dev, and over masked paths
//! └── tree/3, …              each with the upper/ and work/ of an overlay: the root's, those of host trees
//! ```
//!
//! Invariant: nothing here is reached by a path that the host or the image could bend: the stage's own names are made
//! by this process in a tmpfs that nobody else sees.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use agentd_sys::mount::{Attributes, set_attributes};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, XattrFlags, lsetxattr, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

use crate::plan::{Addition, BoxPlan, Kind, Source};
use crate::report::{self, Report};
use crate::step::{At, Failure, Step};
use crate::tree;

/// One file for so many bytes of `--storage`; and what the box itself needs, many times over.
const BYTES_PER_FILE: u64 = 4096;
const LEAST_FILES: u64 = 1024;

/// Where the stage is while the box is built.
const STAGE: &str = "/sys";

/// Layers whose names fit the 255 bytes of one fsconfig(2) string. More are many: each look at them all takes long.
const LAYERS_IN_ONE_OPTION: usize = 12;

/// The box's one tmpfs: everything it may write that is not the workspace, under one bound.
#[derive(Debug)]
pub(crate) struct Stage {
    directory: OwnedFd,
    own: OwnedFd,
    trees: OwnedFd,
    used: Cell<u32>,
}

impl Stage {
    /// A fresh directory for a mount of the box, with exactly `mode`.
    pub(crate) fn own_directory(&self, mode: u32) -> Result<OwnedFd, Errno> {
        tree::directory(&self.own, &self.next_name(), mode)
    }

    /// A detached read-only mount of something empty, to cover a path with; copies of it are read-only too.
    pub(crate) fn nothing(&self, kind: Kind) -> io::Result<OwnedFd> {
        let name = self.next_name();
        let nothing = match kind {
            Kind::File => tree::file(self.own.as_fd(), &name, 0o444),
            Kind::Directory => tree::directory(&self.own, &name, 0o555),
        }?;
        let cover = clone_mount(nothing.as_fd(), false)?;
        let attributes = Attributes { read_only: true, no_suid: true, no_dev: true, no_exec: true };
        set_attributes(cover.as_fd(), attributes, false)?;
        Ok(cover)
    }

    fn next_name(&self) -> String {
        self.used.set(self.used.get() + 1);
        self.used.get().to_string()
    }
}

/// No mount made in the box appears on the host, and none made on the host appears in the box.
pub(crate) fn make_private() -> Result<(), Failure> {
    // A mount namespace made together with a user namespace starts as a slave of the host's; private cuts that too.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).at(Step::MakePrivate, "/")
}

/// Mounts the stage and makes its directories. It has to be part of the mount tree to be an overlay's upper layer, and
/// /sys is a directory that every host has and nothing needs any more (a bind of it was made before).
pub(crate) fn stage(plan: &BoxPlan) -> Result<Stage, Failure> {
    let at = Step::Stage;
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).at(at, "tmpfs")?;
    fsconfig_set_string(&tmpfs, "size", plan.root.storage.to_string()).at(at, "size")?;
    // A file costs kernel memory beside its bytes: as many as a disk of that size would have.
    let files = (plan.root.storage / BYTES_PER_FILE).max(LEAST_FILES);
    fsconfig_set_string(&tmpfs, "nr_inodes", files.to_string()).at(at, "nr_inodes")?;
    fsconfig_set_string(&tmpfs, "mode", "0700").at(at, "mode")?;
    let directory = attach_new(&tmpfs, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)
        .and_then(|mount| {
            move_mount(&mount, "", CWD, STAGE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            Ok(mount)
        })
        .at(at, "tmpfs")?;
    mkdirat(&directory, "root", Mode::from_raw_mode(0o755)).at(at, "root")?;
    let own = tree::directory(&directory, "own", 0o700).at(at, "own")?;
    let trees = tree::directory(&directory, "tree", 0o700).at(at, "tree")?;
    Ok(Stage { directory, own, trees, used: Cell::new(0) })
}

/// Puts the new root together and mounts it on the stage; the directory that holds what is written to it comes second.
pub(crate) fn assemble(plan: &BoxPlan, stage: &Stage) -> Result<(OwnedFd, OwnedFd), Failure> {
    let at = Step::AssembleRoot;
    let (root, upper) = if plan.root.layers.is_empty() {
        let empty = stage.own_directory(0o755).at(at, "/")?;
        tree::lay(empty.as_fd(), &plan.root.additions, at)?;
        (clone_mount(empty.as_fd(), false).at(at, "/")?, empty)
    } else {
        overlay(stage, &plan.root.layers, &plan.root.additions, at)?
    };
    move_mount(&root, "", &stage.directory, "root", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at(at, "/")?;
    Ok((root, upper))
}

/// Sends the supervisor a descriptor of `upper`: with it the tmpfs outlives the box. No process of the box has one, for
/// what changes under a mounted overlay is undefined.
pub(crate) fn hand_over(upper: &OwnedFd, channel: &OwnedFd) -> Result<(), Failure> {
    let at = Step::AssembleRoot;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable = openat(upper, ".", flags, Mode::empty()).at(at, "upperdir")?;
    report::send(channel, &Report::Upper, Some(readable.as_fd())).at(at, "the supervisor")
}

/// A detached overlay of `layers` (lowest first) with `additions` in an upper directory of its own, which comes second.
pub(crate) fn overlay(
    stage: &Stage,
    layers: &[Source],
    additions: &[Addition],
    at: Step,
) -> Result<(OwnedFd, OwnedFd), Failure> {
    let writable = tree::directory(&stage.trees, &stage.next_name(), 0o700).at(at, "tmpfs")?;
    let upper = tree::directory(&writable, "upper", 0o755).at(at, "upperdir")?;
    let work = tree::directory(&writable, "work", 0o700).at(at, "workdir")?;
    tree::lay(upper.as_fd(), additions, at)?;
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).at(at, "overlay")?;
    // The topmost layer comes first.
    let topmost_first = layers.iter().rev();
    // Open until the overlay is made: before Linux 6.5 it looks for them only then.
    let mut held: Vec<OwnedFd> = Vec::new();
    if layers.len() <= LAYERS_IN_ONE_OPTION {
        // By descriptor, through /proc: however deep the store lies, and whatever its path holds, the options stay short
        // and plain.
        held = topmost_first.map(|layer| tree::open_source(layer, at)).collect::<Result<_, _>>()?;
        let lowers: Vec<String> = held.iter().map(by_descriptor).collect();
        fsconfig_set_string(&overlay, "lowerdir", lowers.join(":")).at(at, "lowerdir")?;
    } else {
        close(&upper, additions).at(at, "upperdir")?;
        // One option a layer: Linux 6.8. By where this process is, which takes half as long as by way of /proc.
        let mut store = Shelf::default();
        for layer in topmost_first {
            fchdir(store.open(layer, at)?).at(at, "fchdir")?;
            fsconfig_set_string(&overlay, "lowerdir+", ".").at(at, "lowerdir+")?;
        }
        chdir("/").at(at, "/")?;
    }
    fsconfig_set_string(&overlay, "upperdir", by_descriptor(&upper)).at(at, "upperdir")?;
    fsconfig_set_string(&overlay, "workdir", by_descriptor(&work)).at(at, "workdir")?;
    // What an unprivileged mount may use for its whiteouts; `volatile` skips syncs of what is thrown away anyway.
    fsconfig_set_flag(&overlay, "userxattr").at(at, "userxattr")?;
    fsconfig_set_flag(&overlay, "volatile").at(at, "volatile")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = attach_new(&overlay, attributes).at(at, "overlay")?;
    drop(held);
    Ok((mount, upper))
}

/// The directory of a store in which its layers are, `KEY/fs` each: from there a layer is two components away, not ten.
#[derive(Default)]
struct Shelf<'p>(Option<(&'p [u8], OwnedFd)>);

impl<'p> Shelf<'p> {
    fn open(&mut self, layer: &'p Source, at: Step) -> Result<OwnedFd, Failure> {
        let path = layer.path.as_os_str().as_bytes();
        let Some(above) = path.rsplitn(3, |byte| *byte == b'/').nth(2).filter(|above| !above.is_empty()) else {
            return tree::open_source(layer, at);
        };
        let below = path.get(above.len() + 1..).unwrap_or_default();
        let (_, directory) = match self.0.take() {
            Some(held) if held.0 == above => self.0.insert(held),
            _ => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let opened = openat2(CWD, above, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
                self.0.insert((above, opened.at(at, layer.path.display())?))
            }
        };
        tree::open_source_from(directory, below, layer, at)
    }
}

/// Marks what is mounted over as opaque: else the kernel asks every layer for a directory to merge with it.
fn close(upper: &OwnedFd, additions: &[Addition]) -> Result<(), Errno> {
    fchdir(upper)?;
    let covered = additions.iter().filter_map(|addition| match addition {
        Addition::Covered { path } => Some(path),
        _ => None,
    });
    for path in covered {
        match lsetxattr(path, "user.overlay.opaque", b"y", XattrFlags::empty()) {
            // Only slower: tmpfs has such attributes since Linux 6.6.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn by_descriptor(directory: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", directory.as_raw_fd())
}

/// Makes the file system that `context` describes and a detached mount of it.
pub(crate) fn attach_new(context: &OwnedFd, attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    fsconfig_create(context)?;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A detached copy of the mount that `of` lies in, rooted at `of`; with everything mounted below it if `recursive`.
pub(crate) fn clone_mount(of: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(of, "", flags)
}

/// Where inside the root `found` is, whatever links led there.
pub(crate) fn place(found: &OwnedFd) -> Result<String, Errno> {
    let path = rustix::fs::readlink(by_descriptor(found), Vec::new())?;
    let path = path.to_string_lossy();
    // The root hangs at `root/` of the stage.
    let inside = path.strip_prefix(STAGE).and_then(|path| path.strip_prefix("/root"));
    inside.map(str::to_owned).ok_or(Errno::XDEV)
}

/// Makes the new root `/`, lets go of the host's, and seals it.
pub(crate) fn enter(root: OwnedFd, stage: Stage, plan: &BoxPlan) -> Result<(), Failure> {
    fchdir(&root).at(Step::PivotRoot, "fchdir")?;
    // With both arguments "." the old root ends up over the new one, and "." is what is on top (pivot_root(2)).
    pivot_root(".", ".").at(Step::PivotRoot, "pivot_root")?;
    unmount(".", UnmountFlags::DETACH).at(Step::PivotRoot, "the host's root")?;
    chdir("/").at(Step::PivotRoot, "/")?;
    drop(stage);
    if !plan.root.writable {
        let sealed = Attributes { read_only: true, ..Attributes::default() };
        set_attributes(root.as_fd(), sealed, false).at(Step::SealRoot, "/")?;
    }
    Ok(())
}
