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
//! ├── names/NAME -> ID               made at once or not at all: a name belongs to one job
//! └── stubs                          what protected paths have made on the host (launch::protect::stubs)
//! ```
//!
//! A record is appended to, never rewritten: every line is a whole record, and the last whole line counts; one that only says a new name holds for all of them. So a write
//! that a crash cut short loses nothing, and a short job costs three new files and no deleted one (docs/adr/0002).
//!
//! Invariant: a file in `live/` whose lock can be taken belongs to a supervisor that is gone: whoever takes the lock
//! writes the record's end. What a crash leaves is thus found in `live/` alone, however many records there are.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::id::{JobId, JobName, is_id_prefix};
use super::record::{Record, SCHEMA, State};
use crate::cgroup;
use crate::control::SOCKET;
use crate::launch::plan::Plan;
use crate::launch::protect;

/// Names of a job's files.
const RECORD: &str = "record.jsonl";
pub(super) const PLAN: &str = "plan.json";
/// What the job wrote to its root, where it was to be kept.
pub(crate) const LAYER: &str = "root.tar.zst";

/// Longest record that is read, in bytes.
const MAX_RECORD: u64 = 16 << 20;

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
    /// No line of it is a record.
    #[error("the record {} cannot be read: no line of it is a record; `agentd rm` removes the job", path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
    },
    /// A record of a later agentd.
    #[error("the record {} is of schema {found}; this agentd reads up to {SCHEMA}", path.display())]
    NewerRecord {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
    },
    /// Somebody else could write there.
    #[error("{} is not this user's alone; make it so with `chmod 700` (as its owner), or set XDG_STATE_HOME", .0.display())]
    NotPrivate(PathBuf),
    /// `rm` of a job that runs.
    #[error("job {0} is running; `agentd stop {0}` stops it, `agentd rm -f {0}` kills it")]
    Running(JobId),
}

type Result<T> = std::result::Result<T, JobStoreError>;

/// Names the operation and the path of an I/O error.
pub(super) trait Doing<T> {
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

    /// Every record, newest first, and the trouble with those that cannot be read.
    ///
    /// # Errors
    /// [`JobStoreError::Io`] when the directory cannot be listed.
    pub fn list(&self) -> Result<(Vec<Record>, Vec<JobStoreError>)> {
        self.read_all(self.ids("jobs")?)
    }

    /// The same of those that run, however many have ended.
    ///
    /// # Errors
    /// [`JobStoreError::Io`] when the directory cannot be listed.
    pub fn list_running(&self) -> Result<(Vec<Record>, Vec<JobStoreError>)> {
        let (mut records, troubles) = self.read_all(self.running()?)?;
        // It may end between the two looks.
        records.retain(|record| record.state == State::Running);
        Ok((records, troubles))
    }

