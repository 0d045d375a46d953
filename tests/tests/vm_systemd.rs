//! Jobs as services: the units of `agentd generate systemd`, by a real systemd, as its users' and as the machine's.
//!
//! A unit runs with its user's own home directory; each test has job names of its own.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test, and what it stands on, ends by a panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentd_tests::server::{Manner, Server};
use agentd_tests::{Feature, Ran, Started, Terminal, agentd, is_root, require, run, wait_until};
use rustix::process::Signal;
use serde_json::Value;

/// Emulated, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Held by who must not see its manager read its units again: it forgets then that it was told to wait longer.
static RELOAD: Mutex<()> = Mutex::new(());

fn no_reload() -> MutexGuard<'static, ()> {
    RELOAD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `systemctl`, to the manager that this user's units are for.
fn systemctl(words: &[&str]) -> Ran {
    let _alone = (words == ["daemon-reload"]).then(no_reload);
    let mut command = Command::new("systemctl");
    if !is_root() {
        command.arg("--user");
    }
    run(command.args(words))
}

#[track_caller]
fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", "--value", "-p", name, unit]).expect_success().stdout.trim_end().to_owned()
}

/// agentd, as the user whose jobs the units of this manager are.
fn of_units(words: &[&str]) -> Command {
    if !is_root() {
        let mut command = Command::new(agentd());
        command.args(words);
        return command;
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "agentd", "--regid", "agentd", "--init-groups"]);
    command.args(["env", "-i", "PATH=/usr/bin:/bin", "HOME=/var/lib/agentd-jobs"]).arg(agentd()).args(words);
    command
}

#[track_caller]
fn record(job: &str) -> Value {
    let shown = run(&mut of_units(&["inspect", job])).expect_success();
    serde_json::from_str::<Value>(&shown.stdout).unwrap()[0].clone()
}

fn logs(job: &str) -> String {
    run(&mut of_units(&["logs", job])).stdout
}

/// Where units are, and job files.
fn places() -> (PathBuf, PathBuf) {
    if is_root() {
        return ("/etc/systemd/system".into(), "/etc/agentd/jobs".into());
    }
    let config = Path::new(&std::env::var_os("HOME").unwrap()).join(".config");
    (config.join("systemd/user"), config.join("agentd/jobs"))
}

/// The template, installed as the help says; and where its job files are.
fn install() -> PathBuf {
    let (units, jobs) = places();
    fs::create_dir_all(&units).unwrap();
    fs::create_dir_all(&jobs).unwrap();
    if is_root() {
        fs::create_dir_all("/etc/sysusers.d").unwrap();
        fs::write("/etc/sysusers.d/agentd.conf", include_str!("../../runtime/systemd/sysusers.conf")).unwrap();
        let _ran = run(&mut Command::new("systemd-sysusers")).expect_success();
    }
    let unit = run(Command::new(agentd()).args(["generate", "systemd"])).expect_success();
    // Tests run side by side: a unit is there whole or not at all.
    let new = units.join(format!("new-{:?}", std::thread::current().id()));
    fs::write(&new, unit.stdout).unwrap();
    fs::rename(new, units.join("agentd@.service")).unwrap();
    jobs
}

/// A unit that is stopped with its test, however that ends.
struct Unit(String);

impl Unit {
    /// agentd@NAME with a job file of this text; started again at once.
    fn of_file(name: &str, text: &str) -> Self {
        let jobs = install();
        fs::write(jobs.join(format!("{name}.toml")), text).unwrap();
        let more = places().0.join(format!("agentd@{name}.service.d"));
        fs::create_dir_all(&more).unwrap();
        fs::write(more.join("soon.conf"), "[Service]\nRestartSec=100ms\n").unwrap();
        let _ran = systemctl(&["daemon-reload"]).expect_success();
        Self(format!("agentd@{name}.service"))
    }

    #[track_caller]
    fn start(&self) {
        let started = systemctl(&["start", &self.0]);
        if started.code() != 0 {
            // The status is that of the next attempt.
            let unit = format!("{}={}", if is_root() { "_SYSTEMD_UNIT" } else { "_SYSTEMD_USER_UNIT" }, self.0);
            panic!(
                "{started}\n{}",
                run(Command::new("journalctl").args(["--no-pager", "-o", "cat", "-n", "30", &unit]))
            );
        }
    }

