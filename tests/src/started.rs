//! A command that is watched while it runs: what it has said so far, signals to it, its end.
//!
//! Invariant: a wait is for something that the command does, bounded by [`LIMIT`], and a test that fails leaves no
//! command behind.

use std::io::Read;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::ran::LIMIT;
use crate::{Ran, wait_until};

/// A command that was started.
#[derive(Debug)]
pub struct Started {
    child: Child,
    at: Instant,
    stdout: Stream,
    stderr: Stream,
}

impl Started {
    /// Starts `command`; both its outputs are read from now on, so it never waits for the test.
    #[track_caller]
    #[must_use]
    pub fn new(command: &mut Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::with_streams(command)
    }

    /// Starts `command` with the streams it was given; only what is a pipe is read.
    #[track_caller]
    #[must_use]
    pub fn with_streams(command: &mut Command) -> Self {
        let at = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let (stdout, stderr) = (Stream::new(child.stdout.take()), Stream::new(child.stderr.take()));
        Self { child, at, stdout, stderr }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or_else(|e| panic!("pid: {e}"))
    }

    /// The writing end of its standard input, if that is a pipe; dropping it is the end of input.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap_or_else(|e| panic!("{signal:?} to {pid:?}: {e}"));
    }

    /// Waits until its standard output so far contains `text`.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let mut ended = false;
        let said = wait_until(LIMIT, || {
            // Looked at first: what it said before its end is there when the end is seen.
            ended = self.stdout.has_ended();
            self.stdout.text().contains(text) || ended
        });
        assert!(
            said && self.stdout.text().contains(text),
            "no {text:?} came (output ended: {ended})\n--- stdout\n{}\n--- stderr\n{}",
            self.stdout.text(),
            self.stderr.text()
        );
    }

    /// Waits until its standard error so far contains `text`.
    #[track_caller]
    pub fn wait_for_error(&self, text: &str) {
        let said = wait_until(LIMIT, || self.stderr.text().contains(text));
        assert!(said, "no {text:?} came\n--- stderr\n{}", self.stderr.text());
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap_or_else(|e| panic!("wait: {e}")).is_some()
    }

    /// Waits for its end and the end of its output.
    #[track_caller]
    #[must_use]
    pub fn finish(mut self) -> Ran {
        let ended = wait_until(LIMIT, || self.has_ended() && self.stdout.has_ended() && self.stderr.has_ended());
        assert!(
            ended,
            "still runs, or something holds its output, after {LIMIT:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.stdout.text(),
            self.stderr.text()
        );
        let status = self.child.wait().unwrap_or_else(|e| panic!("wait: {e}"));
        Ran::new(status, self.stdout.bytes().clone(), self.stderr.bytes().clone(), self.at.elapsed())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Both fail where it was waited for already, as it should be.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// One output of it, read by a thread.
#[derive(Debug)]
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    fn new(pipe: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let thread = pipe.map(|mut pipe| {
            let bytes = Arc::clone(&bytes);
            std::thread::spawn(move || {
                let mut buffer = [0; 1 << 16];
                while let Ok(read @ 1..) = pipe.read(&mut buffer) {
                    bytes.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..read]);
                }
            })
        });
        Self { bytes, thread }
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}
