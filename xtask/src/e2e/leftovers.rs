//! Looking for what tests left on the machine: processes and mounts.
//!
//! Invariant: only what was not there before counts, so an unclean machine does not blame the tests.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::execute::User;

/// A box that is being taken down is not left behind yet, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct Snapshot {
    things: BTreeSet<String>,
}

impl Snapshot {
    pub(super) fn take(user: &User) -> Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let mut things: BTreeSet<String> = mounts.lines().map(|line| format!("mount {line}")).collect();
        for entry in std::fs::read_dir("/proc").context("list /proc")? {
            let path = entry.context("list /proc")?.path();
            // Not a process, or one that has just ended: neither is left behind.
            let Ok(status) = std::fs::read_to_string(path.join("status")) else { continue };
            if is_a_tests(&status, user.uid()) {
                things.insert(format!("process {}", summary(&status)));
            }
        }
        Ok(Self { things })
    }

    /// What is there now and was not at the time of the snapshot.
    pub(super) fn left_behind(&self, user: &User) -> Result<Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Self::take(user)?;
            let left: Vec<String> = now.things.difference(&self.things).cloned().collect();
            if left.is_empty() || Instant::now() >= deadline {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Whether `status` (of /proc/PID) is of agentd, or of the user who runs nothing but tests.
fn is_a_tests(status: &str, uid: Option<u32>) -> bool {
    let real = field(status, "Uid").and_then(|ids| ids.split_whitespace().next()?.parse::<u32>().ok());
    let kernel_thread = field(status, "VmSize").is_none() && field(status, "State").is_none_or(|s| !s.starts_with('Z'));
    !kernel_thread && (field(status, "Name") == Some("agentd") || (uid.is_some() && real == uid))
}

fn summary(status: &str) -> String {
    ["Pid", "PPid", "Name"].map(|name| format!("{name} {}", field(status, name).unwrap_or("?"))).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str =
        "Name:\tsleep\nState:\tS (sleeping)\nPid:\t7\nPPid:\t1\nUid:\t1001\t1001\t1001\t1001\nVmSize:\t 5 kB\n";

    #[test]
    fn processes_of_the_test_user_and_of_agentd_count() {
        assert!(is_a_tests(STATUS, Some(1001)));
        assert!(!is_a_tests(STATUS, Some(1002)));
        assert!(!is_a_tests(STATUS, None));
        assert!(is_a_tests(&STATUS.replace("sleep\n", "agentd\n"), None));
        assert_eq!(summary(STATUS), "Pid 7, PPid 1, Name sleep");
    }
}
