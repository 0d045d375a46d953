//! Where the demo keeps things, and the one way it starts a box.
//!
//! On disk, below the base directory: `bin` (programs), `cache` (downloads), `oci` (the images), `data` (agentd's store:
//! kept, so that the second run is warm) and `run` (everything of one run, made anew).

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The directories of the demo.
#[derive(Debug)]
pub(super) struct Site {
    tools: PathBuf,
    base: PathBuf,
    /// Text that stands only in the canary file.
    pub(super) canary: String,
    /// The key of the stand-in, which nobody else takes.
    pub(super) key: String,
    _lock: File,
}

impl Site {
    /// Clears what an earlier run left in `run` and lays the canary home out.
    pub(super) fn open(tools: &Path) -> Result<Self> {
        let base = tools.parent().context("the programs have no directory above them")?.to_owned();
        let lock = File::create(base.join("lock")).with_context(|| format!("cannot write in {}", base.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another demo is running in {}", base.display()),
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the demo's directory"),
        }
        let random = || fs::read_to_string("/proc/sys/kernel/random/uuid").context("cannot get a random word");
        let (canary, key) = (format!("canary-{}", random()?.trim()), format!("sk-demo-{}", random()?.trim()));
        let site = Self { tools: tools.to_owned(), base, canary, key, _lock: lock };
        match fs::remove_dir_all(site.run()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", site.run().display()));
            }
            _ => {}
        }
        for dir in [site.cache(), site.base.join("data"), site.run().join("state"), site.home().join(".ssh")] {
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        fs::write(site.canary_file(), format!("{}\n", site.canary)).context("cannot write the canary")?;
        fs::write(site.home().join("notes.txt"), "of the user, not of the agent\n").context("cannot write a note")?;
        Ok(site)
    }

    pub(super) fn tool(&self, name: &str) -> PathBuf {
        self.tools.join(name)
    }

    /// Downloads, and trees on their way into images.
    pub(super) fn cache(&self) -> PathBuf {
        self.base.join("cache")
    }

    /// The OCI layout.
    pub(super) fn images(&self) -> PathBuf {
        self.base.join("oci")
    }

    /// Everything of one run.
    pub(super) fn run(&self) -> PathBuf {
        self.base.join("run")
    }

    /// `$HOME` of the user who runs agentd, as far as agentd is told.
    pub(super) fn home(&self) -> PathBuf {
        self.run().join("home")
    }

    pub(super) fn canary_file(&self) -> PathBuf {
        self.home().join(".ssh/id_ed25519")
    }

    /// The workspace the agent gets.
    pub(super) fn workspace(&self) -> PathBuf {
        self.run().join("clone")
    }

    /// Where records of boxes would be.
    pub(super) fn jobs(&self) -> PathBuf {
        self.run().join("state/agentd/jobs")
    }

    /// `agentd run --rm` with state of its own; options and the payload are the caller's.
    pub(super) fn agentd_run(&self, root: &str, workspace: &Path) -> Command {
        let image = match root {
            "host" => "host".to_owned(),
            tag => format!("oci:{}:{tag}", self.images().display()),
        };
        let mut command = Command::new(self.tool("agentd"));
        command.args(["run", "--rm", "--image", &image, "--workspace"]).arg(workspace);
        command.env("HOME", self.home()).stdin(Stdio::null());
        command.env("XDG_DATA_HOME", self.base.join("data")).env("XDG_STATE_HOME", self.run().join("state"));
        command.env("XDG_CONFIG_HOME", self.run().join("config")).env("XDG_CACHE_HOME", self.run().join("cache"));
        command
    }
}

/// What untrusted text looks like on the user's terminal: no escape sequence, no carriage return.
pub(super) fn printable(untrusted_text: &str) -> String {
    untrusted_text.chars().map(|c| if c.is_control() && c != '\t' { '·' } else { c }).collect()
}
