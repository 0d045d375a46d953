//! `agentd attach`: this program's streams become a running job's, until its end or the detach keys.
//!
//! Invariant: the job never waits for this process. It has made three pipes and given their other ends away; when it goes,
//! whatever way, the supervisor sees them close.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::stdio::{stdin, stdout};
use rustix::termios::{isatty, tcgetwinsize};

use super::keys::Keys;
use super::streams::{Remote, Streams};
use crate::control::{Answer, Caller, ControlError, Request, Stream};

/// How an attachment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// The job says no more.
    Ended,
    /// The keys were typed, or the terminal is gone: the job goes on.
    Detached,
}

/// Attaching that failed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The supervisor.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A call on the host.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// How to attach.
#[derive(Debug)]
pub struct Wish {
    /// Whether to pass input on, where the job takes any.
    pub input: bool,
    /// Whether to pass signals on.
    pub signals: bool,
    /// The keys that detach.
    pub keys: Keys,
}

/// Attaches. A supervisor keeps a megabyte for a viewer and lets go of one that is further behind; that is told by
/// `fell_behind`, and the job's output goes on from where it is then.
///
/// # Errors
/// [`AttachError`]; the job goes on.
pub fn attach(caller: &Caller, wish: Wish, fell_behind: impl Fn()) -> Result<Left, AttachError> {
    let host = |what| move |error: io::Error| AttachError::Host { what, source: error };
    let (Answer::Job { terminal, input }, _) = caller.ask(Request::Describe, None)? else {
        return Err(host("understand the supervisor")(io::ErrorKind::InvalidData.into()));
    };
    let mut watched: SigSet = [Signal::SIGHUP, Signal::SIGWINCH].into_iter().collect();
    if wish.signals {
        watched.extend([Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2]);
    }
    let signals = agentd_sys::signal::descriptor(&watched).map_err(host("block signals"))?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|error| host("make a pipe")(error.into()));
    let view = |stream, theirs: OwnedFd| caller.ask(Request::Attach { stream }, Some(theirs.as_fd())).map(drop);
    let mut remote = Remote { out: None, err: None, into: None, raw: false, keys: None };
    for (stream, place) in [(Stream::Stdout, &mut remote.out), (Stream::Stderr, &mut remote.err)] {
        let (ours, theirs) = pipe()?;
        view(stream, theirs)?;
        *place = Some(ours);
    }
    if input && wish.input {
        let (theirs, ours) = pipe()?;
        view(Stream::Stdin, theirs)?;
        remote.into = Some(ours);
        remote.raw = terminal;
        remote.keys = isatty(stdin()).then_some(wish.keys);
    }
    let mut streams = Streams::remote(remote).map_err(host("set the streams up"))?;
    let resize = |more: u16| match tcgetwinsize(if isatty(stdout()) { stdout() } else { stdin() }) {
        Ok(size) if terminal => {
            caller.tell(Request::Resize { rows: size.ws_row.saturating_add(more), columns: size.ws_col })
        }
        _ => Ok(()),
    };
    // A job that has ended meanwhile needs no size.
    let ended = |told: Result<(), ControlError>| match told {
        Err(ControlError::Ending(..)) => Ok(()),
        told => told,
    };
    // A program draws anew only for a size that changes, and who attaches has seen nothing of it yet.
    ended(resize(1))?;
    ended(resize(0))?;
    let mut lost = Vec::new();
    loop {
        // A terminal has one stream for both.
        lost.extend(streams.take_ended().into_iter().filter(|stream| !terminal || *stream == Stream::Stdout));
        // What there is of the others comes first: at the job's end nobody answers until all of it is over.
        if !lost.is_empty() && streams.drained().map_err(host("wait for the job"))? {
            // Its end is where output ends, and then there is nobody any more to answer.
            if caller.ask(Request::Describe, None).is_err() {
                lost.clear();
            } else {
                fell_behind();
            }
            for stream in lost.drain(..) {
                let (ours, theirs) = pipe()?;
                ended(view(stream, theirs))?;
                streams.show_again(stream, ours).map_err(host("set the streams up"))?;
            }
        }
        if streams.done() {
            return Ok(Left::Ended);
        }
        let mut fds = vec![PollFd::new(&signals, PollFlags::IN)];
        streams.interest(&mut fds);
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(host("wait for the job")(error.into())),
        }
        while let Some(info) = signals.read_signal().map_err(|error| host("read signals")(error.into()))? {
            match i32::try_from(info.ssi_signo).ok().and_then(|raw| Signal::try_from(raw).ok()) {
                Some(Signal::SIGHUP) => return Ok(Left::Detached),
                Some(Signal::SIGWINCH) => ended(resize(0))?,
                Some(signal) => ended(caller.tell(Request::Signal { number: signal as i32 }))?,
                None => {}
            }
        }
        streams.pass().map_err(host("pass the output on"))?;
        if streams.is_detached() {
            return Ok(Left::Detached);
        }
    }
}
