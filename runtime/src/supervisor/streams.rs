//! The payload's standard streams: copied byte for byte between the box and agentd's own, and kept on disk up to a bound.
//!
//! The box never gets agentd's own descriptors: through a terminal it could push input (TIOCSTI), through a file it could
//! reach what the shell redirected to with other rights than were meant.
//!
//! Beside agentd's own, anybody who is attached to the job sees its output and may type ([`super::viewers`]).
//!
//! Invariant: a read happens only when the poll said so and the last bytes are written; a write only when the poll said
//! that PIPE_BUF bytes fit (a pipe), or on a terminal that does not block. So a copy holds at most one buffer, and nothing
//! here waits but the disk the log is on.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::isatty;

use super::keys::Keys;
use super::log::Log;
use super::redact::Redactor;
use super::terminal::Terminal;
use super::viewers::{self, Viewer};
use crate::control::Stream;

/// Bytes a poll guarantees room for when it calls a pipe writable (pipe(7)).
pub(super) const PIPE_BUF: usize = 4096;
const BUFFER: usize = 64 * 1024;
/// VEOF, as a terminal has it by default (termios(3)): closing one end of a terminal's input would close all of it.
const END_OF_INPUT: &[u8] = &[4];
/// Reads and writes of each stream between two looks at signals and clock.
const ROUNDS: usize = 64;

/// Where output goes and input comes from, beside those who are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    /// agentd's own standard streams.
    Standard,
    /// Nowhere: the job is detached.
    Nothing,
}

/// What streams a command gets.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// A terminal of the box's own.
    pub(super) terminal: bool,
    /// Whether input is passed on.
    pub(super) input: bool,
    pub(super) own: Own,
    /// Where output is kept, and how many bytes of each stream.
    pub(super) kept: Option<(&'a Path, u64)>,
}

/// The other ends of streams that somebody else copies (`agentd attach`).
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) out: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
    pub(super) into: Option<OwnedFd>,
    /// Whether keys go there one by one.
    pub(super) raw: bool,
    /// The keys that end it.
    pub(super) keys: Option<Keys>,
}

/// One direction of one stream.
#[derive(Debug)]
struct Copy {
    stream: Stream,
    from: Option<OwnedFd>,
    /// `None` at first means that nobody but the log and the viewers get it; later, that its reader is gone.
    to: Option<OwnedFd>,
    /// Bytes read and not yet written: `buffer[written..]`.
    buffer: Vec<u8>,
    written: usize,
    /// Bytes to ask for; few until a read fills them, because most jobs say little and fresh memory costs a fault a page.
    ask: usize,
    log: Option<Log>,
    viewers: Vec<Viewer>,
    /// Bytes that say at the destination that there is no more.
    farewell: &'static [u8],
    /// Whether nothing of agentd's own takes the bytes.
    sink: bool,
    /// Keys that are not passed on, and end it.
    keys: Option<Keys>,
    detached: bool,
}

/// What goes on when a stream has ended: its log, and those who have not yet taken all of it, or wait for more.
#[derive(Debug)]
struct Silent {
    stream: Stream,
    /// Whether who gets it of agentd's own was there to the end.
    is_read: bool,
    log: Option<Log>,
    viewers: Vec<Viewer>,
}

/// All streams of a job.
#[derive(Debug)]
pub(super) struct Streams {
    copies: Vec<Copy>,
    terminal: Option<Terminal>,
    interactive: bool,
    own: Own,
    /// The payload's input, kept open for those who attach.
    input: Option<OwnedFd>,
    /// Streams that nothing comes from any more, or not yet.
    silent: Vec<Silent>,
}