    fn status(&self) -> Ran {
        systemctl(&["status", "--no-pager", "--full", "-n", "40", &self.0])
    }

    fn is(&self, state: &str) -> bool {
        property(&self.0, "ActiveState") == state
    }

    fn cgroup(&self) -> PathBuf {
        let path = property(&self.0, "ControlGroup");
        assert!(path.len() > 1, "{} has no cgroup", self.0);
        Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'))
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // A test that failed has told why; systemd forgets the unit either way.
        let _stopped = systemctl(&["stop", &self.0]);
        let _forgotten = systemctl(&["reset-failed", &self.0]);
    }
}

fn pids(cgroup: &Path) -> Vec<String> {
    let procs = run(Command::new("find").arg(cgroup).args(["-name", "cgroup.procs", "-exec", "cat", "{}", "+"]));
    procs.stdout.lines().map(str::to_owned).collect()
}

/// The mounts of the guest, but for what systemd mounts for users and units that come and go.
fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let comes_and_goes = |line: &&str| line.contains(" /run/user/") || line.contains(" /run/credentials/");
    table.lines().filter(|line| !comes_and_goes(line)).map(str::to_owned).collect()
}

#[test]
fn a_unit_starts_with_its_job_and_stopping_it_leaves_nothing() {
    if !require(Feature::Guest) {
        return;
    }
    let mounts = mounts();
    let hides = "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000' & env; echo '<0>calm'; touch /tmp/x; echo ready; wait; sleep 1000";
    let text = format!("memory = \"256m\"\nstop-timeout = \"1s\"\ncommand = [\"sh\", \"-c\", '''{hides}''']\n");
    let unit = Unit::of_file("whole", &text);
    unit.start();
    // systemd waited for the job's command.
    let record = record("whole");
    assert_eq!(record["state"], "running", "{record}");
    assert!(property(&unit.0, "StatusText").contains(record["id"].as_str().unwrap()));
    assert_eq!(property(&unit.0, "MainPID"), record["supervisor_pid"].to_string());
    assert!(wait_until(PATIENCE, || logs("whole").contains("ready")), "{}", unit.status());
    assert!(!logs("whole").contains("NOTIFY_SOCKET"), "{}", logs("whole"));
    // The job's cgroup is a part of the unit's: nothing of it can be left by systemd's doing.
    let (cgroup, all) = (unit.cgroup(), pids(&unit.cgroup()));
    assert!(Path::new(record["cgroup"].as_str().unwrap()).starts_with(&cgroup), "{record}");
    assert!(all.len() >= 5, "{all:?}");
    // Root may write in the cgroups of others: they are none of what root's jobs have left. Other tests kill what leaves one
    // for a moment.
    let is_clean = || {
        let health = run(Command::new(agentd()).args(["health", "--format", "json"])).stdout;
        let rows: Vec<Value> = serde_json::from_str(&health).unwrap();
        rows.iter().any(|row| row["subject"] == "left-behind" && row["verdict"] == "ok")
    };
    assert!(wait_until(PATIENCE, is_clean), "{}", run(Command::new(agentd()).arg("health")));
    let _ran = systemctl(&["stop", &unit.0]).expect_success();
    assert!(unit.is("failed") || unit.is("inactive"), "{}", unit.status());
    let alive = || all.iter().any(|pid| fs::metadata(format!("/proc/{pid}")).is_ok());
    assert!(wait_until(PATIENCE, || !alive() && cgroup.symlink_metadata().is_err()), "{cgroup:?}");
    assert_eq!(self::mounts(), mounts);
    let id = record["id"].as_str().unwrap();
    let named = |above: &str| run(Command::new("find").args([above, "-xdev", "-name", &format!("*{id}*")])).stdout;
    assert_eq!(named("/run") + &named("/sys/fs/cgroup") + &named("/tmp"), "");
    // Its record and its output are what is meant to be left.
    let home = if is_root() { "/var/lib/agentd-jobs".into() } else { std::env::var("HOME").unwrap() };
    let kept = named(&home);
    assert!(kept.lines().count() == 1 && kept.trim_end().ends_with(&format!("jobs/{id}")), "{kept}");
    let left = run(Command::new("find").args([&home, "-name", "control.sock"])).stdout;
    assert!(!left.contains(id), "{left}");
    let record = self::record("whole");
    assert_eq!((record["state"].as_str(), record["exit_code"].as_i64()), (Some("exited"), Some(137)), "{record}");
    assert!(record["reason"].as_str().unwrap().contains("SIGTERM"), "{record}");
}

