//! What the processes of boxes use, as /proc says: for where no cgroup counts it.
//!
//! Invariant: read only, and nothing here believes a name: a process belongs to a job because it descends from the job's
//! supervisor. What has ended between two looks is not counted; memory that processes share is counted for each.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::Instant;

/// One look at all processes of the machine.
#[derive(Debug)]
pub struct Sample {
    at: Instant,
    processes: HashMap<i32, Process>,
    children: HashMap<i32, Vec<i32>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    parent: i32,
    session: i32,
    /// Clock ticks of user and system time, its own and its reaped children's.
    ticks: u64,
    threads: u64,
    /// Ticks after boot: with the number, which process it is.
    started: u64,
    pages: u64,
}

/// What the box of a job uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Of one processor, in percent, between two samples.
    pub cpu_percent: f64,
    /// Resident memory in bytes.
    pub memory_bytes: u64,
    /// Processes.
    pub processes: u64,
    /// Threads of them all.
    pub threads: u64,
    /// Bytes read from disks, and written to them, where /proc lets its user see that.
    pub io: Option<(u64, u64)>,
}

impl Sample {
    /// Looks.
    ///
    /// # Errors
    /// Those of listing /proc.
    pub fn take() -> io::Result<Self> {
        let mut sample = Sample { at: Instant::now(), processes: HashMap::new(), children: HashMap::new() };
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            // One that is gone meanwhile is not there.
            let Some(process) = fs::read(format!("/proc/{pid}/stat")).ok().as_deref().and_then(parse) else { continue };
            sample.children.entry(process.parent).or_default().push(pid);
            sample.processes.insert(pid, process);
        }
        Ok(sample)
    }

    /// What the box of `supervisor` uses now, and of processors since `before`.
    #[must_use]
    pub fn of(&self, supervisor: u32, before: &Sample) -> Usage {
        let (page, tick) = (rustix::param::page_size() as u64, rustix::param::clock_ticks_per_second());
        let mut usage = Usage { cpu_percent: 0.0, memory_bytes: 0, processes: 0, threads: 0, io: None };
        let mut ticks = 0;
        // PID 1 leads a session of its own; what else the supervisor has started is no part of the box.
        let is_init = |pid: &i32| self.processes.get(pid).is_some_and(|process| process.session == *pid);
        let mut next: Vec<i32> =
            i32::try_from(supervisor).ok().into_iter().flat_map(|pid| self.children_of(pid)).filter(is_init).collect();
        while let Some(pid) = next.pop() {
            let Some(process) = self.processes.get(&pid) else { continue };
            next.extend(self.children_of(pid));
            usage.processes += 1;
            usage.threads += process.threads;
            usage.memory_bytes += process.pages.saturating_mul(page);
            if let Some((read, written)) = disks(pid) {
                let (all_read, all_written) = usage.io.unwrap_or_default();
                usage.io = Some((all_read.saturating_add(read), all_written.saturating_add(written)));
            }
            let earlier = before.processes.get(&pid).filter(|earlier| earlier.started == process.started);
            ticks += process.ticks.saturating_sub(earlier.map_or(0, |earlier| earlier.ticks));
        }
        let seconds = self.at.saturating_duration_since(before.at).as_secs_f64();
        if seconds > 0.0 && tick > 0 {
            #[expect(clippy::cast_precision_loss, reason = "ticks of a second or so: far below 2^52")]
            let used = ticks as f64 / tick as f64;
            usage.cpu_percent = 100.0 * used / seconds;
        }
        usage
    }

    fn children_of(&self, pid: i32) -> impl Iterator<Item = i32> + '_ {
        self.children.get(&pid).into_iter().flatten().copied()
    }
}

/// What a process, and those of its children that it has reaped, read from disks and wrote to them (proc_pid_io(5)).
fn disks(pid: i32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let number = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok());
    Some((number("read_bytes")?, number("write_bytes")?))
}

/// A line of proc_pid_stat(5). The name in parentheses is the process's own choice and may hold anything.
fn parse(untrusted_line: &[u8]) -> Option<Process> {
    let after = untrusted_line.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(untrusted_line.get(after + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The first is number 3, the state.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let own = number(14)?.saturating_add(number(15)?);
    let pages = fields.get(24 - 3)?.parse::<i64>().ok()?;
    Some(Process {
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(6 - 3)?.parse().ok()?,
        ticks: own.saturating_add(number(16)?).saturating_add(number(17)?),
        threads: number(20)?,
        started: number(22)?,
        pages: u64::try_from(pages).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_process_sees_itself_below_its_parent() {
        let before = Sample::take().unwrap();
        let mut child = std::process::Command::new("setsid").args(["sh", "-c", "while :; do :; done"]).spawn().unwrap();
        let begun = Instant::now();
        let usage = loop {
            let usage = Sample::take().unwrap().of(std::process::id(), &before);
            if usage.cpu_percent > 1.0 || begun.elapsed().as_secs() > 20 {
                break usage;
            }
            std::thread::yield_now();
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(usage.processes >= 1 && usage.threads >= usage.processes && usage.memory_bytes > 0, "{usage:?}");
        assert!(usage.cpu_percent > 1.0, "{usage:?}");
    }

    #[test]
    fn a_name_can_hold_anything() {
        let line = b"7 (a) R 1 (\xff) S 3 4 5 6 7 8 9 10 11 12 13 1 2 3 4 18 19 20 5 22 99 24 25 26".as_slice();
        let process = parse(line).unwrap();
        assert_eq!((process.parent, process.ticks), (3, 13 + 1 + 2 + 3));
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&line);
        }
    }
}
