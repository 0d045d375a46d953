//! `agentd pause` and `agentd unpause`.

use std::io::Write;

use anyhow::Result;

use super::environment::Directories;
use super::printable;
use super::which::{Which, at_once, each};
use crate::control::{Caller, Request};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
}

/// Runs the verb; gives the exit code.
pub(super) fn run(args: &Args, request: &Request) -> Result<u8> {
    let jobs = Directories::find()?.swept_jobs();
    let wanted = args.which.of(&jobs)?;
    let told = at_once(&wanted, |(_, id)| Caller::reach(&jobs, id)?.tell(request.clone()));
    each(wanted.iter().zip(told), |((text, _), told)| {
        told?;
        Ok(writeln!(std::io::stdout(), "{}", printable(text))?)
    })
}
