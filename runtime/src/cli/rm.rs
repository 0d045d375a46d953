//! `agentd rm`.

use std::io::Write;

use anyhow::Result;

use super::environment::Directories;
use super::which::{at_once, each};
use crate::control::{self, Caller, ControlError, Request};
use crate::job::id::{JobId, JobName};
use crate::job::record::State;
use crate::job::store::{JobStoreError, Jobs};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Names, ids or beginnings of ids
    #[arg(required_unless_present = "all")]
    jobs: Vec<String>,
    /// Every job that has ended
    #[arg(short, long, conflicts_with = "jobs")]
    all: bool,
    /// Also jobs that run: SIGKILL ends them first
    #[arg(short, long)]
    force: bool,
}

/// Runs the verb; gives the exit code.
pub(super) fn run(args: &Args) -> Result<u8> {
    let jobs = Directories::find()?.swept_jobs();
    let (ids, troubles) = if args.all {
        let (records, troubles) = jobs.list()?;
        let chosen = records.into_iter().filter(|record| args.force || record.state != State::Running);
        (chosen.map(|record| record.id).collect(), troubles)
    } else {
        // All are looked up before the first is removed: a mistyped name changes nothing.
        (args.jobs.iter().map(|text| jobs.find(text)).collect::<Result<Vec<_>, _>>()?, Vec::new())
    };
    let ended = at_once(&ids, |id| if args.force { kill(&jobs, id) } else { Ok(()) });
    let removed = each(ids.iter().zip(ended), |(id, ended)| {
        ended?;
        remove(&jobs, id)?;
        Ok(writeln!(std::io::stdout(), "{id}")?)
    })?;
    Ok(removed.max(each(troubles, |trouble| Err(trouble.into()))?))
}

/// Forgets a job that has ended.
fn remove(jobs: &Jobs, id: &JobId) -> Result<()> {
    loop {
        match jobs.remove(id) {
            // Its record is locked, and not by a supervisor that runs it: by one that is about to be gone, or by a command that
            // writes the end of what a killed one left.
            Err(JobStoreError::Running(_)) if control::is_gone(jobs, id) => jobs.wait(id)?,
            removed => return Ok(removed?),
        }
    }
}

/// Ends and forgets the job that has `name`, if there is one (`run --replace`).
pub(super) fn replace(jobs: &Jobs, name: &JobName) -> Result<()> {
    match jobs.find_name(name) {
        Some(id) => {
            kill(jobs, &id)?;
            remove(jobs, &id)
        }
        None => Ok(()),
    }
}

/// Ends a job that runs, by its supervisor if that still answers; a record that cannot be read is of none that can be ended.
fn kill(jobs: &Jobs, id: &JobId) -> Result<()> {
    let told = Caller::reach(jobs, id).and_then(|caller| caller.tell(Request::Signal { number: libc::SIGKILL }));
    let told = match told {
        Err(ControlError::Silent { .. } | ControlError::NoSocket { .. }) => control::end(jobs, id),
        told => told,
    };
    match told {
        Err(ControlError::NotRunning(..) | ControlError::Store(_)) => Ok(()),
        Ok(()) | Err(ControlError::Ending(..)) => Ok(jobs.wait(id)?),
        Err(error) => Err(error.into()),
    }
}
