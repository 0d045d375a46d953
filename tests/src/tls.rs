//! A server that speaks HTTP over TLS on the host's loopback, with a certificate of an authority that the test has made.
//!
//! Invariant: what it tells of a request is what came over the wire, byte for byte: nothing is repaired or joined.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Whoever a test believes.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A new one, that nobody knows.
    #[track_caller]
    #[must_use]
    pub fn new() -> Self {
        let made = || -> Result<_, rcgen::Error> {
            let mut params = CertificateParams::new(Vec::new())?;
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate()?)
        };
        Self(made().unwrap_or_else(|e| panic!("authority: {e}")))
    }

    /// Writes its certificate to a file in PEM form.
    #[track_caller]
    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.0.pem()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// What a server of this name shows.
    #[track_caller]
    #[must_use]
    pub fn vouch_for(&self, name: &str) -> Arc<ServerConfig> {
        let made = || -> Result<_, Box<dyn std::error::Error>> {
            let key = KeyPair::generate()?;
            let certificate = CertificateParams::new([name.to_owned()])?.signed_by(&key, &self.0)?;
            let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
            let config = config.with_safe_default_protocol_versions()?.with_no_client_auth();
            let key = PrivateKeyDer::try_from(key.serialize_der())?;
            Ok(Arc::new(config.with_single_cert(vec![certificate.der().clone()], key)?))
        };
        made().unwrap_or_else(|e| panic!("certificate for {name}: {e}"))
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// What is answered to a request.
pub type Answer = fn(&str) -> Vec<u8>;

/// The server; its threads end with the test.
#[derive(Debug)]
pub struct TlsServer {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl TlsServer {
    /// Listens at a free port of 127.0.0.1 as `name`.
    #[track_caller]
    #[must_use]
    pub fn start(authority: &Authority, name: &str, answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|e| panic!("{e}"));
        let address = listener.local_addr().unwrap_or_else(|e| panic!("{e}"));
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let (kept, config) = (Arc::clone(&heard), authority.vouch_for(name));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (heard, config) = (Arc::clone(&kept), Arc::clone(&config));
                // A connection that breaks is one of the things tests do.
                std::thread::spawn(move || serve(stream, config, answer, &heard).ok());
            }
        });
        Self { address, heard }
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Every request that it heard so far, head and body.
    #[must_use]
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, answer: Answer, heard: &Mutex<Vec<String>>) -> io::Result<()> {
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let mut bytes = Vec::new();
    while let Some(request) = request(&mut stream, &mut bytes)? {
        let (answer, is_last) = (answer(&request), request.to_ascii_lowercase().contains("\r\nconnection: close\r\n"));
        heard.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        stream.write_all(&answer)?;
        stream.flush()?;
        if is_last {
            stream.conn.send_close_notify();
            stream.flush()?;
            break;
        }
    }
    Ok(())
}

/// The next request, as far as its length or its chunks say; none at the end.
fn request(stream: &mut impl Read, bytes: &mut Vec<u8>) -> io::Result<Option<String>> {
    let mut part = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(bytes);
        if let Some(end) = text.find("\r\n\r\n").map(|end| end + 4) {
            let head = text[..end].to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
            let whole = if head.contains("transfer-encoding: chunked") {
                text[end..].find("0\r\n\r\n").map(|last| end + last + 5)
            } else {
                Some(end + length.unwrap_or(0)).filter(|whole| *whole <= bytes.len())
            };
            if let Some(whole) = whole {
                return Ok(Some(String::from_utf8_lossy(&bytes.drain(..whole).collect::<Vec<u8>>()).into_owned()));
            }
        }
        match stream.read(&mut part)? {
            0 => return Ok(None),
            read => bytes.extend_from_slice(&part[..read]),
        }
    }
}

/// An answer with this text.
#[must_use]
pub fn ok(text: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes()
}
