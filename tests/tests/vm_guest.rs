//! The guest is what the other `vm_` tests take it for: pure cgroup v2 and systemd, and users as a distribution makes them.

use std::fs;
use std::process::Command;

use agentd_tests::{Feature, is_root, require, run};

#[test]
fn the_hierarchy_is_cgroup_v2_alone() {
    if !require(Feature::Guest) {
        return;
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let kinds: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert!(kinds.contains(&"cgroup2") && !kinds.contains(&"cgroup"), "{mounts}");
    assert_eq!(fs::read_to_string("/proc/1/comm").unwrap(), "systemd\n");
}

#[test]
fn a_user_has_a_session_with_a_delegated_subtree() {
    if !require(Feature::Guest) {
        return;
    }
    if is_root() {
        assert!(fs::read_to_string("/sys/fs/cgroup/cgroup.subtree_control").unwrap().contains("memory"));
        return;
    }
    let uid = fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own)).unwrap();
    let slice = format!("/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service");
    let controllers = fs::read_to_string(format!("{slice}/cgroup.controllers")).unwrap();
    for wanted in ["cpu", "cpuset", "io", "memory", "pids"] {
        assert!(controllers.split_whitespace().any(|one| one == wanted), "{controllers}");
    }
    let scope = ["--user", "--scope", "--quiet", "-p", "Delegate=yes", "cat", "/proc/self/cgroup"];
    let own = run(Command::new("systemd-run").args(scope)).expect_success().stdout;
    assert!(own.contains(&format!("user@{uid}.service/app.slice/run-")), "{own}");
}

#[test]
fn only_the_user_of_that_name_has_ranges() {
    if !require(Feature::Guest) {
        return;
    }
    let ranges = fs::read_to_string("/etc/subuid").unwrap();
    // Another test makes a user of its own.
    let of_the_guest = |line: &&str| ["root:", "ranges:", "plain:"].iter().any(|name| line.starts_with(name));
    assert_eq!(ranges.lines().filter(of_the_guest).collect::<Vec<_>>(), ["ranges:100000:65536"]);
}
