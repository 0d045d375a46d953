//! `agentd logs`.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use agentd_egress::Request;
use anyhow::{Context, Result, bail};

use super::environment::Directories;
use super::{Format, print_json, printable};
use crate::job::events::{Denial, EVENTS, Events};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name, id or beginning of an id
    job: String,
    /// Print escape sequences as they are, also on a terminal
    #[arg(long)]
    raw: bool,
    /// Print instead which calls policy refused, and why
    #[arg(long, conflicts_with = "raw")]
    denials: bool,
    /// Print instead what it asked of the network (with --allow), and what came of it
    #[arg(long, conflicts_with_all = ["raw", "denials"])]
    net: bool,
    /// How --denials and --net print
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let jobs = Directories::find()?.jobs();
    let directory = jobs.directory_of(&jobs.find(&args.job)?);
    if args.denials {
        let denials = Events::at(directory.join(EVENTS)).denials();
        let denials = denials.with_context(|| format!("cannot read the denials of {}", args.job))?;
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
    copy(&directory.join("stdout.log"), io::stdout().lock(), strip(io::stdout().is_terminal()))?;
    copy(&directory.join("stderr.log"), io::stderr().lock(), strip(io::stderr().is_terminal()))
}

fn print_denials(denials: &[Denial]) -> Result<()> {
    let mut out = io::stdout().lock();
    for denial in denials {
        let program = printable(&denial.untrusted_program);
        let (time, call, answer) = (printable(&denial.time), printable(&denial.call()), printable(&denial.answer));
        writeln!(out, "{time}  {program}  {call}  {answer}  {}x", denial.count)?;
        writeln!(out, "    {}", printable(&denial.reason))?;
        let (call, profile) = (printable(&denial.syscall), printable(&denial.profile));
        writeln!(out, "    what would allow it: agentd profile explain {call} --profile {profile}")?;
    }
    Ok(())
}

fn print_requests(requests: &[Request]) -> Result<()> {
    let mut out = io::stdout().lock();
    for request in requests {
        let port = request.port.map(|port| format!(":{port}")).unwrap_or_default();
        let (time, host) = (printable(&request.time), printable(&request.untrusted_host));
        let Request { verdict, up, down, duration_ms, count, .. } = request;
        match &request.address {
            Some(address) => {
                let address = printable(address);
                writeln!(out, "{time}  {verdict}  {host}{port}  {address}  {up} up  {down} down  {duration_ms} ms")?;
            }
            None => writeln!(out, "{time}  {verdict}  {host}{port}  {count}x")?,
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

fn copy(log: &Path, out: impl Write + 'static, strip: bool) -> Result<()> {
    let mut file = match File::open(log) {
        Ok(file) => file,
        // Made with the first byte: there was none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", log.display())),
    };
    if strip {
        pour(&mut file, anstream::StripStream::new(Box::new(out) as Box<dyn Write>))
    } else {
        pour(&mut file, out)
    }
}

fn pour(file: &mut impl Read, mut out: impl Write) -> Result<()> {
    io::copy(file, &mut out)?;
    out.flush()?;
    Ok(())
}
