//! Many jobs at once: how the cost of a start grows with those that run, and what an idle one holds.
//!
//! An ordinary user's jobs; root looks at their memory, since PID 1 of a box lets nobody else. Invariant: all of them run when
//! anything is measured of all, and none is left behind.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::document::Document;
use super::prepare::Scratch;
use super::start::memory;
use super::statistics::percentile;
use crate::account::{self, Account};
use crate::workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Jobs at once: each round starts one more
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// Put the results into docs/benchmarks.md
    #[arg(long)]
    write: bool,
}

/// Of these many starts at either end the median is taken: of one alone, chance decides.
const ENDS: usize = 20;
/// The last starts by the first ones, at most.
const GROWTH: f64 = 1.5;
/// KiB of Pss of a supervisor and its PID 1, at most.
const MEMORY: u64 = 3 * 1024;
/// A job gives its start's code back a tenth of a second after it began; a busy machine takes longer.
const SETTLED: Duration = Duration::from_secs(2);

/// How long a supervisor may take to go once its job has ended, on a busy machine.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// What was measured.
#[derive(Debug, Default)]
struct Measured {
    /// Milliseconds of each start, in order.
    starts: Vec<f64>,
    listed: usize,
    logged: usize,
    /// KiB a job; `None` where PID 1 cannot be looked at.
    memory: Option<u64>,
    /// Milliseconds until all are stopped.
    stop: f64,
    left: usize,
}

pub(super) fn run(arguments: &Args) -> Result<bool> {
    ensure!(arguments.rounds >= 2 * ENDS, "--rounds must be at least {}", 2 * ENDS);
    let account = if account::am_root()? { Some(Account::ensure()?) } else { None };
    let target_directory = workspace::metadata()?.target_directory;
    let built = workspace::release_program("agentd", "agentd", &target_directory)?;
    let scratch = Scratch::new("/var/tmp", account.as_ref())?;
    std::fs::copy(&built, scratch.0.join("agentd")).with_context(|| format!("copy {}", built.display()))?;
    let document = Document::begin("jobs", arguments.rounds, &[]);
    let bench = Bench { account, directory: &scratch.0 };
    let measured = bench.measure(arguments.rounds);
    // Whatever came of it: none is left behind.
    let stopped = bench.agentd(&["rm", "-af"]).stdout(Stdio::null()).status().context("start agentd")?;
    ensure!(stopped.success(), "agentd rm -af: {stopped}");
    fill(document, arguments.rounds, &measured?).finish(arguments.write)
}

struct Bench<'a> {
    account: Option<Account>,
    directory: &'a Path,
}

