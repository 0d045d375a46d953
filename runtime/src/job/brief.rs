//! What a list shows of a job: the part of its record that is cheap to read, for thousands at once.
//!
//! Invariant: it is read from the same line that the whole record would be.

use serde::Deserialize;

use super::id::{JobId, JobName};
use super::record::{Record, State};

/// A record, or a part of one.
pub(in crate::job) trait Entry: for<'de> Deserialize<'de> + Send {
    /// Version of the document.
    fn schema(&self) -> u32;
    /// Which job.
    fn id(&self) -> &JobId;
    /// RFC 3339, UTC.
    fn created(&self) -> &str;
    /// Whether it says that the job runs.
    fn is_running(&self) -> bool;
    /// What a later line says.
    fn rename(&mut self, name: JobName);
    /// How often the job was started again so far.
    fn restarted(&mut self, count: u32);
    /// What its place says against its text: nothing runs any more.
    fn lose(&mut self, reason: &str);
}

/// A job in a list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Brief {
    schema: u32,
    /// The id.
    pub id: JobId,
    /// The name, if it has one.
    #[serde(default)]
    pub name: Option<JobName>,
    /// The image as the user wrote it.
    pub image: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// RFC 3339, UTC.
    pub created: String,
    /// Milliseconds from clone to end.
    #[serde(default)]
    pub duration_ms: Option<u64>,
    /// How often it was started again.
    #[serde(default)]
    pub restarts: u32,
    /// Path of the job's cgroup, where it has one.
    #[serde(default)]
    pub cgroup: Option<String>,
    state: Word,
    #[serde(default)]
    exit_code: Option<u8>,
}

/// The tag of a [`State`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Running,
    Exited,
    Failed,
    Lost,
}

impl Brief {
    /// Where the job stands; of reasons nothing.
    #[must_use]
    pub fn state(&self) -> State {
        let (reason, exit_code) = (String::new(), self.exit_code.unwrap_or_default());
        match self.state {
            Word::Running => State::Running,
            Word::Exited => State::Exited { exit_code, reason: None },
            Word::Failed => State::Failed { exit_code, reason },
            Word::Lost => State::Lost { reason },
        }
    }
}

impl Entry for Brief {
    fn schema(&self) -> u32 {
        self.schema
    }

    fn id(&self) -> &JobId {
        &self.id
    }

    fn created(&self) -> &str {
        &self.created
    }

    fn is_running(&self) -> bool {
        self.state == Word::Running
    }

    fn rename(&mut self, name: JobName) {
        self.name = Some(name);
    }

    fn restarted(&mut self, count: u32) {
        self.restarts = count;
    }

    fn lose(&mut self, _reason: &str) {
        self.state = Word::Lost;
    }
}

impl Entry for Record {
    fn schema(&self) -> u32 {
        self.schema
    }

    fn id(&self) -> &JobId {
        &self.id
    }

    fn created(&self) -> &str {
        &self.created
    }

    fn is_running(&self) -> bool {
        self.state == State::Running
    }

    fn rename(&mut self, name: JobName) {
        self.name = Some(name);
    }

    fn restarted(&mut self, count: u32) {
        self.restarts = count;
    }

    fn lose(&mut self, reason: &str) {
        self.state = State::Lost { reason: reason.to_owned() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_as_a_record_and_as_its_part() {
        let line = |state: &str| {
            format!(
                r#"{{"schema":1,"id":"0123456789ab","name":"n","image":"host","command":["a","b"],"created":"2026-11-21T15:38:40.649Z","duration_ms":5,"supervisor_pid":7,{state},"enforced":{{"landlock_abi":7,"seccomp":"default","network":"none"}}}}"#
            )
        };
        for state in [
            r#""state":"running""#,
            r#""state":"exited","exit_code":3,"reason":"why""#,
            r#""state":"failed","exit_code":127,"reason":"why""#,
            r#""state":"lost","reason":"why""#,
        ] {
            let record: Record = serde_json::from_str(&line(state)).unwrap();
            let brief: Brief = serde_json::from_str(&line(state)).unwrap();
            assert_eq!((&brief.id, &brief.name, &brief.created), (&record.id, &record.name, &record.created));
            assert_eq!((&brief.image, &brief.command), (&record.image, &record.command));
            assert_eq!(brief.duration_ms, record.duration_ms);
            assert_eq!(brief.state().summary(), record.state.summary());
            assert_eq!(brief.state().exit_code(), record.state.exit_code());
        }
    }
}
