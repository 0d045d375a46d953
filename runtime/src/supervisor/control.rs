//! The side that is asked: a socket in the job's directory, made when the first caller wants it.
//!
//! Invariant: only this user and root get an answer, nothing here blocks, and callers have a bound; one that does not read
//! its answers, or says what is no request, is let go.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use agentd_sys::channel::{self, Message};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, bind, listen, socket_with};
use rustix::process::geteuid;

use crate::control::{Answer, NEW_SOCKET, Request, SOCKET, address, decode, encode};

/// Callers at once.
const MOST: usize = 256;
/// Callers that wait to be heard.
const BACKLOG: i32 = 64;

/// The socket and those who use it.
#[derive(Debug)]
pub(super) struct Control {
    directory: PathBuf,
    listener: Option<OwnedFd>,
    callers: Vec<OwnedFd>,
}

/// Something that was asked.
#[derive(Debug)]
pub(super) struct Asked {
    caller: OwnedFd,
    /// What; an error is no request.
    pub(super) request: Result<Request, serde_json::Error>,
    /// What came along.
    pub(super) descriptor: Option<OwnedFd>,
}

impl Control {
    /// Of the job whose directory this is.
    pub(super) fn new(directory: PathBuf) -> Self {
        Control { directory, listener: None, callers: Vec::new() }
    }

    /// The job's directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the socket, unless it is there.
    pub(super) fn open(&mut self) -> io::Result<()> {
        if self.listener.is_some() {
            return Ok(());
        }
        let directory = open(&self.directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let new = self.directory.join(NEW_SOCKET);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        bind(&listener, &address(&directory, NEW_SOCKET)?)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        listen(&listener, BACKLOG)?;
        // Whoever finds it can connect.
        fs::rename(&new, self.directory.join(SOCKET))?;
        self.listener = Some(listener);
        Ok(())
    }

    /// What the supervisor's poll must wait for.
    pub(super) fn interest<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        let listener = self.listener.as_ref().filter(|_| self.callers.len() < MOST);
        fds.extend(listener.into_iter().chain(&self.callers).map(|fd| PollFd::new(fd, PollFlags::IN)));
    }

    /// Hears whoever has something to say, once each.
    pub(super) fn hear(&mut self) -> Vec<Asked> {
        self.accept();
        let mut asked = Vec::new();
        self.callers.retain(|caller| match channel::receive(caller) {
            Ok(Some(Message { bytes, descriptor })) => {
                let Ok(own) = caller.try_clone() else { return false };
                asked.push(Asked { caller: own, request: decode(&bytes), descriptor });
                true
            }
            // It has gone, or sent what is too long.
            Ok(None) => false,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        });
        asked
    }

    fn accept(&mut self) {
        while self.callers.len() < MOST {
            let Some(listener) = &self.listener else { return };
            match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(caller) => {
                    let peer = socket_peercred(&caller).map(|peer| peer.uid);
                    if peer.is_ok_and(|uid| uid == geteuid() || uid.is_root()) {
                        self.callers.push(caller);
                    }
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => return,
                Err(error) => {
                    // Out of descriptors, most likely: who asks again gets a new one.
                    tracing::debug!(%error, "no more callers");
                    self.close();
                }
            }
        }
    }

    fn close(&mut self) {
        if self.listener.take().is_some() {
            // A job's directory may be gone already; a socket without a listener is known for what it is.
            fs::remove_file(self.directory.join(SOCKET)).unwrap_or_default();
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.close();
    }
}

impl Asked {
    /// Answers; a caller that does not read loses the answer.
    pub(super) fn answer(self, answer: &Answer, descriptor: Option<BorrowedFd<'_>>) {
        let line = encode(answer).unwrap_or_default();
        if let Err(error) = channel::send(self.caller.as_fd(), &line, descriptor) {
            tracing::debug!(%error, "a caller did not wait for its answer");
        }
    }
}

/// A pipe that a caller sent, made so that nothing on it blocks; anything else is refused.
pub(super) fn pipe(descriptor: Option<OwnedFd>) -> Result<OwnedFd, &'static str> {
    let descriptor = descriptor.ok_or("no pipe came along")?;
    let is_pipe = rustix::fs::fstat(&descriptor)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo);
    if !is_pipe {
        return Err("what came along is no pipe");
    }
    let unblocked = fcntl_getfl(&descriptor).and_then(|flags| fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK));
    unblocked.map(|()| descriptor).map_err(|_errno| "the pipe cannot be used")
}
