//! One connection of the box: what was meant, whether it may, whether the client says the same, and then its bytes.
//!
//! Invariant: no byte of the box leaves the host before a rule has allowed it and, at the ports of TLS and HTTP, before the
//! client's own first words have named the same host.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::client::Client;
use super::ledger::begun;
use super::{Sending, Shared, Slot, dial, inspected, passing, reset};
use crate::hello::{self, Hello};
use crate::name::Name;
use crate::names;
use crate::policy::{Policy, Refusal, Target};
use crate::proxy;
use crate::request::{self, Beginning, Head};
use crate::told::{Request, Verdict};

/// For a client's first words where it speaks first.
const FIRST_WORDS: Duration = Duration::from_secs(10);

/// For the first words of a client that is refused already, only to answer it in its own way.
const COURTESY: Duration = Duration::from_secs(2);

/// The same at ports where it may be the server that speaks first: who listens there is to know within a second.
const COURTESY_TO_LISTENERS: Duration = Duration::from_millis(500);

/// Why a connection was not passed on.
#[derive(Debug)]
pub(super) enum Stop {
    /// Policy.
    Refused(Refusal),
    /// The world.
    Failed(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Failed(error.to_string())
    }
}

/// What a client must say first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// A TLS hello for the name (port 443).
    Tls,
    /// A request for the name (port 80).
    Http,
    /// Anything, or nothing (another port, named by the user): a hello and a request are checked all the same.
    Anything,
}

/// A connection's entry in the ledger; it gets there however the connection ends.
struct Entry<'a> {
    shared: &'a Shared,
    begun: Instant,
    up: Cell<u64>,
    down: Cell<u64>,
    client: Client,
    request: Request,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut request = self.request.clone().by(self.client.known());
        request.duration_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        (request.up, request.down) = (self.up.get(), self.down.get());
        self.shared.ledger.record(request);
    }
}

/// How a connection begins.
#[derive(Debug)]
pub(super) enum Opening {
    /// By itself: what the client says is for the server.
    Plain,
    /// By `CONNECT`, which has been said.
    Connect,
    /// By SOCKS5.
    Socks,
    /// By a request to the proxy, whose head is to be passed on as this one.
    Request(Vec<u8>),
}

/// Serves a connection to its end.
pub(super) async fn serve(slot: Slot, client: TcpStream) {
    let Ok(at) = client.local_addr() else { return };
    let (host, target) = meant(&slot.0, at.ip().to_canonical());
    conduct(slot, client, (host, target, at.port()), Opening::Plain, Vec::new()).await;
}

/// What an address of the box means, and what it is called in the ledger.
pub(super) fn meant(shared: &Shared, address: IpAddr) -> (String, Result<Target, Refusal>) {
    let target = target(shared, address);
    let host = match &target {
        Ok(Target::Name(name)) => name.to_string(),
        _ => address.to_string(),
    };
    (host, target)
}

