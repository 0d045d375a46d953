//! Watching a job's memory: a runaway tool has to die before the agent that started it, and the record names it.
//!
//! The kernel kills the process that it rates highest, which is the largest. At the limit, and after a kill, everything but the
//! payload itself is rated higher. Only up: to rate a process lower asks for a capability of the machine's. No `memory.high`
//! warns earlier (docs/adr/0014).
//!
//! Invariant: what a process of the box is called is its own word; it decides nothing here and is bounded.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::leaf::field;

/// Half of a whole machine's worth of memory, as oom_score_adj has it (proc_pid_oom_score_adj(5)).
const EXPENDABLE: &str = "500";

/// Names that are kept.
const MOST_NAMES: usize = 8;

/// The payload's pid in the box.
const PAYLOAD: &str = "2";

/// PID 1 of the box and the payload.
const SPARED: [&str; 2] = ["1", PAYLOAD];

const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);

/// A job whose page cache fills its memory is at its limit all the time; a look goes over all its processes.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// What the kernel did for want of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Who was killed last, where that was seen; the payload chose the name.
    pub(crate) untrusted_name: Option<String>,
    /// At a limit of the job's own; else the machine had nothing left.
    pub(crate) is_own_limit: bool,
    /// The payload, or PID 1 of the box, was among them.
    pub(crate) is_payload: bool,
}

/// The watch over one cgroup.
#[derive(Debug)]
pub(crate) struct Watch {
    directory: PathBuf,
    events: File,
    at_limit: u64,
    looked: Option<Instant>,
    kills: u64,
    /// Kills at a limit of the cgroup's own; others are the machine's, which had nothing left.
    at_own_limit: u64,
    /// Who was there at the limit, largest first.
    seen: Vec<Process>,
    untrusted_killed: Vec<String>,
    is_payload_killed: bool,
}

impl Watch {
    /// Of the cgroup `directory`.
    pub(super) fn new(directory: &Path) -> std::io::Result<Self> {
        let events = File::open(directory.join("memory.events"))?;
        Ok(Self {
            directory: directory.to_owned(),
            events,
            at_limit: 0,
            looked: None,
            kills: 0,
            at_own_limit: 0,
            seen: Vec::new(),
            untrusted_killed: Vec::new(),
            is_payload_killed: false,
        })
    }

    /// Names of the processes that were killed, as far as they were seen.
    pub(super) fn take_killed(&mut self) -> Vec<String> {
        std::mem::take(&mut self.untrusted_killed)
    }

    /// What the kernel did for want of memory; `None`: it killed nobody.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        (self.kills > 0).then(|| Verdict {
            untrusted_name: self.untrusted_killed.last().cloned(),
            is_own_limit: self.at_own_limit > 0,
            is_payload: self.is_payload_killed,
        })
    }

    /// Looks at what has happened. What cannot be read or set is as if it had not: the kernel's own choice is left then.
    pub(crate) fn look(&mut self) {
        let mut text = String::new();
        let read = self.events.rewind().and_then(|()| self.events.read_to_string(&mut text));
        if read.is_err() {
            return;
        }
        let (at_limit, kills) = (field(&text, "max").unwrap_or(0), field(&text, "oom_kill").unwrap_or(0));
        let is_killed = kills > self.kills;
        self.at_own_limit = field(&text, "oom").unwrap_or(0);
        if is_killed {
            self.name_killed(&self.processes());
        }
        let is_due = self.looked.is_none_or(|looked| looked.elapsed() >= BETWEEN_LOOKS);
        if is_killed || (at_limit > self.at_limit && is_due) {
            self.rate();
            self.looked = Some(Instant::now());
        }
        (self.at_limit, self.kills) = (at_limit, kills);
    }

    fn processes(&self) -> Vec<Process> {
        let pids = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        let mut processes: Vec<Process> = pids.lines().filter_map(Process::of).collect();
        processes.sort_by_key(|process| std::cmp::Reverse(process.kib));
        processes
    }

    /// Rates everything but the payload higher.
    fn rate(&mut self) {
        self.seen = self.processes();
        for process in &self.seen {
            let path = format!("/proc/{}/oom_score_adj", process.pid);
            // In a service with OOMScoreAdjust=-1000 a payload that nothing else is left of would never be killed, and never get
            // on: it would ask for memory for ever.
            let is_protected = || fs::read_to_string(&path).is_ok_and(|score| score.starts_with('-'));
            let score = match SPARED.contains(&process.in_box.as_str()) {
                false => EXPENDABLE,
                true if is_protected() => "0",
                true => continue,
            };
            // Gone meanwhile, or not this user's to rate.
            fs::write(path, score).unwrap_or_default();
        }
    }

    /// Who was killed, by who is there `now`.
    fn name_killed(&mut self, now: &[Process]) {
        let is_there = |pid: &str| now.iter().any(|process| process.pid == pid && !process.is_dying);
        let killed: Vec<&Process> =
            if SPARED.iter().all(|spared| now.iter().any(|one| one.in_box == *spared && !one.is_dying)) {
                let dying: Vec<_> = now.iter().filter(|process| process.is_dying).collect();
                // Or it was faster than this look. One that ended by itself, or was about to become another program, is not it: it had
                // most of the memory.
                let most = self.seen.iter().map(|process| process.kib).sum::<u64>() / 2;
                let gone = self.seen.iter().filter(|seen| seen.kib > most && !is_there(&seen.pid));
                if dying.is_empty() { gone.collect() } else { dying }
            } else {
                // The others go with it, whoever they are.
                self.is_payload_killed = true;
                now.iter().chain(&self.seen).find(|process| process.in_box == PAYLOAD).into_iter().collect()
            };
        self.untrusted_killed.extend(killed.into_iter().map(|process| process.untrusted_name.clone()));
        self.untrusted_killed.truncate(MOST_NAMES);
    }
}