impl Streams {
    /// The streams that are wanted, and what the command gets as 0, 1 and 2.
    pub(super) fn new(wanted: &Wanted<'_>) -> io::Result<(Self, [OwnedFd; 3])> {
        let log = |name| wanted.kept.map(|(directory, bound)| Log::new(directory, name, bound));
        let null = || open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let (own_streams, interactive) = (wanted.own, wanted.input);
        let mut streams = Streams {
            copies: Vec::new(),
            terminal: None,
            interactive,
            own: own_streams,
            input: None,
            silent: Vec::new(),
        };
        if wanted.terminal {
            // What the payload gets instead is the box's own pty, which does not exist yet.
            streams.silent.push(Silent {
                stream: Stream::Stdout,
                is_read: true,
                log: log("stdout"),
                viewers: Vec::new(),
            });
            return Ok((streams, [null()?, null()?, null()?]));
        }
        let (out, payload_out) = pipe_with(PipeFlags::CLOEXEC)?;
        let (err, payload_err) = pipe_with(PipeFlags::CLOEXEC)?;
        let (out_to, err_to) = match own_streams {
            Own::Standard => (Some(own(stdout())?), Some(own(stderr())?)),
            Own::Nothing => (None, None),
        };
        streams.copies.push(Copy::new(Stream::Stdout, out, out_to, log("stdout")));
        streams.copies.push(Copy::new(Stream::Stderr, err, err_to, log("stderr")));
        let payload_in = if interactive {
            let (payload_in, into) = pipe_with(PipeFlags::CLOEXEC)?;
            match own_streams {
                Own::Standard => streams.copies.push(Copy::new(Stream::Stdin, own(stdin())?, Some(into), None)),
                Own::Nothing => streams.input = Some(into),
            }
            payload_in
        } else {
            null()?
        };
        Ok((streams, [payload_in, payload_out, payload_err]))
    }

    /// Copies between agentd's own streams and those of somebody else.
    pub(super) fn remote(remote: Remote) -> io::Result<Self> {
        let mut copies = Vec::new();
        for (stream, from, to) in [(Stream::Stdout, remote.out, stdout()), (Stream::Stderr, remote.err, stderr())] {
            if let Some(from) = from {
                copies.push(Copy::new(stream, from, Some(own(to)?), None));
            }
        }
        if let Some(into) = remote.into {
            let mut input = Copy::new(Stream::Stdin, own(stdin())?, Some(into), None);
            input.keys = remote.keys;
            copies.push(input);
        }
        Ok(Streams {
            copies,
            terminal: Some(Terminal::of_another(remote.raw)?),
            interactive: false,
            own: Own::Standard,
            input: None,
            silent: Vec::new(),
        })
    }

    /// Shows a stream that has ended once more, from another pipe (of those that [`Streams::remote`] copies).
    pub(super) fn show_again(&mut self, stream: Stream, from: OwnedFd) -> io::Result<()> {
        let to = if stream == Stream::Stderr { stderr() } else { stdout() };
        self.copies.push(Copy::new(stream, from, Some(own(to)?), None));
        Ok(())
    }

    /// The streams of output whose source has ended since this was last asked.
    pub(super) fn take_ended(&mut self) -> Vec<Stream> {
        self.silent.drain(..).filter(|silent| silent.is_read).map(|silent| silent.stream).collect()
    }

    /// Whether the keys that end it were typed.
    pub(super) fn is_detached(&self) -> bool {
        self.copies.iter().any(|copy| copy.detached)
    }

    /// Whether all that has come so far is passed on, and nothing more is there now.
    pub(super) fn drained(&self) -> io::Result<bool> {
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        for copy in self.copies.iter().filter(|copy| copy.is_output()) {
            if copy.written < copy.buffer.len() {
                return Ok(false);
            }
            fds.extend(copy.from.as_ref().map(|from| PollFd::new(from, PollFlags::IN)));
        }
        Ok(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? == 0)
    }

    /// The box's terminal has come: copies between it and agentd's own, which goes raw if it is one.
    pub(super) fn attach(&mut self, controller: OwnedFd) -> io::Result<()> {
        // A payload that does not read its terminal must not hold this process up.
        fcntl_setfl(&controller, fcntl_getfl(&controller)? | OFlags::NONBLOCK)?;
        let is_own = self.own == Own::Standard;
        let to = if is_own { Some(own(stdout())?) } else { None };
        self.copies.push(Copy::new(Stream::Stdout, controller.try_clone()?, to, None));
        self.resume();
        if self.interactive {
            self.input = Some(controller.try_clone()?);
        }
        if self.interactive && is_own {
            let mut input = Copy::new(Stream::Stdin, own(stdin())?, Some(controller.try_clone()?), None);
            input.farewell = END_OF_INPUT;
            self.copies.push(input);
        }
        self.terminal = Some(Terminal::new(controller, self.interactive && is_own)?);
        if is_own {
            self.resize();
        }
        Ok(())
    }

