//! What the network broker costs: the same client and server over loopback, through agentd, pasta and slirp4netns.
//!
//! The server is this program, on the host's loopback; the client is this program again, where the way begins. As root the
//! command lets an ordinary user run both ends of each way, and reads the memory of the broker, which that user may not.
//!
//! Invariant: every ratio in the report is of two ways of one round; the order of ways changes from round to round.

pub(super) mod client;
mod relay;
mod report;
mod server;
mod ways;

use anyhow::{Context, Result};

use super::prepare::{self, Scratch};
use crate::account::{self, Account};
use crate::workspace;
use client::Measured;
use report::{Beside, Report};
use server::Server;
use ways::{Place, WAYS, Way};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Interleaved rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Put the results into docs/benchmarks.md
    #[arg(long)]
    write: bool,
}

/// Programs of others, and their Debian packages.
const PEERS: [(&str, &str); 3] = [("pasta", "passt"), ("slirp4netns", "slirp4netns"), ("unshare", "util-linux")];

/// Pairs of starts in a round.
const STARTS: usize = 20;

/// What each way did in one round, in the order of [`WAYS`].
#[derive(Debug, Clone, Default)]
struct Round([Option<Measured>; WAYS.len()]);

impl Round {
    fn of(&self, way: Way) -> Option<&Measured> {
        WAYS.iter().zip(&self.0).find(|(known, _)| **known == way).and_then(|(_, measured)| measured.as_ref())
    }
}

pub(super) fn run(arguments: &Args) -> Result<bool> {
    let account = if account::am_root()? { Some(Account::ensure()?) } else { None };
    prepare::install(&PEERS)?;
    let target_directory = workspace::metadata()?.target_directory;
    let agentd = workspace::release_program("agentd", "agentd", &target_directory)?;
    let scratch = Scratch::new("/var/tmp", account.as_ref())?;
    for (program, name) in ways::programs(agentd)? {
        std::fs::copy(&program, scratch.0.join(name)).with_context(|| format!("copy {}", program.display()))?;
    }
    let load = std::fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
    let place = Place { directory: &scratch.0, account: account.as_ref() };
    let server = Server::start()?;
    let relay = relay::start(server.port)?;
    let (mut rounds, mut beside) = (Vec::new(), Beside::default());
    for number in 0..arguments.rounds {
        let mut round = Round::default();
        for turn in 0..WAYS.len() {
            let at = (turn + number) % WAYS.len();
            let (Some(way), Some(slot)) = (WAYS.get(at), round.0.get_mut(at)) else { continue };
            if beside.left_out.iter().any(|(left_out, _)| left_out == way) {
                continue;
            }
            match place.measure(*way, &server, relay) {
                Ok((measured, memory)) => {
                    *slot = Some(measured);
                    beside.crowded = beside.crowded.max(memory);
                }
                Err(error) => beside.left_out.push((*way, format!("{error:#}"))),
            }
        }
        rounds.push(round);
        for _ in 0..STARTS {
            beside.starts.push((ways::start(&place, false)?, ways::start(&place, true)?));
        }
        eprintln!("round {} of {}", number + 1, arguments.rounds);
    }
    match ways::in_a_row(&place, &server) {
        Ok(row) => beside.row = Some(row),
        Err(error) => eprintln!("many connections in a row were not made: {error:#}"),
    }
    match ways::idle(&place) {
        Ok(parts) => beside.idle = Some(parts),
        Err(error) => eprintln!("the memory of an idle job is not known: {error:#}"),
    }
    let report = Report::new(&rounds, &beside, &load);
    println!("{report}");
    if arguments.write {
        report.write(&workspace::root().join("docs/benchmarks.md"))?;
    }
    Ok(report.within_budgets())
}
