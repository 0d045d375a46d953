//! `agentd rename`.

use anyhow::Result;

use super::environment::Directories;
use crate::job::id::JobName;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name, id or beginning of an id
    job: String,
    /// What to call it from now on
    name: JobName,
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let jobs = Directories::find()?.swept_jobs();
    Ok(jobs.rename(&jobs.find(&args.job)?, &args.name)?)
}
