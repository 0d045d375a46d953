//! Two ways in from outside, and whether they are ways out: `agentd exec`, and the control socket (THREATS.md 6 and 8;
//! CVE-2019-5736, CVE-2024-21626, CVE-2025-27612 and their kind).
#![expect(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::fs::{self, Permissions};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use agentd_tests::attack::{INSIDE, in_namespaces, natively, outcomes, program};
use agentd_tests::kernel::Cgroup;
use agentd_tests::{Feature, Home, Started, require, run, wait_until};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, recvmsg, sendmsg, socket_with,
};
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

const PATIENCE: Duration = Duration::from_secs(60);

/// A job with the attack program in it.
fn job(home: &Home, flags: &[&str], script: &str) -> String {
    let mount = format!("type=bind,src={},dst={INSIDE}", program().display());
    home.detached(&[&["--mount", &mount], flags].concat(), script)
}

/// What a process says of itself, the same in every process that is confined the same.
const SELF: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:|Umask|Sig(Blk|Ign|Cgt))' /proc/self/status; \
    for ns in user mnt pid ipc uts cgroup net; do readlink /proc/self/ns/$ns; done; \
    sed 's/  */ /g' /proc/self/limits; env | grep -v ^_= | sort; pwd; ls -l /proc/self/fd | grep -vE 'pipe:|/dev/null|/proc/' | grep -c -- '->'; \
    cat /proc/self/uid_map /proc/self/gid_map; cat /proc/sys/kernel/hostname";

#[test]
fn escape_exec_is_confined_as_the_payload_is() {
    if !require(Feature::Userns) {
        return;
    }
    for flags in
        [&["-e", "A=b"][..], &["--user", "root", "--workdir", "/tmp"], &["--net", "host"], &["--profile", "strict"]]
    {
        let home = Home::new();
        let flags = [&["-q"], flags].concat();
        let id = job(&home, &flags, &format!("({SELF}) 2>&1; echo done; exec sleep 1000"));
        assert!(wait_until(PATIENCE, || home.say(&["logs", &id]).stdout.ends_with("done\n")));
        let payload = home.say(&["logs", &id]).expect_success().stdout;
        let ran = home.say(&["exec", &id, "sh", "-c", &format!("({SELF}) 2>&1; echo done")]).expect_success();
        assert_eq!(ran.stdout, payload, "{flags:?}");
        assert!(payload.contains("NoNewPrivs:\t1\n") && payload.contains("Seccomp:\t2\n"), "{payload}");
        assert!(payload.matches("\t0000000000000000\n").count() >= 5, "no capability in any set: {payload}");
    }
}

/// The system-call filter and Landlock are the payload's: the same attacks end the same way.
#[test]
fn escape_exec_is_refused_what_the_payload_is_refused() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let natively_possible = ["unshare-user", "io-uring", "keyctl", "userfaultfd", "clone-user", "perf", "file-handle"];
    let possible_with_capabilities =
        ["unshare-mount", "hostname", "mount=/sys", "remount-rw=/", "chroot=/", "umount=/proc"];
    let further =
        ["setns", "bpf", "tiocsti", "socket=38,5,0", "setuid-0", "capabilities", "list=/root", "unshare-user-high"];
    let words = [&natively_possible[..], &possible_with_capabilities, &further].concat();
    let id = job(&home, &["-q"], "exec sleep 1000");
    let by_exec = outcomes(&words, |words| run(home.agentd().args(["exec", &id, INSIDE]).args(words)));
    let by_payload = home.attack(&[], &words);
    assert_eq!(by_exec, by_payload);
    let refused = |word: &&str| by_exec[*word] != "ok";
    assert!(words.iter().all(refused), "{by_exec:?}");
    let told = home.say(&["logs", "--denials", &id]).expect_success().stdout;
    assert!(
        told.contains("attack  unshare()  EPERM") && told.contains("bpf()"),
        "what is refused to a command is told: {told}"
    );
    assert!(natively(&natively_possible).values().all(|outcome| outcome == "ok"));
    assert!(in_namespaces(&possible_with_capabilities).values().all(|outcome| outcome == "ok"));
}

/// What the help shows works as it stands.
#[test]
fn cli_the_examples_of_exec_work() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let id = home.detached(&[], "exec sleep 1000");
    let help = home.say(&["exec", "--help"]).expect_success().stdout;
    let examples: Vec<&str> = help.lines().filter_map(|line| line.trim().strip_prefix("agentd exec JOB ")).collect();
    assert!(!examples.is_empty(), "{help}");
    for example in examples {
        let words: Vec<&str> = ["exec", &id].into_iter().chain(example.split(' ')).collect();
        let ran = home.say(&words).expect_silent_success();
        assert!(!ran.stdout.is_empty() && !example.starts_with("ps"), "it sees no process of the job: {ran}");
    }
}

