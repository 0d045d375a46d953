//! `agentd logs`.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, SystemTime};

use agentd_egress::Request;
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use serde::Serialize;

use super::environment::Directories;
use super::{Format, print_json, printable, profile, say};
use crate::job::events::{Denial, EVENTS, Events};
use crate::job::id::JobId;
use crate::job::logs::{Part, Reader};
use crate::job::record::State;
use crate::job::spec;
use crate::job::store::Jobs;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name, id or beginning of an id
    job: String,
    /// Go on until the job ends
    #[arg(short, long)]
    follow: bool,
    /// Only what came since: 10m (ago), or 2026-01-31T12:00:00Z; exact to a second
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<SystemTime>,
    /// Only the last lines of each stream
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
    /// Begin each line with the time at which it came, exact to a second
    #[arg(short, long)]
    timestamps: bool,
    /// Print escape sequences as they are, also on a terminal
    #[arg(long)]
    raw: bool,
    /// Print instead which calls policy refused, and why
    #[arg(long, conflicts_with_all = ["raw", "follow", "since", "tail", "timestamps"])]
    denials: bool,
    /// Print instead what it asked of the network (with --allow), and what came of it
    #[arg(long, conflicts_with_all = ["raw", "denials", "follow", "since", "tail", "timestamps"])]
    net: bool,
    /// How --denials and --net print
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(super) fn since(text: &str) -> Result<SystemTime> {
    if let Ok(ago) = spec::parse_duration(text) {
        return SystemTime::now().checked_sub(ago).context("that is before any job");
    }
    match humantime::parse_rfc3339_weak(text) {
        Ok(time) => Ok(time),
        Err(_) => bail!("write 10m, 2h, or 2026-01-31T12:00:00Z"),
    }
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let jobs = Directories::find()?.jobs();
    let id = jobs.find(&args.job)?;
    let directory = jobs.directory_of(&id);
    if args.denials {
        let denials = Events::at(directory.join(EVENTS)).denials();
        let denials = denials.with_context(|| format!("cannot read the denials of {}", args.job))?;
        let denials: Vec<_> = denials.iter().map(Told::new).collect();
        return if args.format == Format::Json { print_json(&denials) } else { print_denials(&denials) };
    }
    if args.net {
        let requests = Events::at(directory.join(EVENTS)).requests();
        let requests = requests.with_context(|| format!("cannot read the network requests of {}", args.job))?;
        return if args.format == Format::Json { print_json(&requests) } else { print_requests(&requests) };
    }
    if args.format == Format::Json {
        bail!("--format is for --denials and --net; what a job wrote is printed as it is");
    }
    let strip = |is_terminal: bool| is_terminal && !args.raw;
    let mut streams = [
        Shown::new(Reader::new(&directory, "stdout"), "output", io::stdout(), strip(io::stdout().is_terminal())),
        Shown::new(Reader::new(&directory, "stderr"), "error output", io::stderr(), strip(io::stderr().is_terminal())),
    ];
    for stream in &mut streams {
        stream.line_begins = args.timestamps.then_some(true);
    }
    for stream in &mut streams {
        if let Some(since) = args.since {
            stream.reader.skip_to(since)?;
        }
        if let Some(lines) = args.tail {
            stream.reader.skip_to_last(lines)?;
        }
    }
    if args.follow {
        follow(&jobs, &id, &mut streams)?;
    } else {
        streams.iter_mut().try_for_each(Shown::pour)?;
    }
    tell_of_the_end(&jobs, &id, &streams)
}

/// Says what is missing behind the last byte that is kept of a job that has ended: no later part of a stream shows that.
fn tell_of_the_end(jobs: &Jobs, id: &JobId, streams: &[Shown]) -> Result<()> {
    // A record that cannot be read keeps nobody from the output.
    let Ok(record) = jobs.read(id) else { return Ok(()) };
    if let State::Lost { .. } = record.state {
        say(&format!("job {id} is lost: the end of its output may be missing"));
    }
    let mut before = 0_u64;
    for stream in streams {
        before = before.saturating_add(stream.reader.gaps()?);
    }
    match record.output_dropped.saturating_sub(before) {
        0 => {}
        missing => say(&format!("the last {missing} bytes of its output are not kept: the disk took no more")),
    }
    Ok(())
}

/// Prints what comes until the job has ended.
fn follow(jobs: &Jobs, id: &JobId, streams: &mut [Shown]) -> Result<()> {
    // A file system that does not say what changes (NFS, from another machine) is looked at once a second.
    const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    let changes = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, jobs.directory_of(id), changes)?;
    loop {
        // Before what there is to read: of a job that has ended all of it is there.
        let runs = jobs.runs(id)?;
        streams.iter_mut().try_for_each(Shown::pour)?;
        if !runs {
            return Ok(());
        }
        let mut fds = [PollFd::new(&watch, PollFlags::IN)];
        if poll(&mut fds, Some(&LOOK))? > 0 {
            // What exactly changed is seen by looking.
            rustix::io::read(&watch, &mut [0; 4096])?;
        }
    }
}

