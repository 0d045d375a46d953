//! What a job tells the manager that started it as a service (sd_notify(3)), and what of that the box can see.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use agentd_tests::{Feature, Home, Started, require, run};
use rustix::process::Signal;

/// A stand-in for the manager, at the path that is second.
fn manager(home: &Home) -> (UnixDatagram, std::path::PathBuf) {
    let path = home.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    (socket, path)
}

fn heard(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let read = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..read].to_vec()).unwrap()
}

#[test]
fn a_manager_hears_when_the_job_runs_when_it_stops_and_how_it_ended() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let (socket, path) = manager(&home);
    let mut command = home.run();
    let script = "env; tr '\\0' '\\n' </proc/1/environ; tr '\\0' '\\n' </proc/self/environ; echo on; exec sleep 1000";
    command.env("NOTIFY_SOCKET", &path).args(["--stop-timeout", "2m", "--", "sh", "-c", script]);
    let mut job = Started::new(&mut command);
    let ready = heard(&socket);
    let id = home.jobs()[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(ready, format!("READY=1\nMAINPID={}\nSTATUS=job {id} runs", job.pid()));
    job.wait_for("on");
    job.signal(Signal::TERM);
    assert!(heard(&socket).starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=250000000\n"), "longer than its patience");
    assert_eq!(heard(&socket), format!("STATUS=job {id}: exited (143)"));
    let ran = job.finish().expect_code(143);
    assert!(!ran.stdout.contains("NOTIFY_SOCKET"), "{ran}");
}

#[test]
fn a_start_that_fails_is_never_ready_and_a_manager_that_is_gone_is_no_failure() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let (socket, path) = manager(&home);
    let failed = run(home.run().env("NOTIFY_SOCKET", &path).args(["--", "/nonexistent"])).expect_code(127);
    let status = heard(&socket);
    assert!(status.starts_with("STATUS=job ") && status.ends_with("failed (127)"), "{status}\n{failed}");
    drop(socket);
    let _ran = run(home.run().env("NOTIFY_SOCKET", &path).args(["--", "true"])).expect_success();
}
