//! Start to exit of `true`, agentd beside its peers.
//!
//! The command builds agentd and the floor, makes a directory with everything the contestants need, lets an ordinary
//! user measure ([`measure`]), reads the memory of an idle job, and reports. As root it installs missing peers and
//! creates the user.
//!
//! Invariant: every ratio in the report is of two contestants of the same interleaved run, over the rounds both ran in.

mod contestants;
mod files;
pub(super) mod measure;
pub(super) mod memory;
mod report;

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

pub(crate) use files::Files;

use super::document::Document;
use super::prepare::{self, Scratch};
use crate::account::{self, Account};
use crate::workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Interleaved rounds
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// Put the results into docs/benchmarks.md
    #[arg(long)]
    write: bool,
}

/// Programs of others that are measured or needed for it, and their Debian packages.
const PEERS: [(&str, &str); 6] = [
    ("bwrap", "bubblewrap"),
    ("crun", "crun"),
    ("runc", "runc"),
    ("podman", "podman"),
    ("newuidmap", "uidmap"),
    ("busybox", "busybox-static"),
];

pub(super) fn run(arguments: &Args) -> Result<bool> {
    let account = if account::am_root()? { Some(Account::ensure()?) } else { None };
    prepare::install(&PEERS)?;
    let target_directory = workspace::metadata()?.target_directory;
    let agentd = workspace::release_program("agentd", "agentd", &target_directory)?;
    let floor = workspace::release_program_of_host("agentd-floor", "agentd-floor", &target_directory)?;
    let musl_floor = workspace::release_program("agentd-floor", "agentd-floor", &target_directory)?;
    let myself = std::env::current_exe().context("find this program")?;

    let scratch = Scratch::new("/var/tmp", account.as_ref())?;
    let programs =
        [(&agentd, "agentd"), (&floor, "agentd-floor"), (&musl_floor, "agentd-floor-musl"), (&myself, "xtask")];
    for (program, name) in programs {
        std::fs::copy(program, scratch.0.join(name)).with_context(|| format!("copy {}", program.display()))?;
    }
    let document = Document::begin("start", arguments.rounds, &["bwrap", "crun", "runc", "podman"]);
    let measured = measure_as(account.as_ref(), &scratch.0, arguments.rounds)?;
    let memory = memory::idle_job(account.as_ref(), &scratch.0);
    report::fill(document, &measured, memory).finish(arguments.write)
}

fn measure_as(account: Option<&Account>, scratch: &Path, rounds: u32) -> Result<measure::Measured> {
    let program = scratch.join("xtask");
    let mut half = match account {
        Some(account) => {
            let as_user = account.command(&program);
            let mut apart = Command::new("unshare");
            apart.args(["--mount", "--propagation", "private", "sh", "-c", WITHOUT_HYBRID_CGROUPS, "sh"]);
            apart.arg(as_user.get_program()).args(as_user.get_args()).env_clear();
            apart.envs(as_user.get_envs().filter_map(|(name, value)| Some((name, value?))));
            apart
        }
        None => Command::new(&program),
    };
    half.envs(contestants::environment(scratch));
    half.args(["bench", "measure-start", "--rounds", &rounds.to_string(), "--directory"]).arg(scratch);
    let output = half.current_dir(scratch).stderr(Stdio::inherit()).output().context("start the measuring half")?;
    if !output.status.success() {
        bail!("the measuring half: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("read what was measured")
}

/// Rootless crun 1.8 refuses to start at all where the unified hierarchy of a hybrid set-up has a controller. Nobody
/// measured uses it, so everybody is measured without it.
const WITHOUT_HYBRID_CGROUPS: &str = r#"
if [ -d /sys/fs/cgroup/unified ]; then umount /sys/fs/cgroup/unified; fi
exec "$@""#;
