//! Limits that only a cgroup can enforce: where a job's own cgroup can be, and what is asked of it.
//!
//! ```text
//! here   what is asked for, and where it could be: decided with the plan, nothing is made
//! scope  a systemd scope for this process, where the cgroup it is in is not its own to divide
//! io     limits on disks
//! leaf   the job's cgroup: made, entered by the clone, read, removed
//! memory what happens when memory gets short
//! ```
//!
//! Invariant: only cgroup v2, and only where it is ours: below a cgroup that systemd or a container's engine has delegated,
//! or, as root, in a subtree of our own at the top of the hierarchy. A job without limits touches none of it.

pub mod counted;
pub mod io;
pub(crate) mod leaf;
pub(crate) mod memory;
pub(crate) mod scope;

use std::fs;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, access};
use serde::{Deserialize, Serialize};

use crate::job::id::JobId;
use io::IoLimit;

/// Where the supervisor of a job is, beside its job's cgroup: one with children may hold no process itself.
const SUPERVISOR: &str = "agentd-supervisor";

/// Root's jobs, at the top of the hierarchy.
const OF_ROOT: &str = "agentd";

/// What a job may use at most.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory: Option<u64>,
    /// Bytes of memory from which on the job is slowed down, and gives back what it can.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_high: Option<u64>,
    /// Bytes of swap beside it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub swap: Option<u64>,
    /// Thousandths of a CPU.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub milli_cpus: Option<u64>,
    /// Share of the CPU beside other jobs, 1 to 10,000; 100 is everybody's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_weight: Option<u64>,
    /// The CPUs it runs on, as in `0-3,8`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpus: Option<String>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pids: Option<u64>,
    /// Work of disks.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub io: Vec<IoLimit>,
}

impl Limits {
    /// The controllers that they are made of, and the flags that ask for them.
    fn needs(&self) -> Vec<(&'static str, &'static str)> {
        let io = self.io.iter().map(|limit| ("io", limit.what.flag(), true));
        [
            ("memory", "--memory", self.memory.is_some()),
            ("memory", "--memory-high", self.memory_high.is_some()),
            ("cpu", "--cpus", self.milli_cpus.is_some()),
            ("cpu", "--cpu-weight", self.cpu_weight.is_some()),
            ("cpuset", "--cpuset-cpus", self.cpus.is_some()),
            ("pids", "--pids", self.pids.is_some()),
        ]
        .into_iter()
        .chain(io)
        .filter_map(|(controller, flag, is_asked)| is_asked.then_some((controller, flag)))
        .collect()
    }

    fn controllers(&self) -> Vec<&'static str> {
        let mut controllers: Vec<&str> = self.needs().into_iter().map(|(controller, _)| controller).collect();
        controllers.dedup();
        controllers
    }

    /// The flags that were given.
    #[must_use]
    pub fn flags(&self) -> String {
        let mut flags: Vec<&str> = self.needs().into_iter().map(|(_, flag)| flag).collect();
        flags.dedup();
        flags.join(", ")
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.needs().is_empty()
    }
}

/// Limits, and where they will be enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// What is limited.
    #[serde(flatten)]
    pub limits: Limits,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
}

/// Where a job's cgroup comes to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "place")]
pub enum Place {
    /// In this directory, which holds no process.
    Below {
        /// Of the cgroup file system.
        directory: PathBuf,
    },
    /// In this directory, once the supervisor, the only process in it, has gone into one of its own below.
    Own {
        /// Of the cgroup file system.
        directory: PathBuf,
    },
    /// In a scope that the user's systemd is asked for.
    Scope {
        /// Its socket.
        manager: PathBuf,
        /// Where the hierarchy is mounted.
        hierarchy: PathBuf,
    },
}

/// Why no limit can be enforced, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{why}; {remedy}")]
pub struct Unenforceable {
    /// What is in the way.
    pub why: String,
    /// What would clear it.
    pub remedy: String,
}

/// Where a process is in the unified hierarchy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// No cgroup2 is mounted.
    NoHierarchy,
    /// Its cgroup is outside of what is mounted.
    Elsewhere,
    /// The directory of its cgroup.
    At(PathBuf),
}

