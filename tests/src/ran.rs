//! Runs a command to its end and keeps what it said.
//!
//! Invariant: no command runs longer than [`LIMIT`]: a hanging box fails its own test, not the whole run.

use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;
use std::{fmt, io, os::unix::process::ExitStatusExt};

use crate::Started;

/// Longer than any sound command on a busy machine (an installation of Debian packages), shorter than patience.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);

/// A command that ended.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard output as it was.
    pub stdout_bytes: Vec<u8>,
    /// Standard error; bytes that are not UTF-8 are replaced.
    pub stderr: String,
    /// Standard error as it was.
    pub stderr_bytes: Vec<u8>,
    /// Wall time.
    pub took: Duration,
}

impl Ran {
    pub(crate) fn new(status: ExitStatus, stdout_bytes: Vec<u8>, stderr_bytes: Vec<u8>, took: Duration) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&stdout_bytes), text(&stderr_bytes));
        Self { status, stdout, stdout_bytes, stderr, stderr_bytes, took }
    }

    /// The exit code; a death by signal N is -N.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| -self.status.signal().unwrap_or(0))
    }

    /// Fails the test unless the command exited with `code`.
    #[track_caller]
    #[must_use]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(self.code() == code, "expected exit code {code}, got {}\n{self}", self.code());
        self
    }

    /// Fails the test unless the command succeeded.
    #[track_caller]
    #[must_use]
    pub fn expect_success(self) -> Self {
        self.expect_code(0)
    }

    /// Fails the test unless the command succeeded and said nothing on standard error.
    #[track_caller]
    #[must_use]
    pub fn expect_silent_success(self) -> Self {
        assert!(self.stderr.is_empty(), "expected nothing on stderr\n{self}");
        self.expect_code(0)
    }

    /// Fails the test unless stderr is one line that starts with `agentd:` and contains all of `words`.
    #[track_caller]
    pub fn expect_one_error_line(&self, words: &[&str]) {
        let lines: Vec<_> = self.stderr.lines().collect();
        let found =
            matches!(lines[..], [line] if line.starts_with("agentd:") && words.iter().all(|w| line.contains(w)));
        assert!(found, "expected one line `agentd: …` with {words:?}\n{self}");
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} after {:?}\n--- stdout\n{}\n--- stderr\n{}", self.status, self.took, self.stdout, self.stderr)
    }
}

/// Runs `command` to its end, with the stdin it was given.
#[track_caller]
pub fn run(command: &mut Command) -> Ran {
    Started::new(command).finish()
}

/// Runs `command` to its end with `input` on stdin.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Ran {
    let mut started = Started::new(command.stdin(Stdio::piped()));
    if let Some(mut stdin) = started.stdin() {
        let input = input.to_owned();
        // A payload that does not read its input makes this fail; that is its right.
        std::thread::spawn(move || io::Write::write_all(&mut stdin, &input).ok());
    }
    started.finish()
}
