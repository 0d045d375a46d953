//! `agentd stats`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::environment::Directories;
use super::template::Listing;
use super::which::named;
use super::{images::size, print_json};
use crate::job::record::{Record, State};
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
    /// How to print them: table, json, or a template with {{.ID}}, {{.Name}}, {{.CPUPerc}}, {{.MemUsage}}, {{.PIDs}} and
    /// {{.Threads}}
    #[arg(long, value_name = "table|json|TEMPLATE", default_value = "table", value_parser = listing)]
    format: Listing,
}

fn listing(text: &str) -> Result<Listing> {
    Listing::new(text, &["ID", "Name", "CPUPerc", "MemUsage", "PIDs", "Threads"])
}

/// A job, as programs get it.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    name: Option<String>,
    cpu_percent: f64,
    memory_bytes: u64,
    processes: u64,
    threads: u64,
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let jobs = Directories::find()?.swept_jobs();
    let wanted = named(&jobs, &args.jobs)?;
    let redraws = !args.no_stream && args.format == Listing::Table && std::io::stdout().is_terminal();
    let mut before = Sample::take()?;
    loop {
        std::thread::sleep(STEP);
        let now = Sample::take()?;
        let (mut records, _unreadable) = jobs.list_running()?;
        records.retain(|record| wanted.is_empty() || wanted.iter().any(|(_, id)| *id == record.id));
        if redraws {
            std::io::stdout().write_all(b"\x1b[H\x1b[2J")?;
        }
        print(
            &records.iter().map(|record| row(record, now.of(record.supervisor_pid, &before))).collect::<Vec<_>>(),
            args,
        )?;
        let is_over = |id| jobs.read(id).map_or(true, |record| record.state != State::Running);
        if args.no_stream || (!wanted.is_empty() && wanted.iter().all(|(_, id)| is_over(id))) {
            return Ok(());
        }
        before = now;
    }
}

fn row(record: &Record, usage: Usage) -> Row {
    let Usage { cpu_percent, memory_bytes, processes, threads } = usage;
    let name = record.name.as_ref().map(ToString::to_string);
    // A tenth is more than ticks of 10 ms can tell.
    let cpu_percent = (cpu_percent * 10.0).round() / 10.0;
    Row { id: record.id.to_string(), name, cpu_percent, memory_bytes, processes, threads }
}

fn print(rows: &[Row], args: &Args) -> Result<()> {
    let value = |field: &str, row: &Row| match field {
        "ID" => Some(row.id.clone()),
        "Name" => Some(row.name.clone().unwrap_or_default()),
        "CPUPerc" => Some(format!("{:.1}%", row.cpu_percent)),
        "MemUsage" => Some(size(row.memory_bytes)),
        "PIDs" => Some(row.processes.to_string()),
        "Threads" => Some(row.threads.to_string()),
        _ => None,
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
            table.load_style(presets::NOTHING).set_header(["JOB", "NAME", "CPU", "MEMORY", "PIDS", "THREADS"]);
            for row in rows {
                let cells = ["ID", "Name", "CPUPerc", "MemUsage", "PIDs", "Threads"];
                table.add_row(
                    cells.map(|field| value(field, row).filter(|text| !text.is_empty()).unwrap_or_else(|| "-".into())),
                );
            }
            writeln!(out, "{table}")?;
        }
    }
    Ok(())
}
