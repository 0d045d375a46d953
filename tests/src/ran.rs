//! Runs a command to its end and keeps what it said.
//!
//! Invariant: no command runs longer than [`LIMIT`]: a hanging box fails its own test, not the whole run.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::wait_until;

/// Longer than any sound test, shorter than patience.
const LIMIT: Duration = Duration::from_secs(120);

/// A command that ended.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, the same.
    pub stderr: String,
    /// Wall time.
    pub took: Duration,
}

impl Ran {
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

    /// Fails the test unless stderr is one line that starts with `agentd:` and contains all of `words`.
    #[track_caller]
    pub fn expect_one_error_line(&self, words: &[&str]) {
        let lines: Vec<_> = self.stderr.lines().collect();
        let found =
            matches!(lines[..], [line] if line.starts_with("agentd:") && words.iter().all(|w| line.contains(w)));
        assert!(found, "expected one line `agentd: …` with {words:?}\n{self}");
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} after {:?}\n--- stdout\n{}\n--- stderr\n{}", self.status, self.took, self.stdout, self.stderr)
    }
}

/// Runs `command` to its end, with the stdin it was given.
#[track_caller]
pub fn run(command: &mut Command) -> Ran {
    finish(command, &[])
}

/// Runs `command` to its end with `input` on stdin.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Ran {
    finish(command.stdin(Stdio::piped()), input)
}

#[track_caller]
fn finish(command: &mut Command, input: &[u8]) -> Ran {
    let start = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_owned();
        // A payload that does not read its input makes this fail; that is its right.
        std::thread::spawn(move || stdin.write_all(&input).ok());
    }
    let status = wait(&mut child);
    let took = start.elapsed();
    let Some(status) = status else {
        child.kill().ok();
        child.wait().ok();
        panic!("{command:?} still ran after {LIMIT:?}\n--- stderr\n{}", stderr.join().unwrap_or_default());
    };
    let text = |thread: JoinHandle<String>| thread.join().unwrap_or_default();
    Ran { status, stdout: text(stdout), stderr: text(stderr), took }
}

fn wait(child: &mut Child) -> Option<ExitStatus> {
    let mut status = None;
    wait_until(LIMIT, || {
        status = child.try_wait().unwrap_or_else(|e| panic!("wait: {e}"));
        status.is_some()
    });
    status
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before a broken read is still worth showing.
        pipe.map(|mut pipe| pipe.read_to_end(&mut bytes).ok());
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
