//! The order in which a start gives up rights, as the kernel was asked for it: DESIGN's list, seen by strace.

use agentd_tests::{Feature, Home, require, traced};

/// What PID 1 asks for, in the order it must: a mark in the line of the call. Once PID 1 is not dumpable, an ordinary
/// user's strace sees numbers and flags, but no memory: no mark below that line is a string.
const OF_INIT: &[(&str, &str)] = &[
    ("tied to the supervisor", "prctl(PR_SET_PDEATHSIG, SIGKILL"),
    ("out of the user's directory", "chdir("),
    ("session", "setsid("),
    ("bounding set", "prctl(PR_CAPBSET_DROP"),
    ("no new privileges", "prctl(PR_SET_NO_NEW_PRIVS, 1"),
    ("read back", "prctl(PR_GET_NO_NEW_PRIVS"),
    ("private mounts", "MS_REC|MS_PRIVATE"),
    ("network", "unshare(CLONE_NEWNET"),
    ("the plan", "recvmsg("),
    ("setgroups denied", "\"/proc/self/setgroups\""),
    ("uid map", "\"/proc/self/uid_map\""),
    ("gid map", "\"/proc/self/gid_map\""),
    ("not dumpable", "prctl(PR_SET_DUMPABLE, SUID_DUMP_DISABLE"),
    ("host name", "sethostname("),
    ("limits", "RLIMIT_NPROC"),
    ("stage", "fsopen("),
    ("/proc or the like", "fsopen("),
    ("root", "pivot_root("),
    ("the host's root", "umount2("),
    ("checks", "open"),
    ("payload's process", "clone3("),
    ("capabilities", "capset("),
    ("filter", "seccomp(SECCOMP_SET_MODE_FILTER"),
];

/// The same for the process that becomes the payload.
const OF_PAYLOAD: &[(&str, &str)] = &[
    ("session", "setsid("),
    ("working directory", "chdir("),
    ("Landlock", "landlock_restrict_self("),
    ("capabilities", "capset("),
    ("filter", "seccomp(SECCOMP_SET_MODE_FILTER"),
    ("program", "execve("),
];

/// The calls of the process that made the call with `mark`, the last one such.
fn calls_of<'t>(trace: &'t str, mark: &str) -> Vec<&'t str> {
    let pid = |line: &'t str| line.split_whitespace().next();
    let of = trace.lines().rfind(|line| line.contains(mark)).and_then(pid);
    assert!(of.is_some(), "{mark} was not called\n{trace}");
    trace.lines().filter(|line| pid(line) == of).collect()
}

#[track_caller]
fn assert_order(calls: &[&str], order: &[(&str, &str)]) {
    let mut rest = calls.iter();
    for (what, mark) in order {
        let elsewhere = calls.iter().any(|call| call.contains(mark));
        assert!(
            rest.any(|call| call.contains(mark)),
            "{what} ({mark}) is not next (anywhere: {elsewhere})\n{calls:#?}"
        );
    }
}

#[test]
fn userns_rights_are_given_up_in_the_order_of_the_design() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let mut agentd = home.boxed(&[]);
    let Some(trace) = traced(agentd.arg("/usr/bin/true"), &["-s", "64"], &home) else { return };
    // One call makes the box, and PID 1 in it.
    let makes: Vec<_> = trace.lines().filter(|line| line.contains("clone3(") && line.contains("CLONE_NEW")).collect();
    let at_once = ["NEWUSER", "NEWNS", "NEWPID", "NEWIPC", "NEWUTS", "PIDFD"].map(|flag| format!("CLONE_{flag}"));
    assert!(makes.len() == 1 && at_once.iter().all(|flag| makes[0].contains(flag)), "{makes:#?}");
    // What is mounted is mounted by descriptors: mount(2), which takes paths, is for propagation alone.
    let by_path = |line: &&str| line.split_whitespace().nth(1).is_some_and(|call| call.starts_with("mount("));
    let mounts: Vec<_> = trace.lines().filter(by_path).collect();
    assert!(mounts.len() == 1 && mounts[0].contains("MS_REC|MS_PRIVATE"), "{mounts:#?}");
    assert_order(&calls_of(&trace, "pivot_root("), OF_INIT);
    let payload = calls_of(&trace, "landlock_restrict_self(");
    assert_order(&payload, OF_PAYLOAD);
    // From Linux 6.15 on: no ruleset that the payload makes can write to the machine's audit log.
    let plan = agentd_tests::run(home.run().args(["--dry-run", "--format", "json", "true"])).expect_success();
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
    if plan["box"]["landlock"]["abi"].as_u64() >= Some(7) {
        let restricts = payload.iter().find(|call| call.contains("landlock_restrict_self(")).unwrap();
        let flag = [", 0x4)", ", LANDLOCK_RESTRICT_SELF_LOG_SUBDOMAINS_OFF)"];
        assert!(flag.iter().any(|flag| restricts.contains(flag)), "{restricts}");
    }
    // After the filter there is nothing but its listener's way to the supervisor and the program: whatever else were needed
    // would have to be allowed to it too.
    let filter = payload.iter().position(|call| call.contains("SECCOMP_SET_MODE_FILTER")).unwrap();
    // A debug build asks about a descriptor before it closes it.
    let is_own = |call: &&&str| !call.contains("resumed>") && !call.contains("F_GETFD");
    let next: Vec<_> = payload[filter + 1..].iter().filter(is_own).take(3).collect();
    let expected = ["sendmsg(", "close(", "execve("];
    assert!(next.len() == 3 && next.iter().zip(expected).all(|(call, mark)| call.contains(mark)), "{next:?}");
    // The working directory is entered when the host's root is gone.
    let place = |mark: &str| trace.lines().position(|line| line.contains(mark));
    let detached = trace.lines().enumerate().filter(|(_, line)| line.contains("umount2(")).map(|(at, _)| at).last();
    let own_chdir = payload.iter().find(|call| call.contains("chdir("));
    assert!(detached < own_chdir.and_then(|call| place(call)));
    assert!(!trace.contains("PR_CAP_AMBIENT_RAISE"));
}
