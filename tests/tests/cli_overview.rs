//! What tells of all jobs together, or of their time: `health`, `metrics`, `summary`, `logs --timestamps`.
#![expect(clippy::panic, reason = "these are tests, helpers included")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::Duration;

use agentd_tests::{Feature, Home, Ran, Started, require, run, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn home() -> Option<Home> {
    require(Feature::Userns).then(Home::new)
}

/// The verdict of each subject.
fn findings(ran: &Ran) -> BTreeMap<String, String> {
    let found: Value = serde_json::from_str(&ran.stdout).unwrap_or_default();
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    found.as_array().into_iter().flatten().map(|one| (text(one, "subject"), text(one, "verdict"))).collect()
}

#[test]
fn health_is_a_matter_of_what_is_there() {
    let Some(home) = home() else { return };
    let health = |home: &Home| home.say(&["health", "--format", "json"]);
    // How full this machine's disk is, and what its other users leave, is nothing of this test's.
    let judged = |ran: &Ran, subject: &str| findings(ran).get(subject).cloned().unwrap_or_default();
    let well = health(&home);
    for subject in ["host", "job-records", "running-jobs"] {
        assert_eq!(judged(&well, subject), "ok", "{subject}: {well}");
    }
    assert!(findings(&well).contains_key("state-space") && findings(&well).contains_key("left-behind"), "{well}");
    assert_eq!(well.code(), i32::from(findings(&well).values().any(|verdict| verdict != "ok")), "{well}");

    let id = home.detached(&[], "exec sleep 1000");
    let supervisor = Pid::from_raw(home.supervisor(&id).pid).unwrap_or(Pid::INIT);
    kill_process(supervisor, Signal::STOP).unwrap_or_else(|e| panic!("{e}"));
    let stat = format!("/proc/{}/stat", supervisor.as_raw_nonzero());
    assert!(wait_until(PATIENCE, || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))));
    let silent = health(&home).expect_code(1);
    assert_eq!(judged(&silent, "running-jobs"), "limited");
    let table = home.say(&["health"]).expect_code(1).stdout;
    assert!(table.contains(&format!("agentd rm -f {id}")), "the remedy: {table}");
    kill_process(supervisor, Signal::CONT).unwrap_or_else(|e| panic!("{e}"));
    let _ran = home.say(&["stop", &id]).expect_silent_success();

    // A host on which no job runs, and one on which no image does.
    let file = home.path().join("file");
    fs::write(&file, "").unwrap_or_else(|e| panic!("{e}"));
    let with = |variable: &str| run(home.agentd().args(["health", "--format", "json"]).env(variable, &file));
    let no_records = with("XDG_STATE_HOME").expect_code(1);
    assert_eq!((judged(&no_records, "records"), judged(&no_records, "host")), ("broken".into(), String::new()));
    let no_store = with("AGENTD_STORE").expect_code(1);
    assert_eq!((judged(&no_store, "store"), judged(&no_store, "host")), ("limited".into(), "ok".into()));

    let record = home.state().join("jobs").join(&id).join("record.jsonl");
    fs::write(&record, "nonsense\n").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(judged(&health(&home).expect_code(1), "job-records"), "limited");
    let _ran = home.say(&["rm", &id]).expect_success();
    assert_eq!(judged(&health(&home), "job-records"), "ok");
}

#[test]
fn metrics_are_open_metrics() {
    let Some(home) = home() else { return };
    let _ran = run(home.run().args(["-q", "--", "sh", "-c", "exit 3"])).expect_code(3);
    let _ran = run(home.run().args(["-q", "--", "/no/such/program"])).expect_code(127);
    let id = home.detached(&["--name", "busy"], "exec sleep 1000");
    let text = home.say(&["metrics"]).expect_silent_success().stdout;
    assert!(text.ends_with("# EOF\n"), "{text}");
    for line in [
        "agentd_jobs{state=\"running\"} 1".to_owned(),
        "agentd_jobs{state=\"exited\"} 1".into(),
        "agentd_jobs{state=\"failed\"} 1".into(),
        "agentd_jobs{state=\"lost\"} 0".into(),
        "agentd_job_exits{code=\"3\"} 1".into(),
        "agentd_records_unreadable 0".into(),
        format!("agentd_job_processes{{id=\"{id}\",name=\"busy\"}} 2"),
        format!("agentd_job_restarts{{id=\"{id}\",name=\"busy\"}} 0"),
        "agentd_jobs{state=\"paused\"} 0".into(),
        "agentd_oom_kills 0".into(),
        format!("agentd_job_paused{{id=\"{id}\",name=\"busy\"}} 0"),
    ] {
        assert!(text.lines().any(|known| known == line), "{line}\n{text}");
    }
    check_exposition(&text);
    let _ran = home.say(&["stop", &id]).expect_silent_success();
}

