//! One run of a contestant or of the bound, and the shuffled rounds of all of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::contestants::{ALL, Contestant, Setting};
use super::disk::Disk;
use crate::account::Account;

/// What one run cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Run {
    /// Seconds from spawn to exit.
    pub(super) wall: f64,
    /// Seconds of all its processes.
    pub(super) cpu: f64,
    /// MiB of the largest of its processes.
    pub(super) memory: f64,
}

/// The runs of one contestant with one kind of image; `None` where it did not run.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) is_peer: bool,
    pub(super) runs: Vec<Option<Run>>,
    /// Why it did not run, when it failed.
    pub(super) failure: Option<String>,
}

/// CPU seconds of the parts of the work, each alone, in one round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bound {
    pub(super) hash: f64,
    pub(super) inflate: f64,
    pub(super) create: f64,
}

impl Bound {
    /// Seconds, when the work is spread over `cores` evenly.
    pub(super) fn seconds(self, cores: f64) -> f64 {
        (self.hash + self.inflate + self.create) / cores
    }
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) series: Vec<Series>,
    pub(super) bounds: Vec<(&'static str, Vec<Bound>)>,
}

/// Where and as whom runs happen.
#[derive(Debug)]
pub(super) struct Ground<'a> {
    pub(super) account: &'a Account,
    /// On a tmpfs, the account's.
    pub(super) scratch: &'a Path,
    pub(super) registry: Option<&'a str>,
}

impl Ground<'_> {
    /// All rounds, each in another order. Round 0 warms the caches and is not counted.
    pub(super) fn rounds(&self, images: &[(&'static str, PathBuf)], rounds: u32) -> Result<Measured> {
        let mut measured = Measured::default();
        for (kind, _) in images {
            measured.bounds.push((kind, Vec::new()));
            let with = ALL.iter().filter(|contestant| contestant.kinds.contains(kind));
            let series =
                |c: &Contestant| Series { name: c.name, kind, is_peer: c.is_peer, runs: Vec::new(), failure: None };
            measured.series.extend(with.map(series));
        }
        let mut random = 0x9e37_79b9_u32;
        for round in 0..=rounds {
            eprintln!("round {round} of {rounds}");
            for ((kind, image), (_, bounds)) in images.iter().zip(&mut measured.bounds) {
                let bound = self.bound(image)?;
                eprintln!("  {kind}: bound {bound:.3?}");
                if round > 0 {
                    bounds.push(bound);
                }
            }
            let mut order: Vec<usize> = (0..measured.series.len()).collect();
            for last in (1..order.len()).rev() {
                random ^= random << 13;
                random ^= random >> 17;
                random ^= random << 5;
                order.swap(last, usize::try_from(random)? % (last + 1));
            }
            for index in order {
                let series = &mut measured.series[index];
                let (Some(contestant), Some((_, image))) = (
                    ALL.iter().find(|contestant| contestant.name == series.name),
                    images.iter().find(|(kind, _)| *kind == series.kind),
                ) else {
                    continue;
                };
                let due = series.failure.is_none() && round % contestant.every == u32::from(contestant.every > 1);
                let run = if due { Some(self.run(contestant, series.kind, image)?) } else { None };
                let run = match run {
                    Some(Err(failure)) => {
                        series.failure = Some(failure);
                        None
                    }
                    Some(Ok(run)) => Some(run),
                    None => None,
                };
                if let Some(run) = run {
                    eprintln!("  {}, {}: {run:.3?}", series.kind, series.name);
                }
                if round > 0 {
                    series.runs.push(run);
                }
            }
        }
        Ok(measured)
    }

    fn run(&self, contestant: &Contestant, kind: &'static str, image: &Path) -> Result<Result<Run, String>> {
        let setting = Setting { kind, image, registry: self.registry, programs: self.scratch };
        let disk = Disk::new(self.scratch, self.account)?;
        let usage = self.scratch.join("usage");
        let mut command = contestant.command(&setting, disk.place(), &usage, self.account)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let start = Instant::now();
        let output = command.spawn().with_context(|| format!("start {}", contestant.name))?.wait_with_output()?;
        let wall = start.elapsed().as_secs_f64();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
            return Ok(Err(format!("{}: {}", output.status, last.trim())));
        }
        let usage = fs::read_to_string(&usage).context("read what `time` wrote")?;
        let numbers: Vec<f64> = usage.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [user, system, memory] = numbers[..] else { bail!("`time` wrote {usage:?}") };
        Ok(Ok(Run { wall, cpu: user + system, memory: memory / 1024.0 }))
    }

    fn bound(&self, image: &Path) -> Result<Bound> {
        let disk = Disk::new(self.scratch, self.account)?;
        let part = |what: &str| -> Result<f64> {
            let mut command = self.account.command(self.scratch.join("unpack-bound"));
            command.arg(what).arg(image);
            if what == "create" {
                command.arg(disk.place());
            }
            let output = command.stderr(Stdio::inherit()).output().context("start unpack-bound")?;
            ensure!(output.status.success(), "unpack-bound {what}: {}", output.status);
            String::from_utf8_lossy(&output.stdout).trim().parse().context("read what unpack-bound printed")
        };
        Ok(Bound { hash: part("hash")?, inflate: part("inflate")?, create: part("create")? })
    }
}