#[test]
fn an_end_by_sigterm_is_no_failure_and_a_failure_starts_the_job_again() {
    if !require(Feature::Guest) {
        return;
    }
    let stopped = Unit::of_file("obeys", "command = [\"sleep\", \"1000\"]");
    stopped.start();
    let _ran = systemctl(&["stop", &stopped.0]).expect_success();
    assert!(stopped.is("inactive"), "{}", stopped.status());

    let unit = Unit::of_file("fails", "command = [\"sh\", \"-c\", \"sleep 1; exit 3\"]");
    unit.start();
    let first = record("fails")["id"].as_str().unwrap().to_owned();
    let again = || property(&unit.0, "NRestarts").parse::<u32>().is_ok_and(|restarts| restarts > 0);
    assert!(wait_until(PATIENCE, again), "{}", unit.status());
    // The name goes over to the next job.
    let now = || run(&mut of_units(&["ps", "-a", "--format", "{{.Name}} {{.ID}}"])).stdout;
    let next = |said: &str| said.lines().any(|line| line.starts_with("fails ") && !line.ends_with(&first));
    assert!(wait_until(PATIENCE, || next(&now())), "{}", unit.status());
}

#[test]
fn a_killed_supervisor_takes_its_job_along_and_the_next_has_the_name() {
    if !require(Feature::Guest) {
        return;
    }
    let unit = Unit::of_file("killed", "pids = 50\ncommand = [\"sleep\", \"1000\"]");
    unit.start();
    let before = record("killed");
    let cgroup = PathBuf::from(before["cgroup"].as_str().unwrap());
    let _ran = systemctl(&["kill", "--kill-whom=main", "-s", "KILL", &unit.0]).expect_success();
    let again = || property(&unit.0, "NRestarts") == "1" && unit.is("active");
    assert!(wait_until(PATIENCE, again), "{}", unit.status());
    let after = record("killed");
    assert_ne!(after["id"], before["id"]);
    assert_eq!(after["state"], "running");
    assert!(cgroup.symlink_metadata().is_err(), "{cgroup:?}");
}

