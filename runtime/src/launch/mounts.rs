//! The mounts on top of a box's root: the kernel's file systems, scratch places, the workspace, and what else is given.

use std::path::Path;

use agentd_init::plan::{Access, Addition, BoxPlan, Kind, Mount, Network};
use agentd_profiles::{PathRight, Place, Profile};

use super::plan::{HOME, WORKSPACE};
use super::{PlanError, secrets};
use crate::job::spec::JobSpec;

/// Device nodes of the host's /dev that every box gets.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// Under /proc: switches that the id of an ordinary user's box may own (those of its own namespaces, with `--user root`).
/// The machine's own switches belong to its root; a box that root starts has a /proc that is read-only as a whole.
const PROC_READ_ONLY: &[&str] = &["sys"];

/// Under /proc: what everybody may read and tells about the machine or the user's other sessions (from the OCI runtimes'
/// list; the rest of it only root may read).
const PROC_MASKED: &[&str] = &["keys", "key-users", "sched_debug", "acpi", "scsi", "asound", "interrupts"];

/// Under /proc: what only root may read, and the id of a box that root starts is root's.
const PROC_OF_ROOT: &[&str] = &[
    "kcore",
    "timer_list",
    "latency_stats",
    "kpagecount",
    "kpageflags",
    "kpagecgroup",
    "slabinfo",
    "vmallocinfo",
    "pagetypeinfo",
    "kmsg",
    "kallsyms",
    "modules",
];

/// Under /sys: firmware tables, power counters (a side channel).
const SYS_MASKED: &[&str] = &["firmware", "devices/virtual/powercap"];

/// File systems that the host has mounted below /sys (cgroups, tracing, security): a box gets none of them. With the
/// host's network its /sys is the host's, and these come along.
fn below_sys() -> Result<Vec<String>, PlanError> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|source| PlanError::Host { what: "what is mounted below /sys", source })?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)?.strip_prefix("/sys/"));
    Ok(points.map(str::to_owned).collect())
}

/// Adds them to the plan of the box.
pub(super) fn plan(
    spec: &JobSpec,
    home: &str,
    volumes: Vec<String>,
    profile: &Profile,
    inside: &mut BoxPlan,
) -> Result<(), PlanError> {
    let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    let scratch = |target: &str, mode| Mount::Scratch { target: target.to_owned(), mode };
    let mut masked: Vec<String> = strings(PROC_MASKED);
    let proc = if inside.identity.host_uid == 0 {
        masked.extend(strings(PROC_OF_ROOT));
        Mount::Proc { access: Access::ReadOnly, read_only: Vec::new(), masked }
    } else if profile.namespaces.allowed {
        // The kernel mounts a /proc inside only for who sees all of one already (user_namespaces(7)). What the covers keep
        // back here is about the machine, and the switches that are not the box's own belong to the machine's root.
        Mount::Proc { access: Access::ReadWrite, read_only: Vec::new(), masked: Vec::new() }
    } else {
        Mount::Proc { access: Access::ReadWrite, read_only: strings(PROC_READ_ONLY), masked }
    };
    let mut sys: Vec<String> = strings(SYS_MASKED);
    if inside.network == Network::Host {
        sys.extend(below_sys()?);
    }
    inside.mounts.extend([
        proc,
        Mount::Dev { nodes: strings(DEVICES) },
        Mount::Sys { masked: sys },
        scratch("/tmp", 0o1777),
        scratch("/run", 0o755),
        scratch("/scratch", 0o755),
        Mount::Writable { target: home.to_owned() },
    ]);
    let volumes = volumes.into_iter().filter(|volume| volume != home);
    inside.mounts.extend(volumes.map(|target| Mount::Writable { target }));
    for target in ["proc", "dev", "sys", "tmp", "run", "scratch"] {
        inside.root.additions.push(Addition::Covered { path: target.into() });
    }
    if home == HOME {
        // Made with the rest: in a directory of the image that belongs to somebody else nothing can be made later.
        inside.root.additions.push(Addition::Directory { path: HOME.trim_start_matches('/').into() });
    }
    if let Some(workspace) = &spec.workspace {
        inside.root.additions.push(Addition::Covered { path: "workspace".into() });
        let source = super::directory(&workspace.path, "workspace")?;
        super::may_enter(&source.path, "workspace")?;
        inside.mounts.push(Mount::Bind {
            source,
            target: WORKSPACE.into(),
            kind: Kind::Directory,
            access: granted(profile, &Place::Workspace, workspace.access),
        });
    }
    for mount in &spec.mounts {
        let taken = ["/proc", "/dev", "/sys", "/run/agentd", secrets::DIRECTORY];
        let hides_secrets = !spec.secrets.is_empty() && Path::new(secrets::DIRECTORY).starts_with(&mount.target);
        if hides_secrets || taken.iter().any(|place| Path::new(&mount.target).starts_with(place)) {
            return Err(PlanError::TargetTaken(mount.target.clone()));
        }
        let (source, kind) = super::source(&mount.source, "mount source")?;
        let access = granted(profile, &Place::Mounts, mount.access);
        inside.mounts.push(Mount::Bind { source, target: mount.target.clone(), kind, access });
    }
    if !spec.secrets.is_empty() {
        inside.mounts.push(Mount::Secrets { target: secrets::DIRECTORY.into(), names: spec.secrets.clone() });
    }
    Ok(())
}

/// How a place may be mounted: what the profile lets nobody write is read-only for everybody, by the mount as well.
fn granted(profile: &Profile, place: &Place, asked: Access) -> Access {
    if profile.access(place).has(PathRight::Write) { asked } else { Access::ReadOnly }
}
