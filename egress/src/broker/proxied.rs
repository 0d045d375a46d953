//! The proxy inside the box, for programs that insist on one: asks the same policy, and ends in the same connection.
//!
//! Invariant: a client is told that it is connected when the connection to the server is there, and what it says then is
//! checked as if it had connected itself.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connection::{self, Opening};
use super::{Slot, passing};
use crate::policy::{Refusal, Target};
use crate::proxy::{self, Asked, SOCKS_METHOD};
use crate::request::MAX_HEAD;

/// For a client to say where it wants to go.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves a client of the proxy to its end.
pub(super) async fn serve(slot: Slot, client: TcpStream) {
    let mut said = Vec::new();
    let mut is_socks = false;
    let heard = timeout(PATIENCE, hear(&client, &mut said, &mut is_socks)).await;
    let (target, port, opening) = match heard {
        Ok(Ok(Asked::Connection(target, port))) if is_socks => (Ok(target), port, Opening::Socks),
        Ok(Ok(Asked::Connection(target, port))) => (Ok(target), port, Opening::Connect),
        Ok(Ok(Asked::Request(target, port, head))) => (Ok(target), port, Opening::Request(head)),
        Ok(Ok(Asked::Refused(why))) => {
            let opening = if is_socks { Opening::Socks } else { Opening::Connect };
            (Err(Refusal::because(why)), proxy::PROXY.1, opening)
        }
        // It went away.
        Ok(Ok(Asked::Incomplete) | Err(_)) => return,
        Err(_late) => {
            let why = "the client said too little for too long";
            (Err(Refusal::because(why)), proxy::PROXY.1, Opening::Connect)
        }
    };
    let shared = Rc::clone(&slot.0);
    let (host, target) = match target {
        Ok(Target::Name(name)) => {
            let known = shared.policy.borrow().knows(&name);
            (name.to_string(), known.map(|()| Target::Name(name)))
        }
        // A client that asked the name service for itself.
        Ok(Target::Address(address)) => connection::meant(&shared, address),
        Err(refusal) => ("(proxy)".into(), Err(refusal)),
    };
    connection::conduct(slot, client, (host, target, port), opening, said).await;
}

/// Reads until it is clear what is asked for; `is_socks` when SOCKS5 is agreed on.
async fn hear(client: &TcpStream, said: &mut Vec<u8>, is_socks: &mut bool) -> io::Result<Asked> {
    loop {
        let asked = if *is_socks {
            proxy::socks(said)
        } else if said.first() == Some(&5) {
            match proxy::socks_greeting(said) {
                Ok(Some(length)) => {
                    said.drain(..length);
                    passing::write(client, &SOCKS_METHOD).await?;
                    *is_socks = true;
                    continue;
                }
                Ok(None) => Asked::Incomplete,
                Err(why) => Asked::Refused(why),
            }
        } else {
            proxy::http(said)
        };
        if asked != Asked::Incomplete || !passing::read(client, said, MAX_HEAD + 1).await? {
            return Ok(asked);
        }
    }
}