/// Serves a connection of which it is known where it is to go.
pub(super) async fn conduct(
    slot: Slot,
    client: TcpStream,
    (host, target, port): (String, Result<Target, Refusal>, u16),
    mut opening: Opening,
    mut said: Vec<u8>,
) {
    let shared = &slot.0;
    let mut target = target.and_then(|target| shared.meter.admit().map(|()| target));
    let mut client = client;
    if let Ok(Target::Name(name)) = &target
        && shared.policy.borrow().inspected().site(name, port).is_some()
    {
        if let Opening::Request(_) = opening {
            let why = "requests for this host are read, and its keys added, only without the proxy (no_proxy)";
            target = Err(Refusal::because(why));
        } else {
            // Who comes by the proxy speaks to the broker itself from here on.
            let greeted = greet(&client, std::mem::replace(&mut opening, Opening::Plain)).await;
            said.clear();
            let meant = Target::Name(name.clone());
            // Apart: what it needs would else be a part of every connection.
            match (greeted, Box::pin(inspected::take(&slot, client, &meant, port)).await) {
                (Ok(None), Some(back)) => client = back,
                _ => return,
            }
        }
    }
    let sending = Sending::on(&slot.0);
    let is_socks = matches!(opening, Opening::Socks);
    let mut entry = Entry {
        shared: &slot.0,
        begun: Instant::now(),
        up: Cell::new(0),
        down: Cell::new(0),
        client: Client::of(&client),
        request: begun(host, Some(port)),
    };
    let passed = match target {
        Ok(target) => pass(&mut entry, &client, (sending, opening), (&target, port), &mut said).await,
        Err(refusal) => Err(Stop::Refused(refusal)),
    };
    let Err(stop) = passed else { return };
    let request = &mut entry.request;
    match stop {
        Stop::Refused(refusal) => {
            request.verdict = Verdict::Refused;
            (request.why, request.allow) = (Some(refusal.why), refusal.allow);
            request.rule = refusal.rule.or_else(|| request.rule.take());
        }
        // Once it is passed on, how it ends is between the two.
        Stop::Failed(_) if request.address.is_some() => {}
        Stop::Failed(why) => (request.verdict, request.why) = (Verdict::Failed, Some(why)),
    }
    if request.verdict == Verdict::Refused && !shared.ledger.knows(request) {
        entry.client.find(&shared.clients, &shared.ledger).await;
    }
    let request = &entry.request;
    let end = (request.verdict, request.why.clone().unwrap_or_default(), request.allow.clone());
    let is_dialled = entry.request.address.is_some();
    let has_begun = entry.up.get() + entry.down.get() > 0;
    // Told before the client is: what it does next may be its end.
    drop(entry);
    if has_begun {
        // In the midst of what the server says, an answer would be taken for the server's.
        return reset(&client);
    }
    if is_socks && !is_dialled {
        // Not allowed by the rules; the host cannot be reached (RFC 1928, 6).
        let code = if end.0 == Verdict::Refused { 2 } else { 4 };
        let told = timeout(COURTESY, passing::last_words(&client, &proxy::socks_answer(code))).await;
        return if matches!(told, Ok(Ok(()))) { drop(client) } else { reset(&client) };
    }
    let courtesy = if matches!(port, 80 | 443) { COURTESY } else { COURTESY_TO_LISTENERS };
    answer(&client, said, courtesy, &end).await;
}

/// What the address that was connected to means.
fn target(shared: &Shared, address: IpAddr) -> Result<Target, Refusal> {
    if let Some(name) = shared.issued.borrow().meaning(address) {
        return Ok(Target::Name(name.clone()));
    }
    if names::stands_for_a_name(address) {
        return Err(Refusal::because("no name has this address; ask the box's name service"));
    }
    Ok(Target::Address(address))
}

/// Refuses what is not passed on unread, however it came here: past the reader rules for requests would not be kept.
fn unread(policy: &Policy, target: &Target, port: u16) -> Result<(), Refusal> {
    let is_read = matches!(target, Target::Name(name) if policy.inspected().is_read_always(name, port));
    let why = "requests to this host are read, and not passed on unread: ask for it by http://";
    if is_read { Err(Refusal::because(why)) } else { Ok(()) }
}

/// Waits until the policy denies what it has allowed.
async fn denied(shared: &Shared, (target, port): (&Target, u16), at: Option<IpAddr>) -> Refusal {
    let asked = || {
        let policy = shared.policy.borrow();
        unread(&policy, target, port)?;
        policy.decide(target, port)?;
        match (target, at) {
            (Target::Name(name), Some(at)) => policy.judge(name, at, port),
            _ => Ok(()),
        }
    };
    loop {
        if let Err(refusal) = asked() {
            return refusal;
        }
        shared.changed.notified().await;
    }
}

