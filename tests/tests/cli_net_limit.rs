//! `agentd run --net-limit`: what is beyond a limit is refused, in words that name it.

use std::process::Command;

use agentd_tests::server::{Manner, OK, Server};
use agentd_tests::{Feature, Home, Ran, require, run};

fn limited(home: &Home, server: &Server, limit: &str) -> Command {
    let mut command = home.run();
    command.arg("--allow").arg(format!("web.test:{}", server.port())).args(["--add-host", "web.test:127.0.0.1"]);
    command.args(["--net-limit", limit]);
    command
}

fn python(command: &mut Command, script: &str) -> Ran {
    run(command.args(["--", "/usr/bin/python3", "-c", script]))
}

#[test]
fn cli_connections_beyond_a_limit_are_refused() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let script = format!("for n in 1 2 3; do curl -s http://web.test:{}/; done", server.port());
    let ran = run(limited(&home, &server, "total=2").args(["--", "sh", "-c", &script])).expect_success();
    assert!(ran.stdout.starts_with("ok\nok\nblocked by policy, do not retry: more than 2 connections in all"), "{ran}");
    assert!(ran.stderr.contains("--net-limit total=2"), "{ran}");
    assert_eq!((server.connections(), &home.jobs()[0]["network"]["refused"]), (2, &1.into()));

    let echo = Server::at("127.0.0.1", Manner::Echoes);
    let script = format!(
        "
import socket
first = socket.create_connection(('web.test', {port})); first.sendall(b'0')
second = socket.create_connection(('web.test', {port}))
try: print(second.recv(1))
except ConnectionResetError: print('reset')
first.shutdown(socket.SHUT_WR); print(first.recv(1))",
        port = echo.port()
    );
    let ran = python(&mut limited(&home, &echo, "connections=1"), &script).expect_success();
    assert_eq!(ran.stdout, "reset\nb'0'\n", "{ran}");
    assert!(ran.stderr.contains("more than 1 connections at once"), "{ran}");
}

#[test]
fn cli_bytes_beyond_a_limit_do_not_move_and_a_rate_is_held() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", Manner::Echoes));
    let script = |size: u32| {
        format!(
            "
import socket, time
begun, back = time.monotonic(), 0
try:
    s = socket.create_connection(('web.test', {}))
    s.sendall(bytes({size})); s.shutdown(socket.SHUT_WR)
    while part := s.recv(1 << 16): back += len(part)
except ConnectionError as error: print('reset', error)
print(back, time.monotonic() - begun > 0.5)",
            server.port()
        )
    };
    // All of it there and back is as much as may be.
    let ran = python(&mut limited(&home, &server, "bytes=64k"), &script(32 << 10)).expect_silent_success();
    assert!(ran.stdout.starts_with("32768 "), "{ran}");
    let ran = python(&mut limited(&home, &server, "bytes=64k"), &script(40 << 10)).expect_success();
    assert!(ran.stdout.starts_with("reset"), "{ran}");
    assert!(ran.stderr.contains("more than 65536 bytes in all (--net-limit bytes=65536)"), "{ran}");
    // Twice 128 KiB at 256 KiB a second, of which a tenth of a second's may come at once.
    let ran = python(&mut limited(&home, &server, "rate=256k"), &script(128 << 10)).expect_silent_success();
    assert_eq!(ran.stdout, "131072 True\n", "{ran}");
    for (limit, words) in [("packets=1", "is no limit: write connections=N"), ("bytes=none", "is no number above 0")] {
        let refused = run(limited(&home, &server, limit).args(["--", "true"])).expect_code(125);
        assert!(refused.stderr.contains(words), "{refused}");
    }
    let alone = run(home.run().args(["--net-limit", "total=1", "--", "true"])).expect_code(125);
    assert!(alone.stderr.contains("--net-limit is about what --allow allows"), "{alone}");
    assert_eq!(home.jobs().len(), 3);
    let plan =
        limited(&home, &server, "rate=1m").args(["--dry-run", "--format", "json", "--", "true"]).output().unwrap();
    assert!(String::from_utf8_lossy(&plan.stdout).contains("\"rate\": 1048576"));
}

#[test]
fn cli_what_a_job_asks_for_is_learned() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let port = server.port();
    // A rule for the port, so that the box is listened to there; the name has none.
    let learning = |words: &[&str]| {
        let mut command = home.run();
        command.args(["--net-learn", "--allow", &format!("other.test:{port}"), "--add-host", "web.test:127.0.0.1"]);
        command.args(words);
        command
    };
    let script = format!("curl -s http://web.test:{port}/; curl -s http://127.0.0.1:{port}/");
    let ran = run(learning(&[]).args(["--", "sh", "-c", &script])).expect_success();
    assert!(ran.stdout.starts_with("ok\nblocked by policy"), "{ran}");
    assert!(ran.stderr.contains("--net-learn: the job reaches every host of the internet"), "{ran}");
    assert!(ran.stderr.contains(&format!("is allowed by --allow web.test:{port}\n")), "{ran}");
    let denied = run(learning(&["--deny", "web.test"]).args(["--", "sh", "-c", &script]));
    assert!(!denied.stdout.contains("ok\n") && denied.stderr.contains("learned: it reached nothing"), "{denied}");
    assert_eq!(server.connections(), 1);
    // With the words that it says, the same passes.
    let words = ran.stderr.lines().find_map(|line| Some(line.split_once("is allowed by ")?.1)).unwrap();
    let mut allowed = home.run();
    allowed.arg("-q").args(words.split(' ')).args(["--add-host", "web.test:127.0.0.1", "--", "sh", "-c", &script]);
    assert_eq!((run(&mut allowed).expect_success().stdout, server.connections()), (ran.stdout, 2));
    let _both = run(home.run().args(["--net-learn", "--net", "host", "--", "true"])).expect_code(125);
    // Without the word, nothing is let through.
    let ran = run(home.run().args(["-q", "--allow", &format!("other.test:{port}"), "--", "sh", "-c", &script]));
    assert!(!ran.stdout.contains("ok\n"), "{ran}");
}
