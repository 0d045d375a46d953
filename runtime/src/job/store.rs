//! Jobs on disk.
//!
//! ```text
//! $XDG_STATE_HOME/agentd/            0700
//! ├── live/ID                        the record while the job runs, locked by its supervisor
//! ├── jobs/ID/record.jsonl           the same file once the job has ended
//! │          plan.json               written once
//! │          stdout.log stderr.log   made with the first byte; further parts begin where their name says
//! │          control.sock            while somebody talks to the supervisor (crate::control)
//! │          root.tar.zst            what the job wrote to its root (`--keep`)
//! │          events.jsonl            made with the first event
//! │          restarts                how often it was started again, made with the first time (`--restart`)
//! │          moved                   bytes that went through the broker, made with the first
//! ├── names/NAME -> ID               made at once or not at all: a name belongs to one job
//! └── stubs                          what protected paths have made on the host (launch::protect::stubs)
//! ```
//!
//! A record is appended to, never rewritten: every line is a whole record, and the last whole line counts; one that only says a new name holds for all of them. So a write
//! that a crash cut short loses nothing, and a short job costs three new files and no deleted one (docs/adr/0002).
//!
//! Invariant: a file in `live/` whose lock can be taken belongs to a supervisor that is gone: whoever takes the lock
//! writes the record's end. What a crash leaves is thus found in `live/` alone, however many records there are.

mod error;
mod lines;
mod list;

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::id::{JobId, JobName};
use super::number::Number;
use super::record::{Record, State};
use crate::cgroup;
use crate::control::{NEW_SOCKET, SOCKET};
use crate::launch::plan::Plan;
use crate::launch::protect;
pub(super) use error::Doing;
pub use error::JobStoreError;
use error::Result;
pub(super) use lines::read_bounded;
use lines::{Renamed, append, last_record, read_open};

/// Names of a job's files.
const RECORD: &str = "record.jsonl";
pub(super) const PLAN: &str = "plan.json";
/// What the job wrote to its root, where it was to be kept.
pub(crate) const LAYER: &str = "root.tar.zst";

/// The directory of all jobs of a user.
#[derive(Debug, Clone)]
pub struct Jobs {
    directory: PathBuf,
}

/// A job of this process: its directory, and the locked file that says it lives and becomes its record.
#[derive(Debug)]
pub struct LiveJob {
    directory: PathBuf,
    live: PathBuf,
    file: File,
}

/// A job whose record has its end, and is still this process's to add to: it is locked until this is dropped.
#[derive(Debug)]
pub struct EndedJob {
    path: PathBuf,
    file: File,
}

impl Jobs {
    /// Jobs under `state` (`$XDG_STATE_HOME/agentd`); nothing is made before a job is.
    #[must_use]
    pub fn at(state: PathBuf) -> Self {
        Jobs { directory: state }
    }

    /// Makes the directory of a new job, and its record, locked.
    ///
    /// # Errors
    /// [`JobStoreError::NameTaken`]; [`JobStoreError::Io`].
    pub fn create(&self, record: &Record) -> Result<LiveJob> {
        let (directory, live) = (self.directory_of(&record.id), self.live(&record.id));
        let file = self.make_live(&live)?;
        let made = (|| {
            append(&file, record).doing("write", &live)?;
            fs::DirBuilder::new().mode(0o700).create(&directory).doing("create", &directory)?;
            match &record.name {
                Some(name) => self.claim(name, &record.id),
                None => Ok(()),
            }
        })();
        match made {
            Ok(()) => Ok(LiveJob { directory, live, file }),
            Err(error) => {
                // The error that is returned says more than one of these could.
                fs::remove_file(&live).unwrap_or_default();
                fs::remove_dir(&directory).unwrap_or_default();
                Err(error)
            }
        }
    }

    /// Nobody else may have a say in what is written below: not in a record, not in where a log leads.
    fn is_private(&self) -> Result<()> {
        let metadata = fs::metadata(&self.directory).doing("look at", &self.directory)?;
        let is_ours = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 == 0;
        if is_ours { Ok(()) } else { Err(JobStoreError::NotPrivate(self.directory.clone())) }
    }

