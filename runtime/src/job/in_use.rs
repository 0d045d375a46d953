//! Which images and layers jobs use, for whoever takes things out of the image store.
//!
//! A job uses what its plan names for as long as it is known, ended or not: `agentd rm` lets go. Invariant: a job that runs
//! and whose plan cannot be read is an error, never a job that uses nothing.

use std::path::PathBuf;

use agentd_rootfs::InUse;
use serde::Deserialize;

use super::record::State;
use super::store::{Doing, JobStoreError, Jobs, PLAN, read_bounded};

/// The part of `plan.json` that names layers; plans of every schema so far have it.
#[derive(Deserialize)]
struct Plan {
    #[serde(default)]
    image_digest: Option<String>,
    #[serde(rename = "box")]
    inside: Inside,
}

#[derive(Deserialize)]
struct Inside {
    root: Root,
}

#[derive(Deserialize)]
struct Root {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    path: PathBuf,
}

/// What jobs use is not known.
#[derive(Debug, thiserror::Error)]
pub enum InUseError {
    /// The jobs on disk.
    #[error(transparent)]
    Store(#[from] JobStoreError),
    /// A plan that does not say it.
    #[error("the plan {} of a job that runs cannot be read, so what the job uses is not known", path.display())]
    BadPlan {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
}

impl Jobs {
    /// What all jobs use.
    ///
    /// # Errors
    /// [`InUseError`].
    pub fn in_use(&self) -> Result<InUse, InUseError> {
        let mut in_use = InUse::default();
        for id in self.ids("jobs")? {
            let path = self.directory_of(&id).join(PLAN);
            let text = match read_bounded(&path) {
                // Not written yet, in which case the job waits for us; or it never started.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                text => text.doing("read", &path)?,
            };
            match serde_json::from_slice::<Plan>(&text) {
                Ok(plan) => {
                    in_use.images.extend(plan.image_digest);
                    in_use.layers.extend(plan.inside.root.layers.into_iter().map(|layer| layer.path));
                }
                // Being written, by a job that uses nothing of the store: a start that does holds it until this is written.
                Err(error) if error.is_eof() => {}
                // The disk was full, or the machine went down: nothing of that job runs.
                Err(_) if self.read(&id).is_ok_and(|record| record.state != State::Running) => {}
                Err(source) => return Err(InUseError::BadPlan { path, source }),
            }
        }
        Ok(in_use)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::id::JobId;
    use crate::job::record::{Enforced, Record, SCHEMA};
    use crate::job::store::now;

    fn record(id: &JobId) -> Record {
        let enforced = serde_json::json!({"landlock_abi": 7, "seccomp": "default", "network": "none"});
        let enforced: Enforced = serde_json::from_value(enforced).unwrap();
        let text = serde_json::json!({
            "schema": SCHEMA, "id": id, "image": "host", "command": ["true"], "created": now(), "supervisor_pid": 1,
            "state": "running", "enforced": enforced,
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn what_a_plan_names_is_in_use_until_the_job_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let jobs = Jobs::at(directory.path().join("agentd"));
        assert!(jobs.in_use().unwrap().layers.is_empty());
        let id = JobId::random().unwrap();
        let live = jobs.create(&record(&id)).unwrap();
        assert!(jobs.in_use().unwrap().layers.is_empty());
        let plan = serde_json::json!({
            "image_digest": "sha256:1",
            "box": {"root": {"layers": [{"path": "/s/layers/K/fs", "device": 1, "inode": 2}], "writable": false}},
        });
        live.write_plan(&plan).unwrap();
        let check = || {
            let in_use = jobs.in_use().unwrap();
            assert_eq!(in_use.layers.into_iter().collect::<Vec<_>>(), [PathBuf::from("/s/layers/K/fs")]);
            assert_eq!(in_use.images.into_iter().collect::<Vec<_>>(), ["sha256:1"]);
        };
        check();
        let mut last = record(&id);
        last.state = State::Exited { exit_code: 0, reason: None };
        live.finish(&last).unwrap();
        check();
        jobs.remove(&id).unwrap();
        assert!(jobs.in_use().unwrap().layers.is_empty());
    }

    #[test]
    fn a_plan_that_cannot_be_read_is_no_empty_one_while_its_job_runs() {
        let directory = tempfile::tempdir().unwrap();
        let jobs = Jobs::at(directory.path().join("agentd"));
        let id = JobId::random().unwrap();
        let live = jobs.create(&record(&id)).unwrap();
        live.write_plan(&serde_json::json!({"box": 1})).unwrap();
        assert!(matches!(jobs.in_use(), Err(InUseError::BadPlan { .. })));
        let mut last = record(&id);
        last.state = State::Exited { exit_code: 0, reason: None };
        live.finish(&last).unwrap();
        assert!(jobs.in_use().unwrap().layers.is_empty());
    }
}
