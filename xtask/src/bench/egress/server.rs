//! What every way leads to: a server on the host's loopback that sends, takes, echoes and holds.
//!
//! Invariant: it does the same for whoever connects; it does not know which way a connection came.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

/// The first byte of a connection says what it is for: digits, which begin no protocol that the broker looks into.
pub(super) const SEND: u8 = b'1';
pub(super) const TAKE: u8 = b'2';
pub(super) const ECHO: u8 = b'3';
pub(super) const HOLD: u8 = b'4';

/// Bytes that are moved at once.
pub(super) const PART: usize = 128 << 10;

/// Connections that are held.
type Held = Arc<Mutex<Vec<TcpStream>>>;

/// The server; its threads end with the program.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) port: u16,
    held: Held,
}

impl Server {
    pub(super) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on the loopback")?;
        let port = listener.local_addr().context("ask for the port")?.port();
        let held = Held::default();
        let kept = Arc::clone(&held);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let held = Arc::clone(&kept);
                // A client that goes away is no business of the server's.
                std::thread::spawn(move || serve(stream, &held).unwrap_or_default());
            }
        });
        Ok(Self { port, held })
    }

    /// How many connections are held.
    pub(super) fn holds(&self) -> usize {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Lets them go.
    pub(super) fn release(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn serve(mut stream: TcpStream, held: &Held) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut what = [0];
    stream.read_exact(&mut what)?;
    let mut part = vec![0; PART];
    match what[0] {
        SEND => {
            let mut length = [0; 8];
            stream.read_exact(&mut length)?;
            let mut left = usize::try_from(u64::from_be_bytes(length)).unwrap_or(usize::MAX);
            while left > 0 {
                let next = part.get(..left.min(PART)).unwrap_or_default();
                stream.write_all(next)?;
                left -= next.len();
            }
        }
        TAKE => {
            while stream.read(&mut part)? > 0 {}
            stream.write_all(b"k")?;
        }
        HOLD => {
            stream.write_all(b"k")?;
            held.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
        }
        _ => loop {
            let read = stream.read(&mut part)?;
            if read == 0 {
                break;
            }
            stream.write_all(part.get(..read).unwrap_or_default())?;
        },
    }
    Ok(())
}
