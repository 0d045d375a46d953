//! `agentd prune`.

use std::io::{IsTerminal, Write};

use agentd_rootfs::{Rubbish, Store};
use anyhow::{Result, bail};
use serde::Serialize;

use super::environment::Directories;
use super::images::size;
use super::{Format, print_json, printable, say};
use crate::job::id::JobId;
use crate::job::record::State;
use crate::job::store::{JobStoreError, Jobs};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Also images that no job uses
    #[arg(short, long)]
    all: bool,
    /// Do not hold back with --all on a terminal
    #[arg(short, long)]
    force: bool,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// What was removed; the same fields in every version.
#[derive(Debug, Default, Serialize)]
struct Report {
    images: Vec<String>,
    layers: Vec<Sized>,
    documents: Vec<Sized>,
    downloads: Vec<Sized>,
    /// Ids of jobs whose supervisor is gone and whose records had no end yet.
    lost_jobs: Vec<String>,
    bytes: u64,
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Sized {
    name: String,
    bytes: u64,
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let on_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if args.all && !args.force && !args.dry_run && on_terminal {
        bail!("--all removes every image that no job uses; --dry-run lists them, --force removes them");
    }
    let directories = Directories::find()?;
    let jobs = directories.jobs();
    let (lost, troubles) = if args.dry_run { lost(&jobs)? } else { jobs.sweep() };
    troubles.into_iter().for_each(|trouble| say(&format!("{:#}", anyhow::Error::from(trouble))));
    let lost_jobs = lost.into_iter().map(String::from).collect();
    let mut rubbish = Rubbish::default();
    if let Some(store) = Store::existing(&directories.stores())? {
        let cleaning = store.clean(&mut || say("waiting for a job that starts or an image that is published"))?;
        rubbish = cleaning.unneeded(&jobs.in_use()?, args.all)?;
        if !args.dry_run {
            cleaning.remove(&rubbish)?;
        }
    }
    let report = Report {
        images: rubbish.names.clone(),
        layers: sized(&rubbish.layers),
        documents: sized(&rubbish.documents),
        downloads: sized(&rubbish.partials),
        lost_jobs,
        bytes: rubbish.bytes(),
        dry_run: args.dry_run,
    };
    match args.format {
        Format::Json => print_json(&report),
        Format::Table => print(&report),
    }
}

/// The jobs whose records a sweep would finish.
fn lost(jobs: &Jobs) -> Result<(Vec<JobId>, Vec<JobStoreError>)> {
    let is_lost = |id: &JobId| jobs.read(id).is_ok_and(|record| matches!(record.state, State::Lost { .. }));
    Ok((jobs.running()?.into_iter().filter(is_lost).collect(), Vec::new()))
}

fn sized(things: &[(String, u64)]) -> Vec<Sized> {
    things.iter().map(|(name, bytes)| Sized { name: name.clone(), bytes: *bytes }).collect()
}

fn print(report: &Report) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let (finished, removed, freed) = match report.dry_run {
        true => ("would finish", "would remove", "would free"),
        false => ("finished", "removed", "freed"),
    };
    for job in &report.lost_jobs {
        writeln!(out, "{finished} the record of lost job {job}")?;
    }
    for name in &report.images {
        writeln!(out, "{removed} image {}", printable(name))?;
    }
    let kinds =
        [("layer", &report.layers), ("document", &report.documents), ("broken-off download", &report.downloads)];
    for (kind, things) in kinds {
        for Sized { name, bytes } in things {
            writeln!(out, "{removed} {kind} {} ({})", printable(name), size(*bytes))?;
        }
    }
    writeln!(out, "{freed} {}", size(report.bytes))?;
    Ok(())
}
