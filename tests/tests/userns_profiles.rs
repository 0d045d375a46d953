//! Profiles at work: what each lets through and stops, in the box, by the kernel's own word.
//!
//! Each refusal is also tried where it works: natively, in bare namespaces, or under another profile.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use agentd_tests::attack::{Attack, Control, INSIDE, assert_refused, in_namespaces, natively};
use agentd_tests::{Feature, Home, is_root, require, run, skip_without};

use Control::{AsRoot, InNamespaces, Natively, Nowhere};

/// Whether the machine has a program where a box looks for it.
fn has(program: &str) -> bool {
    let there = ["/usr/local/bin", "/usr/bin"].iter().any(|at| fs::metadata(Path::new(at).join(program)).is_ok());
    if !there {
        skip_without(&[program], &format!("{program} is not installed"));
    }
    there
}

/// `agentd run --profile nested` is for ordinary users.
fn nested() -> bool {
    require(Feature::Userns) && require(Feature::OrdinaryUser)
}

const BWRAP: &str = "bwrap --ro-bind / / --unshare-all --die-with-parent --proc /proc --dev /dev --tmpfs /tmp \
                     sh -c 'echo in; touch /tmp/x && ls /tmp; head -c 3 /proc/1/comm; touch /run/x || echo read-only'";

#[test]
fn userns_a_sandbox_of_the_payloads_own_works_under_nested_only() {
    if !nested() || !has("bwrap") {
        return;
    }
    let home = Home::new();
    let said = home.said(&["--profile", "nested"], &format!("{BWRAP} 2>/dev/null"));
    assert_eq!(said, "in\nx\nbwrread-only\n");
    for profile in ["default", "strict"] {
        let ran = home.sh(&["--profile", profile], BWRAP).expect_code(1);
        assert!(ran.stderr.contains("No permissions to create new namespace"), "{ran}");
    }
}

/// The price of `nested` is said, on the screen and in the record.
#[test]
fn userns_nested_says_what_it_leaves_out() {
    if !nested() {
        return;
    }
    let home = Home::new();
    let ran = run(home.run().args(["--profile", "nested", "--", "true"])).expect_success();
    assert!(ran.stderr.contains("Landlock guards no file"), "{ran}");
    let record = &home.jobs()[0];
    assert_eq!(record["enforced"]["seccomp"], "nested");
    assert_eq!(record["enforced"]["landlock_rights"], serde_json::json!(["signals", "abstract-sockets"]));
    assert!(record["warnings"][0].as_str().unwrap().contains("Landlock guards no file"), "{record}");
}

#[test]
fn userns_nested_is_not_for_roots_jobs() {
    if !require(Feature::Userns) || !require(Feature::Root) {
        return;
    }
    let ran = run(Home::new().run().args(["--profile", "nested", "--", "true"])).expect_code(125);
    ran.expect_one_error_line(&["profile nested", "run agentd as an ordinary user"]);
}

/// In namespaces made inside, the payload is root of nothing that it was not given.
#[test]
fn escape_the_walls_stand_in_namespaces_made_inside() {
    if !nested() {
        return;
    }
    let home = Home::new();
    let workspace = home.workspace();
    fs::write(workspace.join("kept"), "as it was").unwrap();
    let outside = home.path().join("outside");
    fs::write(&outside, "secret").unwrap();
    let bound = format!("{}:ro", workspace.display());
    let nested = ["--profile", "nested", "--workspace", &bound];
    let script = format!(
        "mount -t tmpfs none /tmp && echo mounts; \
         for path in / /usr /workspace; do mount -o remount,bind,rw $path && echo remounted $path; done; \
         for path in /workspace /proc /usr /dev /sys; do umount -l $path && echo uncovered $path; done; \
         touch /workspace/new /workspace/kept && echo wrote; touch /usr/new && echo wrote; \
         cat {} && echo read; echo x > /proc/sys/kernel/core_pattern && echo switched; \
         cat /proc/1/environ && echo supervisor; kill -9 1 && echo killed; true",
        outside.display()
    );
    let said = home.said(&nested, &format!("unshare --user --map-root-user --mount sh -c '{script}' 2>/dev/null"));
    assert_eq!(said, "mounts\n");
    // A user namespace of one's own counts its processes for those above it, too.
    let bomb = format!("unshare --user --map-root-user {INSIDE} forks=5000");
    assert_eq!(home.said(&["--profile", "nested"], &bomb), "EAGAIN\n");
    assert_eq!(fs::read_to_string(workspace.join("kept")).unwrap(), "as it was");
    assert!(fs::metadata(workspace.join("new")).is_err());
}