    /// Makes `live/ID`, locked. Another command may lock the empty file first, take it for a crashed job's and remove it:
    /// then it is made again.
    fn make_live(&self, live: &Path) -> Result<File> {
        loop {
            let file = match File::options().append(true).create_new(true).mode(0o600).open(live) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    for parent in ["jobs", "live", "names"] {
                        let parent = self.directory.join(parent);
                        fs::DirBuilder::new().recursive(true).mode(0o700).create(&parent).doing("create", &parent)?;
                    }
                    continue;
                }
                made => made.doing("create", live)?,
            };
            self.is_private()?;
            file.lock().doing("lock", live)?;
            if is_at(&file, live)? {
                return Ok(file);
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

    /// Finishes the records of jobs whose supervisor is gone; gives their ids, and the trouble with those that it could not
    /// finish: they read as lost all the same.
    pub fn sweep(&self) -> (Vec<JobId>, Vec<JobStoreError>) {
        let (mut lost, mut troubles) = (Vec::new(), Vec::new());
        let stubs = self.stubs();
        troubles.extend(protect::stubs::sweep(&stubs).doing("clean up after", &stubs).err());
        match self.ids("live") {
            Ok(ids) => {
                for id in ids {
                    match self.bury(&id) {
                        Ok(true) => lost.push(id),
                        Ok(false) => {}
                        Err(trouble) => troubles.push(trouble),
                    }
                }
            }
            Err(trouble) => troubles.push(trouble),
        }
        (lost, troubles)
    }

    /// Finishes the record of one job if its supervisor is gone; whether it had to be given an end.
    fn bury(&self, id: &JobId) -> Result<bool> {
        let live = self.live(id);
        let Some(file) = self.lock(id)? else { return Ok(false) };
        let record =
            read_bounded(&live).doing("read", &live).and_then(|text| last_record::<Record>(&text, || live.clone()));
        let mut record = match record {
            // Not one line was written: the payload of that job never started. What has a record is another's.
            Err(JobStoreError::BadRecord { .. }) => {
                match fs::symlink_metadata(self.directory_of(id).join(RECORD)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => self.erase(id)?,
                    _ => fs::remove_file(&live).or_else(ignore_missing).doing("remove", &live)?,
                }
                return Ok(false);
            }
            // A later agentd's, which will finish it.
            Err(JobStoreError::NewerRecord { .. }) => return Ok(false),
            record => record?,
        };
        let directory = self.directory_of(id);
        let is_lost = record.state == State::Running;
        if is_lost {
            record.state = State::Lost {
                reason: format!(
                    "the supervisor (pid {}) ended without finishing the record; the kernel ended the box with it",
                    record.supervisor_pid
                ),
            };
            record.restarts = restarts(&directory);
            record.finished = Some(now());
            if let Some(Err(error)) = record.cgroup.as_deref().map(|path| cgroup::sweep(id, path.as_ref())) {
                record.warnings.push(format!("its cgroup is left: {error}"));
            }
            // Without a plan nothing was started in a workspace.
            let plan = read_bounded(&directory.join(PLAN)).ok();
            let plan = plan.and_then(|text| serde_json::from_slice(&text).ok());
            record.left = plan.as_ref().map(protect::after::findings).unwrap_or_default();
            append(&file, &record).doing("write", &live)?;
        }
        // Killed before it made that: such a job's payload never started, but its record did.
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.doing("create", &directory)?,
        }
        // Before the record moves: until then, the next command does again what was cut short.
        for socket in [SOCKET, NEW_SOCKET].map(|name| directory.join(name)) {
            fs::remove_file(&socket).or_else(ignore_missing).doing("remove", &socket)?;
        }
        fs::rename(&live, directory.join(RECORD)).doing("move", &live)?;
        Ok(is_lost)
    }

