//! Requests that name another host, or another path than they seem to, in the plain and over TLS that ends at the broker.

use std::process::Command;
use std::time::Duration;

use agentd_tests::server::{OK, Server};
use agentd_tests::tls::ok;
use agentd_tests::{Feature, Started, require, run, wait_until};

use super::{ASK, KEY, Scene, broker};

/// A request for another host, however it is written, is refused: the key would be in it.
#[test]
fn escape_a_request_names_the_host_of_the_key_and_no_other() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|_| ok("answered\n"));
    let script = r"
h = f'Host: api.test:{port}\r\n'.encode()
end = b'Connection: close\r\n\r\n'
for request in (
    b'GET / HTTP/1.1\r\nHost: evil.test\r\n' + end,
    b'GET http://evil.test/ HTTP/1.1\r\n' + h + end,
    b'GET https://evil.test/ HTTP/1.1\r\n' + h + end,
    b'GET http://api.test@evil.test/ HTTP/1.1\r\n' + h + end,
    b'GET / HTTP/1.1\r\n' + h + b'Host: evil.test\r\n' + end,
    b'GET / HTTP/1.1\r\nHost: api.test:1\r\n' + end,
    b'GET / HTTP/1.1\r\n' + end,
    b'CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n',
    b'GET /chat HTTP/1.1\r\n' + h + b'Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n',
): print(ask(request, port).split('\r\n')[0])
for request in (
    b'GET / HTTP/1.1\r\nHost: api.test\r\n X-Folded: evil.test\r\n' + end,
    b'GET / HTTP/1.1\r\n' + h + b'X: y\0z\r\n' + end,
    b'GET / HTTP/1.1\r\n' + h + b'X : y\r\n' + end,
    b'GET / HTTP/1.1\r\n' + h + b'X: y\rInjected: yes\r\n' + end,
    b'GET / HTTP/1.1\r\n' + h + b'X: ' + b'x' * 100000 + b'\r\n' + end,
    b'GET / HTTP/1.1\r\n' + h + b''.join(b'X%d: y\r\n' % n for n in range(200)) + end,
    b'GET /' + b'x' * 100000 + b' HTTP/1.1\r\n' + h + end,
    b'GET / HTTP/1.1\r\n' + h + b'Transfer-Encoding: gzip\r\n' + end,
    b'GET / HTTP/1.1\r\n' + h + b'Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc',
    b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
    b'EHLO evil.test\r\n\r\n',
): print(ask(request, port)[:12])
";
    let ran = scene.python(&mut scene.boxed(), script).expect_success();
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[..9].iter().all(|line| *line == "HTTP/1.1 403 Forbidden"), "{ran}");
    // What speaks another language is hung up on.
    let refused = |line: &&str| line.starts_with("HTTP/1.1 4") || line.is_empty();
    assert!(lines.len() == 20 && lines[9..].iter().all(refused), "{ran}");
    assert_eq!(scene.server.heard(), Vec::<String>::new());
    scene.assert_told(
        "refused",
        &[
            "asks for evil.test",
            "names no host, or more than one",
            "asks for api.test:1",
            "(CONNECT)",
            "websocket",
            "malformed",
        ],
    );
    // Without the broker's words the same server takes them.
    let port = scene.server.port();
    let control = run(Command::new("curl").args(["-sk", "--resolve", &format!("api.test:{port}:127.0.0.1")]).args([
        "-H",
        "Host: evil.test",
        &format!("https://api.test:{port}/"),
    ]));
    assert_eq!(control.expect_success().stdout, "answered\n");
}

/// Two lengths: what the server hears has one, and ends where the broker has read that it ends.
#[test]
fn escape_a_request_within_a_request_is_no_request() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|_| ok("answered\n"));
    let script = r"
