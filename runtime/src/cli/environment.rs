//! What the environment says: where this user's data and state are.

use std::env;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agentd_rootfs::{Places, Proxies, RegistryConfig};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::geteuid;

use super::say;
use crate::job::store::Jobs;
use crate::launch::plan::Surroundings;
use crate::real_path;
use crate::supervisor::service::Service;

/// Where agentd keeps what it keeps.
#[derive(Debug)]
pub(super) struct Directories {
    data: PathBuf,
    state: PathBuf,
    home: Option<PathBuf>,
    runtime: Option<PathBuf>,
    store: Option<PathBuf>,
    extra_stores: Vec<PathBuf>,
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
        let store = stores("AGENTD_STORE")?;
        if store.len() > 1 {
            bail!("AGENTD_STORE names several directories; AGENTD_EXTRA_STORES is for those that are only read");
        }
        let store = store.into_iter().next();
        let extra_stores = stores("AGENTD_EXTRA_STORES")?;
        Ok(Directories { data, state, home, runtime: absolute("XDG_RUNTIME_DIR"), store, extra_stores })
    }

    /// The jobs of this user.
    pub(super) fn jobs(&self) -> Jobs {
        Jobs::at(self.state.clone())
    }

    /// The directory of everything that is kept of jobs.
    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    /// The jobs, after the ends that killed supervisors could not write have been written. Where that cannot be, it is said,
    /// and is no reason to keep the rest from its user: on a full disk `agentd rm` is what helps.
    pub(super) fn swept_jobs(&self) -> Jobs {
        let jobs = self.jobs();
        let (_lost, troubles) = jobs.sweep();
        troubles.into_iter().for_each(|trouble| say(&format!("{:#}", anyhow::Error::from(trouble))));
        jobs
    }

    /// Where the store of images is or may be made: `$AGENTD_STORE` and nowhere else, or with the user's data, or in
    /// /var/tmp where those lie on a file system that cannot carry it. `$AGENTD_EXTRA_STORES` are read as well.
    pub(super) fn stores(&self) -> Places {
        let own = match &self.store {
            Some(store) => vec![store.clone()],
            // Not resolved: that it is no link is looked at when it is opened.
            None => vec![real(self.data.join("store")), spare_store()],
        };
        Places { own, extra: self.extra_stores.clone() }
    }

    /// Where podman, docker and OpenSSL keep what they know about registries, and the proxies curl would use.
    pub(super) fn registries(&self) -> RegistryConfig {
        let path = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let text = |names: &[&str]| names.iter().find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()));
        let home = |below: &str| self.home.as_ref().map(|home| home.join(below));
        let config = path("XDG_CONFIG_HOME").or_else(|| home(".config")).map(|config| config.join("containers"));
        let in_config = |name: &str| config.as_ref().map(|config| config.join(name));
        let auth_files = match path("REGISTRY_AUTH_FILE") {
            Some(file) => vec![file],
            None => {
                let runtime = || PathBuf::from(format!("/run/containers/{}", geteuid().as_raw()));
                let session = self.runtime.as_ref().map_or_else(runtime, |runtime| runtime.join("containers"));
                let docker = path("DOCKER_CONFIG").or_else(|| home(".docker")).map(|docker| docker.join("config.json"));
                [Some(session.join("auth.json")), in_config("auth.json"), docker].into_iter().flatten().collect()
            }
        };
        let registries = match path("CONTAINERS_REGISTRIES_CONF") {
            Some(file) => vec![file],
            None => {
                let machine = Some(PathBuf::from("/etc/containers/registries.conf"));
                [in_config("registries.conf"), machine].into_iter().flatten().collect()
            }
        };
        let machine = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(|path| Some(PathBuf::from(path)));
        let certificates = [in_config("certs.d")].into_iter().chain(machine).flatten().collect();
        let authorities_dirs = env::var_os("SSL_CERT_DIR").unwrap_or_default();
        let authorities_dirs = env::split_paths(&authorities_dirs).filter(|path| !path.as_os_str().is_empty());
        let proxies = Proxies {
            // Upper-case HTTP_PROXY can be set by a request's header where a CGI program runs this; curl leaves it out too.
            http: text(&["http_proxy", "all_proxy", "ALL_PROXY"]),
            https: text(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            none: text(&["no_proxy", "NO_PROXY"]).unwrap_or_default(),
        };
        RegistryConfig {
            short_name: None,
            auth_files,
            registries,
            certificates,
            authorities_file: path("SSL_CERT_FILE"),
            authorities_dirs: authorities_dirs.collect(),
            proxies,
        }
    }

    /// Where the policy file is that holds without being named.
    pub(super) fn policy_file(&self) -> Option<PathBuf> {
        let config = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let config = match config {
            Some(config) => config,
            None if geteuid().is_root() => PathBuf::from("/etc"),
            None => self.home.as_ref()?.join(".config"),
        };
        Some(config.join("agentd/policy.toml"))
    }

    /// What a plan has to know.
    pub(super) fn surroundings(&self) -> Surroundings {
        let mut own = vec![self.data.clone(), self.state.clone()];
        own.extend(self.store.clone());
        // A directory that is not there hides nothing, and would keep /var/tmp from being given.
        own.extend(Some(spare_store()).filter(|path| std::fs::symlink_metadata(path).is_ok()));
        own.extend(self.extra_stores.iter().cloned());
        own.dedup();
        let home = self.home.clone().filter(|home| home != Path::new("/"));
        let account_home = || {
            // Accounts of services have a directory of programs there, which is not theirs.
            let is_own = |home: &PathBuf| std::fs::metadata(home).is_ok_and(|it| it.uid() == geteuid().as_raw());
            home_of_user().map(real).filter(is_own).filter(|home| home != Path::new("/"))
        };
        let git = self.git(home.as_deref());
        Surroundings { store: self.stores(), home, account_home, own, git }
    }

    /// Where git reads what holds in every repository (git-config(1), FILES): by this environment, and by one without
    /// variables of git's, which the next git may run in.
    fn git(&self, home: Option<&Path>) -> Vec<PathBuf> {
        let named = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let below_home = |below: &str| home.map(|home| home.join(below));
        let files = [
            named("GIT_CONFIG_SYSTEM"),
            Some(PathBuf::from("/etc/gitconfig")),
            named("GIT_CONFIG_GLOBAL"),
            named("XDG_CONFIG_HOME").map(|config| config.join("git/config")),
            below_home(".config/git/config"),
            below_home(".gitconfig"),
        ];
        let mut files: Vec<PathBuf> = files.into_iter().flatten().collect();
        files.dedup();
        files
    }
}

