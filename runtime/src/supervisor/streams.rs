//! The payload's standard streams: copied byte for byte between the box and agentd's own, and kept on disk up to a bound.
//!
//! The box never gets agentd's own descriptors: through a terminal it could push input (TIOCSTI), through a file it could
//! reach what the shell redirected to with other rights than were meant.
//!
//! Invariant: a read happens only when the poll said so and the last bytes are written; a write only when the poll said
//! that PIPE_BUF bytes fit (a pipe), or on a terminal that does not block. So a copy holds at most one buffer, and nothing
//! here waits but the disk the log is on.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::isatty;

use super::redact::{Redacted, Redactor};
use super::terminal::Terminal;
use crate::launch::plan::Plan;

/// Bytes a poll guarantees room for when it calls a pipe writable (pipe(7)).
const PIPE_BUF: usize = 4096;
const BUFFER: usize = 64 * 1024;
/// VEOF, as a terminal has it by default (termios(3)): closing one end of a terminal's input would close all of it.
const END_OF_INPUT: &[u8] = &[4];
/// Reads and writes of each stream between two looks at signals and clock.
const ROUNDS: usize = 64;

/// One direction of one stream.
#[derive(Debug)]
struct Copy {
    from: Option<OwnedFd>,
    to: Option<OwnedFd>,
    /// Bytes read and not yet written: `buffer[written..]`.
    buffer: Vec<u8>,
    written: usize,
    /// Bytes to ask for; few until a read fills them, because most jobs say little and fresh memory costs a fault a page.
    ask: usize,
    log: Option<Log>,
    /// Bytes that say at the destination that there is no more.
    farewell: &'static [u8],
    /// Whether the source is the box, whose end means that no more bytes will come.
    is_output: bool,
}

/// What is kept of a stream.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: Option<File>,
    left: u64,
    dropped: u64,
    /// Takes the job's secrets out, where it has any.
    redacted: Option<Redacted>,
}

/// All streams of a job.
#[derive(Debug)]
pub(super) struct Streams {
    copies: Vec<Copy>,
    terminal: Option<Terminal>,
    interactive: bool,
    /// The terminal's log, until there is a terminal.
    log: Option<Log>,
    dropped: u64,
}

impl Streams {
    /// The streams of `plan`, and what the payload gets as 0, 1 and 2.
    pub(super) fn new(plan: &Plan, directory: &Path) -> io::Result<(Self, [OwnedFd; 3])> {
        let log = |name: &str| Log {
            path: directory.join(name),
            file: None,
            left: plan.max_output,
            dropped: 0,
            redacted: None,
        };
        let null = || open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        if plan.inside.process.terminal {
            // What the payload gets instead is the box's own pty, which does not exist yet.
            let streams = Streams {
                copies: Vec::new(),
                terminal: None,
                interactive: plan.inside.process.input,
                log: Some(log("stdout.log")),
                dropped: 0,
            };
            return Ok((streams, [null()?, null()?, null()?]));
        }
        let (out, payload_out) = pipe_with(PipeFlags::CLOEXEC)?;
        let (err, payload_err) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut copies = vec![
            Copy::new(out, own(stdout())?, Some(log("stdout.log")), true),
            Copy::new(err, own(stderr())?, Some(log("stderr.log")), true),
        ];
        let interactive = plan.inside.process.input;
        let payload_in = if interactive {
            let (payload_in, into) = pipe_with(PipeFlags::CLOEXEC)?;
            copies.push(Copy::new(own(stdin())?, into, None, false));
            payload_in
        } else {
            null()?
        };
        let streams = Streams { copies, terminal: None, interactive, log: None, dropped: 0 };
        Ok((streams, [payload_in, payload_out, payload_err]))
    }

    /// The box's terminal has come: copies between it and agentd's own, which goes raw if it is one.
    pub(super) fn attach(&mut self, controller: OwnedFd) -> io::Result<()> {
        // A payload that does not read its terminal must not hold this process up.
        fcntl_setfl(&controller, fcntl_getfl(&controller)? | OFlags::NONBLOCK)?;
        self.copies.push(Copy::new(controller.try_clone()?, own(stdout())?, self.log.take(), true));
        if self.interactive {
            let mut input = Copy::new(own(stdin())?, controller.try_clone()?, None, false);
            input.farewell = END_OF_INPUT;
            self.copies.push(input);
        }
        self.terminal = Some(Terminal::new(controller, self.interactive)?);
        self.resize();
        Ok(())
    }

    /// Tells the box's terminal how large agentd's own is.
    pub(super) fn resize(&self) {
        if let Some(terminal) = &self.terminal {
            terminal.resize();
        }
    }