/// What no sandbox needs of a namespace stays closed, also with every capability over it.
#[test]
fn escape_nested_opens_mounts_and_namespaces_and_nothing_else() {
    if !nested() {
        return;
    }
    let home = Home::new();
    let attacks = [
        // In the box's own namespaces there is still no capability.
        Attack::new("unshare-mount", "EPERM", InNamespaces),
        Attack::new("mount=/sys", "EPERM", InNamespaces),
        Attack::new("hostname", "EPERM", InNamespaces),
        Attack::new("chroot=/", "EPERM", InNamespaces),
        Attack::new("setns", "EPERM", InNamespaces),
        Attack::new("clone3-user", "ENOSYS", Natively),
        Attack::new("fsopen", "ENOSYS", InNamespaces),
        Attack::new("open-tree=/proc", "ENOSYS", InNamespaces),
        Attack::new("mount-setattr=/proc", "ENOSYS", InNamespaces),
        Attack::new("io-uring", "ENOSYS", Natively),
        Attack::new("keyctl", "ENOSYS", Natively),
        Attack::new("userfaultfd", "EPERM", Natively),
        Attack::new("perf", "EPERM", Natively),
        Attack::new("bpf", "EPERM", AsRoot),
    ];
    assert_refused(&home, &["--profile", "nested"], &attacks);
    // What only works where one is root of a network: natively in bare namespaces, and in the box in namespaces of its own.
    let words = [
        "socket=2,3,1",
        "socket=17,3,0",
        "socket=16,3,12",
        "socket=16,3,6",
        "socket-option=0,64,0",
        "socket-option=41,64,0",
    ];
    let bare = in_namespaces(&words);
    assert_eq!(bare["socket=2,3,1"], "ok");
    assert_eq!(bare["socket=17,3,0"], "ok");
    for word in words {
        assert_ne!(bare[word], "EPERM", "{word}");
    }
    let script = format!("unshare --user --map-root-user --net {INSIDE} {} list=/", words.join(" "));
    let said = home.said(&["--profile", "nested"], &script);
    let refused = ["EPERM", "EAFNOSUPPORT", "EAFNOSUPPORT", "EAFNOSUPPORT", "EPERM", "EPERM"];
    let expected: Vec<String> = words.iter().zip(refused).map(|(word, errno)| format!("{word}\t{errno}")).collect();
    assert_eq!(said.lines().take(words.len()).collect::<Vec<_>>(), expected);
}

/// Landlock's scopes are the part of it that does not forbid mounts, and `nested` keeps them.
#[test]
fn escape_nested_keeps_landlocks_scopes() {
    if !nested() {
        return;
    }
    let home = Home::new();
    let name = format!("agentd-test-nested-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let word = format!("abstract={name}");
    assert_eq!(natively(&[&word])[&word], "ok");
    for profile in ["default", "nested"] {
        assert_eq!(home.attack(&["--net", "host", "--profile", profile], &[&word])[&word], "EPERM", "{profile}");
    }
}

/// Refused by `strict` and let through by `default`, where real programs ask for it.
#[test]
fn escape_strict_refuses_what_only_debuggers_and_servers_need() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let strict = [
        ("ptrace=child", "EPERM", "ok"),
        ("read-vm=child", "EPERM", "ok"),
        ("steal-descriptor=child", "EPERM", "ok"),
        ("message-queue", "ENOSYS", "ok"),
        ("vmsplice", "ENOSYS", "EBADF"),
        ("socket=16,3,0", "EAFNOSUPPORT", "ok"),
        ("socket-option=6,31,0", "EPERM", "errno 92|EOPNOTSUPP"),
        ("socket=1,1,0", "ok", "ok"),
        ("socket=2,1,6", "ok", "ok"),
        ("socket=10,2,17", "ok", "ok"),
        ("socket=2,3,1", "EPERM", "EPERM"),
        ("socket=2,1,262", "EPROTONOSUPPORT", "EPROTONOSUPPORT"),
        ("personality-32", "EPERM", "EPERM"),
    ];
    let words = strict.map(|(word, ..)| word);
    let (under_strict, under_default) = (home.attack(&["--profile", "strict"], &words), home.attack(&[], &words));
    for (word, refused, allowed) in strict {
        assert_eq!(under_strict[word], refused, "{word} under strict");
        assert!(allowed.split('|').any(|allowed| allowed == under_default[word]), "{word}: {}", under_default[word]);
    }
    // Landlock: /proc is written under `default`, where it is not read-only as a whole.
    if !is_root() {
        let write = "echo renamed > /proc/self/comm && echo written";
        assert_eq!(home.said(&[], write), "written\n");
        assert!(home.sh(&["--profile", "strict"], write).expect_code(2).stderr.contains("ermission denied"));
    }
}

