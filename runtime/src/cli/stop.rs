//! `agentd stop`.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;

use super::environment::Directories;
use super::printable;
use crate::control::{Caller, ControlError, Request};
use crate::job::id::JobId;
use crate::job::spec;
use crate::job::store::Jobs;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Names, ids or beginnings of ids
    #[arg(required_unless_present = "all")]
    jobs: Vec<String>,
    /// Every job that runs
    #[arg(short, long, conflicts_with = "jobs")]
    all: bool,
    /// Time between SIGTERM and SIGKILL; 0 kills at once [default: as it was started]
    #[arg(short, long = "time", value_name = "TIME", value_parser = grace)]
    time: Option<Duration>,
}

fn grace(text: &str) -> Result<Duration, spec::SpecError> {
    if text == "0" { Ok(Duration::ZERO) } else { spec::parse_duration(text) }
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let jobs = Directories::find()?.jobs();
    jobs.sweep()?;
    let wanted = if args.all { running(&jobs)? } else { named(&jobs, &args.jobs)? };
    let grace_ms = args.time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    // All are told before the first is waited for: they take their time together.
    for (_, id) in &wanted {
        match Caller::reach(&jobs, id).and_then(|caller| caller.tell(Request::Stop { grace_ms })) {
            Err(ControlError::NotRunning(..)) => {}
            told => told?,
        }
    }
    let mut out = std::io::stdout().lock();
    for (text, id) in wanted {
        jobs.wait(&id)?;
        writeln!(out, "{}", printable(&text))?;
    }
    Ok(())
}

/// What was typed, and the job it means. All are looked up before anything is done: a mistyped name changes nothing.
pub(super) fn named(jobs: &Jobs, texts: &[String]) -> Result<Vec<(String, JobId)>> {
    texts.iter().map(|text| Ok((text.clone(), jobs.find(text)?))).collect()
}

/// Every job that runs.
pub(super) fn running(jobs: &Jobs) -> Result<Vec<(String, JobId)>> {
    Ok(jobs.running()?.into_iter().map(|id| (id.to_string(), id)).collect())
}
