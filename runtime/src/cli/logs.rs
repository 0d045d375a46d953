//! `agentd logs`.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use anyhow::{Context, Result};

use super::environment::Directories;

/// Print what a job wrote: its standard output on standard output, its standard error on standard error
///
/// On a terminal, escape sequences are left out: the output of an agent must not move your cursor or set your title.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name, id or beginning of an id
    job: String,
    /// Print escape sequences as they are, also on a terminal
    #[arg(long)]
    raw: bool,
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let jobs = Directories::find()?.jobs();
    let directory = jobs.directory_of(&jobs.find(&args.job)?);
    let strip = |is_terminal: bool| is_terminal && !args.raw;
    copy(&directory.join("stdout.log"), io::stdout().lock(), strip(io::stdout().is_terminal()))?;
    copy(&directory.join("stderr.log"), io::stderr().lock(), strip(io::stderr().is_terminal()))
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
