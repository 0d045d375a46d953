//! What scripts build on: filters and templates of `ps`, `--on-exit`, completion scripts and the manual.

use std::fs;
use std::process::Command;
use std::time::Duration;

use agentd_tests::server::{Manner, Server};
use agentd_tests::{
    Feature, Home, Started, Terminal, costs_below, cpu_time, install, require, run, run_with_input, wait_until,
};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn ps_shows_what_is_asked_for_as_it_is_asked_for() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let _ran = run(home.run().args(["--name", "one", "--", "sh", "-c", "exit 3"])).expect_code(3);
    let _ran = run(home.run().args(["--name", "two", "--", "/no/such/program"])).expect_code(127);
    let three = home.detached(&["--name", "three"], "exec sleep 1000");
    let names = |words: &[&str]| {
        let words = [&["ps", "--format", "{{.Name}}"], words].concat();
        home.say(&words).expect_silent_success().stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(&[]), ["three"]);
    assert_eq!(names(&["-a"]), ["three", "two", "one"]);
    assert_eq!(names(&["--filter", "status=exited"]), ["one"], "what has ended is looked at without -a");
    assert_eq!(names(&["-f", "status=exited", "-f", "status=failed"]), ["two", "one"], "alternatives");
    assert_eq!(names(&["-f", "exited=127"]), ["two"]);
    assert_eq!(names(&["-a", "-f", "name=t", "-f", "status=running"]), ["three"], "kinds are all wanted");
    assert_eq!(names(&["-a", "-f", "image=host", "-f", "name=wo"]), ["two"]);
    assert_eq!(names(&["-f", "status=lost"]), Vec::<String>::new());
    let line = home.say(&["ps", "--format", "{{.ID}}\\t{{ .State }}\\t{{.Image}}"]).expect_silent_success().stdout;
    assert_eq!(line, format!("{three}\trunning\thost\n"));
    for (flag, value, word) in [
        ("--format", "{{.Nope}}", ".ID"),
        ("--format", "yaml", "template"),
        ("--format", "{{.ID", "}}"),
        ("--filter", "status=stopped", "running|paused|exited"),
        ("--filter", "label=x", "name=TEXT"),
    ] {
        let refused = home.say(&["ps", flag, value]).expect_code(125);
        assert!(refused.stderr.contains(word), "{value}: {refused}");
    }
}

/// A paused job is one in the table, for a filter, for programs and for metrics. It needs a cgroup, which not every machine
/// has: its record names a directory that says what a cgroup's would.
#[test]
fn a_paused_job_is_paused_everywhere() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let id = home.detached(&["--name", "held"], "exec sleep 1000");
    let cgroup = home.path().join("cgroup");
    fs::create_dir(&cgroup).unwrap();
    let live = home.state().join("live").join(&id);
    let mut record: serde_json::Value = serde_json::from_str(fs::read_to_string(&live).unwrap().trim()).unwrap();
    record["cgroup"] = cgroup.to_str().unwrap().into();
    let mut file = fs::File::options().append(true).open(live).unwrap();
    std::io::Write::write_all(&mut file, format!("{record}\n").as_bytes()).unwrap();
    fs::write(cgroup.join("cpu.stat"), "usage_usec 1500000\n").unwrap();
    fs::write(cgroup.join("memory.peak"), "4096\n").unwrap();
    for (freeze, running, paused) in [("0\n", "held\n", ""), ("1\n", "", "held\n")] {
        fs::write(cgroup.join("cgroup.freeze"), freeze).unwrap();
        let state = if paused.is_empty() { "running" } else { "paused" };
        let listed = |words: &[&str]| {
            let words = [&["ps", "--format", "{{.Name}}"], words].concat();
            home.say(&words).expect_silent_success().stdout
        };
        assert_eq!(
            (listed(&["-f", "status=running"]), listed(&["-f", "status=paused"])),
            (running.into(), paused.into())
        );
        assert_eq!(listed(&[]), "held\n", "it is listed either way");
        assert_eq!(home.say(&["ps", "--format", "{{.State}}"]).stdout, format!("{state}\n"));
        let job = &home.jobs()[0];
        assert_eq!((job["state"].as_str(), job["paused"].as_bool()), (Some("running"), Some(!paused.is_empty())));
        let metrics = home.say(&["metrics"]).expect_silent_success().stdout;
        let said = usize::from(!paused.is_empty());
        for line in [
            format!("agentd_jobs{{state=\"{state}\"}} 1\n"),
            format!("agentd_job_paused{{id=\"{id}\",name=\"held\"}} {said}\n"),
            // What only a cgroup counts; of a counter the samples have another name than the family.
            "# TYPE agentd_job_cpu_seconds counter\n".to_owned(),
            format!("agentd_job_cpu_seconds_total{{id=\"{id}\",name=\"held\"}} 1.5\n"),
            format!("agentd_job_memory_peak_bytes{{id=\"{id}\",name=\"held\"}} 4096\n"),
        ] {
            assert!(metrics.contains(&line), "{line}{metrics}");
        }
    }
    let _ran = home.say(&["stop", "-t", "0", &id]).expect_silent_success();
}

