//! Bounds on output and time, limits that need a cgroup, and the plan that `--dry-run` prints.

use agentd_tests::run;
use serde_json::Value;

use crate::{busybox_home, home, sh};

#[test]
fn a_log_is_bounded_and_the_record_says_what_it_lacks() {
    let Some(home) = home() else { return };
    let script = "head -c 9000 /dev/zero | tr '\\0' a; head -c 1000 /dev/zero | tr '\\0' z; head -c 300 /dev/zero | tr '\\0' b >&2";
    let ran = sh(&home, &["--max-output", "1k"], script).expect_success();
    let all = "a".repeat(9000) + &"z".repeat(1000);
    assert_eq!(ran.stdout, all, "all of it is passed on");
    let record = &home.jobs()[0];
    let id = record["id"].as_str().unwrap();
    let logs = run(home.agentd().args(["logs", id])).expect_success();
    let kept = logs.stdout.len();
    assert!((512..=1024).contains(&kept) && all.ends_with(&logs.stdout), "the newest half at least: {kept}");
    assert_eq!(record["output_dropped"].as_u64(), Some(10_000 - kept as u64));
    let marker =
        format!("agentd: {} bytes of output are not kept here (--max-output, or a full disk)\n", 10_000 - kept);
    assert_eq!(logs.stderr, marker + &"b".repeat(300), "what is missing is told");
    assert!(ran.stderr.contains(&format!("{} bytes", 10_000 - kept)), "{ran}");
}

#[test]
fn limits_that_cannot_be_enforced_are_refused_or_recorded() {
    let Some(home) = home() else { return };
    let doctor = run(home.agentd().args(["doctor", "--format", "json"]));
    let findings: Vec<Value> = serde_json::from_str(&doctor.stdout).unwrap();
    if findings.iter().any(|finding| finding["subject"] == "cgroups" && finding["verdict"] == "ok") {
        eprintln!("skipped: this machine enforces limits (the vm_ tests show that)");
        return;
    }
    for flags in [
        ["--memory", "1g"],
        ["--memory-high", "1g"],
        ["--cpus", "0.5"],
        ["--cpu-weight", "10"],
        ["--cpuset-cpus", "0"],
        ["--pids", "100"],
        ["--device-read-bps", "/:1m"],
        ["--device-write-bps", "/:1m"],
        ["--device-read-iops", "/:100"],
        ["--device-write-iops", "/:100"],
    ] {
        let refused = sh(&home, &flags, "true").expect_code(125);
        refused.expect_one_error_line(&[flags[0], "--best-effort-limits"]);
        let (why, _) = refused.stderr.split_once("; or leave it out").unwrap_or_else(|| panic!("{refused}"));
        assert!(why.contains("; "), "what would help: {refused}");
        assert!(home.jobs().is_empty());
        let flags = [&flags[..], &["--best-effort-limits", "--rm", "--name", "w"]].concat();
        let ran = sh(&home, &flags, "true").expect_success();
        ran.expect_one_error_line(&["warning", flags[0]]);
    }
    let _ran = sh(&home, &["--memory", "1g", "--pids", "5", "--best-effort-limits"], "true").expect_success();
    let warnings = home.jobs()[0]["warnings"].to_string();
    assert!(warnings.contains("--memory") && warnings.contains("--pids"), "{warnings}");
    let _ran = sh(&home, &["--best-effort-limits"], "true").expect_silent_success();
    // As root there is a note: the kernel exempts root from the bound on processes.
    let warnings = &home.jobs()[0]["warnings"];
    assert_eq!(warnings.as_array().map_or(0, Vec::len), usize::from(agentd_tests::is_root()), "{warnings}");
}

#[test]
fn a_process_has_the_limits_that_were_asked_for() {
    let Some(home) = home() else { return };
    let script = "ulimit -Sn; ulimit -Hn; ulimit -c; head -c 10000 /dev/zero >/tmp/x; echo $?; stat -c %s /tmp/x";
    let flags = ["--ulimit", "nofile=100:200", "--ulimit", "fsize=4096", "--ulimit", "core=0"];
    let ran = sh(&home, &flags, script).expect_success();
    // SIGXFSZ is 25.
    assert_eq!(ran.stdout, "100\n200\n0\n153\n4096\n", "{ran}");
    assert!(sh(&home, &[], script).expect_success().stdout.ends_with("\n0\n10000\n"), "without it is written");
    // A command beside it has them too.
    let id = home.detached(&["--ulimit", "nofile=100"], "exec sleep 1000");
    assert_eq!(home.say(&["exec", &id, "sh", "-c", "ulimit -Hn"]).expect_silent_success().stdout, "100\n");
    let _ran = home.say(&["rm", "-f", &id]).expect_success();
    for (asked, words) in [
        ("nofile", "NAME=SOFT[:HARD]"),
        ("bogus=1", "memlock"),
        ("nofile=2:1", "above the hard one"),
        ("nofile=18446744073709551615", "your hard limit is"),
    ] {
        let refused = sh(&home, &["--ulimit", asked], "true").expect_code(125);
        assert!(refused.stderr.contains(words), "{asked}: {refused}");
    }
    let few = sh(&home, &["--ulimit", "nproc=20"], "for i in $(seq 40); do sleep 1 & done; wait; echo all");
    if agentd_tests::is_root() {
        few.expect_code(125).expect_one_error_line(&["nproc", "--pids"]);
    } else {
        assert!(!few.stdout.contains("all"), "{few}");
    }
}

