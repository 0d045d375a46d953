//! What a list costs when there are many jobs: `agentd ps` over thousands of records, in the page cache.
//!
//! The records are copies of one that a real job left, under other ids. Invariant: each measured list shows all of them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::document::Document;
use super::prepare::Scratch;
use super::statistics::percentile;
use crate::workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Records
    #[arg(long, default_value_t = 10_000)]
    records: usize,
    /// Interleaved rounds
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// Put the results into docs/benchmarks.md
    #[arg(long)]
    write: bool,
}

/// Milliseconds, at most; of those lists that have one.
const BUDGET: f64 = 50.0;
const LISTS: [(&[&str], bool); 4] = [
    (&["ps", "-aq"], true),
    (&["ps", "-a"], true),
    (&["ps", "-a", "--filter", "status=lost"], true),
    (&["ps", "-a", "--format", "json"], false),
];

pub(super) fn run(arguments: &Args) -> Result<bool> {
    let target_directory = workspace::metadata()?.target_directory;
    let agentd = workspace::release_program("agentd", "agentd", &target_directory)?;
    let scratch = Scratch::new("/var/tmp", None)?;
    let document = Document::begin("lists", arguments.rounds, &[]);
    let state = scratch.0.join("state");
    multiply(&agentd, &state, arguments.records)?;
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); LISTS.len()];
    // Round 0 warms the caches and is not counted.
    for round in 0..=arguments.rounds {
        for (times, (words, _)) in times.iter_mut().zip(LISTS) {
            let begun = Instant::now();
            let output = agentd_in(&agentd, &state).args(words).output().context("start agentd")?;
            let took = begun.elapsed().as_secs_f64() * 1e3;
            ensure!(output.status.success(), "{words:?}: {}", output.status);
            let lines = output.stdout.iter().filter(|byte| **byte == b'\n').count();
            ensure!(words.contains(&"--filter") || lines >= arguments.records, "{words:?}: {lines} lines");
            if round > 0 {
                times.push(took);
            }
        }
    }
    fill(document, arguments.records, &times).finish(arguments.write)
}

fn fill(mut document: Document, records: usize, times: &[Vec<f64>]) -> Document {
    document.line(format_args!("| {records} records, ms | min | p50 | max |\n|---|---|---|---|"));
    for (times, (words, _)) in times.iter().zip(LISTS) {
        let [least, middle, most] = [0, 50, 100].map(|percent| percentile(times, percent));
        document.line(format_args!("| `agentd {}` | {least:.1} | {middle:.1} | {most:.1} |", words.join(" ")));
    }
    document.line(format_args!(""));
    document.budgets();
    for (times, (words, has_budget)) in times.iter().zip(LISTS) {
        if has_budget {
            let middle = percentile(times, 50);
            let budget = format!("`agentd {}` ≤ {BUDGET} ms", words.join(" "));
            document.verdict(&budget, Some(format!("{middle:.1}")), Some(middle <= BUDGET));
        }
    }
    document
}

/// Runs one job, and copies its record.
fn multiply(agentd: &Path, state: &Path, records: usize) -> Result<()> {
    let ran = agentd_in(agentd, state).args(["run", "-q", "--", "true"]).status().context("start agentd")?;
    ensure!(ran.success(), "agentd run: {ran}");
    let jobs = state.join("agentd/jobs");
    let first = one_of(&jobs)?;
    let id = first.file_name().and_then(|name| name.to_str()).context("a job without an id")?.to_owned();
    let path = first.join("record.jsonl");
    let record = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    for number in 1..records {
        // Spread, as random ids are.
        let other = format!("{:012x}", number.wrapping_mul(0x9e37_79b9_7f4a) % (1 << 48));
        let directory = jobs.join(&other);
        std::fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        std::fs::write(directory.join("record.jsonl"), record.replace(&id, &other)).context("write a record")?;
    }
    Ok(())
}

fn one_of(directory: &Path) -> Result<PathBuf> {
    let mut entries = std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    Ok(entries.next().context("no job was kept")??.path())
}

fn agentd_in(agentd: &Path, state: &Path) -> Command {
    let mut command = Command::new(agentd);
    command.env("XDG_STATE_HOME", state).env("XDG_DATA_HOME", state).stdin(Stdio::null()).stderr(Stdio::inherit());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_list_is_over_its_budget() {
        let within = |slow: f64| {
            let document = Document::begin("lists", 1, &[]);
            fill(document, 10, &[vec![slow], vec![1.0], vec![1.0], vec![900.0]]).within_budgets()
        };
        assert!(within(49.0));
        assert!(!within(51.0));
    }
}
