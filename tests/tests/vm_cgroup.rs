//! Limits: what the kernel enforces on a job's cgroup, seen from inside, from the host and in the record. Needs a machine
//! with cgroup v2 to itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use agentd_tests::kernel::Process;
use agentd_tests::{Feature, Home, Ran, Started, is_root, require, run, traced, wait_until};
use rustix::process::Signal;
use serde_json::Value;

/// Emulated, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn home() -> Option<Home> {
    (require(Feature::Guest) && require(Feature::Busybox)).then(Home::new)
}

fn command(home: &Home, flags: &[&str], script: &str) -> Command {
    let mut command = home.run();
    command.args(["--image", &format!("oci:{}", home.busybox_image().display())]);
    command.args(flags).args(["--", "sh", "-c", script]);
    command
}

#[track_caller]
fn sh(home: &Home, flags: &[&str], script: &str) -> Ran {
    run(&mut command(home, flags, script))
}

/// What the newest record says of what was used; no number that anything could be where it says nothing.
#[track_caller]
fn usage(home: &Home, name: &str) -> u64 {
    home.jobs()[0]["usage"][name].as_u64().unwrap_or(u64::MAX)
}

/// Cgroups of jobs that are there now.
fn cgroups() -> Vec<PathBuf> {
    let found = run(Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", "agentd-*"]));
    found.stdout.lines().map(PathBuf::from).collect()
}

/// The cgroup of the job that runs.
#[track_caller]
fn cgroup_of_running(home: &Home) -> PathBuf {
    let record = &home.jobs()[0];
    assert_eq!(record["state"], "running", "{record}");
    PathBuf::from(record["cgroup"].as_str().unwrap_or("/nowhere"))
}

/// A program that wants some 128 MiB, by doubling a string.
const GREEDY: &str = r#"awk 'BEGIN { s = "x"; while (length(s) < 67108864) s = s s; print length(s) }'"#;

#[test]
fn a_tool_that_eats_memory_is_killed_and_the_agent_is_not() {
    let Some(home) = home() else { return };
    let script = format!("{GREEDY}; echo $?; echo the agent lives");
    let ran = sh(&home, &["--memory", "64m"], &script).expect_success();
    assert_eq!(ran.stdout, "137\nthe agent lives\n", "{ran}");
    assert_eq!(usage(&home, "oom_kills"), 1);
    let peak = usage(&home, "memory_peak");
    assert!((32 << 20..=64 << 20).contains(&peak), "{peak}");
    // Who it was is told where the supervisor was fast enough to see it, and never wrongly.
    let is_named = wait_until(PATIENCE, || {
        let killed = home.jobs()[0]["usage"]["oom_killed"].clone();
        assert!(killed.is_null() || killed == serde_json::json!(["awk"]), "{killed}");
        let is_named = !killed.is_null();
        if !is_named {
            let _ran = sh(&home, &["--memory", "64m"], &script).expect_success();
        }
        is_named
    });
    assert!(is_named, "it is never named");
    // Without that limit it gets what it wants.
    let ran = sh(&home, &["--memory", "512m"], &script).expect_success();
    assert_eq!(ran.stdout, "67108864\n0\nthe agent lives\n");
    assert_eq!(usage(&home, "oom_kills"), 0);
}

#[test]
fn a_payload_that_is_killed_for_memory_says_so() {
    let Some(home) = home() else { return };
    let limit = "at the limit of 67108864 bytes (--memory)";
    let is_named = wait_until(PATIENCE, || {
        let ran = sh(&home, &["--memory", "64m"], &format!("exec {GREEDY}")).expect_code(137);
        assert!(ran.stderr.contains("out of memory") && ran.stderr.contains(limit), "{ran}");
        let record = &home.jobs()[0];
        let reason = record["reason"].as_str().unwrap();
        assert!(ran.stderr.contains(reason), "{reason}\n{ran}");
        // A kernel before 5.19 counts no peak; none of the guest's is that old.
        assert!(reason.contains(&format!("peak was {} bytes", usage(&home, "memory_peak"))), "{record}");
        reason.contains("killed awk at")
    });
    assert!(is_named, "it is never named");
    // An agent that passes on what became of its tool, and one that another SIGKILL ends.
    let ran = sh(&home, &["--memory", "64m"], &format!("{GREEDY}; exit $?")).expect_code(137);
    assert!(ran.stderr.contains(limit), "{ran}");
    let ran = sh(&home, &["--memory", "32m"], "kill -9 $$").expect_code(137);
    assert!(!ran.stderr.contains("memory"), "{ran}");
    // That too after a tool was killed for memory, once the supervisor has seen it: it rates what is left.
    let script = format!(
        "sleep 1000 & {GREEDY}; score=; while [ \"$score\" != 500 ]; do sleep 0.1; read -r score < /proc/$!/oom_score_adj; done; \
         kill -9 $$"
    );
    let ran = sh(&home, &["--memory", "64m", "--timeout", "60s"], &script).expect_code(137);
    assert!(!ran.stderr.contains("memory"), "{ran}");
    assert_eq!(usage(&home, "oom_kills"), 1);
}

#[test]
fn a_fork_bomb_stops_at_its_limit_and_the_host_goes_on() {
    let Some(home) = home() else { return };
    let script = "bomb() { bomb | bomb & }; bomb 2>/dev/null; echo armed; sleep 1000";
    let mut job = Started::new(&mut command(&home, &["--pids", "40", "--stop-timeout", "1s"], script));
    job.wait_for("armed");
    let cgroup = cgroup_of_running(&home);
    let refused = || fs::read_to_string(cgroup.join("pids.events")).is_ok_and(|text| !text.contains("max 0\n"));
    assert!(wait_until(PATIENCE, refused), "no fork was refused");
    let times = [(); 5].map(|()| run(&mut Command::new("/bin/true")).expect_success().took);
    let is_responsive = times.iter().all(|took| *took < Duration::from_secs(10));
    assert!(is_responsive && times.iter().min() < Some(&Duration::from_secs(1)), "the host hangs: {times:?}");
    job.signal(Signal::TERM);
    let _ran = job.finish();
    assert!((30..=41).contains(&usage(&home, "pids_peak")), "{}", usage(&home, "pids_peak"));
    assert!(usage(&home, "forks_refused") > 0);
    // With more room, as many run.
    let many = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do sleep 1 & done; wait; echo all";
    let ran = sh(&home, &["--pids", "10"], many);
    assert!(!ran.stdout.contains("all"), "{ran}");
    assert_eq!(sh(&home, &["--pids", "100"], many).expect_success().stdout, "all\n");
}

#[test]
fn a_job_gets_the_cpu_time_it_may_have() {
    let Some(home) = home() else { return };
    // What the job's cgroup used between two looks, of what it might have, in percent.
    let share = |cpus: &str, milli: u128| {
        let flags = ["--cpus", cpus, "--stop-timeout", "1ms"];
        let mut job = Started::new(&mut command(&home, &flags, "echo on; while :; do :; done"));
        job.wait_for("on");
        let stat = cgroup_of_running(&home).join("cpu.stat");
        let used = || {
            let text = fs::read_to_string(&stat).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap();
            line.parse::<u128>().unwrap()
        };
        let (first, begun) = (used(), Instant::now());
        std::thread::sleep(Duration::from_secs(6));
        let (last, ended) = (used(), Instant::now());
        job.signal(Signal::TERM);
        let _ran = job.finish();
        (last - first) * 100_000 / ((ended - begun).as_micros() * milli)
    };
    // Less is possible where the machine is busy; more never.
    let mut limited = Vec::new();
    let is_held = (0..4).any(|_| {
        limited.push(share("0.2", 200));
        limited.iter().all(|percent| *percent <= 105) && limited.iter().any(|percent| *percent >= 95)
    });
    assert!(is_held, "{limited:?} % of 0.2 CPUs");
    let free = share("2", 2000);
    assert!(free > 20, "{free} % of two CPUs: it is the limit that holds the first back");
}

#[test]
fn a_paused_job_stands_still_and_can_be_stopped() {
    let Some(home) = home() else { return };
    let script = "while :; do echo x; sleep 0.05; done";
    let mut job =
        Started::new(&mut command(&home, &["--name", "beat", "--pids", "50", "--stop-timeout", "5s"], script));
    job.wait_for("x\nx\n");
    let cgroup = cgroup_of_running(&home);
    let frozen = |is: &str| {
        let events = || fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
        assert!(wait_until(PATIENCE, || events().contains(&format!("frozen {is}\n"))), "{}", events());
    };
    let beats = || home.say(&["logs", "beat"]).expect_success().stdout.len();
    assert_eq!(home.say(&["pause", "beat"]).expect_silent_success().stdout, "beat\n");
    frozen("1");
    assert_eq!(home.say(&["ps", "--format", "{{.State}}"]).expect_silent_success().stdout, "paused\n");
    assert_eq!(home.say(&["ps", "-f", "status=running", "-q"]).expect_silent_success().stdout, "");
    let metrics = home.say(&["metrics"]).expect_silent_success().stdout;
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}\n{metrics}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!((value("agentd_jobs{state=\"paused\"}"), value("agentd_job_paused{")), (1.0, 1.0));
    assert!(value("agentd_job_cpu_seconds_total{") > 0.0 && value("agentd_job_memory_bytes{") > 0.0, "{metrics}");
    home.say(&["exec", "beat", "true"]).expect_code(125).expect_one_error_line(&["paused", "agentd unpause"]);
    let _ran = home.say(&["unpause", "--all"]).expect_silent_success();
    frozen("0");
    let before = beats();
    assert!(wait_until(PATIENCE, || beats() > before), "it goes on");
    // Stopped while it is paused: it hears the signal that it would have heard.
    let _ran = home.say(&["pause", "beat"]).expect_silent_success();
    frozen("1");
    let _ran = home.say(&["stop", "beat"]).expect_silent_success();
    let _ran = job.finish().expect_code(143);
    assert!(cgroup.symlink_metadata().is_err());
}