/// The one who asks is in a session, or in a service of the system: nobody who is there may start a process in the unit.
#[test]
fn a_command_joins_the_job_of_a_unit_in_its_cgroup() {
    if !require(Feature::Guest) {
        return;
    }
    let unit = Unit::of_file("joined", "memory = \"64m\"\npids = 20\ncommand = [\"sleep\", \"1000\"]");
    unit.start();
    let leaf = PathBuf::from(record("joined")["cgroup"].as_str().unwrap());
    assert!(leaf.starts_with(unit.cgroup()), "{leaf:?}");
    let names = |cgroup: &Path| {
        let name = |pid: &String| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let mut names: Vec<String> = pids(cgroup).iter().map(name).collect();
        names.sort();
        names.concat()
    };
    let before = names(&unit.cgroup());
    let ran = run(&mut of_units(&["exec", "joined", "sh", "-c", "cat /proc/self/cgroup; echo told >&2; exit 7"]));
    assert_eq!(ran.expect_code(7).stderr, "told\n");
    let mut beside = Started::new(&mut of_units(&["exec", "joined", "sh", "-c", "echo ready; exec tail -f /dev/null"]));
    beside.wait_for("ready\n");
    // Born there: the kernel counts it, the host sees it there, and it sees nothing above.
    assert!(wait_until(PATIENCE, || names(&leaf).contains("tail\n")), "{}", names(&leaf));
    let tail = pids(&leaf)
        .into_iter()
        .find(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "tail\n"));
    let seen = fs::read_to_string(format!("/proc/{}/cgroup", tail.unwrap())).unwrap();
    assert_eq!(Path::new("/sys/fs/cgroup").join(seen.trim_end().trim_start_matches("0::/")), leaf);
    let inside = run(&mut of_units(&["exec", "joined", "cat", "/proc/self/cgroup"])).expect_success();
    assert_eq!(inside.stdout, "0::/\n");
    // The job's limits hold it.
    let greedy = r#"BEGIN { s = "x"; while (length(s) < 67108864) s = s s }"#;
    let _ran = run(&mut of_units(&["exec", "joined", "awk", greedy])).expect_code(137);
    let counted = fs::read_to_string(leaf.join("memory.events")).unwrap();
    assert!(counted.contains("oom_kill 1\n"), "{counted}");
    // A terminal and signals are as they are beside any job.
    let mut terminal = Terminal::new();
    let shell = of_units(&["exec", "-it", "joined", "sh", "-c", "stty size; tty; read line; exit 6"]);
    terminal.resize(37, 111);
    let shell = terminal.start(&shell);
    terminal.wait_for("/dev/pts/");
    terminal.press(b"\r");
    assert!(terminal.finish(shell).expect_code(6).stdout.contains("37 111"));
    beside.signal(Signal::TERM);
    let _ran = beside.finish().expect_code(143);
    // Nothing is left of it, neither in the job nor beside it.
    assert!(wait_until(PATIENCE, || names(&unit.cgroup()) == before), "{} {before}", names(&unit.cgroup()));
    assert_eq!(record("joined")["state"], "running");
    // Killed, the one who asked takes the command along.
    let mut killed = Started::new(&mut of_units(&["exec", "joined", "sh", "-c", "echo ready; exec tail -f /dev/null"]));
    killed.wait_for("ready\n");
    killed.signal(Signal::KILL);
    let _ran = killed.finish().expect_code(-9);
    assert!(wait_until(PATIENCE, || names(&unit.cgroup()) == before), "{} {before}", names(&unit.cgroup()));
}

/// Its job is in the unit's own cgroup, and what the unit may use at most holds whatever joins it.
#[test]
fn a_command_joins_the_unit_of_a_job_without_limits() {
    if !require(Feature::Guest) {
        return;
    }
    let unit = Unit::of_file("bare", "command = [\"sleep\", \"1000\"]");
    unit.start();
    let before = pids(&unit.cgroup()).len();
    let mut beside = Started::new(&mut of_units(&["exec", "bare", "sh", "-c", "echo ready; exec tail -f /dev/null"]));
    beside.wait_for("ready\n");
    let is_there = |pid: String| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "tail\n");
    assert!(wait_until(PATIENCE, || pids(&unit.cgroup()).into_iter().any(is_there)), "{}", unit.status());
    beside.signal(Signal::TERM);
    let _ran = beside.finish().expect_code(143);
    assert!(wait_until(PATIENCE, || pids(&unit.cgroup()).len() == before), "{}", unit.status());
}

#[test]
fn the_unit_of_a_job_starts_what_the_job_was() {
    if !require(Feature::Guest) {
        return;
    }
    let directory =
        tempfile::tempdir_in(if is_root() { "/srv".into() } else { std::env::var("HOME").unwrap() }).unwrap();
    fs::create_dir(directory.path().join("a work")).unwrap();
    let odd = "100% of $HOME; \"quoted\" \\n ' and\na line";
    let mut first = Command::new(agentd());
    first.current_dir(directory.path()).args([
        "run",
        "-d",
        "--name",
        "told",
        "--workspace",
        "a work",
        "--memory",
        "128m",
    ]);
    first.args([
        "-e",
        &format!("ODD={odd}"),
        "--",
        "sh",
        "-c",
        "printf '%s|%s' \"$ODD\" \"$1\"; echo done >made; sleep 1000",
        "sh",
        odd,
    ]);
    let _ran = run(&mut first).expect_success();
    let text = run(Command::new(agentd()).args(["generate", "systemd", "told"])).expect_success().stdout;
    let _ran = run(Command::new(agentd()).args(["rm", "-f", "told"])).expect_success();
    let made = directory.path().join("a work/made");
    assert!(wait_until(PATIENCE, || fs::remove_file(&made).is_ok() || made.symlink_metadata().is_err()));

    let (units, _) = places();
    fs::create_dir_all(&units).unwrap();
    fs::write(units.join("agentd-told.service"), text).unwrap();
    let _ran = systemctl(&["daemon-reload"]).expect_success();
    let unit = Unit("agentd-told.service".into());
    unit.start();
    let own = |words: &[&str]| run(Command::new(agentd()).args(words)).stdout;
    assert!(wait_until(PATIENCE, || own(&["logs", "told"]) == format!("{odd}|{odd}")), "{}", unit.status());
    assert!(wait_until(PATIENCE, || fs::read_to_string(&made).is_ok_and(|text| text == "done\n")));
    assert!(unit.cgroup().read_dir().unwrap().flatten().any(|entry| entry.file_name() == "agentd-supervisor"));
}

