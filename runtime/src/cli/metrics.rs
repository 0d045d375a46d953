//! `agentd metrics`: OpenMetrics text, for a collector that runs a program or reads a file.
//!
//! Written here and not by a library: there is nothing to register or to count while the program runs, only a text of lines
//! to write once. Invariant: what a job or its user chose stands in no label but as an id or a name, which cannot hold a
//! quote or a line break.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::io::Write;

use anyhow::Result;

use super::environment::Directories;
use crate::job::record::{Record, State};
use crate::job::usage::{Sample, Usage};

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// Runs the verb.
pub(super) fn run(Args {}: &Args) -> Result<()> {
    let jobs = Directories::find()?.swept_jobs();
    let (records, troubles) = jobs.list()?;
    let sample = Sample::take()?;
    let text = exposition(&records, troubles.len(), &sample);
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// What of a running job is told.
type Value = fn(&Record, &Usage) -> u64;

/// The text, to its `# EOF`.
fn exposition(records: &[Record], unreadable: usize, sample: &Sample) -> String {
    let mut text = Metrics::default();
    text.family("agentd_build", "info", "The agentd that says this.");
    text.line("agentd_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.family("agentd_jobs", "gauge", "Jobs that are known, by where they stand.");
    for state in ["running", "exited", "failed", "lost"] {
        let count = records.iter().filter(|record| record.state.word() == state).count();
        text.line("agentd_jobs", &[("state", state)], count);
    }
    text.family("agentd_records_unreadable", "gauge", "Records that cannot be read.");
    text.line("agentd_records_unreadable", &[], unreadable);
    text.family("agentd_job_exits", "gauge", "Jobs that have ended and are known, by exit code.");
    let mut codes = BTreeMap::<u8, usize>::new();
    for code in records.iter().filter_map(|record| record.state.exit_code()) {
        *codes.entry(code).or_default() += 1;
    }
    for (code, count) in codes {
        text.line("agentd_job_exits", &[("code", &code.to_string())], count);
    }
    let running: Vec<_> = records.iter().filter(|record| record.state == State::Running).collect();
    let usages: Vec<_> = running.iter().map(|record| sample.of(record.supervisor_pid, sample)).collect();
    let jobs: Vec<_> = running.iter().zip(usages).collect();
    let name = |record: &Record| record.name.as_ref().map(ToString::to_string).unwrap_or_default();
    let each: [(&str, &str, &str, Value); 4] = [
        ("agentd_job_memory_bytes", "gauge", "Resident memory of a running job.", |_, usage| usage.memory_bytes),
        ("agentd_job_processes", "gauge", "Processes of a running job.", |_, usage| usage.processes),
        ("agentd_job_threads", "gauge", "Threads of a running job.", |_, usage| usage.threads),
        ("agentd_job_restarts", "gauge", "Starts of a running job after its first.", |record, _| {
            record.restarts.into()
        }),
    ];
    for (family, kind, help, value) in each {
        text.family(family, kind, help);
        for (record, usage) in &jobs {
            text.line(family, &[("id", record.id.as_str()), ("name", &name(record))], value(record, usage));
        }
    }
    text.0.push_str("# EOF\n");
    text.0
}

#[derive(Default)]
struct Metrics(String);

impl Metrics {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // A String takes everything that is written to it.
        write!(self.0, "# TYPE {name} {kind}\n# HELP {name} {help}\n").unwrap_or_default();
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        writeln!(self.0, "{name}{labels} {value}").unwrap_or_default();
    }
}
