//! What the system-call filter and the Landlock ruleset cost: the same work under both, one, or neither.
//!
//! `init/examples/confined.rs` puts a program under what a real plan has, and nothing else. Whoever starts the command
//! measures: neither layer looks at who is under it.
//!
//! Invariant: every ratio in the report is of two ways of one interleaved run; each of them did all of the work.

mod report;
mod work;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::document::Document;
use super::prepare::Scratch;
use crate::workspace;
use work::Work;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Interleaved rounds
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Put the results into docs/benchmarks.md
    #[arg(long)]
    write: bool,
}

/// Ways to run the work, as `confined` calls them; the first is what the others are measured against.
const WAYS: [&str; 4] = ["none", "seccomp", "landlock", "both"];
/// Starts of `true` in a round: one is too short for its differences to show.
const STARTS: usize = 20;

/// Seconds of each way, a list a round.
#[derive(Debug)]
struct Series {
    name: &'static str,
    seconds: Vec<[f64; WAYS.len()]>,
}

pub(super) fn run(arguments: &Args) -> Result<bool> {
    let target_directory = workspace::metadata()?.target_directory;
    let agentd = workspace::release_program("agentd", "agentd", &target_directory)?;
    let confined = workspace::release_example("agentd-init", "confined", &target_directory)?;
    let scratch = Scratch::new("/var/tmp", None)?;
    let works = work::all(&scratch.0)?;
    let document = Document::begin("filters", arguments.rounds, &[]);
    let mut measured = Vec::new();
    for work in &works {
        let plan = plan(&agentd, &scratch.0, work.flags)?;
        let mut series = Series { name: work.name, seconds: Vec::new() };
        // Round 0 warms the caches and is not counted.
        for round in 0..=arguments.rounds {
            let mut seconds = [0.0; WAYS.len()];
            for turn in 0..WAYS.len() {
                // Each way comes at each turn, and behind each other one.
                let at = (if round % 2 == 0 { turn } else { WAYS.len() - 1 - turn } + round / 2) % WAYS.len();
                if let (Some(way), Some(slot)) = (WAYS.get(at), seconds.get_mut(at)) {
                    *slot = time(work, &confined, way, &plan)?;
                }
            }
            if round > 0 {
                series.seconds.push(seconds);
            }
        }
        eprintln!("{}: {} rounds", work.name, arguments.rounds);
        measured.push(series);
    }
    report::fill(document, &measured).finish(arguments.write)
}

/// The box of a plan for a workspace, with that place where it is outside.
fn plan(agentd: &Path, scratch: &Path, flags: &[&str]) -> Result<PathBuf> {
    let workspace = scratch.join("work");
    let mut dry = Command::new(agentd);
    for place in ["DATA", "STATE"] {
        dry.env(format!("XDG_{place}_HOME"), scratch.join(place));
    }
    dry.args(["run", "--dry-run", "--format", "json", "--workspace"]).arg(&workspace).args(flags).args(["--", "true"]);
    let output = dry.stderr(Stdio::inherit()).output().context("start agentd")?;
    ensure!(output.status.success(), "agentd run --dry-run: {}", output.status);
    let mut document: Value = serde_json::from_slice(&output.stdout).context("read the plan")?;
    let grants = document.pointer_mut("/box/landlock/paths").and_then(Value::as_array_mut);
    for grant in grants.context("the plan has no Landlock rules")? {
        if grant["path"] == "/workspace" {
            grant["path"] = workspace.to_string_lossy().into();
        }
    }
    let path = scratch.join("plan.json");
    std::fs::write(&path, document["box"].to_string()).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn time(work: &Work, confined: &Path, way: &str, plan: &Path) -> Result<f64> {
    work.prepare()?;
    let mut command = Command::new(confined);
    command.arg(way).arg(plan).args(&work.command).current_dir(&work.directory).envs(work.environment.clone());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let start = Instant::now();
    for _ in 0..work.times {
        let status = command.status().with_context(|| format!("start {command:?}"))?;
        ensure!(status.success(), "{} under {way}: {status}", work.name);
    }
    Ok(start.elapsed().as_secs_f64())
}
