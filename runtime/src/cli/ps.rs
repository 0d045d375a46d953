//! `agentd ps`.

use std::fs;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use rustix::termios::tcgetwinsize;

use super::environment::Directories;
use super::template::Listing;
use super::{print_json, printable, say};
use crate::job::brief::Brief;
use crate::job::record::{Record, State};
use crate::job::store::{JobStoreError, Jobs};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Also those that have ended
    #[arg(short, long)]
    all: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Only those with status=running|exited|failed|lost, name=TEXT, image=TEXT or exited=CODE; several of one kind are
    /// alternatives
    #[arg(short, long, value_name = "KIND=VALUE")]
    filter: Vec<Filter>,
    /// How to print them: table, json (an array of records), or a template with {{.ID}}, {{.Name}}, {{.State}}, {{.ExitCode}},
    /// {{.Created}}, {{.Took}}, {{.Restarts}}, {{.Image}} and {{.Command}}
    #[arg(long, value_name = "table|json|TEMPLATE", default_value = "table", value_parser = listing)]
    format: Listing,
}

/// Fields of a template.
const FIELDS: &[&str] = &[
    "ID",
    "Name",
    "Names",
    "State",
    "Status",
    "ExitCode",
    "Created",
    "CreatedAt",
    "Took",
    "Restarts",
    "Image",
    "Command",
];

fn listing(text: &str) -> Result<Listing> {
    Listing::new(text, FIELDS)
}

/// What `--filter` lets through.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Filter {
    Status(String),
    Name(String),
    Image(String),
    Exited(u8),
}

impl FromStr for Filter {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text.split_once('=') {
            Some(("status", value @ ("running" | "exited" | "failed" | "lost"))) => Filter::Status(value.into()),
            Some(("name", value)) => Filter::Name(value.into()),
            Some(("image" | "ancestor", value)) => Filter::Image(value.into()),
            Some(("exited", value)) => Filter::Exited(value.parse()?),
            _ => bail!("write status=running|exited|failed|lost, name=TEXT, image=TEXT or exited=CODE"),
        })
    }
}

impl Filter {
    fn lets(&self, record: &Brief) -> bool {
        match self {
            Filter::Status(status) => record.state().word() == status,
            Filter::Name(text) => record.name.as_ref().is_some_and(|name| name.as_str().contains(text)),
            Filter::Image(text) => record.image.contains(text),
            Filter::Exited(code) => record.state().exit_code() == Some(*code),
        }
    }
}

/// Whether each kind of filter that is given lets `record` through.
fn passes(filters: &[Filter], record: &Brief) -> bool {
    filters.iter().all(|filter| {
        let kind = std::mem::discriminant(filter);
        filters.iter().any(|other| std::mem::discriminant(other) == kind && other.lets(record))
    })
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let jobs = Directories::find()?.swept_jobs();
    let wants_ended = args.filter.iter().any(|filter| match filter {
        Filter::Status(status) => status != "running",
        Filter::Exited(_) => true,
        Filter::Name(_) | Filter::Image(_) => false,
    });
    let (mut records, troubles) = if args.all || wants_ended { jobs.list_brief()? } else { jobs.list_brief_running()? };
    for trouble in troubles {
        say(&format!("{:#}", anyhow::Error::from(trouble)));
    }
    records.retain(|record| passes(&args.filter, record));
    if let (false, Listing::Json) = (args.quiet, &args.format) {
        return print_json(&whole(&jobs, &records)?);
    }
    let mut out = BufWriter::with_capacity(OUTPUT, std::io::stdout().lock());
    match (args.quiet, &args.format) {
        (true, _) => records.iter().try_for_each(|record| writeln!(out, "{}", record.id))?,
        (false, Listing::Template(template)) => {
            for record in &records {
                writeln!(out, "{}", template.fill(|field| value(field, record)))?;
            }
        }
        (false, _) => table(&mut out, &records)?,
    }
    Ok(out.flush()?)
}

