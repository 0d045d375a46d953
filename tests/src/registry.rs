//! Debian's docker-registry on loopback, as open or as closed as a test wants it, and what stands around it: a token
//! service, a wire that breaks.
//!
//! Invariant: everything listens on a port the kernel chose, and ends with the value.

mod tokens;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::{run, wait_until};

pub use tokens::TokenService;

/// The only user there is.
pub const USER: &str = "tester";
/// Its password.
pub const PASSWORD: &str = "correct horse";
/// bcrypt of [`PASSWORD`], as htpasswd writes it; the registry knows no other kind.
const HTPASSWD: &str = "tester:$2y$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n";

/// Who may read, and how.
#[derive(Debug)]
pub enum Access<'a> {
    /// Anybody, over HTTP.
    Open,
    /// Who has the password, over HTTP.
    Password,
    /// Anybody, over HTTPS with a certificate of an authority of the test's own.
    Tls(&'a Authority),
    /// Who has the password, over the same.
    PasswordTls(&'a Authority),
    /// Who has a certificate of that authority too, over HTTPS.
    Certificate(&'a Authority),
    /// Who has a token of this service, over HTTP.
    Tokens(&'a TokenService),
}

/// A registry that runs.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub host: String,
    log: Arc<Mutex<String>>,
    reading: Vec<JoinHandle<()>>,
}

impl Registry {
    /// Starts one that keeps its images in `dir`; what another one pushed there is served too.
    #[track_caller]
    #[must_use]
    pub fn start(dir: &Path, access: &Access<'_>) -> Self {
        let storage = dir.join("registry");
        fs::create_dir_all(&storage).unwrap_or_else(|e| panic!("{}: {e}", storage.display()));
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n\
             http:\n  addr: 127.0.0.1:0\n  secret: {PASSWORD:?}\n",
            storage.display()
        );
        // First: it belongs to what stands before it.
        if let Access::Tls(authority) | Access::PasswordTls(authority) | Access::Certificate(authority) = access {
            let (certificate, key) = (authority.certificate.display(), authority.key.display());
            let of_clients = match access {
                Access::Certificate(_) => format!(", clientcas: [{}]", authority.root.display()),
                _ => String::new(),
            };
            config += &format!("  tls: {{certificate: {certificate}, key: {key}{of_clients}}}\n");
        }
        match access {
            Access::Open | Access::Tls(_) | Access::Certificate(_) => {}
            Access::Password | Access::PasswordTls(_) => {
                let htpasswd = write(dir, "htpasswd", HTPASSWD);
                config += &format!("auth:\n  htpasswd: {{realm: test, path: {}}}\n", htpasswd.display());
            }
            Access::Tokens(service) => config += &service.configuration(dir),
        }
        let config = write(dir, "registry.yml", &config);
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(config).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("docker-registry: {e}"));
        let log = Arc::new(Mutex::new(String::new()));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let reading = vec![follow(stdout, &log), follow(stderr, &log)];
        let mut registry = Self { child, host: String::new(), log, reading };
        let said = wait_until(crate::ran::LIMIT, || {
            registry.host = address(&registry.log()).unwrap_or_default();
            !registry.host.is_empty() || registry.child.try_wait().is_ok_and(|ended| ended.is_some())
        });
        assert!(said && !registry.host.is_empty(), "docker-registry does not listen:\n{}", registry.log());
        registry
    }

    /// What it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often `path` was asked for and answered with `status`.
    #[must_use]
    pub fn served(&self, path: &str, status: u16) -> usize {
        let (asked, answered) = (format!("\"GET {path} HTTP/1.1\""), format!(" {status} "));
        self.log()
            .lines()
            .filter(|line| line.split_once(&asked).is_some_and(|(_, rest)| rest.starts_with(&answered)))
            .count()
    }

    /// Copies an image there: `NAME:TAG` from what skopeo knows, with more of its options.
    #[track_caller]
    pub fn push(&self, from: &str, name: &str, options: &[&str]) {
        // Without, it asks for passwords in a directory of root's, where a session did not say which is the user's.
        let runtime = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let mut skopeo = Command::new("skopeo");
        skopeo.env("XDG_RUNTIME_DIR", runtime.path());
        skopeo.args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]).args(options);
        drop(run(skopeo.arg(from).arg(format!("docker://{}/{name}", self.host))).expect_success());
    }

    /// Puts a document there as it is.
    #[track_caller]
    pub fn put(&self, path: &str, media_type: &str, body: &str) {
        let mut stream = TcpStream::connect(&self.host).unwrap_or_else(|e| panic!("{}: {e}", self.host));
        let head = format!(
            "PUT {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: {media_type}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            self.host,
            body.len()
        );
        let mut answer = String::new();
        let asked = stream.write_all((head + body).as_bytes());
        asked.and_then(|()| stream.read_to_string(&mut answer)).unwrap_or_else(|e| panic!("PUT {path}: {e}"));
        assert!(answer.starts_with("HTTP/1.1 201"), "PUT {path}: {answer}");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
        for reading in self.reading.drain(..) {
            reading.join().ok();
        }
    }
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path
}

