//! `agentd doctor`: its verdict is what `agentd run` then meets, and a refusal comes with its remedy.
#![expect(clippy::panic, clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::process::Command;

use agentd_tests::{Feature, Home, Ran, require, run};
use serde_json::Value;

/// `agentd WORDS` in namespaces of its own, as their root, after the shell commands `before`.
fn confined(home: &Home, before: &str, words: &str) -> Ran {
    let agentd = home.agentd();
    let mut command = Command::new("unshare");
    command.args(["-Urmpf", "--mount-proc", "sh", "-c"]);
    command.arg(format!("{before} && exec \"$0\" {words}")).arg(agentd.get_program()).env_clear();
    command.envs(agentd.get_envs().filter_map(|(name, value)| Some((name, value?))));
    run(&mut command)
}

/// Has the system call of the first argument answered with the errno of the second, and executes the rest.
const LACKING: &str = "
import ctypes, os, struct, sys
call, errno = int(sys.argv[1]), int(sys.argv[2])
code = struct.pack('HBBI' * 4, 0x20, 0, 0, 0, 0x15, 0, 1, call, 6, 0, 0, 0x50000 | errno, 6, 0, 0, 0x7fff0000)
code = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', 4, ctypes.addressof(code)))
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, program, 0, 0) == 0
os.execv(sys.argv[3], sys.argv[3:])
";

/// `agentd WORDS` where `call` fails with `errno`, as on a kernel that lacks it.
fn lacking(home: &Home, call: libc::c_long, errno: i32, words: &str) -> Ran {
    let agentd = home.agentd();
    let mut command = Command::new("python3");
    command.args(["-c", LACKING]).args([call.to_string(), errno.to_string()]).env_clear();
    command.arg(agentd.get_program()).args(words.split(' '));
    command.envs(agentd.get_envs().filter_map(|(name, value)| Some((name, value?))));
    run(&mut command)
}

fn findings(ran: &Ran) -> Vec<Value> {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}\n{ran}"))
}

#[track_caller]
fn of<'a>(subject: &str, findings: &'a [Value]) -> &'a Value {
    let found = findings.iter().find(|finding| finding["subject"] == subject);
    found.unwrap_or_else(|| panic!("no `{subject}` in {findings:#?}"))
}

/// That `agentd doctor` and `agentd run` both fail there, and that `subject` is what is said to be broken.
#[track_caller]
fn broken(before: &str, subject: &str, words: &[&str]) {
    let home = Home::new();
    let job = broken_where(|said| confined(&home, before, said), subject, words);
    assert!(job.stderr.contains("agentd doctor"), "{job}");
}

/// The same wherever `agentd` runs it; gives the job that failed.
#[track_caller]
fn broken_where(agentd: impl Fn(&str) -> Ran, subject: &str, words: &[&str]) -> Ran {
    let ran = agentd("doctor --format json").expect_code(1);
    let findings = findings(&ran);
    let broken: Vec<_> = findings.iter().filter(|finding| finding["verdict"] == "broken").collect();
    let [finding] = broken[..] else { panic!("expected one broken subject\n{ran}") };
    assert_eq!(finding["subject"], subject, "{ran}");
    let remedy = finding["remedy"].as_str().unwrap_or_default();
    assert!(!remedy.is_empty(), "{ran}");
    assert!(words.iter().all(|word| remedy.contains(word)), "expected {words:?} in {remedy:?}\n{ran}");
    let table = agentd("doctor").expect_code(1);
    assert!(table.stdout.contains(&format!("fix: {remedy}")), "{table}");
    assert!(table.stdout.ends_with("agentd run cannot work here\n"), "{table}");
    let job = agentd("run -q -- echo ran").expect_code(125);
    assert_eq!(job.stdout, "", "{job}");
    job
}

