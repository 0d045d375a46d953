//! cgroup v2: could limits be enforced for this user here, and how would that come about?
//!
//! This version of agentd places no job in a cgroup, so nothing here stops a run.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::Finding;
use super::host::{Enclosure, Host, own_cgroup};

/// The controllers that agentd's limits are made of.
const WANTED: &[&str] = &["cpu", "memory", "pids"];

/// Said of what would work: the limits of this version are refused or ignored, as the user asked.
const NOT_YET: &str = "this version of agentd does not use it yet";

/// Where a process is in the unified hierarchy.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// No cgroup2 is mounted.
    NoHierarchy,
    /// Its cgroup is outside of what is mounted.
    Elsewhere,
    /// The directory of its cgroup.
    At(PathBuf),
}

/// What this user may do with cgroups.
pub(super) fn examine(host: &Host, runtime: Option<&Path>) -> Finding {
    let subject = "cgroups";
    let directory = match place(host) {
        Place::At(directory) => directory,
        Place::NoHierarchy => {
            let remedy = "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 on /sys/fs/cgroup";
            return Finding::limited(subject, "no cgroup v2: no limit can be enforced", remedy.to_owned());
        }
        Place::Elsewhere => {
            let remedy = match host.enclosure {
                Enclosure::None => "mount the cgroup2 hierarchy whole on /sys/fs/cgroup",
                _ => "start the container with --cgroupns=private and a writable /sys/fs/cgroup",
            };
            return Finding::limited(subject, "this process's own cgroup is not in sight", remedy.to_owned());
        }
    };
    let at = directory.display();
    let controllers = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    let missing = missing(&controllers);
    if !missing.is_empty() {
        return Finding::limited(
            subject,
            format!("cgroup v2 at {at} is without {}", missing.join(", ")),
            without_controllers(host, &missing),
        );
    }
    let writable = ["", "cgroup.procs", "cgroup.subtree_control"]
        .iter()
        .all(|name| access(directory.join(name), Access::WRITE_OK).is_ok());
    if writable {
        return Finding::ok(subject, format!("{at} with {} is this user's; {NOT_YET}", WANTED.join(", ")));
    }
    if runtime.is_some_and(manager_answers) {
        let remedy = "systemd-run --user --scope -p Delegate=yes agentd run …";
        return Finding::limited(
            subject,
            format!("not delegated, but systemd would give a scope; {NOT_YET}"),
            remedy.to_owned(),
        );
    }
    let remedy = match &host.enclosure {
        Enclosure::Service(unit) => format!("in `systemctl edit {unit}` set Delegate=yes"),
        Enclosure::None => format!("sudo loginctl enable-linger {}, then log in again", host.uid),
        _ => "start the container with a writable /sys/fs/cgroup".into(),
    };
    Finding::limited(subject, format!("{at} is not this user's: no limit can be enforced"), remedy)
}

fn place(host: &Host) -> Place {
    // A hybrid host has it at /sys/fs/cgroup/unified.
    let Some(mount) = host.mounts.iter().find(|mount| mount.kind == "cgroup2") else { return Place::NoHierarchy };
    let Some(own) = own_cgroup(&host.cgroups) else { return Place::NoHierarchy };
    // A path with `..` is relative to a cgroup namespace that this process has been moved out of (cgroup_namespaces(7)).
    match Path::new(own).strip_prefix(&mount.root) {
        Ok(below) if !own.contains("/..") => Place::At(Path::new(&mount.point).join(below).components().collect()),
        _ => Place::Elsewhere,
    }
}

fn missing(controllers: &str) -> Vec<&'static str> {
    let has = |wanted: &&&str| controllers.split_whitespace().any(|controller| controller == **wanted);
    WANTED.iter().filter(|wanted| !has(wanted)).copied().collect()
}

fn without_controllers(host: &Host, missing: &[&str]) -> String {
    if host.mounts.iter().any(|mount| mount.kind == "cgroup") {
        return "boot with systemd.unified_cgroup_hierarchy=1: cgroup v1 holds the controllers".into();
    }
    match &host.enclosure {
        Enclosure::Service(unit) => format!("in `systemctl edit {unit}` set Delegate=yes"),
        Enclosure::None => format!(
            "in `sudo systemctl edit user@.service` set Delegate={}, then log in again",
            [missing, &["cpuset", "io"]].concat().join(" ")
        ),
        _ => "start the container with --cgroupns=private and a writable /sys/fs/cgroup".into(),
    }
}

/// Whether systemd's user manager listens.
fn manager_answers(runtime: &Path) -> bool {
    ["systemd/private", "bus"].iter().any(|socket| UnixStream::connect(runtime.join(socket)).is_ok())
}

#[cfg(test)]
mod tests;
