//! A server on the host's loopback for what a box may or may not reach: keeps every byte it hears.
//!
//! Invariant: it listens at a port that the kernel chose, so tests do not meet each other.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How it answers.
#[derive(Debug, Clone, Copy)]
pub enum Manner {
    /// With these words, to the first that it hears.
    Answers(&'static [u8]),
    /// With what it heard, once it has heard the end.
    Echoes,
    /// As [`Manner::Echoes`], but it begins to read late.
    ReadsLate,
    /// With these words before it has heard anything, as an SSH server does; then it echoes.
    SpeaksFirst(&'static [u8]),
}

/// An answer to any HTTP request.
pub const OK: Manner = Manner::Answers(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n");

/// The server; its threads end with the test.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    heard: Arc<Mutex<Heard>>,
}

#[derive(Debug, Default)]
struct Heard {
    bytes: Vec<u8>,
    connections: usize,
}

impl Server {
    /// Listens at a free port of `ip`.
    #[track_caller]
    #[must_use]
    pub fn at(ip: &str, manner: Manner) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap_or_else(|e| panic!("{ip}: {e}"));
        Self::on(listener, manner)
    }

    /// Serves `listener`.
    #[track_caller]
    #[must_use]
    pub fn on(listener: TcpListener, manner: Manner) -> Self {
        let address = listener.local_addr().unwrap_or_else(|e| panic!("{e}"));
        let heard = Arc::<Mutex<Heard>>::default();
        let kept = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let heard = Arc::clone(&kept);
                std::thread::spawn(move || serve(stream, manner, &heard));
            }
        });
        Self { address, heard }
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What it heard so far, as text.
    #[must_use]
    pub fn heard(&self) -> String {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&heard.bytes).into_owned()
    }

    /// How many connected so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).connections
    }
}

/// A connection that breaks is one of the things tests do.
fn serve(mut stream: TcpStream, manner: Manner, heard: &Mutex<Heard>) {
    heard.lock().unwrap_or_else(PoisonError::into_inner).connections += 1;
    if let Manner::SpeaksFirst(words) = manner {
        stream.write_all(words).ok();
    }
    if matches!(manner, Manner::ReadsLate) {
        std::thread::sleep(Duration::from_millis(300));
    }
    let (mut part, mut whole, mut answered) = ([0; 65536], Vec::new(), false);
    while let Ok(read @ 1..) = stream.read(&mut part) {
        heard.lock().unwrap_or_else(PoisonError::into_inner).bytes.extend_from_slice(&part[..read]);
        match manner {
            Manner::Answers(words) if !answered => {
                answered = true;
                stream.write_all(words).ok();
                stream.shutdown(Shutdown::Write).ok();
            }
            Manner::Answers(_) => {}
            Manner::Echoes | Manner::ReadsLate | Manner::SpeaksFirst(_) => whole.extend_from_slice(&part[..read]),
        }
    }
    stream.write_all(&whole).ok();
}