smuggled = f'GET /smuggled HTTP/1.1\r\nHost: api.test:{port}\r\nX: '
head = f'POST /one HTTP/1.1\r\nHost: api.test:{port}\r\n'
for lengths, body in (
    ('Content-Length: 6\r\nTransfer-Encoding: chunked\r\n', '0\r\n\r\nG'),
    ('Transfer-Encoding: chunked\r\nContent-Length: 6\r\n', '0\r\n\r\n'),
    ('Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n', '0\r\n\r\n' + smuggled),
    ('Transfer-Encoding: xchunked\r\n', '0\r\n\r\n' + smuggled),
    ('Transfer-Encoding: chunked\r\n', '5;' + 'x' * 100000 + '\r\n'),
    ('Content-Length: +6\r\n', 'abcdef'),
): ask((head + lengths + 'Connection: close\r\n\r\n' + body).encode(), port)
print('asked')
";
    let ran = scene.python(&mut scene.boxed(), script).expect_success();
    assert_eq!(ran.stdout, "asked\n");
    for heard in scene.server.heard() {
        assert!(heard.starts_with("POST /one HTTP/1.1\r\nhost: api.test") && !heard.contains("smuggled"), "{heard}");
        let head = heard.to_lowercase();
        let lengths = head.matches("\r\ncontent-length:").count() + head.matches("\r\ntransfer-encoding:").count();
        assert_eq!(lengths, 1, "{heard}");
    }
    // What the broker only passes on, for there is no key to add, it does not write anew: the request within gets to a server
    // (but for what has two lengths, which it never takes).
    let server = Server::at("127.0.0.1", OK);
    let allowed = format!("api.test:{}", server.port());
    let mut passed_on = scene.home.run();
    passed_on.args(["-q", "--allow", &allowed, "--add-host", "api.test:127.0.0.1", "--", "/usr/bin/python3", "-c"]);
    let _ran = run(passed_on.arg(format!("{ASK}port = {}\n{script}", server.port()))).expect_success();
    let gets_there = || ["Transfer-Encoding: xchunked", "GET /smuggled"].iter().all(|it| server.heard().contains(it));
    assert!(wait_until(Duration::from_secs(60), gets_there), "{}", server.heard());
}

/// Rules for requests, over TLS that ends at the broker and in the plain.
#[test]
fn escape_a_rule_for_paths_is_kept_however_a_path_is_written() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|_| ok("answered\n"));
    let at = format!("https://api.test:{}", scene.server.port());
    let mut flags = scene.flags.clone();
    flags.extend([
        "--allow".into(),
        format!("GET,POST {at}/repos/me/*"),
        "--deny".into(),
        format!("POST {at}/repos/me/keys"),
    ]);
    let script = r"
context = ssl.create_default_context()
wrap = lambda s: context.wrap_socket(s, server_hostname='api.test')
def both(method, path):
    request = f'{method} {path} HTTP/1.1\r\nHost: api.test:{port}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'.encode()
    plain, tls = ask(request, port), ask(request, port, wrap=wrap)
    return plain.split('\r\n')[0][9:12], tls.split('\r\n')[0][9:12]
for method, path in (('GET', '/repos/me/x?y=../z'), ('POST', '/repos/me/x'), ('GET', '/repos/m%65/x')):
    print(both(method, path) == ('200', '200'), method, path)
for method, path in (('DELETE', '/repos/me/x'), ('GET', '/'), ('GET', '/repos/you/x'), ('POST', '/repos/me/keys'),
    ('POST', '/repos/me/k%65ys'), ('GET', '/repos/me/../you'), ('GET', '/repos/me/%2e%2e/you'), ('GET', '/repos/me/..%2fyou'),
    ('GET', '/repos/me//..//you'), ('GET', '/repos/me/%252e%252e/you'), ('GET', '/repos/me/..;/you'), ('GET', '/repos/me/..\\you'),
    ('GET', '/repos/me/%c0%ae%c0%ae/you')):
    print(both(method, path) == ('403', '403'), method, path)
";
    let mut command = scene.home.run();
    command.arg("-q").args(&flags).env("TOKEN", KEY);
    let ran = scene.python(&mut command, script).expect_success();
    assert!(ran.stdout.lines().count() == 16 && ran.stdout.lines().all(|line| line.starts_with("True ")), "{ran}");
    let heard = scene.server.heard();
    assert_eq!(heard.len(), 6);
    assert!(heard.iter().all(|request| request.contains(KEY) && request.contains("/repos/m")), "{heard:?}");
    scene.assert_told(
        "refused",
        &[
            "no rule allows this request",
            "--deny 'POST",
            "climbs with dots",
            "encoded slash",
            "empty segment",
            "encoded twice",
            "DELETE /repos/me/x",
        ],
    );
    scene.assert_told("allowed", &["\"GET /repos/me/x\""]);
    // Without such rules the same requests reach the server.
    let ran = scene.python(&mut scene.boxed(), "print(get(port, path='/repos/me/../you')[-9:])").expect_success();
    assert!(ran.stdout.contains("answered"), "{ran}");
}