async fn pass(
    entry: &mut Entry<'_>,
    client: &TcpStream,
    (sending, opening): (Sending<'_>, Opening),
    (target, port): (&Target, u16),
    said: &mut Vec<u8>,
) -> Result<(), Stop> {
    let shared = entry.shared;
    unread(&shared.policy.borrow(), target, port).map_err(Stop::Refused)?;
    entry.request.rule = Some(shared.policy.borrow().decide(target, port).map_err(Stop::Refused)?.to_string());
    entry.client.ask(&shared.clients, &shared.ledger);
    client.set_nodelay(true)?;
    let expected = match port {
        443 => Expected::Tls,
        80 => Expected::Http,
        _ => Expected::Anything,
    };
    let late = |_| Stop::Refused(Refusal::because("the client said too little for too long"));
    let mut first = None;
    match (&opening, target) {
        (Opening::Plain, Target::Name(name)) if expected != Expected::Anything => {
            first = Some(timeout(FIRST_WORDS, first_words(client, name, port, expected, said)).await.map_err(late)??);
        }
        (Opening::Request(_), _) if expected == Expected::Tls => {
            return Err(Stop::Refused(Refusal::because("it does not speak TLS")));
        }
        _ => {}
    }
    let server = dial::dial(shared, target, port).await?;
    // What it said is on its way and not needed for an answer any more.
    *said = Vec::new();
    first = greet(client, opening).await?.or(first);
    // A server that has reset the connection has none any more.
    let at = server.peer_addr().ok().map(|address| address.ip().to_canonical());
    entry.request.address = at.map(|address| address.to_string());
    let (asked, is_asked) = oneshot::channel();
    let up = async {
        let mut first = match (first, target) {
            (Some(first), _) => first,
            (None, Target::Name(name)) if expected == Expected::Anything => {
                first_words(client, name, port, expected, said).await?
            }
            // Behind a proxy's answer.
            (None, Target::Name(name)) => {
                timeout(FIRST_WORDS, first_words(client, name, port, expected, said)).await.map_err(late)??
            }
            (None, Target::Address(_)) => Vec::new(),
        };
        if let (Target::Name(name), Some(22)) = (target, first.first()) {
            // Nothing behind the hello before it is known whether the server asks for another one.
            let behind = first.split_off(hello::length(&first));
            send(shared, &server, &first, &entry.up).await?;
            first = if is_asked.await.unwrap_or(false) { another(client, name, behind).await? } else { behind };
        }
        send(shared, &server, &first, &entry.up).await?;
        drop(first);
        shared.pipes.pass(client, &server, &entry.up, &shared.meter).await?;
        drop(sending);
        Ok(())
    };
    let down = async {
        if let Target::Name(_) = target {
            let answer = answer_to_hello(&server).await?;
            // Where no hello was sent, nobody waits for that.
            asked.send(hello::asks_again(&answer)).unwrap_or_default();
            send(shared, client, &answer, &entry.down).await?;
        }
        shared.pipes.pass(&server, client, &entry.down, &shared.meter).await
    };
    let passed = tokio::select! {
        biased;
        // First: while the client and the server were waited for, the policy may have changed, and not a byte is to leave.
        refusal = denied(shared, (target, port), at) => Err(Stop::Refused(refusal)),
        passed = async { tokio::try_join!(up, down) } => passed.map(|((), ())| ()),
    };
    if passed.is_err() {
        // Neither side takes a connection that broke for one that ended.
        reset(&server);
    }
    passed
}

/// Tells a client of the proxy that it is connected; gives what it has said already to the server.
async fn greet(client: &TcpStream, opening: Opening) -> io::Result<Option<Vec<u8>>> {
    match opening {
        Opening::Plain => {}
        Opening::Connect => passing::write(client, proxy::CONNECTED).await?,
        Opening::Socks => passing::write(client, &proxy::socks_answer(0)).await?,
        Opening::Request(head) => return Ok(Some(head)),
    }
    Ok(None)
}

/// Writes and counts.
async fn send(shared: &Shared, to: &TcpStream, bytes: &[u8], count: &Cell<u64>) -> io::Result<()> {
    passing::write(to, bytes).await?;
    shared.meter.moved(bytes.len());
    count.set(count.get().saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX)));
    Ok(())
}

/// The beginning of what a server says, as far as it may ask for another hello.
async fn answer_to_hello(server: &TcpStream) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    while answer.len() < hello::ANSWER
        && answer.iter().zip([22, 3]).all(|(byte, of_tls)| *byte == of_tls)
        && passing::read(server, &mut answer, hello::ANSWER).await?
    {}
    Ok(answer)
}

