//! Reaching through the proxy of a box what was not allowed (THREATS.md, 4), and wearing the broker down.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions beside it")]

use std::process::Command;

use agentd_tests::server::{OK, Server};
use agentd_tests::{Feature, Home, Ran, Started, require, run};

/// `via` says parts over a connection to the proxy one after the other, an answer in between; gives the last answer.
const VIA: &str = r"
import socket
def via(*parts):
    s = socket.create_connection(('127.0.0.1', 1080)); s.settimeout(30)
    back = b''
    try:
        for part in parts:
            s.sendall(part); back = s.recv(4096)
        return repr(back[:40])
    except OSError as error: return type(error).__name__
def connect(authority, *then): return via(b'CONNECT ' + authority + b' HTTP/1.1\r\nHost: x\r\n\r\n', *then)
def socks(host, port, *then): return via(b'\5\1\0', b'\5\1\0' + host + port.to_bytes(2, 'big'), *then)
def named(name): return bytes([3, len(name)]) + name
";

fn python(command: &mut Command, script: &str) -> Ran {
    run(command.args(["--", "/usr/bin/python3", "-c", &format!("{VIA}{script}")]))
}

/// May reach `port` as web.test by way of the proxy, and what is added.
fn boxed(home: &Home, port: u16) -> Command {
    let mut command = home.run();
    command.args(["-q", "--proxy", "--allow"]).arg(format!("web.test:{port}"));
    command.args(["--add-host", "web.test:127.0.0.1"]);
    command
}

#[track_caller]
fn assert_told(home: &Home, words: &[&str]) {
    let id = home.jobs()[0]["id"].as_str().unwrap().to_owned();
    let told = run(home.agentd().args(["logs", "--net", &id])).expect_success().stdout;
    for word in words {
        assert!(told.contains(word), "nothing of {word:?} in {told}");
    }
}

#[test]
fn escape_connect_to_an_address_is_refused_unless_a_rule_names_it() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let port = server.port();
    let script = format!(
        r"
for host in (b'127.0.0.1', b'[::ffff:127.0.0.1]', b'[::1]', b'127.1', b'2130706433', b'0x7f000001', b'192.0.2.1',
             b'web.test\0.evil.test', b'evil.test', b'xn--web-\xfc.test', b'web.test@evil.test', b'198.18.0.2'):
    print(connect(host + b':{port}'))
for host in (b'\1\x7f\0\0\1', b'\4' + bytes(15) + b'\1', b'\4' + bytes(10) + b'\xff\xff\x7f\0\0\1', named(b'127.0.0.1'),
             named(b'127.1'), named(b'evil.test'), named(b'web.test\0.evil.test')):
    print(socks(host, {port}))
print(via(b'GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n'))
print(via(b'GET http://web.test:{port}/ HTTP/1.1\r\nHost: evil.test\r\n\r\n'))"
    );
    let ran = python(&mut boxed(&home, port), &script).expect_success();
    assert!(!ran.stdout.contains("200") && ran.stdout.matches("HTTP/1.1 403").count() == 14, "{ran}");
    assert_eq!(ran.stdout.matches(r"b'\x05\x02").count(), 7, "{ran}");
    assert_eq!(server.connections(), 0);
    assert_told(
        &home,
        &["no rule names this address", "what is no host", "evil.test", "names two hosts", "no name has this"],
    );
    // The same with a rule that names it: nothing else kept these away.
    let rule = format!("127.0.0.1:{port}");
    let mut named = boxed(&home, port);
    let ran = python(named.args(["--allow", &rule]), &script).expect_success();
    assert!(ran.stdout.starts_with("b'HTTP/1.1 200 Connection established"), "{ran}");
    assert!(ran.stdout.contains(r"b'\x05\x00") && server.connections() > 3, "{ran}");
}

