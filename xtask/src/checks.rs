//! The checks that other programs make: rustfmt, clippy, cargo-deny.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::account::succeed;
use crate::workspace;

/// Pinned, so that a check does not change its mind between two machines.
const CARGO_DENY: &str = "0.20.2";

/// How one check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    /// It could not be made here, and why.
    Skipped(String),
}

impl From<bool> for Outcome {
    fn from(passed: bool) -> Self {
        if passed { Self::Passed } else { Self::Failed }
    }
}

/// Runs every check, showing what each says, and reports how each ended.
pub(crate) fn run(target_directory: &Path) -> Result<Vec<(&'static str, Outcome)>> {
    let mut clippy = workspace::cargo();
    clippy.args(["clippy", "--quiet", "--workspace", "--all-targets"]).arg("--target-dir").arg(target_directory);
    let mut outcomes = vec![
        ("fmt", passes(workspace::cargo().args(["fmt", "--all", "--check"]))?.into()),
        ("clippy", passes(clippy.args(["--", "--deny", "warnings"]))?.into()),
    ];
    let deny = installed("cargo-deny", CARGO_DENY)?;
    let check = |kinds: &[&str]| {
        let mut command = Command::new(&deny);
        command.current_dir(workspace::root()).args(["--log-level", "error", "check"]).args(kinds);
        command
    };
    outcomes.push(("deny bans licenses sources", passes(&mut check(&["bans", "licenses", "sources"]))?.into()));
    outcomes.push(("deny advisories", advisories(check(&["advisories"]))?));
    Ok(outcomes)
}

fn passes(command: &mut Command) -> Result<bool> {
    Ok(command.status().with_context(|| format!("start {command:?}"))?.success())
}

/// The advisory database is a git repository that some networks do not reach: that is a skip, told as one.
fn advisories(mut check: Command) -> Result<Outcome> {
    let output = check.stdin(Stdio::null()).output().context("start cargo-deny")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(Outcome::Passed);
    }
    if said.contains("failed to fetch advisory database") {
        return Ok(Outcome::Skipped("the RustSec advisory database cannot be fetched from here".into()));
    }
    eprint!("{said}");
    Ok(Outcome::Failed)
}

/// Where the cargo subcommand `name` is; installs it when it is missing. Distributions package none of them.
pub(crate) fn installed(name: &str, version: &str) -> Result<PathBuf> {
    let has_it = |program: &Path| {
        let asked = Command::new(program).arg("--version").output();
        asked.is_ok_and(|output| output.stdout.starts_with(format!("{name} {version}").as_bytes()))
    };
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let installed = cargo_home.context("neither CARGO_HOME nor HOME is set")?.join("bin").join(name);
    if has_it(&installed) {
        return Ok(installed);
    }
    println!("installing {name} {version} (some minutes on two cores, once)");
    // Unoptimized: its build takes a fourth of the time, and what it does here a second more.
    // Not in the workspace: its .cargo/config.toml is about our binary.
    let mut install = workspace::cargo();
    install.current_dir("/").args(["install", "--quiet", "--locked", "--debug", "--version", version, name]);
    install.env_remove("CARGO_TARGET_DIR").env("CARGO_PROFILE_DEV_DEBUG", "0");
    succeed(&mut install)?;
    Ok(installed)
}