/// `cargo xtask bench lists` holds this to 50 ms on a quiet machine. Here others run beside it; they take as much from `cat`,
/// which reads the same files.
#[test]
fn ten_thousand_records_are_listed_at_once() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let _ran = run(home.run().args(["--", "true"])).expect_success();
    let first = home.jobs()[0]["id"].as_str().unwrap().to_owned();
    let record = fs::read_to_string(home.state().join("jobs").join(&first).join("record.jsonl")).unwrap();
    for number in 1..10_000_u64 {
        // Spread, as random ids are.
        let other = format!("{:012x}", number.wrapping_mul(0x9e37_79b9_7f4a) % (1 << 48));
        let job = home.state().join("jobs").join(&other);
        fs::create_dir(&job).unwrap();
        fs::write(job.join("record.jsonl"), record.replace(&first, &other)).unwrap();
    }
    let mut cat = Command::new("cat");
    cat.args(fs::read_dir(home.state().join("jobs")).unwrap().map(|job| job.unwrap().path().join("record.jsonl")));
    for words in [&["ps", "-aq"], &["ps", "-a"]] {
        let listed = home.say(words).expect_silent_success();
        assert!(listed.stdout.lines().count() >= 10_000, "{words:?}");
        // It is about half, and was as much while each short copy took 30 ns.
        let held = costs_below(0.75, || cpu_time(home.agentd().args(words), 3), || cpu_time(&cat, 3));
        held.unwrap_or_else(|costs| panic!("{words:?}, and to read the files with cat: {costs:?}"));
    }
}

/// A state directory grows for years: what runs is found without looking at what has ended.
#[test]
fn ps_does_not_read_what_has_ended() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let id = home.detached(&[], "exec sleep 1000");
    // To open this one would wait for a writer that never comes.
    let job = home.state().join("jobs/aaaaaaaaaaaa");
    fs::create_dir(&job).unwrap();
    let _made = run(Command::new("mkfifo").arg(job.join("record.jsonl"))).expect_success();
    assert_eq!(home.say(&["ps", "-q"]).expect_silent_success().stdout, format!("{id}\n"));
    fs::remove_dir_all(job).unwrap();
    let _ran = home.say(&["stop", &id]).expect_silent_success();
}

#[test]
fn stats_counts_what_a_box_uses() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let id = home.detached(&["--name", "busy"], "(while :; do :; done) & echo loops; exec sleep 1000");
    assert!(wait_until(PATIENCE, || home.say(&["logs", "busy"]).stdout == "loops\n"));
    let _idle = home.detached(&["--name", "idle"], "exec sleep 1000");
    let used = || {
        let shown = home.say(&["stats", "--no-stream", "--format", "json"]).expect_silent_success();
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
        ["busy", "idle"].map(|name| shown.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone())
    };
    let [mut busy, mut idle] = used();
    assert_eq!(
        (busy["id"].as_str(), busy["processes"].as_i64(), idle["processes"].as_i64()),
        (Some(id.as_str()), Some(3), Some(2))
    );
    assert!(busy["memory_bytes"].as_u64().unwrap() > 100_000, "{busy}");
    // Of a machine that is busy elsewhere the loop may get nothing for a second; an idle box needs nothing.
    let percent = |row: &serde_json::Value| row["cpu_percent"].as_f64().unwrap();
    let is_told = wait_until(PATIENCE, || {
        let told = percent(&busy) > 1.0 + percent(&idle);
        if !told {
            [busy, idle] = used();
        }
        told
    });
    assert!(is_told, "{busy} {idle}");
    let line = home.say(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "idle"]).expect_silent_success();
    assert_eq!(line.stdout, "idle 2\n");
    let table = home.say(&["stats", "--no-stream"]).expect_silent_success().stdout;
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["JOB", "NAME", "CPU", "MEMORY", "PEAK", "PIDS", "THREADS", "DISK", "NETWORK"]);
    assert!(busy["network_bytes"].is_null(), "it has none: {busy}");
    // It ends with the job that it was asked about.
    let stats = Started::new(home.agentd().args(["stats", "idle"]));
    let _ran = home.say(&["stop", "--all"]).expect_silent_success();
    let _ran = stats.finish().expect_success();
}

