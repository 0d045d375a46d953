//! A token service as distribution's specification has it: JSON Web Tokens, signed with ES256, that docker-registry
//! checks by the certificate in them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::json;

use super::{PASSWORD, USER, write};
use crate::run;

const SERVICE: &str = "test registry";

/// A service that runs; it gives a token to pull one repository to who has the password.
#[derive(Debug)]
pub struct TokenService {
    host: String,
    certificate: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
    closing: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

struct Signer {
    key: EcdsaKeyPair,
    /// In base64.
    certificate: String,
}

impl TokenService {
    /// Starts one whose key and certificate are made in `dir`.
    #[track_caller]
    #[must_use]
    pub fn start(dir: &Path) -> Self {
        let openssl =
            |arguments: &[&str]| drop(run(Command::new("openssl").current_dir(dir).args(arguments)).expect_success());
        let curve = ["-pkeyopt", "ec_paramgen_curve:P-256"];
        let request = ["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=tokens", "-newkey", "ec"];
        openssl(&[&request[..], &curve, &["-keyout", "tokens.key", "-out", "tokens.crt"]].concat());
        openssl(&["pkcs8", "-topk8", "-nocrypt", "-in", "tokens.key", "-outform", "DER", "-out", "tokens.der"]);
        openssl(&["x509", "-in", "tokens.crt", "-outform", "DER", "-out", "tokens.crt.der"]);
        let read = |name: &str| fs::read(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &read("tokens.der"), &SystemRandom::new());
        let key = key.unwrap_or_else(|e| panic!("tokens.der: {e}"));
        let signer = Signer { key, certificate: STANDARD.encode(read("tokens.crt.der")) };

        let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|e| panic!("bind: {e}"));
        let host = listener.local_addr().unwrap_or_else(|e| panic!("address: {e}")).to_string();
        let (asked, closing) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, ends) = (Arc::clone(&asked), Arc::clone(&closing));
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                // One at a time is enough; a client that breaks off is its own trouble.
                if let Some(target) = answer(&stream, &signer) {
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(target);
                }
            }
        });
        Self { host, certificate: dir.join("tokens.crt"), asked, closing, accepting: Some(accepting) }
    }

    /// What it was asked for so far.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// docker-registry's part of it.
    pub(super) fn configuration(&self, dir: &Path) -> String {
        let bundle = write(dir, "bundle.crt", &fs::read_to_string(&self.certificate).unwrap_or_default());
        let realm = format!("http://{}/token", self.host);
        format!(
            "auth:\n  token: {{realm: {realm:?}, service: {SERVICE:?}, issuer: {USER}, rootcertbundle: {}}}\n",
            bundle.display()
        )
    }
}

impl Drop for TokenService {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        TcpStream::connect(&self.host).ok();
        self.accepting.take().into_iter().for_each(|accepting| drop(accepting.join()));
    }
}

/// Answers one request; gives what was asked for.
fn answer(mut stream: &TcpStream, signer: &Signer) -> Option<String> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let target = lines.next()?.split(' ').nth(1)?.to_owned();
    let expected = format!("authorization: basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let mut known = false;
    for line in lines.take_while(|line| !line.is_empty()) {
        known |= line.eq_ignore_ascii_case(&expected);
    }
    let repository =
        target.split(['?', '&']).find_map(|word| word.strip_prefix("scope=repository:")?.strip_suffix(":pull"));
    let (status, body) = match repository {
        Some(repository) if known => ("200 OK", json!({ "token": signer.token(repository) })),
        _ => ("401 Unauthorized", json!({ "details": "incorrect username or password" })),
    };
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).ok()?;
    Some(target)
}

impl Signer {
    fn token(&self, repository: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": USER, "sub": USER, "aud": SERVICE, "jti": "1", "iat": now, "nbf": now - 60, "exp": now + 300,
            "access": [{ "type": "repository", "name": repository, "actions": ["pull"] }],
        });
        let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.unwrap_or_else(|e| panic!("sign: {e}"));
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
