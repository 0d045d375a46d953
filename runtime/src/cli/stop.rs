//! `agentd stop`.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;

use super::environment::Directories;
use super::which::{Which, at_once, each};
use super::{printable, say};
use crate::control::{self, Caller, ControlError, Request};
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

/// Runs the verb; gives the exit code.
pub(super) fn run(args: &Args) -> Result<u8> {
    let jobs = Directories::find()?.swept_jobs();
    let wanted = args.which.of(&jobs)?;
    let grace_ms = args.time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    // All are told before the first is waited for: they take their time together.
    let told = at_once(&wanted, |(_, id)| Caller::reach(&jobs, id)?.tell(Request::Stop { grace_ms }));
    each(wanted.iter().zip(told), |((text, id), told)| {
        match told {
            Err(ControlError::NotRunning(..) | ControlError::Ending(..)) => {}
            Err(ControlError::NoSocket { source, .. }) => {
                control::terminate(&jobs, id)?;
                let why = format!("its supervisor can make no socket ({source})");
                say(&format!("job {id} has got SIGTERM, and its own --stop-timeout counts: {why}"));
            }
            told => told?,
        }
        jobs.wait(id)?;
        Ok(writeln!(std::io::stdout(), "{}", printable(text))?)
    })
}
