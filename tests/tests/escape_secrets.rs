//! Holding a credential where it was not given: environment, command lines, memory, records, logs (THREATS.md, 5).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use agentd_tests::{Feature, Home, require, run};

const VALUE: &str = "s3cret+Value/of\"42";

/// `agentd run -q` with the secret in agentd's own environment.
fn boxed(home: &Home, flags: &[&str]) -> Command {
    let mut command = home.boxed(flags);
    command.env("TOKEN", VALUE);
    command
}

/// Every file that agentd keeps and that holds the value.
fn kept(home: &Home) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| {
        let bytes = fs::read(home.path().join(path)).unwrap_or_default();
        let quoted = VALUE.replace('"', "\\\"");
        [VALUE, &quoted].iter().any(|form| bytes.windows(form.len()).any(|window| window == form.as_bytes()))
    };
    home.paths().into_iter().filter(holds).collect()
}

/// What of /proc holds the value, in a box that has it at /run/secrets/TOKEN; the pattern is on no command line.
const SEARCH: &str = "grep -laF -f /run/secrets/TOKEN /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/1/mem \
                      /proc/1/environ 2>/dev/null; echo searched";

#[test]
fn escape_a_secret_is_in_its_file_and_in_no_process() {
    if !require(Feature::Userns) {
        return;
    }
    for flags in [&["--secret", "TOKEN"][..], &["--secret", "TOKEN", "--user", "root"]] {
        let home = Home::new();
        let inside = run(boxed(&home, flags).args(["sh", "-c", &format!("cat /run/secrets/TOKEN; echo; {SEARCH}")]));
        assert_eq!(inside.expect_success().stdout, format!("{VALUE}\nsearched\n"));
    }
    // Where the layer is not there: a variable is found by the same search, and in what is kept.
    let home = Home::new();
    let control = ["--secret", "TOKEN", "--env", "OTHER=s3cret+Value/of\"42x"];
    let inside = run(boxed(&home, &control).args(["sh", "-c", SEARCH])).expect_success().stdout;
    assert!(inside.starts_with("/proc/"), "{inside}");
    let home = Home::new();
    assert_eq!(run(boxed(&home, &["--env", "TOKEN"]).arg("true")).code(), 0);
    assert!(kept(&home).iter().any(|path| path.ends_with("plan.json")), "{:?}", kept(&home));
}

#[test]
fn escape_memory_of_pid_1_and_core_dumps_are_out_of_reach() {
    if !require(Feature::Userns) {
        return;
    }
    let script = "for file in mem environ maps auxv; do head -c 1 /proc/1/$file >/dev/null 2>&1 && echo read $file; done; \
                  head -c 1 /proc/$$/environ >/dev/null && echo own; ulimit -H -c";
    let said = Home::new().said(&["--secret", "X=cmd:echo some-value"], script);
    assert_eq!(said, "own\n0\n");
}

#[test]
fn escape_nobody_writes_to_the_secrets_and_they_are_never_swapped() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let script = "stat -f -c %T /run/secrets; stat -c '%a %F' /run/secrets /run/secrets/*; cd /run/secrets; \
                  (echo x > TOKEN) 2>/dev/null && echo wrote; (echo x > new) 2>/dev/null && echo made; \
                  chmod 600 TOKEN 2>/dev/null && echo changed; mv TOKEN T 2>/dev/null && echo moved; \
                  mv /run/secrets /run/other 2>/dev/null && echo aside; rm -f TOKEN 2>/dev/null; cat TOKEN; \
                  (echo x > /run/beside) && echo beside";
    let ran = run(boxed(&home, &["--secret", "TOKEN"]).args(["sh", "-c", script])).expect_success();
    let expected = format!("ramfs\n500 directory\n400 regular file\n{VALUE}beside\n");
    assert_eq!(ran.stdout, expected);
}