#[test]
fn escape_what_follows_connect_is_for_the_name() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let script = format!(
        r"
port = {}
print(connect(b'web.test:%d' % port, b'GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n'))
print(connect(b'web.test:%d' % port, b'CONNECT evil.test:22 HTTP/1.1\r\nHost: evil.test\r\n\r\n'))
print(socks(named(b'web.test'), port, b'GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n'))
import ssl
s = socket.create_connection(('127.0.0.1', 1080)); s.sendall(b'CONNECT web.test:%d HTTP/1.1\r\n\r\n' % port); s.recv(99)
c = ssl.create_default_context(); c.check_hostname = False; c.verify_mode = ssl.CERT_NONE
try: c.wrap_socket(s, server_hostname='evil.test')
except ssl.SSLError as error: print(error.reason)
print(via(b'\5\1\0', b'\5\3\0\1' + bytes(6)))
print(via(b'\5\1\2'), via(b'\4\1\0\x50\x7f\0\0\1\0'), via(b'CONNECT ' + b'x' * 100000))",
        server.port()
    );
    let ran = python(&mut boxed(&home, server.port()), &script).expect_success();
    assert!(!ran.stdout.contains("200 OK") && ran.stdout.contains("TLSV1_ALERT_ACCESS_DENIED"), "{ran}");
    assert_eq!(server.heard(), "");
    assert_told(
        &home,
        &["its request asks for evil.test", "its TLS hello asks for evil.test", "other than a connection", "too long"],
    );
    // What is said for the name itself arrives.
    let honest =
        format!(r"print(connect(b'web.test:{0}', b'GET / HTTP/1.1\r\nHost: web.test:{0}\r\n\r\n'))", server.port());
    let ran = python(&mut boxed(&home, server.port()), &honest).expect_success();
    assert!(ran.stdout.contains("200 OK"), "{ran}");
}

/// However many connections come and go, the broker does not grow with them.
#[test]
fn escape_connections_that_come_and_go_cost_no_memory() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let script = r"
import sys
def many(number):
    for n in range(number):
        s = socket.socket(); s.connect(('127.0.0.1', (443, 80, 1080)[n % 3]))
        if n % 2: s.sendall(b'\x16\3\1\2\0')
        s.close()
for line in sys.stdin:
    many(int(line)); print('done', line.strip(), flush=True)
print(connect(b'web.test:PORT', b'GET / HTTP/1.1\r\nHost: web.test\r\n\r\n'))";
    let script = format!("{VIA}{}", script.replace("PORT", &server.port().to_string()));
    let mut command = boxed(&home, server.port());
    command.args(["-i", "--", "/usr/bin/python3", "-c", &script]).stdin(std::process::Stdio::piped());
    let mut started = Started::new(&mut command);
    let mut stdin = started.stdin().unwrap();
    let mut tell = |started: &mut Started, number: u32| {
        std::io::Write::write_all(&mut stdin, format!("{number}\n").as_bytes()).unwrap();
        started.wait_for(&format!("done {number}\n"));
    };
    tell(&mut started, 2000);
    let before = resident(started.pid());
    tell(&mut started, 10_000);
    let after = resident(started.pid());
    drop(stdin);
    let ran = started.finish().expect_success();
    assert!(ran.stdout.contains("200 OK"), "{ran}");
    // KiB; each connection that stayed would be some.
    assert!(after < before + 4096, "{before} KiB, then {after} KiB");
    // What is told has a bound: kinds are, and the rest is counted.
    let network = &home.jobs()[0]["network"];
    let counted = ["refused", "failed", "allowed"].map(|what| network[what].as_u64().unwrap()).iter().sum::<u64>();
    assert!(counted > 5_000, "{network}");
}

/// The largest size that the broker below `supervisor` ever had, in KiB.
fn resident(supervisor: i32) -> u64 {
    let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap();
    let statuses =
        children.split_whitespace().map(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap());
    let broker = statuses.into_iter().find(|status| status.contains("agentd-net")).unwrap();
    let line = broker.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