/// Where a process with this `/proc/PID/cgroup` is, seen through a cgroup2 mount (its root and its point).
pub(crate) fn position(mount: Option<(&str, &str)>, cgroups: &str) -> Position {
    // A hybrid host has it at /sys/fs/cgroup/unified.
    let Some((root, point)) = mount else { return Position::NoHierarchy };
    let Some(own) = own(cgroups) else { return Position::NoHierarchy };
    // A path with `..` is relative to a cgroup namespace that this process has been moved out of (cgroup_namespaces(7)).
    match Path::new(own).strip_prefix(root) {
        Ok(below) if !own.contains("/..") => Position::At(Path::new(point).join(below).components().collect()),
        _ => Position::Elsewhere,
    }
}

/// The cgroup v2 path of a process, from its `/proc/PID/cgroup`.
pub(crate) fn own(cgroups: &str) -> Option<&str> {
    cgroups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The controllers of `wanted` that are not in a `cgroup.controllers`.
pub(crate) fn missing<'w>(controllers: &str, wanted: &[&'w str]) -> Vec<&'w str> {
    let has = |one: &&&str| controllers.split_whitespace().any(|controller| controller == **one);
    wanted.iter().filter(|one| !has(one)).copied().collect()
}

/// Whether this user may divide the cgroup `directory`.
pub(crate) fn is_ours(directory: &Path) -> bool {
    let files = ["", "cgroup.procs", "cgroup.subtree_control"];
    files.iter().all(|name| access(directory.join(name), Access::WRITE_OK).is_ok())
}

/// The private socket of this user's systemd: there a unit can be asked for without a message bus.
pub(crate) fn manager(uid: u32) -> PathBuf {
    PathBuf::from(format!("/run/user/{uid}/systemd/private"))
}

/// The first cgroup2 mount of a mountinfo: its root and its point.
fn mount(mountinfo: &str) -> Option<(&str, &str)> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        (file_system.split(' ').next() == Some("cgroup2")).then_some((fields.next()?, fields.next()?))
    })
}

/// Whether this user's jobs are in a cgroup even without limits of their own: root's are, where the hierarchy is his to divide,
/// for the kernel counts no processes of his otherwise.
pub(crate) fn bounds_every_job() -> bool {
    rustix::process::geteuid().is_root() && is_ours(Path::new("/sys/fs/cgroup"))
}

/// Decides where `limits` can be enforced; makes nothing.
///
/// # Errors
/// [`Unenforceable`].
pub fn find(limits: &Limits) -> Result<Place, Unenforceable> {
    let no = |why: String, remedy: &str| Err(Unenforceable { why, remedy: remedy.to_owned() });
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mount = mount(&mountinfo);
    let own = match position(mount, &cgroups) {
        Position::At(directory) => directory,
        Position::NoHierarchy => {
            return no("this host has no cgroup v2".into(), "boot it with systemd.unified_cgroup_hierarchy=1");
        }
        Position::Elsewhere => {
            return no(
                "this process's own cgroup is not in sight".into(),
                "start its container with --cgroupns=private and a writable /sys/fs/cgroup",
            );
        }
    };
    let hierarchy = PathBuf::from(mount.map_or("/sys/fs/cgroup", |(_, point)| point));
    let uid = rustix::process::geteuid();
    let place = place(&own, &hierarchy, uid.is_root(), &manager(uid.as_raw()));
    let Some(place) = place else {
        return no(
            format!("the cgroup {} is not this user's alone, and no systemd of the user's answers", own.display()),
            &remedy(&own),
        );
    };
    let controllers = match &place {
        // Not made yet.
        Place::Below { directory } if directory.ends_with(OF_ROOT) => hierarchy.join("cgroup.controllers"),
        Place::Below { directory } | Place::Own { directory } => directory.join("cgroup.controllers"),
        // The scope will have what the user's manager has.
        Place::Scope { .. } => {
            hierarchy.join(format!("user.slice/user-{0}.slice/user@{0}.service/cgroup.controllers", uid.as_raw()))
        }
    };
    let controllers = fs::read_to_string(controllers).unwrap_or_default();
    let missing = missing(&controllers, &limits.controllers());
    if missing.is_empty() {
        return Ok(place);
    }
    let why = format!("the cgroup controller {} is not this user's to use", missing.join(", "));
    if mountinfo.lines().any(|line| line.contains(" - cgroup ")) {
        return no(why, "boot with systemd.unified_cgroup_hierarchy=1: cgroup v1 holds the controllers");
    }
    match service(&own) {
        Some(unit) => no(why, &in_service(unit)),
        None => {
            no(why, "in `sudo systemctl edit user@.service` set Delegate=cpu cpuset io memory pids, then log in again")
        }
    }
}

