//! `agentd stats`: of a job with a cgroup what that counts, of another what /proc says of its processes.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::environment::Directories;
use super::template::Listing;
use super::which::named;
use super::{images::size, print_json};
use crate::cgroup::counted::Counted;
use crate::job::id::JobId;
use crate::job::record::{Record, State};
use crate::job::store::Jobs;
use crate::job::usage::{Sample, Usage};

/// Between two looks.
const STEP: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Names, ids or beginnings of ids [default: every job that runs]
    jobs: Vec<String>,
    /// Look once, over one second, and end
    #[arg(long)]
    no_stream: bool,
    /// How to print them: table, json, or a template with {{.ID}}, {{.Name}}, {{.CPUPerc}}, {{.MemUsage}}, {{.MemPeak}},
    /// {{.PIDs}}, {{.Threads}}, {{.BlockIO}} and {{.NetIO}}
    #[arg(long, value_name = "table|json|TEMPLATE", default_value = "table", value_parser = listing)]
    format: Listing,
}

/// The columns of the table, and what a template has for them.
const COLUMNS: [(&str, &str); 9] = [
    ("JOB", "ID"),
    ("NAME", "Name"),
    ("CPU", "CPUPerc"),
    ("MEMORY", "MemUsage"),
    ("PEAK", "MemPeak"),
    ("PIDS", "PIDs"),
    ("THREADS", "Threads"),
    ("DISK", "BlockIO"),
    ("NETWORK", "NetIO"),
];

fn listing(text: &str) -> Result<Listing> {
    Listing::new(text, &COLUMNS.map(|(_, field)| field))
}

/// A job, as programs get it. What is not counted, and a limit that there is not, is null.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    name: Option<String>,
    cpu_percent: f64,
    cpu_limit_percent: Option<f64>,
    memory_bytes: u64,
    memory_peak_bytes: Option<u64>,
    memory_limit_bytes: Option<u64>,
    processes: u64,
    threads: u64,
    pids_limit: Option<u64>,
    disk_read_bytes: Option<u64>,
    disk_written_bytes: Option<u64>,
    network_bytes: Option<u64>,
}

/// One look at every job that runs.
struct Look {
    processes: Sample,
    /// Of the jobs that have one: when it was looked at, and what it counted.
    cgroups: HashMap<JobId, (Instant, Counted)>,
}

impl Look {
    fn take(records: &[Record]) -> Result<Self> {
        let counted = |record: &Record| {
            let path = record.cgroup.as_ref()?;
            Some((record.id.clone(), (Instant::now(), Counted::of(Path::new(path)))))
        };
        Ok(Self { processes: Sample::take()?, cgroups: records.iter().filter_map(counted).collect() })
    }

    /// What it says of a job, by comparison with an earlier look.
    fn row(&self, jobs: &Jobs, record: &Record, before: &Self) -> Row {
        let Usage { cpu_percent, memory_bytes, processes, threads, io } =
            self.processes.of(record.supervisor_pid, &before.processes);
        let cgroup = self.cgroups.get(&record.id);
        let counted = cgroup.map(|(_, counted)| *counted).unwrap_or_default();
        let io = counted.io.or(io);
        let percent = cgroup.zip(before.cgroups.get(&record.id)).and_then(|(now, before)| of_a_cpu(now, before));
        Row {
            id: record.id.to_string(),
            name: record.name.as_ref().map(ToString::to_string),
            cpu_percent: tenths(percent.unwrap_or(cpu_percent)),
            cpu_limit_percent: counted.milli_cpus.map(|milli| tenths(number(milli) / 10.0)),
            memory_bytes: counted.memory.unwrap_or(memory_bytes),
            memory_peak_bytes: counted.memory_peak,
            memory_limit_bytes: counted.memory_limit,
            processes,
            threads,
            pids_limit: counted.pids_limit,
            disk_read_bytes: io.map(|(read, _)| read),
            disk_written_bytes: io.map(|(_, written)| written),
            network_bytes: (record.enforced.network == "broker").then(|| jobs.moved(&record.id)),
        }
    }
}

