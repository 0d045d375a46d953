//! The connection to a host on behalf of one client's connection: TLS that is verified, and kept as long as both like.
//!
//! Invariant: it leads to the host that the client was connected for, which has shown a certificate for that name; a key is
//! written into nothing else.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::exchange::{Asked, Passed};
use super::{MAX_HEAD, MOST_HEADERS};
use crate::broker::connection::Stop;
use crate::broker::{Shared, dial};
use crate::policy::{Refusal, Target};

/// For a TLS handshake.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that may be there already.
#[derive(Default)]
pub(super) struct Upstream {
    idle: RefCell<Option<SendRequest<Passed>>>,
}

impl Upstream {
    /// Sends one request; `told` hears where to.
    pub(super) async fn send(
        &self,
        shared: &Shared,
        asked: &Asked,
        request: Request<Passed>,
        told: impl Fn(String),
    ) -> Result<Response<Incoming>, Stop> {
        let mut request = request;
        let kept = self.idle.borrow_mut().take();
        if let Some(mut kept) = kept
            && kept.ready().await.is_ok()
        {
            match kept.try_send_request(request).await {
                Ok(response) => {
                    self.idle.replace(Some(kept));
                    return Ok(response);
                }
                // It was closed in between, and has heard nothing of this.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(Stop::Failed(error.into_error().to_string())),
                },
            }
        }
        let mut fresh = connect(shared, asked, told).await?;
        let response = fresh.send_request(request).await.map_err(|error| Stop::Failed(error.to_string()))?;
        self.idle.replace(Some(fresh));
        Ok(response)
    }
}

async fn connect(shared: &Shared, asked: &Asked, told: impl Fn(String)) -> Result<SendRequest<Passed>, Stop> {
    let Some(prepared) = &shared.prepared else { return Err(Stop::Failed("nothing is prepared for it".into())) };
    let stream = dial::dial(shared, &Target::Name(asked.name.clone()), asked.site.port).await?;
    told(stream.peer_addr().map(|address| address.ip().to_string()).unwrap_or_default());
    let name = ServerName::try_from(asked.name.to_string()).map_err(|error| Stop::Failed(error.to_string()))?;
    let connecting = TlsConnector::from(Arc::clone(&prepared.client)).connect(name, stream);
    let late = |late: tokio::time::error::Elapsed| Stop::from(io::Error::from(late));
    let stream = timeout(PATIENCE, connecting).await.map_err(late)?.map_err(|error| match error.kind() {
        // It is not who it should be, and will not be the next time.
        io::ErrorKind::InvalidData => {
            Stop::Refused(Refusal::because(format!("the server cannot show that it is {}: {error}", asked.name)))
        }
        _ => Stop::Failed(format!("cannot connect: {error}")),
    })?;
    let mut client = http1::Builder::new();
    client.max_buf_size(2 * MAX_HEAD).max_header_size(MAX_HEAD).max_headers(MOST_HEADERS);
    let (sender, connection) =
        client.handshake(TokioIo::new(stream)).await.map_err(|error| Stop::Failed(error.to_string()))?;
    tokio::task::spawn_local(async move {
        // What is wrong with it, the request that it is for is told.
        connection.await.unwrap_or_default();
    });
    Ok(sender)
}
