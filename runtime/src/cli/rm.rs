//! `agentd rm`.

use std::io::Write;

use anyhow::Result;

use super::environment::Directories;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Names, ids or beginnings of ids
    #[arg(required_unless_present = "all")]
    jobs: Vec<String>,
    /// Every job that has ended
    #[arg(short, long, conflicts_with = "jobs")]
    all: bool,
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let jobs = Directories::find()?.jobs();
    jobs.sweep()?;
    let mut out = std::io::stdout().lock();
    if args.all {
        let (records, troubles) = jobs.list()?;
        for record in records.iter().filter(|record| record.state != crate::job::record::State::Running) {
            jobs.remove(&record.id)?;
            writeln!(out, "{}", record.id)?;
        }
        return troubles.into_iter().next().map_or(Ok(()), |trouble| Err(trouble.into()));
    }
    // All are looked up before the first is removed: a mistyped name changes nothing.
    let ids = args.jobs.iter().map(|text| jobs.find(text)).collect::<Result<Vec<_>, _>>()?;
    for id in ids {
        jobs.remove(&id)?;
        writeln!(out, "{id}")?;
    }
    Ok(())
}
