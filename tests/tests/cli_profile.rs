//! `agentd profile`, and how `agentd run` names the profile it uses.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends by a panic")]

use std::collections::BTreeMap;
use std::fs;

use agentd_tests::{Feature, Home, Ran, is_root, require, run};
use serde_json::Value;

fn profile(home: &Home, args: &[&str]) -> Ran {
    run(home.agentd().arg("profile").args(args))
}

fn json(home: &Home, args: &[&str]) -> Value {
    let ran = profile(home, &[args, &["--format", "json"]].concat()).expect_silent_success();
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}\n{ran}"))
}

fn plan(home: &Home, flags: &[&str]) -> Value {
    let mut command = home.run();
    command.args(["--dry-run", "--format", "json"]).args(flags).args(["--", "true"]);
    serde_json::from_str(&run(&mut command).expect_success().stdout).unwrap()
}

const NAMES: [&str; 3] = ["default", "strict", "nested"];

#[test]
fn cli_profiles_are_listed_and_shown() {
    let home = Home::new();
    let listed = json(&home, &["list"]);
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|profile| profile["name"].as_str().unwrap()).collect();
    assert_eq!(names, NAMES);
    let table = profile(&home, &["list"]).expect_silent_success();
    assert!(NAMES.iter().all(|name| table.stdout.lines().any(|line| line.starts_with(name))), "{table}");
    let mut digests = std::collections::BTreeSet::new();
    for name in NAMES {
        let shown = json(&home, &["show", name]);
        assert_eq!(shown["profile"]["name"], name);
        let rules = shown["profile"]["seccomp"]["rule"].as_array().unwrap();
        assert!(rules.len() > 50 && rules.iter().all(|rule| !rule["reason"].as_str().unwrap().is_empty()));
        assert!(digests.insert(shown["summary"]["digest"].to_string()));
        let text = profile(&home, &["show", name]).expect_silent_success();
        assert!(text.stdout.contains("io_uring_setup"), "{text}");
    }
    assert_eq!(json(&home, &["show"]), json(&home, &["show", "default"]));
}

/// What the plan names is what `profile` describes.
#[test]
fn cli_a_plan_names_the_profile_and_what_is_enforced() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    for (name, rights) in [("default", 6), ("strict", 6), ("nested", 2)] {
        if name == "nested" && is_root() {
            continue;
        }
        let inside = plan(&home, &["--profile", name])["box"].clone();
        assert_eq!(inside["seccomp"]["profile"], name);
        assert_eq!(inside["seccomp"]["filter"]["built-in"], name);
        assert_eq!(inside["seccomp"]["digest"], json(&home, &["show", name])["summary"]["digest"]);
        let enforced = inside["landlock"]["rights"].as_array().unwrap();
        // All of them from Linux 6.12 on.
        assert!(enforced.len() == rights || inside["landlock"]["abi"].as_u64().unwrap() < 6, "{enforced:?}");
        assert_eq!(inside["landlock"]["paths"].as_array().unwrap().is_empty(), name == "nested");
    }
    let ran = run(home.run().args(["--dry-run", "--", "true"])).expect_success();
    assert!(ran.stdout.contains("seccomp    profile default, sha256:"), "{ran}");
}

#[test]
fn cli_a_record_names_the_profile_and_the_rights() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let _ran = run(home.run().args(["--profile", "strict", "--", "true"])).expect_success();
    let enforced = &home.jobs()[0]["enforced"];
    assert_eq!(enforced["seccomp"], "strict");
    assert_eq!(enforced["profile_digest"], json(&home, &["show", "strict"])["summary"]["digest"]);
    let rights = ["files", "refer", "truncate", "ioctl", "signals", "abstract-sockets"];
    assert_eq!(enforced["landlock_rights"], serde_json::json!(rights));
}

#[test]
fn cli_a_call_is_explained_by_its_rules() {
    let home = Home::new();
    let answer = json(&home, &["explain", "io_uring_setup"]);
    assert_eq!(answer["verdict"], "ENOSYS");
    assert!(answer["rules"][0]["reason"].as_str().unwrap().contains("past this filter"));
    let socket = json(&home, &["explain", "socket", "--profile", "strict"]);
    assert_eq!(
        (&socket["verdict"], &socket["rules"][0]["when"][0]["is"]),
        (&"depends".into(), &serde_json::json!([1]))
    );
    let by_profile = |call: &str| -> BTreeMap<String, String> {
        let answer = json(&home, &["explain", call]);
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        answer["profiles"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (word(&one["profile"]), word(&one["verdict"])))
            .collect()
    };
    assert_eq!(NAMES.map(|name| by_profile("unshare")[name].clone()), ["EPERM", "EPERM", "allow"]);
    assert_eq!(NAMES.map(|name| by_profile("ptrace")[name].clone()), ["allow", "EPERM", "allow"]);
    for (words, says) in [
        (&["unshare"][..], "to allow it: agentd run --profile nested"),
        (&["bpf"], "extends = \"default\""),
        (&["ptrace", "--profile", "strict"], "to allow it: agentd run --profile default"),
        (&["socket"], "arg 0 is 16 and arg 2 is 0"),
        (&["riscv_hwprobe"], "is no system call"),
    ] {
        let ran = profile(&home, &[&["explain"], words].concat());
        assert!(format!("{}{}", ran.stdout, ran.stderr).contains(says), "{words:?}: {ran}");
    }
    profile(&home, &["explain", "raed"]).expect_code(125).expect_one_error_line(&["`raed` is no system call"]);
}

