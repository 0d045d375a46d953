//! From a name to a connection: looked up on the host when it is needed, judged, dialled.
//!
//! Invariant: an address is dialled only after the policy has judged it, and it is the address that was judged that is
//! dialled: the name is not looked up again in between.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Shared;
use super::connection::Stop;
use crate::name::Name;
use crate::policy::{Refusal, Target};

/// For how long an answer is used again: a program that opens ten connections at once asks once.
const FRESH: Duration = Duration::from_secs(10);

/// Answers that are kept, and addresses of an answer.
const MOST_ANSWERS: usize = 256;
const MOST_FOUND: usize = 64;

/// Addresses of a name that are tried.
const MOST_ADDRESSES: usize = 8;

/// Between the beginnings of two attempts (RFC 8305, 8).
const HEAD_START: Duration = Duration::from_millis(250);

/// For a look-up, and for all attempts together.
const PATIENCE: Duration = Duration::from_secs(20);

/// Connects to a target that is allowed at `port`.
pub(super) async fn dial(shared: &Shared, target: &Target, port: u16) -> Result<TcpStream, Stop> {
    let addresses: Vec<IpAddr> = match target {
        Target::Address(address) => vec![*address],
        Target::Name(name) => judged(shared, name, port).await?,
    };
    let failed = |error: io::Error| Stop::Failed(format!("cannot connect: {error}"));
    let begin = |address| shared.dialled.connect(&shared.ledger, SocketAddr::new(address, port));
    let connecting = race(addresses.into_iter().map(begin), HEAD_START);
    let stream = timeout(PATIENCE, connecting).await.map_err(|late| failed(late.into()))?.map_err(failed)?;
    // What is passed on in pieces was written in pieces.
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

/// The addresses to try, in order.
async fn judged(shared: &Shared, name: &Name, port: u16) -> Result<Vec<IpAddr>, Stop> {
    let found = look_up(shared, name).await?;
    let mut refusal = Refusal::because("the name has no address");
    let mut good = Vec::new();
    for address in found.iter().copied() {
        match shared.policy.borrow().judge(name, address, port) {
            Ok(()) => good.push(address),
            Err(refused) => refusal = refused,
        }
    }
    if good.is_empty() { Err(Stop::Refused(refusal)) } else { Ok(take_turns(&good)) }
}

async fn look_up(shared: &Shared, name: &Name) -> Result<Rc<[IpAddr]>, Stop> {
    let pinned = shared.policy.borrow().pinned(name);
    if !pinned.is_empty() {
        return Ok(pinned.into());
    }
    if let Some((at, known)) = shared.looked_up.borrow().get(name)
        && at.elapsed() < FRESH
    {
        return Ok(Rc::clone(known));
    }
    let failed = |error: io::Error| Stop::Failed(format!("cannot look the name up: {error}"));
    let host = name.to_string();
    let asking = ask(&shared.lookups, move || agentd_sys::names::absolute(&host));
    let answer = timeout(PATIENCE, asking).await.map_err(|late| failed(late.into()))?;
    let found: Rc<[IpAddr]> = answer.map_err(failed)?.into_iter().take(MOST_FOUND).collect();
    let mut looked_up = shared.looked_up.borrow_mut();
    if looked_up.len() >= MOST_ANSWERS {
        looked_up.clear();
    }
    looked_up.insert(name.clone(), (Instant::now(), Rc::clone(&found)));
    Ok(found)
}

/// Asks on a thread of its own, when there is one. Nobody can take a question back that waits for a thread: so it waits here,
/// and goes with the connection that it is for.
async fn ask<A: Send + 'static>(
    lookups: &Arc<Semaphore>,
    question: impl FnOnce() -> io::Result<A> + Send + 'static,
) -> io::Result<A> {
    let permit = Arc::clone(lookups).acquire_owned().await.map_err(io::Error::other)?;
    let asking = tokio::task::spawn_blocking(move || {
        let answer = question();
        drop(permit);
        answer
    });
    asking.await.map_err(io::Error::from).flatten()
}

/// IPv4 and IPv6 in turns, beginning as the host's resolver does (RFC 8305, 4).
fn take_turns(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for address in addresses {
        if address.is_ipv6() == first_is_v6 { first.push(*address) } else { second.push(*address) }
    }
    let mut turns = Vec::new();
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    loop {
        match (first.next(), second.next()) {
            (None, None) => break,
            (one, other) => turns.extend(one.into_iter().chain(other)),
        }
    }
    turns.truncate(MOST_ADDRESSES);
    turns
}

/// The first of them that answers; each begins when the one before it has failed, or has had its head start.
async fn race<A>(addresses: impl Iterator<Item = A>, head_start: Duration) -> io::Result<TcpStream>
where
    A: Future<Output = io::Result<TcpStream>> + Send + 'static,
{
    let mut addresses = addresses.fuse();
    let mut attempts = JoinSet::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        let next = addresses.next();
        let is_more = next.is_some();
        if let Some(attempt) = next {
            attempts.spawn(attempt);
        } else if attempts.is_empty() {
            return Err(last);
        }
        tokio::select! {
            Some(ended) = attempts.join_next() => match ended.map_err(io::Error::other).flatten() {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            },
            () = sleep(head_start), if is_more => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_there_is_a_bound() {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(take_turns(&parse(&["::1", "::2", "1.1.1.1"])), parse(&["::1", "1.1.1.1", "::2"]));
        assert_eq!(take_turns(&parse(&["1.1.1.1"])), parse(&["1.1.1.1"]));
        assert_eq!(take_turns(&vec![parse(&["1.1.1.1"])[0]; 100]).len(), MOST_ADDRESSES);
    }

    #[test]
    fn a_question_that_nobody_waits_for_is_not_asked() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let lookups = Arc::new(Semaphore::new(1));
        let (go, stop) = std::sync::mpsc::channel::<()>();
        let (asked, was_asked) = std::sync::mpsc::channel();
        runtime.block_on(async {
            let first = Arc::clone(&lookups);
            let slow = tokio::spawn(async move { ask(&first, move || stop.recv().map_err(io::Error::other)).await });
            while lookups.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
            let forgotten = ask(&lookups, move || asked.send(()).map_err(io::Error::other));
            assert!(timeout(Duration::from_millis(50), forgotten).await.is_err());
            go.send(()).unwrap();
            slow.await.unwrap().unwrap();
            assert_eq!(ask(&lookups, || Ok(7)).await.unwrap(), 7);
        });
        assert!(was_asked.try_recv().is_err());
    }

    #[test]
    fn an_address_that_refuses_costs_no_time() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let race = |addresses: [SocketAddr; 2]| {
            // A head start that was waited for would outlast anybody's patience.
            let racing = race(addresses.map(TcpStream::connect).into_iter(), PATIENCE * 100);
            runtime.block_on(async { timeout(PATIENCE, racing).await.unwrap() })
        };
        assert_eq!(race([closed, good]).unwrap().peer_addr().unwrap(), good);
        assert!(race([closed, closed]).is_err());
    }

    #[test]
    fn an_address_that_never_answers_does_not_keep_the_next_from_being_tried() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let attempt = |at: Option<SocketAddr>| async move {
            match at {
                Some(at) => TcpStream::connect(at).await,
                None => std::future::pending().await,
            }
        };
        let racing = race([None, Some(good)].map(attempt).into_iter(), Duration::from_millis(10));
        let stream = runtime.block_on(async { timeout(PATIENCE, racing).await.unwrap() }).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
    }
}
