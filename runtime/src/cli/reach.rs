//! `agentd allow` and `agentd deny`.
//!
//! A port that no rule named so far is a socket to be made inside the box. This program makes it, not the supervisor, which
//! waits for nothing and joins nothing.

use std::os::fd::AsFd;

use agentd_egress::{Change, Ruling};
use anyhow::{Context, Result, bail, ensure};

use super::environment::Directories;
use super::run_network::Rules;
use crate::control::{Answer, Caller, Request};
use crate::supervisor::guest;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  agentd allow JOB pypi
  agentd allow JOB db.example.org:5432 '*.example.org:80'")]
pub(super) struct AllowArgs {
    /// Name, id or beginning of an id
    job: String,
    /// Hosts, as --allow of `agentd run` takes them, or sets; single requests ('GET https://HOST/PATH*') where the job has
    /// rules for requests to that host already
    #[arg(required = true, value_name = "HOST[:PORT[-PORT]]", value_parser = super::run_network::allowance)]
    rules: Vec<Rules>,
}

#[derive(Debug, clap::Args)]
pub(super) struct DenyArgs {
    /// Name, id or beginning of an id
    job: String,
    /// Hosts, as --deny of `agentd run` takes them; without a port: all of them; single requests where they are read
    #[arg(required = true, value_name = "HOST[:PORT[-PORT]]", value_parser = super::run_network::denial)]
    rules: Vec<Rules>,
}

/// Runs `agentd allow`.
pub(super) fn allow(args: AllowArgs) -> Result<()> {
    change(&args.job, Change { allow: rulings(args.rules), deny: Vec::new() })
}

/// Runs `agentd deny`.
pub(super) fn deny(args: DenyArgs) -> Result<()> {
    change(&args.job, Change { allow: Vec::new(), deny: rulings(args.rules) })
}

fn rulings(rules: Vec<Rules>) -> Vec<Ruling> {
    let of = |rules| match rules {
        Rules::Hosts(rules) => rules.into_iter().map(Ruling::Host).collect(),
        Rules::Requests(rule) => vec![Ruling::Request(rule)],
    };
    rules.into_iter().flat_map(of).collect()
}

/// Bytes of a change: with what is around it, it fits a message.
const MOST: usize = agentd_sys::channel::MAX_MESSAGE - 64;

fn change(job: &str, change: Change) -> Result<()> {
    ensure!(
        serde_json::to_vec(&change)?.len() <= MOST,
        "these are more rules than one message holds; give fewer at once"
    );
    let jobs = Directories::find()?.swept_jobs();
    let id = jobs.find(job)?;
    let caller = Caller::reach(&jobs, &id)?;
    let (Answer::Ports(ports), payload) = caller.ask(Request::Reach(change.clone()), None)? else { return Ok(()) };
    let payload = payload.context("the supervisor sent no pidfd of its command: it is of another version")?;
    for door in guest::doors(&payload, &ports)? {
        caller.ask(Request::Door, Some(door.as_fd()))?;
    }
    match caller.ask(Request::Reach(change), None)? {
        (Answer::Ports(_), _) => bail!("somebody else changes what job {id} may reach at the same time; try again"),
        _ => Ok(()),
    }
}