#[test]
fn escape_interfaces_that_no_profile_opens() {
    if !require(Feature::Userns) {
        return;
    }
    let attacks = [
        Attack::new("personality-32", "EPERM", Natively),
        Attack::new("set-mm", "EPERM", Natively).outside("EINVAL"),
        Attack::new("io-uring-enter", "ENOSYS", Natively).outside("EBADF"),
        // Generic netlink and IPsec.
        Attack::new("socket=16,3,16", "EAFNOSUPPORT", Natively),
        Attack::new("socket=16,3,6", "EAFNOSUPPORT", Nowhere("not in every kernel")),
        Attack::new("tiocsti", "EPERM", Nowhere("escape_no_process_types_into_a_terminal has it")),
    ];
    let profiles = if is_root() { &["default", "strict"][..] } else { &["default", "strict", "nested"] };
    for profile in profiles {
        assert_refused(&Home::new(), &["--profile", profile], &attacks);
    }
}

#[test]
fn userns_ordinary_work_is_done_under_strict() {
    if !require(Feature::Userns) || !["git", "gcc", "python3", "node"].into_iter().all(has) {
        return;
    }
    let script = "set -e; cd /tmp; git init -q r; cd r; git config user.name a; git config user.email a@b; \
        echo 'int main(void) { return 0; }' > a.c; git add a.c; git commit -qm one; git checkout -q -b two; \
        echo '// x' >> a.c; git stash -q; git stash pop -q; git commit -qam two; git log --oneline | wc -l; \
        gcc -O2 -o a a.c; ./a; echo gcc; \
        python3 -c 'import multiprocessing, subprocess, socket, threading, sqlite3, tempfile; \
            print(sum(multiprocessing.Pool(2).map(abs, [-1, 2])), subprocess.run([\"true\"]).returncode, len(socket.getaddrinfo(\"localhost\", 80)) > 0)'; \
        node -e 'const { execFileSync } = require(\"child_process\"); const { Worker } = require(\"worker_threads\"); \
            console.log(execFileSync(\"true\").length); new Worker(\"require(\\\"worker_threads\\\").parentPort.postMessage(7)\", { eval: true }).on(\"message\", (m) => console.log(m))'";
    assert_eq!(Home::new().said(&["--profile", "strict"], script).trim(), "2\ngcc\n3 0 True\n0\n7");
}

const RULE: &str = "[[seccomp.rule]]\ngroup = \"mine\"\nreason = \"a test\"\n";

#[test]
fn userns_a_file_of_the_users_may_open_and_close() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let file = home.path().join("mine.toml");
    let text = format!(
        "schema = 1\nname = \"mine\"\nextends = \"default\"\n{RULE}syscalls = [\"keyctl\"]\nverdict = \"allow\"\n\
         {RULE}syscalls = [\"ptrace\"]\nverdict = \"EPERM\"\n[[path]]\npath = \"/proc\"\naccess = [\"read\"]\nreason = \"a test\"\n"
    );
    fs::write(&file, text).unwrap();
    let words = ["keyctl", "ptrace=child", "add-key", "socket=38,5,0"];
    let (plain, mine) = (home.attack(&[], &words), home.attack(&["--profile", file.to_str().unwrap()], &words));
    assert_eq!(words.map(|word| plain[word].as_str()), ["ENOSYS", "ok", "ENOSYS", "EAFNOSUPPORT"]);
    assert_eq!(words.map(|word| mine[word].as_str()), ["ok", "EPERM", "ENOSYS", "EAFNOSUPPORT"]);
}

