//! What was asked of the broker: told to the supervisor as it happens, counted for the end.
//!
//! Invariant: a refusal is told once a kind and counted; kinds, and messages that wait, have a bound. Nothing waits for the
//! supervisor to listen: what it does not take in time is only counted.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::SystemTime;

use agentd_sys::channel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::Notify;

use super::client::{Client, Clients};
use crate::policy::Refusal;
use crate::told::{Request, Told, Totals, Verdict};

/// Refusals that are told apart.
const MOST_KINDS: usize = 100;

/// Messages that wait for the supervisor.
const MOST_WAITING: usize = 1024;

/// For how long the supervisor is waited for at the end, between two messages: as long as it listens, on a busy machine.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

#[derive(Debug, Default)]
pub(super) struct Ledger {
    kept: RefCell<Kept>,
    waiting: RefCell<VecDeque<Vec<u8>>>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    refused: Vec<Request>,
    totals: Totals,
}

/// What is told of a request that begins now.
pub(in crate::broker) fn begun(untrusted_host: String, port: Option<u16>) -> Request {
    Request::begun(now(), untrusted_host, port)
}

fn refused(untrusted_host: &str, port: Option<u16>, refusal: &Refusal) -> Request {
    Request {
        rule: refusal.rule.clone(),
        verdict: Verdict::Refused,
        why: Some(refusal.why.clone()),
        allow: refusal.allow.clone(),
        ..begun(untrusted_host.to_owned(), port)
    }
}

/// RFC 3339, UTC.
pub(super) fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

impl Ledger {
    /// A connection that is over.
    pub(super) fn record(&self, request: Request) {
        {
            let totals = &mut self.kept.borrow_mut().totals;
            match request.verdict {
                Verdict::Allowed => totals.allowed += 1,
                Verdict::Failed => totals.failed += 1,
                Verdict::Refused => {}
            }
            totals.up += request.up;
            totals.down += request.down;
        }
        if request.verdict == Verdict::Refused { self.count(request) } else { self.put(&Told::Request(request)) }
    }

    /// Something that was refused before it was a connection.
    pub(super) fn refuse(&self, untrusted_host: &str, port: Option<u16>, refusal: &Refusal) {
        self.count(refused(untrusted_host, port, refusal));
    }

    /// The same, once it is known whose it is, if that is still to be told.
    pub(super) async fn refuse_to(
        &self,
        (client, clients): (&Client, &Clients),
        (untrusted_host, port): (&str, Option<u16>),
        refusal: &Refusal,
    ) {
        let request = refused(untrusted_host, port, refusal);
        if !self.knows(&request) {
            client.find(clients, self).await;
        }
        self.count(request.by(client.known()));
    }

    /// Whether nothing more is to be told of one that was refused for this.
    pub(super) fn knows(&self, request: &Request) -> bool {
        let refused = &self.kept.borrow().refused;
        refused.len() >= MOST_KINDS || refused.iter().any(|known| known.is_like(request))
    }

    fn count(&self, request: Request) {
        let mut kept = self.kept.borrow_mut();
        kept.totals.refused += 1;
        if let Some(known) = kept.refused.iter_mut().find(|known| known.is_like(&request)) {
            known.count += 1;
        } else if kept.refused.len() < MOST_KINDS {
            let told = Told::Request(request.clone());
            kept.refused.push(request);
            drop(kept);
            self.put(&told);
        } else {
            kept.totals.untold += 1;
        }
    }

    /// Lets the supervisor know, when it listens.
    pub(super) fn put(&self, told: &Told) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() < MOST_WAITING {
            waiting.push_back(told.encode());
            self.more.notify_one();
        } else {
            self.kept.borrow_mut().totals.untold += 1;
        }
    }

    /// Tells, for as long as there is somebody to tell.
    pub(super) async fn tell(&self, channel: &UnixDatagram) -> io::Result<()> {
        loop {
            let next = self.waiting.borrow().front().cloned();
            let Some(next) = next else {
                self.more.notified().await;
                continue;
            };
            channel.writable().await?;
            match channel.try_io(Interest::WRITABLE, || channel::send(channel.as_fd(), &next, None)) {
                Ok(()) => drop(self.waiting.borrow_mut().pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Tells what is left, the counts and the totals.
    pub(super) fn finish(&self, channel: &OwnedFd) -> io::Result<()> {
        let mut kept = self.kept.borrow_mut();
        let again = kept.refused.drain(..).filter(|request| request.count > 1);
        let again: Vec<Vec<u8>> = again.map(|request| Told::Again(request).encode()).collect();
        let totals = Told::Totals(kept.totals).encode();
        for message in self.waiting.take().into_iter().chain(again).chain([totals]) {
            let mut ready = [PollFd::new(channel, PollFlags::OUT)];
            if poll(&mut ready, Some(&PATIENCE))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            channel::send(channel.as_fd(), &message, None)?;
        }
        Ok(())
    }
}
