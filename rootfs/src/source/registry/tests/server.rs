//! A server of HTTP/1.1 that answers as a test says, keeps what it was asked, and misbehaves on demand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The first byte that is wanted.
    pub(super) fn from(&self) -> usize {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        range.map_or(0, |first| first.parse().unwrap())
    }
}

/// What comes after the bytes of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    GoOn,
    Close,
    /// Nothing more, until the test ends.
    Stall,
    /// A byte now and then, until the client has had enough.
    Drip,
    /// Bytes without end.
    Flood,
}

#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// `Content-Length`, if it is not the body's.
    pub(super) promised: Option<usize>,
    pub(super) then: Then,
}

pub(super) fn reply(status: u16, body: impl AsRef<[u8]>) -> Reply {
    Reply { status, headers: Vec::new(), body: body.as_ref().to_vec(), promised: None, then: Then::GoOn }
}

impl Reply {
    pub(super) fn header(mut self, name: &str, value: impl ToString) -> Reply {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// Ends after `length` bytes of the body, all of which were promised.
    pub(super) fn cut(mut self, length: usize, then: Then) -> Reply {
        self.promised = Some(self.body.len());
        self.body.truncate(length);
        self.then = then;
        self
    }

    /// A body of unknown length.
    pub(super) fn unbounded(mut self, then: Then) -> Reply {
        self.then = then;
        self.header("transfer-encoding", "chunked")
    }
}

type Script = dyn Fn(&Asked) -> Reply + Send + Sync;

#[derive(Default)]
struct Shared {
    asked: Mutex<Vec<Asked>>,
    handshakes: Mutex<usize>,
    closing: Mutex<bool>,
    closed: Condvar,
    open: Mutex<Vec<TcpStream>>,
}

pub(super) struct Server {
    pub(super) port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let script: Arc<Script> = Arc::new(script);
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let mut connections = Vec::new();
                for stream in listener.incoming() {
                    let stream = stream.unwrap();
                    if *shared.closing.lock().unwrap() {
                        break;
                    }
                    shared.open.lock().unwrap().push(stream.try_clone().unwrap());
                    let (shared, script) = (Arc::clone(&shared), Arc::clone(&script));
                    connections.push(thread::spawn(move || serve(stream, &shared, &*script)));
                }
                connections.into_iter().for_each(|connection| connection.join().unwrap());
            }
        });
        Server { port, shared, accepting: Some(accepting) }
    }

    pub(super) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The requests so far, but for those that only find out whether it speaks TLS.
    pub(super) fn asked(&self) -> Vec<Asked> {
        let mut asked = self.shared.asked.lock().unwrap().clone();
        asked.retain(|asked| asked.target != "/v2/");
        asked
    }

    pub(super) fn targets(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.target).collect()
    }

    /// How often a client tried TLS.
    pub(super) fn handshakes(&self) -> usize {
        *self.shared.handshakes.lock().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        *self.shared.closing.lock().unwrap() = true;
        self.shared.closed.notify_all();
        for stream in self.shared.open.lock().unwrap().drain(..) {
            stream.shutdown(Shutdown::Both).ok();
        }
        TcpStream::connect(("127.0.0.1", self.port)).ok();
        let ended = self.accepting.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}

fn serve(stream: TcpStream, shared: &Shared, script: &Script) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    if reader.fill_buf().is_ok_and(|bytes| bytes.first() == Some(&0x16)) {
        *shared.handshakes.lock().unwrap() += 1;
        // As Go's servers answer who speaks TLS to a port of plain HTTP.
        stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request to an HTTP server.\n").ok();
        stream.shutdown(Shutdown::Both).ok();
        return;
    }
    while let Some(asked) = request(&mut reader) {
        shared.asked.lock().unwrap().push(asked.clone());
        if asked.method == "CONNECT" {
            stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").unwrap();
            if reader.fill_buf().is_ok_and(|bytes| bytes.first() == Some(&0x16)) {
                break;
            }
            continue;
        }
        if !answer(&mut stream, &script(&asked), shared) {
            break;
        }
    }
    stream.shutdown(Shutdown::Both).ok();
}

/// Whether the connection goes on.
fn answer(stream: &mut TcpStream, reply: &Reply, shared: &Shared) -> bool {
    let mut head = format!("HTTP/1.1 {} Reason\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let chunked = reply.headers.iter().any(|(name, _)| name == "transfer-encoding");
    let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    let body = if chunked {
        if reply.body.is_empty() { Vec::new() } else { chunk(&reply.body) }
    } else {
        head += &format!("content-length: {}\r\n", reply.promised.unwrap_or(reply.body.len()));
        reply.body.clone()
    };
    let sent = [head.as_bytes(), b"\r\n", &body].concat();
    if stream.write_all(&sent).is_err() {
        return false;
    }
    match reply.then {
        Then::GoOn => !chunked || stream.write_all(b"0\r\n\r\n").is_ok(),
        Then::Close => false,
        Then::Stall => {
            let closing = shared.closing.lock().unwrap();
            drop(shared.closed.wait_while(closing, |closing| !*closing).unwrap());
            false
        }
        Then::Drip => {
            let mut closing = shared.closing.lock().unwrap();
            let step = std::time::Duration::from_millis(20);
            while !*closing && stream.write_all(if chunked { b"1\r\n \r\n" } else { b" " }).is_ok() {
                closing = shared.closed.wait_timeout(closing, step).unwrap().0;
            }
            false
        }
        Then::Flood => {
            let bytes = vec![b' '; 1 << 16];
            let bytes = if chunked { chunk(&bytes) } else { bytes };
            while stream.write_all(&bytes).is_ok() {}
            false
        }
    }
}

fn request(reader: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = || {
        let mut line = String::new();
        (reader.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    while let Some(header) = line().filter(|line| !line.is_empty()) {
        let (name, value) = header.split_once(':')?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length =
        headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, value)| value.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Asked { method, target, headers, body: String::from_utf8(body).unwrap() })
}
