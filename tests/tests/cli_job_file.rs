//! `agentd run --job FILE`, and `--replace`: what a unit of systemd's starts a job with.
#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::path::PathBuf;

use agentd_tests::{Feature, Home, Ran, require, run, wait_until};

fn home() -> Option<Home> {
    (require(Feature::Userns) && require(Feature::Busybox)).then(Home::new)
}

/// A job file in `home` that names its busybox image; `text` comes before.
fn job(home: &Home, text: &str) -> PathBuf {
    let file = home.path().join("job.toml");
    let image = home.busybox_image().display().to_string();
    fs::write(&file, format!("{text}\nimage = \"oci:{image}\"\n")).unwrap();
    file
}

#[track_caller]
fn run_job(home: &Home, text: &str, more: &[&str]) -> Ran {
    let file = job(home, text);
    run(home.run().arg("--job").arg(file).args(more))
}

#[test]
fn a_job_file_runs_as_the_command_line_it_stands_for() {
    let Some(home) = home() else { return };
    let workspace = home.workspace();
    fs::write(workspace.join("seen"), "yes").unwrap();
    let text = format!(
        "name = \"filed\"\nworkspace = \"{}:ro\"\nenv = [\"A=b c\", \"X=$A\"]\nquiet = true\n\
         command = [\"sh\", \"-c\", \"cat seen; echo $A $X; touch /workspace/no 2>/dev/null || echo read-only\"]",
        workspace.display()
    );
    let ran = run_job(&home, &text, &[]).expect_success();
    assert_eq!(ran.stdout, "yesb c $A\nread-only\n", "{ran}");
    assert_eq!(home.jobs()[0]["name"], "filed");
}

#[test]
fn the_command_line_has_the_last_word() {
    let Some(home) = home() else { return };
    let text = "env = [\"A=file\", \"B=file\"]\nhostname = \"file\"\ntimeout = \"1h\"\ncommand = [\"false\"]";
    let more = ["--hostname", "line", "-e", "B=line", "--", "sh", "-c", "echo $A $B; hostname"];
    assert_eq!(run_job(&home, text, &more).expect_success().stdout, "file line\nline\n");
    let _ran = run_job(&home, text, &[]).expect_code(1);
    // What is wrong together is wrong in whichever place it is said.
    let ran = run_job(&home, "writable = true\nkeep = true", &["--rm", "--", "true"]).expect_code(125);
    assert!(ran.stderr.contains("--rm") && ran.stderr.contains("--keep"), "{ran}");
}

/// Of the same limit the last word counts, and it comes from the line; other names stay as the files have them.
#[test]
fn limits_of_a_process_may_stand_in_files() {
    let Some(home) = home() else { return };
    let policy = home.path().join("policy.toml");
    fs::write(&policy, "ulimit = [\"nofile=50\", \"core=0\", \"fsize=8192\"]\n").unwrap();
    let text = format!(
        "policy = \"{}\"\nulimit = [\"nofile=100:200\", \"fsize=4096\"]\n\
         command = [\"sh\", \"-c\", \"ulimit -Sn; ulimit -Hn; ulimit -Sf; ulimit -c\"]",
        policy.display()
    );
    // Files are in blocks of 512 bytes there.
    assert_eq!(run_job(&home, &text, &[]).expect_success().stdout, "100\n200\n8\n0\n");
    let more = ["--ulimit", "nofile=300"];
    assert_eq!(run_job(&home, &text, &more).expect_success().stdout, "300\n300\n8\n0\n");
    run_job(&home, "rm = true\nulimit = [\"bogus=1\"]", &["--", "true"])
        .expect_code(125)
        .expect_one_error_line(&["job.toml", "line 2", "bogus", "nofile"]);
}

#[test]
fn a_bad_job_file_is_refused_with_its_line_and_nothing_runs() {
    let Some(home) = home() else { return };
    for (text, parts) in [
        ("rm = true\nmemroy = \"1g\"", &["job.toml", "line 2", "memroy", "long flags"][..]),
        ("\n\nmemory = \"much\"", &["line 3", "not a size"]),
        ("command = \"true\"", &["line 1", "list of words"]),
        ("detach = true", &["line 1", "detach"]),
        ("rm = true\nrm = true", &["line 2", "duplicate"]),
    ] {
        let ran = run_job(&home, text, &["--", "true"]).expect_code(125);
        ran.expect_one_error_line(parts);
    }
    assert_eq!(home.jobs().len(), 0);
    let ran = run(home.run().args(["--job", "/nonexistent"])).expect_code(125);
    ran.expect_one_error_line(&["/nonexistent"]);
}

#[test]
fn a_name_goes_over_to_the_next_job_by_replace() {
    let Some(home) = home() else { return };
    let text = "name = \"again\"\nquiet = true\ncommand = [\"sleep\", \"1000\"]";
    let _first = run_job(&home, text, &["-d"]).expect_success();
    let supervisor = home.supervisor("again");
    let taken = run_job(&home, text, &["-d"]).expect_code(125);
    assert!(taken.stderr.contains("belongs to another job"), "{taken}");
    // A job that runs is ended first.
    let second = run_job(&home, text, &["-d", "--replace"]).expect_success();
    assert!(wait_until(std::time::Duration::from_secs(60), || !supervisor.exists()));
    let jobs = home.jobs();
    assert_eq!((jobs.len(), jobs[0]["id"].as_str()), (1, Some(second.stdout.trim_end())));
    // One that has ended, one whose supervisor was killed, and one that is not there.
    let _ran = home.say(&["kill", "-s", "KILL", "again"]).expect_success();
    let _ran = home.say(&["wait", "again"]);
    let third = run_job(&home, text, &["-d", "--replace"]).expect_success();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(home.supervisor("again").pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let last = run_job(&home, text, &["-d", "--replace", "--", "true"]).expect_success();
    assert_ne!(last.stdout, third.stdout);
    assert_eq!(home.jobs().len(), 1);
    let _ran = run_job(&home, "name = \"other\"", &["--replace", "--", "true"]).expect_success();
}
