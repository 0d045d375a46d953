//! A fresh journaled ext4 for every run, on a loop device over a file in memory.
//!
//! An ext4 that was unpacked into and emptied before is slower, one without a journal (some virtual machines' root) by
//! a factor of five; and on a real disk the other programs of the machine would be measured too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::account::{Account, succeed};
use crate::demo::images::quiet;

/// Gigabytes: what containers-storage needs for the image, twice.
const SIZE: &str = "4G";

/// How long a file system may be busy after its run.
const PATIENCE: Duration = Duration::from_secs(60);

/// A mounted file system that goes away with the value.
#[derive(Debug)]
pub(super) struct Disk {
    file: PathBuf,
    place: PathBuf,
}

impl Disk {
    /// Makes it below `directory`, which is on a tmpfs, for `account`.
    pub(super) fn new(directory: &Path, account: &Account) -> Result<Self> {
        let disk = Self { file: directory.join("disk"), place: directory.join("place") };
        fs::create_dir_all(&disk.place).with_context(|| format!("create {}", disk.place.display()))?;
        succeed(Command::new("truncate").args(["--size", SIZE]).arg(&disk.file))?;
        // Nothing is left for a kernel thread to do later, while somebody is measured.
        let owner = format!("lazy_itable_init=0,lazy_journal_init=0,root_owner={}:{}", account.uid, account.gid);
        let mut make = Command::new("mkfs.ext4");
        succeed(make.args(["-q", "-F", "-O", "has_journal", "-E", &owner]).arg(&disk.file))?;
        succeed(Command::new("mount").args(["-o", "loop"]).arg(&disk.file).arg(&disk.place))?;
        Ok(disk)
    }

    /// Where it is mounted; the account's.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // agentd writes a new layer back in a process of its own (docs/adr/0006), and nothing tells when that has ended.
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = quiet(Command::new("umount").arg(&self.place)) {
            if Instant::now() > deadline {
                eprintln!("xtask: {error:#}");
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        if let Err(error) = fs::remove_file(&self.file) {
            eprintln!("xtask: remove {}: {error}", self.file.display());
        }
    }
}
