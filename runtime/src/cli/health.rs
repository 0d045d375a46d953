//! `agentd health`.

use anyhow::Result;

use super::Format;
use super::doctor::print_findings;
use super::environment::Directories;
use crate::doctor::{self, Finding, Places, Verdict};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How to print the findings
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Runs the verb; gives the exit code.
pub(super) fn run(args: &Args) -> Result<u8> {
    let directories = Directories::find()?;
    let jobs = directories.jobs();
    // Before anything here has threads.
    let surroundings = directories.surroundings();
    let mut findings = doctor::examine(&Places { surroundings, records: directories.state().to_owned() });
    // Of the host what keeps jobs or images from running; what only makes them less is the doctor's to say.
    let is_store = |finding: &Finding| finding.subject == "store" && finding.verdict != Verdict::Ok;
    findings.retain(|finding| finding.verdict == Verdict::Broken || is_store(finding));
    if findings.iter().all(is_store) {
        findings.insert(0, doctor::sound());
    }
    let swept = jobs.sweep();
    let mut places = vec![("state-space", directories.state().to_owned())];
    places.extend(directories.stores().own.into_iter().take(1).map(|path| ("store-space", path)));
    let places: Vec<_> = places.iter().map(|(subject, path)| (*subject, path.as_path())).collect();
    findings.extend(doctor::jobs::examine(&jobs, &swept, &places));
    print_findings(args.format, &findings)?;
    Ok(if findings.iter().all(|finding| finding.verdict == Verdict::Ok) { 0 } else { 1 })
}