#[test]
fn escape_a_workspaces_profile_only_takes_away() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let workspace = home.workspace();
    let directory = workspace.join(".agentd");
    fs::create_dir(&directory).unwrap();
    let file = directory.join("profile.toml");
    let bound = workspace.to_str().unwrap();
    let tightened = format!("schema = 1\n{RULE}syscalls = [\"ptrace\"]\nverdict = \"EPERM\"\n");
    fs::write(&file, &tightened).unwrap();
    let words = ["ptrace=child", "signal=child"];
    let said = home.attack(&["--workspace", bound], &words);
    assert_eq!(words.map(|word| said[word].as_str()), ["EPERM", "ok"]);
    let ran = run(home.run().args(["--workspace", bound, "--", "true"])).expect_success();
    assert!(ran.stderr.contains(".agentd/profile.toml tightens profile default"), "{ran}");

    // A workspace that asks for no writes gets none, by the mount and by Landlock.
    let read_only = format!("{tightened}[[path]]\npath = \"workspace\"\naccess = [\"read\"]\nreason = \"a test\"\n");
    fs::write(&file, read_only).unwrap();
    let write = "touch /workspace/new && echo wrote; touch /tmp/new && echo scratch";
    assert_eq!(home.said(&["--workspace", bound], write), "scratch\n");
    assert_eq!(home.said(&["--workspace", bound, "--writable"], write), "scratch\n");

    // Whatever it cannot say ends the start, and names the rule.
    let refused = |text: &str, words: &[&str]| {
        fs::write(&file, text).unwrap();
        let ran = run(home.run().args(["--workspace", bound, "--", "true"])).expect_code(125);
        ran.expect_one_error_line(&[&["workspace's .agentd/profile.toml", "mend or remove it"], words].concat());
    };
    refused(
        &format!("{tightened}{RULE}syscalls = [\"bpf\"]\nverdict = \"allow\"\n"),
        &["line 7", "group \"mine\" allows \"bpf\"", "may only refuse"],
    );
    refused("schema = 1\nextends = \"nested\"\n", &["line 2", "unknown field `extends`"]);
    refused(&format!("schema = 1\n#{}", "x".repeat(256 << 10)), &["at most 262144 bytes"]);
}

/// A file that is none must neither be followed nor waited for.
#[test]
fn escape_a_workspaces_profile_is_a_plain_file() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let workspace = home.workspace();
    let outside = home.path().join("outside");
    fs::create_dir(&outside).unwrap();
    // Sound, so that only the link can be what is wrong.
    fs::write(outside.join("profile.toml"), "schema = 1\n").unwrap();
    let started = || run(home.run().args(["-q", "--workspace", workspace.to_str().unwrap(), "--", "echo", "ran"]));
    assert_eq!(started().expect_success().stdout, "ran\n", "without one");
    let directory = workspace.join(".agentd");
    let refused = |words: &[&str]| {
        let ran = started().expect_code(125);
        ran.expect_one_error_line(&[&[".agentd/profile.toml cannot be read", "make it a plain file"], words].concat());
    };
    std::os::unix::fs::symlink(&outside, &directory).unwrap();
    refused(&["os error 40"]);
    fs::remove_file(&directory).unwrap();
    fs::create_dir(&directory).unwrap();
    let file = directory.join("profile.toml");
    std::os::unix::fs::symlink(outside.join("profile.toml"), &file).unwrap();
    refused(&["os error 40"]);
    fs::remove_file(&file).unwrap();
    assert!(run(std::process::Command::new("mkfifo").arg(&file)).status.success());
    refused(&["no regular file"]);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refused(&["no regular file"]);
    fs::remove_dir(&file).unwrap();
    fs::write(&file, b"schema = 1\n# \xff\n").unwrap();
    refused(&["UTF-8"]);
    fs::copy(outside.join("profile.toml"), &file).unwrap();
    assert_eq!(started().expect_success().stdout, "ran\n", "a sound one");
}
