//! `agentd exec`.

use std::env;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::environment::Directories;
use super::run::variable;
use super::say;
use crate::control::{Caller, Request};
use crate::job::spec;
use crate::launch::plan::Plan;
use crate::supervisor::Ending;
use crate::supervisor::guest;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  agentd exec JOB ls -l /scratch
  agentd exec -it JOB bash")]
pub(super) struct Args {
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set a variable on top of the job's; NAME alone passes your own on
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory inside [default: the job's]
    #[arg(short, long, value_name = "DIR", value_parser = spec::absolute)]
    workdir: Option<String>,
    /// Name, id or beginning of an id
    job: String,
    /// Command and arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the verb; gives the exit code.
pub(super) fn run(args: Args) -> Result<u8> {
    let jobs = Directories::find()?.swept_jobs();
    let id = jobs.find(&args.job)?;
    if args.command.iter().any(|word| word.contains('\0')) {
        bail!("the command holds a NUL byte");
    }
    let caller = Caller::reach(&jobs, &id)?;
    let mut plan: Plan = jobs.plan(&id)?;
    let process = &mut plan.inside.process;
    let mut set = |name: &str, value: &str| {
        process.env.retain(|known| known.split_once('=').is_none_or(|(known, _)| known != name));
        process.env.push(format!("{name}={value}"));
    };
    if args.tty {
        set("TERM", &env::var("TERM").unwrap_or_else(|_unset| "xterm".into()));
    }
    for word in &args.env {
        if let Some((name, value)) = variable(word)? {
            set(&name, &value);
        }
    }
    process.argv = args.command;
    (process.terminal, process.input) = (args.tty, args.interactive);
    if let Some(workdir) = args.workdir {
        process.cwd = workdir;
    }
    let (_, payload) = caller.ask(Request::Enter, None)?;
    let payload = payload.context("the supervisor sent no pidfd of its command: it is of another version")?;
    let cgroup = jobs.read(&id)?.cgroup;
    match guest::run(plan, &payload, &caller, cgroup.as_deref().map(Path::new)) {
        Ok(ending) => {
            if let Ending::Failed { failure, .. } = &ending {
                say(&failure.to_string());
            }
            Ok(ending.code())
        }
        Err(guest::GuestError::Ended) => {
            say(&format!("job {id} ended, and the command with it"));
            Ok(137)
        }
        Err(error) => Err(error.into()),
    }
}
