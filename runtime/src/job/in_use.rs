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

impl Jobs {
    /// What all jobs use.
    ///
    /// # Errors
    /// [`JobStoreError::Io`], [`JobStoreError::BadPlan`].
    pub fn in_use(&self) -> Result<InUse, JobStoreError> {
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
                // The disk was full, or the machine went down: nothing of that job runs.
                Err(_) if self.read(&id).is_ok_and(|record| record.state != State::Running) => {}
                Err(source) => return Err(JobStoreError::BadPlan { path, source }),
            }
        }
        Ok(in_use)
    }
}