/// A manager kills what has not ended within a time of its own, which is less than a job may be given.
#[test]
fn a_job_has_the_time_to_end_that_it_was_given() {
    if !require(Feature::Guest) {
        return;
    }
    let script = "trap 'sleep 9; echo in order; exit 0' TERM; echo ready; sleep 1000 & wait";
    let text = format!("stop-timeout = \"1m\"\ncommand = [\"sh\", \"-c\", {script:?}]\n");
    let unit = Unit::of_file("patient", &text);
    fs::write(places().0.join("agentd@patient.service.d/stop.conf"), "[Service]\nTimeoutStopSec=4s\n").unwrap();
    let _ran = systemctl(&["daemon-reload"]).expect_success();
    let alone = no_reload();
    unit.start();
    assert!(wait_until(PATIENCE, || logs("patient") == "ready\n"), "{}", unit.status());
    let _ran = systemctl(&["stop", &unit.0]).expect_success();
    drop(alone);
    assert!(unit.is("inactive"), "{}", unit.status());
    assert_eq!(logs("patient"), "ready\nin order\n");
    assert_eq!(record("patient")["exit_code"], 0);
}

/// What confines agentd in a unit leaves it what a job may ask for.
#[test]
fn a_unit_runs_a_job_that_asks_for_everything() {
    if !require(Feature::Guest) || !require(Feature::Busybox) {
        return;
    }
    let place = tempfile::tempdir_in(if is_root() { "/srv".into() } else { std::env::var("HOME").unwrap() }).unwrap();
    let (image, work) = (place.path().join("image"), place.path().join("work"));
    agentd_tests::busybox().write(&image, "latest").unwrap();
    fs::create_dir(&work).unwrap();
    let server = Server::at("127.0.0.1", Manner::Echoes);
    let script = format!(
        "set -e; chown 7:7 /etc/passwd; id -u; echo x >/etc/new; \
         test $(cat /run/secrets/KEY) = sesame; echo hello | nc web.test {}; echo written >made; echo whole; sleep 1000",
        server.port()
    );
    let text = format!(
        "image = \"oci:{}\"\nworkspace = \"{}\"\nwritable = true\nfake-root = true\nsecret = [\"KEY=cred:key\"]\n\
         allow = [\"web.test:{}\"]\nadd-host = [\"web.test:127.0.0.1\"]\nmemory = \"256m\"\ncommand = [\"sh\", \"-c\", {script:?}]\n",
        image.display(),
        work.display(),
        server.port()
    );
    let unit = Unit::of_file("everything", &text);
    if is_root() {
        let _ran = run(Command::new("chown").args(["-R", "agentd:agentd"]).arg(place.path())).expect_success();
    }
    fs::write(places().0.join("agentd@everything.service.d/key.conf"), "[Service]\nSetCredential=key:sesame\n")
        .unwrap();
    let _ran = systemctl(&["daemon-reload"]).expect_success();
    // The first start of an image ends threads just before it divides the unit's cgroup, which is busy with each.
    for _round in 0..2 {
        unit.start();
        let _ran = systemctl(&["stop", &unit.0]).expect_success();
        let _ran = run(&mut of_units(&["rm", "everything"])).expect_success();
        let _ran = run(&mut of_units(&["rmi", &format!("oci:{}", image.display())])).expect_success();
        fs::remove_file(work.join("made")).unwrap_or_default();
    }
    unit.start();
    let is_whole = wait_until(PATIENCE, || logs("everything").contains("whole\n"));
    assert!(is_whole, "{}\n{}", logs("everything"), unit.status());
    assert_eq!(logs("everything"), "0\nhello\nwhole\n");
    assert!(server.heard().ends_with("hello\n"), "{}", server.heard());
    assert_eq!(fs::read_to_string(work.join("made")).unwrap(), "written\n");
    assert!(record("everything")["denials"].is_null(), "none");
}