/// Fails unless the text is one of OpenMetrics 1.0 ("Text format") and one of Prometheus's own format ("Exposition formats"),
/// where they are stricter than each other by the stricter: node_exporter refuses a file whole for one line.
#[track_caller]
fn check_exposition(text: &str) {
    let Some(lines) = text.strip_suffix("# EOF\n") else { panic!("no end: {text}") };
    let is_name = |name: &str| {
        let mut letters = name.chars();
        letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
            && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    };
    let (mut families, mut helped, mut series) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    let mut family = "";
    for line in lines.lines() {
        let mut words = line.splitn(4, ' ');
        match [words.next(), words.next(), words.next(), words.next()] {
            [Some("#"), Some("TYPE"), Some(name), Some(kind)] => {
                // What both know and needs no more than one sample a series.
                assert!(is_name(name) && ["gauge", "counter"].contains(&kind), "{line}");
                assert!(
                    kind != "counter" || !name.ends_with("_total"),
                    "the samples have that, not the family: {line}"
                );
                assert!(families.insert(name, kind).is_none(), "once each: {line}");
                family = name;
            }
            [Some("#"), Some("HELP"), Some(name), Some(help)] => {
                assert!(name == family && helped.insert(name) && !help.contains('\\'), "{line}");
            }
            _ => {
                let of_counter = format!("{family}_total");
                let wanted = if families.get(family) == Some(&"counter") { &of_counter } else { family };
                let Some((sample, value)) = line.rsplit_once(' ') else { panic!("{line}") };
                let (name, labels) = sample.split_once('{').map_or((sample, ""), |(name, labels)| (name, labels));
                assert!(name == wanted && helped.contains(family), "of the family before it: {line}");
                assert!(value.parse::<f64>().is_ok_and(|value| value.is_finite() && value >= 0.0), "{line}");
                if sample != name {
                    check_labels(labels);
                }
                assert!(series.insert(sample), "twice: {line}");
            }
        }
    }
    assert_eq!(families.len(), helped.len());
}

/// `name="value"` with commas between, and the brace that ends them.
#[track_caller]
fn check_labels(labels: &str) {
    let (mut rest, mut names) = (labels, BTreeSet::new());
    loop {
        let Some((name, value)) = rest.split_once("=\"") else { panic!("{labels}") };
        let known = |letter: char| letter.is_ascii_lowercase() || letter == '_';
        assert!(!name.is_empty() && name.chars().all(known) && names.insert(name), "{labels}");
        let mut is_escaped = false;
        let end = value.find(|letter| {
            let ends = letter == '"' && !is_escaped;
            assert!(!is_escaped || ['\\', '"', 'n'].contains(&letter), "{labels}");
            is_escaped = letter == '\\' && !is_escaped;
            ends
        });
        let Some(end) = end else { panic!("{labels}") };
        match value.get(end + 1..) {
            Some("}") => return,
            Some(more) if more.starts_with(',') => rest = &more[1..],
            _ => panic!("{labels}"),
        }
    }
}

