//! Standard input, output and error: byte for byte, and agentd's own words beside them.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use agentd_tests::{Started, run, run_with_input};

use crate::{home, noise, sh, write};

const TEN_MEGABYTES: usize = 10_000_000;

#[test]
fn output_is_passed_on_byte_for_byte() {
    let Some(home) = home() else { return };
    let bytes = noise(TEN_MEGABYTES);
    write(&home.workspace().join("noise"), &bytes, 0o600);
    let workspace = home.workspace().display().to_string();
    let ran = sh(&home, &["--workspace", &workspace], "cat noise; cat noise >&2; exit 3").expect_code(3);
    assert!(ran.stdout_bytes == bytes, "stdout: {} bytes", ran.stdout_bytes.len());
    assert!(ran.stderr_bytes == bytes, "stderr: {} bytes", ran.stderr_bytes.len());
}

#[test]
fn two_streams_in_turn_lose_and_mix_nothing() {
    let Some(home) = home() else { return };
    let script = "i=0; while [ $i -lt 2000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
    let ran = sh(&home, &[], script).expect_success();
    let lines = |word| (0..2000).map(|i| format!("{word} {i}\n")).collect::<String>();
    assert_eq!(ran.stdout, lines("out"));
    assert_eq!(ran.stderr, lines("err"));
    // Both are kept, apart.
    let logs = run(home.agentd().args(["logs", home.jobs()[0]["id"].as_str().unwrap()])).expect_success();
    assert_eq!((logs.stdout, logs.stderr), (ran.stdout, ran.stderr));
}

#[test]
fn what_a_descendant_still_writes_while_the_payload_ends_is_not_lost() {
    let Some(home) = home() else { return };
    // The pipe is full when the payload ends: what is in it is still the payload's output.
    let ran = sh(&home, &[], "head -c 60000 /dev/zero").expect_success();
    assert_eq!(ran.stdout_bytes.len(), 60_000);
}

#[test]
fn without_output_there_is_none() {
    let Some(home) = home() else { return };
    let ran = sh(&home, &[], "true").expect_silent_success();
    assert_eq!(ran.stdout, "");
}

#[test]
fn agentds_own_words_are_on_stderr_with_its_name_and_can_be_silenced() {
    let Some(home) = home() else { return };
    let flags = ["--net", "host", "--secret-env", "S=cmd:echo 12345678", "--max-output", "1"];
    let loud = sh(&home, &flags, "echo out; echo err >&2").expect_success();
    assert_eq!(loud.stdout, "out\n");
    let (own, others): (Vec<_>, Vec<_>) = loud.stderr.lines().partition(|line| line.starts_with("agentd: "));
    assert_eq!(others, ["err"]);
    assert!(own.len() >= 3, "network, warning and log are worth words\n{loud}");
    let quiet = sh(&home, &[&["-q"], &flags[..]].concat(), "echo out; echo err >&2").expect_success();
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("out\n", "err\n"));
    // A failure is said all the same.
    run(home.run().args(["-q", "--", "/no/such/program"]))
        .expect_code(127)
        .expect_one_error_line(&["/no/such/program"]);
}

#[test]
fn standard_input_stays_outside_unless_asked_for() {
    let Some(home) = home() else { return };
    // Held open: a payload that waited for it would never end.
    let mut started = Started::new(home.run().args(["--", "cat"]).stdin(Stdio::piped()));
    let mut stdin = started.stdin().unwrap();
    stdin.write_all(b"not for the box\n").unwrap();
    let ran = started.finish().expect_success();
    assert_eq!(ran.stdout, "");
}

#[test]
fn standard_input_is_passed_on_byte_for_byte_to_its_end() {
    let Some(home) = home() else { return };
    let bytes = noise(TEN_MEGABYTES);
    let ran = run_with_input(home.run().args(["-i", "--", "cat"]), &bytes).expect_success();
    assert!(ran.stdout_bytes == bytes, "{} bytes came back", ran.stdout_bytes.len());
    let nothing = run_with_input(home.run().args(["-i", "--", "cat"]), b"").expect_success();
    assert_eq!(nothing.stdout, "");
    let from_null = run(home.run().args(["-i", "--", "cat"])).expect_success();
    assert_eq!(from_null.stdout, "");
}

#[test]
fn a_conversation_through_stdin_and_stdout_is_not_held_back() {
    let Some(home) = home() else { return };
    let mut started = Started::new(
        home.run().args(["-i", "--", "sh", "-c", "while read l; do echo got $l; done; echo end"]).stdin(Stdio::piped()),
    );
    let mut stdin = started.stdin().unwrap();
    for word in ["one", "two", "three"] {
        writeln!(stdin, "{word}").unwrap();
        started.wait_for(&format!("got {word}\n"));
    }
    drop(stdin);
    assert!(started.finish().expect_success().stdout.ends_with("end\n"));
}

#[test]
fn a_payload_that_closes_or_ignores_its_input_does_not_hang() {
    let Some(home) = home() else { return };
    let bytes = noise(TEN_MEGABYTES);
    let ignores = run_with_input(home.run().args(["-i", "--", "true"]), &bytes).expect_success();
    assert_eq!(ignores.stdout, "");
    let closes = run_with_input(home.run().args(["-i", "--", "sh", "-c", "exec <&-; echo closed"]), &bytes);
    assert_eq!(closes.expect_success().stdout, "closed\n");
}

#[test]
fn a_reader_that_goes_away_ends_the_payload_by_sigpipe() {
    let Some(home) = home() else { return };
    let mut child = home.run().args(["--", "yes"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "y\n");
    drop(reader);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 13));
    assert_eq!(home.jobs()[0]["exit_code"], 128 + 13);
}

#[test]
fn closed_standard_streams_do_not_reach_the_box() {
    let Some(home) = home() else { return };
    let script = "\"$0\" run -- sh -c 'ls /proc/self/fd; cat; echo out; echo err >&2' 0<&- 1>&- 2>&-; echo code $?";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script]).arg(agentd_tests::agentd());
    let environment = home.agentd();
    command.env_clear().envs(environment.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ran = run(&mut command).expect_success();
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("code 0\n", ""));
}
