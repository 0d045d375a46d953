//! Jobs on disk.
//!
//! ```text
//! $XDG_STATE_HOME/agentd/            0700
//! ├── jobs/ID/record.json            replaced by rename
//! │          plan.json               written once
//! │          stdout.log stderr.log   made with the first byte
//! ├── live/ID                        locked by the supervisor, removed when the record is final
//! └── names/NAME -> ID               made with O_EXCL semantics: a name belongs to one job
//! ```
//!
//! Invariant: `live/ID` exists from before the payload starts until the record is final. A file there whose lock can be
//! taken belongs to a supervisor that is gone: whoever takes the lock writes the record's end. So what a crash leaves is
//! found by looking at `live/` alone, however many records there are. Records are not synced to disk one by one
//! (docs/adr/0002): after a power failure the last seconds may read as lost, never as something that did not happen.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::id::{JobId, JobName, is_id_prefix};
use super::record::{Record, SCHEMA, State};

/// Longest record that is read, in bytes.
const MAX_RECORD: u64 = 16 << 20;

/// The directory of all jobs of a user.
#[derive(Debug, Clone)]
pub struct Jobs {
    directory: PathBuf,
}

/// A job of this process: its directory, and the lock that says it lives.
#[derive(Debug)]
pub struct LiveJob {
    directory: PathBuf,
    live: PathBuf,
    _lock: File,
}

/// What can go wrong with the jobs on disk.
#[derive(Debug, thiserror::Error)]
pub enum JobStoreError {
    /// A file operation.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Two jobs cannot have one name.
    #[error("the name `{0}` belongs to another job; `agentd rm {0}` frees it once that has ended")]
    NameTaken(JobName),
    /// Nothing by that name.
    #[error("no job is called `{}`; `agentd ps -a` lists them", .0.escape_debug())]
    NotFound(String),
    /// Several ids begin so.
    #[error("`{prefix}` could be any of {}; give more digits", matches.join(", "))]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// Whose ids begin so.
        matches: Vec<String>,
    },
    /// A record that cannot be read.
    #[error("the record {} cannot be read", path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A record of a later agentd.
    #[error("the record {} is of schema {found}; this agentd reads up to {SCHEMA}", path.display())]
    NewerRecord {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
    },
    /// `rm` of a job that runs.
    #[error("job {0} is running; stop it first")]
    Running(JobId),
}

type Result<T> = std::result::Result<T, JobStoreError>;

/// Names the operation and the path of an I/O error.
trait Doing<T> {
    fn doing(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| JobStoreError::Io { action, path: path.to_owned(), source })
    }
}

impl Jobs {
    /// Jobs under `state` (`$XDG_STATE_HOME/agentd`); nothing is made before a job is.
    #[must_use]
    pub fn at(state: PathBuf) -> Self {
        Jobs { directory: state }
    }

