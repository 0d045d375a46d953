//! From an OCI image layout to a payload that ran on it, into an empty store, agentd beside its peers.
//!
//! Root runs it, since every run gets a fresh file system; what is measured runs as an ordinary user. Invariant: every
//! ratio in the report is of runs of the same shuffled rounds.

mod contestants;
mod disk;
mod image;
mod measure;
mod registry;
mod report;
mod stacks;

use anyhow::{Context, Result, ensure};

use self::measure::Ground;
use self::registry::Registry;
use super::document::Document;
use super::prepare::{self, Scratch};
use crate::account::{self, Account};
use crate::workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Interleaved rounds; the slow peers run in every third
    #[arg(long, default_value_t = 9)]
    rounds: u32,
    /// Put the results into docs/benchmarks.md
    #[arg(long)]
    write: bool,
}

/// Programs of others that are measured or needed for it, and their Debian packages.
const PEERS: [(&str, &str); 13] = [
    ("time", "time"),
    ("pigz", "pigz"),
    ("zstd", "zstd"),
    ("umoci", "umoci"),
    ("skopeo", "skopeo"),
    ("podman", "podman"),
    ("buildah", "buildah"),
    ("newuidmap", "uidmap"),
    ("ch-image", "charliecloud"),
    ("docker-registry", "docker-registry"),
    ("openssl", "openssl"),
    ("npm", "npm"),
    ("busybox", "busybox-static"),
];

pub(super) fn run(arguments: &Args) -> Result<bool> {
    ensure!(account::am_root()?, "a fresh file system for every run takes root: run it with sudo");
    let account = Account::ensure()?;
    prepare::install(&PEERS)?;
    let target_directory = workspace::metadata()?.target_directory;
    let agentd = workspace::release_program("agentd", "agentd", &target_directory)?;
    let bound = workspace::release_example("agentd-rootfs", "unpack-bound", &target_directory)?;
    let cache = target_directory.join("bench-unpack");
    std::fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let images = image::make(&cache)?;
    ensure!(account.can_enter(&cache)?, "the user that measures cannot enter {}", cache.display());

    prepare::mount_apart()?;
    let scratch = Scratch::new("/dev/shm", Some(&account))?;
    for (program, name) in [(&agentd, "agentd"), (&bound, "unpack-bound")] {
        std::fs::copy(program, scratch.0.join(name)).with_context(|| format!("copy {}", program.display()))?;
    }
    let programs = ["pigz", "tar", "umoci", "skopeo", "podman", "ch-image"];
    let document = Document::begin("unpack", arguments.rounds, &programs);
    let registry = Registry::start(&scratch.0, &images)?;
    let ground = Ground { account: &account, scratch: &scratch.0, registry: Some(&registry.address) };
    let measured = ground.rounds(&images, arguments.rounds)?;
    drop(registry);
    let stacks = stacks::measure(&account, &scratch.0)?;
    let cores = std::thread::available_parallelism().context("count the cores")?;
    let cores = f64::from(u32::try_from(cores.get()).context("count the cores")?);
    report::fill(document, &measured, &stacks, cores).finish(arguments.write)
}
