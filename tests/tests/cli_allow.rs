//! `agentd run --allow`: what is allowed works as if there were nothing in between, and the record says what was done.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test ends by a panic, a skip is told on stderr")]

use std::net::{TcpStream, ToSocketAddrs};
use std::process::Command;
use std::time::Duration;

use agentd_tests::server::{Manner, OK, Server};
use agentd_tests::unpackers::installed;
use agentd_tests::{Feature, Home, Ran, Started, is_root, require, run, skip_without, toolchain, wait_until};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// `agentd run` that may reach `server` as web.test.
fn reaching(home: &Home, server: &Server) -> Command {
    let mut command = home.run();
    command.arg("--allow").arg(format!("web.test:{}", server.port())).args(["--add-host", "web.test:127.0.0.1"]);
    command
}

fn python(command: &mut Command, script: &str) -> Ran {
    run(command.args(["--", "/usr/bin/python3", "-c", script]))
}

/// The requests of the newest job.
fn requests(home: &Home) -> Vec<Value> {
    let id = home.jobs()[0]["id"].as_str().unwrap().to_owned();
    let listed = run(home.agentd().args(["logs", "--net", "--format", "json", &id])).expect_success();
    serde_json::from_str(&listed.stdout).unwrap()
}

#[test]
fn cli_an_allowed_name_is_reached_and_the_record_counts_it() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let port = server.port();
    let script = format!("curl -sS http://web.test:{port}/ && curl -sS http://WEB.test.:{port}/x -d body");
    let ran = run(reaching(&home, &server).args(["--", "sh", "-c", &script])).expect_silent_success();
    assert_eq!(ran.stdout, "ok\nok\n");
    assert!(server.heard().contains("Host: web.test") && server.heard().contains("body"), "{}", server.heard());
    let job = &home.jobs()[0];
    assert_eq!((&job["enforced"]["network"], &job["network"]["allowed"]), (&"broker".into(), &2.into()));
    let name = &job["network"]["names"][0];
    assert_eq!((&name["name"], &name["port"], &name["connections"]), (&"web.test".into(), &port.into(), &2.into()));
    assert!(name["up"].as_u64().unwrap() > 100 && name["down"].as_u64().unwrap() > 100, "{job}");
    let requests = requests(&home);
    assert_eq!(requests.len(), 2);
    for request in requests {
        let said = (&request["verdict"], &request["host"], &request["address"], &request["rule"]);
        let rule = format!("web.test:{port}").into();
        assert_eq!(said, (&"allowed".into(), &"web.test".into(), &"127.0.0.1".into(), &rule));
        let [at, up, down, took] = ["port", "up", "down", "duration_ms"].map(|field| request[field].as_u64().unwrap());
        assert!(at == u64::from(port) && up > 0 && down > 0 && took < 60_000, "{request}");
        assert!(request["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{request}");
    }
}

#[test]
fn cli_what_is_refused_is_answered_told_and_counted() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let script = "ask() { curl -sS -w '=%{time_total}\\n' $1; }
        ask http://web.test/; ask http://other.test/; ask https://web.test/; ask http://192.0.2.1/";
    let ran = run(reaching(&home, &server).args(["--name", "net", "--", "sh", "-c", script]));
    assert_eq!(ran.stdout.matches("blocked by policy, do not retry").count(), 2, "{ran}");
    // Whoever is refused knows it at once: in milliseconds, where nothing else runs.
    let times: Vec<f64> = ran.stdout.lines().filter_map(|line| line.strip_prefix('=')?.parse().ok()).collect();
    assert!(times.len() == 4 && times.iter().all(|seconds| *seconds < 1.9), "{ran}");
    for words in [
        "access denied",
        "Could not resolve host: other.test",
        "agentd: 5 network requests refused:",
        "--allow web.test:80",
    ] {
        assert!(ran.stderr.contains(words), "{words}\n{ran}");
    }
    assert_eq!((server.connections(), &home.jobs()[0]["network"]["refused"]), (0, &5.into()));
    let table = run(home.agentd().args(["logs", "--net", "net"])).expect_success().stdout;
    for words in
        ["refused  other.test  2x", "refused  web.test:443", "what would allow it: agentd run --allow 192.0.2.1:80"]
    {
        assert!(table.contains(words), "{words}\n{table}");
    }
    let quiet = run(reaching(&home, &server).args(["-q", "--", "curl", "-s", "http://web.test/"]));
    assert_eq!(quiet.stderr, "");
}

