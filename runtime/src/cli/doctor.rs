//! `agentd doctor`.

use std::io::Write;

use anyhow::Result;

use super::Format;
use super::environment::Directories;
use crate::doctor::{self, Verdict};

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
    let findings = doctor::examine(&Directories::find()?.store());
    let can_run = findings.iter().all(|finding| finding.verdict != Verdict::Broken);
    let mut out = std::io::stdout().lock();
    match args.format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, &findings)?;
            writeln!(out)?;
        }
        Format::Table => {
            for finding in &findings {
                writeln!(out, "{:7} {:22} {}", finding.verdict.word(), finding.subject, super::printable(&finding.found))?;
                if let Some(remedy) = &finding.remedy {
                    writeln!(out, "{:30} fix: {remedy}", "")?;
                }
            }
            writeln!(out, "{}", if can_run { "agentd run works here" } else { "agentd run cannot work here" })?;
        }
    }
    Ok(if can_run { 0 } else { 1 })
}