/// `explain` knows where the classes of places lie: it gives each path of a plan the rights that the plan grants there.
#[test]
fn cli_a_path_is_explained_as_the_plan_grants_it() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let workspace = home.workspace();
    let inside = plan(&home, &["--workspace", workspace.to_str().unwrap()])["box"].clone();
    let grants = inside["landlock"]["paths"].as_array().unwrap();
    assert!(grants.len() > 7, "{grants:?}");
    for path in grants.iter().map(|grant| grant["path"].as_str().unwrap()) {
        let answer = json(&home, &["explain", path]);
        let explained: std::collections::BTreeSet<String> = answer["grants"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|grant| grant["with"] != "--writable")
            .flat_map(|grant| grant["access"].as_array().unwrap())
            .map(ToString::to_string)
            .collect();
        let above =
            grants.iter().filter(|grant| std::path::Path::new(path).starts_with(grant["path"].as_str().unwrap()));
        let granted: std::collections::BTreeSet<String> =
            above.flat_map(|grant| grant["access"].as_array().unwrap()).map(ToString::to_string).collect();
        assert_eq!(explained, granted, "{path}");
    }
    for (path, says) in [
        ("/etc/passwd", "/etc/passwd, profile default: read, execute"),
        ("/workspace/src", "create, with --workspace DIR"),
        ("/tmp/x", "/tmp/x, profile default: read, execute, write, create"),
        ("/etc//./x", "/etc/x"),
    ] {
        let ran = profile(&home, &["explain", path]).expect_silent_success();
        assert!(ran.stdout.contains(says), "{path}: {ran}");
    }
    profile(&home, &["explain", "/a/../b"]).expect_code(125).expect_one_error_line(&["absolute path inside the box"]);
}

/// `explain --job` says of a path what the job's box did with it.
#[test]
fn cli_a_path_of_a_job_is_explained_as_its_box_answers() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let (work, other) = (home.workspace(), home.path().join("other"));
    fs::create_dir(&other).unwrap();
    for file in [work.join("f"), other.join("f")] {
        fs::write(file, "x").unwrap();
    }
    agentd_tests::git(&work, &["init", "-q"]);
    let mount = format!("type=bind,src={},dst=/mnt/other", other.display());
    let kinds = [
        ("read", "/usr/bin/env /etc/passwd /etc/shadow /workspace/f /workspace/.envrc /mnt/other/f /proc/self/status"),
        (
            "write",
            "/usr/bin/env /etc/passwd /workspace/f /workspace/.git/config /mnt/other/f /dev/null /proc/sys/kernel/hostname",
        ),
        (
            "create",
            "/new /usr/new /etc/new /dev/new /tmp/new /run/new /home/agent/new /workspace/new /workspace/.envrc \
          /workspace/.git/hooks /workspace/.git/hooks/new /workspace/.git/new /workspace/.vscode/new /mnt/other/new",
        ),
    ];
    let script = format!(
        "say() {{ if eval \"$2\" 2>/dev/null; then echo $1 true; else echo $1 false; fi; }}
        for p in {}; do say \"read $p\" '(: < $p)'; done
        for p in {}; do say \"write $p\" '(: >> $p)'; done
        for p in {}; do say \"create $p\" 'mkdir $p'; done",
        kinds[0].1, kinds[1].1, kinds[2].1
    );
    let mut command = home.run();
    command.args(["-q", "--name", "asked", "--workspace", work.to_str().unwrap(), "--mount", &mount]);
    let ran = run(command.args(["--", "sh", "-c", &script])).expect_success();
    assert_eq!(ran.stdout.lines().count(), 28, "{ran}");
    for line in ran.stdout.lines() {
        let [kind, path, did] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{ran}") };
        let answer = json(&home, &["explain", path, "--job", "asked"]);
        assert_eq!(answer[kind]["allowed"].to_string(), did, "{line}: {answer}");
        // A refusal says by whom, and by which error it shows.
        assert_eq!(did == "false", answer[kind]["by"].is_string() && answer[kind]["answer"].is_string(), "{answer}");
    }
    for (path, says) in [
        ("/workspace/.git/config", "protected: /workspace/.git/config stays as it is"),
        ("/workspace/.git/config", "to allow it: agentd run --unprotect '.git/config'"),
        ("/workspace/.vscode/tasks.json", "/workspace/.vscode stays absent"),
        ("/mnt/other/f", "dst=/mnt/other,rw"),
        ("/etc/shadow", "hidden"),
        ("/proc/keys", "a cover"),
        ("/usr/x", "--writable"),
        ("/tmp/x", "no wall of the box"),
    ] {
        let said = profile(&home, &["explain", path, "--job", "asked"]).expect_silent_success();
        assert!(said.stdout.contains(says), "{path}: {said}");
    }
    profile(&home, &["explain", "mount", "--job", "asked"]).expect_code(125).expect_one_error_line(&["absolute path"]);
}