/// Who waits for a server's first word is not left waiting: half a second, and what a busy machine adds to the best of three.
#[test]
fn cli_who_only_listens_is_refused_soon() {
    if !require(Feature::Userns) {
        return;
    }
    let script = "
import socket, time
def took():
    begun = time.monotonic()
    try: return socket.create_connection(('192.0.2.1', 22)).recv(1)
    except ConnectionResetError: return time.monotonic() - begun
print('reset', min(took() for _ in range(3)) < 1.5)";
    let ran = python(Home::new().run().args(["-q", "--allow", "web.test"]), script).expect_success();
    assert_eq!(ran.stdout, "reset True\n", "{ran}");
}

#[test]
fn cli_bytes_arrive_whole_in_both_directions_and_each_has_its_end() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", Manner::Echoes));
    let script = format!(
        "
import hashlib, os, socket, threading
def once(_):
    # Of its own: a byte of another connection would be noticed.
    data = os.urandom(24 << 20)
    s = socket.create_connection(('web.test', {}))
    threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR))).start()
    back = hashlib.sha256()
    while part := s.recv(1 << 16):
        back.update(part)
    assert back.digest() == hashlib.sha256(data).digest()
threads = [threading.Thread(target=once, args=(n,)) for n in range(3)]
[t.start() for t in threads]; [t.join() for t in threads]
print('whole')",
        server.port()
    );
    let ran = python(&mut reaching(&home, &server), &script).expect_success();
    assert_eq!(ran.stdout, "whole\n", "{ran}");
    let network = &home.jobs()[0]["network"];
    assert_eq!((&network["up"], &network["down"]), (&(72_u64 << 20).into(), &(72_u64 << 20).into()));
}

/// A program need not wait for what it sent to arrive; without a broker the kernel sees to that.
#[test]
fn cli_what_was_sent_before_the_end_of_the_job_arrives() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", Manner::ReadsLate));
    for number in 1..=3 {
        let script = format!("head -c 8000000 /dev/zero > /dev/tcp/web.test/{}", server.port());
        let _ran = run(reaching(&home, &server).args(["--", "bash", "-c", &script])).expect_success();
        let whole = || server.heard().len() == number * 8_000_000;
        assert!(wait_until(PATIENCE, whole), "{}", server.heard().len());
    }
}

#[test]
fn cli_servers_that_speak_first_and_ipv6_are_reached() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let server = Server::at("127.0.0.1", Manner::SpeaksFirst(b"SSH-2.0-x\r\n"));
    let script = format!(
        "
import socket
s = socket.create_connection(('web.test', {}))
print(s.recv(100)); s.sendall(b'SSH-2.0-y\\r\\n'); s.shutdown(socket.SHUT_WR); print(s.recv(100))",
        server.port()
    );
    let ran = python(&mut reaching(&home, &server), &script).expect_success();
    assert_eq!(ran.stdout, "b'SSH-2.0-x\\r\\n'\nb'SSH-2.0-y\\r\\n'\n");
    let server = Server::at("::1", OK);
    let (name, literal) = (format!("six.test:{}", server.port()), format!("[::1]:{}", server.port()));
    let mut command = home.run();
    command.args(["--allow", &name, "--add-host", "six.test:::1", "--allow", &literal, "--", "sh", "-c"]);
    let script = format!("curl -sS -4 http://{name}/; curl -sS -6 http://{name}/; curl -sS http://{literal}/");
    assert_eq!(run(command.arg(script)).expect_silent_success().stdout, "ok\nok\nok\n");
}

