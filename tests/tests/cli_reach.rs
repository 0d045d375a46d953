//! `agentd allow` and `agentd deny`: what a running job may reach is changed from outside, at ports it had no socket for too.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions beside it")]

use std::io::Write;
use std::process::{ChildStdin, Command, Stdio};

use agentd_tests::server::{Manner, OK, Server};
use agentd_tests::{Feature, Home, Ran, Started, require, run};

/// A job that does the lines it is given, one after the other, and says `=CODE` after each.
struct Job {
    started: Started,
    stdin: ChildStdin,
}

impl Job {
    fn start(command: &mut Command) -> Self {
        let script = "echo ready; n=0; while read -r line; do bash -c \"$line\"; echo \"=$n=$?\"; n=$((n+1)); done";
        command.args(["-i", "--name", "job", "--", "bash", "-c", script]).stdin(Stdio::piped());
        let mut started = Started::new(command);
        started.wait_for("ready");
        let stdin = started.stdin().unwrap();
        Job { started, stdin }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    fn end(self) -> Ran {
        drop(self.stdin);
        self.started.finish()
    }
}

fn agentd(home: &Home, words: &[&str]) -> Ran {
    run(home.agentd().args(words))
}

#[test]
fn cli_a_running_job_is_let_reach_more_and_less() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server, echo) = (Home::new(), Server::at("127.0.0.1", OK), Server::at("127.0.0.1", Manner::Echoes));
    let mut command = home.run();
    command.args(["-q", "--allow", "other.test", "--add-host", "web.test:127.0.0.1"]);
    let mut job = Job::start(&mut command);
    let curl = format!("curl -sS -m 20 http://web.test:{}/", server.port());
    job.tell(&curl);
    job.started.wait_for("=0=6");
    // The port has no socket in the box yet, and the broker has no right to it.
    let web = format!("web.test:{}", server.port());
    let _allowed = agentd(&home, &["allow", "job", &web]).expect_silent_success();
    job.tell(&curl);
    job.started.wait_for("ok\n=1=0");
    // Once more is no mistake, and needs no socket.
    let _again = agentd(&home, &["allow", "job", &web]).expect_silent_success();
    let _echo = agentd(&home, &["allow", "job", &format!("web.test:{}", echo.port())]).expect_silent_success();
    // A connection that is open when its name is denied ends.
    let hold =
        format!("exec 3<>/dev/tcp/web.test/{}; echo hello >&3; echo held; read -r -u 3 back; echo ended", echo.port());
    job.tell(&hold);
    job.started.wait_for("held");
    assert!(agentd_tests::wait_until(std::time::Duration::from_secs(60), || echo.heard().contains("hello")));
    let _denied = agentd(&home, &["deny", "job", "web.test"]).expect_silent_success();
    job.started.wait_for("ended");
    job.started.wait_for("=2=");
    job.tell(&curl);
    job.started.wait_for("=3=6");
    // Allowing what a wider denial covers is refused, and says what would help.
    let still = agentd(&home, &["allow", "job", &web]).expect_code(125);
    assert!(still.stderr.contains("stays denied, by web.test"), "{still}");
    let _back = agentd(&home, &["allow", "job", "web.test"]).expect_silent_success();
    job.tell(&curl);
    job.started.wait_for("ok\n=4=0");
    let _ran = job.end().expect_success();
    let record = &home.jobs()[0];
    let changes = record["network"]["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 5, "{record}");
    assert_eq!((&changes[0]["allow"][0], &changes[3]["deny"][0]), (&web.into(), &"web.test".into()));
    assert_eq!(server.connections(), 2);
    let id = record["id"].as_str().unwrap();
    let events = home.path().join("state/agentd/jobs").join(id).join("events.jsonl");
    let events = std::fs::read_to_string(&events).unwrap_or_else(|e| panic!("{}: {e}", events.display()));
    assert_eq!(events.matches("\"event\":\"policy\"").count(), 5, "{events}");
}

/// What passed unread by a rule for the host is not passed on past rules for its requests.
#[test]
fn cli_a_connection_ends_when_requests_to_its_host_are_read() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, echo) = (Home::new(), Server::at("127.0.0.1", Manner::Echoes));
    let (host, port) = (format!("web.test:{}", echo.port()), echo.port());
    let mut command = home.run();
    command.args(["-q", "--add-host", "web.test:127.0.0.1", "--allow", &host, "--allow", "GET https://web.test:9/x"]);
    let mut job = Job::start(&mut command);
    job.tell(&format!("exec 3<>/dev/tcp/web.test/{port}; echo hello >&3; echo held; read -r -u 3; echo ended"));
    job.started.wait_for("held");
    assert!(agentd_tests::wait_until(std::time::Duration::from_secs(60), || echo.heard().contains("hello")));
    let rule = format!("DELETE https://{host}/*");
    let _denied = agentd(&home, &["deny", "job", &rule]).expect_silent_success();
    job.started.wait_for("ended");
    let _ran = job.end().expect_success();
}

#[test]
fn cli_a_change_that_cannot_be_had_changes_nothing() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let mut command = home.run();
    command.args(["-q", "--allow", "other.test"]);
    let mut job = Job::start(&mut command);
    // A program of the box has the port.
    job.tell("python3 -c 'import socket,time; s=socket.create_server((\"\",7070)); print(\"listens\",flush=True); time.sleep(60)' & sleep 0");
    job.started.wait_for("listens");
    let taken = agentd(&home, &["allow", "job", "web.test:7070"]).expect_code(125);
    assert!(taken.stderr.contains("cannot listen at port 7070 of the box"), "{taken}");
    for (rule, words) in [
        ("web.test:53", "its own name service"),
        ("web.test:1000-2000", "is listened to at 256 at most"),
        ("no set", "is no host"),
        ("*", "would allow every name"),
    ] {
        let refused = agentd(&home, &["allow", "job", rule]).expect_code(125);
        assert!(refused.stderr.contains(words), "{refused}");
    }
    job.tell("getent hosts web.test");
    job.started.wait_for("=1=2");
    job.tell("kill %1 2>/dev/null; pkill -f create_server; true");
    let _ran = job.end().expect_success();
    assert_eq!(home.jobs()[0]["network"].get("changes"), None);
    let over = agentd(&home, &["allow", "job", "web.test"]).expect_code(125);
    assert!(over.stderr.contains("does not run"), "{over}");
}

#[test]
fn cli_a_job_without_a_network_has_none_to_change() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let mut command = home.run();
    let job = Job::start(command.arg("-q"));
    let refused = agentd(&home, &["allow", "job", "web.test"]).expect_code(125);
    assert!(refused.stderr.contains("started without --allow"), "{refused}");
    let _ran = job.end().expect_success();
}