/// Names the socket of who wants to know how this service fares (sd_notify(3)): agentd, and not what it runs.
pub(super) const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Who is told of a job, where agentd runs as a service.
pub(super) fn service() -> Service {
    Service::new(env::var_os(NOTIFY_SOCKET).as_deref(), is_journal())
}

/// Whether standard error is the journal: what it is connected to is compared, as systemd.exec(5) has it, for the variable
/// outlives a redirection.
fn is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(rustix::stdio::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// The directories, with colons between, that a variable names.
fn stores(variable: &str) -> Result<Vec<PathBuf>> {
    let value = env::var_os(variable).unwrap_or_default();
    let paths = env::split_paths(&value).filter(|path| !path.as_os_str().is_empty());
    let paths = paths.map(|path| {
        ensure!(path.is_absolute(), "{variable} names {}, which is not an absolute path", path.display());
        Ok(real(path))
    });
    paths.collect()
}

/// Where a store lies whose user has no better place.
fn spare_store() -> PathBuf {
    PathBuf::from(format!("/var/tmp/agentd-{}", geteuid().as_raw()))
}

/// The path without links, as far as it exists: what is compared with the paths of workspaces, which are resolved too, and
/// what the plan then opens through no link.
fn real(path: PathBuf) -> PathBuf {
    match (real_path::real(&path), path.parent(), path.file_name()) {
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