/// What gives a process at `own` a cgroup to divide.
fn remedy(own: &Path) -> String {
    match service(own) {
        Some(unit) => in_service(unit),
        None => "log in through systemd-logind (`sudo loginctl enable-linger USER` once, without one), start agentd as the only \
                 process of a cgroup with Delegate=yes, or in a container give it a writable /sys/fs/cgroup"
            .to_owned(),
    }
}

fn in_service(unit: &str) -> String {
    format!("in `systemctl edit {unit}` set Delegate=yes, and let agentd be its only process")
}

/// The system's service that a cgroup belongs to.
fn service(own: &Path) -> Option<&str> {
    let mut parts = own.components().filter_map(|part| part.as_os_str().to_str());
    parts.find(|part| part.ends_with(".service")).filter(|unit| !unit.starts_with("user@"))
}

/// The service of a user's manager that `own` is the cgroup of.
fn users_service(own: &Path) -> Option<&str> {
    let unit = own.file_name()?.to_str()?;
    let is_users = |part: Component<'_>| part.as_os_str().to_str().is_some_and(|part| part.starts_with("user@"));
    (unit.ends_with(".service") && own.parent()?.components().any(is_users)).then_some(unit)
}

fn place(own: &Path, hierarchy: &Path, is_root: bool, manager: &Path) -> Option<Place> {
    let alone = || fs::read_to_string(own.join("cgroup.procs")).is_ok_and(|text| is_alone(&text, std::process::id()));
    let is_divisible = || is_ours(own) && alone();
    // A service's process stays in its service, root's too. What systemd has not given away it may take back, and its user
    // manager does not mark what it has, so that one is asked.
    let of_manager =
        || users_service(own).is_some_and(|unit| scope::is_delegated(manager, unit).is_ok_and(|is_given| is_given));
    if (is_delegated(own) && is_divisible()) || (!is_root && is_divisible() && of_manager()) {
        return Some(Place::Own { directory: own.to_owned() });
    }
    // The top of the whole hierarchy has no type; only there may processes and divided cgroups be side by side.
    let is_top = fs::symlink_metadata(hierarchy.join("cgroup.type")).is_err();
    if is_root && is_top && is_ours(hierarchy) {
        return Some(Place::Below { directory: hierarchy.join(OF_ROOT) });
    }
    // Where another agentd has divided the cgroup, this one was started in the supervisors' part.
    let parent = own.parent().filter(|parent| own.ends_with(SUPERVISOR) && is_ours(parent));
    if let Some(parent) = parent {
        return Some(Place::Below { directory: parent.to_owned() });
    }
    if std::os::unix::net::UnixStream::connect(manager).is_ok() {
        return Some(Place::Scope { manager: manager.to_owned(), hierarchy: hierarchy.to_owned() });
    }
    is_divisible().then(|| Place::Own { directory: own.to_owned() })
}

fn is_alone(procs: &str, pid: u32) -> bool {
    let mut pids = procs.lines();
    pids.next() == Some(pid.to_string().as_str()) && pids.next().is_none()
}

/// Whether the system's systemd has marked it as its user's (version 251).
fn is_delegated(directory: &Path) -> bool {
    let mut value = [0; 8];
    let read = rustix::fs::getxattr(directory, "user.delegate", &mut value[..]);
    read.is_ok_and(|length| value.get(..length) == Some(b"1"))
}

/// The name of a job's cgroup.
fn name(id: &JobId) -> String {
    format!("agentd-{id}")
}

