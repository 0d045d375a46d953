//! What the kernel says of processes and mounts, seen from the host.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A process that was seen; its number alone may mean another one later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// On the host.
    pub pid: i32,
    /// Ticks after boot, `starttime` of proc_pid_stat(5).
    started: u64,
}

impl Process {
    /// The process that has this number now.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|(_, process)| process)
    }

    /// Whether it still exists; a zombie does not.
    #[must_use]
    pub fn exists(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// The host pids of everything it started, directly or not, that still exists.
    #[must_use]
    pub fn descendants(&self) -> Vec<Self> {
        let entries = fs::read_dir("/proc").unwrap_or_else(|e| panic!("/proc: {e}"));
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let all: Vec<(i32, Self)> = pids.filter_map(stat).collect();
        let mut found = vec![self.clone()];
        let mut at = 0;
        while let Some(parent) = found.get(at).map(|process| process.pid) {
            found.extend(all.iter().filter(|(of, _)| *of == parent).map(|(_, process)| process.clone()));
            at += 1;
        }
        found.split_off(1)
    }

    /// KiB of memory, what is shared counted by its share (`Pss`); `None` of a process that this user may not look into.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse().ok())
    }

    /// How many pipes both this process and `other` have an end of.
    #[must_use]
    pub fn pipes_in_common(&self, other: &Self) -> usize {
        self.pipes().intersection(&other.pipes()).count()
    }

    /// By name, which has the inode; none of a process that has gone meanwhile.
    fn pipes(&self) -> BTreeSet<PathBuf> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid)).into_iter().flatten().flatten();
        let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("pipe:")).collect()
    }
}

/// A cgroup beside everybody's, without limits: as a service has one. Only root can make it.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes it; `None` where there is no cgroup v2 that could be divided.
    #[must_use]
    pub fn new() -> Option<Self> {
        let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let place = places.into_iter().find(|place| fs::metadata(place.join("cgroup.procs")).is_ok())?;
        let directory = tempfile::Builder::new().prefix("test-").tempdir_in(place).ok()?;
        Some(Self(directory.keep()))
    }

    /// `command`, as it runs in this cgroup.
    #[must_use]
    pub fn around(&self, command: &Command) -> Command {
        let mut around = Command::new("sh");
        around.args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#]).arg(&self.0);
        crate::behind(around, command)
    }

    /// Whether that process is in it.
    #[must_use]
    pub fn holds(&self, process: &Process) -> bool {
        fs::read_to_string(self.0.join("cgroup.procs"))
            .is_ok_and(|pids| pids.lines().any(|pid| pid == process.pid.to_string()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What was killed in it is still on its way out.
        let gone = crate::wait_until(Duration::from_secs(60), || fs::remove_dir(&self.0).is_ok());
        assert!(gone || std::thread::panicking(), "{} is not empty", self.0.display());
    }
}

/// Parent and identity; none for a zombie.
fn stat(pid: i32) -> Option<(i32, Process)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, parentheses too.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
    let started = fields.nth(17)?.parse().ok()?;
    (state != "Z").then_some((parent, Process { pid, started }))
}

/// Lines of this namespace's mount table that mention `path`.
#[must_use]
pub fn mounts_at(path: &Path) -> Vec<String> {
    let path = path.display().to_string();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_else(|e| panic!("mountinfo: {e}"));
    table.lines().filter(|line| line.contains(&path)).map(str::to_owned).collect()
}
