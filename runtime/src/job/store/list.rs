//! Finding jobs and reading what is kept of them.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::io;
use std::num::NonZero;
use std::thread::{Builder, ScopedJoinHandle, available_parallelism};

use rustix::fs::{Mode, OFlags, open, openat};

use super::error::{JobStoreError, Result};
use super::lines::{last_record, read_into};
use super::{Jobs, RECORD, is_at, restarts};
use crate::job::brief::{Brief, Entry};
use crate::job::id::{JobId, JobName, is_id_prefix};
use crate::job::number::Number;
use crate::job::record::Record;

/// Records for which a thread more is worth its start.
const WORTH_A_THREAD: usize = 500;
/// Threads at most: what they share is the kernel's lock on the directory.
const MOST_THREADS: usize = 4;

/// By this it is sorted without a look at the whole of it: digits of the time, and of the id.
fn newest_first<E: Entry>(entry: &E) -> (Reverse<u64>, u64) {
    let digits = entry.created().bytes().filter(u8::is_ascii_digit).map(|digit| u64::from(digit - b'0'));
    let created = digits.fold(0, |number: u64, digit| number.wrapping_mul(10).wrapping_add(digit));
    (Reverse(created), u64::from_str_radix(entry.id().as_str(), 16).unwrap_or_default())
}

/// What was read, and the trouble with what cannot be.
type Listed<E> = (Vec<E>, Vec<JobStoreError>);

impl Jobs {
    /// Every record, newest first, and the trouble with those that cannot be read.
    ///
    /// # Errors
    /// [`JobStoreError::Io`] when the directory cannot be listed.
    pub fn list(&self) -> Result<Listed<Record>> {
        self.read_all(&self.ids("jobs")?)
    }

    /// The same of those that run, however many have ended.
    ///
    /// # Errors
    /// [`JobStoreError::Io`] when the directory cannot be listed.
    pub fn list_running(&self) -> Result<Listed<Record>> {
        self.running_only()
    }

    /// What a list shows of every job, newest first.
    ///
    /// # Errors
    /// [`JobStoreError::Io`] when the directory cannot be listed.
    pub fn list_brief(&self) -> Result<Listed<Brief>> {
        self.read_all(&self.ids("jobs")?)
    }

    /// The same of those that run.
    ///
    /// # Errors
    /// [`JobStoreError::Io`] when the directory cannot be listed.
    pub fn list_brief_running(&self) -> Result<Listed<Brief>> {
        self.running_only()
    }

    fn running_only<E: Entry>(&self) -> Result<Listed<E>> {
        let (mut records, troubles) = self.read_all(&self.running()?)?;
        // It may end between the two looks.
        records.retain(Entry::is_running);
        Ok((records, troubles))
    }

    fn read_all<E: Entry>(&self, ids: &[JobId]) -> Result<Listed<E>> {
        let threads = (ids.len() / WORTH_A_THREAD).min(MOST_THREADS);
        let threads = threads.min(available_parallelism().map_or(1, NonZero::get));
        let parts: Vec<Listed<E>> = if threads < 2 {
            vec![self.read_some(ids)]
        } else {
            let (own, others) = ids.split_at(ids.len() / threads);
            std::thread::scope(|scope| {
                let readers: Vec<_> = others
                    .chunks(others.len().div_ceil(threads - 1))
                    .map(|part| (part, Builder::new().spawn_scoped(scope, || self.read_some(part))))
                    .collect();
                let own = self.read_some(own);
                // A thread that could not be had, or did not come to its end, has its work done here.
                let join = |(part, reader): (_, io::Result<ScopedJoinHandle<'_, _>>)| {
                    reader.ok().and_then(|reader| reader.join().ok()).unwrap_or_else(|| self.read_some(part))
                };
                std::iter::once(own).chain(readers.into_iter().map(join)).collect()
            })
        };
        let (records, troubles): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let mut records: Vec<E> = records.into_iter().flatten().collect();
        records.sort_by_cached_key(newest_first);
        Ok((records, troubles.into_iter().flatten().collect()))
    }

    fn read_some<E: Entry>(&self, ids: &[JobId]) -> Listed<E> {
        let (mut records, mut troubles) = (Vec::with_capacity(ids.len()), Vec::new());
        // Taken once: whoever allocates waits for the other threads (docs/adr/0027).
        let (mut ended, mut memory) = (String::new(), Vec::new());
        // From here the way to each is short; where there is no such directory there are no such records.
        let directory = open(self.directory.join("jobs"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok();
        for id in ids {
            ended.clear();
            ended.extend([id.as_str(), "/", RECORD]);
            let open = |at| openat(at, &*ended, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            let file = directory.as_ref().and_then(|at| open(at).ok()).map(File::from);
            match self.read_entry(id, file, &mut memory) {
                Ok(record) => records.push(record),
                // Removed meanwhile, or not written yet.
                Err(JobStoreError::BadRecord { path }) if path == self.live(id) => {}
                Err(JobStoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(trouble) => troubles.push(trouble),
            }
        }
        (records, troubles)
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

    /// Bytes that a running job has moved through the network broker.
    #[must_use]
    pub fn moved(&self, id: &JobId) -> u64 {
        Number::Moved.noted(&self.directory_of(id))
    }

    /// The record of a job.
    ///
    /// # Errors
    /// [`JobStoreError::Io`], [`JobStoreError::BadRecord`], [`JobStoreError::NewerRecord`].
    pub fn read(&self, id: &JobId) -> Result<Record> {
        self.read_entry(id, None, &mut Vec::new())
    }

    /// The same, or a part of it; `known` is the file where it lies when the job has ended, `memory` what it is read into.
    fn read_entry<E: Entry>(&self, id: &JobId, mut known: Option<File>, memory: &mut Vec<u8>) -> Result<E> {
        let ended = || self.directory_of(id).join(RECORD);
        // A job may end between the first look and the second.
        for is_live in [false, true, false] {
            let path = || if is_live { self.live(id) } else { ended() };
            let not_read = |source| JobStoreError::Io { action: "read", path: path(), source };
            let file = match known.take().map_or_else(|| File::open(path()), Ok) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(not_read)?,
            };
            let text = read_into(&file, memory).map_err(not_read)?;
            let mut record: E = last_record(text, path)?;
            if record.is_running() {
                record.restarted(restarts(&self.directory_of(id)));
                if !is_live {
                    record.lose("its record has no end: the machine went down before it was on disk");
                } else if file.try_lock_shared().is_ok() && is_at(&file, &path())? {
                    record.lose("its supervisor is gone, and no end could be written to its record");
                }
            }
            return Ok(record);
        }
        Err(JobStoreError::Io { action: "read", path: ended(), source: io::ErrorKind::NotFound.into() })
    }
}