/// Each box has a cgroup of its own, below the one that the first of them was given.
#[test]
fn a_job_with_limits_is_started_again_with_its_limits() {
    let Some(home) = home() else { return };
    let script = "cat /sys/fs/cgroup/pids.max; exit 7";
    let mut again = command(&home, &["--name", "again", "--restart", "on-failure:2", "--pids", "50"], script);
    let ran = run(&mut again).expect_code(7);
    // PID 1 is one more.
    assert_eq!(ran.stdout, "51\n51\n51\n", "{ran}");
    let record = &home.jobs()[0];
    assert_eq!(record["restarts"], 2, "{record}");
    assert!(record["usage"]["cpu_us"].as_u64().unwrap() > 0, "{record}");
    assert!(Path::new(record["cgroup"].as_str().unwrap()).symlink_metadata().is_err(), "{record}");
}

#[test]
fn what_hides_from_signals_ends_with_the_job_within_a_second() {
    let Some(home) = home() else { return };
    let hidden = "trap '' TERM; setsid sh -c 'trap \"\" TERM; (sleep 1000 & sleep 1000) & sleep 1000' & sleep 1000";
    let script = format!("trap '' TERM; ({hidden}) & sleep 1000");
    let sleeps = |process: &Process| {
        fs::read(format!("/proc/{}/cmdline", process.pid)).is_ok_and(|line| line.ends_with(b"sleep\x001000\0"))
    };
    // In a cgroup of its own and, for users, in the caller's; by `kill`, and by `stop` when its patience ends at once.
    for (limits, end) in [(&["--memory", "64m"][..], &["kill"][..]), (&[], &["kill"]), (&[], &["stop", "-t", "0"])] {
        let job = Started::new(&mut command(&home, &[&["--name", "hides", "--replace"], limits].concat(), &script));
        let mut all = Vec::new();
        let all_are_there = wait_until(PATIENCE, || {
            all = Process::of(job.pid()).map(|supervisor| supervisor.descendants()).unwrap_or_default();
            all.iter().filter(|process| sleeps(process)).count() == 5
        });
        assert!(all_are_there, "{all:?}");
        let cgroup = home.jobs()[0]["cgroup"].as_str().map(PathBuf::from);
        assert!(cgroup.is_some() || limits.is_empty());
        if let Some(cgroup) = &cgroup {
            // However they went away, not from the cgroup.
            let inside = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
            for process in &all {
                assert!(inside.lines().any(|line| line == process.pid.to_string()), "{process:?} is not in\n{inside}");
            }
        }
        let mut words = end.to_vec();
        words.push("hides");
        let mut ending = Started::new(home.agentd().args(&words));
        // From when the supervisor was told on: an emulated machine may need as long to start a program.
        assert!(wait_until(PATIENCE, || ending.has_ended() || all.iter().any(|process| !process.exists())));
        let begun = Instant::now();
        assert!(wait_until(PATIENCE, || !all.iter().any(Process::exists)));
        assert!(begun.elapsed() < Duration::from_secs(1), "{end:?}: {:?}", begun.elapsed());
        let _ran = (ending.finish().expect_success(), job.finish().expect_code(137));
        assert!(cgroup.is_none_or(|cgroup| cgroup.metadata().is_err()));
    }
}

