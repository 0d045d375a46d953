//! Other programs that unpack what agentd unpacks, and the listing of an image from inside a box, for comparison.
//!
//! Invariant: every one of them starts with no environment that could change what it does, and what it unpacked is
//! removed whatever modes it has.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::listing::{self, Listing};
use crate::{Home, Ran, run, skip_without};

/// What agentd itself puts into the root of every box: there the image's own cannot be seen.
pub const OWN: [&str; 9] = [
    ".",
    "etc",
    "etc/agentd-policy.txt",
    "etc/group",
    "etc/hostname",
    "etc/hosts",
    "etc/passwd",
    "etc/resolv.conf",
    "home",
];

/// Whether `programs` are there. If not it says `skipped: …`, or fails as [`skip_without`] does.
#[must_use]
pub fn installed(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &str| std::env::split_paths(&path).any(|directory| directory.join(name).metadata().is_ok());
    let missing: Vec<&str> = programs.iter().copied().filter(|name| !there(name)).collect();
    if missing.is_empty() {
        return true;
    }
    skip_without(&missing, &format!("a peer is not installed: {missing:?}"));
    false
}

/// podman with all of its state below a [`Home`]. An ordinary user's podman leaves a process that holds the user
/// namespace; it ends with this value.
#[derive(Debug)]
pub struct Podman<'a> {
    home: &'a Home,
}

impl<'a> Podman<'a> {
    /// For one test.
    #[must_use]
    pub fn new(home: &'a Home) -> Self {
        Self { home }
    }

    /// `podman`, to be given a subcommand.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new("podman");
        let place = |name: &str| self.home.path().join("cache").join(name);
        command.env("HOME", self.home.path()).env("XDG_RUNTIME_DIR", self.home.path().join("run"));
        command.arg("--root").arg(place("podman")).arg("--runroot").arg(place("podman-run"));
        command.args(["--storage-driver", "vfs", "--storage-opt", "vfs.ignore_chown_errors=true"]);
        command
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // What podman unpacked belongs to ids of its own.
        let _removed =
            self.command().args(["unshare", "rm", "-rf"]).arg(self.home.path().join("cache/podman")).output();
        let _ended = self.command().args(["system", "migrate"]).output();
    }
}

/// An empty directory to unpack into.
#[derive(Debug)]
pub struct Place {
    dir: TempDir,
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    /// Makes it.
    #[must_use]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("agentd-test-").tempdir().unwrap_or_else(|e| panic!("tempdir: {e}"));
        Self { dir }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What is in it.
    #[must_use]
    pub fn listing(&self) -> Listing {
        list(self.path())
    }

    /// `tar` of an archive into it, on top of what is there. It goes on after what it refuses; the status tells.
    pub fn gnu_tar(&self, archive: &Path) -> Ran {
        let mut tar = clean("tar");
        tar.args(["--extract", "--preserve-permissions", "--no-same-owner", "--delay-directory-restore"]);
        tar.args(["--xattrs", "--xattrs-include=user.*", "--keep-directory-symlink", "--force-local", "--file"]);
        run(tar.arg(archive).arg("--directory").arg(self.path()))
    }

    /// The same with libarchive's `bsdtar`.
    pub fn bsdtar(&self, archive: &Path) -> Ran {
        let mut tar = clean("bsdtar");
        tar.args(["-x", "-p", "--no-same-owner", "--xattrs", "-f"]).arg(archive).arg("-C").arg(self.path());
        run(&mut tar)
    }

    /// `umoci unpack --rootless` of the image `layout:tag` into it.
    pub fn umoci(&self, layout: &Path, tag: &str) -> (Ran, PathBuf) {
        let bundle = self.path().join("bundle");
        let image = format!("{}:{tag}", layout.display());
        let mut umoci = clean("umoci");
        (run(umoci.args(["unpack", "--rootless", "--image", &image]).arg(&bundle)), bundle.join("rootfs"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        run(Command::new("chmod").args(["-R", "u+rwX"]).arg(self.path()));
    }
}

/// The listing of a tree of this machine.
#[must_use]
pub fn list(root: &Path) -> Listing {
    listing::of(root, &[]).unwrap_or_else(|e| panic!("list {}: {e}", root.display()))
}

fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C.UTF-8").env("TZ", "UTC").env("HOME", "/nonexistent");
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command
}

impl Home {
    /// Lists the root of a box of the image `words` from inside: the ended command, and the mount points and the listing
    /// without them where it came to that.
    pub fn listed(&self, words: &str) -> (Ran, Option<(Vec<String>, Listing)>) {
        let test = std::env::current_exe().unwrap_or_else(|e| panic!("current_exe: {e}"));
        let program = test.ancestors().nth(2).unwrap_or(Path::new("/")).join("listing");
        let mount = format!("type=bind,src={},dst=/listing", program.display());
        let mut command = self.agentd();
        let ran = run(command.args(["run", "-q", "--image", words, "--mount", &mount, "--", "/listing"]));
        let listed =
            (ran.code() == 0).then(|| serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}\n{ran}")));
        (ran, listed)
    }
}
