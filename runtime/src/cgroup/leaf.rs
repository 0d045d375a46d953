//! The cgroup of one job.
//!
//! Invariant: a leaf is made with its limits before a process is in it, is entered by `clone3` alone, and is removed with its
//! [`Leaf`], whatever was still in it killed first.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::memory::{Verdict, Watch};
use super::{Cgroup, Limits, Place, SUPERVISOR, name, scope};
use crate::job::id::JobId;

/// Controllers that tell what a job used, where they are there.
const TELLING: [&str; 3] = ["memory", "pids", "cpu"];

/// The period over which the CPU limit holds, in microseconds: the kernel's default.
const PERIOD: u64 = 100_000;

/// A killed process may be deep in the kernel.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// A thread that was joined may still be on its way out, and the kernel moves no such thread with its process.
const THREADS_GONE_WITHIN: Duration = Duration::from_secs(1);

/// PID 1 of the box is not one of the processes the user meant.
pub(super) const OWN_PROCESSES: u64 = 1;

/// A cgroup that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// A file of the cgroup file system.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// systemd.
    #[error(transparent)]
    Scope(#[from] scope::ScopeError),
}

/// What a job used, and how often it was stopped from using more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Most bytes of memory at once (Linux 5.19).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_peak: Option<u64>,
    /// Most processes and threads at once, PID 1 among them (Linux 6.1).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pids_peak: Option<u64>,
    /// Microseconds of CPU time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_us: Option<u64>,
    /// Microseconds that it was held back for its CPU limit.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_throttled_us: Option<u64>,
    /// Processes that were killed for want of memory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub oom_kills: Option<u64>,
    /// Names of those, as far as they were seen; the payload chose them.
    #[serde(rename = "oom_killed", skip_serializing_if = "Vec::is_empty", default)]
    pub untrusted_killed: Vec<String>,
    /// How often a fork was refused for the limit on processes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub forks_refused: Option<u64>,
}

impl Usage {
    /// Of a job that had one cgroup after the other: sums, and of peaks the higher one.
    #[must_use]
    pub(crate) fn and(mut self, later: Self) -> Self {
        /// Names that are kept: each box may add some.
        const MOST_NAMES: usize = 100;
        let highest = |one: Option<u64>, other: Option<u64>| one.max(other);
        let sum = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (Some(one), Some(other)) => Some(one.saturating_add(other)),
            (one, other) => one.or(other),
        };
        self.untrusted_killed.extend(later.untrusted_killed);
        self.untrusted_killed.truncate(MOST_NAMES);
        Usage {
            memory_peak: highest(self.memory_peak, later.memory_peak),
            pids_peak: highest(self.pids_peak, later.pids_peak),
            cpu_us: sum(self.cpu_us, later.cpu_us),
            cpu_throttled_us: sum(self.cpu_throttled_us, later.cpu_throttled_us),
            oom_kills: sum(self.oom_kills, later.oom_kills),
            untrusted_killed: self.untrusted_killed,
            forks_refused: sum(self.forks_refused, later.forks_refused),
        }
    }
}

/// A job's cgroup; removed when dropped.
#[derive(Debug)]
pub(crate) struct Leaf {
    directory: PathBuf,
    handle: OwnedFd,
    /// Where the kernel tells of memory; it does where that is limited.
    watch: Option<Watch>,
    is_frozen: bool,
}

impl Leaf {
    /// Makes the cgroup of `id` with its limits.
    pub(crate) fn make(cgroup: &Cgroup, id: &JobId) -> Result<Self, LeafError> {
        let base = match &cgroup.place {
            Place::Below { directory } => {
                make_directory(directory)?;
                directory.clone()
            }
            Place::Own { directory } => {
                step_aside(directory)?;
                directory.clone()
            }
            Place::Scope { manager, hierarchy } => {
                let directory = scope::enter(manager, hierarchy, &format!("{}.scope", name(id)))?;
                step_aside(&directory)?;
                directory
            }
        };
        enable(&base, &cgroup.limits, &cgroup.place)?;
        let directory = base.join(name(id));
        fs::create_dir(&directory).doing("create the cgroup", &directory)?;
        let made = limit(&directory, &cgroup.limits).and_then(|()| {
            let handle = open(&directory)?;
            let watch = match cgroup.limits.memory {
                Some(_) => Some(Watch::new(&directory).doing("watch the memory of", &directory)?),
                None => Watch::new(&directory).ok(),
            };
            Ok((handle, watch))
        });
        match made {
            Ok((handle, watch)) => Ok(Self { directory, handle, watch, is_frozen: false }),
            Err(error) => {
                // The error that is returned says more than this one could.
                fs::remove_dir(&directory).unwrap_or_default();
                Err(error)
            }
        }
    }

