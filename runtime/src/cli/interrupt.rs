//! SIGINT and SIGTERM while images are made ready: the pull is asked to stop, and what does not stop is not waited for.
//!
//! Invariant: until [`Interrupts::watch`] is called no thread exists and no signal is blocked, and none is afterwards; a
//! job is cloned from a process with one thread.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sys::signal::{SigSet, Signal};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::progress::INTERRUPTED;

/// How long a pull may take to stop. The store is as good after a crash as after an orderly end: only the waiting for a
/// server that says nothing is cut short.
const GRACE: Timespec = Timespec { tv_sec: 0, tv_nsec: 800_000_000 };

/// Watches for the two signals.
#[derive(Debug, Default)]
pub(super) struct Interrupts {
    stop: Arc<AtomicBool>,
    caught: Arc<AtomicBool>,
    watcher: Option<Watcher>,
}

#[derive(Debug)]
struct Watcher {
    thread: JoinHandle<()>,
    /// Written to when the pull is over.
    over: Arc<OwnedFd>,
}

fn signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM].into_iter().collect()
}

impl Interrupts {
    /// Set when the pull has to stop.
    pub(super) fn stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Whether one of the signals came.
    pub(super) fn caught(&self) -> bool {
        self.caught.load(Ordering::Relaxed)
    }

    /// Begins to watch, once.
    pub(super) fn watch(&mut self) -> io::Result<()> {
        if self.watcher.is_some() {
            return Ok(());
        }
        let over = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        // Blocked in this thread, and so in all that it starts: the descriptor alone gets them.
        let signals = agentd_sys::signal::descriptor(&signals())?;
        let (stop, caught, ended) = (self.stop(), Arc::clone(&self.caught), Arc::clone(&over));
        let thread = std::thread::Builder::new().name("interrupts".into()).spawn(move || {
            let mut either = [PollFd::new(&signals, PollFlags::IN), PollFd::new(&*ended, PollFlags::IN)];
            while poll(&mut either, None).is_err() {}
            if !matches!(signals.read_signal(), Ok(Some(_))) {
                return;
            }
            caught.store(true, Ordering::Relaxed);
            stop.store(true, Ordering::Relaxed);
            let mut over = [PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN)];
            if poll(&mut over, Some(&GRACE)).is_ok_and(|ready| ready == 0) {
                // Some thread waits for a server, and nothing can wake it.
                std::process::exit(INTERRUPTED.into());
            }
        })?;
        self.watcher = Some(Watcher { thread, over });
        Ok(())
    }

    /// Ends the watch; the signals act as before.
    pub(super) fn end(&mut self) {
        let Some(Watcher { thread, over }) = self.watcher.take() else { return };
        // An eventfd takes one write more than this one, and a thread that panicked has ended too.
        rustix::io::write(&*over, &1u64.to_ne_bytes()).unwrap_or_default();
        thread.join().unwrap_or_default();
        signals().thread_unblock().unwrap_or_default();
    }
}