/// TLS that ends at the broker: for the names of the job's keys, and within it for no other host.
#[test]
fn escape_a_host_within_terminated_tls_is_the_one_outside() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|_| ok("answered\n"));
    let script = r"
context = ssl.create_default_context()
wrap = lambda s: context.wrap_socket(s, server_hostname='api.test')
end = b'Connection: close\r\n\r\n'
for request in (b'GET / HTTP/1.1\r\nHost: evil.test\r\n' + end, b'GET https://evil.test/ HTTP/1.1\r\nHost: api.test\r\n' + end):
    print(ask(request, port, wrap=wrap).split('\r\n')[0])
unchecked = ssl.create_default_context(); unchecked.check_hostname = False; unchecked.verify_mode = ssl.CERT_NONE
for name in ('evil.test', None):
    print(ask(b'x', port, wrap=lambda s: unchecked.wrap_socket(s, server_hostname=name)))
print(ask(f'GET / HTTP/1.1\r\nHost: api.test:{port}\r\n'.encode() + end, port, wrap=wrap)[-9:], end='')
import subprocess
print(subprocess.run(['curl', '-sS', f'https://api.test:{port}/'], capture_output=True, text=True).stdout, end='')
print(sorted(os.listdir('/run/agentd/trust')), 'PRIVATE' in ''.join(open(f'/run/agentd/trust/{n}').read() for n in os.listdir('/run/agentd/trust')))
";
    let mut command = scene.boxed();
    command.arg("--tls-terminate");
    let ran = scene.python(&mut command, script).expect_success();
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[..2].iter().all(|line| *line == "HTTP/1.1 403 Forbidden"), "{ran}");
    assert!(lines[2..4].iter().all(|line| !line.contains("answered") && line.contains("Error")), "{ran}");
    assert_eq!(lines[4..], ["answered", "answered", "['authority.pem', 'bundle.pem'] False"], "{ran}");
    let heard = scene.server.heard();
    assert!(heard.len() == 2 && heard.iter().all(|request| request.contains(KEY)), "{heard:?}");
    scene.assert_told("refused", &["asks for evil.test", "its TLS hello asks for"]);
    // Without it the same client does not believe the broker, which does not speak to it.
    let ran = scene.python(&mut scene.boxed(), "print(ask(b'x', port, wrap=ssl.create_default_context().wrap_socket))");
    assert!(!ran.stdout.contains("answered"), "{ran}");
}

/// Heads that never end: each connection may hold one, there is a bound on both, and afterwards requests are answered again.
#[test]
fn escape_heads_that_never_end_are_bounded() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|_| ok("answered\n"));
    let script = format!(
        r"{ASK}
import select
port = {}
head = f'GET / HTTP/1.1\r\nHost: api.test:{{port}}\r\nX: '.encode() + b'x' * 30000
many, poll = [], select.poll()
for _ in range(400):
    s = socket.create_connection(('api.test', port), 30); s.setblocking(False)
    try: s.send(head)
    except OSError: pass
    many.append(s); poll.register(s, select.POLLHUP)
over = set()
while len(over) < 100: over |= {{fd for fd, _ in poll.poll(20000)}}
print('bounded', flush=True)
sys.stdin.readline()
for s in many: s.close()
import time
for attempt in range(200):
    answer = get(port)
    if '200 OK' in answer: break
    time.sleep(0.05)
print(answer[-9:])",
        scene.server.port()
    );
    let mut command = scene.boxed();
    command.args(["-i", "--", "/usr/bin/python3", "-c", &script]).stdin(std::process::Stdio::piped());
    let mut started = Started::new(&mut command);
    started.wait_for("bounded");
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker(started.pid()))).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim().trim_end_matches(" kB");
    assert!(resident.parse::<u64>().unwrap() < 64 << 10, "{status}");
    drop(started.stdin());
    let ran = started.finish().expect_success();
    assert!(ran.stdout.ends_with("answered\n\n"), "{ran}");
    scene.assert_told("refused", &["more than 256 connections at once whose requests are read"]);
}