#[test]
fn cli_an_address_that_is_named_is_reached_and_a_denial_comes_first() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let address = format!("127.0.0.1:{}", server.port());
    let curl = format!("http://{address}/");
    let ran = run(home.run().args(["--allow", &address, "--", "curl", "-sS", &curl])).expect_silent_success();
    assert_eq!(ran.stdout, "ok\n");
    let ran = run(home.run().args(["--allow", &address, "--deny", "127.0.0.0/8", "--", "curl", "-sS", &curl]));
    assert!(ran.stdout.contains("denied by --deny 127.0.0.0/8"), "{ran}");
    assert_eq!(server.connections(), 1);
}

#[test]
fn cli_rules_are_checked_before_anything_runs_and_shown() {
    let home = Home::new();
    for (words, says) in [
        (&["--allow", ""][..], "is no host"),
        (&["--allow", "https://a.org/"], "is a URL"),
        (&["--allow", "*"], "every name"),
        (&["--allow", "bücher.example"], "xn--"),
        (&["--allow", "a.org:0"], "no port"),
        (&["--allow", "a.org:1000-2000"], "1001 ports"),
        (&["--allow", "a.org:53"], "name service"),
        (&["--allow", "10.0.0.1/8"], "10.0.0.0/8"),
        (&["--allow", "a.org", "--net", "host"], "--net host"),
        (&["--deny", "a.org"], "--allow"),
        (&["--add-host", "a.org:1.1.1.1"], "--allow"),
        (&["--allow", "a.org", "--add-host", "a.org:b"], "NAME:ADDRESS"),
    ] {
        let ran = run(home.run().args(words).args(["--", "true"])).expect_code(125);
        assert!(ran.stderr.contains(says), "{words:?}: {ran}");
    }
    let ran = run(home
        .run()
        .args(["--allow", "github", "--allow", "*.a.org:80-81", "--deny", "x.a.org", "--dry-run"])
        .args(["--", "true"]));
    let ran = ran.expect_success();
    for words in ["through the broker: github.com, api.github.com", "*.a.org:80-81; not x.a.org"] {
        assert!(ran.stdout.contains(words), "{words}\n{ran}");
    }
}

/// The name service as programs see it.
#[test]
fn cli_names_are_found_or_do_not_exist() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let script = "
import socket, struct, time
def ask(name, kind, tcp=False):
    q = b'\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0' + b''.join(bytes([len(l)]) + l for l in name.split(b'.')) + b'\\0' + struct.pack('>HH', kind, 1)
    if tcp:
        s = socket.create_connection(('127.0.0.1', 53)); s.sendall(struct.pack('>H', len(q)) + q); a = s.recv(600)[2:]
    else:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(q, ('127.0.0.1', 53)); a = s.recv(600)
    return 'code %d answers %d' % (a[3] & 15, a[7])
print(ask(b'web.test', 1), ask(b'web.test', 28), ask(b'web.test', 65), ask(b'web.test', 16), sep=', ')
print(ask(b'WEB.test', 1, True), ask(b'nope.test', 1), ask(b'nope.test', 16, True), sep=', ')
begun = time.time()
for name in ('nope.test', 'web.test.evil.org'):
    try: print(socket.getaddrinfo(name, 443))
    except socket.gaierror as error: print(error.errno == socket.EAI_NONAME)
print(time.time() - begun < 1)
first = socket.getaddrinfo('web.test', 1, socket.AF_INET)[0][4][0]
print(first, first == socket.getaddrinfo('web.test', 1, socket.AF_INET, flags=socket.AI_ADDRCONFIG)[0][4][0])";
    let ran = python(reaching(&home, &server).arg("-q"), script).expect_success();
    let expected = "code 0 answers 1, code 0 answers 1, code 0 answers 0, code 0 answers 0\n\
                    code 0 answers 1, code 3 answers 0, code 3 answers 0\nTrue\nTrue\nTrue\n198.18.1.0 True\n";
    assert_eq!(ran.stdout, expected);
}