/// A stream and where it is printed.
struct Shown {
    reader: Reader,
    name: &'static str,
    out: Box<dyn Write>,
    /// With times before the lines: whether the next byte begins one.
    line_begins: Option<bool>,
}

impl Shown {
    fn new(reader: Reader, name: &'static str, out: impl Write + 'static, strip: bool) -> Self {
        let out: Box<dyn Write> = Box::new(out);
        let out = if strip { Box::new(anstream::StripStream::new(out)) } else { out };
        Shown { reader, name, out, line_begins: None }
    }

    fn pour(&mut self) -> Result<()> {
        loop {
            match self.reader.part()? {
                Part::Bytes(bytes) => match self.line_begins {
                    None => self.out.write_all(&bytes)?,
                    Some(begins) => self.write_with_times(&bytes, begins)?,
                },
                Part::Missing(bytes) => {
                    self.out.flush()?;
                    say(&format!("{bytes} bytes of {} are not kept here (--max-output, or a full disk)", self.name));
                }
                Part::End => return Ok(self.out.flush()?),
            }
        }
    }
}

impl Shown {
    fn write_with_times(&mut self, bytes: &[u8], mut begins: bool) -> Result<()> {
        // After the bytes were read: their times were noted before them.
        let times = self.reader.times()?;
        let mut at = self.reader.at() - bytes.len() as u64;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if begins {
                write!(self.out, "{} ", humantime::format_rfc3339_seconds(printed(times.of(at))))?;
            }
            self.out.write_all(line)?;
            begins = line.ends_with(b"\n");
            at += line.len() as u64;
        }
        self.line_begins = Some(begins);
        Ok(())
    }
}

/// A time that can be written: a damaged list of moments may hold any.
fn printed(time: SystemTime) -> SystemTime {
    /// 9999-12-31T23:59:59Z.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    time.min(SystemTime::UNIX_EPOCH + LAST)
}

/// A denial, and the flags of `agentd run` that would allow the call, where some are known to.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    denial: &'a Denial,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow: Option<String>,
}

impl<'a> Told<'a> {
    fn new(denial: &'a Denial) -> Self {
        Told { denial, allow: profile::allowing(denial).map(|name| format!("--profile {name}")) }
    }
}

fn print_denials(denials: &[Told<'_>]) -> Result<()> {
    let mut out = io::stdout().lock();
    for Told { denial, allow } in denials {
        let program = printable(&denial.untrusted_program);
        let call = denial.call();
        let (time, call, answer) = (printable(&denial.time), printable(&call), printable(&denial.answer));
        writeln!(out, "{time}  {program}  {call}  {answer}  {}x", denial.count)?;
        writeln!(out, "    {}", printable(&denial.reason))?;
        let (call, profile) = (printable(&denial.syscall), printable(&denial.profile));
        match allow {
            Some(flags) => writeln!(out, "    what would allow it: agentd run {flags}")?,
            None => writeln!(out, "    what would allow it: agentd profile explain {call} --profile {profile}")?,
        }
    }
    Ok(())
}

fn print_requests(requests: &[Request]) -> Result<()> {
    let mut out = io::stdout().lock();
    for request in requests {
        let port = request.port.map(|port| format!(":{port}")).unwrap_or_default();
        let (time, host) = (printable(&request.time), printable(&request.untrusted_host));
        let by = match (&request.untrusted_program, request.pid) {
            (Some(program), Some(pid)) => format!("  by {} ({pid})", printable(program)),
            _ => String::new(),
        };
        let Request { verdict, up, down, duration_ms, count, .. } = request;
        match &request.address {
            Some(address) => {
                let address = printable(address);
                writeln!(
                    out,
                    "{time}  {verdict}  {host}{port}  {address}  {up} up  {down} down  {duration_ms} ms{by}"
                )?;
            }
            None => writeln!(out, "{time}  {verdict}  {host}{port}  {count}x{by}")?,
        }
        if let Some(asked) = &request.untrusted_request {
            writeln!(out, "    {}", printable(asked))?;
        }
        if let Some(why) = &request.why {
            writeln!(out, "    {}", printable(why))?;
        }
        if let Some(allow) = &request.allow {
            writeln!(out, "    what would allow it: agentd run {}", printable(allow))?;
        }
    }
    Ok(())
}
