//! What the environment says: where this user's data and state are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::process::geteuid;

use crate::job::store::Jobs;
use crate::launch::plan::Surroundings;

/// Where agentd keeps what it keeps.
#[derive(Debug)]
pub(super) struct Directories {
    data: PathBuf,
    state: PathBuf,
    home: Option<PathBuf>,
    runtime: Option<PathBuf>,
}

impl Directories {
    /// `$XDG_DATA_HOME` and `$XDG_STATE_HOME`, else under the home directory; for root /var/lib/agentd.
    pub(super) fn find() -> Result<Self> {
        let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = absolute("HOME").or_else(home_of_user);
        let place = |variable: &str, below_home: &str, of_root: &str| {
            if let Some(path) = absolute(variable) {
                return Ok(path.join("agentd"));
            }
            if geteuid().is_root() {
                return Ok(PathBuf::from(of_root));
            }
            let home = home.as_ref().with_context(|| format!("no home directory; set HOME or {variable}"))?;
            Ok(home.join(below_home).join("agentd"))
        };
        let data: Result<PathBuf> = place("XDG_DATA_HOME", ".local/share", "/var/lib/agentd");
        let state = place("XDG_STATE_HOME", ".local/state", "/var/lib/agentd");
        Ok(Directories { data: data?, state: state?, home, runtime: absolute("XDG_RUNTIME_DIR") })
    }

    /// The jobs of this user.
    pub(super) fn jobs(&self) -> Jobs {
        Jobs::at(self.state.clone())
    }

    /// The directory of everything that is kept of jobs.
    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    /// `$XDG_RUNTIME_DIR`, where a user's systemd listens.
    pub(super) fn runtime(&self) -> Option<PathBuf> {
        self.runtime.clone()
    }

    /// The directory of the store.
    pub(super) fn store(&self) -> PathBuf {
        self.data.join("store")
    }

    /// What a plan has to know.
    pub(super) fn surroundings(&self) -> Surroundings {
        #[expect(clippy::disallowed_methods, reason = "compared with paths that were resolved the same way")]
        let real = |path: &PathBuf| std::fs::canonicalize(path).unwrap_or_else(|_not_there| path.clone());
        let mut own = vec![real(&self.data), real(&self.state)];
        own.dedup();
        let home = self.home.as_ref().map(real).filter(|home| home != Path::new("/"));
        Surroundings { store: self.store(), home, own }
    }
}

/// The home directory that the user database has, read without libc: a static binary cannot load its modules.
fn home_of_user() -> Option<PathBuf> {
    let uid = geteuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let entry = passwd.lines().find(|line| line.split(':').nth(2) == Some(uid.as_str()))?;
    entry.split(':').nth(5).map(PathBuf::from).filter(|path| path.is_absolute())
}
