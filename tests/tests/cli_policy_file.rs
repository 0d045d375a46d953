//! `agentd run --policy FILE`, and the file that holds without it: rules and limits that are written down once.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions beside it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use agentd_tests::server::{OK, Server};
use agentd_tests::{Feature, Home, Ran, require, run};

/// Writes a policy file into the private home of the test.
fn policy(home: &Home, name: &str, text: &str) -> PathBuf {
    let file = home.path().join("config").join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, text).unwrap();
    file
}

/// The summary of what would be run.
#[track_caller]
fn dry(home: &Home, flags: &[&str]) -> Ran {
    run(home.run().arg("--dry-run").args(flags).args(["--", "true"]))
}

fn network(ran: &Ran) -> &str {
    ran.stdout.lines().find_map(|line| line.strip_prefix("network    ")).unwrap_or_default()
}

#[test]
fn cli_a_policy_file_allows_flags_add_and_denials_come_first() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let port = server.port();
    let text = format!(
        "allow = [\"*.web.test:{port}\"]\ndeny = \"no.web.test\"\nadd-host = [\"one.web.test:127.0.0.1\", \"no.web.test:127.0.0.1\"]\n"
    );
    let file = policy(&home, "agentd/policy.toml", &text);
    let script = format!("for name in one.web no.web two; do curl -s http://$name.test:{port}/ || echo $name $?; done");
    let asked = |flags: &[&str]| run(home.run().arg("-q").args(flags).args(["--", "sh", "-c", &script]));
    let (one, two) = (format!("no.web.test:{port}"), format!("two.test:{port}"));
    // What a flag allows is allowed beside; what the file denies no flag allows.
    let more = ["--allow", &two, "--allow", &one, "--add-host", "two.test:127.0.0.1"];
    assert_eq!(asked(&[]).stdout, "ok\nno.web 6\ntwo 6\n");
    assert_eq!(asked(&more).stdout, "ok\nno.web 6\nok\n");
    // The same file by name, and none.
    let moved = file.with_file_name("other.toml");
    fs::rename(&file, &moved).unwrap();
    assert_eq!(asked(&["--policy", &moved.display().to_string()]).stdout, "ok\nno.web 6\ntwo 6\n");
    assert_eq!(asked(&[]).stdout, "one.web 6\nno.web 6\ntwo 6\n");
    fs::rename(&moved, &file).unwrap();
    assert_eq!(asked(&["--policy", "none"]).stdout, "one.web 6\nno.web 6\ntwo 6\n");
    assert_eq!(asked(&["--net", "none"]).stdout, "one.web 6\nno.web 6\ntwo 6\n");
    assert_eq!(server.connections(), 4);
}

#[test]
fn cli_a_policy_file_is_said_once_and_kept_with_the_job() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let text = "allow = [\"github\", \"a.test:8443\"]\ndeny = [\"gist.github.com\"]\nnet-limit = [\"bytes=1m\"]\ntimeout = \"9m\"\n";
    let file = policy(&home, "agentd/policy.toml", text).display().to_string();
    let words = "--allow=github --allow=a.test:8443 --deny=gist.github.com --net-limit=bytes=1m --timeout=9m";
    let ran = dry(&home, &["--allow", "b.test"]).expect_success();
    assert!(ran.stdout.contains(&format!("policy     {file}: {words}\n")), "{ran}");
    assert!(network(&ran).ends_with("a.test:8443, b.test; not gist.github.com"), "{ran}");
    let ran = run(home.agentd().args(["-v", "run", "--timeout", "1m", "--", "true"])).expect_success();
    assert_eq!(ran.stderr.matches(words).count(), 1, "{ran}");
    let _plain = run(home.run().args(["--name", "kept", "--", "true"])).expect_silent_success();
    let plan = &home.record("kept")["plan"];
    assert_eq!(
        (&plan["policy"]["file"], &plan["policy"]["words"][2]),
        (&file.into(), &"--deny=gist.github.com".into())
    );
    // Of what has one value the line has the last word; rules are the file's and the line's.
    assert_eq!((&plan["timeout_ms"], &plan["reach"]["limits"]["bytes"]), (&540_000.into(), &(1 << 20).into()));
    let jobs = home.jobs();
    let line = jobs.iter().find(|job| job["name"] != "kept").and_then(|job| job["id"].as_str()).unwrap();
    assert_eq!(home.record(line)["plan"]["timeout_ms"], 60_000);
}

