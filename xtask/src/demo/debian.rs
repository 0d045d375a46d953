//! Trees of Debian packages, made by an ordinary user: apt with a private state directory resolves, downloads and
//! checks signatures as ever; the packages are unpacked, and no maintainer script runs.
//!
//! What those scripts would have done and programs here need is done by hand: merged /usr, passwd and group, the bundle
//! of certificate authorities.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::images::{quiet, remove, said};

const BASE: [&str; 8] = ["base-files", "base-passwd", "bash", "coreutils", "dash", "findutils", "grep", "sed"];
const TOOLS: [&str; 4] = ["ca-certificates", "git", "python3-minimal", "ripgrep"];
const MINIMAL: [&str; 2] = ["bash-static", "busybox-static"];

/// Merged since Debian 12; packages of that release still name the old places.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// The unpacked layers.
#[derive(Debug)]
pub(super) struct Trees {
    pub(super) base: PathBuf,
    pub(super) tools: PathBuf,
    pub(super) minimal: PathBuf,
    /// The time that apt took.
    pub(super) downloading: Duration,
}

/// Downloads and unpacks all of them.
pub(super) fn unpack(cache: &Path) -> Result<Trees> {
    let start = Instant::now();
    let apt = Apt::new(cache)?;
    let base = apt.closure(&BASE)?;
    let all = apt.closure(&[&BASE[..], &TOOLS].concat())?;
    let tools = all.difference(&base).cloned().collect();
    apt.download(&[&BASE[..], &TOOLS].concat())?;
    // Only the two themselves: a static shell needs nothing of what its package depends on.
    let minimal = apt.closure(&MINIMAL)?;
    let minimal = minimal.into_iter().filter(|file| MINIMAL.iter().any(|name| file.starts_with(name))).collect();
    apt.download(&MINIMAL)?;

    let trees = Trees {
        base: cache.join("layer-base"),
        tools: cache.join("layer-tools"),
        minimal: cache.join("layer-minimal"),
        downloading: start.elapsed(),
    };
    for (tree, files) in [(&trees.base, base), (&trees.tools, tools), (&trees.minimal, minimal)] {
        remove(tree)?;
        fs::create_dir_all(tree).with_context(|| format!("cannot make {}", tree.display()))?;
        merge_usr(tree)?;
        files.iter().try_for_each(|file| unpack_package(&apt.archives().join(file), tree))?;
    }
    accounts(&trees.base)?;
    certificates(&trees.tools)?;
    shells(&trees.minimal)?;
    Ok(trees)
}

/// apt with lists, cache and status of its own, and the system's sources and keys.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
}

impl Apt {
    pub(crate) fn new(cache: &Path) -> Result<Self> {
        let apt = Self { dir: cache.join("apt") };
        for dir in [apt.dir.join("state/lists"), apt.archives(), apt.nowhere()].map(|dir| dir.join("partial")) {
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        // Nothing counts as installed, so a closure is whole.
        fs::write(apt.status(), "").context("cannot write apt's status")?;
        quiet(apt.command().arg("update")).context("cannot update the lists of packages")?;
        Ok(apt)
    }

    pub(crate) fn archives(&self) -> PathBuf {
        self.dir.join("cache/archives")
    }

    fn nowhere(&self) -> PathBuf {
        self.dir.join("nowhere")
    }

    fn status(&self) -> PathBuf {
        self.dir.join("status")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        let mut option = |name: &str, value: &Path| {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        };
        option("Dir::State", &self.dir.join("state"));
        option("Dir::State::status", &self.status());
        option("Dir::Cache", &self.dir.join("cache"));
        command.args(["-o", "Debug::NoLocking=1", "-o", "APT::Install-Recommends=0"]);
        command.args(["-o", "Acquire::Languages=none", "-o", "Acquire::Retries=3", "-y", "-q"]);
        command
    }

    /// The file names of `packages` and of all they depend on.
    pub(crate) fn closure(&self, packages: &[&str]) -> Result<BTreeSet<String>> {
        // With an archive that is always empty: what is downloaded already would not be listed.
        let nowhere = format!("Dir::Cache::archives={}", self.nowhere().display());
        let uris = said(self.command().args(["-o", &nowhere, "--print-uris", "install"]).args(packages))?;
        // 'URI' FILE SIZE HASH
        let lines = uris.lines().filter(|line| line.starts_with('\''));
        let files: BTreeSet<_> = lines.filter_map(|line| Some(line.split(' ').nth(1)?.to_owned())).collect();
        ensure!(!files.is_empty(), "apt names no packages for {}", packages.join(" "));
        Ok(files)
    }

    pub(crate) fn download(&self, packages: &[&str]) -> Result<()> {
        quiet(self.command().args(["--download-only", "install"]).args(packages))
    }
}

pub(crate) fn merge_usr(tree: &Path) -> Result<()> {
    for name in MERGED {
        fs::create_dir_all(tree.join("usr").join(name)).with_context(|| format!("cannot make usr/{name}"))?;
        symlink(format!("usr/{name}"), tree.join(name)).with_context(|| format!("cannot link {name}"))?;
    }
    Ok(())
}

/// `dpkg-deb --extract` would put a directory in the place of a merged symlink; tar can be told not to.
pub(crate) fn unpack_package(package: &Path, tree: &Path) -> Result<()> {
    let mut deb = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).stdout(Stdio::piped()).spawn()?;
    let archive = deb.stdout.take().context("dpkg-deb has no output")?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "--keep-directory-symlink", "--no-same-owner", "-p", "-C"]).arg(tree).stdin(archive);
    tar.args(["--exclude=./usr/share/doc", "--exclude=./usr/share/man", "--exclude=./usr/share/locale"]);
    let unpacked = quiet(&mut tar);
    let read = deb.wait().context("wait for dpkg-deb")?;
    unpacked.with_context(|| format!("cannot unpack {}", package.display()))?;
    ensure!(read.success(), "cannot read {}: {read}", package.display());
    Ok(())
}

fn accounts(tree: &Path) -> Result<()> {
    for (name, line) in [("passwd", "agent:x:1000:1000::/home/agent:/bin/bash"), ("group", "agent:x:1000:")] {
        let master = tree.join("usr/share/base-passwd").join(format!("{name}.master"));
        let system = fs::read_to_string(&master).with_context(|| format!("cannot read {}", master.display()))?;
        fs::write(tree.join("etc").join(name), format!("{system}{line}\n")).context("cannot write the accounts")?;
    }
    Ok(())
}

fn certificates(tree: &Path) -> Result<()> {
    let authorities = tree.join("usr/share/ca-certificates/mozilla");
    let entries = fs::read_dir(&authorities).with_context(|| format!("cannot read {}", authorities.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.sort();
    let dir = tree.join("etc/ssl/certs");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut bundle = fs::File::create(dir.join("ca-certificates.crt")).context("cannot write the bundle")?;
    for file in files {
        bundle.write_all(&fs::read(&file)?).context("cannot write the bundle")?;
    }
    Ok(())
}

fn shells(tree: &Path) -> Result<()> {
    let bin = tree.join("usr/bin");
    symlink("bash-static", bin.join("bash")).context("cannot link bash")?;
    let busybox = bin.join("busybox");
    let applets = said(Command::new(&busybox).arg("--list"))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", bin.join(applet)).with_context(|| format!("cannot link {applet}"))?;
    }
    Ok(())
}
