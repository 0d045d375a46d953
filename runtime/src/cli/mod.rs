//! The command line: a file a verb. The only place that reads words and the environment.
//!
//! Invariant: standard output carries results only; what agentd itself has to say goes to standard error as `agentd: …`.
#![expect(clippy::print_stderr, reason = "this is where the program talks to its user")]

mod commit;
mod doctor;
mod environment;
mod image;
mod images;
mod inspect;
mod interrupt;
mod logs;
mod profile;
mod progress;
mod prune;
mod ps;
mod pull;
mod rm;
mod rmi;
mod run;
mod run_network;
mod wanted;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

/// Runs coding agents in a locked box, as your plain user: no daemon, no root, no setuid helper.
///
/// `agentd run -- CMD` boxes a command on this machine's own software, read-only and without your files;
/// `--image oci:DIR` gives it another root, `--workspace DIR` the one directory it may write.
#[derive(Debug, Parser)]
#[command(name = "agentd", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    /// Say what agentd does, on standard error
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<run::Args>),
    Ps(ps::Args),
    Inspect(inspect::Args),
    Logs(logs::Args),
    Rm(rm::Args),
    Commit(commit::Args),
    Pull(pull::Args),
    Images(images::Args),
    Rmi(rmi::Args),
    Prune(prune::Args),
    Image(image::Args),
    Profile(profile::Args),
    Doctor(doctor::Args),
}

/// How a list or a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs: the same fields in every version.
    Json,
}

/// Exit code for agentd's own failures, as docker's and podman's.
const FAILED: u8 = 125;

/// Exit code for an image that is not there, or is in use.
const NOT_FOUND: u8 = 1;

/// The program: parses, runs the verb, turns what it says into an exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not mistakes. A terminal that is gone cannot be told anything.
            error.print().unwrap_or_default();
            return ExitCode::from(if error.use_stderr() { FAILED } else { 0 });
        }
    };
    if cli.verbose {
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::DEBUG).init();
    }
    let done = match cli.verb {
        Verb::Run(args) => run::run(*args),
        Verb::Ps(args) => ps::run(&args).map(|()| 0),
        Verb::Inspect(args) => inspect::run(&args).map(|()| 0),
        Verb::Logs(args) => logs::run(&args).map(|()| 0),
        Verb::Rm(args) => rm::run(&args).map(|()| 0),
        Verb::Commit(args) => commit::run(args),
        Verb::Pull(args) => pull::run(args),
        Verb::Images(args) => images::run(&args).map(|()| 0),
        Verb::Rmi(args) => rmi::run(&args),
        Verb::Prune(args) => prune::run(&args).map(|()| 0),
        Verb::Image(args) => image::run(&args),
        Verb::Profile(args) => profile::run(&args),
        Verb::Doctor(args) => doctor::run(&args),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // A reader that went away (`agentd ps | head`) is no failure worth words.
            let is_closed = error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe);
            if !is_closed {
                say(&format!("{error:#}"));
            }
            ExitCode::from(FAILED)
        }
    }
}

/// Says something of agentd's own on standard error; what it quotes may come from anywhere. A terminal that takes no
/// output for a second is not waited for: the job is over, and so is this program.
fn say(text: &str) {
    let mut stderr = [PollFd::from_borrowed_fd(rustix::stdio::stderr(), PollFlags::OUT)];
    if poll(&mut stderr, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).is_ok_and(|ready| ready == 0) {
        return;
    }
    eprintln!("agentd: {}", printable(text));
}

/// Writes a document to standard output. JSON escapes C0 controls; C1 ones, which some terminals obey, are escaped here.
fn print_json(document: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(document)?;
    let mut escaped = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    escaped.push('\n');
    std::io::stdout().lock().write_all(escaped.as_bytes())?;
    Ok(())
}

/// Text from a job, safe for a terminal: control characters are shown, not sent.
fn printable(text: &str) -> String {
    // Directional controls are none to Unicode, and would let a name read as another.
    let is_directional =
        |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_directional(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}