#[test]
fn a_job_in_the_background_and_a_command_by_exec_have_the_memory_limit_too() {
    let Some(home) = home() else { return };
    let _ran = sh(&home, &["-d", "--name", "job", "--memory", "64m"], "sleep 1000").expect_success();
    let exec = |script: &str| run(home.agentd().args(["exec", "job", "sh", "-c", script]));
    assert_eq!(
        exec("cat /proc/self/cgroup; cat /sys/fs/cgroup/memory.max").expect_success().stdout,
        "0::/\n67108864\n"
    );
    assert_eq!(exec(&format!("{GREEDY}; echo $?")).expect_success().stdout, "137\n");
    let cgroup = cgroup_of_running(&home);
    let _ran = run(home.agentd().args(["rm", "-f", "job"])).expect_success();
    assert!(wait_until(PATIENCE, || cgroup.symlink_metadata().is_err()));
}

/// To move a process there later would leave a moment in which it is elsewhere, and takes longer.
#[test]
fn a_box_is_born_in_its_cgroup() {
    let Some(home) = home() else { return };
    let options = ["-e", "trace=clone3"];
    let trace = traced(&command(&home, &["--pids", "50"], "true"), &options, &home).unwrap();
    assert!(trace.contains("CLONE_INTO_CGROUP"), "{trace}");
}