#[test]
fn a_host_that_can_run_jobs_is_told_so() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let before = home.paths();
    let ran = run(home.agentd().arg("doctor")).expect_success();
    assert_eq!(ran.stderr, "", "{ran}");
    assert!(ran.stdout.ends_with("agentd run works here\n"), "{ran}");
    for line in ran.stdout.lines().filter(|line| !line.starts_with("agentd run")) {
        let word = line.split(' ').next().unwrap();
        assert!(["ok", "limited"].contains(&word) || line.trim_start().starts_with("fix: "), "{line}");
    }
    assert_eq!(home.paths(), before, "the doctor left something behind");
    assert_eq!(run(home.run().arg("true")).code(), 0);
}

#[test]
fn the_json_form_has_every_subject() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let ran = run(home.agentd().args(["doctor", "--format", "json"])).expect_success();
    let findings = findings(&ran);
    let subjects: Vec<_> = findings.iter().map(|finding| finding["subject"].as_str().unwrap()).collect();
    let expected = [
        "kernel",
        "user",
        "user-namespaces",
        "tmpfs",
        "network",
        "overlay",
        "dev",
        "proc",
        "landlock",
        "seccomp",
        "store",
        "records",
        "cgroups",
        "processes",
        "open-files",
        "id-ranges",
        "box",
    ];
    assert_eq!(subjects, expected);
    for finding in &findings {
        assert!(!finding["found"].as_str().unwrap().is_empty(), "{finding}");
        let has_remedy = finding["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty());
        assert!(has_remedy || finding["remedy"].is_null(), "{finding}");
        assert_eq!(has_remedy, finding["verdict"] != "ok", "{finding}");
        assert_eq!(finding.as_object().unwrap().len(), 4, "{finding}");
    }
    for subject in ["user-namespaces", "overlay", "proc", "network", "seccomp", "box"] {
        assert_eq!(of(subject, &findings)["verdict"], "ok", "{ran}");
    }
    // Landlock's is the kernel's own answer, and a box uses what agentd knows of it.
    let ask = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))";
    let abi: u64 = run(Command::new("python3").args(["-c", ask])).expect_success().stdout.trim().parse().unwrap();
    let landlock = of("landlock", &findings);
    assert_eq!(landlock["verdict"], if abi >= 6 { "ok" } else { "limited" }, "{landlock}");
    let found = landlock["found"].as_str().unwrap();
    assert_eq!(found.split(':').next(), Some(format!("ABI {abi}").as_str()));
    let plan = run(home.run().args(["--dry-run", "--format", "json", "true"])).expect_success();
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    assert_eq!(plan["box"]["landlock"]["abi"], abi.min(7), "{found}");
}

#[test]
fn forbidden_user_namespaces_are_explained() {
    if require(Feature::Userns) {
        broken(
            "echo 0 > /proc/sys/user/max_user_namespaces",
            "user-namespaces",
            &["sysctl -w user.max_user_namespaces="],
        );
    }
}

#[test]
fn forbidden_network_namespaces_are_explained() {
    if require(Feature::Userns) {
        broken("echo 0 > /proc/sys/user/max_net_namespaces", "network", &["sysctl -w user.max_net_namespaces="]);
    }
}

#[test]
fn a_masked_proc_is_explained() {
    if require(Feature::Userns) {
        broken("mount -t tmpfs none /proc/irq", "proc", &["uncover /proc/irq"]);
    }
}

/// No layer is optional: where the kernel lacks one, nothing runs.
#[test]
fn a_kernel_without_a_layer_is_explained_and_runs_nothing() {
    if !require(Feature::Userns) {
        return;
    }
    let (ask, enforce) = (libc::SYS_landlock_create_ruleset, libc::SYS_landlock_restrict_self);
    for (call, errno, subject, remedy, said, jobs) in [
        (ask, libc::EOPNOTSUPP, "landlock", "lsm=", "confine with Landlock", 0),
        (ask, libc::ENOSYS, "landlock", "", "confine with Landlock", 0),
        (enforce, libc::ENOSYS, "landlock", "", "cannot restrict with Landlock (landlock_restrict_self)", 1),
        (libc::SYS_seccomp, libc::ENOSYS, "seccomp", "", "cannot load the seccomp program", 1),
        (libc::SYS_clone3, libc::ENOSYS, "user-namespaces", "", "cannot create namespaces", 0),
    ] {
        let home = Home::new();
        let job = broken_where(|words| lacking(&home, call, errno, words), subject, &[remedy]);
        // Boot parameters, or what else this host allows.
        job.expect_one_error_line(&[said, if call == ask { "lsm=" } else { "agentd doctor" }]);
        let kept = home.jobs();
        assert!(kept.len() == jobs && kept.iter().all(|job| job["state"] == "failed"), "{subject}: {kept:?}");
    }
}

