//! What tests of workloads get of whoever starts them: the Rust toolchain, and Claude Code. The ordinary user that root's tests
//! run as has neither.
//!
//! Invariant: a directory that is lent is whole: it is filled under another name.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::account::{Account, succeed};
use crate::demo::claude;

/// Directories to put before the PATH of tests; what is not to be had is told, and missed by the tests that want it.
pub(super) fn directories(target: &Path, account: Option<&Account>, filter: Option<&str>) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let lent = target.join("lent");
    if let Some(account) = account {
        let sysroot = sysroot()?;
        if !account.can_enter(&sysroot)? {
            let name = sysroot.file_name().unwrap_or_default();
            found.push(whole(&lent.join(name), |partial| toolchain(&sysroot, partial))?.join("bin"));
        }
    }
    // 170 MB, which a quick look at something else has no use for.
    if filter.is_none_or(|filter| filter.contains("workload")) && !is_there("claude") {
        match whole(&lent.join(format!("claude-{}", claude::VERSION)), claude_code) {
            Ok(directory) => found.push(directory.join("layer/usr/local/bin")),
            Err(error) => println!("Claude Code cannot be had: {error:#}"),
        }
    }
    Ok(found)
}

/// The PATH with `directories` before it.
pub(super) fn path(directories: &[PathBuf]) -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(directories.iter().cloned().chain(std::env::split_paths(&path))).context("a PATH of its own")
}

/// `directory`, which `fill` makes where it is not there yet.
fn whole(directory: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    if directory.metadata().is_err() {
        let mut partial = directory.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        succeed(Command::new("rm").arg("-rf").arg(&partial))?;
        succeed(Command::new("mkdir").args(["-p", "-m", "755"]).arg(&partial))?;
        fill(&partial)?;
        std::fs::rename(&partial, directory).with_context(|| format!("rename {}", partial.display()))?;
    }
    Ok(directory.to_owned())
}

/// The programs and libraries, as further names of the same files where that works: 600 MB.
fn toolchain(sysroot: &Path, to: &Path) -> Result<()> {
    let copy = |how: &str| {
        let mut cp = Command::new("cp");
        cp.args(["--archive", how]).args(["bin", "lib"].map(|part| sysroot.join(part))).arg(to);
        succeed(cp.stderr(std::process::Stdio::null()))
    };
    copy("--link").or_else(|_another_disk| copy("--reflink=auto"))
}

fn claude_code(to: &Path) -> Result<()> {
    let (cache, layer) = (to.join("npm"), to.join("layer"));
    succeed(Command::new("mkdir").arg(&cache))?;
    claude::unpack(&cache, &layer)?;
    // As large again.
    succeed(Command::new("rm").arg("-rf").arg(&cache))?;
    succeed(Command::new("chmod").args(["-R", "go+rX"]).arg(&layer))
}

fn sysroot() -> Result<PathBuf> {
    let said = Command::new("rustc").args(["--print", "sysroot"]).output().context("start rustc")?;
    Ok(PathBuf::from(String::from_utf8(said.stdout).context("rustc's sysroot")?.trim()))
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).metadata().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_is_made_once_and_as_a_whole() {
        let target = std::env::temp_dir().join(format!("agentd-lent-{}", std::process::id()));
        let directory = target.join("lent/thing-1.0");
        let fill = |partial: &Path| Ok(std::fs::write(partial.join("half"), "")?);
        assert!(whole(&directory, |partial| fill(partial).and_then(|()| anyhow::bail!("no more"))).is_err());
        assert!(directory.metadata().is_err());
        let fill = |partial: &Path| Ok(std::fs::write(partial.join("thing"), "")?);
        assert_eq!(whole(&directory, fill).unwrap(), directory);
        assert!(directory.join("thing").metadata().is_ok() && directory.join("half").metadata().is_err());
        whole(&directory, |_partial| anyhow::bail!("it is there")).unwrap();
        std::fs::remove_dir_all(target).unwrap();
    }
}
