//! Which program of the box is at the other end of a connection. The kernel says which socket that is; whose it is, only
//! the supervisor can see, which is asked.
//!
//! Invariant: what is allowed waits for no answer, and is asked about at most so often; a refusal waits a moment for one,
//! once a kind. Who is named had the socket when the supervisor looked: it may have passed it on, and names itself.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use agentd_sys::diag::{self, Transport};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::ledger::Ledger;
use crate::order::Program;
use crate::told::Told;

/// For how long a refusal waits for the supervisor to say whose it is.
const PATIENCE: Duration = Duration::from_millis(500);

/// Connections a second that are asked about although they are allowed, and how many of them at once.
const A_SECOND: u32 = 8;
const AT_ONCE: u32 = 64;

/// Questions that wait for an answer.
const MOST_WAITING: usize = 256;

/// What is asked, and how.
#[derive(Debug)]
pub(super) struct Clients {
    /// A socket of the box's network namespace, once it is there.
    diag: RefCell<Option<OwnedFd>>,
    last: Cell<u64>,
    waiting: RefCell<HashMap<u64, oneshot::Sender<Program>>>,
    /// Questions that may be asked now, and when that was so.
    allowance: Cell<(u32, Instant)>,
}

impl Default for Clients {
    fn default() -> Self {
        let allowance = Cell::new((AT_ONCE, Instant::now()));
        Clients { diag: RefCell::default(), last: Cell::new(0), waiting: RefCell::default(), allowance }
    }
}

impl Clients {
    /// Takes the socket to ask by.
    pub(super) fn ask_by(&self, socket: OwnedFd) {
        self.diag.replace(Some(socket));
    }

    /// What the supervisor says.
    pub(super) fn answered(&self, id: u64, program: Option<Program>) {
        if let (Some(answer), Some(program)) = (self.waiting.borrow_mut().remove(&id), program) {
            // Where nobody waits any more, nobody wants to know.
            answer.send(program).unwrap_or_default();
        }
    }

    fn ask(&self, ledger: &Ledger, client: &Client) -> Option<oneshot::Receiver<Program>> {
        let diag = self.diag.borrow();
        let (from, to) = client.ends?;
        // It may have closed its end already.
        let inode = diag::inode(diag.as_ref()?, client.transport, from, to).ok()?;
        let mut waiting = self.waiting.borrow_mut();
        waiting.retain(|_, answer| !answer.is_closed());
        if waiting.len() >= MOST_WAITING {
            return None;
        }
        let id = self.last.get() + 1;
        self.last.set(id);
        let (answer, asked) = oneshot::channel();
        waiting.insert(id, answer);
        ledger.put(&Told::Whose { id, inode });
        Some(asked)
    }

    /// Whether one more may be asked about that is allowed.
    fn may_ask(&self) -> bool {
        let (left, at) = self.allowance.get();
        let earned = at.elapsed().as_millis().saturating_mul(u128::from(A_SECOND)) / 1000;
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        let left = left.saturating_add(earned).min(AT_ONCE);
        let at = if earned > 0 { Instant::now() } else { at };
        self.allowance.set((left.saturating_sub(1), at));
        left > 0
    }
}

/// The program at the other end of one connection.
#[derive(Debug)]
pub(super) struct Client {
    transport: Transport,
    /// The program's end, and the broker's.
    ends: Option<(SocketAddr, SocketAddr)>,
    asked: RefCell<Option<oneshot::Receiver<Program>>>,
    known: RefCell<Option<Program>>,
}

impl Client {
    /// Of a stream that was accepted.
    pub(super) fn of(stream: &TcpStream) -> Self {
        Self::new(Transport::Tcp, stream.peer_addr().ok().zip(stream.local_addr().ok()))
    }

    /// Of a datagram.
    pub(super) fn of_datagram(from: SocketAddr, to: SocketAddr) -> Self {
        Self::new(Transport::Udp, Some((from, to)))
    }

    fn new(transport: Transport, ends: Option<(SocketAddr, SocketAddr)>) -> Self {
        // A socket that hears both protocols has IPv4 in IPv6 clothes, its clients may not.
        let plain = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
        let ends = ends.map(|(from, to)| (plain(from), plain(to)));
        let is_one = |(from, to): &(SocketAddr, SocketAddr)| {
            matches!((from.ip(), to.ip()), (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)))
        };
        Client { transport, ends: ends.filter(is_one), asked: RefCell::default(), known: RefCell::default() }
    }

    /// Asks whose it is, unless too many were asked about lately; nobody waits.
    pub(super) fn ask(&self, clients: &Clients, ledger: &Ledger) {
        if clients.diag.borrow().is_some() && clients.may_ask() {
            self.asked.replace(clients.ask(ledger, self));
        }
    }

    /// The same, and waits a moment for the answer.
    pub(super) async fn find(&self, clients: &Clients, ledger: &Ledger) {
        if self.known().is_some() {
            return;
        }
        let asked = self.asked.take().or_else(|| clients.ask(ledger, self));
        if let Some(asked) = asked
            && let Ok(Ok(program)) = timeout(PATIENCE, asked).await
        {
            self.known.replace(Some(program));
        }
    }

    /// Whose it is, as far as that has been said.
    pub(super) fn known(&self) -> Option<Program> {
        let mut asked = self.asked.borrow_mut();
        if let Some(Ok(program)) = asked.as_mut().map(oneshot::Receiver::try_recv) {
            *asked = None;
            self.known.replace(Some(program));
        }
        self.known.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_about_what_is_allowed_have_a_bound() {
        let clients = Clients::default();
        let asked = (0..1000).filter(|_| clients.may_ask()).count();
        assert!((64..1000).contains(&asked), "{asked}");
    }

    #[test]
    fn an_answer_is_heard_once_and_kept() {
        let client = Client::of_datagram("127.0.0.1:5".parse().unwrap(), "127.0.0.1:53".parse().unwrap());
        let (clients, ledger) = (Clients::default(), Ledger::default());
        // Without a socket to ask by nothing is asked.
        client.ask(&clients, &ledger);
        assert!(client.known().is_none() && client.asked.borrow().is_none());
        let (answer, asked) = oneshot::channel();
        clients.waiting.borrow_mut().insert(1, answer);
        client.asked.replace(Some(asked));
        assert!(client.known().is_none());
        let program = Program { untrusted_name: "curl".into(), pid: 7 };
        clients.answered(2, Some(program.clone()));
        clients.answered(1, Some(program.clone()));
        assert_eq!([client.known(), client.known()], [Some(program.clone()), Some(program)]);
    }
}