#[test]
fn nothing_is_left_of_a_jobs_cgroup() {
    let Some(home) = home() else { return };
    let _ran = sh(&home, &["--pids", "50"], "sleep 1000 & true").expect_success();
    // A scope is removed by systemd, once the supervisor has left it.
    let gone = |cgroup: &Path| wait_until(PATIENCE, || cgroup.symlink_metadata().is_err());
    let record = &home.jobs()[0];
    assert!(gone(Path::new(record["cgroup"].as_str().unwrap())), "{record}");

    let mut job = Started::new(&mut command(&home, &["--pids", "50"], "echo ready; sleep 1000"));
    job.wait_for("ready");
    let cgroup = cgroup_of_running(&home);
    let all = Process::of(job.pid()).unwrap().descendants();
    job.signal(Signal::KILL);
    assert!(wait_until(PATIENCE, || !all.iter().any(Process::exists)));
    drop(job);
    // Whoever comes next cleans up.
    let _ran = run(home.agentd().args(["ps", "-a"])).expect_success();
    assert!(gone(&cgroup));
    assert_eq!(home.jobs()[0]["state"], "lost");
    let left: Vec<PathBuf> = cgroups().into_iter().filter(|path| path.starts_with(&cgroup)).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

/// Others' jobs, and those of another state directory, are none of what is left; an empty cgroup that nobody knows is.
#[test]
fn health_knows_a_left_cgroup_from_one_that_is_lived_in() {
    let Some(home) = home() else { return };
    let elsewhere = Home::new();
    let mut job =
        Started::new(&mut command(&elsewhere, &["--pids", "50", "--stop-timeout", "1ms"], "echo on; sleep 1000"));
    job.wait_for("on");
    let cgroup = cgroup_of_running(&elsewhere);
    let left = || {
        let said = home.say(&["health", "--format", "json"]);
        let rows: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("{e}\n{said}"));
        rows.as_array().unwrap().iter().find(|row| row["subject"] == "left-behind").unwrap().clone()
    };
    // Other tests kill what leaves a cgroup for a moment.
    assert!(wait_until(PATIENCE, || left()["verdict"] == "ok"), "{}", left());
    let unknown = cgroup.with_file_name("agentd-0123456789ab");
    fs::create_dir(&unknown).unwrap();
    let found = left();
    fs::remove_dir(&unknown).unwrap();
    assert!(found["verdict"] != "ok" && found.to_string().contains("agentd-0123456789ab"), "{found}");
    job.signal(Signal::TERM);
    let _ran = job.finish();
}

