//! `agentd rm`.

use std::io::Write;

use anyhow::Result;

use super::environment::Directories;
use crate::control::{self, Caller, ControlError, Request};
use crate::job::id::{JobId, JobName};
use crate::job::record::State;
use crate::job::store::Jobs;

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

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let jobs = Directories::find()?.swept_jobs();
    let mut out = std::io::stdout().lock();
    if args.all {
        let (records, troubles) = jobs.list()?;
        for record in records.iter().filter(|record| args.force || record.state != State::Running) {
            if args.force {
                kill(&jobs, &record.id)?;
            }
            jobs.remove(&record.id)?;
            writeln!(out, "{}", record.id)?;
        }
        return troubles.into_iter().next().map_or(Ok(()), |trouble| Err(trouble.into()));
    }
    // All are looked up before the first is removed: a mistyped name changes nothing.
    let ids = args.jobs.iter().map(|text| jobs.find(text)).collect::<Result<Vec<_>, _>>()?;
    for id in ids {
        if args.force {
            kill(&jobs, &id)?;
        }
        jobs.remove(&id)?;
        writeln!(out, "{id}")?;
    }
    Ok(())
}

/// Ends and forgets the job that has `name`, if there is one (`run --replace`).
pub(super) fn replace(jobs: &Jobs, name: &JobName) -> Result<()> {
    match jobs.find_name(name) {
        Some(id) => {
            kill(jobs, &id)?;
            Ok(jobs.remove(&id)?)
        }
        None => Ok(()),
    }
}

/// Ends a job that runs, by its supervisor if that still answers; a record that cannot be read is of none that can be ended.
fn kill(jobs: &Jobs, id: &JobId) -> Result<()> {
    let told = Caller::reach(jobs, id).and_then(|caller| caller.tell(Request::Signal { number: libc::SIGKILL }));
    let told = match told {
        Err(ControlError::Silent { .. }) => control::end(jobs, id),
        told => told,
    };
    match told {
        Err(ControlError::NotRunning(..) | ControlError::Store(_)) => Ok(()),
        Ok(()) | Err(ControlError::Ending(..)) => Ok(jobs.wait(id)?),
        Err(error) => Err(error.into()),
    }
}