/// Percent of one processor between two looks at a cgroup.
fn of_a_cpu(now: &(Instant, Counted), before: &(Instant, Counted)) -> Option<f64> {
    let used = now.1.cpu_us?.saturating_sub(before.1.cpu_us?);
    let elapsed = now.0.saturating_duration_since(before.0).as_secs_f64();
    (elapsed > 0.0).then(|| number(used) / 1e4 / elapsed)
}

#[expect(clippy::cast_precision_loss, reason = "microseconds, or thousandths of processors: far below 2^52")]
fn number(count: u64) -> f64 {
    count as f64
}

/// More than a tenth cannot be told.
fn tenths(percent: f64) -> f64 {
    (percent * 10.0).round() / 10.0
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let jobs = Directories::find()?.swept_jobs();
    let wanted = named(&jobs, &args.jobs)?;
    let redraws = !args.no_stream && args.format == Listing::Table && std::io::stdout().is_terminal();
    let running = || -> Result<Vec<Record>> {
        let (mut records, _unreadable) = jobs.list_running()?;
        records.retain(|record| wanted.is_empty() || wanted.iter().any(|(_, id)| *id == record.id));
        Ok(records)
    };
    let mut before = Look::take(&running()?)?;
    loop {
        std::thread::sleep(STEP);
        let records = running()?;
        let now = Look::take(&records)?;
        if redraws {
            std::io::stdout().write_all(b"\x1b[H\x1b[2J")?;
        }
        print(&records.iter().map(|record| now.row(&jobs, record, &before)).collect::<Vec<_>>(), args)?;
        let is_over = |id| jobs.read(id).map_or(true, |record| record.state != State::Running);
        if args.no_stream || (!wanted.is_empty() && wanted.iter().all(|(_, id)| is_over(id))) {
            return Ok(());
        }
        before = now;
    }
}

fn print(rows: &[Row], args: &Args) -> Result<()> {
    let of = |used: String, limit: Option<String>| match limit {
        Some(limit) => format!("{used} / {limit}"),
        None => used,
    };
    let percent = |percent: f64| format!("{percent:.1}%");
    let value = |field: &str, row: &Row| {
        Some(match field {
            "ID" => row.id.clone(),
            "Name" => row.name.clone().unwrap_or_default(),
            "CPUPerc" => of(percent(row.cpu_percent), row.cpu_limit_percent.map(percent)),
            "MemUsage" => of(size(row.memory_bytes), row.memory_limit_bytes.map(size)),
            "MemPeak" => row.memory_peak_bytes.map(size).unwrap_or_default(),
            "PIDs" => row.processes.to_string(),
            "Threads" => of(row.threads.to_string(), row.pids_limit.map(|most| most.to_string())),
            "BlockIO" => match (row.disk_read_bytes, row.disk_written_bytes) {
                (Some(read), Some(written)) => format!("{} / {}", size(read), size(written)),
                _ => String::new(),
            },
            "NetIO" => row.network_bytes.map(size).unwrap_or_default(),
            _ => return None,
        })
    };
    let mut out = std::io::stdout().lock();
    match &args.format {
        Listing::Json => {
            drop(out);
            print_json(&rows)?;
        }
        Listing::Template(template) => {
            for row in rows {
                writeln!(out, "{}", template.fill(|field| value(field, row)))?;
            }
        }
        Listing::Table => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(COLUMNS.map(|(header, _)| header));
            for row in rows {
                let cell = |field| value(field, row).filter(|text| !text.is_empty()).unwrap_or_else(|| "-".into());
                table.add_row(COLUMNS.map(|(_, field)| cell(field)));
            }
            writeln!(out, "{table}")?;
        }
    }
    Ok(())
}
