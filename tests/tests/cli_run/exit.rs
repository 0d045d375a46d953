//! Exit codes: the payload's own, and 124 to 128 + n for everything that is not (DESIGN.md, section 12).

use agentd_tests::{Home, run};

use crate::{home, noise, sh, write};

#[test]
fn the_payloads_own_code_is_passed_on() {
    let Some(home) = home() else { return };
    for code in [0, 1, 7, 124, 125, 126, 127, 255] {
        let ran = sh(&home, &[], &format!("exit {code}")).expect_code(code);
        assert!(ran.stderr.is_empty(), "a code of the payload's own is no failure of agentd\n{ran}");
        let record = &home.jobs()[0];
        assert_eq!((record["state"].as_str(), record["exit_code"].as_i64()), (Some("exited"), Some(code.into())));
    }
}

#[test]
fn death_by_a_signal_is_128_and_its_number() {
    let Some(home) = home() else { return };
    for signal in [1, 2, 3, 4, 6, 8, 9, 10, 11, 13, 14, 15] {
        let ran = sh(&home, &[], &format!("kill -{signal} $$")).expect_code(128 + signal);
        assert!(ran.stderr.is_empty(), "{ran}");
    }
}

#[test]
fn a_timeout_is_124_and_takes_what_ignores_sigterm_too() {
    let Some(home) = home() else { return };
    let obeys = sh(&home, &["--timeout", "300ms"], "exec sleep 1000").expect_code(124);
    obeys.expect_one_error_line(&["timeout", "300ms"]);
    // A shell has its trap by then, on a busy machine too.
    let flags = ["--timeout", "3s", "--stop-timeout"];
    let trap = "trap 'echo bye; exit 3' TERM; while :; do sleep 0.05; done";
    let says_goodbye = sh(&home, &[&flags[..], &["1h"]].concat(), trap).expect_code(124);
    assert_eq!(says_goodbye.stdout, "bye\n");
    let trap = "trap '' TERM; while :; do sleep 0.05; done";
    let ignores = sh(&home, &[&flags[..], &["200ms"]].concat(), trap).expect_code(124);
    assert!(ignores.took.as_millis() >= 3200, "killed before the grace period was over\n{ignores}");
    assert_eq!(home.jobs()[0]["exit_code"], 124);
}

#[test]
fn a_stop_timeout_does_not_hold_up_a_payload_that_goes_at_once() {
    let Some(home) = home() else { return };
    let _ran = sh(&home, &["--timeout", "100ms", "--stop-timeout", "1h"], "exec sleep 1000").expect_code(124);
}

#[test]
fn a_payload_that_ends_in_time_is_not_a_timeout() {
    let Some(home) = home() else { return };
    let _ran = sh(&home, &["--timeout", "1h"], "exit 4").expect_code(4);
}

fn in_workspace(home: &Home, program: &str) -> agentd_tests::Ran {
    let workspace = home.workspace();
    run(home.run().arg("--workspace").arg(workspace).args(["--", program]))
}

#[test]
fn what_cannot_be_executed_is_126() {
    let Some(home) = home() else { return };
    let file = |name: &str, contents: &[u8], mode| write(&home.workspace().join(name), contents, mode);
    file("no-mode", b"#!/bin/sh\n", 0o644);
    file("no-shebang", b"echo hello\n", 0o755);
    file("garbage", &noise(4096), 0o755);
    file("empty", b"", 0o755);
    std::fs::create_dir(home.workspace().join("directory")).unwrap();
    for name in ["no-mode", "no-shebang", "garbage", "empty", "directory"] {
        in_workspace(&home, &format!("./{name}")).expect_code(126).expect_one_error_line(&[name, "not executable"]);
        let record = &home.jobs()[0];
        assert_eq!((record["state"].as_str(), record["exit_code"].as_i64()), (Some("failed"), Some(126)), "{name}");
    }
}

#[test]
fn what_is_not_there_is_127_also_an_interpreter() {
    let Some(home) = home() else { return };
    write(&home.workspace().join("orphan"), "#!/no/such/interpreter\n", 0o755);
    in_workspace(&home, "./orphan").expect_code(127).expect_one_error_line(&["orphan", "interpreter"]);
    in_workspace(&home, "./nothing").expect_code(127).expect_one_error_line(&["./nothing"]);
    in_workspace(&home, "/no/such/directory/x").expect_code(127).expect_one_error_line(&["/no/such/directory/x"]);
    in_workspace(&home, "no-such-program").expect_code(127).expect_one_error_line(&["no-such-program", "PATH", "/bin"]);
    in_workspace(&home, "").expect_code(127).expect_one_error_line(&[]);
    assert!(home.jobs().iter().all(|record| record["state"] == "failed" && record["exit_code"] == 127));
}

#[test]
fn a_path_entry_that_may_not_be_executed_outweighs_those_that_are_missing() {
    let Some(home) = home() else { return };
    let bin = home.workspace().join("bin");
    std::fs::create_dir(&bin).unwrap();
    write(&bin.join("tool"), "#!/bin/sh\n", 0o644);
    let path = |path: &str| {
        let workspace = home.workspace();
        run(home.run().arg("--workspace").arg(workspace).args(["--env", &format!("PATH={path}"), "--", "tool"]))
    };
    path("/workspace/bin:/nowhere").expect_code(126).expect_one_error_line(&["tool"]);
    path("/nowhere").expect_code(127).expect_one_error_line(&["tool", "/nowhere"]);
    write(&bin.join("tool"), "#!/bin/sh\nexit 9\n", 0o755);
    let _ran = path("/nowhere:/workspace/bin").expect_code(9);
}

#[test]
fn a_failure_of_agentds_own_is_125() {
    let Some(home) = home() else { return };
    let _ran = sh(&home, &["--image", "dir:/no/such/root"], "true").expect_code(125);
    let _ran = sh(&home, &["--no-such-flag"], "true").expect_code(125);
    let _ran = sh(&home, &["--name", "twin"], "true").expect_success();
    sh(&home, &["--name", "twin"], "true").expect_code(125).expect_one_error_line(&["twin", "agentd rm twin"]);
    // A state directory that is a file: no record, no job.
    let state = home.path().join("config/file");
    write(&state, "", 0o600);
    let ran = run(home.run().env("XDG_STATE_HOME", &state).args(["--", "true"])).expect_code(125);
    ran.expect_one_error_line(&["config/file"]);
}

/// PID 1 that fails before the supervisor has written the record must still be heard.
#[test]
fn a_step_that_fails_inside_is_125_and_named() {
    let Some(home) = home() else { return };
    std::fs::create_dir(home.workspace().join("file")).unwrap();
    let mount = format!("src={},dst=/etc/passwd/x", home.workspace().display());
    for _ in 0..10 {
        let ran = sh(&home, &["--mount", &mount], "true").expect_code(125);
        ran.expect_one_error_line(&["cannot bind", "/etc/passwd/x", "Not a directory"]);
    }
    assert!(home.jobs().iter().all(|record| record["state"] == "failed" && record["exit_code"] == 125));
}
