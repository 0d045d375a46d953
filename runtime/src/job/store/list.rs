//! Finding jobs and reading what is kept of them.

use std::fs;
use std::io;

use super::error::{Doing, JobStoreError, Result};
use super::lines::{last_record, read_bounded};
use super::{Jobs, RECORD};
use crate::job::id::{JobId, JobName, is_id_prefix};
use crate::job::record::{Record, State};

impl Jobs {
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
}
