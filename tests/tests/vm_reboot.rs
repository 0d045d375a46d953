//! A machine that goes down and comes up again, in order and as when its power is cut: units start their jobs again, jobs
//! that ran are told to have ended, and nothing of them is left.
//!
//! `cargo xtask e2e --vm` runs the three tests in their order, in one guest that it boots again in between; what one leaves
//! is what the next begins with.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test, and what it stands on, ends by a panic")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use agentd_tests::{Feature, Ran, agentd, require, run, wait_until};

/// A machine that has just been booted, emulated.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where agentd is in the guest: the disk that the tests come on is not there yet when units start.
const AGENTD: &str = "/usr/local/bin/agentd";

/// What was before the machine went down; on its disk.
const BEFORE: &str = "/var/lib/before-the-reboot";

fn is_here() -> bool {
    require(Feature::Guest) && require(Feature::Root)
}

#[track_caller]
fn sh(script: &str) -> Ran {
    run(Command::new("bash").args(["-euc", script]))
}

/// Whose jobs there are.
#[derive(Debug, Clone, Copy)]
enum Owner {
    /// root's own, from a shell.
    Root,
    /// Those of the machine's units.
    Machine,
    /// Those of a user who lingers: one of a unit of his, one from a shell.
    Lingerer,
}

const OWNERS: [Owner; 3] = [Owner::Root, Owner::Machine, Owner::Lingerer];

impl Owner {
    fn run(self, script: &str) -> Ran {
        let mut command = match self {
            Self::Root => Command::new("env"),
            Self::Machine => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", "agentd", "--regid", "agentd", "--init-groups", "env"]);
                command.args(["-i", "PATH=/usr/bin:/bin", "HOME=/var/lib/agentd-jobs"]);
                command
            }
            Self::Lingerer => {
                let mut command = Command::new("systemd-run");
                command.args(["--quiet", "--pipe", "--wait", "--collect", "-p", "User=lingers", "-p", "PAMName=login"]);
                command.args(["-p", "WorkingDirectory=~", "--"]);
                command
            }
        };
        run(command.args(["bash", "-euc", script]))
    }

    /// Name, state and id of each of his jobs.
    #[track_caller]
    fn jobs(self) -> Vec<Vec<String>> {
        let listed = self.run(&format!("{AGENTD} ps -a --format '{{{{.Name}}}} {{{{.ID}}}} {{{{.State}}}}'"));
        let words = |line: &str| line.split(' ').map(str::to_owned).collect();
        listed.expect_silent_success().stdout.lines().map(words).collect()
    }

    /// Id and state of the job of that name.
    #[track_caller]
    fn job(self, name: &str) -> (String, String) {
        let jobs = self.jobs();
        let job = jobs.iter().find(|job| job[0] == name).unwrap_or_else(|| panic!("{self:?} {name}: {jobs:?}"));
        (job[1].clone(), job[2..].join(" "))
    }

    fn has_unit(self) -> bool {
        !matches!(self, Self::Root)
    }

    fn has_stray(self) -> bool {
        !matches!(self, Self::Machine)
    }
}

/// A job that no unit knows of.
#[track_caller]
fn start_stray(owner: Owner, name: &str) {
    let flags = format!("--name {name} --memory 64m --workspace ~/{name}");
    let started = format!("mkdir -p ~/{name}; {AGENTD} run -d {flags} -- sh -c 'echo said; exec sleep 1000'");
    let _ran = owner.run(&started).expect_success();
    assert!(wait_until(PATIENCE, || owner.run(&format!("{AGENTD} logs {name}")).stdout == "said\n"));
    assert_ne!(stubs(owner, name), "", "{owner:?} {name}");
}

/// What holds absent names of the workspace that the job `name` has or had.
#[track_caller]
fn stubs(owner: Owner, name: &str) -> String {
    owner.run(&format!("find ~/{name} -type s")).expect_success().stdout
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap()
}

/// Writes down what is there now, for after the reboot.
fn note() {
    let unit_jobs = OWNERS.iter().filter(|owner| owner.has_unit()).map(|owner| owner.job("boot").0);
    let noted = std::iter::once(boot().trim().to_owned()).chain(unit_jobs).collect::<Vec<_>>().join("\n");
    fs::write(BEFORE, noted).unwrap();
    // A power cut would take what is not on the disk.
    let _ran = run(&mut Command::new("sync")).expect_success();
}

/// Waits until both units have what they wait for: that their job's command runs.
#[track_caller]
fn units_run() {
    for (owner, manager) in [(Owner::Root, "systemctl"), (Owner::Lingerer, "systemctl --user")] {
        let is_active = || owner.run(&format!("{manager} is-active agentd@boot")).code() == 0;
        assert!(wait_until(PATIENCE, is_active), "{}", owner.run(&format!("{manager} status agentd@boot")));
    }
}