/// Over `git://`, http and ssh from servers that the test starts; the last where the machine has one.
#[test]
fn cli_git_clones_through_the_broker() {
    if !require(Feature::Userns) || !installed(&["openssl", "python3"]) {
        return;
    }
    let home = Home::new();
    let bare = home.path().join("r.git");
    let made = format!(
        "git init -q -b main {0} && cd {0} && git -c user.name=a -c user.email=b commit -q --allow-empty -m first && \
         cp -r .git {1} && cd {1} && git config core.bare true && git update-server-info",
        home.path().join("r").display(),
        bare.display()
    );
    let _made = run(home_git(&home, "sh").args(["-c", &made])).expect_success();
    // Root may serve the ports at which the broker expects nothing else.
    let free = |ip: &str| std::net::TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().port();
    let place = "127.67.1.1";
    for (scheme, usual) in [("http", 80), ("https", 443)] {
        let port = if is_root() { usual } else { free(place) };
        let mut web = home_git(&home, "python3");
        let mut web =
            Started::new(web.args(["-u", "-c", SERVE, scheme, place, &port.to_string()]).current_dir(home.path()));
        web.wait_for("serving");
        let script = format!(
            "export GIT_SSL_NO_VERIFY=1; git clone -q {scheme}://git.test:{port}/r.git /tmp/c && git -C /tmp/c log --format=%s"
        );
        let mut command = home.run();
        let (rule, entry) = (format!("git.test:{port}"), format!("git.test:{place}"));
        let ran =
            run(command.args(["--allow", &rule, "--add-host", &entry, "--", "sh", "-c", &script])).expect_success();
        assert_eq!(ran.stdout, "first\n", "{ran}");
    }
    // As root it wants its own directory, which its service makes.
    let missing = |path: &str| std::fs::metadata(path).is_err();
    if missing("/usr/sbin/sshd") || is_root() && missing("/run/sshd") {
        skip_without(&["sshd"], "over ssh: no /usr/sbin/sshd, or no /run/sshd");
        return;
    }
    let (mut sshd, port) = sshd(&home);
    let work = home.workspace();
    std::fs::copy(home.path().join("key"), work.join("key")).unwrap();
    let user = run(Command::new("id").arg("-un")).expect_success().stdout;
    let script = format!(
        "umask 077; cp key /tmp/key; export GIT_SSH_COMMAND='ssh -F none -i /tmp/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -q'; \
         git clone -q ssh://{}@git.test:{port}{} /tmp/c && git -C /tmp/c log --format=%s",
        user.trim(),
        bare.display()
    );
    let mut command = home.run();
    command.arg("--workspace").arg(&work).arg("--allow").arg(format!("git.test:{port}"));
    let ran = run(command.args(["--add-host", "git.test:127.0.0.1", "--", "sh", "-c", &script])).expect_success();
    assert_eq!(ran.stdout, "first\n", "{ran}");
    sshd.signal(rustix::process::Signal::TERM);
    assert!(wait_until(PATIENCE, || sshd.has_ended()));
}

/// A web server for the current directory: scheme, address, port.
const SERVE: &str = "
import http.server, ssl, subprocess, sys
scheme, place, port = sys.argv[1:]
server = http.server.ThreadingHTTPServer((place, int(port)), http.server.SimpleHTTPRequestHandler)
if scheme == 'https':
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=git.test', '-keyout', 'web.key', '-out', 'web.pem'],
                   check=True, stderr=subprocess.DEVNULL)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain('web.pem', 'web.key')
    server.socket = context.wrap_socket(server.socket, server_side=True)
print('serving')
server.serve_forever()";

/// git and servers with the test's home and nobody's configuration.
fn home_git(home: &Home, program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("HOME", home.path()).env("GIT_CONFIG_NOSYSTEM", "1").stdin(std::process::Stdio::null());
    command
}