/// The whole records, but of jobs that were removed meanwhile.
fn whole(jobs: &Jobs, records: &[Brief]) -> Result<Vec<Record>> {
    let mut whole = Vec::with_capacity(records.len());
    for brief in records {
        match jobs.read(&brief.id) {
            Ok(record) => whole.push(record),
            Err(JobStoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            Err(trouble) => say(&format!("{:#}", anyhow::Error::from(trouble))),
        }
    }
    Ok(whole)
}

/// A field of a template.
fn value(field: &str, record: &Brief) -> Option<String> {
    let [id, _, state, created, took, _, command] = row(record);
    Some(match field {
        "ID" => id,
        "Name" | "Names" => record.name.as_ref().map(ToString::to_string).unwrap_or_default(),
        "State" | "Status" => state,
        "ExitCode" => record.state().exit_code().map(|code| code.to_string()).unwrap_or_default(),
        "Created" => created,
        "Restarts" => record.restarts.to_string(),
        "CreatedAt" => printable(&record.created),
        "Took" => took,
        "Image" => printable(&record.image),
        "Command" => command,
        _ => return None,
    })
}

/// What the columns of all rows hold, in one piece of memory: of thousands of rows each cell alone would be one.
#[derive(Default)]
struct Rows {
    text: String,
    /// Where each cell ends.
    ends: Vec<[usize; 7]>,
    /// Characters of the widest cell of each column.
    widths: [usize; 7],
}

impl Rows {
    fn push(&mut self, cells: [String; 7]) {
        let mut ends = [0; 7];
        for ((cell, end), width) in cells.iter().zip(&mut ends).zip(&mut self.widths) {
            self.text.push_str(cell);
            *end = self.text.len();
            *width = (*width).max(cell.chars().count());
        }
        self.ends.push(ends);
    }

    fn cells(&self) -> impl Iterator<Item = [&str; 7]> {
        let mut begin = 0;
        self.ends.iter().map(move |ends| {
            ends.map(|end| {
                let cell = self.text.get(begin..end).unwrap_or_default();
                begin = end;
                cell
            })
        })
    }
}

/// Columns two apart. What is wide on a terminal stands last, where nothing has to line up behind it.
fn table(out: &mut impl Write, records: &[Brief]) -> Result<()> {
    let mut rows = Rows::default();
    rows.push(HEADER.map(str::to_owned));
    records.iter().for_each(|record| rows.push(row(record)));
    // On a terminal the command gets what the other columns leave of a line.
    let taken: usize = rows.widths[..6].iter().map(|width| width + 2).sum::<usize>() + 2;
    let width = tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
    let most = width.map_or(usize::MAX, |width| width.saturating_sub(taken).max(LEAST_OF_A_COMMAND));
    let mut line = String::new();
    for cells in rows.cells() {
        line.clear();
        for (cell, width) in cells.iter().zip(rows.widths).take(6) {
            line.push(' ');
            line.push_str(cell);
            let missing = (width + 1).saturating_sub(cell.chars().count());
            line.extend(std::iter::repeat_n(' ', missing));
        }
        line.push(' ');
        if most == usize::MAX {
            line.push_str(cells[6])
        } else {
            line.push_str(&shortened(cells[6], most))
        }
        line.push('\n');
        out.write_all(line.as_bytes())?;
    }
    Ok(())
}

fn row(record: &Brief) -> [String; 7] {
    [
        record.id.to_string(),
        record.name.as_ref().map_or_else(|| "-".into(), ToString::to_string),
        state(record),
        age(&record.created),
        record.duration_ms.map_or_else(|| "-".into(), |took| short(Duration::from_millis(took))),
        shortened(&printable(&record.image), LONGEST_IMAGE),
        printable(&record.command.join(" ")),
    ]
}

/// Where it stands; that a job is paused is the kernel's to say.
fn state(record: &Brief) -> String {
    let state = record.state();
    let freeze =
        record.cgroup.as_ref().filter(|_| state == State::Running).map(|path| Path::new(path).join("cgroup.freeze"));
    let is_paused = freeze.is_some_and(|freeze| fs::read_to_string(freeze).is_ok_and(|text| text.trim() == "1"));
    if is_paused { "paused".into() } else { state.summary() }
}

/// Bytes that are written at once.
const OUTPUT: usize = 64 << 10;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_words_that_are_known() {
        assert_eq!("status=lost".parse::<Filter>().unwrap(), Filter::Status("lost".into()));
        assert_eq!("exited=137".parse::<Filter>().unwrap(), Filter::Exited(137));
        for bad in ["", "status", "status=paused", "exited=1000", "label=x", "=x"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
    }
}
