//! `agentd doctor`.

use std::io::Write;

use anyhow::Result;

use super::environment::Directories;
use super::{Format, print_json, printable};
use crate::doctor::{self, Places, Verdict};

/// Say what this host can and cannot do, and how to mend it
///
/// Exits with 1 when the main job cannot run here.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How to print the findings
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Runs the verb; gives the exit code.
pub(super) fn run(args: &Args) -> Result<u8> {
    let directories = Directories::find()?;
    let findings = doctor::examine(&Places {
        surroundings: directories.surroundings(),
        records: directories.state().to_owned(),
        runtime: directories.runtime(),
    });
    let can_run = findings.iter().all(|finding| finding.verdict != Verdict::Broken);
    match args.format {
        Format::Json => print_json(&findings)?,
        Format::Table => {
            let mut out = std::io::stdout().lock();
            for finding in &findings {
                writeln!(out, "{:7} {:15} {}", finding.verdict.word(), finding.subject, printable(&finding.found))?;
                if let Some(remedy) = &finding.remedy {
                    writeln!(out, "{:23} fix: {}", "", printable(remedy))?;
                }
            }
            writeln!(out, "{}", if can_run { "agentd run works here" } else { "agentd run cannot work here" })?;
        }
    }
    Ok(if can_run { 0 } else { 1 })
}