#[test]
fn a_summary_counts_jobs_by_how_they_ended() {
    let Some(home) = home() else { return };
    for _ in 0..2 {
        let _ran = run(home.run().args(["-q", "--", "true"])).expect_success();
    }
    let _ran = run(home.run().args(["-q", "--restart", "on-failure:2", "--", "false"])).expect_code(1);
    let _ran = run(home.run().args(["-q", "--timeout", "100ms", "--", "sleep", "1000"])).expect_code(124);
    let shown = home.say(&["summary", "--format", "json"]).expect_silent_success();
    let rows: Value = serde_json::from_str(&shown.stdout).unwrap_or_else(|e| panic!("{e}\n{shown}"));
    let of = |outcome: &str, field: &str| {
        let row = rows.as_array().into_iter().flatten().find(|row| row["outcome"] == outcome);
        row.and_then(|row| row[field].as_f64())
    };
    assert_eq!(
        (of("succeeded", "jobs"), of("timed out", "jobs"), of("ended otherwise", "jobs")),
        (Some(2.0), Some(1.0), Some(1.0))
    );
    assert_eq!((of("all", "jobs"), of("all", "restarts"), of("lost", "jobs")), (Some(4.0), Some(2.0), None));
    assert!(of("timed out", "seconds").is_some_and(|seconds| seconds >= 0.1), "{shown}");
    let table = home.say(&["summary"]).expect_silent_success().stdout;
    assert!(table.contains("OUTCOME") && table.contains("succeeded"), "{table}");
    let line = "{{.Outcome}}: {{.Jobs}} jobs, {{.Restarts}} restarts";
    let filled = home.say(&["summary", "--format", line]).expect_silent_success().stdout;
    assert!(
        filled.contains("succeeded: 2 jobs, 0 restarts\n") && filled.ends_with("all: 4 jobs, 2 restarts\n"),
        "{filled}"
    );
    let refused = home.say(&["summary", "--format", "{{.ID}}"]).expect_code(125);
    assert!(refused.stderr.contains(".Outcome"), "{refused}");
    let later = home.say(&["summary", "--since", "2999-01-01T00:00:00Z", "--format", "json"]).expect_silent_success();
    assert!(later.stdout.contains("\"jobs\": 0"), "{later}");
}

#[test]
fn lines_have_the_times_at_which_they_came_and_the_log_is_as_it_was() {
    let Some(home) = home() else { return };
    let seconds = |command: &mut Command| run(command).stdout.trim().parse::<i64>().unwrap_or_default();
    let now = || seconds(Command::new("date").arg("+%s"));
    let begun = now();
    // Two lines well apart, one without an end, one of the other stream.
    let script = "echo one; echo other >&2; read x < gate; printf 'two\\nthree'";
    let gate = home.workspace().join("gate");
    let _made = run(Command::new("mkfifo").arg(&gate)).expect_success();
    let workspace = home.workspace().display().to_string();
    let id = home.detached(&["--workspace", &workspace], script);
    assert!(wait_until(PATIENCE, || home.say(&["logs", &id]).stdout == "one\n"));
    let first = now();
    let mut follower = Started::new(home.agentd().args(["logs", "-ft", &id]));
    follower.wait_for("one\n");
    // What is to be three seconds later has to wait for them.
    assert!(wait_until(PATIENCE, || now() >= first + 3));
    let second = now();
    fs::write(&gate, "go\n").unwrap_or_else(|e| panic!("{e}"));
    let _ran = home.say(&["wait", &id]).expect_code(0);
    let ended = now();
    let plain = home.say(&["logs", &id]).expect_success();
    assert_eq!((plain.stdout.as_str(), plain.stderr.as_str()), ("one\ntwo\nthree", "other\n"));
    let timed = home.say(&["logs", "--timestamps", &id]).expect_success();
    assert_eq!(follower.finish().expect_success().stdout, timed.stdout);
    let line = |line: &str| {
        let (time, text) = line.split_once(' ').unwrap_or_else(|| panic!("{line}"));
        (seconds(Command::new("date").args(["-d", time, "+%s"])), text.to_owned())
    };
    let lines: Vec<(i64, String)> = timed.stdout.lines().map(line).collect();
    assert_eq!(lines.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["one", "two", "three"]);
    assert!((begun - 1..=first).contains(&lines[0].0), "{begun} {first} {timed}");
    assert!(lines[1..].iter().all(|(time, _)| (second - 1..=ended).contains(time)), "{second} {ended} {timed}");
    assert!(timed.stderr.ends_with("Z other\n"), "{timed}");
    let _ran = home.say(&["logs", "-t", "--denials", &id]).expect_code(125);
}