#[test]
fn records_that_cannot_be_written_stop_jobs_and_a_store_that_cannot_does_not() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    let ran = run(home.agentd().args(["doctor", "--format", "json"]).env("XDG_STATE_HOME", &file)).expect_code(1);
    assert_eq!(of("records", &findings(&ran))["verdict"], "broken", "{ran}");
    assert_eq!(of("store", &findings(&ran))["verdict"], "ok", "{ran}");
    assert_eq!(run(home.run().arg("true").env("XDG_STATE_HOME", &file)).code(), 125);

    let ran = run(home.agentd().args(["doctor", "--format", "json"]).env("AGENTD_STORE", &file)).expect_success();
    let without = findings(&ran);
    assert_eq!(of("store", &without)["verdict"], "limited", "{ran}");
    assert!(of("store", &without)["remedy"].as_str().unwrap().contains("AGENTD_STORE"), "{ran}");
    assert_eq!(run(home.run().arg("true").env("AGENTD_STORE", &file)).code(), 0);

    let ran = run(home.agentd().args(["doctor", "--format", "json"]).env("XDG_DATA_HOME", &file)).expect_success();
    let elsewhere = findings(&ran);
    assert_eq!(of("store", &elsewhere)["verdict"], "ok", "{ran}");
    assert!(of("store", &elsewhere)["found"].as_str().unwrap().starts_with("/var/tmp/agentd-"), "{ran}");
}

#[track_caller]
fn attacks(ran: &Ran) -> Vec<Value> {
    let attacks = findings(ran);
    assert!(attacks.len() > 60, "{ran}");
    attacks
}

/// The layers that are said to stop `attack`, each alone.
#[track_caller]
fn layers<'a>(attack: &str, attacks: &'a [Value]) -> Vec<&'a str> {
    let found = attacks.iter().find(|found| found["attack"] == attack);
    let found = found.unwrap_or_else(|| panic!("no `{attack}` in {attacks:#?}"));
    assert_eq!(found["verdict"], "stopped", "{found}");
    found["stopped_by"].as_array().unwrap().iter().map(|stop| stop["layer"].as_str().unwrap()).collect()
}

const LAYERS: [&str; 9] = [
    "seccomp",
    "landlock",
    "own-root",
    "read-only",
    "network",
    "limits",
    "no-capabilities",
    "not-dumpable",
    "pid-namespace",
];

/// What works without layers, and no single one stops it: agentd leaves no descriptor open, and root may change the mode of
/// its own device in every namespace.
const BY_NONE_ALONE: [&str; 2] = ["descriptors", "device-mode"];

