//! The mounts on top of the root, one function a kind.
//!
//! Invariant: a mount is complete (attributes included) before it is attached, and is attached to a descriptor that was
//! resolved inside the root; so there is no moment at which a host directory is in the box with more rights than planned.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use agentd_sys::mount::{Attributes, set_attributes};
use rustix::fs::{CWD, Mode, OFlags, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_set_string, fsopen, move_mount};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};

use crate::pieces::Tree;
use crate::plan::{Access, BoxPlan, Guard, Kind, Mount};
use crate::protect;
use crate::report::{self, Report};
use crate::root::{self, Stage, attach_new, clone_mount};
use crate::secrets::{self, Secrets};
use crate::step::{At, Failure, Step};
use crate::tree;

pub(crate) const CONFINED: Attributes = Attributes { read_only: false, no_suid: true, no_dev: true, no_exec: false };
pub(crate) const READ_ONLY: Attributes = Attributes { read_only: true, ..CONFINED };
const NODE: Attributes = Attributes { read_only: true, no_suid: true, no_dev: false, no_exec: true };

/// What [`build`] leaves behind.
#[derive(Debug)]
pub(crate) struct Built {
    /// The payload's side of the terminal, when it is to have one.
    pub(crate) terminal: Option<OwnedFd>,
    /// Where each mount really is: a target may have led through links of the image.
    pub(crate) targets: Vec<String>,
}

/// Makes every mount of the plan.
pub(crate) fn build(
    plan: &BoxPlan,
    stage: &Stage,
    root: &OwnedFd,
    channel: &OwnedFd,
    secrets: &Secrets,
) -> Result<Built, Failure> {
    let mut built = Built { terminal: None, targets: Vec::with_capacity(plan.mounts.len()) };
    for mount in &plan.mounts {
        let target = match mount {
            Mount::Proc { access, read_only, masked } => proc(stage, root, *access, read_only, masked)?,
            Mount::Dev { nodes } => {
                let (target, pts) = dev(stage, root, nodes, &plan.guards)?;
                if plan.process.terminal {
                    built.terminal = Some(open_terminal(&pts, channel)?);
                }
                target
            }
            // Shows the network namespace, which is not there yet: `sys` is called when it is.
            Mount::Sys { .. } => continue,
            Mount::Scratch { target, mode } => {
                let directory = stage.own_directory(*mode).at(Step::MountScratch, target)?;
                let clone = clone_mount(directory.as_fd(), false).at(Step::MountScratch, target)?;
                attach(&clone, root, target, Kind::Directory, Step::MountScratch)?
            }
            Mount::Writable { target } => {
                let directory = tree::find_or_make(root.as_fd(), target, Kind::Directory, Step::MountScratch)?;
                let place = own_place(&directory, target, Step::MountScratch)?;
                let clone = clone_mount(directory.as_fd(), false).at(Step::MountScratch, target)?;
                attach_to(&clone, directory.as_fd()).at(Step::MountScratch, target)?;
                place
            }
            Mount::HostTree { source, target, writable, additions } => {
                Tree { source, writable: *writable, additions }.mount(stage, root, target)?
            }
            Mount::Bind { source, target, kind, access } => {
                let object = || format!("{} on {target}", source.path.display());
                let opened = tree::open_source(source, Step::Bind)?;
                let clone = clone_mount(opened.as_fd(), true).at(Step::Bind, object())?;
                let attributes = match access {
                    Access::ReadOnly => READ_ONLY,
                    Access::ReadWrite => CONFINED,
                };
                set_attributes(clone.as_fd(), attributes, true).at(Step::Bind, object())?;
                let found = tree::find_or_make(root.as_fd(), target, *kind, Step::Bind)?;
                let place = own_place(&found, target, Step::Bind)?;
                attach_to(&clone, found.as_fd()).at(Step::Bind, target)?;
                place
            }
            Mount::Secrets { target, names } => secrets::deliver(root, target, names, &secrets.files)?,
            Mount::Trust { target, names } => secrets::deliver(root, target, names, &secrets.certificates)?,
        };
        built.targets.push(target);
    }
    // After the mounts: it may lie in one of them.
    for path in &plan.root.ensure {
        tree::find_or_make(root.as_fd(), path, Kind::Directory, Step::MountScratch)?;
    }
    Ok(built)
}

