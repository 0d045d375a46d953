//! `agentd secret`.

use std::env;
use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::AsFd;

use anyhow::{Context, Result};

use super::environment::Directories;
use crate::control::{Caller, Request};
use crate::launch::secrets::AskedSecret;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  agentd secret JOB GITHUB_TOKEN=cmd:'gh auth token'
  agentd secret JOB ANTHROPIC_API_KEY=file:$HOME/.config/anthropic/key")]
pub(super) struct Args {
    /// Name, id or beginning of an id
    job: String,
    /// The secret's name in the job; SOURCE is env:VARIABLE, file:PATH, cmd:COMMAND or cred:NAME (systemd)
    /// [default: env:NAME]
    #[arg(value_name = "NAME[=SOURCE]")]
    secret: AskedSecret,
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let jobs = Directories::find()?.swept_jobs();
    let id = jobs.find(&args.job)?;
    let key = args.secret.read_for_broker(&|name: &OsStr| env::var_os(name))?;
    let (value, mut pipe) = std::io::pipe().context("cannot make a pipe")?;
    // A key is smaller than any pipe: nobody has to read meanwhile.
    pipe.write_all(&key.value).context("cannot write to a pipe")?;
    drop(pipe);
    Caller::reach(&jobs, &id)?.ask(Request::Renew { secret: key.name }, Some(value.as_fd()))?;
    Ok(())
}
