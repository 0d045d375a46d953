//! Connections whose requests are read: taken apart by hyper, decided on one by one, and asked anew of the host over TLS.
//!
//! ```text
//! inspected   what a client begins with, and its connection
//! prepared    before the broker locks itself: authorities that are believed, keys, the job's own authority
//! exchange    one request: decided on, cleaned, given its key; its answer
//! upstream    the connection to the host that this is about, and to no other
//! headers     what of a head is about the connection, and what is a credential
//! ```
//!
//! Invariant: what is sent to a host was put together here out of what one parser has read. Nothing of a client's framing is
//! passed on, so no two programs can disagree about where a request ends.

pub(super) mod exchange;
mod headers;
pub(super) mod prepared;
mod upstream;

use std::io;
use std::rc::Rc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::server::Acceptor;

use super::client::Client;
use super::{Shared, Slot, reset};
use crate::name::Name;
use crate::policy::{Refusal, Target};
use exchange::{Asked, Exchanges};

/// Bytes of a head, and of what waits to be passed on.
const MAX_HEAD: usize = 32 << 10;

/// Headers of a head.
const MOST_HEADERS: usize = 100;

/// For a head, or the next one.
const PATIENCE: Duration = Duration::from_secs(30);

/// For what a client begins with.
const FIRST_WORDS: Duration = Duration::from_secs(10);

/// The first byte of TLS.
const HANDSHAKE: u8 = 22;

/// Such connections at once: each may hold some 100 KiB.
const MOST: usize = 256;

/// Serves a connection whose requests are to be read; gives any other back.
pub(super) async fn take(slot: &Slot, client: TcpStream, target: &Target, port: u16) -> Option<TcpStream> {
    let shared = &slot.0;
    let Target::Name(name) = target else { return Some(client) };
    let Some(site) = shared.policy.borrow().inspected().site(name, port) else { return Some(client) };
    let whose = Rc::new(Client::of(&client));
    whose.ask(&shared.clients, &shared.ledger);
    let refuse = async |refusal: &Refusal| {
        let host = (name.as_str(), Some(port));
        shared.ledger.refuse_to((&whose, &shared.clients), host, refusal).await;
    };
    let Ok(first) = timeout(FIRST_WORDS, first_byte(&client)).await else {
        refuse(&Refusal::because("the client said too little for too long")).await;
        reset(&client);
        return None;
    };
    let is_tls = match first {
        Ok(Some(HANDSHAKE)) if !site.terminates => return Some(client),
        Ok(Some(first)) => first == HANDSHAKE,
        Ok(None) | Err(_) => return None,
    };
    let Some(_one) = One::take(shared) else {
        refuse(&Refusal::because(format!("more than {MOST} connections at once whose requests are read"))).await;
        reset(&client);
        return None;
    };
    let asked = Asked { name: name.clone(), site, port };
    // A client that cannot have it is no reason not to serve it.
    client.set_nodelay(true).unwrap_or_default();
    if is_tls {
        match timeout(FIRST_WORDS, terminate(shared, client, name)).await {
            Ok(Ok(client)) => requests(shared, client, asked, &whose).await,
            Ok(Err(Some(why))) => refuse(&Refusal::because(why)).await,
            Ok(Err(None)) => {}
            Err(_late) => refuse(&Refusal::because("the client said too little for too long")).await,
        }
    } else {
        requests(shared, client, asked, &whose).await;
    }
    None
}

/// What a client begins with; it stays to be read.
async fn first_byte(client: &TcpStream) -> io::Result<Option<u8>> {
    let mut first = [0];
    let length = client.peek(&mut first).await?;
    Ok((length > 0).then_some(first[0]))
}

/// One of the connections whose requests can be read at once.
struct One<'a>(&'a Shared);

impl<'a> One<'a> {
    fn take(shared: &'a Shared) -> Option<Self> {
        let taken = shared.inspecting.get();
        (taken < MOST).then(|| {
            shared.inspecting.set(taken + 1);
            One(shared)
        })
    }
}

impl Drop for One<'_> {
    fn drop(&mut self) {
        self.0.inspecting.set(self.0.inspecting.get() - 1);
    }
}

/// Ends a client's TLS here; `Some` error where that is to be told.
async fn terminate(
    shared: &Shared,
    client: TcpStream,
    name: &Name,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + use<>, Option<String>> {
    let hello = LazyConfigAcceptor::new(Acceptor::default(), client);
    let hello = hello.await.map_err(|error| Some(format!("its TLS hello is not understood: {error}")))?;
    let said = hello.client_hello().server_name().map(str::to_owned);
    if said.as_deref().and_then(Name::new).as_ref() != Some(name) {
        let shown: String = said.unwrap_or_default().escape_debug().take(100).collect();
        return Err(Some(format!("it was connected for {name}, and its TLS hello asks for {shown}")));
    }
    let authority = shared.prepared.as_ref().and_then(|prepared| prepared.authority.as_ref()).ok_or(None)?;
    let config =
        authority.certify(name).map_err(|error| Some(format!("no certificate can be made for it: {error}")))?;
    // That a client does not believe the job's authority is worth a word: it says so by an alert.
    hello.into_stream(config).await.map_err(|error| Some(format!("the client did not go on with TLS: {error}")))
}

/// Serves the requests of one client, one after the other.
async fn requests(shared: &Rc<Shared>, client: impl AsyncRead + AsyncWrite + Unpin, asked: Asked, whose: &Rc<Client>) {
    let exchanges = Rc::new(Exchanges::new(Rc::clone(shared), asked, Rc::clone(whose)));
    let service = service_fn(|request| {
        let exchanges = Rc::clone(&exchanges);
        async move { Ok::<_, std::convert::Infallible>(exchanges.exchange(request).await) }
    });
    let mut connection = http1::Builder::new();
    connection.max_header_size(MAX_HEAD).max_buf_size(2 * MAX_HEAD).max_headers(MOST_HEADERS);
    connection.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let served = connection.serve_connection(TokioIo::new(client), service).await;
    // hyper has told the client; whatever else ends a connection is between the two.
    if let Err(error) = served
        && error.is_parse()
    {
        exchanges.refuse(&Refusal::because(format!("its request is malformed: {error}"))).await;
    }
}