impl Bench<'_> {
    fn agentd(&self, words: &[&str]) -> Command {
        let program = self.directory.join("agentd");
        let mut command = match &self.account {
            Some(account) => account.command(program),
            None => Command::new(program),
        };
        for place in ["STATE", "DATA", "CACHE"] {
            command.env(format!("XDG_{place}_HOME"), self.directory.join(place));
        }
        command.args(words).stdin(Stdio::null()).stderr(Stdio::inherit());
        command
    }

    fn say(&self, words: &[&str]) -> Result<String> {
        let output = self.agentd(words).output().context("start agentd")?;
        ensure!(output.status.success(), "agentd {words:?}: {}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn measure(&self, jobs: usize) -> Result<Measured> {
        let mut measured = Measured::default();
        // The first of all warms the caches, and is not counted.
        let warm = self.say(&["run", "-d", "--", "sleep", "1000"])?;
        self.say(&["rm", "-f", warm.trim()])?;
        let mut ids = Vec::new();
        for number in 0..jobs {
            let script = format!("echo job {number}; exec sleep 100000");
            let begun = Instant::now();
            let id = self.say(&["run", "-d", "--", "sh", "-c", &script])?;
            measured.starts.push(begun.elapsed().as_secs_f64() * 1e3);
            ids.push(id.trim().to_owned());
        }
        measured.listed = self.say(&["ps", "-q"])?.lines().filter(|line| ids.iter().any(|id| id == line)).count();
        std::thread::sleep(SETTLED);
        for (number, id) in ids.iter().enumerate() {
            measured.logged += usize::from(self.say(&["logs", id])? == format!("job {number}\n"));
        }
        let records: Vec<Value> = serde_json::from_str(&self.say(&["ps", "--format", "json"])?).context("read ps")?;
        let supervisors: Vec<u64> = records.iter().filter_map(|record| record["supervisor_pid"].as_u64()).collect();
        let each: Option<Vec<u64>> = supervisors.iter().map(|pid| memory_of(*pid)).collect();
        measured.memory = each.map(|each| each.iter().sum::<u64>() / each.len().max(1) as u64);
        let begun = Instant::now();
        self.say(&["stop", "--all"])?;
        measured.stop = begun.elapsed().as_secs_f64() * 1e3;
        // A job has ended when its record has; its supervisor is on its way out then.
        let deadline = Instant::now() + GONE_WITHIN;
        loop {
            measured.left =
                self.say(&["ps", "-q"])?.lines().count() + supervisors.iter().filter(|pid| runs(**pid)).count();
            if measured.left == 0 || Instant::now() > deadline {
                return Ok(measured);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whether a process is there; one that has ended and whose parent has not looked yet is not.
fn runs(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// KiB of a supervisor and of its children, which are PID 1 of its box.
fn memory_of(supervisor: u64) -> Option<u64> {
    let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).ok()?;
    let pss = |pid: u64| memory::pss(u32::try_from(pid).ok()?).ok();
    let children = children.split_whitespace().map(|pid| pss(pid.parse().ok()?));
    children.chain([pss(supervisor)]).sum()
}

fn fill(mut document: Document, jobs: usize, measured: &Measured) -> Document {
    let starts = &measured.starts;
    let middle = |times: Option<&[f64]>| times.map(|times| percentile(times, 50));
    let (first, last) = (middle(starts.get(..ENDS)), middle(starts.get(starts.len().saturating_sub(ENDS)..)));
    document.line(format_args!("| {jobs} jobs, detached, `sh` and `sleep` of the host's own | |\n|---|---|"));
    for (what, time) in [("first", first), ("last", last)] {
        let shown = time.map_or("–".into(), |time| format!("{time:.1} ms"));
        document.line(format_args!("| a start, median of the {what} {ENDS} | {shown} |"));
    }
    document.line(format_args!("| `agentd stop --all` | {:.0} ms |\n", measured.stop));
    document.budgets();
    let all = |count: usize| (Some(format!("{count} of {jobs}")), Some(count == jobs));
    for (what, count) in [("started", starts.len()), ("listed", measured.listed), ("logged", measured.logged)] {
        let (shown, held) = all(count);
        document.verdict(&format!("all are {what}"), shown, held);
    }
    document.verdict("none is left when they are stopped", Some(measured.left.to_string()), Some(measured.left == 0));
    let growth = first.zip(last).map(|(first, last)| last / first);
    let held = growth.map(|growth| growth <= GROWTH);
    document.verdict(
        &format!("the last start ≤ {GROWTH} × the first"),
        growth.map(|growth| format!("{growth:.2}")),
        held,
    );
    let held = measured.memory.map(|memory| memory <= MEMORY);
    let shown = measured.memory.map(|memory| format!("{memory} KiB (Pss of supervisor and PID 1, mean)"));
    document.verdict(&format!("an idle job ≤ {MEMORY} KiB"), shown, held);
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_its_budget_or_missing_fails() {
        let within = |change: fn(&mut Measured)| {
            let mut starts = vec![5.0; 100];
            starts.extend(vec![7.0; 100]);
            let mut measured = Measured { starts, listed: 200, logged: 200, memory: Some(2000), stop: 1.0, left: 0 };
            change(&mut measured);
            fill(Document::begin("jobs", 200, &[]), 200, &measured).within_budgets()
        };
        assert!(within(|_| {}));
        assert!(!within(|measured| measured.starts.extend([8.0; 20])));
        assert!(!within(|measured| measured.listed = 199));
        assert!(!within(|measured| measured.left = 1));
        assert!(!within(|measured| measured.memory = None));
        assert!(!within(|measured| measured.memory = Some(4000)));
    }
}
