//! What can go wrong with the jobs on disk.

use std::io;
use std::path::{Path, PathBuf};

use crate::job::id::{JobId, JobName};
use crate::job::record::SCHEMA;

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

pub(super) type Result<T> = std::result::Result<T, JobStoreError>;

/// Names the operation and the path of an I/O error.
pub(in crate::job) trait Doing<T> {
    fn doing(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| JobStoreError::Io { action, path: path.to_owned(), source })
    }
}