#[test]
fn a_box_sees_its_own_cgroup_and_cannot_change_it() {
    let Some(home) = home() else { return };
    let script = "cat /proc/self/cgroup /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; ls /sys/fs/cgroup >/tmp/ls; \
        grep -c slice /tmp/ls; cd /sys/fs/cgroup; echo max >memory.max && echo WRITTEN; echo 1 >cgroup.kill && echo KILLED; \
        mkdir below && echo MADE; mount -o remount,rw . && echo MOUNTED; echo end; sleep 1000";
    // Root's jobs cannot have the other.
    let profiles = if is_root() { &["default"][..] } else { &["default", "nested"] };
    for profile in profiles {
        let flags = ["--memory", "64m", "--pids", "50", "--user", "root", "--profile", profile];
        let mut job = Started::new(&mut command(&home, &flags, script));
        job.wait_for("end");
        let cgroup = cgroup_of_running(&home);
        // The user himself could: it is the box that cannot.
        fs::write(cgroup.join("pids.max"), "52").unwrap();
        job.signal(Signal::TERM);
        let ran = job.finish();
        assert_eq!(ran.stdout, "0::/\n67108864\n51\n0\nend\n", "{ran}");
    }
}

#[test]
fn a_job_without_limits_has_a_cgroup_only_where_nothing_else_counts_its_processes() {
    let Some(home) = home() else { return };
    let ran = sh(&home, &[], "cat /sys/fs/cgroup/pids.max; cat /proc/self/cgroup");
    let record = &home.jobs()[0];
    assert_eq!(record["cgroup"].is_null(), !is_root(), "{record}");
    // The kernel's own limit does not count for root.
    let wanted = if is_root() { "4097\n0::/\n" } else { "0::/\n" };
    assert_eq!(ran.stdout, wanted, "{ran}");
}