/// Reads on until the client's second hello is seen to be for `name` too.
async fn another(client: &TcpStream, name: &Name, mut said: Vec<u8>) -> Result<Vec<u8>, Stop> {
    loop {
        match hello::read_again(&said) {
            Hello::Asks(asked) if Name::new(&asked).as_ref() == Some(name) => return Ok(said),
            Hello::Asks(asked) => return Err(other(name, "second TLS hello", &asked)),
            Hello::Refused(why) => return Err(Stop::Refused(Refusal::because(why))),
            Hello::Incomplete => {}
        }
        if !passing::read(client, &mut said, hello::MAX_AGAIN + 1).await? {
            return Err(Stop::Failed("the client went away".into()));
        }
    }
}

fn other(name: &Name, kind: &str, untrusted_name: &str) -> Stop {
    let shown: String = untrusted_name.escape_debug().take(100).collect();
    Stop::Refused(Refusal::because(format!("it was connected for {name}, and its {kind} asks for {shown}")))
}

/// Reads until it is clear that the client means `name`; gives what to pass on in place of what it `said`.
async fn first_words(
    client: &TcpStream,
    name: &Name,
    port: u16,
    expected: Expected,
    said: &mut Vec<u8>,
) -> Result<Vec<u8>, Stop> {
    loop {
        let speaks_tls = expected == Expected::Tls || expected == Expected::Anything && said.first() == Some(&22);
        let beginning = request::beginning(said);
        let speaks_http =
            expected == Expected::Http || expected == Expected::Anything && beginning == Beginning::Request;
        let refused = if said.is_empty() {
            None
        } else if speaks_tls {
            match hello::read(said) {
                Hello::Asks(asked) if Name::new(&asked).as_ref() == Some(name) => return Ok(said.clone()),
                Hello::Asks(asked) => return Err(other(name, "TLS hello", &asked)),
                Hello::Incomplete => None,
                Hello::Refused(why) => Some(why),
            }
        } else if speaks_http {
            match request::read(said) {
                Head::Asks { host, mut head, length } if request::is_for(&host, name, port) => {
                    head.extend_from_slice(&said[length..]);
                    return Ok(head);
                }
                Head::Asks { host, .. } => return Err(other(name, "request", &host)),
                Head::Incomplete => None,
                Head::Refused(why) => Some(why),
            }
        } else if beginning == Beginning::Unclear {
            // More than that is not read before it is clear, and so not passed on.
            (said.len() > request::MAX_HEAD).then_some("it is too long in saying what it speaks")
        } else {
            return Ok(said.clone());
        };
        if let Some(why) = refused {
            return Err(Stop::Refused(Refusal::because(why)));
        }
        let most = hello::MAX_HELLO.max(request::MAX_HEAD) + 1;
        if !passing::read(client, said, most).await? {
            return match expected {
                // A client that has nothing to say listens.
                Expected::Anything => Ok(said.clone()),
                _ => Err(Stop::Failed("the client went away".into())),
            };
        }
    }
}

/// Tells a client that it was not passed on, in the words of what it speaks.
async fn answer(
    client: &TcpStream,
    mut said: Vec<u8>,
    courtesy: Duration,
    (verdict, why, allow): &(Verdict, String, Option<String>),
) {
    if said.is_empty() && *verdict == Verdict::Refused {
        // Nobody hears what is said to a client that speaks another language: it is not waited for long.
        let heard = timeout(courtesy, passing::read(client, &mut said, 4096)).await;
        drop(heard);
    }
    let is_request = |said: &[u8]| request::beginning(said) == Beginning::Request;
    let words = match (verdict, said.first()) {
        (Verdict::Refused, Some(22)) => hello::ACCESS_DENIED.to_vec(),
        (Verdict::Refused, _) if is_request(&said) => request::forbidden(why, allow.as_deref()),
        (Verdict::Failed, _) if is_request(&said) => request::bad_gateway(why),
        _ => return reset(client),
    };
    let told = timeout(COURTESY, passing::last_words(client, &words)).await;
    if !matches!(told, Ok(Ok(()))) {
        reset(client);
    }
}
