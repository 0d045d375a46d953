//! `agentd metrics`: OpenMetrics text, for a collector that runs a program or reads a file.
//!
//! Written here and not by a library: there is nothing to register or to count while the program runs, only a text of lines
//! to write once. Invariant: what a job or its user chose stands in no label but as an id or a name, which cannot hold a
//! quote or a line break. Each line is one of Prometheus's own text format as well: node_exporter refuses a file whole for
//! one type that this does not know (`info`, `stateset`). So a counter's `# TYPE` goes without `_total`, as OpenMetrics has it.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::environment::Directories;
use super::ps::standing;
use crate::cgroup::counted::Counted;
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

/// A running job, and what is counted of it.
struct Job<'r> {
    record: &'r Record,
    usage: Usage,
    /// Where it has a cgroup.
    counted: Counted,
}

/// What of a running job is told; nothing where nobody counts it.
type Value = fn(&Job<'_>) -> Option<String>;

/// Name, type and help of a family, and what of a running job it tells.
const EACH: [(&str, &str, &str, Value); 7] = [
    ("agentd_job_memory_bytes", "gauge", "Memory of a running job.", |job| {
        Some(job.counted.memory.unwrap_or(job.usage.memory_bytes).to_string())
    }),
    ("agentd_job_memory_peak_bytes", "gauge", "The most memory of a running job with a cgroup.", |job| {
        Some(job.counted.memory_peak?.to_string())
    }),
    ("agentd_job_cpu_seconds", "counter", "Processor time of a running job with a cgroup.", |job| {
        Some(Duration::from_micros(job.counted.cpu_us?).as_secs_f64().to_string())
    }),
    ("agentd_job_paused", "gauge", "Whether a running job is paused.", |job| {
        Some(u8::from(standing(&job.record.state, job.record.cgroup.as_deref()) == "paused").to_string())
    }),
    ("agentd_job_processes", "gauge", "Processes of a running job.", |job| Some(job.usage.processes.to_string())),
    ("agentd_job_threads", "gauge", "Threads of a running job.", |job| Some(job.usage.threads.to_string())),
    ("agentd_job_restarts", "gauge", "Starts of a running job after its first.", |job| {
        Some(job.record.restarts.to_string())
    }),
];

/// The text, to its `# EOF`.
fn exposition(records: &[Record], unreadable: usize, sample: &Sample) -> String {
    let mut text = Metrics::default();
    text.family("agentd_build_info", "gauge", "The agentd that says this.");
    text.line("agentd_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.family("agentd_jobs", "gauge", "Jobs that are known, by where they stand.");
    for state in ["running", "paused", "exited", "failed", "lost"] {
        let is_there = |record: &&Record| standing(&record.state, record.cgroup.as_deref()) == state;
        text.line("agentd_jobs", &[("state", state)], records.iter().filter(is_there).count());
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
    text.family("agentd_oom_kills", "gauge", "Processes killed for memory, of the jobs that have ended and are known.");
    let killed = records.iter().filter_map(|record| record.usage.as_ref()?.oom_kills);
    text.line("agentd_oom_kills", &[], killed.fold(0, u64::saturating_add));
    let running = records.iter().filter(|record| record.state == State::Running);
    let counted = |record: &Record| record.cgroup.as_deref().map(|path| Counted::of(Path::new(path)));
    let job = |record| Job {
        record,
        usage: sample.of(record.supervisor_pid, sample),
        counted: counted(record).unwrap_or_default(),
    };
    let jobs: Vec<_> = running.map(job).collect();
    for (family, kind, help, value) in EACH {
        text.family(family, kind, help);
        let sample = if kind == "counter" { format!("{family}_total") } else { family.to_owned() };
        for job in &jobs {
            let name = job.record.name.as_ref().map(ToString::to_string).unwrap_or_default();
            if let Some(value) = value(job) {
                text.line(&sample, &[("id", job.record.id.as_str()), ("name", &name)], value);
            }
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