#[test]
fn a_disk_is_written_as_fast_as_the_job_may() {
    let Some(home) = home() else { return };
    // /tmp is in memory.
    let workspace = tempfile::tempdir_in("/var/tmp").unwrap();
    let place = workspace.path().display().to_string();
    let write = |rate: &str| {
        let limit = format!("{place}:{rate}");
        let more = [("--device-read-iops", "5000"), ("--device-write-iops", "4000"), ("--device-read-bps", "99m")];
        let more = more.map(|(flag, most)| [flag.to_owned(), format!("{place}:{most}")]).concat();
        let mut flags = vec!["--workspace", &place, "--device-write-bps", &limit];
        flags.extend(more.iter().map(String::as_str));
        let script =
            "cat /sys/fs/cgroup/io.max; dd if=/dev/zero of=/workspace/f bs=64k count=32 oflag=direct 2>/dev/null";
        let ran = sh(&home, &flags, script).expect_success();
        let said = format!("wbps={}", rate.trim_end_matches('k').parse::<u64>().unwrap() << 10);
        for said in [said.as_str(), "riops=5000", "wiops=4000", "rbps=103809024"] {
            assert!(ran.stdout.split_whitespace().any(|word| word == said), "{said}: {ran}");
        }
        home.jobs()[0]["duration_ms"].as_u64().unwrap()
    };
    // 2 MiB at 512 KiB a second; less by the burst that the kernel lets through.
    let (slow, fast) = (write("512k"), write("1048576k"));
    assert!(slow >= 3000 && slow > fast + 1500, "{slow} ms, {fast} ms without a limit that counts");
    let ran = sh(&home, &["--device-read-bps", "/proc:1m"], "true").expect_code(125);
    ran.expect_one_error_line(&["--device-read-bps", "/proc", "no disk"]);
}

/// Who is larger does not decide who dies: the agent is spared as long as there is something else.
#[test]
fn a_runaway_tool_dies_before_an_agent_that_is_larger() {
    let Some(home) = home() else { return };
    // The agent holds some 40 MiB of 96; the tool grows, and is the smaller when the limit is reached the first time.
    let hold = r#"s=x; i=0; while [ $i -lt 22 ]; do s=$s$s; i=$((i+1)); done; t=$s$s$s$s$s$s$s$s; "#;
    let tool = r#"s=x; while :; do s=$s$s; done"#;
    let script = format!(
        "{hold} echo held; sh -c '{tool}' 2>/dev/null; echo tool $?; sh -c '{tool}' 2>/dev/null; echo tool $?; echo ${{#t}}"
    );
    let ran = sh(&home, &["--memory", "96m"], &script).expect_success();
    assert_eq!(ran.stdout, "held\ntool 137\ntool 137\n33554432\n", "{ran}");
    assert_eq!(usage(&home, "oom_kills"), 2);
    let killed = &home.jobs()[0]["usage"]["oom_killed"];
    assert!(killed.is_null() || killed.as_array().unwrap().iter().all(|name| name == "sh"), "{killed}");
    // The other way round: a small agent, a tool that is all of it.
    let ran = sh(&home, &["--memory", "96m"], &format!("sh -c '{tool}' 2>/dev/null; echo tool $?")).expect_success();
    assert_eq!(ran.stdout, "tool 137\n");
    // An agent that has nothing else to blame dies itself.
    let _ran = sh(&home, &["--memory", "96m"], tool).expect_code(137);
}

/// What decides that: when the limit is reached whatever the agent has started is rated higher than the agent.
#[test]
fn at_the_limit_a_tool_is_rated_higher_than_the_agent() {
    let Some(home) = home() else { return };
    // By the shell's own read: another program would be rated by itself. A second tool, far larger, is what is killed.
    let script = format!(
        "score() {{ read -r score < /proc/$1/oom_score_adj; }}; sleep 1000 & score $!; was=$score; {GREEDY} >/dev/null; n=0; \
         while [ $score = $was ] && [ $n -lt MOST ]; do sleep 0.1; n=$((n+1)); score $!; done; echo tool $score; \
         score $$; echo agent $score; kill $!"
    );
    let far = sh(&home, &["--memory", "512m"], &script.replace("MOST", "5")).expect_success().stdout;
    let usual = far.trim_end().rsplit(' ').next().unwrap_or_default().to_owned();
    assert_eq!(far, format!("tool {usual}\nagent {usual}\n"), "far from the limit both are what they were");
    // Root's jobs here are those of a service that is never killed; a payload that is left alone must be.
    let agent = if usual.starts_with('-') { "0" } else { usual.as_str() };
    let ran = sh(&home, &["--memory", "64m"], &script.replace("MOST", "300")).expect_success();
    assert_eq!(ran.stdout, format!("tool 500\nagent {agent}\n"), "{ran}");
}