/// Without --no-stream it is a table a second: one below the other for a program, one in the place of the other on a terminal.
#[test]
fn stats_go_on_until_nobody_looks() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let one = home.detached(&["--name", "one"], "exec sleep 1000");
    let mut piped = Started::new(home.agentd().arg("stats"));
    let mut terminal = Terminal::new();
    let on_terminal = terminal.start(home.agentd().arg("stats"));
    piped.wait_for(&one);
    terminal.wait_for(&one);
    // Only a later look can show what was not there at the first.
    let two = home.detached(&["--name", "two"], "exec sleep 1000");
    piped.wait_for(&two);
    terminal.wait_for(&two);
    for started in [&piped, &on_terminal] {
        started.signal(Signal::TERM);
    }
    let (piped, shown) = (piped.finish().stdout, terminal.finish(on_terminal).stdout);
    let heads = |text: &str| text.lines().filter(|line| line.contains("JOB") && line.contains("NETWORK")).count();
    assert!(heads(&piped) >= 2 && !piped.contains('\u{1b}'), "{piped:?}");
    // The signal may have come when it had made room for a further one.
    assert!(heads(&shown) >= 2 && shown.matches("\u{1b}[H\u{1b}[2J").count() >= heads(&shown), "{shown:?}");
}

/// What goes through a connection counts while it is open.
#[test]
fn stats_counts_what_goes_through_the_broker() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", Manner::Echoes));
    let script = format!(
        "import socket, time
s = socket.create_connection(('web.test', {}))
s.sendall(bytes(1 << 20))
print('sent', flush=True); time.sleep(1000)",
        server.port()
    );
    let mut command = home.run();
    command.args(["-d", "--name", "net", "--add-host", "web.test:127.0.0.1"]);
    command.args(["--allow", &format!("web.test:{}", server.port()), "--", "/usr/bin/python3", "-c", &script]);
    let _ran = run(&mut command).expect_silent_success();
    assert!(wait_until(PATIENCE, || home.say(&["logs", "net"]).stdout == "sent\n"));
    let bytes = || -> u64 {
        let shown = home.say(&["stats", "--no-stream", "--format", "json"]).expect_silent_success();
        serde_json::from_str::<serde_json::Value>(&shown.stdout).unwrap()[0]["network_bytes"].as_u64().unwrap()
    };
    assert!(wait_until(PATIENCE, || bytes() == 1 << 20), "{}", bytes());
    let shown = home.say(&["stats", "--no-stream", "--format", "{{.NetIO}}"]).expect_silent_success().stdout;
    assert_eq!(shown, "1.05 MB\n");
    let _ran = home.say(&["stop", "-t", "0", "net"]).expect_silent_success();
    assert_eq!(home.record("net")["network"]["up"].as_u64(), Some(1 << 20));
}

#[test]
fn a_renamed_job_keeps_its_new_name() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let id = home.detached(&["--name", "old"], "exec sleep 1000");
    let _other = home.detached(&["--name", "other"], "exec sleep 1000");
    let _ran = home.say(&["rename", "old", "new"]).expect_silent_success();
    home.say(&["rename", "new", "other"]).expect_code(125).expect_one_error_line(&["other", "another job"]);
    let _ran = home.say(&["rename", "new", "-x"]).expect_code(125);
    assert_eq!(home.say(&["stop", "new"]).expect_silent_success().stdout, "new\n");
    let record = home.record("new");
    assert_eq!(
        (record["id"].as_str(), record["name"].as_str(), record["exit_code"].as_i64()),
        (Some(id.as_str()), Some("new"), Some(143))
    );
    let _ran = home.say(&["inspect", "old"]).expect_code(125);
    let _free = home.detached(&["--name", "old"], "true");
}