fn follow(pipe: Option<impl Read + Send + 'static>, log: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in pipe.map(BufReader::new).into_iter().flat_map(BufRead::lines).map_while(Result::ok) {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push_str(&line);
            log.push('\n');
        }
    })
}

/// The address in `msg="listening on ADDRESS"`, or `ADDRESS, tls`.
fn address(log: &str) -> Option<String> {
    let (_, rest) = log.split_once("listening on ")?;
    rest.split(['"', ',']).next().map(str::to_owned)
}

/// A certificate authority, and a certificate of it for 127.0.0.1.
#[derive(Debug)]
pub struct Authority {
    /// The authority's own certificate.
    pub root: PathBuf,
    /// The certificate; it is good for a server and for a client.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes them in `dir` with openssl.
    #[track_caller]
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        let path = |name: &str| dir.join(name);
        let new = |name: &str, extensions: &[&str], of: &[&str]| {
            let mut openssl = Command::new("openssl");
            openssl.current_dir(dir).args(["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"]);
            openssl.args(["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", &format!("/CN={name}")]);
            openssl.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")]).args(of);
            openssl.args(extensions.iter().flat_map(|extension| ["-addext", extension]));
            drop(run(&mut openssl).expect_success());
        };
        new("root", &[], &[]);
        let of_root = ["-CA", "root.crt", "-CAkey", "root.key"];
        new("leaf", &["subjectAltName=IP:127.0.0.1", "basicConstraints=critical,CA:FALSE"], &of_root);
        Self { root: path("root.crt"), certificate: path("leaf.crt"), key: path("leaf.key") }
    }
}

/// A wire to a registry that lets so many bytes back through, and then none.
#[derive(Debug)]
pub struct Wire {
    /// `127.0.0.1:PORT`.
    pub host: String,
    closing: Arc<(Mutex<bool>, Condvar)>,
    accepting: Option<JoinHandle<()>>,
}

impl Wire {
    /// Leads to `host`; each connection carries `bytes` back.
    #[track_caller]
    #[must_use]
    pub fn new(host: &str, bytes: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|e| panic!("bind: {e}"));
        let here = listener.local_addr().unwrap_or_else(|e| panic!("address: {e}"));
        let closing = Arc::new((Mutex::new(false), Condvar::new()));
        let (to, ends) = (host.to_owned(), Arc::clone(&closing));
        let accepting = std::thread::spawn(move || {
            let mut threads = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                if *ends.0.lock().unwrap_or_else(PoisonError::into_inner) {
                    break;
                }
                let (to, ends) = (to.clone(), Arc::clone(&ends));
                threads.push(std::thread::spawn(move || carry(stream, &to, bytes, &ends)));
            }
            threads.into_iter().for_each(|thread| drop(thread.join()));
        });
        Self { host: here.to_string(), closing, accepting: Some(accepting) }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        *self.closing.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.closing.1.notify_all();
        // Wakes who accepts.
        TcpStream::connect(&self.host).ok();
        self.accepting.take().into_iter().for_each(|accepting| drop(accepting.join()));
    }
}

fn carry(stream: TcpStream, to: &str, bytes: u64, ends: &(Mutex<bool>, Condvar)) {
    let Ok(server) = TcpStream::connect(to) else { return };
    let (Ok(mut from_client), Ok(mut to_server)) = (stream.try_clone(), server.try_clone()) else { return };
    let asking = std::thread::spawn(move || {
        std::io::copy(&mut from_client, &mut to_server).ok();
        // Nobody is there to be answered.
        to_server.shutdown(Shutdown::Both).ok();
    });
    let mut to_client = &stream;
    let carried = std::io::copy(&mut (&server).take(bytes), &mut to_client).unwrap_or(0);
    if carried == bytes {
        let closing = ends.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(ends.1.wait_while(closing, |closing| !*closing));
    }
    stream.shutdown(Shutdown::Both).ok();
    server.shutdown(Shutdown::Both).ok();
    asking.join().ok();
}