    /// For `CLONE_INTO_CGROUP`.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Its path, for the record.
    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }

    /// What to poll for an exceptional condition, where the kernel tells of memory.
    pub(crate) fn alarm(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    /// Answers the alarm.
    pub(crate) fn look(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.look();
        }
    }

    /// What the kernel did for want of memory, up to now; `None`: nothing, or it does not tell.
    pub(crate) fn verdict(&mut self) -> Option<Verdict> {
        // A kill that came with the end is told too.
        self.look();
        self.watch.as_ref().and_then(Watch::verdict)
    }

    /// Stops the processes in it, or lets them go on; the kernel needs a moment for as many as there are. SIGKILL ends them
    /// either way (cgroup-v2.rst, "cgroup.freeze").
    pub(crate) fn freeze(&mut self, frozen: bool) -> io::Result<()> {
        fs::write(self.directory.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        self.is_frozen = frozen;
        Ok(())
    }

    /// Whether that was said last.
    pub(crate) fn is_frozen(&self) -> bool {
        self.is_frozen
    }

    /// Most bytes of memory at once (Linux 5.19).
    pub(crate) fn memory_peak(&self) -> Option<u64> {
        self.number("memory.peak")
    }

    fn number(&self, name: &str) -> Option<u64> {
        fs::read_to_string(self.directory.join(name)).ok()?.trim().parse().ok()
    }

    /// What was used.
    pub(crate) fn usage(&mut self) -> Usage {
        // A kill that came with the end is told too.
        self.look();
        let text = |name: &str| fs::read_to_string(self.directory.join(name)).unwrap_or_default();
        let (cpu, memory, pids) = (text("cpu.stat"), text("memory.events"), text("pids.events"));
        Usage {
            memory_peak: self.memory_peak(),
            pids_peak: self.number("pids.peak"),
            cpu_us: field(&cpu, "usage_usec"),
            cpu_throttled_us: field(&cpu, "throttled_usec"),
            oom_kills: field(&memory, "oom_kill"),
            untrusted_killed: self.watch.as_mut().map(Watch::take_killed).unwrap_or_default(),
            forks_refused: field(&pids, "max"),
        }
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.directory) {
            // Nobody can be told who could do more than the next command, which tries again.
            tracing::warn!(cgroup = %self.directory.display(), %error, "cgroup not removed");
        }
    }
}

/// Kills what is in a cgroup and removes it; nothing may be there.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => return Ok(()),
    }
    // Opened before: a change after it is never missed.
    let mut events = File::open(directory.join("cgroup.events"))?;
    match fs::write(directory.join("cgroup.kill"), "1") {
        // Before Linux 5.14; the pid namespace of the box has ended them then.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if field(&text, "populated") == Some(0) || left.is_zero() {
            break;
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        // A change of the file is an exceptional condition (cgroup-v2.rst, "cgroup.events").
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    fs::remove_dir(directory)
}

fn make_directory(directory: &Path) -> Result<(), LeafError> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.doing("create the cgroup", directory),
    }
}

/// Moves what is in `directory` into a cgroup below it: this process, and with `-d` the one that started it and waits.
fn step_aside(directory: &Path) -> Result<(), LeafError> {
    let own = directory.join(SUPERVISOR);
    make_directory(&own)?;
    let (from, to) = (directory.join("cgroup.procs"), own.join("cgroup.procs"));
    for pid in fs::read_to_string(&from).doing("read", &from)?.lines() {
        match fs::write(&to, pid) {
            // It has ended.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            moved => moved.doing("go into", &to)?,
        }
    }
    Ok(())
}

/// A descriptor of a running job's cgroup, for a further process of it to begin in.
pub(crate) fn open(directory: &Path) -> Result<OwnedFd, LeafError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty()).map_err(io::Error::from).doing("open", directory)
}

/// Hands controllers down: those that are needed, and those that tell what was used.
fn enable(base: &Path, limits: &Limits, place: &Place) -> Result<(), LeafError> {
    let needed = limits.controllers();
    let telling = TELLING.iter().copied().filter(|one| !needed.contains(one));
    let mut directories = vec![base];
    if let (Place::Below { directory }, Some(above)) = (place, base.parent())
        && directory.ends_with(super::OF_ROOT)
    {
        directories.insert(0, above);
    }
    for directory in directories {
        let path = directory.join("cgroup.subtree_control");
        let has = fs::read_to_string(&path).doing("read", &path)?;
        for controller in super::missing(&has, &needed) {
            hand_down(&path, controller).doing("enable controllers in", &path)?;
        }
        for controller in telling.clone() {
            // A record without a peak is no failure.
            fs::write(&path, format!("+{controller}")).unwrap_or_default();
        }
    }
    Ok(())
}

