//! What a payload can try that a shell cannot: one word an attack, one line an outcome.
//!
//! `attack NAME[=ARGUMENT]…` prints `ok` when the attack worked, else the errno's name. Several words are tried in a
//! process each, so that neither a signal nor a success spoils the next, and each line is then `WORD<tab>OUTCOME`.
//!
//! Invariant: it is no judge. What it tries is [`agentd_attacks`], as in `agentd doctor --attack`; whether an outcome is good
//! is the tests' to say.

#![expect(clippy::print_stdout, reason = "the outcome is this program's output")]

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

use agentd_attacks::{attempt, errno_name};
use anyhow::{Context, Result, bail};

fn main() -> Result<ExitCode> {
    let mut words = std::env::args();
    let program = words.next().context("no name")?;
    let words: Vec<String> = words.collect();
    if let [word] = &words[..] {
        println!("{}", outcome(&attempt(word)?));
        return Ok(ExitCode::SUCCESS);
    }
    for word in &words {
        let ran = Command::new(&program).arg(word).output()?;
        let outcome = match ran.status.signal() {
            Some(signal) => format!("killed by {signal}"),
            None if ran.status.success() => String::from_utf8_lossy(&ran.stdout).trim_end().to_owned(),
            None => bail!("{word}: {}", String::from_utf8_lossy(&ran.stderr)),
        };
        println!("{word}\t{outcome}");
    }
    Ok(ExitCode::SUCCESS)
}

fn outcome(result: &io::Result<()>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.raw_os_error().map_or_else(|| error.to_string(), errno_name),
    }
}
