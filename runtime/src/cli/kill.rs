//! `agentd kill`.

use std::io::Write;

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use super::environment::Directories;
use super::printable;
use super::which::{Which, at_once, each};
use crate::control::{Caller, Request};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// The signal, by name or number
    #[arg(short, long, default_value = "KILL", value_parser = signal)]
    signal: i32,
}

fn signal(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        if (1..=64).contains(&number) {
            return Ok(number);
        }
        bail!("signals are numbered from 1 to 64");
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    Ok(name.parse::<Signal>()? as i32)
}

/// Runs the verb; gives the exit code.
pub(super) fn run(args: &Args) -> Result<u8> {
    let jobs = Directories::find()?.swept_jobs();
    let wanted = args.which.of(&jobs)?;
    let request = Request::Signal { number: args.signal };
    let told = at_once(&wanted, |(_, id)| Caller::reach(&jobs, id)?.tell(request.clone()));
    each(wanted.iter().zip(told), |((text, id), told)| {
        told?;
        if args.signal == libc::SIGKILL {
            jobs.wait(id)?;
        }
        Ok(writeln!(std::io::stdout(), "{}", printable(text))?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("KILL", 9), ("sigterm", 15), ("SIGUSR1", 10), ("1", 1), ("64", 64), ("winch", 28)] {
            assert_eq!(signal(text).unwrap(), number, "{text}");
        }
        for bad in ["", "0", "65", "-9", "SIG", "NOPE"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }
}