    /// What the supervisor's poll must wait for.
    pub(super) fn interest<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        fds.extend(self.copies.iter().filter_map(Copy::interest));
    }

    /// Copies whatever can be copied without blocking; comes back after a while even if there is always more.
    pub(super) fn pass(&mut self) -> io::Result<()> {
        for _ in 0..ROUNDS {
            let mut fds: Vec<PollFd<'_>> = self.copies.iter().filter_map(Copy::interest).collect();
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            if fds.is_empty() || poll(&mut fds, Some(&at_once))? == 0 {
                break;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let mut ready = ready.into_iter();
            for copy in self.copies.iter_mut().filter(|copy| copy.interest().is_some()) {
                if ready.next() == Some(true) {
                    copy.step();
                }
            }
            let (dropped, copies) = (&mut self.dropped, &mut self.copies);
            copies.retain_mut(|copy| {
                if copy.is_done() {
                    *dropped += copy.log.as_mut().map_or(0, Log::close);
                }
                !copy.is_done()
            });
        }
        Ok(())
    }

    /// No process of the box is left: input has nobody to go to, and output ends with what the pipes hold.
    pub(super) fn box_is_gone(&mut self) {
        self.copies.retain(|copy| copy.is_output);
    }

    /// Whether every byte of output is passed on.
    pub(super) fn done(&self) -> bool {
        !self.copies.iter().any(|copy| copy.is_output)
    }

    /// Has `redactor` clean what is kept from now on.
    pub(super) fn redact(&mut self, redactor: &Redactor) {
        let logs = self.copies.iter_mut().filter_map(|copy| copy.log.as_mut()).chain(&mut self.log);
        logs.for_each(|log| log.redacted = Some(Redacted::new(redactor.clone())));
    }

    /// Keeps what was held back; gives the bytes that were passed on but not kept.
    pub(super) fn close_logs(&mut self) -> u64 {
        let open: u64 = self.copies.iter_mut().filter_map(|copy| copy.log.as_mut()).map(Log::close).sum();
        self.dropped + open
    }
}

/// One of agentd's own streams as a descriptor to own. A terminal is opened anew, non-blocking: a write to one may sleep
/// although the poll called it writable, and the flag on the user's own descriptor would be the shell's too.
fn own(stream: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    if isatty(stream) {
        let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(anew) = open(path, flags, Mode::empty()) {
            return Ok(anew);
        }
    }
    stream.try_clone_to_owned()
}

impl Copy {
    fn new(from: OwnedFd, to: OwnedFd, log: Option<Log>, is_output: bool) -> Self {
        Copy {
            from: Some(from),
            to: Some(to),
            buffer: Vec::new(),
            written: 0,
            ask: PIPE_BUF,
            log,
            farewell: &[],
            is_output,
        }
    }

    /// What this copy waits for: room for the bytes it holds, or more bytes.
    fn interest(&self) -> Option<PollFd<'_>> {
        if self.written < self.buffer.len() {
            self.to.as_ref().map(|to| PollFd::new(to, PollFlags::OUT))
        } else {
            self.from.as_ref().map(|from| PollFd::new(from, PollFlags::IN))
        }
    }

    fn is_done(&self) -> bool {
        self.to.is_none() || (self.from.is_none() && self.written == self.buffer.len())
    }

    /// One read or one write; the poll said that it will not block.
    fn step(&mut self) {
        if self.written < self.buffer.len() {
            let Some(to) = &self.to else { return };
            let end = self.buffer.len().min(self.written + PIPE_BUF);
            match write(to, &self.buffer[self.written..end]) {
                Ok(written) => self.written += written,
                Err(Errno::INTR | Errno::AGAIN) => {}
                // The reader is gone: closing the source hands that on to the writer, as a plain pipe would.
                Err(_) => (self.from, self.to) = (None, None),
            }
            return;
        }
        let Some(from) = &self.from else { return };
        self.buffer.resize(self.ask, 0);
        self.written = 0;
        match read(from, &mut self.buffer[..]) {
            Ok(0) => self.from = None,
            Ok(bytes) => {
                if bytes == self.ask {
                    self.ask = BUFFER;
                }
                self.buffer.truncate(bytes);
                if let Some(log) = &mut self.log {
                    log.take(&self.buffer);
                }
                return;
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            // A terminal whose other side is closed says EIO.
            Err(_) => self.from = None,
        }
        self.buffer.clear();
        if self.from.is_none() && !self.farewell.is_empty() {
            self.buffer.extend_from_slice(self.farewell);
            return;
        }
        if self.from.is_none() && !self.is_output {
            // End of input: the payload sees it when the last writing end is closed.
            self.to = None;
        }
    }
}

impl Log {
    fn take(&mut self, bytes: &[u8]) {
        match &mut self.redacted {
            Some(redacted) => {
                let clean = redacted.push(bytes);
                self.keep(&clean);
            }
            None => self.keep(bytes),
        }
    }

    /// Keeps what was held back; gives the bytes that were not kept.
    fn close(&mut self) -> u64 {
        if let Some(mut redacted) = self.redacted.take() {
            self.keep(&redacted.finish());
        }
        self.dropped
    }

    /// Keeps as much of `bytes` as the bound allows. A disk that takes no more costs output on disk, not the job.
    fn keep(&mut self, bytes: &[u8]) {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        let kept = if room > 0 && self.append(&bytes[..room]).is_ok() { room } else { 0 };
        self.left -= kept as u64;
        self.dropped += (bytes.len() - kept) as u64;
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let opened = File::options().append(true).create_new(true).mode(0o600).open(&self.path)?;
                none.insert(opened)
            }
        };
        file.write_all(bytes)
    }
}
