//! Connections to ports that were allowed while the job ran: Landlock keeps the broker from these, and what it gave up it
//! does not get back. The supervisor begins them, after a look at the port, and sends the socket (docs/adr/0020).
//!
//! Invariant: no more questions are kept than somebody waits for.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::ledger::Ledger;
use crate::told::Told;

#[derive(Debug)]
pub(super) struct Dialled {
    /// What the broker itself may dial.
    own: BTreeSet<u16>,
    last: Cell<u64>,
    waiting: RefCell<HashMap<u64, oneshot::Sender<OwnedFd>>>,
}

impl Dialled {
    pub(super) fn beside(own: BTreeSet<u16>) -> Self {
        Dialled { own, last: Cell::new(0), waiting: RefCell::default() }
    }

    /// Begins to connect; the end of it needs nothing of the broker's.
    pub(super) fn connect(
        &self,
        ledger: &Ledger,
        at: SocketAddr,
    ) -> impl Future<Output = io::Result<TcpStream>> + Send + 'static {
        let asked = (!self.own.contains(&at.port())).then(|| self.ask(ledger, at));
        async move {
            let Some(asked) = asked else { return TcpStream::connect(at).await };
            let gone = |_| io::Error::from(io::ErrorKind::NetworkUnreachable);
            let stream = TcpStream::from_std(asked.await.map_err(gone)?.into())?;
            // A socket that connects can be written to when it has ended that, well or not (connect(2)).
            stream.writable().await?;
            stream.take_error()?.map_or(Ok(stream), Err)
        }
    }

    fn ask(&self, ledger: &Ledger, at: SocketAddr) -> oneshot::Receiver<OwnedFd> {
        let id = self.last.get() + 1;
        self.last.set(id);
        let (answer, asked) = oneshot::channel();
        let mut waiting = self.waiting.borrow_mut();
        waiting.retain(|_, answer| !answer.is_closed());
        waiting.insert(id, answer);
        ledger.put(&Told::Dial { id, at });
        asked
    }

    /// What the supervisor sends.
    pub(super) fn answered(&self, id: u64, socket: Option<OwnedFd>) {
        if let (Some(answer), Some(socket)) = (self.waiting.borrow_mut().remove(&id), socket) {
            // Where nobody waits any more, the connection ends here.
            drop(answer.send(socket));
        }
    }
}
