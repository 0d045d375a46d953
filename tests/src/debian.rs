//! Debian packages from the mirror, got by apt with a state of its own: as any user, whatever this machine has installed.
//!
//! Invariant: apt verifies what it downloads with this machine's keys, as ever.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const MIRROR: &str = "http://deb.debian.org/debian";
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt with lists of the mirror's packages, of which none counts as installed.
#[derive(Debug)]
pub struct Mirror {
    dir: TempDir,
    sources: String,
}

impl Mirror {
    /// Asks the mirror what it has. Where it cannot be had the test is skipped, unless `AGENTD_TEST_REQUIRE` names
    /// `debian-mirror`.
    #[must_use]
    pub fn require() -> Option<Self> {
        match Self::new() {
            Ok(mirror) => Some(mirror),
            Err(reason) => {
                crate::skip("debian-mirror", false, reason);
                None
            }
        }
    }

    fn new() -> Result<Self, &'static str> {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let Some(codename) = codename.filter(|_| release.lines().any(|line| line == "ID=debian")) else {
            return Err("this machine is no Debian, whose apt and keys the test uses");
        };
        let dir = TempDir::new().map_err(|_full| "no temporary directory")?;
        let sources = format!("deb [signed-by={KEYS}] {MIRROR} {codename} main\n");
        let mirror = Self { dir, sources };
        for made in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(mirror.dir.path().join(made)).map_err(|_full| "no temporary directory")?;
        }
        for (name, text) in [("sources.list", mirror.sources.as_str()), ("status", "")] {
            fs::write(mirror.dir.path().join(name), text).map_err(|_full| "no temporary directory")?;
        }
        let updated = mirror.apt().args(["-o", "APT::Update::Error-Mode=any", "update"]).output();
        match updated {
            Ok(output) if output.status.success() => Ok(mirror),
            Ok(_) => Err("the Debian mirror cannot be reached"),
            Err(_) => Err("there is no apt-get"),
        }
    }

    fn apt(&self) -> Command {
        let mut command = Command::new("apt-get");
        for (name, path) in [
            ("Dir::State", "state"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::Etc::sourceparts", "nowhere"),
        ] {
            command.arg("-o").arg(format!("{name}={}", self.dir.path().join(path).display()));
        }
        command.args(["-o", "Debug::NoLocking=1", "-o", "APT::Install-Recommends=0", "-o", "APT::Sandbox::User=root"]);
        command.args(["-o", "Acquire::Languages=none", "-y", "-q"]);
        command
    }

    /// What belongs into a `sources.list` for the same packages.
    #[must_use]
    pub fn sources(&self) -> &str {
        &self.sources
    }

    /// Downloads `packages` and all they depend on; gives the archives, sorted.
    #[must_use]
    pub fn closure(&self, packages: &[&str]) -> Vec<PathBuf> {
        let archives = self.dir.path().join("cache/archives");
        let got = self.apt().args(["--download-only", "install"]).args(packages).output();
        let got = got.unwrap_or_else(|e| panic!("apt-get: {e}"));
        assert!(got.status.success(), "{packages:?}: {}", String::from_utf8_lossy(&got.stderr));
        let entries = fs::read_dir(&archives).unwrap_or_else(|e| panic!("{}: {e}", archives.display()));
        let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        found.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
        found.sort();
        found
    }
}

/// Unpacks an archive's files into `tree`, whose /bin, /sbin and /lib lead to /usr. No script of the package runs.
pub fn unpack(archive: &Path, tree: &Path) {
    let script = "dpkg-deb --fsys-tarfile \"$1\" | tar -x --keep-directory-symlink --no-same-owner -p -C \"$2\" \
                  --exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale";
    let mut command = Command::new("sh");
    let ran = crate::run(command.args(["-c", script, "unpack"]).arg(archive).arg(tree));
    drop(ran.expect_success());
}