/// Writes to a `cgroup.subtree_control`. A cgroup is busy as long as a thread is in it, also one that is ending: those of a
/// pull that is just done. Nobody tells when the last is gone.
fn hand_down(path: &Path, controller: &str) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match fs::write(path, format!("+{controller}")) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && begun.elapsed() < THREADS_GONE_WITHIN => {
                std::thread::sleep(Duration::from_millis(1));
            }
            written => return written,
        }
    }
}

fn limit(directory: &Path, limits: &Limits) -> Result<(), LeafError> {
    let set = |name: &str, value: String| {
        let path = directory.join(name);
        fs::write(&path, value).doing("set", &path)
    };
    if let Some(memory) = limits.memory {
        set("memory.max", memory.to_string())?;
        let swap = limits.swap.unwrap_or(0);
        // Without swap in the kernel there is no such file, and nothing to limit.
        if swap > 0 || directory.join("memory.swap.max").metadata().is_ok() {
            set("memory.swap.max", swap.to_string())?;
        }
    }
    if let Some(high) = limits.memory_high {
        set("memory.high", high.to_string())?;
    }
    if let Some(milli) = limits.milli_cpus {
        set("cpu.max", format!("{} {PERIOD}", milli.saturating_mul(PERIOD / 1000)))?;
    }
    if let Some(weight) = limits.cpu_weight {
        set("cpu.weight", weight.to_string())?;
    }
    if let Some(cpus) = &limits.cpus {
        set("cpuset.cpus", cpus.clone())?;
    }
    for limit in &limits.io {
        set("io.max", limit.line())?;
    }
    if let Some(pids) = limits.pids {
        set("pids.max", pids.saturating_add(OWN_PROCESSES).to_string())?;
    }
    Ok(())
}

/// A number of a file of `name number` lines.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

trait Doing<T> {
    fn doing(self, action: &'static str, path: &Path) -> Result<T, LeafError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, action: &'static str, path: &Path) -> Result<T, LeafError> {
        self.map_err(|source| LeafError::File { action, path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::super::io::{IoKind, IoLimit};
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "low 0\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!((field(text, "oom"), field(text, "oom_kill"), field(text, "high")), (Some(2), Some(1), None));
        assert_eq!(field("oom_kill x\n", "oom_kill"), None);
    }

    /// Where some cgroup2 is, root can try it, whatever holds the controllers.
    #[test]
    fn what_is_frozen_stands_still_and_can_be_killed() {
        let place = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new).into_iter();
        let Some(place) = place.into_iter().find(|path| path.join("cgroup.procs").metadata().is_ok()) else { return };
        let directory = place.join(format!("agentd-unit-{}", std::process::id()));
        if fs::create_dir(&directory).is_err() {
            return;
        }
        let handle = open(&directory).unwrap();
        let mut leaf = Leaf { directory: directory.clone(), handle, watch: None, is_frozen: false };
        let mut child = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        fs::write(directory.join("cgroup.procs"), child.id().to_string()).unwrap();
        let events = || fs::read_to_string(directory.join("cgroup.events")).unwrap();
        let becomes = |frozen| {
            let deadline = Instant::now() + std::time::Duration::from_secs(20);
            while field(&events(), "frozen") != Some(frozen) {
                assert!(Instant::now() < deadline, "{}", events());
                std::thread::yield_now();
            }
        };
        leaf.freeze(true).unwrap();
        becomes(1);
        leaf.freeze(false).unwrap();
        becomes(0);
        leaf.freeze(true).unwrap();
        becomes(1);
        assert!(leaf.is_frozen());
        drop(leaf);
        assert!(directory.symlink_metadata().is_err(), "its end needs no thaw");
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn limits_are_written_as_the_kernel_reads_them() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits {
            memory: Some(1 << 20),
            memory_high: Some(1 << 19),
            milli_cpus: Some(1500),
            cpu_weight: Some(50),
            cpus: Some("0-1".into()),
            pids: Some(10),
            io: vec![IoLimit { disk: "8:0".into(), what: IoKind::Riops, most: 9 }],
            swap: Some(7),
        };
        limit(directory.path(), &limits).unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!((read("memory.max"), read("memory.swap.max")), ("1048576".into(), "7".into()));
        assert_eq!(read("memory.high"), "524288");
        assert_eq!((read("cpu.max"), read("cpu.weight")), ("150000 100000".into(), "50".into()));
        assert_eq!((read("cpuset.cpus"), read("pids.max")), ("0-1".into(), "11".into()));
        assert_eq!(read("io.max"), "8:0 riops=9");
    }
}
