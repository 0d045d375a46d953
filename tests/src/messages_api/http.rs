//! As much of HTTP/1.1 as one local client needs: requests with `Content-Length`, answers with it, kept-alive
//! connections.
//!
//! Invariant: no request makes it hold more than [`MAX_HEAD`] + [`MAX_BODY`] bytes or wait longer than [`PATIENCE`]
//! for the next one.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Request line and headers together.
const MAX_HEAD: u64 = 64 << 10;
/// The API's own limit for a request.
const MAX_BODY: u64 = 32 << 20;
/// Longer than a tool that an agent waits for between two requests.
const PATIENCE: Duration = Duration::from_secs(300);

pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    /// In lower case, in the order they came.
    pub(super) header_names: Vec<String>,
    /// `x-api-key`.
    pub(super) key: Option<String>,
    pub(super) body: Vec<u8>,
}

/// Why there is no request.
pub(super) enum Refused {
    /// The connection broke.
    Io(io::Error),
    /// The client gets this status and the connection ends.
    Status(u16),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A connection's bytes, with TLS around them or without.
trait Stream: Read + Write {}

impl<S: Read + Write> Stream for S {}

pub(super) struct Connection {
    stream: BufReader<Box<dyn Stream>>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, tls: Option<&Arc<ServerConfig>>) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(config) => {
                let connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
                Box::new(StreamOwned::new(connection, stream))
            }
        };
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// The next request, or none when the client is done.
    pub(super) fn request(&mut self) -> Result<Option<Request>, Refused> {
        let mut head = (&mut self.stream).take(MAX_HEAD);
        let Some(first) = line(&mut head)? else { return Ok(None) };
        let mut words = first.split(' ');
        let (Some(method), Some(path), Some("HTTP/1.1")) = (words.next(), words.next(), words.next()) else {
            return Err(Refused::Status(400));
        };
        let (method, path) = (method.to_owned(), path.to_owned());
        let (mut header_names, mut key) = (Vec::new(), None);
        let mut length = None;
        loop {
            let header = line(&mut head)?.ok_or(Refused::Status(400))?;
            if header.is_empty() {
                break;
            }
            let (name, value) = header.split_once(':').ok_or(Refused::Status(400))?;
            let name = name.to_ascii_lowercase();
            match name.as_str() {
                "content-length" if length.is_some() => return Err(Refused::Status(400)),
                "content-length" => length = Some(value.trim().parse().map_err(|_bad| Refused::Status(400))?),
                "x-api-key" => key = Some(value.trim().to_owned()),
                "transfer-encoding" => return Err(Refused::Status(411)),
                _ => {}
            }
            header_names.push(name);
        }
        let length: u64 = length.unwrap_or(0);
        if length > MAX_BODY {
            return Err(Refused::Status(413));
        }
        let mut body = Vec::new();
        (&mut self.stream).take(length).read_to_end(&mut body)?;
        if body.len() as u64 != length {
            return Err(Refused::Status(400));
        }
        Ok(Some(Request { method, path, header_names, key, body }))
    }

    pub(super) fn respond(&mut self, status: u16, kind: &str, body: &str, head_only: bool) -> io::Result<()> {
        let reason = match status {
            200 => "OK",
            401 => "Unauthorized",
            404 => "Not Found",
            411 => "Length Required",
            413 => "Content Too Large",
            431 => "Request Header Fields Too Large",
            _ => "Bad Request",
        };
        let length = body.len();
        let head = format!("HTTP/1.1 {status} {reason}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n");
        // One write: header and body in one segment spare the client's delayed acknowledgement.
        let answer = if head_only { head } else { head + body };
        self.stream.get_mut().write_all(answer.as_bytes())?;
        self.stream.get_mut().flush()
    }
}

/// A line without its end; none at the end of the stream.
fn line(head: &mut io::Take<&mut BufReader<Box<dyn Stream>>>) -> Result<Option<String>, Refused> {
    let mut bytes = Vec::new();
    head.read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() && head.limit() > 0 {
        return Ok(None);
    }
    if bytes.pop() != Some(b'\n') {
        return Err(Refused::Status(if head.limit() == 0 { 431 } else { 400 }));
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    String::from_utf8(bytes).map(Some).map_err(|_not_text| Refused::Status(400))
}