/// A plan without what is random: the job's id, which is also its default host name.
fn anonymous(plan: &Value) -> Value {
    let id = plan["id"].as_str().unwrap();
    let mut plan: Value = serde_json::from_str(&plan.to_string().replace(id, "ID")).unwrap();
    // The words it was asked for by are others.
    assert!(plan.as_object_mut().unwrap().remove("asked").is_some_and(|asked| asked["words"].is_array()));
    plan
}

#[test]
fn the_plan_of_a_dry_run_is_the_plan_of_the_run() {
    let Some(home) = busybox_home() else { return };
    let image = format!("oci:{}", home.busybox_image().display());
    let workspace = home.workspace().display().to_string();
    let mount = format!("src={},dst=/in,rw", home.path().join("config").display());
    let all = [
        "-q",
        "--image",
        &image,
        "--workspace",
        &workspace,
        "--mount",
        &mount,
        "--env",
        "A=b",
        "--user",
        "root",
        "--workdir",
        "/in",
        "--timeout",
        "1h",
        "--storage",
        "1g",
        "--writable",
        "--memory",
        "1g",
        "--best-effort-limits",
        "--max-output",
        "5",
        "-i",
    ];
    for flags in [&[][..], &["--net", "host", "-q"], &all] {
        let dry =
            run(home.run().args(flags).args(["--dry-run", "--format", "json", "--", "true"])).expect_silent_success();
        assert!(home.jobs().is_empty(), "a dry run is no job");
        let dry: Value = serde_json::from_str(&dry.stdout).unwrap();
        let _ran = run(home.run().args(flags).args(["--", "true"])).expect_silent_success();
        let id = home.jobs()[0]["id"].as_str().unwrap().to_owned();
        let shown = run(home.agentd().args(["inspect", &id])).expect_success();
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_ne!(dry["id"], shown[0]["plan"]["id"]);
        assert_eq!(anonymous(&dry), anonymous(&shown[0]["plan"]), "{flags:?}");
        let _ran = run(home.agentd().args(["rm", &id])).expect_success();
    }
}

#[test]
fn a_dry_run_for_people_says_what_matters_and_runs_nothing() {
    let Some(home) = home() else { return };
    let workspace = home.workspace().display().to_string();
    let flags = ["--dry-run", "--workspace", &workspace, "--env", "ESCAPE=\u{1b}[2J"];
    let ran = sh(&home, &flags, "touch ran; echo \u{1b}[31m").expect_silent_success();
    for word in ["host", "touch ran", "/workspace", &workspace, "read-only", "landlock", "seccomp"] {
        assert!(ran.stdout.contains(word), "{word:?} is missing\n{ran}");
    }
    assert!(!ran.stdout.contains('\u{1b}'), "{ran}");
    let bounds = [
        "--storage",
        "64M",
        "--timeout",
        "90s",
        "--ulimit",
        "nofile=10:20",
        "--max-output",
        "5000",
        "--stop-timeout",
        "3s",
    ];
    let limits = sh(&home, &[&["--dry-run"], &bounds[..]].concat(), "true").expect_success().stdout;
    let limits = limits.lines().find(|line| line.starts_with("limits ")).unwrap_or_default().to_owned();
    for word in ["storage 6", "timeout 1m 30s", "ulimit nofile=10:20", "max-output 5.00 kB a stream", "stop-timeout 3s"]
    {
        assert!(limits.contains(word), "{word:?} is missing: {limits}");
    }
    assert_eq!(std::fs::read_dir(home.workspace()).unwrap().count(), 0);
    assert!(home.state().symlink_metadata().is_err());
    let _ran = sh(&home, &["--dry-run", "--format", "yaml"], "true").expect_code(125);
    let _ran = sh(&home, &["--format", "json"], "true").expect_code(125);
}
