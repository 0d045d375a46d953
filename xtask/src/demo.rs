//! `cargo xtask demo`: builds agentd, makes images out of Debian packages and the real Claude Code, lets it fix and
//! commit a bug in a box, tries to get out, and shows that the host is as it was.
//!
//! Invariant: nothing but the build and the making of the user is done as root; the rest, downloads and boxes alike,
//! runs as an ordinary user and keeps everything it makes in one directory.

mod agent;
mod attempts;
pub(crate) mod claude;
pub(crate) mod debian;
mod host;
pub(crate) mod images;
mod project;
mod report;
mod site;
mod standin;

use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::account::{Account, am_root, succeed};
use crate::workspace;
use report::Report;
use site::Site;

/// The programs the demo drives.
const TOOLS: [&str; 3] = ["agentd", "oci-image", "messages-api"];

/// What it needs of the machine, with the Debian package it comes from.
const NEEDED: [(&str, &str); 5] =
    [("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("tar", "tar"), ("git", "git"), ("npm", "npm")];

/// How long it may take on two cores once everything is built and here.
const MOST: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Shows this agentd instead of building one
    #[arg(long, value_name = "PATH")]
    agentd: Option<PathBuf>,
    /// Where the built programs are: set by the demo itself when it goes on as an ordinary user
    #[arg(long, value_name = "DIR", hide = true)]
    tools: Option<PathBuf>,
}

/// An error unless every check held.
pub(crate) fn run(args: Args) -> Result<()> {
    if let Some(tools) = args.tools {
        return show(&tools);
    }
    check_needed()?;
    let account = if am_root()? { Some(Account::ensure()?) } else { None };
    let base = match &account {
        Some(account) => account.command("true").get_current_dir().unwrap_or(Path::new("/")).join("agentd-demo"),
        None => workspace::root().join(".demo"),
    };
    let tools = base.join("bin");
    for dir in [&base, &tools] {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
        made.with_context(|| format!("cannot make {}", dir.display()))?;
        account.as_ref().map_or(Ok(()), |account| account.give(dir))?;
    }
    let start = Instant::now();
    install(args.agentd, &tools)?;
    report::step(start, "agentd and the stand-ins are built");
    let Some(account) = account else { return show(&tools) };
    let mut rest = account.command(tools.join("xtask"));
    for name in ["ANTHROPIC_API_KEY", "http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY"] {
        rest.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    let done = rest.args(["demo".as_ref(), "--tools".as_ref(), tools.as_path()]).status().context("start setpriv")?;
    ensure!(done.success(), "the demo did not hold");
    Ok(())
}

fn check_needed() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &str| std::env::split_paths(&path).any(|dir| dir.join(name).metadata().is_ok());
    let missing: Vec<_> = NEEDED.iter().filter(|(name, _)| !there(name)).collect();
    let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    ensure!(missing.is_empty(), "missing: {}; install with: apt-get install {}", names.join(", "), packages.join(" "));
    Ok(())
}

/// Builds the programs and puts them, and this one, where the ordinary user can run them.
fn install(agentd: Option<PathBuf>, tools: &Path) -> Result<()> {
    println!("building (release)");
    let mut build = workspace::cargo();
    build.args(["build", "--release", "--bins", "--package", "agentd-tests"]);
    let built = workspace::programs(&mut build)?.into_iter().map(|program| (program.target, program.path));
    let mut built: Vec<_> = built.collect();
    let agentd = match agentd {
        Some(path) => path,
        None => workspace::release_program("agentd", "agentd", &workspace::metadata()?.target_directory)?,
    };
    built.push(("agentd".to_owned(), agentd));
    built.push(("xtask".to_owned(), std::env::current_exe().context("find this program")?));
    for name in TOOLS.into_iter().chain(["xtask"]) {
        let (_, from) = built.iter().find(|(n, _)| n == name).with_context(|| format!("cargo built no {name}"))?;
        // Installed beside and renamed, by coreutils: a copy over a running program would be "text file busy".
        succeed(Command::new("install").args(["-m", "755", "-C"]).arg(from).arg(tools.join(name)))?;
    }
    Ok(())
}

/// Everything after the build, as an ordinary user.
fn show(tools: &Path) -> Result<()> {
    let start = Instant::now();
    ensure!(!am_root()?, "the boxes are for an ordinary user, not for root");
    let site = Site::open(tools)?;
    let downloading = images::make(&site)?;

    let mut report = Report::new();
    let before = host::State::look(&site)?;
    project::make(&site)?;
    let key = std::env::var_os("ANTHROPIC_API_KEY").filter(|key| !key.is_empty());
    let is_scripted = key.is_none();
    agent_at_work(&site, key, &mut report)?;
    for root in attempts::ROOTS {
        attempts::make(&site, root, &mut report)?;
    }
    report.part("the host");
    before.compare(&site, &mut report)?;
    // How long a real model thinks is not the demo's.
    if is_scripted {
        report.part("the time");
        let took = start.elapsed().saturating_sub(downloading);
        let what = format!("all but the build and the downloads took at most {} s", MOST.as_secs());
        report.check(&what, took <= MOST, &format!("{} s", took.as_secs()));
    }
    println!();
    report.end(start)
}

fn agent_at_work(site: &Site, key: Option<OsString>, report: &mut Report) -> Result<()> {
    report.part("Claude Code in a box: image of Debian packages, a network of one host, which it has no key for");
    match key {
        Some(key) => {
            println!("  ANTHROPIC_API_KEY is set: the real api.anthropic.com answers, and is paid for.");
            println!("  The key stays with the broker, which adds it to what the agent asks for.");
            agent::work(site, &agent::Api::Real { key }, report)?;
        }
        None => {
            let script = project::script(site);
            let api = standin::StandIn::start(site, &script)?;
            println!("  The model is {}.", standin::SAID_OPENLY);
            agent::work(site, &agent::Api::StandIn { port: api.port() }, report)?;
        }
    }
    project::verify(site, report)
}