#[test]
fn every_attack_is_stopped_and_the_layers_that_stop_it_are_named() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    std::fs::write(home.path().join("canary"), "canary").unwrap();
    let before = home.paths();
    let ran = run(home.agentd().args(["doctor", "--attack", "--format", "json"])).expect_success();
    assert!(ran.took.as_secs() < 40, "{ran}");
    let attacks = attacks(&ran);
    for attack in &attacks {
        let verdict = attack["verdict"].as_str().unwrap();
        assert!(["stopped", "not-tried"].contains(&verdict), "{attack}");
        assert_eq!(attack["reason"].is_string(), verdict == "not-tried", "{attack}");
        assert_eq!(attack.as_object().unwrap().len(), 9, "{attack}");
        let stopped_by = attack["stopped_by"].as_array().unwrap();
        assert!(stopped_by.iter().all(|stop| LAYERS.contains(&stop["layer"].as_str().unwrap())), "{attack}");
        // What works without layers is stopped by one.
        let alone = !BY_NONE_ALONE.contains(&attack["attack"].as_str().unwrap());
        assert!(attack["works_without"] != true || !alone || !stopped_by.is_empty(), "{attack}");
    }
    assert!(attacks.iter().filter(|attack| attack["works_without"] == true).count() > 35, "{ran}");
    // There nobody looks into what is not his child, rights or no rights.
    let yama = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").is_ok_and(|scope| scope.trim() != "0");
    let memory: &[&str] = if yama { &["no-capabilities", "not-dumpable"] } else { &["not-dumpable"] };
    for (names, stopped_by) in [
        ("private-file", &["own-root"][..]),
        ("pid-1-memory pid-1-vm trace-pid-1 write-pid-1 channel", memory),
        ("write-root write-etc", &["read-only", "landlock"]),
        ("mount umount mount-setattr fsopen open-tree remount mount-cgroup", &["seccomp", "no-capabilities"]),
        ("setns chroot pivot-root host-name raw-socket", &["seccomp", "no-capabilities"]),
        ("unshare-user clone-user clone3-user personality set-user-id", &["seccomp"]),
        ("capabilities", &["no-capabilities"]),
        ("loopback-tcp", &["network"]),
        ("abstract-socket", &["network", "landlock"]),
        ("signal-host outlive", &["pid-namespace"]),
    ] {
        for name in names.split(' ') {
            assert_eq!(layers(name, &attacks), stopped_by, "{name}");
        }
    }
    assert_eq!(home.paths(), before, "the doctor left something behind");
}

#[test]
fn attacks_are_told_a_line_each() {
    if !require(Feature::Userns) {
        return;
    }
    let ran = run(Home::new().agentd().args(["doctor", "--attack"])).expect_success();
    assert_eq!(ran.stderr, "", "{ran}");
    let (last, lines) =
        ran.stdout.lines().collect::<Vec<_>>().split_last().map(|(l, rest)| (*l, rest.to_vec())).unwrap();
    assert!(last.contains(" attacks stopped, 0 succeeded"), "{ran}");
    assert!(lines.iter().all(|line| line.starts_with("STOPPED   ") || line.starts_with("NOT TRIED ")), "{ran}");
    let user = lines.iter().find(|line| line.contains(" unshare-user ")).unwrap();
    assert!(user.contains("makes a user namespace of its own: EPERM"), "{user}");
}

/// A host on which nothing can be boxed is not called safe.
#[test]
fn attacks_without_a_box_are_no_success() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let before = "echo 0 > /proc/sys/user/max_user_namespaces";
    let ran = confined(&home, before, "doctor --attack --format json").expect_code(1);
    let attacks = attacks(&ran);
    assert!(
        attacks.iter().all(|attack| ["unknown", "not-tried"].contains(&attack["verdict"].as_str().unwrap())),
        "{ran}"
    );
}

/// What a trial box runs tries nothing anywhere else, whoever asks.
#[test]
fn attacks_are_not_made_by_hand() {
    let home = Home::new();
    let refused = |ran: Ran| {
        assert_eq!(ran.code(), 125, "{ran}");
        assert!(ran.stderr.contains("in a trial box of `agentd doctor --attack` only"), "{ran}");
    };
    refused(run(home.agentd().args(["doctor", "--from-inside"])));
    // Over a channel too: its other end is in the same pid namespace.
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let file = home.path().join("made");
    rustix::net::send(&ours, format!("create={}", file.display()).as_bytes(), rustix::net::SendFlags::empty()).unwrap();
    refused(run(home.agentd().args(["doctor", "--from-inside"]).stdin(theirs)));
    drop(ours);
}