/// Removes what the crashed job `id` may have left at `recorded`, a path from its record.
///
/// # Errors
/// Those of the file system; that there is nothing left is none.
pub(crate) fn sweep(id: &JobId, recorded: &Path) -> std::io::Result<()> {
    // A record is ours, but what is killed and removed here is checked all the same: a plain path to the cgroup of that id.
    let is_plain = recorded.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !is_plain || recorded.file_name() != Some(name(id).as_ref()) {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "the record names no cgroup of this job"));
    }
    leaf::remove(recorded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_type() {
        let table = "25 30 0:23 / /sys/fs/cgroup/memory rw,nosuid shared:4 - cgroup cgroup rw,memory\n\
            26 30 0:24 /x /sys/fs/cgroup/unified rw shared:5 master:1 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mount(table), Some(("/x", "/sys/fs/cgroup/unified")));
        assert_eq!(mount(""), None);
        assert_eq!(mount(table.lines().next().unwrap()), None);
    }

    #[test]
    fn a_process_is_found_in_the_hierarchy() {
        let session = "/user.slice/user-1000.slice/session-3.scope";
        let at = |path: &str| Position::At(path.into());
        let usual = ("/", "/sys/fs/cgroup");
        for (what, mount, cgroups, wanted) in [
            ("a usual host", usual, format!("0::{session}\n"), at(&format!("/sys/fs/cgroup{session}"))),
            (
                "a hybrid host",
                ("/", "/sys/fs/cgroup/unified"),
                "9:name=systemd:/\n8:pids:/\n0::/\n".to_owned(),
                at("/sys/fs/cgroup/unified"),
            ),
            ("a cgroup namespace", usual, "0::/\n".to_owned(), at("/sys/fs/cgroup")),
            (
                "docker run --cgroupns=host",
                ("/system.slice/docker-1.scope", "/sys/fs/cgroup"),
                "0::/system.slice/docker-1.scope\n".to_owned(),
                at("/sys/fs/cgroup"),
            ),
            ("moved out of its namespace", usual, "0::/../other\n".to_owned(), Position::Elsewhere),
            ("a part that it is not in", ("/a", "/sys/fs/cgroup"), "0::/ab\n".to_owned(), Position::Elsewhere),
            ("cgroup v1 alone", usual, "8:pids:/\n".to_owned(), Position::NoHierarchy),
        ] {
            assert_eq!(position(Some(mount), &cgroups), wanted, "{what}");
        }
        assert_eq!(position(None, "0::/\n"), Position::NoHierarchy);
    }

    #[test]
    fn missing_controllers_are_named() {
        let wanted = ["cpu", "memory", "pids"];
        assert!(missing("cpuset cpu io memory hugetlb pids rdma misc\n", &wanted).is_empty());
        assert_eq!(missing("memory pids\n", &wanted), ["cpu"]);
        assert_eq!(missing("cpuset", &wanted), wanted);
    }

    #[test]
    fn the_remedy_is_about_the_unit_it_runs_in() {
        assert!(remedy(Path::new("/sys/fs/cgroup/system.slice/ci.service")).contains("systemctl edit ci.service"));
        let session = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/a.scope";
        assert!(remedy(Path::new(session)).contains("enable-linger"));
    }

    #[test]
    fn a_users_service_is_told_from_the_manager_and_from_a_scope() {
        let manager = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service";
        let at = |below: &str| users_service(Path::new(&format!("{manager}{below}"))).map(str::to_owned);
        assert_eq!(at("/app.slice/app-agentd.slice/agentd@a.service"), Some("agentd@a.service".into()));
        assert_eq!((at(""), at("/app.slice/run-1.scope")), (None, None));
        assert_eq!(users_service(Path::new("/sys/fs/cgroup/system.slice/ci.service")), None);
    }

    #[test]
    fn only_a_process_by_itself_is_alone() {
        assert!(is_alone("12\n", 12));
        assert!(!is_alone("12\n13\n", 12) && !is_alone("13\n", 12) && !is_alone("", 12) && !is_alone("120\n", 12));
    }

    #[test]
    fn limits_know_their_flags() {
        let limits = Limits { memory: Some(1), cpus: Some("0".into()), ..Limits::default() };
        assert_eq!((limits.flags().as_str(), limits.is_none()), ("--memory, --cpuset-cpus", false));
        assert!(Limits::default().is_none());
        // Swap is a part of memory's limit.
        assert!(Limits { swap: Some(1), ..Limits::default() }.is_none());
    }

    #[test]
    fn a_record_that_names_another_cgroup_removes_nothing() {
        let id: JobId = "0123456789ab".parse().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mine = directory.path().join(name(&id));
        fs::create_dir(&mine).unwrap();
        for wrong in [directory.path().to_owned(), mine.join("..").join(name(&id)), name(&id).into()] {
            let swept = sweep(&id, &wrong);
            assert!(swept.is_err() || wrong.is_relative(), "{wrong:?}");
            assert!(mine.metadata().is_ok());
        }
        sweep(&id, &mine).unwrap();
        assert!(mine.metadata().is_err());
        sweep(&id, &mine).unwrap();
    }
}
