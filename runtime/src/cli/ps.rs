//! `agentd ps`.

use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use comfy_table::{Table, presets};
use rustix::termios::tcgetwinsize;

use super::environment::Directories;
use super::{Format, print_json, printable, say};
use crate::job::record::{Record, State};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Also those that have ended
    #[arg(short, long)]
    all: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// How to print them; json is an array of records
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let jobs = Directories::find()?.jobs();
    jobs.sweep()?;
    let (mut records, troubles) = jobs.list()?;
    for trouble in troubles {
        say(&format!("{:#}", anyhow::Error::from(trouble)));
    }
    records.retain(|record| args.all || record.state == State::Running);
    match (args.quiet, args.format) {
        (true, _) => {
            let mut out = std::io::stdout().lock();
            for record in &records {
                writeln!(out, "{}", record.id)?;
            }
        }
        (false, Format::Json) => print_json(&records)?,
        (false, Format::Table) => writeln!(std::io::stdout().lock(), "{}", table(&records))?,
    }
    Ok(())
}

fn table(records: &[Record]) -> Table {
    let mut rows: Vec<[String; 7]> = records.iter().map(row).collect();
    // On a terminal the command gets what the other columns, padded by two, leave of a line.
    let widest = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([HEADER[column].len()]).max().unwrap_or_default()
    };
    let taken: usize = (0..HEADER.len() - 1).map(|column| widest(column) + 2).sum::<usize>() + 2;
    let width = tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
    let most = width.map_or(usize::MAX, |width| width.saturating_sub(taken).max(LEAST_OF_A_COMMAND));
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(HEADER);
    for row in &mut rows {
        row[6] = shortened(&row[6], most);
        table.add_row(&*row);
    }
    table
}

fn row(record: &Record) -> [String; 7] {
    [
        record.id.to_string(),
        record.name.as_ref().map_or_else(|| "-".into(), ToString::to_string),
        record.state.summary(),
        age(&record.created),
        record.duration_ms.map_or_else(|| "-".into(), |took| short(Duration::from_millis(took))),
        shortened(&printable(&record.image), LONGEST_IMAGE),
        printable(&record.command.join(" ")),
    ]
}

const HEADER: [&str; 7] = ["JOB", "NAME", "STATE", "CREATED", "TOOK", "IMAGE", "COMMAND"];
const LEAST_OF_A_COMMAND: usize = 12;
const LONGEST_IMAGE: usize = 16;

/// The first `most` characters, the last of them an ellipsis where there are more.
pub(super) fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

pub(super) fn age(created: &str) -> String {
    let since = humantime::parse_rfc3339(created).ok().and_then(|then| SystemTime::now().duration_since(then).ok());
    since.map_or_else(|| created.to_owned(), |age| format!("{} ago", short(age)))
}

/// A duration in its largest unit.
fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}
