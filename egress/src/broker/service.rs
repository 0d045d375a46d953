//! The sockets of the name service: datagrams, and streams for clients that prefer them.
//!
//! Invariant: every question is answered from memory, so none waits and none is kept.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::{Shared, Slot, passing};
use crate::dns::{self, Found, MAX_QUESTION};
use crate::name::Name;
use crate::policy::Refusal;

/// For how long a stream may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// Questions of a stream.
const MOST_QUESTIONS: usize = 64;

/// Answers datagrams.
pub(super) async fn datagrams(shared: Rc<Shared>, socket: UdpSocket) {
    // One byte more: what is longer is seen to be.
    let mut question = [0; MAX_QUESTION + 1];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut question).await else { continue };
        if let Some(answer) = answer(&shared, &question[..length]) {
            // A client that is gone, or that does not take its answers, asks again.
            socket.send_to(&answer, from).await.unwrap_or_default();
        }
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
            let Some(answer) = answer(&slot.0, &question) else { return Ok(()) };
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let message = [&length.to_be_bytes()[..], &answer].concat();
            timeout(SILENCE, passing::write(&client, &message)).await.map_err(io::Error::from)??;
        }
        Ok::<(), io::Error>(())
    };
    // Whatever went wrong, it is the client's own loss.
    answered.await.unwrap_or_default();
}

fn answer(shared: &Shared, untrusted_question: &[u8]) -> Option<Vec<u8>> {
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
    if let Some(untrusted_name) = unknown.filter(|name| !name.to_ascii_lowercase().ends_with(".arpa")) {
        shared.ledger.refuse(&untrusted_name, None, &refusal);
    }
    Some(answer)
}
