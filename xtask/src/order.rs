//! `cargo xtask order`: in which order a start meets the functions of `agentd`, for the linker to lay them out.
//!
//! Two starts are traced, of an image and of the host's root, each to the exec of the payload. What they met, in that
//! order, is `runtime/startup.order`; `runtime/build.rs` hands it to the linker. A name holds a hash of its crate's version and
//! features, so the order ages with every update of a dependency: [`is_current`] tells when it is to be made again.
//!
//! Invariant: every name in the file is of a function of the program that was just built.

mod map;
#[cfg(target_arch = "x86_64")]
mod trace;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::account::{self, Account};
use crate::bench::{Files, Scratch};
use crate::workspace;
use map::Functions;

/// Below that, too much of a start lies where it fell.
const CURRENT_PERCENT: usize = 80;

const HEADER: &str =
    "# Functions in the order in which a start meets them. Made by `cargo xtask order`; not to be edited.\n";

pub(crate) fn run() -> Result<()> {
    if !account::am_root()? {
        bail!("run this as root: agentd lets nobody else look into it");
    }
    let account = Account::ensure()?;
    let target_directory = workspace::metadata()?.target_directory;
    let (agentd, map) = workspace::release_program_with_map("agentd", "agentd", &target_directory)?;
    let functions = Functions::read(&map.context("this linker made no map: only the toolchain's own lld does")?)?;
    let scratch = Scratch::new("/var/tmp", Some(&account))?;
    let copy = scratch.0.join("agentd");
    std::fs::copy(&agentd, &copy).with_context(|| format!("copy {}", agentd.display()))?;
    let files = Files::at(&scratch.0);
    files.make()?;
    for path in [&files.workspace, &files.image] {
        account::succeed(std::process::Command::new("chown").arg("-R").arg(account.uid.to_string()).arg(path))?;
    }
    let image = format!("oci:{}", files.image.display());
    let workspace = files.workspace.to_string_lossy();
    let of_image = ["run", "--image", &image, "--workspace", &workspace, "--", "/bin/true"];
    let of_host = ["run", "--workspace", &workspace, "--", "true"];
    let start = |arguments: &[&str]| {
        let mut command = account.command(&copy);
        command.args(arguments).env("XDG_DATA_HOME", scratch.0.join("data"));
        command.env("XDG_STATE_HOME", scratch.0.join("state"));
        command
    };
    // The layers are there from then on, as for nearly every start.
    account::succeed(&mut start(&of_image))?;
    let mut met = Vec::new();
    for arguments in [&of_image[..], &of_host] {
        met.extend(traced(start(arguments), &copy, &functions)?);
    }
    let names = functions.names(&met);
    let text: String = std::iter::once(HEADER.to_owned()).chain(names.iter().map(|name| format!("{name}\n"))).collect();
    let place = order_file();
    std::fs::write(&place, text).with_context(|| format!("write {}", place.display()))?;
    println!("{}: {} functions of {}", place.display(), names.len(), functions.count());
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn traced(start: std::process::Command, program: &Path, functions: &Functions) -> Result<Vec<u64>> {
    trace::run(start, program, functions)
}

#[cfg(not(target_arch = "x86_64"))]
fn traced(_start: std::process::Command, _program: &Path, _functions: &Functions) -> Result<Vec<u64>> {
    bail!("only on x86_64, the one machine with an order")
}

fn order_file() -> PathBuf {
    workspace::root().join("runtime/startup.order")
}

/// Whether nearly all of the order is in the program that `map` is of; where no map is made, none is used.
pub(crate) fn is_current(map: Option<&Path>) -> Result<bool> {
    let Some(map) = map else { return Ok(true) };
    let functions = Functions::read(map)?;
    let order = std::fs::read_to_string(order_file()).with_context(|| format!("read {}", order_file().display()))?;
    let names: Vec<&str> = order.lines().filter(|line| !line.starts_with('#')).collect();
    let known = names.iter().filter(|name| functions.has(name)).count();
    let is_current = known * 100 >= names.len() * CURRENT_PERCENT && known > 0;
    if !is_current {
        println!("runtime/startup.order: {known} of {} names are in agentd; run `cargo xtask order`", names.len());
    }
    Ok(is_current)
}
