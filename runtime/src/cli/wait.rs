//! `agentd wait`.

use std::fs::File;
use std::io::Write;

use anyhow::Result;

use super::environment::Directories;
use super::say;
use super::which::{each, named};
use crate::job::id::JobId;
use crate::job::record::State;
use crate::job::store::Jobs;

/// Exit code of a job whose supervisor was killed: the kernel killed its command as well.
const LOST: u8 = 137;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Names, ids or beginnings of ids
    #[arg(required = true)]
    jobs: Vec<String>,
}

/// Runs the verb; gives the exit code of the last job, or that one could not be waited for.
pub(super) fn run(args: &Args) -> Result<u8> {
    let jobs = Directories::find()?.jobs();
    let mut last = 0;
    let code = each(named(&jobs, &args.jobs)?, |(_, id)| {
        last = outcome(&jobs, &id, jobs.open_running(&id)?)?;
        Ok(writeln!(std::io::stdout().lock(), "{last}")?)
    })?;
    Ok(if code == 0 { last } else { code })
}

/// Waits for the end of a job, which may be `running`; gives its exit code.
pub(super) fn outcome(jobs: &Jobs, id: &JobId, running: Option<File>) -> Result<u8> {
    Ok(match jobs.outcome(id, running)?.state {
        State::Exited { exit_code, .. } | State::Failed { exit_code, .. } => exit_code,
        State::Lost { reason } => {
            say(&format!("job {id} is lost: {reason}"));
            LOST
        }
        // It was started again under this id by nobody: there is no such thing.
        State::Running => LOST,
    })
}