    fn read_all(&self, ids: Vec<JobId>) -> Result<(Vec<Record>, Vec<JobStoreError>)> {
        let (mut records, mut troubles) = (Vec::new(), Vec::new());
        for id in ids {
            match self.read(&id) {
                Ok(record) => records.push(record),
                // Removed meanwhile, or not written yet.
                Err(JobStoreError::BadRecord { path }) if path == self.live(&id) => {}
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
            && let Some(id) = self.find_name(&name)
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

    /// The id of the job that has a name.
    #[must_use]
    pub fn find_name(&self, name: &JobName) -> Option<JobId> {
        let target = fs::read_link(self.names().join(name.as_str())).ok()?;
        target.to_str()?.parse().ok()
    }

    /// The record of a job.
    ///
    /// # Errors
    /// [`JobStoreError::Io`], [`JobStoreError::BadRecord`], [`JobStoreError::NewerRecord`].
    pub fn read(&self, id: &JobId) -> Result<Record> {
        let ended = self.directory_of(id).join(RECORD);
        // A job may end between the first look and the second.
        for path in [&ended, &self.live(id), &ended] {
            let text = match read_bounded(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text.doing("read", path)?,
            };
            let mut record = last_record(&text, path)?;
            if *path == ended && record.state == State::Running {
                let reason = "its record has no end: the machine went down before it was on disk".to_owned();
                record.state = State::Lost { reason };
            }
            return Ok(record);
        }
        Err(JobStoreError::Io { action: "read", path: ended, source: io::ErrorKind::NotFound.into() })
    }

    /// Finishes the records of jobs whose supervisor is gone; gives their ids.
    ///
    /// # Errors
    /// [`JobStoreError::Io`].
    pub fn sweep(&self) -> Result<Vec<JobId>> {
        let mut lost = Vec::new();
        let stubs = self.stubs();
        protect::stubs::sweep(&stubs).doing("clean up after", &stubs)?;
        for id in self.ids("live")? {
            let live = self.live(&id);
            let Some(file) = self.lock(&id)? else { continue };
            let record = read_bounded(&live).doing("read", &live).and_then(|text| last_record(&text, &live));
            match record {
                Ok(mut record) => {
                    if record.state == State::Running {
                        let reason = format!(
                            "the supervisor (pid {}) ended without finishing the record; the kernel ended the box with it",
                            record.supervisor_pid
                        );
                        record.state = State::Lost { reason };
                        record.finished = Some(now());
                        if let Some(Err(error)) = record.cgroup.as_deref().map(|path| cgroup::sweep(&id, path.as_ref()))
                        {
                            record.warnings.push(format!("its cgroup is left: {error}"));
                        }
                        // Without a plan nothing was started in a workspace.
                        let plan = read_bounded(&self.directory_of(&id).join(PLAN)).ok();
                        let plan = plan.and_then(|text| serde_json::from_slice(&text).ok());
                        record.left = plan.as_ref().map(protect::after::findings).unwrap_or_default();
                        append(&file, &record).doing("write", &live)?;
                        lost.push(id.clone());
                    }
                    let directory = self.directory_of(&id);
                    // Killed before it made that: such a job's payload never started, but its record did.
                    match fs::DirBuilder::new().mode(0o700).create(&directory) {
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                        made => made.doing("create", &directory)?,
                    }
                    fs::rename(&live, directory.join(RECORD)).doing("move", &live)?;
                    let socket = directory.join(SOCKET);
                    fs::remove_file(&socket).or_else(ignore_missing).doing("remove", &socket)?;
                }
                // Not one line was written: the payload of that job never started.
                Err(JobStoreError::BadRecord { .. }) => self.erase(&id)?,
                // A later agentd's, which will finish it.
                Err(JobStoreError::NewerRecord { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(lost)
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
            match File::open(&live) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                // The supervisor has it locked as long as it lives, whatever becomes of it.
                opened => opened.doing("open", &live)?.lock_shared().doing("wait for", &live)?,
            }
            self.sweep()?;
            // Another command may have had the lock to look at it, or be about to write the same end.
            if !self.read(id).is_ok_and(|record| record.state == State::Running) {
                return Ok(());
            }
        }
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

    /// Writes the final record and gives the lock up.
    ///
    /// # Errors
    /// [`JobStoreError::Io`]; the next command then finds the lock free and calls the job lost.
    pub fn finish(self, record: &Record) -> Result<()> {
        append(&self.file, record).doing("write", &self.live)?;
        fs::rename(&self.live, self.directory.join(RECORD)).doing("move", &self.live)
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

/// Appends a line. It begins a line of its own even after one that a crash cut short.
fn append(mut file: &File, record: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(record)?;
    line.insert(0, b'\n');
    line.push(b'\n');
    file.write_all(&line)
}

/// A line that says a job's new name, and how it begins.
#[derive(Serialize, serde::Deserialize)]
struct Renamed {
    renamed: JobName,
}
const RENAMED: &[u8] = b"{\"renamed\":";

/// The last line that is a whole record.
fn last_record(text: &[u8], path: &Path) -> Result<Record> {
    #[derive(serde::Deserialize)]
    struct Version {
        schema: u32,
    }
    let whole_lines = text.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n")).rev();
    let mut name = None;
    let mut found = None;
    for line in whole_lines {
        if line.starts_with(RENAMED) {
            let said = || serde_json::from_slice::<Renamed>(line).ok().map(|line| line.renamed);
            name = name.or_else(said);
        } else if found.is_none() {
            // A later agentd's may read as one of ours, or as none at all.
            found = serde_json::from_slice::<Record>(line).ok();
            let schema = match &found {
                Some(record) => Some(record.schema),
                None => serde_json::from_slice::<Version>(line).ok().map(|version| version.schema),
            };
            if let Some(found) = schema.filter(|schema| *schema > SCHEMA) {
                return Err(JobStoreError::NewerRecord { path: path.to_owned(), found });
            }
        }
    }
    if let Some(mut record) = found {
        record.name = name.or(record.name);
        return Ok(record);
    }
    Err(JobStoreError::BadRecord { path: path.to_owned() })
}

pub(super) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(File::open(path)?, MAX_RECORD), &mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