impl AsFd for Watch {
    /// Exceptional condition (`POLLPRI`) when there is something to [`look`](Watch::look) at.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: String,
    untrusted_name: String,
    kib: u64,
    /// Its pid in the box.
    in_box: String,
    is_dying: bool,
}

impl Process {
    fn of(pid: &str) -> Option<Self> {
        Self::read(pid, &fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
    }

    /// From proc_pid_status(5).
    fn read(pid: &str, status: &str) -> Option<Self> {
        let value =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        let pending = |name| value(name).and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
        let in_box = value("NSpid")?.split_whitespace().next_back()?;
        Some(Self {
            pid: pid.to_owned(),
            untrusted_name: value("Name")?.to_owned(),
            kib: value("VmRSS").and_then(|size| size.split(' ').next()?.parse().ok()).unwrap_or(0),
            in_box: in_box.to_owned(),
            is_dying: (pending("SigPnd") | pending("ShdPnd")) & SIGKILL_BIT != 0
                || value("State").is_some_and(|state| state.starts_with(['Z', 'X'])),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_from_its_status() {
        let status = "Name:\ttail\nState:\tR (running)\nNSpid:\t4711\t12\nVmRSS:\t    1234 kB\n\
            SigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n";
        let process = Process::read("4711", status).unwrap();
        assert_eq!(
            (process.untrusted_name.as_str(), process.kib, process.in_box.as_str(), process.is_dying),
            ("tail", 1234, "12", false)
        );
        assert!(
            Process::read("1", &status.replace("ShdPnd:\t00000000000000", "ShdPnd:\t00000000000001")).unwrap().is_dying
        );
        assert!(Process::read("1", &status.replace("R (running)", "Z (zombie)")).unwrap().is_dying);
        assert_eq!(Process::read("1", ""), None);
    }

    #[test]
    fn a_kill_is_the_payloads_only_where_it_is_gone() {
        let process = |in_box: &str, kib: u64, is_dying: bool| Process {
            pid: format!("10{in_box}"),
            untrusted_name: format!("p{in_box}"),
            kib,
            in_box: in_box.to_owned(),
            is_dying,
        };
        let told = |seen: &[Process], now: &[Process]| {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("memory.events"), "").unwrap();
            let mut watch = Watch::new(directory.path()).unwrap();
            watch.seen = seen.to_vec();
            watch.name_killed(now);
            (watch.untrusted_killed.join(" "), watch.is_payload_killed)
        };
        let (init, agent, tool) = (process("1", 1, false), process("2", 40, false), process("3", 50, false));
        let all = [tool.clone(), agent.clone(), init.clone()];
        let dying = process("3", 50, true);
        assert_eq!(told(&[], &[dying.clone(), agent.clone(), init.clone()]), ("p3".into(), false));
        assert_eq!(told(&all, &[agent.clone(), init.clone()]), ("p3".into(), false), "faster than the look");
        assert_eq!(told(&[], &[agent.clone(), init.clone()]), (String::new(), false), "and never seen");
        let small = [process("3", 5, false), agent.clone(), init.clone()];
        assert_eq!(told(&small, &[agent.clone(), init.clone()]), (String::new(), false), "it ended by itself");
        // With the payload all others go.
        assert_eq!(told(&[], &[dying.clone(), process("2", 40, true), init.clone()]), ("p2".into(), true));
        assert_eq!(told(&all, &[dying, init]), ("p2".into(), true));
        assert_eq!(told(&[], &[]), (String::new(), true));
    }
}
