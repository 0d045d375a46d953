//! Which jobs a verb is about: those that are named, or all that run.

use anyhow::Result;

use crate::job::id::JobId;
use crate::job::store::Jobs;

#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Names, ids or beginnings of ids
    #[arg(required_unless_present = "all")]
    jobs: Vec<String>,
    /// Every job that runs
    #[arg(short, long, conflicts_with = "jobs")]
    all: bool,
}

impl Which {
    /// What was typed, and the job it means.
    pub(super) fn of(&self, jobs: &Jobs) -> Result<Vec<(String, JobId)>> {
        if !self.all {
            return named(jobs, &self.jobs);
        }
        Ok(jobs.running()?.into_iter().map(|id| (id.to_string(), id)).collect())
    }
}

/// What was typed, and the job it means. All are looked up before anything is done: a mistyped name changes nothing.
pub(super) fn named(jobs: &Jobs, texts: &[String]) -> Result<Vec<(String, JobId)>> {
    texts.iter().map(|text| Ok((text.clone(), jobs.find(text)?))).collect()
}