#[test]
fn the_journal_has_the_job_in_fields_and_its_output_as_it_is() {
    if !require(Feature::Guest) || !require(Feature::Root) {
        return;
    }
    let script = r#"echo '<0>calm'; exec awk 'BEGIN { s = "x"; while (length(s) < 67108864) s = s s }'"#;
    let unit = Unit::of_file("told-of", &format!("memory = \"48m\"\ncommand = [\"sh\", \"-c\", {script:?}]"));
    fs::write("/etc/systemd/system/agentd@told-of.service.d/soon.conf", "[Service]\nRestart=no\n").unwrap();
    let _ran = systemctl(&["daemon-reload"]).expect_success();
    unit.start();
    assert!(wait_until(PATIENCE, || unit.is("failed")), "{}", unit.status());
    let _ran = run(Command::new("journalctl").arg("--sync")).expect_success();
    let entries = |filter: &str| -> Vec<Value> {
        let said = run(Command::new("journalctl").args(["-o", "json", "--no-pager", filter])).expect_success();
        said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let id = self::record("told-of")["id"].as_str().unwrap().to_owned();
    let of_job = entries(&format!("AGENTD_JOB={id}"));
    assert_eq!(of_job.len(), 2, "{of_job:?}");
    let (began, ended) = (&of_job[0], &of_job[1]);
    assert_ne!(began["MESSAGE_ID"], ended["MESSAGE_ID"]);
    for (entry, priority) in [(began, "6"), (ended, "4")] {
        assert_eq!(
            (entry["AGENTD_NAME"].as_str(), entry["PRIORITY"].as_str()),
            (Some("told-of"), Some(priority)),
            "{entry}"
        );
        assert_eq!(entry["_SYSTEMD_UNIT"], "agentd@told-of.service");
        assert_eq!(entry["_TRANSPORT"], "journal");
    }
    let record = self::record("told-of");
    let usage = |name: &str| record["usage"][name].to_string();
    // Every field that docs/systemd.md names.
    for (field, value) in [
        ("AGENTD_IMAGE", "host".to_owned()),
        ("AGENTD_STATE", "exited".to_owned()),
        ("AGENTD_EXIT_CODE", "137".to_owned()),
        ("AGENTD_REASON", record["reason"].as_str().unwrap().to_owned()),
        ("AGENTD_DURATION_MS", record["duration_ms"].to_string()),
        ("AGENTD_DENIALS", "0".to_owned()),
        ("AGENTD_MEMORY_PEAK", usage("memory_peak")),
        ("AGENTD_PIDS_PEAK", usage("pids_peak")),
        ("AGENTD_CPU_US", usage("cpu_us")),
        ("AGENTD_OOM_KILLS", "1".to_owned()),
    ] {
        assert_eq!(ended[field].as_str(), Some(value.as_str()), "{field} of {ended}");
    }
    // Its output is found by the invocation; an emergency of the payload's would go to every terminal.
    let lines = entries(&format!("_SYSTEMD_INVOCATION_ID={}", ended["_SYSTEMD_INVOCATION_ID"].as_str().unwrap()));
    let line = lines.iter().find(|line| line["MESSAGE"] == "<0>calm").unwrap_or_else(|| panic!("{lines:?}"));
    assert_eq!((line["PRIORITY"].as_str(), line["AGENTD_UNIT_JOB"].as_str()), (Some("6"), Some("told-of")));
}

#[test]
fn the_machines_unit_is_well_confined_itself() {
    if !require(Feature::Guest) || !require(Feature::Root) {
        return;
    }
    let unit = Unit::of_file("rated", "command = [\"sleep\", \"1000\"]");
    unit.start();
    let rated = run(Command::new("systemd-analyze").args(["security", "--no-pager", "--threshold=35", &unit.0]));
    assert_eq!(rated.code(), 0, "{rated}");
    // A service with no walls of its own is rated otherwise: the threshold can fail.
    let other =
        run(Command::new("systemd-analyze").args(["security", "--no-pager", "--threshold=35", "agent.service"]));
    assert_ne!(other.code(), 0, "{other}");
    let pid = property(&unit.0, "MainPID");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!((value("CapEff:"), value("CapBnd:")), ("0000000000000000".into(), "0000000000000000".into()));
    assert_eq!(value("NoNewPrivs:"), "1");
    assert_ne!(value("Uid:").split_whitespace().next(), Some("0"));
}

/// A user's manager can do less around a service; what there is of walls is the box's.
#[test]
fn a_users_unit_is_confined_as_far_as_his_manager_can() {
    if !require(Feature::Guest) || !require(Feature::OrdinaryUser) {
        return;
    }
    let unit = Unit::of_file("rated", "command = [\"sleep\", \"1000\"]");
    unit.start();
    let rate = ["--user", "security", "--no-pager", "--threshold=79", &unit.0];
    let rated = run(Command::new("systemd-analyze").args(rate));
    assert_eq!(rated.code(), 0, "{rated}");
}

/// The machine goes down without a word and comes up again: everything of the user's is killed, what he has in memory is
/// gone, and his manager starts because he lingers.
#[test]
fn after_a_crash_of_the_machine_jobs_start_again_and_orphans_are_found() {
    if !require(Feature::Guest) || !require(Feature::Root) {
        return;
    }
    let sh = |script: &str| run(Command::new("sh").args(["-euc", script]));
    let _ran = sh("useradd --create-home --uid 1005 --shell /bin/bash reboots && loginctl enable-linger reboots")
        .expect_success();
    let session = |script: &str| {
        let mut command = Command::new("systemd-run");
        command.args(["--quiet", "--pipe", "--wait", "--collect", "-p", "User=reboots", "-p", "PAMName=login"]);
        run(command.args(["-p", "WorkingDirectory=~", "--", "bash", "-euc", script]))
    };
    let agentd = agentd().display().to_string();
    let begun = session(&format!(
        "systemctl --user is-system-running --wait
         mkdir -p ~/.config/systemd/user ~/.config/agentd/jobs
         {agentd} generate systemd > ~/.config/systemd/user/agentd@.service
         printf 'memory = \"64m\"\\ncommand = [\"sleep\", \"1000\"]\\n' > ~/.config/agentd/jobs/boot.toml
         systemctl --user daemon-reload
         systemctl --user enable --now agentd@boot
         {agentd} run -d --name orphan --memory 64m -- sleep 1000
         {agentd} ps --format '{{{{.Name}}}} {{{{.State}}}} {{{{.ID}}}}'"
    ))
    .expect_success();
    let line = |said: &str, name: &str| said.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    let before = line(&begun.stdout, "boot running");
    assert!(before.len() > 12 && begun.stdout.contains("orphan running"), "{begun}");

    let _ran =
        sh("systemctl kill -s KILL user-1005.slice; systemctl stop user@1005.service user-runtime-dir@1005.service")
            .expect_success();
    assert!(wait_until(PATIENCE, || fs::metadata("/run/user/1005").is_err() && sh("pgrep -u 1005").code() != 0));
    let _ran = sh("systemctl reset-failed; systemctl start user@1005.service").expect_success();
    assert!(wait_until(PATIENCE, || sh("pgrep -u 1005 -x sleep").code() == 0), "{}", sh("ps -u 1005 -f"));
    let after = session(&format!(
        "systemctl --user is-system-running --wait; {agentd} ps -a --format '{{{{.Name}}}} {{{{.State}}}} {{{{.ID}}}}'
         systemctl --user disable --now agentd@boot"
    ))
    .expect_success();
    let again = line(&after.stdout, "boot running");
    assert!(again.len() > 12 && again != before && after.stdout.contains("orphan lost"), "{after}");
    let left = run(Command::new("find").args(["/sys/fs/cgroup/user.slice/user-1005.slice", "-name", "agentd-*.scope"]));
    assert_eq!(left.stdout, "");
    let _ran = sh("loginctl disable-linger reboots; systemctl stop user@1005.service");
}
