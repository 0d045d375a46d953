//! `agentd summary`.

use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::environment::Directories;
use super::images::size;
use super::template::Listing;
use super::{logs, print_json, say};
use crate::job::record::{Record, State};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only jobs that were started since: 24h (ago), or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = logs::since)]
    since: Option<SystemTime>,
    /// How to print it: table, json, or a template with {{.Outcome}}, {{.Jobs}}, {{.Restarts}}, {{.Time}}, {{.CPU}},
    /// {{.Denied}}, {{.Refused}}, {{.Up}} and {{.Down}}
    #[arg(long, value_name = "table|json|TEMPLATE", default_value = "table", value_parser = listing)]
    format: Listing,
}

/// The columns, and the fields of a template.
const FIELDS: [&str; 9] = ["Outcome", "Jobs", "Restarts", "Time", "CPU", "Denied", "Refused", "Up", "Down"];

fn listing(text: &str) -> Result<Listing> {
    Listing::new(text, &FIELDS)
}

/// What jobs of one outcome did.
#[derive(Debug, Default, Serialize)]
struct Row {
    outcome: &'static str,
    jobs: u64,
    restarts: u64,
    seconds: f64,
    /// Where they had cgroups of their own.
    cpu_seconds: f64,
    denied_calls: u64,
    refused_requests: u64,
    network_up_bytes: u64,
    network_down_bytes: u64,
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let (mut records, troubles) = Directories::find()?.swept_jobs().list()?;
    troubles.into_iter().for_each(|trouble| say(&format!("{:#}", anyhow::Error::from(trouble))));
    if let Some(since) = args.since {
        // A time that is none is no reason to leave a job out.
        records.retain(|record| humantime::parse_rfc3339(&record.created).map_or(true, |created| created >= since));
    }
    let rows = rows(&records);
    let mut out = std::io::stdout().lock();
    match &args.format {
        Listing::Json => {
            drop(out);
            print_json(&rows)
        }
        Listing::Template(template) => {
            rows.iter().try_for_each(|row| Ok(writeln!(out, "{}", template.fill(|field| value(field, row)))?))
        }
        Listing::Table => Ok(writeln!(out, "{}", table(&rows))?),
    }
}

fn outcome(state: &State) -> &'static str {
    match state {
        State::Running => "running",
        State::Exited { exit_code: 0, .. } => "succeeded",
        State::Exited { exit_code: 124, reason: Some(_) } => "timed out",
        State::Exited { .. } => "ended otherwise",
        State::Failed { .. } => "never ran",
        State::Lost { .. } => "lost",
    }
}

/// A row for each outcome that there is, and one for all.
fn rows(records: &[Record]) -> Vec<Row> {
    let mut rows = Vec::new();
    for name in ["running", "succeeded", "timed out", "ended otherwise", "never ran", "lost", "all"] {
        let mut row = Row { outcome: name, ..Row::default() };
        for record in records.iter().filter(|record| name == "all" || outcome(&record.state) == name) {
            row.add(record);
        }
        if row.jobs > 0 || name == "all" {
            rows.push(row);
        }
    }
    rows
}

impl Row {
    fn add(&mut self, record: &Record) {
        let network = record.network.clone().unwrap_or_default();
        let cpu = record.usage.as_ref().and_then(|usage| usage.cpu_us).unwrap_or_default();
        self.jobs += 1;
        self.restarts += u64::from(record.restarts);
        self.seconds += Duration::from_millis(record.duration_ms.unwrap_or_default()).as_secs_f64();
        self.cpu_seconds += Duration::from_micros(cpu).as_secs_f64();
        self.denied_calls = self.denied_calls.saturating_add(record.denials);
        self.refused_requests = self.refused_requests.saturating_add(network.refused);
        self.network_up_bytes = self.network_up_bytes.saturating_add(network.up);
        self.network_down_bytes = self.network_down_bytes.saturating_add(network.down);
    }
}

/// A field of a template.
fn value(field: &str, row: &Row) -> Option<String> {
    let time = |seconds: f64| {
        let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
        if seconds < 60.0 {
            format!("{seconds:.1}s")
        } else {
            humantime::format_duration(Duration::from_secs(whole)).to_string()
        }
    };
    Some(match field {
        "Outcome" => row.outcome.to_owned(),
        "Jobs" => row.jobs.to_string(),
        "Restarts" => row.restarts.to_string(),
        "Time" => time(row.seconds),
        "CPU" => time(row.cpu_seconds),
        "Denied" => row.denied_calls.to_string(),
        "Refused" => row.refused_requests.to_string(),
        "Up" => size(row.network_up_bytes),
        "Down" => size(row.network_down_bytes),
        _ => return None,
    })
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(FIELDS.map(str::to_uppercase));
    for row in rows {
        table.add_row(FIELDS.map(|field| value(field, row).unwrap_or_default()));
    }
    table
}