/// Where `found` is, unless that is part of what the kernel or agentd shows: a mount there could uncover what is masked
/// (CVE-2025-31133), and the image chooses where its links and its home directory lead.
fn own_place(found: &OwnedFd, target: &str, at: Step) -> Result<String, Failure> {
    let place = root::place(found).at(at, target)?;
    let kernels = ["/proc", "/sys", "/dev"];
    let is_kernels = kernels.iter().any(|top| Path::new(&place).starts_with(top));
    if is_kernels || place.is_empty() || place == "/" {
        return Err(Failure::new(at, format!("{target} leads to {place}, where nothing may be mounted"), libc::EPERM));
    }
    Ok(place)
}

/// Attaches `mount` at `target` inside `root`; gives the place it ended up at, which a link of the image may have moved.
pub(crate) fn attach(mount: &OwnedFd, root: &OwnedFd, target: &str, kind: Kind, step: Step) -> Result<String, Failure> {
    let found = tree::find_or_make(root.as_fd(), target, kind, step)?;
    let place = root::place(&found).at(step, target)?;
    attach_to(mount, found.as_fd()).at(step, target)?;
    Ok(place)
}

pub(crate) fn attach_to(mount: &OwnedFd, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

/// A mount of our own tree, by a name in it that nobody else could have made a link.
fn attach_at(mount: &OwnedFd, parent: &OwnedFd, name: &str) -> Result<(), Errno> {
    move_mount(mount, "", parent, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn proc(
    stage: &Stage,
    root: &OwnedFd,
    access: Access,
    read_only: &[String],
    masked: &[String],
) -> Result<String, Failure> {
    let at = Step::MountProc;
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).at(at, "proc")?;
    // What a process may not trace it does not see: PID 1's command line is the user's.
    fsconfig_set_string(&context, "hidepid", "ptraceable").at(at, "hidepid")?;
    let mut hardened =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    if access == Access::ReadOnly {
        hardened |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let proc = attach_new(&context, hardened).at(at, "proc")?;
    let target = attach(&proc, root, "/proc", Kind::Directory, at)?;
    // The mapped id may own what is there, and writing a sysctl asks for no capability.
    for name in read_only {
        let Some(is_directory) = tree::is_directory(&proc, name).at(at, name)? else { continue };
        let kind = if is_directory { Kind::Directory } else { Kind::File };
        let place = tree::in_root(proc.as_fd(), name, kind).at(at, name)?;
        let clone = clone_mount(place.as_fd(), false).at(at, name)?;
        set_attributes(clone.as_fd(), READ_ONLY, false).at(at, name)?;
        attach_to(&clone, place.as_fd()).at(at, name)?;
    }
    mask(stage, &proc, masked, at)?;
    Ok(target)
}

/// Covers each path that exists with something empty that cannot be written.
fn mask(stage: &Stage, tree: &OwnedFd, paths: &[String], at: Step) -> Result<(), Failure> {
    let (mut file, mut directory) = (None, None);
    for path in paths {
        let Some(is_directory) = tree::is_directory(tree, path).at(at, path)? else { continue };
        let (kind, cover) = if is_directory { (Kind::Directory, &mut directory) } else { (Kind::File, &mut file) };
        let place = tree::in_root(tree.as_fd(), path, kind).at(at, path)?;
        let cover = match cover {
            Some(cover) => clone_mount(AsFd::as_fd(cover), false).at(at, path)?,
            none => none.insert(stage.nothing(kind).at(at, path)?).try_clone().at(at, path)?,
        };
        attach_to(&cover, place.as_fd()).at(at, path)?;
    }
    Ok(())
}

/// Mounts /dev; gives its place and its devpts.
fn dev(stage: &Stage, root: &OwnedFd, nodes: &[String], guards: &[Guard]) -> Result<(String, OwnedFd), Failure> {
    let at = Step::MountDev;
    let directory = stage.own_directory(0o755).at(at, "/dev")?;
    let dev = clone_mount(directory.as_fd(), false).at(at, "/dev")?;
    let target = attach(&dev, root, "/dev", Kind::Directory, at)?;
    for node in nodes {
        let path = format!("/dev/{node}");
        let host =
            openat(CWD, &path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).at(at, &path)?;
        let clone = clone_mount(host.as_fd(), false).at(at, &path)?;
        // Writing to a device asks nothing of its mount; changing the host's node does.
        set_attributes(clone.as_fd(), NODE, false).at(at, &path)?;
        let place = tree::file(dev.as_fd(), node, 0o644).at(at, &path)?;
        attach_to(&clone, place.as_fd()).at(at, &path)?;
    }
    for (link, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlinkat(to, &dev, link).at(at, link)?;
    }
    if !guards.is_empty() {
        protect::make_covers(&dev)?;
    }
    let shm = stage.own_directory(0o1777).at(at, "/dev/shm")?;
    let shm = clone_mount(shm.as_fd(), false).at(at, "/dev/shm")?;
    tree::directory(&dev, "shm", 0o755).at(at, "/dev/shm")?;
    attach_at(&shm, &dev, "shm").at(at, "/dev/shm")?;

    let context = fsopen("devpts", FsOpenFlags::FSOPEN_CLOEXEC).at(at, "devpts")?;
    fsconfig_set_string(&context, "ptmxmode", "0666").at(at, "ptmxmode")?;
    fsconfig_set_string(&context, "mode", "0620").at(at, "mode")?;
    let pts =
        attach_new(&context, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC).at(at, "devpts")?;
    tree::directory(&dev, "pts", 0o755).at(at, "/dev/pts")?;
    attach_at(&pts, &dev, "pts").at(at, "/dev/pts")?;
    // The names are complete; devices, shm and pts are mounts of their own and stay usable.
    set_attributes(dev.as_fd(), READ_ONLY, false).at(at, "/dev")?;
    Ok((target, pts))
}

/// A detached, fresh, read-only /sys of the calling process's network namespace.
pub(crate) fn fresh_sys() -> Result<OwnedFd, Errno> {
    let context = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    attach_new(&context, attributes)
}

/// A detached, read-only copy of the host's /sys: only the owner of a network namespace may mount a fresh one.
pub(crate) fn host_sys() -> Result<OwnedFd, Failure> {
    let at = Step::MountSys;
    let host = openat(CWD, "/sys", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).at(at, "/sys")?;
    let clone = clone_mount(host.as_fd(), true).at(at, "/sys")?;
    set_attributes(clone.as_fd(), READ_ONLY, true).at(at, "/sys")?;
    Ok(clone)
}

/// Mounts /sys and covers what it should not show; gives its place.
pub(crate) fn sys(plan: &BoxPlan, stage: &Stage, root: &OwnedFd, sys: OwnedFd) -> Result<String, Failure> {
    let at = Step::MountSys;
    let target = attach(&sys, root, "/sys", Kind::Directory, at)?;
    for mount in &plan.mounts {
        if let Mount::Sys { masked } = mount {
            mask(stage, &sys, masked, at)?;
        }
    }
    Ok(target)
}

/// Mounts the box's own cgroup, the root of its cgroup namespace; gives its place. Read-only: a process of the box has the
/// user's id outside, to whom the files belong.
pub(crate) fn cgroup(root: &OwnedFd) -> Result<String, Failure> {
    let at = Step::MountSys;
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC).at(at, "cgroup2")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let cgroup = attach_new(&context, attributes).at(at, "cgroup2")?;
    attach(&cgroup, root, "/sys/fs/cgroup", Kind::Directory, at)
}

/// Opens a pty of the box's own devpts and sends its controlling side to the supervisor.
pub(crate) fn open_terminal(pts: &OwnedFd, channel: &OwnedFd) -> Result<OwnedFd, Failure> {
    let at = Step::OpenTerminal;
    let controller =
        openat(pts, "ptmx", OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).at(at, "/dev/ptmx")?;
    unlockpt(&controller).at(at, "/dev/ptmx")?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = ioctl_tiocgptpeer(&controller, flags).at(at, "/dev/pts")?;
    report::send(channel, &Report::Terminal, Some(controller.as_fd())).at(at, "the supervisor")?;
    Ok(terminal)
}
