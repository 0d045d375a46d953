//! `agentd ps`.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use rustix::termios::tcgetwinsize;
use serde::Serialize;

use super::environment::Directories;
use super::template::Listing;
use super::{print_json, printable, say};
use crate::job::brief::Brief;
use crate::job::id::JobName;
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
    /// Only those with status=running|paused|exited|failed|lost, name=TEXT, image=TEXT or exited=CODE; several of one kind are
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
            Some(("status", value @ ("running" | PAUSED | "exited" | "failed" | "lost"))) => {
                Filter::Status(value.into())
            }
            Some(("name", value)) => Filter::Name(value.into()),
            Some(("image" | "ancestor", value)) => Filter::Image(value.into()),
            Some(("exited", value)) => Filter::Exited(value.parse()?),
            _ => bail!("write status=running|paused|exited|failed|lost, name=TEXT, image=TEXT or exited=CODE"),
        })
    }
}

impl Filter {
    fn lets(&self, record: &Brief) -> bool {
        match self {
            Filter::Status(status) => standing(&record.state(), record.cgroup.as_deref()) == status,
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
        Filter::Status(status) => status != "running" && status != PAUSED,
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

/// A job of the list, as programs get it.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    record: Record,
    paused: bool,
}

/// The whole records, but of jobs that were removed meanwhile.
fn whole(jobs: &Jobs, records: &[Brief]) -> Result<Vec<Row>> {
    let mut whole = Vec::with_capacity(records.len());
    for brief in records {
        match jobs.read(&brief.id) {
            Ok(record) => {
                let paused = standing(&record.state, record.cgroup.as_deref()) == PAUSED;
                whole.push(Row { record, paused });
            }
            Err(JobStoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            Err(trouble) => say(&format!("{:#}", anyhow::Error::from(trouble))),
        }
    }
    Ok(whole)
}

/// A field of a template.
fn value(field: &str, record: &Brief) -> Option<String> {
    let of = |column| {
        let mut text = String::new();
        write_cell(&mut text, column, record);
        text
    };
    Some(match field {
        "ID" => of(Column::Job),
        "Name" | "Names" => record.name.as_ref().map(ToString::to_string).unwrap_or_default(),
        "State" | "Status" => of(Column::State),
        "ExitCode" => record.state().exit_code().map(|code| code.to_string()).unwrap_or_default(),
        "Created" => of(Column::Created),
        "CreatedAt" => printable(&record.created).into_owned(),
        "Took" => of(Column::Took),
        "Restarts" => record.restarts.to_string(),
        "Image" => printable(&record.image).into_owned(),
        "Command" => of(Column::Command),
        _ => return None,
    })
}

#[derive(Clone, Copy)]
enum Column {
    Job,
    Name,
    State,
    Created,
    Took,
    Image,
    Command,
}

/// With their headings.
const COLUMNS: [(Column, &str); 7] = [
    (Column::Job, "JOB"),
    (Column::Name, "NAME"),
    (Column::State, "STATE"),
    (Column::Created, "CREATED"),
    (Column::Took, "TOOK"),
    (Column::Image, "IMAGE"),
    (Column::Command, "COMMAND"),
];

fn write_cell(to: &mut String, column: Column, record: &Brief) {
    match column {
        Column::Job => to.push_str(record.id.as_str()),
        Column::Name => to.push_str(record.name.as_ref().map_or("-", JobName::as_str)),
        Column::State => to.push_str(&state(record)),
        Column::Created => write_age(to, &record.created),
        Column::Took => match record.duration_ms {
            Some(took) => write_short(to, Duration::from_millis(took)),
            None => to.push('-'),
        },
        Column::Image => to.push_str(&shortened(printable(&record.image), LONGEST_IMAGE)),
        Column::Command => match &record.command[..] {
            [program] => to.push_str(&printable(program)),
            words => to.push_str(&printable(&words.join(" "))),
        },
    }
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
    fn push(&mut self, write: impl Fn(&mut String, (Column, &str))) {
        let mut ends = [0; 7];
        for ((column, end), width) in COLUMNS.into_iter().zip(&mut ends).zip(&mut self.widths) {
            let begin = self.text.len();
            write(&mut self.text, column);
            *end = self.text.len();
            *width = (*width).max(self.text.get(begin..).unwrap_or_default().chars().count());
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
    rows.push(|to, (_, heading)| to.push_str(heading));
    for record in records {
        rows.push(|to, (column, _)| write_cell(to, column, record));
    }
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
            line.push_str(&shortened(cells[6].into(), most))
        }
        line.push('\n');
        out.write_all(line.as_bytes())?;
    }
    Ok(())
}

/// Where a job stands, in a word; that one that runs is paused is the kernel's to say, and in no record.
pub(super) fn standing(state: &State, cgroup: Option<&str>) -> &'static str {
    let freeze = cgroup.filter(|_| *state == State::Running).map(|path| Path::new(path).join("cgroup.freeze"));
    let is_paused = freeze.is_some_and(|freeze| fs::read_to_string(freeze).is_ok_and(|text| text.trim() == "1"));
    if is_paused { PAUSED } else { state.word() }
}

/// The same with what matters of the rest.
fn state(record: &Brief) -> String {
    match standing(&record.state(), record.cgroup.as_deref()) {
        PAUSED => PAUSED.into(),
        _ => record.state().summary(),
    }
}

const PAUSED: &str = "paused";

/// Bytes that are written at once.
const OUTPUT: usize = 64 << 10;

const LEAST_OF_A_COMMAND: usize = 12;
const LONGEST_IMAGE: usize = 16;

/// The first `most` characters, the last of them an ellipsis where there are more.
pub(super) fn shortened(text: Cow<'_, str>, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
        None => text,
    }
}

/// How long ago that was; printable, whatever it says.
pub(super) fn age(created: &str) -> String {
    let mut text = String::new();
    write_age(&mut text, created);
    text
}

fn write_age(to: &mut String, created: &str) {
    let since = humantime::parse_rfc3339(created).ok().and_then(|then| SystemTime::now().duration_since(then).ok());
    match since {
        Some(since) => {
            write_short(to, since);
            to.push_str(" ago");
        }
        None => to.push_str(&printable(created)),
    }
}

/// A duration in its largest unit.
fn write_short(to: &mut String, duration: Duration) {
    let seconds = duration.as_secs();
    let (number, unit) = match seconds {
        0 => (duration.as_millis().try_into().unwrap_or_default(), "ms"),
        1..=119 => (seconds, "s"),
        120..=7199 => (seconds / 60, "m"),
        7200..=172_799 => (seconds / 3600, "h"),
        _ => (seconds / 86400, "d"),
    };
    write!(to, "{number}{unit}").unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_words_that_are_known() {
        assert_eq!("status=lost".parse::<Filter>().unwrap(), Filter::Status("lost".into()));
        assert_eq!("exited=137".parse::<Filter>().unwrap(), Filter::Exited(137));
        for bad in ["", "status", "status=stopped", "exited=1000", "label=x", "=x"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
    }
}
