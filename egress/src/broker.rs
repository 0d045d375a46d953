//! The broker: a process of its own on the host's network, between the sockets of one box and the internet.
//!
//! It is a child of the supervisor and not a part of it: a mistake in here costs the job its network, not its clock, its
//! output or its record. It has no files, no capabilities and few system calls ([`confine`]); what it knows it tells over its
//! channel. One thread moves bytes; names are looked up in a few more, for the C library's look-up blocks.
//!
//! Invariant: connections, names, waiting messages and everything read before a decision have bounds, whatever the box does.

mod client;
mod confine;
mod connection;
mod dial;
mod dialled;
mod inspected;
mod ledger;
mod meter;
mod passing;
mod proxied;
mod service;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentd_sys::channel::{self, Message};
use agentd_sys::memory::BEFORE_FORGETTING;
use agentd_sys::process::exit_now;
use rustix::net::{AddressFamily, SocketType, sockopt};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixDatagram};
use tokio::sync::{Notify, Semaphore};
use tokio::task::LocalSet;
use tokio::time::timeout;

use crate::name::Name;
use crate::names::Issued;
use crate::order::Order;
use crate::policy::{NAME_SERVICE, Policy, Refusal};
use crate::proxy::PROXY;
use crate::told::Told;
use client::Clients;
use dialled::Dialled;
pub use inspected::prepared::Key;
use inspected::prepared::{Authority, Prepared};
use ledger::Ledger;
use meter::Meter;
use passing::Pipes;

/// Connections at once; further ones are refused.
const MOST_CONNECTIONS: usize = 1024;

/// Descriptors of a connection while bytes move both ways: two sockets and two pipes.
const PER_CONNECTION: usize = 6;

/// Descriptors beside those of connections: listeners, the channel, look-ups.
const OTHER_DESCRIPTORS: usize = 400;

/// Names are looked up by as many threads.
const MOST_LOOKUPS: usize = 8;

/// Of each; glibc's resolver keeps its answers on the stack.
const LOOKUP_STACK: usize = 256 << 10;

/// Runs as the broker; never returns.
///
/// Must be called in a child of the supervisor with one thread and `channel`, whose other end the supervisor has: sockets of
/// the box come in by it, [`crate::Told`] goes out. Its end is the end of the job. `filter` is loaded before the first byte of
/// the box is read.
///
/// Where the policy has hosts whose requests are read, the first message says whether they can be.
pub fn run(policy: Policy, keys: Vec<Key>, channel: OwnedFd, filter: &[libc::sock_filter]) -> ! {
    let done = prepare(&policy, keys, &channel).and_then(|prepared| {
        let descriptors = confine::confine(&policy, &channel, filter)?;
        let most = MOST_CONNECTIONS.min(descriptors.saturating_sub(OTHER_DESCRIPTORS) / PER_CONNECTION);
        serve(policy, prepared, channel, most)
    });
    exit_now(i32::from(done.is_err()))
}

fn prepare(policy: &Policy, keys: Vec<Key>, channel: &OwnedFd) -> io::Result<Option<Prepared>> {
    if policy.inspected().is_empty() {
        return Ok(None);
    }
    let prepared = Prepared::new(policy.inspected(), keys);
    let told = match &prepared {
        Ok(prepared) => Told::Ready { certificate: prepared.authority.as_ref().map(Authority::certificate) },
        Err(error) => Told::Unready { why: error.to_string() },
    };
    channel::send(channel.as_fd(), &told.encode(), None)?;
    prepared.map(Some)
}

/// What the host's resolver said, and when.
type Answer = (Instant, Rc<[IpAddr]>);

/// What the parts of the broker share.
struct Shared {
    policy: RefCell<Policy>,
    /// Woken when the policy changes.
    changed: Notify,
    dialled: Dialled,
    issued: RefCell<Issued>,
    /// Whether the box has IPv6.
    v6: Cell<bool>,
    looked_up: RefCell<HashMap<Name, Answer>>,
    /// One for each thread that looks names up.
    lookups: Arc<Semaphore>,
    ledger: Ledger,
    clients: Clients,
    pipes: Pipes,
    meter: Meter,
    connections: Cell<usize>,
    /// What reading requests needs, where some are.
    prepared: Option<Prepared>,
    /// Connections whose requests are read.
    inspecting: Cell<usize>,
    /// Connections on which the box may have sent what is not yet passed on.
    sending: Cell<usize>,
    sent: Notify,
    most: usize,
}

fn serve(policy: Policy, prepared: Option<Prepared>, channel: OwnedFd, most: usize) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(MOST_LOOKUPS)
        .thread_stack_size(LOOKUP_STACK)
        .thread_keep_alive(Duration::from_secs(1))
        .build()?;
    let limits = policy.limits;
    let at_once = limits.connections.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
    let shared = Rc::new(Shared {
        dialled: Dialled::beside(policy.ports()),
        policy: RefCell::new(policy),
        changed: Notify::new(),
        issued: RefCell::default(),
        v6: Cell::new(false),
        looked_up: RefCell::default(),
        lookups: Arc::new(Semaphore::new(MOST_LOOKUPS)),
        ledger: Ledger::default(),
        clients: Clients::default(),
        pipes: Pipes::default(),
        meter: Meter::new(limits),
        connections: Cell::new(0),
        prepared,
        inspecting: Cell::new(0),
        sending: Cell::new(0),
        sent: Notify::new(),
        most: most.min(at_once),
    });
    let tasks = LocalSet::new();
    tasks.spawn_local(async {
        tokio::time::sleep(BEFORE_FORGETTING).await;
        // What its start needed and waiting does not. Not to succeed costs memory only.
        agentd_sys::memory::forget_code().unwrap_or_default();
    });
    let served = runtime.block_on(tasks.run_until(until_the_end(&shared, &channel)));
    // What still runs ends here, and puts itself down in the ledger.
    drop(tasks);
    runtime.shutdown_background();
    served.and(shared.ledger.finish(&channel))
}

