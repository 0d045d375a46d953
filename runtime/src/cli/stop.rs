//! `agentd stop`.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;

use super::environment::Directories;
use super::printable;
use super::which::Which;
use crate::control::{Caller, ControlError, Request};
use crate::job::spec;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// Time between SIGTERM and SIGKILL; 0 kills at once [default: as it was started]
    #[arg(short, long = "time", value_name = "TIME", value_parser = grace)]
    time: Option<Duration>,
}

fn grace(text: &str) -> Result<Duration, spec::SpecError> {
    if text == "0" { Ok(Duration::ZERO) } else { spec::parse_duration(text) }
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let jobs = Directories::find()?.swept_jobs();
    let wanted = args.which.of(&jobs)?;
    let grace_ms = args.time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    // All are told before the first is waited for: they take their time together.
    for (_, id) in &wanted {
        match Caller::reach(&jobs, id).and_then(|caller| caller.tell(Request::Stop { grace_ms })) {
            Err(ControlError::NotRunning(..) | ControlError::Ending(..)) => {}
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