    /// Makes the directory of a new job and takes its lock.
    ///
    /// # Errors
    /// [`JobStoreError::NameTaken`]; [`JobStoreError::Io`].
    pub fn create(&self, id: &JobId, name: Option<&JobName>) -> Result<LiveJob> {
        let jobs = self.directory.join("jobs");
        let directory = jobs.join(id.as_str());
        if private_directory(&directory).is_err() {
            for parent in [&jobs, &self.live(), &self.names()] {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).doing("create", parent)?;
            }
            private_directory(&directory).doing("create", &directory)?;
        }
        let live = self.live().join(id.as_str());
        let made = (|| {
            let lock =
                File::options().write(true).create_new(true).mode(0o600).open(&live).doing("create", &live)?;
            lock.try_lock().map_err(io::Error::from).doing("lock", &live)?;
            if let Some(name) = name {
                self.claim(name, id)?;
            }
            Ok(lock)
        })();
        match made {
            Ok(lock) => Ok(LiveJob { directory, live, _lock: lock }),
            Err(error) => {
                // The error that is returned says more than one of these could.
                fs::remove_file(&live).unwrap_or_default();
                fs::remove_dir(&directory).unwrap_or_default();
                Err(error)
            }
        }
    }

    fn claim(&self, name: &JobName, id: &JobId) -> Result<()> {
        let link = self.names().join(name.as_str());
        match std::os::unix::fs::symlink(id.as_str(), &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(JobStoreError::NameTaken(name.clone())),
            made => made.doing("create", &link),
        }
    }

    /// Every record, newest first, and the trouble with those that cannot be read.
    ///
    /// # Errors
    /// [`JobStoreError::Io`] when the directory cannot be listed.
    pub fn list(&self) -> Result<(Vec<Record>, Vec<JobStoreError>)> {
        let (mut records, mut troubles) = (Vec::new(), Vec::new());
        for id in self.ids("jobs")? {
            match self.read(&id) {
                Ok(record) => records.push(record),
                // Removed, or not written yet.
                Err(JobStoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(trouble) => troubles.push(trouble),
            }
        }
        records.sort_by(|one, other| other.created.cmp(&one.created).then_with(|| one.id.cmp(&other.id)));
        Ok((records, troubles))
    }

    /// The id of the job that `text` names: a name, an id or the beginning of one.
    ///
    /// # Errors
    /// [`JobStoreError::NotFound`], [`JobStoreError::Ambiguous`].
    pub fn find(&self, text: &str) -> Result<JobId> {
        let not_found = || JobStoreError::NotFound(text.to_owned());
        if let Ok(name) = text.parse::<JobName>()
            && let Ok(target) = fs::read_link(self.names().join(name.as_str()))
            && let Some(id) = target.to_str().and_then(|target| target.parse().ok())
        {
            return Ok(id);
        }
        if !is_id_prefix(text) {
            return Err(not_found());
        }
        let mut matches = self.ids("jobs")?;
        matches.retain(|id| id.as_str().starts_with(text));
        match matches.len() {
            0 => Err(not_found()),
            1 => matches.pop().ok_or_else(not_found),
            _ => {
                matches.sort();
                let matches = matches.into_iter().take(5).map(String::from).collect();
                Err(JobStoreError::Ambiguous { prefix: text.to_owned(), matches })
            }
        }
    }

    /// The record of a job.
    ///
    /// # Errors
    /// [`JobStoreError::Io`], [`JobStoreError::BadRecord`], [`JobStoreError::NewerRecord`].
    pub fn read(&self, id: &JobId) -> Result<Record> {
        let path = self.directory_of(id).join("record.json");
        let text = read_bounded(&path).doing("read", &path)?;
        #[derive(serde::Deserialize)]
        struct Version {
            schema: u32,
        }
        let bad = |source| JobStoreError::BadRecord { path: path.clone(), source };
        let Version { schema } = serde_json::from_slice(&text).map_err(bad)?;
        if schema > SCHEMA {
            return Err(JobStoreError::NewerRecord { path, found: schema });
        }
        serde_json::from_slice(&text).map_err(bad)
    }

    /// Finishes the records of jobs whose supervisor is gone; gives their ids.
    ///
    /// # Errors
    /// [`JobStoreError::Io`].
    pub fn sweep(&self) -> Result<Vec<JobId>> {
        let mut lost = Vec::new();
        for id in self.ids("live")? {
            let live = self.live().join(id.as_str());
            let lock = match File::open(&live) {
                Ok(lock) => lock,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).doing("open", &live),
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error).doing("lock", &live),
            }
            match self.read(&id) {
                Ok(mut record) if record.state == State::Running => {
                    let reason = format!(
                        "the supervisor (pid {}) ended without finishing the record; the kernel ended the box with it",
                        record.supervisor_pid
                    );
                    record.state = State::Lost { reason };
                    record.finished = Some(now());
                    replace(&self.directory_of(&id), "record.json", &record)?;
                    lost.push(id);
                }
                // It was final, was never written, or cannot be read, which `list` tells.
                _ => {}
            }
            fs::remove_file(&live).or_else(ignore_missing).doing("remove", &live)?;
        }
        Ok(lost)
    }

    /// Removes a job that has ended, and its name.
    ///
    /// # Errors
    /// [`JobStoreError::Running`]; [`JobStoreError::Io`].
    pub fn remove(&self, id: &JobId) -> Result<()> {
        let live = self.live().join(id.as_str());
        if let Ok(lock) = File::open(&live)
            && let Err(TryLockError::WouldBlock) = lock.try_lock()
        {
            return Err(JobStoreError::Running(id.clone()));
        }
        if let Ok(Record { name: Some(name), .. }) = self.read(id) {
            let link = self.names().join(name.as_str());
            if fs::read_link(&link).is_ok_and(|target| target == Path::new(id.as_str())) {
                fs::remove_file(&link).or_else(ignore_missing).doing("remove", &link)?;
            }
        }
        let directory = self.directory_of(id);
        fs::remove_dir_all(&directory).or_else(ignore_missing).doing("remove", &directory)?;
        fs::remove_file(&live).or_else(ignore_missing).doing("remove", &live)
    }

    /// Where a job's files are.
    #[must_use]
    pub fn directory_of(&self, id: &JobId) -> PathBuf {
        self.directory.join("jobs").join(id.as_str())
    }

    fn live(&self) -> PathBuf {
        self.directory.join("live")
    }

    fn names(&self) -> PathBuf {
        self.directory.join("names")
    }

    fn ids(&self, directory: &str) -> Result<Vec<JobId>> {
        let path = self.directory.join(directory);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).doing("list", &path),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.doing("list", &path)?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<JobId>().ok()));
        }
        Ok(ids)
    }
}

impl LiveJob {
    /// Where the job's files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes `record.json`.
    ///
    /// # Errors
    /// [`JobStoreError::Io`].
    pub fn write(&self, record: &Record) -> Result<()> {
        replace(&self.directory, "record.json", record)
    }

    /// Writes `plan.json`.
    ///
    /// # Errors
    /// [`JobStoreError::Io`].
    pub fn write_plan(&self, plan: &impl Serialize) -> Result<()> {
        replace(&self.directory, "plan.json", plan)
    }

    /// Writes the final record and gives the lock up.
    ///
    /// # Errors
    /// [`JobStoreError::Io`]; the next command then finds the lock free and calls the job lost.
    pub fn finish(self, record: &Record) -> Result<()> {
        self.write(record)?;
        fs::remove_file(&self.live).doing("remove", &self.live)
    }
}

/// The time, as records have it.
#[must_use]
pub fn now() -> String {
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}

fn private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Writes a whole document beside the old one and renames it over: a reader sees one or the other.
fn replace(directory: &Path, name: &str, document: &impl Serialize) -> Result<()> {
    let (path, new) = (directory.join(name), directory.join(format!("{name}.new")));
    let text = serde_json::to_vec(document).map_err(io::Error::from).doing("write", &path)?;
    // A file of that name is what a crash left; there is one writer, who holds the job's lock.
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new).doing("create", &new)?;
    io::Write::write_all(&mut file, &text).doing("write", &new)?;
    fs::rename(&new, &path).doing("replace", &path)
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(File::open(path)?, MAX_RECORD), &mut text)?;
    Ok(text)
}
