//! `agentd attach`.

use anyhow::Result;

use super::environment::Directories;
use super::{say, wait::outcome};
use crate::control::Caller;
use crate::supervisor::attached::{self, Left, Wish};
use crate::supervisor::keys::Keys;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name, id or beginning of an id
    job: String,
    /// Keys that leave the job and let it go on: letters, or ctrl- and a letter, with commas between
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: Keys,
    /// Only look: pass no input on
    #[arg(long)]
    no_stdin: bool,
    /// Pass SIGINT, SIGQUIT, SIGTERM, SIGUSR1 and SIGUSR2 on to the command
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    sig_proxy: bool,
}

/// Runs the verb; gives the exit code.
pub(super) fn run(args: Args) -> Result<u8> {
    let jobs = Directories::find()?.swept_jobs();
    let id = jobs.find(&args.job)?;
    let running = jobs.open_running(&id)?;
    let caller = Caller::reach(&jobs, &id)?;
    let wish = Wish { input: !args.no_stdin, signals: args.sig_proxy, keys: args.detach_keys };
    let fell_behind = || say(&format!("fell behind, and some output is not shown here; `agentd logs {id}` has it"));
    match attached::attach(&caller, wish, fell_behind)? {
        Left::Detached => {
            say(&format!("detached from job {id}, which goes on"));
            Ok(0)
        }
        Left::Ended => outcome(&jobs, &id, running),
    }
}
