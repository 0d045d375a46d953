//! `agentd pause` and `agentd unpause`.

use std::io::Write;

use anyhow::Result;

use super::environment::Directories;
use super::printable;
use super::which::Which;
use crate::control::{Caller, Request};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
}

/// Runs the verb.
pub(super) fn run(args: &Args, request: &Request) -> Result<()> {
    let jobs = Directories::find()?.swept_jobs();
    let mut out = std::io::stdout().lock();
    for (text, id) in args.which.of(&jobs)? {
        Caller::reach(&jobs, &id)?.tell(request.clone())?;
        writeln!(out, "{}", printable(&text))?;
    }
    Ok(())
}
