//! What a payload can try that a shell cannot: one word an attack, one line an outcome.
//!
//! `attack NAME[=ARGUMENT]…` prints `ok` when the attack worked, else the errno's name. Several words are tried in a
//! process each, so that neither a signal nor a success spoils the next, and each line is then `WORD<tab>OUTCOME`.
//!
//! Invariant: an attack that works does no harm to the machine it works on: arguments are such that a call that
//! administers the host (reboot, modules, clock) is refused for another reason when it is not refused for its caller.

#![expect(clippy::print_stdout, reason = "the outcome is this program's output")]

mod files;
mod kernel;
mod raw;
mod sockets;

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

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

/// Tries one attack; an error of this function itself is a mistake in the word.
fn attempt(word: &str) -> Result<io::Result<()>> {
    let (name, argument) = word.split_once('=').unwrap_or((word, ""));
    for room in [files::attempt, sockets::attempt, kernel::attempt] {
        if let Some(result) = room(name, argument)? {
            return Ok(result);
        }
    }
    bail!("no such attack: {word}")
}

fn outcome(result: &io::Result<()>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.raw_os_error().map_or_else(|| error.to_string(), errno),
    }
}

/// The names of what these attacks run into; other numbers stay numbers.
fn errno(number: i32) -> String {
    let name = match number {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::ESRCH => "ESRCH",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EXDEV => "EXDEV",
        libc::ENODEV => "ENODEV",
        libc::EINVAL => "EINVAL",
        libc::ENOTTY => "ENOTTY",
        libc::ETXTBSY => "ETXTBSY",
        libc::ENOSPC => "ENOSPC",
        libc::EROFS => "EROFS",
        libc::ELOOP => "ELOOP",
        libc::ENOSYS => "ENOSYS",
        libc::EPROTONOSUPPORT => "EPROTONOSUPPORT",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EAFNOSUPPORT => "EAFNOSUPPORT",
        libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::ETIMEDOUT => "ETIMEDOUT",
        other => return format!("errno {other}"),
    };
    name.to_owned()
}
