//! The sockets of the name service: datagrams, and streams for clients that prefer them.
//!
//! Invariant: every question is answered from memory, so none waits and none is kept.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::client::Client;
use super::{Shared, Slot, passing};
use crate::dns::{self, Found, MAX_QUESTION};
use crate::name::Name;
use crate::policy::{NAME_SERVICE, Refusal};

/// For how long a stream may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// Questions of a stream.
const MOST_QUESTIONS: usize = 64;

/// Answers datagrams.
pub(super) async fn datagrams(shared: Rc<Shared>, socket: UdpSocket) {
    let socket = Rc::new(socket);
    // One byte more: what is longer is seen to be.
    let mut question = [0; MAX_QUESTION + 1];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut question).await else { continue };
        let Some((answer, refused)) = answer(&shared, &question[..length]) else { continue };
        let Some((untrusted_name, refusal)) = refused else {
            // A client that is gone, or that does not take its answers, asks again.
            socket.send_to(&answer, from).await.unwrap_or_default();
            continue;
        };
        let (shared, socket) = (Rc::clone(&shared), Rc::clone(&socket));
        // Beside the questions of others: it may wait until it is known who has asked. What is known begins nothing.
        let told = async move {
            let client = Client::of_datagram(from, SocketAddr::from(NAME_SERVICE));
            let host = (untrusted_name.as_str(), None);
            shared.ledger.refuse_to((&client, &shared.clients), host, &refusal).await;
            socket.send_to(&answer, from).await.unwrap_or_default();
        };
        tokio::task::spawn_local(told);
    }
}

/// Answers a stream of questions, each behind its length.
pub(super) async fn stream(slot: Slot, client: TcpStream) {
    let answered = async {
        let mut bytes = Vec::new();
        for _ in 0..MOST_QUESTIONS {
            let question = loop {
                if let Some((length, rest)) = bytes.split_first_chunk::<2>() {
                    let length = usize::from(u16::from_be_bytes(*length));
                    if length > MAX_QUESTION {
                        return Ok(());
                    }
                    if let Some(question) = rest.get(..length) {
                        break question.to_vec();
                    }
                }
                let more = timeout(SILENCE, passing::read(&client, &mut bytes, 2 + MAX_QUESTION)).await;
                if !more.map_err(io::Error::from)?? {
                    return Ok(());
                }
            };
            bytes.drain(..2 + question.len());
            let shared = &slot.0;
            let Some((answer, refused)) = answer(shared, &question) else { return Ok(()) };
            if let Some((untrusted_name, refusal)) = refused {
                let whose = (&Client::of(&client), &shared.clients);
                shared.ledger.refuse_to(whose, (&untrusted_name, None), &refusal).await;
            }
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let message = [&length.to_be_bytes()[..], &answer].concat();
            timeout(SILENCE, passing::write(&client, &message)).await.map_err(io::Error::from)??;
        }
        Ok::<(), io::Error>(())
    };
    // Whatever went wrong, it is the client's own loss.
    answered.await.unwrap_or_default();
}

/// A name that was asked for, and why it is refused.
type Refused = (String, Refusal);

/// The answer to a question, and what was refused by it.
fn answer(shared: &Shared, untrusted_question: &[u8]) -> Option<(Vec<u8>, Option<Refused>)> {
    let mut refusal = Refusal::because("it is no host name");
    let find = |name: &Name| {
        if let Err(refused) = shared.policy.borrow().knows(name) {
            refusal = refused;
            return Found::Nowhere;
        }
        if let Some(addresses) = shared.issued.borrow_mut().issue(name) {
            Found::At(addresses.v4, shared.v6.get().then_some(addresses.v6))
        } else {
            refusal = Refusal::because("too many names below one rule");
            Found::Full
        }
    };
    let (answer, unknown) = dns::answer(untrusted_question, find)?;
    // What an address is called is asked by habit, before and after every connection.
    let refused = unknown.filter(|name| !name.to_ascii_lowercase().ends_with(".arpa"));
    Some((answer, refused.map(|untrusted_name| (untrusted_name, refusal))))
}