    /// The file of a job whose supervisor is gone, locked; `None` when it lives or has ended.
    fn lock(&self, id: &JobId) -> Result<Option<File>> {
        let live = self.live(id);
        let file = match File::options().append(true).open(&live) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).doing("open", &live),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error).doing("lock", &live),
        }
        // Its supervisor, or another command, may have finished it before the lock was taken.
        Ok(is_at(&file, &live)?.then_some(file))
    }

    /// Waits until no supervisor runs the job, and sees to it that its record has an end.
    ///
    /// # Errors
    /// [`JobStoreError::Io`].
    pub fn wait(&self, id: &JobId) -> Result<()> {
        let live = self.live(id);
        loop {
            let Some(running) = self.open_running(id)? else { return Ok(()) };
            // The supervisor has it locked as long as it lives, whatever becomes of it.
            running.lock_shared().doing("wait for", &live)?;
            drop(running);
            // What it could not write reads as lost, and is an end.
            let (_lost, _troubles) = self.sweep();
            // Another command may have had the lock to look at it, or be about to write the same end.
            if !self.read(id).is_ok_and(|record| record.state == State::Running) {
                return Ok(());
            }
        }
    }

    /// The record of a job that runs, for [`Jobs::outcome`]; `None`: it has ended.
    ///
    /// # Errors
    /// [`JobStoreError::Io`].
    pub fn open_running(&self, id: &JobId) -> Result<Option<File>> {
        let live = self.live(id);
        match File::open(&live) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some).doing("open", &live),
        }
    }

    /// Waits for the job's end; gives its record, also where the job was `running` and has removed itself at its end.
    ///
    /// # Errors
    /// [`JobStoreError`]: there is none.
    pub fn outcome(&self, id: &JobId, running: Option<File>) -> Result<Record> {
        self.wait(id)?;
        let kept = self.read(id);
        let (Err(_), Some(file)) = (&kept, running) else { return kept };
        let live = self.live(id);
        let text = read_open(&file).doing("read", &live)?;
        last_record(&text, || live.clone())
    }

    /// Whether a supervisor runs the job.
    ///
    /// # Errors
    /// [`JobStoreError::Io`].
    pub fn runs(&self, id: &JobId) -> Result<bool> {
        let live = self.live(id);
        let file = match File::open(&live) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened.doing("open", &live)?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error).doing("look at the lock of", &live),
        }
    }

    /// The plan of a job.
    ///
    /// # Errors
    /// [`JobStoreError::Io`].
    pub(crate) fn plan(&self, id: &JobId) -> Result<Plan> {
        let path = self.directory_of(id).join(PLAN);
        let text = read_bounded(&path).doing("read", &path)?;
        serde_json::from_slice(&text).map_err(io::Error::from).doing("read", &path)
    }

    /// The ids of jobs that run.
    ///
    /// # Errors
    /// [`JobStoreError::Io`].
    pub fn running(&self) -> Result<Vec<JobId>> {
        self.ids("live")
    }

    /// Removes a job that has ended, and its name.
    ///
    /// # Errors
    /// [`JobStoreError::Running`]; [`JobStoreError::Io`].
    pub fn remove(&self, id: &JobId) -> Result<()> {
        let live = self.live(id);
        let lock = self.lock(id)?;
        if lock.is_none() && File::open(&live).is_ok() {
            return Err(JobStoreError::Running(id.clone()));
        }
        self.erase(id)
    }

    /// Gives a job another name, whether it runs or has ended.
    ///
    /// # Errors
    /// [`JobStoreError::NameTaken`]; [`JobStoreError::Io`].
    pub fn rename(&self, id: &JobId, name: &JobName) -> Result<()> {
        let old = self.names_of(id)?;
        self.claim(name, id)?;
        // A job may end between the look and the write: then the file is where ended jobs' are.
        for path in [self.live(id), self.directory_of(id).join(RECORD)] {
            let file = match File::options().append(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.doing("open", &path)?,
            };
            append(&file, &Renamed { renamed: name.clone() }).doing("write", &path)?;
            break;
        }
        let new = self.names().join(name.as_str());
        for link in old.into_iter().filter(|link| *link != new) {
            fs::remove_file(&link).or_else(ignore_missing).doing("remove", &link)?;
        }
        Ok(())
    }

    /// Removes everything of a job whose lock is held here, or that has ended.
    fn erase(&self, id: &JobId) -> Result<()> {
        for name in self.names_of(id)? {
            fs::remove_file(&name).or_else(ignore_missing).doing("remove", &name)?;
        }
        let directory = self.directory_of(id);
        fs::remove_dir_all(&directory).or_else(ignore_missing).doing("remove", &directory)?;
        let live = self.live(id);
        fs::remove_file(&live).or_else(ignore_missing).doing("remove", &live)
    }

    /// The links in `names/` that lead to a job: the one its record tells; every one, if the record cannot be read.
    fn names_of(&self, id: &JobId) -> Result<Vec<PathBuf>> {
        let directory = self.names();
        let mut links = match self.read(id) {
            Ok(record) => record.name.iter().map(|name| directory.join(name.as_str())).collect(),
            Err(_unreadable) => entries(&directory)?.into_iter().map(|name| directory.join(name)).collect::<Vec<_>>(),
        };
        links.retain(|link| fs::read_link(link).is_ok_and(|target| target == Path::new(id.as_str())));
        Ok(links)
    }

    /// Where a job's files are.
    #[must_use]
    pub fn directory_of(&self, id: &JobId) -> PathBuf {
        self.directory.join("jobs").join(id.as_str())
    }

    /// The list of the stubs of every job's protected paths.
    #[must_use]
    pub fn stubs(&self) -> PathBuf {
        self.directory.join("stubs")
    }

    pub(crate) fn live(&self, id: &JobId) -> PathBuf {
        self.directory.join("live").join(id.as_str())
    }

    fn names(&self) -> PathBuf {
        self.directory.join("names")
    }

    pub(super) fn ids(&self, directory: &str) -> Result<Vec<JobId>> {
        let names = entries(&self.directory.join(directory))?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }
}