/// The units' jobs run, and are others than before; nothing of those before is left.
#[track_caller]
fn units_came_back() {
    let before = fs::read_to_string(BEFORE).unwrap();
    let before: Vec<&str> = before.lines().collect();
    assert_ne!(before[0], boot().trim(), "the machine was booted again");
    units_run();
    // Whoever has a unit has had all of his jobs looked after by its start: nothing but the unit's own is taken to run.
    for (owner, state) in
        [(Owner::Machine, "/var/lib/agentd-jobs/.local/state"), (Owner::Lingerer, "/home/lingers/.local/state")]
    {
        let live = owner.run(&format!("ls {state}/agentd/live")).expect_success().stdout;
        assert_eq!(live.lines().count(), 1, "{owner:?}: {live}");
    }
    for owner in OWNERS.into_iter().filter(|owner| owner.has_unit()) {
        let (id, state) = owner.job("boot");
        assert_eq!(state, "running", "{owner:?}");
        assert!(!before.contains(&id.as_str()), "{owner:?}: another job than before");
        assert!(wait_until(PATIENCE, || owner.run(&format!("{AGENTD} logs boot")).stdout == "up\n"), "{owner:?}");
    }
    let cgroups = sh("find /sys/fs/cgroup -type d -name 'agentd-*'").expect_success().stdout;
    assert!(!before.iter().any(|id| cgroups.contains(id)), "{before:?}\n{cgroups}");
}

/// The job `name` is over, as `state` says; its output is there, and it goes without a trace.
#[track_caller]
fn stray_is_over(owner: Owner, name: &str, state: &str) {
    let (id, found) = owner.job(name);
    assert_eq!(found, state, "{owner:?} {name}");
    // The command that listed it has seen to that, at the latest.
    assert_eq!(stubs(owner, name), "", "{owner:?} {name}");
    let shown = owner.run(&format!("{AGENTD} inspect {name}")).expect_success().stdout;
    assert!(shown.contains("\"finished\""), "{shown}");
    assert_eq!(owner.run(&format!("{AGENTD} logs {name}")).stdout, "said\n");
    assert_eq!(owner.run(&format!("{AGENTD} wait {name}")).stdout.trim(), if state == "lost" { "137" } else { "143" });
    let _ran = owner.run(&format!("{AGENTD} rm {name}")).expect_success();
    let left =
        sh(&format!("find / -xdev -name '*{id}*' -not -path '/proc/*'; find /run /sys/fs/cgroup -name '*{id}*'"));
    assert_eq!(left.stdout, "", "{owner:?} {name}");
}

#[test]
fn before_units_are_enabled_and_strays_run() {
    if !is_here() {
        return;
    }
    fs::copy(agentd(), AGENTD).unwrap();
    let template = format!("{AGENTD} generate systemd");
    fs::create_dir_all("/etc/sysusers.d").unwrap();
    fs::write("/etc/sysusers.d/agentd.conf", include_str!("../../runtime/systemd/sysusers.conf")).unwrap();
    let job = "printf '%s\\n' 'memory = \"64m\"' 'command = [\"sh\", \"-c\", \"echo up; exec sleep 1000\"]'";
    // One by one: each has a minute, which is not much in an emulated machine.
    for step in [
        format!("chmod 755 {AGENTD}; systemd-sysusers; mkdir -p /etc/agentd/jobs; {job} >/etc/agentd/jobs/boot.toml"),
        format!("{template} >/etc/systemd/system/agentd@.service; systemctl daemon-reload"),
        "systemctl enable --now --no-block agentd@boot".to_owned(),
        "useradd --create-home --shell /bin/bash lingers; loginctl enable-linger lingers".to_owned(),
    ] {
        let _ran = sh(&step).expect_success();
    }
    for step in [
        format!("mkdir -p ~/.config/systemd/user ~/.config/agentd/jobs; {job} >~/.config/agentd/jobs/boot.toml"),
        format!("{template} >~/.config/systemd/user/agentd@.service; systemctl --user daemon-reload"),
        "systemctl --user enable --now --no-block agentd@boot".to_owned(),
    ] {
        let _ran = Owner::Lingerer.run(&step).expect_success();
    }
    units_run();
    for owner in OWNERS.into_iter().filter(|owner| owner.has_stray()) {
        start_stray(owner, "stray");
    }
    note();
}

/// Who is asked to end has ended in order.
#[test]
fn rebooted_units_run_again_and_strays_were_stopped() {
    if !is_here() {
        return;
    }
    units_came_back();
    for owner in OWNERS.into_iter().filter(|owner| owner.has_stray()) {
        stray_is_over(owner, "stray", "exited (143)");
        start_stray(owner, "cut-off");
    }
    note();
}

#[test]
fn cut_off_units_run_again_and_strays_are_lost() {
    if !is_here() {
        return;
    }
    units_came_back();
    for owner in OWNERS.into_iter().filter(|owner| owner.has_stray()) {
        stray_is_over(owner, "cut-off", "lost");
    }
    let _ran = sh("systemctl disable --now agentd@boot").expect_success();
    let _ran = Owner::Lingerer.run("systemctl --user disable --now agentd@boot").expect_success();
    let _ran = sh("loginctl disable-linger lingers; systemctl stop \"user@$(id -u lingers).service\"").expect_success();
}