#[test]
fn on_exit_hears_of_the_end_and_no_shell_sees_what_a_job_says() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let (hook, heard) = (home.path().join("hook"), home.path().join("heard"));
    let script = "#!/bin/sh\necho \"$# $1 $2|$AGENTD_NAME $AGENTD_STATE $AGENTD_EXIT_CODE|$AGENTD_JOB\"\n\
                  echo \"$# $1 $2|$AGENTD_NAME $AGENTD_STATE $AGENTD_EXIT_CODE|$AGENTD_JOB\" > \"$0.tmp\"; mv \"$0.tmp\" \"${0%hook}heard\"\n";
    install(&hook, script.as_bytes());
    let on_exit = format!("{} a $(touch${{IFS}}never)", hook.display());
    let id = home.detached(&["--name", "x", "--on-exit", &on_exit], "exit 7");
    assert!(wait_until(PATIENCE, || heard.metadata().is_ok()));
    assert_eq!(fs::read_to_string(&heard).unwrap(), format!("2 a $(touch${{IFS}}never)|x exited 7|{id}\n"));
    fs::remove_file(&heard).unwrap();
    let ran = run(home.run().args(["-q", "--on-exit", &on_exit, "--", "echo", "the job"])).expect_success();
    assert_eq!(ran.stdout, "the job\n", "standard output is the job's alone");
    assert!(ran.stderr.contains("| exited 0|"), "{ran}");
    let ran = run(home.run().args(["--on-exit", "/no/such/hook", "--", "true"])).expect_code(125);
    ran.expect_one_error_line(&["--on-exit", "/no/such/hook"]);
    let _ran = run(home.run().args(["--on-exit", " ", "--", "true"])).expect_code(125);
    assert!(home.path().join("never").metadata().is_err());
}

/// What runs on the host when a job is over is not the job's to write, wherever it lies.
#[test]
fn escape_what_runs_on_exit_is_not_changed_by_the_job() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let place = home.workspace();
    fs::create_dir(place.join("sub")).unwrap();
    let hook = place.join("sub/hook");
    install(&hook, b"#!/bin/sh\necho as it was\n");
    let script = "(echo echo changed >> sub/hook) 2>/dev/null && echo written; mv sub/hook x 2>/dev/null && echo moved; \
                  mv sub y 2>/dev/null && echo moved above; true";
    let boxed = |on_exit: &str| {
        let mut command = home.run();
        command.current_dir(&place).args(["-q", "--workspace", ".", "--on-exit", on_exit, "--", "sh", "-c", script]);
        run(&mut command)
    };
    for on_exit in ["sub/hook", hook.to_str().unwrap(), "sh sub/hook"] {
        let ran = boxed(on_exit).expect_success();
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", "as it was\n"), "{on_exit}");
    }
    boxed("sub/later").expect_code(125).expect_one_error_line(&["--on-exit", "sub/later"]);
    // One that does not run is a file like others.
    assert_eq!(boxed("true").expect_success().stdout, "written\nmoved\nmoved above\n");
}

#[test]
fn completion_and_manual_know_every_verb() {
    let home = Home::new();
    let help = home.say(&["--help"]).expect_success().stdout;
    let listed = help.split_once("Commands:\n").unwrap().1.lines().take_while(|line| !line.is_empty());
    // A verb's own line; what is said of it may go on below.
    let verb =
        |line: &str| Some(line.strip_prefix("  ")?.split_once(' ')?.0.to_owned()).filter(|verb| !verb.is_empty());
    let verbs: Vec<String> = listed.filter_map(verb).filter(|verb| verb != "help").collect();
    assert!(verbs.len() > 25 && verbs.contains(&"rename".into()), "{verbs:?}");
    let man = home.path().join("man");
    let _ran = home.say(&["completion", "man", man.to_str().unwrap()]).expect_silent_success();
    for verb in &verbs {
        let page = fs::read_to_string(man.join(format!("agentd-{verb}.1"))).unwrap_or_else(|e| panic!("{verb}: {e}"));
        assert!(page.lines().any(|line| line.starts_with(".TH ")), "{verb}: {page}");
    }
    let run_page = fs::read_to_string(man.join("agentd-run.1")).unwrap();
    assert!(run_page.contains("workspace") && run_page.contains("detach"), "the options are there, not only the verb");
    let nested = fs::read_to_string(man.join("agentd-image-inspect.1")).unwrap();
    assert!(nested.lines().any(|line| line.starts_with(".TH ")) && nested.contains("NAME|ID"), "{nested}");
    let _ran = home.say(&["completion", "man"]).expect_code(125);
    let script = home.say(&["completion", "bash"]).expect_silent_success().stdout;
    let checked = run_with_input(Command::new("bash").args(["-n", "/dev/stdin"]), script.as_bytes());
    let _ran = checked.expect_silent_success();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = home.say(&["completion", shell]).expect_silent_success().stdout;
        for word in verbs.iter().map(String::as_str).chain(["workspace", "detach-keys"]) {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let _ran = home.say(&["completion", "csh"]).expect_code(125);
}
