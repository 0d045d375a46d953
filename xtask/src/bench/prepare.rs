//! What every measurement stands on: the programs of others, and a directory of the measuring user.
//!
//! Invariant: the directory goes away with its value.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::account::{self, Account};

/// Whether a program is to be found.
pub(super) fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian has runc there, and an ordinary user's PATH does not.
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    places.into_iter().any(|directory| directory.join(name).metadata().is_ok())
}

/// Installs what is missing of `peers`, pairs of a program and its Debian package. An ordinary user is told.
pub(super) fn install(peers: &[(&str, &str)]) -> Result<()> {
    let packages: Vec<&str> =
        peers.iter().filter(|(program, _)| !has_program(program)).map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    if !account::am_root()? {
        println!("missing, and left out: apt-get install {}", packages.join(" "));
        return Ok(());
    }
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-qq", "--no-install-recommends"]);
    account::succeed(install.args(packages))
}

/// What this process mounts from here on is its own, and goes with it however it ends. Root only.
pub(super) fn mount_apart() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    account::succeed(Command::new("mount").args(["--make-rprivate", "/"]))
}

/// A directory of the measuring user that goes away with the value.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    /// Makes it in `parent`.
    pub(crate) fn new(parent: &str, account: Option<&Account>) -> Result<Self> {
        let path = Path::new(parent).join(format!("agentd-bench.{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        let scratch = Self(path);
        if let Some(account) = account {
            account.give(&scratch.0)?;
        }
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("xtask: remove {}: {error}", self.0.display());
        }
    }
}