/// Landlock is on a command as it is on the payload: nothing else here refuses these two.
#[test]
fn escape_exec_is_under_the_payloads_landlock() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let name = format!("agentd-test-exec-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let word = format!("abstract={name}");
    assert_eq!(natively(&[&word])[&word], "ok", "who is under no Landlock reaches it");
    let id = job(&home, &["-q", "--net", "host"], "exec sleep 1000");
    let by_exec = outcomes(&[&word], |words| run(home.agentd().args(["exec", &id, INSIDE]).args(words)));
    assert_eq!(by_exec[&word], "EPERM");
    // Root's /proc is read-only as a whole.
    if agentd_tests::is_root() {
        return;
    }
    let write = "echo renamed > /proc/self/comm && echo written";
    let lax = job(&home, &["-q"], "exec sleep 1000");
    assert_eq!(home.say(&["exec", &lax, "sh", "-c", write]).expect_silent_success().stdout, "written\n");
    let strict = job(&home, &["-q", "--profile", "strict"], "exec sleep 1000");
    let refused = home.say(&["exec", &strict, "sh", "-c", write]).expect_code(2);
    assert!(refused.stderr.contains("ermission denied") && refused.stdout.is_empty(), "{refused}");
}

/// Tries on every process it can see what the payload of CVE-2019-5736 did: the program, the memory, what is open, the
/// root, and to stop it; says which worked on a process that is not its own.
const GRAB: &str = r#"
while [ ! -e "$1/stop" ]; do
    for p in /proc/[0-9]*; do
        pid=${p#/proc/}
        case " $$ $own " in *" $pid "*) continue;; esac
        [ "$(cut -d' ' -f4 $p/stat 2>/dev/null)" = $$ ] && continue
        exe=$(readlink $p/exe 2>/dev/null) && case $exe in *agentd*) echo "exe $pid $exe";; esac
        (exec 3<>$p/mem) 2>/dev/null && case $(tr '\0' ' ' < $p/cmdline 2>/dev/null) in *agentd*) echo "mem $pid";; esac
        for fd in $p/fd/*; do
            to=$(readlink $fd 2>/dev/null) && case $to in *agentd*|*/jobs/*|*sock*) echo "fd $pid $to";; esac
        done
        [ -e $p/root/proc/self ] && case $(cat $p/environ 2>/dev/null | tr '\0' ' ') in *CANARY*) echo "environ $pid";; esac
    done
done
echo over
"#;

#[test]
fn escape_exec_cannot_be_grabbed_on_its_way_in() {
    if !require(Feature::Userns) {
        return;
    }
    // In another cgroup than its callers are in, it is the supervisor that starts what enters.
    let elsewhere = agentd_tests::is_root().then(Cgroup::new).flatten();
    for (user, cgroup) in [("1000", None), ("root", None), ("1000", elsewhere)] {
        let home = Home::new();
        let workspace = home.workspace().display().to_string();
        let flags = ["--user", user, "--workspace", &workspace];
        let mut words = vec!["run", "-d"];
        words.extend(flags);
        words.extend(["--", "sh", "-c", GRAB, "sh", "/workspace"]);
        let mut job = home.agentd();
        job.args(words);
        if let Some(cgroup) = &cgroup {
            job = cgroup.around(&job);
        }
        let id = run(&mut job).expect_silent_success().stdout.trim_end().to_owned();
        for _ in 0..60 {
            let mut exec = home.agentd();
            exec.env("CANARY", "of the host");
            let _ran = run(exec.args(["exec", &id, "true"])).expect_silent_success();
        }
        std::fs::write(home.workspace().join("stop"), "").unwrap();
        let _ran = home.say(&["wait", &id]).expect_success();
        assert_eq!(home.say(&["logs", &id]).expect_success().stdout, "over\n", "as {user}");
    }
    // The same words find an agentd that is not protected: one of the same user, outside.
    let home = Home::new();
    let mut waiting = Started::new(home.agentd().env("CANARY", "of the host").args([
        "run",
        "--",
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ]));
    waiting.wait_for("up\n");
    let mut grab = Started::new(Command::new("sh").args(["-c", GRAB, "sh"]).arg(home.workspace()));
    grab.wait_for("exe ");
    grab.wait_for("environ ");
    std::fs::write(home.workspace().join("stop"), "").unwrap();
    let found = grab.finish().expect_success().stdout;
    for what in ["mem ", "fd "] {
        assert!(found.contains(what), "{what}: {found}");
    }
}

/// A payload that may make namespaces must not choose those that a command of the user's enters.
#[test]
fn escape_exec_does_not_follow_a_payload_into_namespaces_of_its_own() {
    if !require(Feature::Userns) || !require(Feature::OrdinaryUser) {
        return;
    }
    let home = Home::new();
    let id = home.detached(
        &["-q", "--profile", "nested"],
        "exec unshare --user --map-root-user sh -c 'echo ready; exec sleep 1000'",
    );
    assert!(wait_until(PATIENCE, || home.say(&["logs", &id]).stdout == "ready\n"), "{}", home.say(&["logs", &id]));
    home.say(&["exec", &id, "true"]).expect_code(125).expect_one_error_line(&["namespace", "not the box's own"]);
    let id = home.detached(&["-q", "--profile", "nested"], "echo ready; exec sleep 1000");
    let _ran = home.say(&["exec", &id, "true"]).expect_silent_success();
}

#[test]
fn escape_the_control_socket_is_out_of_reach() {
    if !require(Feature::Userns) {
        return;
    }
    for flags in [&[][..], &["--net", "host"], &["--writable"], &["--user", "root"]] {
        let home = Home::new();
        let workspace = home.workspace().display().to_string();
        let flags = [&["-q", "--workspace", &workspace], flags].concat();
        let id = home.detached(&flags, "exec sleep 1000");
        // Made by whoever asks first.
        let _ran = home.say(&["exec", &id, "true"]).expect_silent_success();
        let socket = home.state().join("jobs").join(&id).join("control.sock");
        assert!(ask(&socket, b"\"describe\"\n").contains("terminal"), "from outside it answers");
        let look = "find / -name 'control.sock*' 2>/dev/null; grep -c control.sock /proc/net/unix; ls -d $0";
        let seen = home.say(&["exec", &id, "sh", "-c", look, &socket.display().to_string()]);
        // With the host's network its table of sockets is there, in which only its name stands.
        let lines: Vec<_> = seen.stdout.lines().filter(|line| line.contains('/')).collect();
        assert!(lines.is_empty(), "{flags:?}: {seen}");
        let metadata = std::os::unix::fs::MetadataExt::mode(&socket.symlink_metadata().unwrap());
        assert_eq!(metadata & 0o777, 0o600);
    }
}

/// Whom the socket's mode would let in, the kernel names all the same.
#[test]
fn escape_the_control_socket_hears_its_own_user_only() {
    if !require(Feature::Userns) || !require(Feature::Root) {
        return;
    }
    let home = Home::new();
    let id = home.detached(&[], "exec sleep 1000");
    let _ran = home.say(&["exec", &id, "true"]).expect_silent_success();
    let socket = home.state().join("jobs").join(&id).join("control.sock");
    for path in socket.ancestors().take_while(|path| path.starts_with(home.path())) {
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }
    let asked_as = |uid: u32| {
        let ask = || {
            let uid = Uid::from_raw(uid);
            // Of this thread alone.
            set_thread_res_uid(uid, uid, uid).unwrap();
            ask(&socket, b"\"describe\"\n")
        };
        thread::scope(|scope| scope.spawn(ask).join().unwrap())
    };
    assert!(asked_as(0).contains("terminal"));
    assert_eq!(asked_as(65534), "");
}

fn to(socket: &Path) -> OwnedFd {
    let connected = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    connect(&connected, &SocketAddrUnix::new(socket).unwrap()).unwrap();
    connected
}

/// What the supervisor answers; nothing when it hangs up.
fn ask(socket: &Path, words: &[u8]) -> String {
    let socket = to(socket);
    if sendmsg(&socket, &[IoSlice::new(words)], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL).is_err() {
        return String::new();
    }
    let mut answer = [0; 4096];
    let received =
        recvmsg(&socket, &mut [IoSliceMut::new(&mut answer)], &mut RecvAncillaryBuffer::default(), RecvFlags::empty());
    String::from_utf8_lossy(&answer[..received.map_or(0, |received| received.bytes)]).into_owned()
}

#[test]
fn escape_nonsense_on_the_control_socket_is_refused_and_bounded() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let id = home.detached(&[], "exec sleep 1000");
    let _ran = home.say(&["exec", &id, "true"]).expect_silent_success();
    let socket = home.state().join("jobs").join(&id).join("control.sock");
    for nonsense in [
        &b"x"[..],
        b"{}",
        b"\xff\xfe\n",
        b"{\"signal\":{\"number\":0}}",
        b"{\"signal\":{\"number\":65}}",
        b"{\"signal\":{\"number\":99999999999}}",
        b"{\"attach\":{\"stream\":\"stdout\"}}",
        b"{\"stop\":{\"grace_ms\":-1}}",
        b"\"listen\"",
        b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    ] {
        assert!(ask(&socket, nonsense).starts_with("{\"refused\":"), "{}", String::from_utf8_lossy(nonsense));
    }
    assert_eq!(ask(&socket, &vec![b'x'; 9000]), "", "too long to be heard");
    // More callers than are heard, none of which says anything; then one that goes.
    let silent: Vec<_> = (0..300).map(|_| to(&socket)).collect();
    drop(silent);
    assert!(ask(&socket, b"\"describe\"").contains("\"terminal\":false"));
    assert_eq!(home.record(&id)["state"], "running");
    let mut other = Command::new(agentd_tests::agentd());
    let _ended = other.arg("--version").stdout(Stdio::null()).status().unwrap();
}
