//! The measuring half: runs everybody in shuffled rounds, then many at once. An ordinary user runs it.
//!
//! Time is from just before `posix_spawn` (what `Command` uses here) to the return of `wait`, by the monotonic clock.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::contestants::{self, AGENTD, BWRAP, Contestant, FLOOR, Payload};
use super::files::Files;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    rounds: u32,
}

/// What the measuring half hands to the reporting one.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) series: Vec<Series>,
    /// Name and reason.
    pub(super) left_out: Vec<(String, String)>,
    pub(super) wide: Vec<Wide>,
}

/// One contestant's times in milliseconds, one a round; `None` where it did not run or failed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) samples: Vec<Option<f64>>,
    pub(super) failures: u32,
}

/// [`STARTS`] starts, `width` at a time, done [`REPETITIONS`] times.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Wide {
    pub(super) name: String,
    pub(super) width: u32,
    pub(super) totals: Vec<f64>,
    pub(super) failures: u32,
}

pub(super) const STARTS: u32 = 200;
pub(super) const REPETITIONS: u32 = 5;
const WIDTHS: [u32; 2] = [8, 32];

/// No two runs share an id, whatever thread starts them.
static NEXT_ID: AtomicU32 = AtomicU32::new(0);

pub(crate) fn run(arguments: &Args) -> Result<()> {
    let files = Files::at(&arguments.directory);
    std::fs::create_dir(&files.root)?;
    files.make().context("make the image and the workspace")?;
    let mut measured = Measured::default();
    let mut everybody = contestants::all(&files, Payload::True)?;
    for prover in contestants::all(&files, Payload::Prove)? {
        eprintln!("trying {}", prover.name);
        if let Err(reason) = prove(&prover, &files) {
            everybody.retain(|contestant| contestant.name != prover.name);
            measured.left_out.push((prover.name.to_owned(), format!("{reason:#}")));
        }
    }
    measured.series = rounds(&everybody, arguments.rounds)?;
    let wide: Vec<&Contestant> = everybody.iter().filter(|c| [FLOOR, AGENTD, BWRAP].contains(&c.name)).collect();
    for width in WIDTHS {
        measured.wide.extend(at_once(&wide, width));
    }
    if everybody.iter().any(|contestant| contestant.name == contestants::PODMAN) {
        // Rootless podman leaves a process that holds its user namespace.
        crate::account::succeed(std::process::Command::new("podman").args(["system", "migrate"]))?;
    }
    serde_json::to_writer(std::io::stdout(), &measured).context("write what was measured")
}

/// Runs a payload that leaves a proof, and asks for the proof.
fn prove(prover: &Contestant, files: &Files) -> Result<()> {
    let output = prover.command(next_id())?.output().context("cannot be started")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let reason = said.lines().last().unwrap_or("no message").trim().to_owned();
    anyhow::ensure!(output.status.success(), "{}: {reason}", output.status);
    std::fs::remove_file(files.workspace.join("proof")).context("the payload did not run")
}

fn next_id() -> u32 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

fn rounds(everybody: &[Contestant], rounds: u32) -> Result<Vec<Series>> {
    let mut series: Vec<Series> =
        everybody.iter().map(|c| Series { name: c.name.to_owned(), ..Series::default() }).collect();
    let mut order: Vec<usize> = (0..everybody.len()).collect();
    let mut random = 0x9e37_79b9_u32;
    // Round 0 warms the caches and is not counted.
    for round in 0..=rounds {
        // Another order each round: a contestant's namespaces are taken down while the next one is measured.
        for last in (1..order.len()).rev() {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            order.swap(last, usize::try_from(random)? % (last + 1));
        }
        for index in &order {
            let contestant = &everybody[*index];
            let due = round % contestant.every == 0;
            let time = if due { Some(time(contestant)?) } else { None };
            if round > 0 {
                series[*index].failures += u32::from(time == Some(None));
                series[*index].samples.push(time.flatten());
            }
        }
        if round % 25 == 0 {
            eprintln!("round {round} of {rounds}");
        }
    }
    Ok(series)
}

/// Milliseconds from spawn to exit; `None` when it failed.
fn time(contestant: &Contestant) -> Result<Option<f64>> {
    let mut command = contestant.command(next_id())?;
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let status = command.spawn().with_context(|| format!("start {}", contestant.name))?.wait()?;
    let elapsed = start.elapsed();
    Ok(status.success().then_some(elapsed.as_secs_f64() * 1e3))
}

fn at_once(contestants: &[&Contestant], width: u32) -> Vec<Wide> {
    let empty = |c: &&Contestant| Wide { name: c.name.to_owned(), width, totals: Vec::new(), failures: 0 };
    let mut results: Vec<Wide> = contestants.iter().map(empty).collect();
    for _ in 0..REPETITIONS {
        for (contestant, wide) in contestants.iter().zip(&mut results) {
            let (left, failures) = (AtomicU32::new(STARTS), AtomicU32::new(0));
            let start = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..width {
                    scope.spawn(|| {
                        while left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
                        {
                            if !matches!(time(contestant), Ok(Some(_))) {
                                failures.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    });
                }
            });
            wide.totals.push(start.elapsed().as_secs_f64() * 1e3);
            wide.failures += failures.into_inner();
        }
        eprintln!("{STARTS} starts {width} wide");
    }
    results
}
