//! The work that is measured: a crate that cargo builds, a repository that git and find look through, and `true`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::STARTS;
use crate::account::succeed;

/// The work whose budget is a ratio.
pub(super) const BUILD: &str = "cargo build, 12 files";
pub(super) const LOOK: &str = "git status and find, 3,000 files";
/// The work whose budget is a time: what the layers add to a start.
pub(super) const START: &str = "true";
/// The same with the rules that come before those of the profile.
pub(super) const FAKE_ROOT: &str = "true, --fake-root";

/// Something to do, again and again.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) name: &'static str,
    pub(super) command: Vec<OsString>,
    pub(super) directory: PathBuf,
    pub(super) environment: Vec<(&'static str, OsString)>,
    /// What the plan it is under is made with.
    pub(super) flags: &'static [&'static str],
    /// How often it is done in a round.
    pub(super) times: usize,
    /// What the time before left behind.
    leftover: Option<PathBuf>,
}

impl Work {
    /// Takes away what the last time made.
    pub(super) fn prepare(&self) -> Result<()> {
        match self.leftover.as_ref().filter(|path| path.metadata().is_ok()) {
            Some(path) => fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display())),
            None => Ok(()),
        }
    }
}

/// Makes everything below `scratch/work`.
pub(super) fn all(scratch: &Path) -> Result<Vec<Work>> {
    let top = scratch.join("work");
    fs::create_dir(&top).with_context(|| format!("create {}", top.display()))?;
    Ok(vec![build(&top)?, look(&top)?, start(START, &[], &top), start(FAKE_ROOT, &["--fake-root", "--writable"], &top)])
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// A crate of modules with generic code and derives, no dependency; built from nothing each time.
fn build(top: &Path) -> Result<Work> {
    let directory = top.join("crate");
    fs::create_dir_all(directory.join("src"))?;
    fs::write(
        directory.join("Cargo.toml"),
        "[package]\nname = \"work\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
    )?;
    let mut main = String::from("#![allow(dead_code)]\n");
    for module in 0..11 {
        writeln!(main, "mod part{module};")?;
        let mut text = String::from("use std::collections::BTreeMap;\n");
        for item in 0..20 {
            writeln!(
                text,
                "#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]\npub struct S{item} {{ pub a: u32, pub b: String, \
                 pub c: Vec<u8> }}\nimpl S{item} {{ pub fn fold(&self) -> BTreeMap<String, usize> {{ self.c.iter().map(|c| \
                 (format!(\"{{}}{{c}}\", self.b), *c as usize)).collect() }} }}"
            )?;
        }
        fs::write(directory.join(format!("src/part{module}.rs")), text)?;
    }
    main.push_str("fn main() {\n");
    for module in 0..11 {
        writeln!(main, "println!(\"{{:?}}\", part{module}::S3::default().fold());")?;
    }
    main.push_str("}\n");
    fs::write(directory.join("src/main.rs"), main)?;
    // Not by way of rustup, whose files lie in a home directory.
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().context("start rustc")?;
    ensure!(output.status.success(), "rustc --print sysroot: {}", output.status);
    let bin = PathBuf::from(String::from_utf8(output.stdout)?.trim()).join("bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([bin.clone()].into_iter().chain(std::env::split_paths(&path)))?;
    let environment =
        vec![("CARGO_HOME", top.join("cargo").into()), ("PATH", path), ("CARGO_TARGET_DIR", "target".into())];
    let command = [vec![bin.join("cargo").into()], words(&["build", "--offline", "--quiet"])].concat();
    let leftover = Some(directory.join("target"));
    Ok(Work { name: BUILD, command, directory, environment, flags: &[], times: 1, leftover })
}

/// A repository of many small files.
fn look(top: &Path) -> Result<Work> {
    let directory = top.join("repository");
    for place in 0..60 {
        let place = directory.join(format!("d{}/e{place}", place % 6));
        fs::create_dir_all(&place)?;
        for file in 0..50 {
            fs::write(place.join(format!("f{file}")), format!("{file}\n"))?;
        }
    }
    let git = |words: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(&directory).args(["-c", "user.name=a", "-c", "user.email=a@b"]).args(words);
        succeed(git.env("GIT_CONFIG_NOSYSTEM", "1").env("HOME", top))
    };
    git(&["init", "--quiet"])?;
    git(&["add", "."])?;
    git(&["commit", "--quiet", "--message", "all"])?;
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do git status --porcelain; find . -type f -size +9 -newer .git/index; done";
    let environment = vec![("HOME", OsString::from(top)), ("GIT_CONFIG_NOSYSTEM", "1".into())];
    let command = words(&["sh", "-c", script]);
    Ok(Work { name: LOOK, command, directory, environment, flags: &[], times: 1, leftover: None })
}

fn start(name: &'static str, flags: &'static [&'static str], top: &Path) -> Work {
    let (directory, command) = (top.to_owned(), words(&["true"]));
    Work { name, command, directory, environment: Vec::new(), flags, times: STARTS, leftover: None }
}