/// Where nothing can be given back a threshold slows down what a limit would kill; and it can be stopped.
#[test]
fn above_the_threshold_a_job_is_slowed_down_and_not_killed() {
    let Some(home) = home() else { return };
    let mut job = Started::new(&mut command(
        &home,
        &["--memory-high", "16m"],
        "echo on; dd if=/dev/zero of=/scratch/x bs=64k count=1600",
    ));
    job.wait_for("on\n");
    let cgroup = cgroup_of_running(&home);
    let number = |file: &str, name: &str| {
        let text = fs::read_to_string(cgroup.join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap_or_default()
    };
    assert!(wait_until(PATIENCE, || number("memory.events", "high ") > 0));
    assert_eq!(number("memory.events", "oom_kill "), 0);
    assert!(number("memory.current", "") < 100 << 20);
    job.signal(Signal::TERM);
    let _ran = job.finish();
    assert_eq!(usage(&home, "oom_kills"), 0);
    let ran = sh(&home, &["--memory-high", "64m", "--memory", "64m"], "true").expect_code(125);
    ran.expect_one_error_line(&["--memory-high", "less than that"]);
}

#[test]
fn the_kernel_has_every_limit_as_it_was_asked_for() {
    let Some(home) = home() else { return };
    // What a user's manager hands down is less; what is not there is an error that says so.
    let mut flags =
        vec!["--memory", "64m", "--memory-high", "48m", "--memory-swap", "96m", "--cpu-weight", "50", "--pids", "20"];
    let cpuset = ["--cpuset-cpus", "0"];
    let has_cpuset = is_root() || delegates("cpuset");
    if has_cpuset {
        flags.extend(cpuset);
    } else {
        sh(&home, &cpuset, "true").expect_code(125).expect_one_error_line(&["--cpuset-cpus", "cpuset"]);
    }
    let mut job =
        Started::new(&mut command(&home, &flags, "echo on; grep Cpus_allowed_list /proc/self/status; sleep 1000"));
    job.wait_for("Cpus_allowed_list");
    let cgroup = cgroup_of_running(&home);
    let has = |name: &str| fs::read_to_string(cgroup.join(name)).map(|text| text.trim_end().to_owned()).ok();
    assert_eq!((has("memory.max").as_deref(), has("cpu.weight").as_deref()), (Some("67108864"), Some("50")));
    assert_eq!(has("memory.high").as_deref(), Some("50331648"));
    assert_eq!(has("memory.swap.max").as_deref(), Some("33554432"));
    // PID 1 of the box is one more.
    assert_eq!(has("pids.max").as_deref(), Some("21"));
    if has_cpuset {
        assert_eq!(has("cpuset.cpus.effective").as_deref(), Some("0"));
    }
    job.signal(Signal::TERM);
    let ran = job.finish();
    assert!(!has_cpuset || ran.stdout.ends_with("Cpus_allowed_list:\t0\n"), "{ran}");
}

/// Whether the cgroups of this user's jobs can have that controller.
fn delegates(controller: &str) -> bool {
    let place = run(Command::new("sh")
        .args(["-c", "cat /sys/fs/cgroup/user.slice/user-$(id -u).slice/user@$(id -u).service/cgroup.controllers"]));
    place.stdout.split_whitespace().any(|name| name == controller)
}

#[test]
fn stats_shows_what_the_kernel_counts_and_how_far_it_may_go() {
    let Some(home) = home() else { return };
    // On a disk: /tmp is in memory.
    let workspace = tempfile::tempdir_in("/var/tmp").unwrap();
    let place = workspace.path().display().to_string();
    let script = format!(
        "dd if=/dev/zero of=f bs=64k count=32 oflag=direct 2>/dev/null; {} >/dev/null; echo on; while :; do :; done",
        GREEDY.replace("67108864", "16777216")
    );
    let flags = ["--memory", "256m", "--cpus", "0.5", "--pids", "20", "--workspace", &place, "--stop-timeout", "1ms"];
    let mut job = Started::new(&mut command(&home, &flags, &script));
    job.wait_for("on");
    let shown = home.say(&["stats", "--no-stream", "--format", "json"]).expect_silent_success();
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    let of = |field: &str| shown[0][field].as_f64().unwrap_or(-1.0);
    assert_eq!((of("memory_limit_bytes"), of("cpu_limit_percent"), of("pids_limit")), (268_435_456.0, 50.0, 20.0));
    // At one look a period may have just begun.
    assert!((5.0..=65.0).contains(&of("cpu_percent")), "{shown}");
    // What was let go of is in the peak alone, where the kernel keeps one.
    let peak = cgroup_of_running(&home).join("memory.peak").metadata().is_ok();
    assert!(of("memory_bytes") > 0.0 && (!peak || of("memory_peak_bytes") >= 16_777_216.0), "{shown}");
    assert!(of("disk_written_bytes") >= 2_097_152.0, "{shown}");
    assert_eq!((of("processes"), of("threads")), (2.0, 2.0));
    let table = home.say(&["stats", "--no-stream"]).expect_silent_success().stdout;
    for words in [" / 50.0%", " / 268.44 MB", "2 / 20"] {
        assert!(table.contains(words), "{words}\n{table}");
    }
    job.signal(Signal::TERM);
    let _ran = job.finish();
}

#[test]
fn the_way_to_a_cgroup_is_the_one_of_the_user() {
    let Some(home) = home() else { return };
    let plan = sh(&home, &["--pids", "9", "--dry-run", "--format", "json"], "true").expect_success();
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    assert_eq!(plan["cgroup"]["place"], if is_root() { "below" } else { "scope" });
    assert_eq!(home.jobs().len(), 0);
    let doctor = run(home.agentd().args(["doctor", "--format", "json"]));
    let findings: Value = serde_json::from_str(&doctor.stdout).unwrap();
    let found = findings.as_array().unwrap().iter().find(|finding| finding["subject"] == "cgroups").unwrap();
    assert_eq!(found["verdict"], "ok", "{found}");
}

/// A service's process has to stay in its service; and no service can have limits where nothing is delegated to it.
#[test]
fn in_a_service_the_delegated_cgroup_is_divided_and_no_scope_is_asked_for() {
    if !require(Feature::Guest) || !require(Feature::Root) {
        return;
    }
    let service = |more: &[&str], flags: &[&str]| {
        let mut service = Command::new("systemd-run");
        service.args(["--pipe", "--wait", "--collect", "--quiet", "-p", "User=plain"]).args(more);
        service.arg(agentd_tests::agentd()).args(["run", "--rm", "--pids", "9"]).args(flags);
        run(service.args(["--", "cat", "/sys/fs/cgroup/pids.max"]))
    };
    let planned = service(&["-p", "Delegate=yes"], &["--dry-run", "--format", "json"]).expect_success();
    let plan: Value = serde_json::from_str(&planned.stdout).unwrap();
    assert_eq!(plan["cgroup"]["place"], "own");
    assert_eq!(service(&["-p", "Delegate=yes"], &[]).expect_success().stdout, "10\n");
    // No user manager within reach, as for a service user that never logged in.
    let alone = service(&["-p", "InaccessiblePaths=/run/user"], &[]).expect_code(125);
    alone.expect_one_error_line(&["--pids", "systemctl edit", "Delegate=yes", "--best-effort-limits"]);
}