#[test]
fn escape_what_is_kept_of_a_job_has_no_secret_in_it() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    // Byte by byte, as a line, as part of a longer one, in base64, on both streams: and in the command itself.
    let script = "dd if=/run/secrets/TOKEN bs=1 2>/dev/null; echo; printf 'token=%s;\\n' \"$(cat /run/secrets/TOKEN)\"; \
                  printf 'user:%s' \"$(cat /run/secrets/TOKEN)\" | base64; cat /run/secrets/TOKEN >&2; echo end";
    let ran = run(boxed(&home, &["--secret", "TOKEN"]).args(["sh", "-c", script, VALUE])).expect_success();
    // Passed on byte for byte.
    assert!(ran.stdout.starts_with(&format!("{VALUE}\ntoken={VALUE};\n")), "{ran}");
    assert_eq!(ran.stderr, VALUE);
    assert_eq!(kept(&home), Vec::<PathBuf>::new());
    let id = run(home.agentd().args(["ps", "-aq"])).expect_success().stdout;
    let logs = run(home.agentd().args(["logs", id.trim()])).expect_success();
    assert_eq!(logs.stderr, "[redacted]");
    let lines: Vec<&str> = logs.stdout.lines().collect();
    assert_eq!(lines[..2], ["[redacted]", "token=[redacted];"]);
    assert!(lines[2].contains("[redacted]") && lines[2].len() < 20 && lines[3] == "end", "{logs}");
    let inspected = run(home.agentd().args(["inspect", id.trim()])).expect_success().stdout;
    assert!(inspected.contains("[redacted]") && inspected.contains("/run/secrets"), "{inspected}");
}

#[test]
fn escape_a_variable_is_said_loudly_and_not_kept_either() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let mut command = home.run();
    command.env("TOKEN", format!("{VALUE}\n")).args(["--secret-env", "TOKEN", "--env", "TOKEN=other", "--", "env"]);
    let ran = run(&mut command).expect_success();
    assert_eq!(
        ran.stdout.lines().filter(|line| line.contains("TOKEN")).collect::<Vec<_>>(),
        [format!("TOKEN={VALUE}")]
    );
    assert!(ran.stderr.contains("warning: --secret-env TOKEN"), "{ran}");
    assert_eq!(kept(&home), Vec::<PathBuf>::new());
}

#[test]
fn cli_every_source_is_read_and_a_dry_run_reads_none() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let place = home.path().join("config/key");
    fs::write(&place, "of a file\n").unwrap();
    let (file, made) = (format!("f=file:{}", place.display()), home.path().join("config/made"));
    let touch = format!("c=cmd:touch {}; echo of a command", made.display());
    let flags = ["--secret", "TOKEN", "--secret", "e=env:TOKEN", "--secret", &file, "--secret", &touch];
    let credential = ["--secret", "cred=cred:key"];
    let dry = run(boxed(&home, &["--dry-run", "--format", "json"]).args(["true"]));
    assert!(!dry.expect_success().stdout.contains("/run/secrets"));
    let mut command = home.run();
    command.env("TOKEN", VALUE).args(["--dry-run", "--format", "json"]).args(flags).args(["--", "true"]);
    let dry = run(&mut command).expect_success();
    assert!(dry.stdout.contains("/run/secrets") && !dry.stdout.contains(VALUE) && made.metadata().is_err(), "{dry}");
    let mut command = boxed(&home, &[&flags[..], &credential].concat());
    command.env("CREDENTIALS_DIRECTORY", place.parent().unwrap());
    let ran = run(command.args(["sh", "-c", "cd /run/secrets; for f in *; do echo $f; cat $f; echo; done"]));
    let expected = format!("TOKEN\n{VALUE}\nc\nof a command\ncred\nof a file\n\ne\n{VALUE}\nf\nof a file\n\n");
    assert_eq!(ran.expect_success().stdout, expected);
    assert_eq!(made.metadata().unwrap().uid(), place.metadata().unwrap().uid());
}

#[test]
fn cli_a_secret_that_cannot_be_had_ends_the_start() {
    let home = Home::new();
    for (flags, words) in [
        (&["--secret", "NOT_SET"][..], "NOT_SET is not set"),
        (&["--secret", "a=file:/nonexistent"], "/nonexistent"),
        (&["--secret", "a=cmd:exit 3"], "exit status: 3"),
        (&["--secret", "a=cmd:true"], "is empty"),
        (&["--secret", "a=cred:x"], "CREDENTIALS_DIRECTORY"),
        (&["--secret", "TOKEN", "--secret-env", "TOKEN"], "given twice"),
        (&["--secret", "TOKEN", "--mount", "type=bind,src=/usr,dst=/run"], "choose another"),
        (&["--mount", "type=bind,src=/usr,dst=/run/secrets/x"], "choose another"),
        (&["--secret-env", "a.b=cmd:echo x"], "a.b"),
    ] {
        let ran = run(boxed(&home, flags).arg("true")).expect_code(125);
        ran.expect_one_error_line(&[words]);
    }
    assert!(home.jobs().is_empty());
    let short = run(home.run().args(["--secret", "a=cmd:echo short", "--", "true"])).expect_success();
    assert!(short.stderr.contains("secret a is shorter than 8 bytes"), "{short}");
}