const HEAD: &str = "schema = 1\nname = \"mine\"\nextends = \"default\"\n";

#[test]
fn cli_a_file_is_checked_with_the_line_of_its_mistake() {
    let home = Home::new();
    let file = home.path().join("mine.toml");
    let path = file.to_str().unwrap();
    let rule = |call: &str, verdict: &str| {
        format!("[[seccomp.rule]]\ngroup = \"g\"\nsyscalls = [\"{call}\"]\nverdict = \"{verdict}\"\nreason = \"r\"\n")
    };
    fs::write(&file, format!("{HEAD}{}", rule("bpf", "allow"))).unwrap();
    let sound = profile(&home, &["check", path]).expect_silent_success();
    assert!(sound.stdout.starts_with("profile mine is sound: "), "{sound}");
    assert_ne!(json(&home, &["check", path])["digest"], json(&home, &["show", "default"])["summary"]["digest"]);
    assert_eq!(json(&home, &["explain", "bpf", "--profile", path])["verdict"], "allow");
    fs::write(&file, HEAD).unwrap();
    assert_eq!(json(&home, &["check", path])["digest"], json(&home, &["show", "default"])["summary"]["digest"]);
    for (text, words) in [
        (format!("{HEAD}{}", rule("raed", "allow")), &["line 4", "\"raed\" is not known"][..]),
        (format!("{HEAD}{}", rule("read", "alow")), &["line 7", "unknown variant `alow`"]),
        (format!("{HEAD}extends"), &["line 4"]),
        (format!("{HEAD}{}", rule("unshare", "allow")), &["let unshare make a user namespace"]),
        (HEAD.replace("default", "nowhere"), &["line 3", "no built-in profile"]),
        (format!("{HEAD}# \u{1b}[31m\nname = 1"), &["line"]),
        (format!("{HEAD}[[path]]\npath = \"/\u{202e}\\u001b\"\naccess = [\"red\"]\nreason = \"r\""), &["line 6"]),
    ] {
        fs::write(&file, &text).unwrap();
        let ran = profile(&home, &["check", path]).expect_code(125);
        ran.expect_one_error_line(&[&["mine.toml"], words].concat());
        assert!(!ran.stderr.contains('\u{1b}'), "{ran}");
        let started = run(home.run().args(["--profile", path, "--", "true"])).expect_code(125);
        started.expect_one_error_line(&[&["mine.toml"], words].concat());
    }
    profile(&home, &["check", "/nowhere/x.toml"]).expect_code(125).expect_one_error_line(&["cannot read profile"]);
    fs::write(&file, format!("schema = 1\n{}", rule("ptrace", "EPERM"))).unwrap();
    let _sound = profile(&home, &["check", path, "--tightens", "default"]).expect_silent_success();
    fs::write(&file, format!("schema = 1\n{}", rule("bpf", "allow"))).unwrap();
    let ran = profile(&home, &["check", path, "--tightens", "default"]).expect_code(125);
    ran.expect_one_error_line(&["line 2", "allows \"bpf\""]);
}

#[test]
fn cli_a_profile_that_is_not_there_is_named_with_those_that_are() {
    let home = Home::new();
    for verb in [&["run", "--profile", "lax", "--", "true"][..], &["profile", "show", "lax"]] {
        let ran = run(home.agentd().args(verb)).expect_code(125);
        assert!(ran.stderr.contains("default, strict and nested"), "{ran}");
    }
    // PID 1's is not for payloads.
    assert_eq!(run(home.run().args(["--profile", "init", "--", "true"])).code(), 125);
    let help = run(home.agentd().args(["profile", "--help"])).expect_success();
    for word in ["list", "show", "check", "explain", "learn", ".agentd/profile.toml"] {
        assert!(help.stdout.contains(word), "{word}: {help}");
    }
}