#[test]
fn cli_what_only_bounds_a_network_gives_a_job_none() {
    let home = Home::new();
    let text = "deny = [\"a.test\", \"DELETE https://b.test/*\"]\nnet-limit = [\"total=5\"]\nadd-host = \"a.test:127.0.0.1\"\n";
    let _file = policy(&home, "agentd/policy.toml", text);
    let ran = dry(&home, &[]).expect_success();
    assert_eq!(network(&ran), "none", "{ran}");
    // A denial that nobody could keep ends the start.
    dry(&home, &["--net", "host"]).expect_code(125).expect_one_error_line(&["policy file denies", "--policy none"]);
    let ran = dry(&home, &["--net", "host", "--policy", "none"]).expect_success();
    assert_eq!(network(&ran), "host", "{ran}");
    // What only allows is beside the point there.
    let _file = policy(&home, "agentd/policy.toml", "allow = \"github\"");
    assert_eq!(network(&dry(&home, &["--net", "host"]).expect_success()), "host");
}

#[test]
fn cli_a_bad_policy_file_is_refused_with_its_line_and_nothing_runs() {
    let home = Home::new();
    for (text, parts) in [
        ("allow = [\"github\"]\nalow = [\"pypi\"]", &["policy.toml", "line 2", "`alow`", "allow, deny"][..]),
        ("\nallow = [\"*\"]", &["line 2", "every name"]),
        ("net-limit = 5\nworkspace = \"/\"", &["line 2", "`workspace` is no key of a policy"]),
        ("net = \"host\"", &["line 1", "`net` is no key"]),
        ("allow = \"a\"\nallow = \"b\"", &["line 2", "duplicate"]),
        ("net-limit = [\"packets=1\"]\nallow = \"a.test\"", &["packets=1", "no limit"]),
    ] {
        let _file = policy(&home, "agentd/policy.toml", text);
        run(home.run().args(["--", "true"])).expect_code(125).expect_one_error_line(parts);
    }
    let _file = policy(&home, "agentd/policy.toml", &"#".repeat(100_000));
    run(home.run().args(["--", "true"])).expect_code(125).expect_one_error_line(&["longer than 65536 bytes"]);
    run(home.run().args(["--policy", "/nonexistent", "--", "true"]))
        .expect_code(125)
        .expect_one_error_line(&["/nonexistent", "--policy none"]);
    assert!(home.jobs().is_empty());
}

/// Whoever wrote the workspace, an earlier job for one, does not say what the next job may reach.
#[test]
fn escape_a_policy_in_a_workspace_widens_nothing() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let workspace = home.workspace();
    let wide = "allow = \"evil.test\"";
    let in_workspace = |name: &str| {
        let file = workspace.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, wide).unwrap();
        file
    };
    // Where other tools of this kind, or agentd for other things, look.
    for name in ["agentd.toml", ".agentd/policy.toml", ".config/agentd/policy.toml", "policy.toml"] {
        let _file = in_workspace(name);
    }
    let place = workspace.display().to_string();
    let mut command = home.run();
    command.current_dir(&workspace).args(["--dry-run", "--workspace", ".", "--", "true"]);
    assert_eq!(network(&run(&mut command).expect_success()), "none");
    // Named, by a link, by a link in the place of the usual file: as long as the job is given where it lies.
    let file = in_workspace("policy.toml");
    let link = home.path().join("config/link.toml");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let refused = |flags: &[&str], file: &Path| {
        let ran = dry(&home, &[flags, &["--policy", &file.display().to_string()]].concat()).expect_code(125);
        ran.expect_one_error_line(&["policy.toml lies in", "which the job is given"]);
    };
    let mount = format!("type=bind,src={place},dst=/mnt,rw");
    for flags in [&["--workspace", &place][..], &["--workspace", &format!("{place}:ro")], &["--mount", &mount]] {
        refused(flags, &file);
        refused(flags, &link);
    }
    fs::create_dir(home.path().join("config/agentd")).unwrap();
    std::os::unix::fs::symlink(&file, home.path().join("config/agentd/policy.toml")).unwrap();
    let usual = |command: &mut Command| run(command.args(["--dry-run", "--workspace", &place, "--", "true"]));
    usual(&mut home.run()).expect_code(125).expect_one_error_line(&["which the job is given"]);
    // Elsewhere the same file counts.
    fs::remove_file(home.path().join("config/agentd/policy.toml")).unwrap();
    let _file = policy(&home, "agentd/policy.toml", wide);
    assert_eq!(network(&usual(&mut home.run()).expect_success()), "through the broker: evil.test");
}
