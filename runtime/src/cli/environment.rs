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
        let place = |variable: &str, below_home: &str, of_root: &str| -> Result<PathBuf> {
            if let Some(path) = absolute(variable) {
                return Ok(path.join("agentd"));
            }
            if geteuid().is_root() {
                return Ok(PathBuf::from(of_root));
            }
            let home = home.as_ref().with_context(|| format!("no home directory; set HOME or {variable}"))?;
            Ok(home.join(below_home).join("agentd"))
        };
        let data = real(place("XDG_DATA_HOME", ".local/share", "/var/lib/agentd")?);
        let state = real(place("XDG_STATE_HOME", ".local/state", "/var/lib/agentd")?);
        let home = home.map(real);
        Ok(Directories { data, state, home, runtime: absolute("XDG_RUNTIME_DIR") })
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
        let mut own = vec![self.data.clone(), self.state.clone()];
        own.dedup();
        let home = self.home.clone().filter(|home| home != Path::new("/"));
        Surroundings { store: self.store(), home, own }
    }
}

/// The path without links, as far as it exists: what is compared with the paths of workspaces, which are resolved too, and
/// what the plan then opens through no link.
fn real(path: PathBuf) -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "opened later through no link at all")]
    let resolved = std::fs::canonicalize(&path);
    match (resolved, path.parent(), path.file_name()) {
        (Ok(resolved), _, _) => resolved,
        (Err(_not_there), Some(parent), Some(name)) => real(parent.to_owned()).join(name),
        _ => path,
    }
}

/// The home directory that the user database has, read without libc: a static binary cannot load its modules.
fn home_of_user() -> Option<PathBuf> {
    let uid = geteuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let entry = passwd.lines().find(|line| line.split(':').nth(2) == Some(uid.as_str()))?;
    entry.split(':').nth(5).map(PathBuf::from).filter(|path| path.is_absolute())
}