/// The names in a directory; none where there is no directory.
fn entries(path: &Path) -> Result<Vec<OsString>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).doing("list", path),
    };
    entries.map(|entry| Ok(entry.doing("list", path)?.file_name())).collect()
}

/// How often a job that has not come to its end was started again.
fn restarts(directory: &Path) -> u32 {
    u32::try_from(Number::Restarts.noted(directory)).unwrap_or(u32::MAX)
}

/// Whether `path` still names `file`.
fn is_at(file: &File, path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(now) => Ok(now.ino() == file.metadata().doing("look at", path)?.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).doing("look at", path),
    }
}

impl LiveJob {
    /// Writes `plan.json`.
    ///
    /// # Errors
    /// [`JobStoreError::Io`].
    pub fn write_plan(&self, plan: &impl Serialize) -> Result<()> {
        let path = self.directory.join(PLAN);
        let text = serde_json::to_vec(plan).map_err(io::Error::from).doing("write", &path)?;
        let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
        made.and_then(|mut file| file.write_all(&text)).doing("write", &path)
    }

    /// Writes the final record.
    ///
    /// # Errors
    /// [`JobStoreError::Io`]; the next command then finds the lock free and calls the job lost.
    pub fn finish(self, record: &Record) -> Result<EndedJob> {
        append(&self.file, record).doing("write", &self.live)?;
        let path = self.directory.join(RECORD);
        fs::rename(&self.live, &path).doing("move", &self.live)?;
        Ok(EndedJob { path, file: self.file })
    }
}

impl EndedJob {
    /// Says again what the record is, for what came to light since.
    ///
    /// # Errors
    /// [`JobStoreError::Io`].
    pub fn amend(&self, record: &Record) -> Result<()> {
        append(&self.file, record).doing("write", &self.path)
    }
}

/// The time, as records have it.
#[must_use]
pub fn now() -> String {
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests;
