//! `agentd doctor`.

use std::io::Write;

use anyhow::{Error, Result};

use super::environment::Directories;
use super::{Format, print_json, printable};
use crate::doctor::attack::{self, Attempted, Verdict as Outcome};
use crate::doctor::{self, Finding, Places, Verdict};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Try to break out of a box, some seventy ways, and say what stopped each
    ///
    /// Each attempt runs in a box of its own, with what this host and its kernel are, and changes nothing. What stops
    /// an attack is found out by taking the layers away one by one.
    #[arg(long)]
    attack: bool,
    /// How to print the findings
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// What a trial box runs
    #[arg(long, hide = true, exclusive = true)]
    from_inside: bool,
}

/// Runs the verb; gives the exit code.
pub(super) fn run(args: &Args) -> Result<u8> {
    if args.from_inside {
        return attack::attempt_from_inside().map(|()| 0).map_err(Error::new);
    }
    let directories = Directories::find()?;
    if args.attack {
        let attempted = attack::attack(&directories.surroundings()).map_err(|error| {
            Error::msg(error).context("no box to attack from; `agentd doctor` says what this host lacks")
        })?;
        return tell_attacks(args.format, &attempted);
    }
    let findings =
        doctor::examine(&Places { surroundings: directories.surroundings(), records: directories.state().to_owned() });
    tell_findings(args.format, &findings)
}

fn tell_findings(format: Format, findings: &[Finding]) -> Result<u8> {
    let can_run = findings.iter().all(|finding| finding.verdict != Verdict::Broken);
    print_findings(format, findings)?;
    if format == Format::Table {
        let verdict = if can_run { "agentd run works here" } else { "agentd run cannot work here" };
        writeln!(std::io::stdout().lock(), "{verdict}")?;
    }
    Ok(if can_run { 0 } else { 1 })
}

/// A line each, and one for what is to be done.
pub(super) fn print_findings(format: Format, findings: &[Finding]) -> Result<()> {
    if format == Format::Json {
        return print_json(&findings);
    }
    let mut out = std::io::stdout().lock();
    for finding in findings {
        writeln!(out, "{:7} {:15} {}", finding.verdict.word(), finding.subject, printable(&finding.found))?;
        if let Some(remedy) = &finding.remedy {
            writeln!(out, "{:23} fix: {}", "", printable(remedy))?;
        }
    }
    Ok(())
}

fn tell_attacks(format: Format, attempted: &[Attempted]) -> Result<u8> {
    let count = |verdict| attempted.iter().filter(|attempted| attempted.verdict == verdict).count();
    let (succeeded, unknown) = (count(Outcome::Succeeded), count(Outcome::Unknown));
    match format {
        Format::Json => print_json(&attempted)?,
        Format::Table => {
            let mut out = std::io::stdout().lock();
            for attempted in attempted {
                let word = attempted.verdict.word();
                writeln!(out, "{word:9} {:18} {}", attempted.attack, printable(&attempted.to_string()))?;
            }
            let (stopped, not_tried) = (count(Outcome::Stopped), count(Outcome::NotTried));
            write!(out, "{stopped} attacks stopped, {succeeded} succeeded")?;
            for (count, what) in [(unknown, "without an answer"), (not_tried, "not tried")] {
                if count > 0 {
                    write!(out, ", {count} {what}")?;
                }
            }
            writeln!(out)?;
        }
    }
    Ok(if attack::held(attempted) { 0 } else { 1 })
}