    /// Tells the box's terminal how large agentd's own is.
    pub(super) fn resize(&self) {
        if let (Some(terminal), Own::Standard) = (&self.terminal, self.own) {
            terminal.resize();
        }
    }

    /// Gives the box's terminal the size of a viewer's: the last who says so has it.
    pub(super) fn resize_to(&self, rows: u16, columns: u16) {
        if let Some(terminal) = &self.terminal {
            terminal.resize_to(rows, columns);
        }
    }

    /// Shows `stream` to somebody more, or takes input from there; what `pipe` is has been looked at.
    pub(super) fn view(&mut self, stream: Stream, pipe: OwnedFd) -> Result<(), &'static str> {
        let typing = self.copies.iter().filter(|copy| copy.stream == Stream::Stdin).count();
        let output = self.copies.iter_mut().find(|copy| copy.stream == stream && copy.is_output());
        match (stream, output) {
            (Stream::Stdin, _) if typing > viewers::MOST => Err("too many type into it"),
            (Stream::Stdin, _) => {
                let into = self.input.as_ref().or_else(|| {
                    let own = self.copies.iter().find(|copy| copy.stream == Stream::Stdin);
                    own.and_then(|copy| copy.to.as_ref())
                });
                let into = into.and_then(|into| into.try_clone().ok());
                let into = into.ok_or("its input has ended, or it was started without -i")?;
                self.copies.push(Copy::new(Stream::Stdin, pipe, Some(into), None));
                Ok(())
            }
            (_, Some(copy)) if copy.viewers.len() < viewers::MOST => {
                copy.viewers.push(Viewer::new(pipe));
                Ok(())
            }
            (_, Some(_)) => Err("too many are attached to it"),
            (_, None) => {
                // A terminal has one stream for both. One that has ended shows nothing more, unless the job begins again.
                let silent = self.silent.iter_mut().find(|silent| silent.stream == stream);
                match silent {
                    Some(silent) if silent.viewers.len() >= viewers::MOST => Err("too many are attached to it"),
                    Some(silent) => {
                        silent.viewers.push(Viewer::new(pipe));
                        Ok(())
                    }
                    None => Ok(()),
                }
            }
        }
    }

    /// What the supervisor's poll must wait for.
    pub(super) fn interest<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        fds.extend(self.copies.iter().flat_map(Copy::interest));
    }

    /// Copies whatever can be copied without blocking; comes back after a while even if there is always more.
    pub(super) fn pass(&mut self) -> io::Result<()> {
        for _ in 0..ROUNDS {
            let mut fds: Vec<PollFd<'_>> = self.copies.iter().flat_map(Copy::interest).collect();
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            if fds.is_empty() || poll(&mut fds, Some(&at_once))? == 0 {
                break;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let mut ready = ready.into_iter();
            for copy in &mut self.copies {
                let waited = copy.interest().count();
                let own = copy.waits() && ready.next() == Some(true);
                let viewers = waited - usize::from(copy.waits());
                let ready: Vec<bool> = ready.by_ref().take(viewers).collect();
                copy.show(&ready);
                if own {
                    copy.step();
                }
            }
            let silent = &mut self.silent;
            self.copies.retain_mut(|copy| {
                if copy.is_done() && copy.is_output() {
                    let (log, viewers) = (copy.log.take(), std::mem::take(&mut copy.viewers));
                    silent.push(Silent { stream: copy.stream, is_read: copy.to.is_some(), log, viewers });
                }
                !copy.is_done()
            });
        }
        Ok(())
    }

    /// No process of the box is left: input has nobody to go to, and output ends with what the pipes hold.
    pub(super) fn box_is_gone(&mut self) {
        self.copies.retain(Copy::is_output);
        self.input = None;
    }

    /// Whether every byte of output is passed on.
    pub(super) fn done(&self) -> bool {
        !self.copies.iter().any(Copy::is_output)
    }

    /// Has `redactor` clean what is kept from now on.
    pub(super) fn redact(&mut self, redactor: &Redactor) {
        self.logs().for_each(|log| log.redact(redactor));
    }

    /// Keeps what was held back; gives the bytes that were passed on but not kept.
    pub(super) fn close_logs(&mut self) -> u64 {
        self.logs().map(Log::close).sum()
    }

    fn logs(&mut self) -> impl Iterator<Item = &mut Log> {
        let silent = self.silent.iter_mut().filter_map(|silent| silent.log.as_mut());
        self.copies.iter_mut().filter_map(|copy| copy.log.as_mut()).chain(silent)
    }

    /// Where output goes.
    pub(super) fn own(&self) -> Own {
        self.own
    }

    /// The streams of the job's next box: its logs go on, and those who are attached stay. What held `redactor` back of the
    /// last box's is kept now.
    pub(super) fn begin_again(&mut self, wanted: &Wanted<'_>, redactor: Option<&Redactor>) -> io::Result<[OwnedFd; 3]> {
        self.close_logs();
        let (mut next, stdio) = Streams::new(wanted)?;
        next.silent = std::mem::take(&mut self.silent);
        next.resume();
        if let Some(redactor) = redactor {
            next.redact(redactor);
        }
        *self = next;
        Ok(stdio)
    }

    /// Gives each copy what is there of its stream already.
    fn resume(&mut self) {
        for copy in self.copies.iter_mut().filter(|copy| copy.is_output()) {
            if let Some(at) = self.silent.iter().position(|silent| silent.stream == copy.stream) {
                let Silent { log, viewers, .. } = self.silent.swap_remove(at);
                (copy.log, copy.viewers) = (log, viewers);
            }
        }
    }

    /// Those who are attached get a moment to take what they have not yet.
    pub(super) fn last_words(&mut self) {
        let silent = self.silent.iter_mut().map(|silent| &mut silent.viewers);
        let viewers = self.copies.iter_mut().map(|copy| &mut copy.viewers).chain(silent);
        viewers::flush(viewers.flat_map(std::mem::take).collect());
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
    fn new(stream: Stream, from: OwnedFd, to: Option<OwnedFd>, log: Option<Log>) -> Self {
        Copy {
            stream,
            from: Some(from),
            sink: to.is_none(),
            to,
            buffer: Vec::new(),
            written: 0,
            ask: PIPE_BUF,
            log,
            viewers: Vec::new(),
            farewell: &[],
            keys: None,
            detached: false,
        }
    }

    /// Whether the source is the box, whose end means that no more bytes will come.
    fn is_output(&self) -> bool {
        self.stream != Stream::Stdin
    }

    /// What this copy waits for: room for the bytes it holds, or more bytes; and its viewers.
    fn interest(&self) -> impl Iterator<Item = PollFd<'_>> {
        let own = if self.written < self.buffer.len() {
            self.to.as_ref().map(|to| PollFd::new(to, PollFlags::OUT))
        } else {
            self.from.as_ref().map(|from| PollFd::new(from, PollFlags::IN))
        };
        own.into_iter().chain(self.viewers.iter().map(Viewer::interest))
    }

    /// Whether the first that it waits for is its own.
    fn waits(&self) -> bool {
        if self.written < self.buffer.len() { self.to.is_some() } else { self.from.is_some() }
    }

    fn is_done(&self) -> bool {
        let nobody = self.to.is_none() && !self.sink;
        nobody || (self.from.is_none() && self.written == self.buffer.len())
    }

    /// Gives viewers what waits for them; one that is gone is forgotten.
    fn show(&mut self, ready: &[bool]) {
        let mut ready = ready.iter();
        self.viewers.retain_mut(|viewer| ready.next() != Some(&true) || viewer.take_some());
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
                if let Some(keys) = &mut self.keys {
                    self.detached |= keys.filter(&mut self.buffer);
                }
                if let Some(log) = &mut self.log {
                    log.take(&self.buffer);
                }
                let buffer = &self.buffer;
                self.viewers.retain_mut(|viewer| viewer.give(buffer));
                if self.sink {
                    self.buffer.clear();
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
        if self.from.is_none() && !self.is_output() {
            // End of input: the payload sees it when the last writing end is closed.
            self.to = None;
        }
    }
}