/// Takes sockets of the box in until the supervisor has no more to say.
async fn until_the_end(shared: &Rc<Shared>, channel: &OwnedFd) -> io::Result<()> {
    // Tokio has no type for sockets of messages in sequence; of this one only readiness is used.
    let channel = UnixDatagram::from_std(channel.try_clone()?.into())?;
    let tell = shared.ledger.tell(&channel);
    let count = async {
        loop {
            let moved = shared.meter.news().await;
            shared.ledger.put(&Told::Moved(moved));
        }
    };
    let listen = async {
        loop {
            channel.readable().await?;
            match channel.try_io(Interest::READABLE, || channel::receive(&channel)) {
                Ok(None) => return Ok(()),
                Ok(Some(message)) => obey(shared, message)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    let work = async {
        listen.await?;
        // Programs are gone, but what they had sent is to arrive, as it would without a broker.
        timeout(LAST_BYTES, all_is_sent(shared)).await.unwrap_or_default();
        Ok(())
    };
    tokio::select! {
        told = tell => told,
        ended = work => ended,
        () = count => Ok(()),
    }
}

/// What the supervisor says is done, or is the end.
fn obey(shared: &Rc<Shared>, message: Message) -> io::Result<()> {
    let Message { bytes, descriptor } = message;
    if let (Some(prepared), Some(key)) = (&shared.prepared, Key::decode(&bytes)) {
        prepared.renew(key);
        return Ok(());
    }
    match (Order::decode(&bytes), descriptor) {
        (Some(Order::Door), Some(socket)) => open(shared, socket)?,
        (Some(Order::Dialled(id)), socket) => shared.dialled.answered(id, socket),
        (Some(Order::Whose { id, program }), None) => shared.clients.answered(id, program),
        (Some(Order::Change(change)), None) => {
            let changed = shared.policy.borrow().changed(&change).map_err(io::Error::other)?;
            shared.policy.replace(changed);
            shared.changed.notify_waiters();
        }
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    Ok(())
}

/// For bytes of a box that is gone.
const LAST_BYTES: Duration = Duration::from_secs(1);

async fn all_is_sent(shared: &Shared) {
    // What waits to be accepted is accepted meanwhile.
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    while shared.sending.get() > 0 {
        shared.sent.notified().await;
    }
}

/// A connection on which the box sends.
struct Sending<'a>(&'a Shared);

impl<'a> Sending<'a> {
    fn on(shared: &'a Shared) -> Self {
        shared.sending.set(shared.sending.get() + 1);
        Sending(shared)
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.sending.set(self.0.sending.get() - 1);
        self.0.sent.notify_one();
    }
}

/// A socket of the box: what it is for, it says itself.
fn open(shared: &Rc<Shared>, socket: OwnedFd) -> io::Result<()> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    if sockopt::socket_domain(&socket)? == AddressFamily::NETLINK {
        shared.clients.ask_by(socket);
        return Ok(());
    }
    if sockopt::socket_type(&socket)? == SocketType::DGRAM {
        let socket = UdpSocket::from_std(socket.into())?;
        tokio::task::spawn_local(service::datagrams(Rc::clone(shared), socket));
        return Ok(());
    }
    let listener = TcpListener::from_std(socket.into())?;
    let at = listener.local_addr()?;
    shared.v6.set(shared.v6.get() || at.is_ipv6());
    tokio::task::spawn_local(accept(Rc::clone(shared), listener, at));
    Ok(())
}

/// After a failure to accept, for want of descriptors or memory: until some are free again.
const BREATH: Duration = Duration::from_millis(100);

async fn accept(shared: Rc<Shared>, listener: TcpListener, at: SocketAddr) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(BREATH).await;
            continue;
        };
        let Some(slot) = Slot::take(&shared) else {
            let too_many = Refusal::because(format!("more than {} connections at once", shared.most));
            shared.ledger.refuse("(any)", Some(at.port()), &too_many);
            reset(&client);
            continue;
        };
        if at.port() == NAME_SERVICE.1 {
            tokio::task::spawn_local(service::stream(slot, client));
        } else if at == SocketAddr::from(PROXY) {
            tokio::task::spawn_local(proxied::serve(slot, client));
        } else {
            tokio::task::spawn_local(connection::serve(slot, client));
        }
    }
}

/// One of the connections there can be at once.
struct Slot(Rc<Shared>);

impl Slot {
    fn take(shared: &Rc<Shared>) -> Option<Self> {
        let taken = shared.connections.get();
        (taken < shared.most).then(|| {
            shared.connections.set(taken + 1);
            Slot(Rc::clone(shared))
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

/// Makes the end of a connection an error for its other side: it is not told that all went well.
fn reset(stream: &TcpStream) {
    // A socket that is in no state for it is closed already.
    sockopt::set_socket_linger(stream, Some(Duration::ZERO)).unwrap_or_default();
}