/// A server for the user of the test, and its port.
fn sshd(home: &Home) -> (Started, u16) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = home.path().display().to_string();
    for name in ["key", "host"] {
        let path = format!("{place}/{name}");
        let _made =
            run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path])).expect_success();
    }
    std::fs::copy(home.path().join("key.pub"), home.path().join("authorized")).unwrap();
    let settings = [
        format!("Port={port}"),
        "ListenAddress=127.0.0.1".into(),
        format!("HostKey={place}/host"),
        format!("AuthorizedKeysFile={place}/authorized"),
        "StrictModes=no".into(),
        "UsePAM=no".into(),
        "PidFile=none".into(),
    ];
    let mut command = home_git(home, "/usr/sbin/sshd");
    command.args(["-D", "-e", "-f", "/dev/null"]).args(settings.iter().flat_map(|setting| ["-o", setting]));
    let started = Started::new(&mut command);
    let listens = || TcpStream::connect(("127.0.0.1", port)).is_ok();
    assert!(wait_until(PATIENCE, listens), "sshd does not listen");
    (started, port)
}

/// Packages of `set` come from the registry's `hosts`, where this machine reaches them, and at the addresses at which it
/// does.
#[track_caller]
fn packages_come(set: &str, hosts: &[&str], flags: &[String], script: &str, says: &str) {
    let home = Home::new();
    let mut command = home.run();
    command.args(["--allow", set]).args(flags);
    for host in hosts {
        let addresses = (*host, 443).to_socket_addrs().map(Iterator::collect::<Vec<_>>).unwrap_or_default();
        if !addresses.iter().any(|to| TcpStream::connect_timeout(to, Duration::from_secs(3)).is_ok()) {
            eprintln!("skipped: {host} cannot be reached");
            return;
        }
        command.args(addresses.iter().flat_map(|address| ["--allow".to_owned(), address.ip().to_string()]));
    }
    let ran = run(command.args(["--", "sh", "-c", script])).expect_success();
    assert!(ran.stdout.contains(says), "{ran}");
}

/// Whether this machine has `program` at the usual place; its flags for a box.
fn usual(program: &str) -> Option<[String; 2]> {
    if !require(Feature::Userns) {
        return None;
    }
    if std::fs::metadata(format!("/usr/bin/{program}")).is_err() {
        eprintln!("skipped: no /usr/bin/{program}");
        return None;
    }
    Some(["-e".into(), "PATH=/usr/bin:/bin".into()])
}

#[test]
fn cli_pip_downloads_through_the_broker() {
    let Some(flags) = usual("pip") else { return };
    let script = "pip download -q --no-deps --no-cache-dir -d /tmp/x six && ls /tmp/x";
    packages_come("pypi", &["pypi.org", "files.pythonhosted.org"], &flags, script, "six-");
}

#[test]
fn cli_npm_installs_through_the_broker() {
    let Some(flags) = usual("npm") else { return };
    let script = "cd /tmp && npm install --silent is-odd@3.0.1 && ls node_modules";
    packages_come("npm", &["registry.npmjs.org"], &flags, script, "is-odd");
}

#[test]
fn cli_cargo_fetches_through_the_broker() {
    if !require(Feature::Userns) {
        return;
    }
    let Some(flags) = toolchain("/usr/bin:/bin") else {
        eprintln!("skipped: no Rust that this user can read");
        return;
    };
    // It brings its own authorities, and may be behind one that only the machine knows.
    let script = "A=/etc/ssl/certs/ca-certificates.crt; test ! -e $A || export CARGO_HTTP_CAINFO=$A
        cd /tmp && mkdir src && touch src/lib.rs && export CARGO_HOME=/tmp/home &&
        printf '[package]\nname=\"a\"\nversion=\"0.1.0\"\n[dependencies]\ncfg-if=\"=1.0.0\"\n' > Cargo.toml &&
        cargo fetch -q && ls /tmp/home/registry/cache/*";
    packages_come("crates", &["index.crates.io", "static.crates.io"], &flags, script, "cfg-if-1.0.0.crate");
}
