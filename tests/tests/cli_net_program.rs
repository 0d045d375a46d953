//! Which program of a box made a connection: in the lines of `agentd logs --net`, for what is allowed and what is refused.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions beside it")]

use std::process::Command;
use std::time::Duration;

use agentd_tests::server::{Manner, Server};
use agentd_tests::{Feature, Home, require, run, wait_until};
use serde_json::Value;

fn boxed(home: &Home, server: &Server) -> Command {
    let mut command = home.run();
    command.args(["-q", "--name", "job", "--allow", &format!("web.test:{}", server.port())]);
    command.args(["--add-host", "web.test:127.0.0.1", "--allow", "*.other.test"]);
    command
}

fn requests(home: &Home) -> Vec<Value> {
    let listed = home.say(&["logs", "--net", "--format", "json", "job"]).expect_success();
    serde_json::from_str(&listed.stdout).unwrap()
}

/// Each of these holds its end until it was answered, as programs do; then it is known whose it is.
#[test]
fn cli_a_connection_has_the_program_that_made_it() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", Manner::Echoes));
    let script = format!(
        r"
import ctypes, os, socket
held, release = os.pipe(); listen, talk = os.pipe()
def called(name, act):
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(15, name, 0, 0, 0)
        os.close(release)
        act()
        os._exit(0)
    if act != echo: os.waitpid(pid, 0)
    print(pid)
def echo():
    s = socket.create_connection(('web.test', {port})); s.sendall(b'\0')
    os.write(talk, b'1'); os.read(held, 1)
    s.shutdown(socket.SHUT_WR); s.recv(1)
def refused():
    s = socket.create_connection(('192.0.2.1', 80)); s.sendall(b'GET / HTTP/1.1\r\nHost: a\r\n\r\n')
    while s.recv(4096): pass
def unknown():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.1', 53))
    s.send(b'\0\1\1\0\0\1\0\0\0\0\0\0\4evil\4test\0\0\1\0\1'); s.recv(512)
called(b'fetches', echo); os.read(listen, 1); called(b'asks\n\x1b[31m', refused); called(b'looks-up', unknown)
# Questions are answered in their order: by now the first one is.
os.close(release); os.wait()",
        port = server.port()
    );
    let ran = run(boxed(&home, &server).args(["--", "/usr/bin/python3", "-c", &script])).expect_success();
    let pids: Vec<u64> = ran.stdout.lines().map(|line| line.parse().unwrap()).collect();
    let told = requests(&home);
    let of = |host: &str| {
        let one = told.iter().find(|request| request["host"] == host).unwrap_or_else(|| panic!("{host}: {told:#?}"));
        (one["program"].as_str().unwrap_or("nobody").to_owned(), one["pid"].as_u64().unwrap_or(0))
    };
    assert_eq!(of("web.test"), ("fetches".into(), pids[0]));
    // The name is the program's own word; nothing of it reaches a terminal.
    assert_eq!(of("192.0.2.1"), ("asks??[31m".into(), pids[1]));
    assert_eq!(of("evil.test"), ("looks-up".into(), pids[2]));
    let shown = home.say(&["logs", "--net", "job"]).expect_success();
    assert!(shown.stdout.contains(&format!("by fetches ({})", pids[0])) && !shown.stdout.contains('\x1b'), "{shown}");
}

/// A command beside the payload is a program of the box like others.
#[test]
fn cli_a_connection_of_agentd_exec_has_its_program_too() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", Manner::SpeaksFirst(b"1")));
    let rule = format!("web.test:{}", server.port());
    let flags = ["--name", "job", "--allow", &rule, "--add-host", "web.test:127.0.0.1"];
    let _id = home.detached(&flags, "exec sleep 1000");
    // Questions are answered in their order: when the refusal comes, the first one is.
    let script = format!(
        r"
import os, socket
s = socket.create_connection(('web.test', {port})); s.recv(1)
refused = socket.create_connection(('192.0.2.1', 80)); refused.sendall(b'GET / HTTP/1.1\r\nHost: a\r\n\r\n')
while refused.recv(4096): pass
s.shutdown(socket.SHUT_WR); s.recv(1)
print(os.getpid())",
        port = server.port()
    );
    let ran = home.say(&["exec", "job", "/usr/bin/python3", "-c", &script]).expect_success();
    let mut told = Vec::new();
    // The job goes on, and is told of what is over as it happens.
    let are_told = wait_until(Duration::from_secs(60), || {
        told = requests(&home);
        told.len() == 2
    });
    assert!(are_told, "{told:#?}");
    for request in told {
        assert_eq!((&request["program"], request["pid"].to_string()), (&"python3".into(), ran.stdout.trim().into()));
    }
}

/// Who asks and is gone, or has thousands of descriptors to look through, is refused all the same.
#[test]
fn escape_a_program_that_hides_is_refused_as_well() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", Manner::Echoes));
    let script = r"
import os, resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
for n in range(20):
    s = socket.socket(); s.setblocking(False)
    try: s.connect((f'192.0.2.{n}', 443))
    except BlockingIOError: pass
    s.close()
many = [os.dup(2) for _ in range(15000)]
s = socket.create_connection(('192.0.2.77', 80)); s.sendall(b'GET / HTTP/1.1\r\nHost: a\r\n\r\n')
print(s.recv(12))
try: socket.getaddrinfo('none.test', 80)
except OSError: print('none')";
    let ran = run(boxed(&home, &server).args(["--", "/usr/bin/python3", "-c", script])).expect_success();
    assert_eq!(ran.stdout, "b'HTTP/1.1 403'\nnone\n", "{ran}");
    let told = requests(&home);
    let of = |host: &str| told.iter().find(|request| request["host"] == host).unwrap();
    assert_eq!((&of("192.0.2.77")["verdict"], of("192.0.2.77").get("program")), (&"refused".into(), None));
    assert_eq!(of("none.test")["verdict"], "refused");
}
