//! What policy refuses is answered as the rule says, and told: at the end of a run, in `logs --denials`, in the record.

use agentd_tests::{Feature, Home, Ran, require, run};
use serde_json::Value;

/// Tries calls that policy refuses, and prints the errno of each; some of them several times.
const REFUSED: &str = "/attack unshare-user fsopen socket=40,2,0 socket=40,2,0 socket=38,5,0 bpf; exit 3";

/// Runs `script` with the attack program in a box, not quietly; gives what it said and its denials.
#[track_caller]
fn denials(home: &Home, flags: &[&str], script: &str) -> (Ran, Vec<Value>) {
    let mount = format!("type=bind,src={},dst=/attack", agentd_tests::attack::program().display());
    let mut command = home.run();
    let ran = run(command.args(["--mount", &mount]).args(flags).args(["--", "sh", "-c", script]));
    let id = run(home.agentd().args(["ps", "-aq"])).expect_success().stdout;
    let id = id.lines().next().unwrap_or_default();
    let told = run(home.agentd().args(["logs", "--denials", "--format", "json", id])).expect_success();
    let found: Value = told.stdout.parse().unwrap_or_default();
    (ran, found.as_array().cloned().unwrap_or_default())
}

fn summary(denials: &[Value]) -> Vec<String> {
    let row = |one: &Value| {
        assert!(one["program"] == "attack" && one["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{one}");
        format!("{} {} {}", one["syscall"], one["answer"], one["count"]).replace('"', "")
    };
    denials.iter().map(row).collect()
}

#[test]
fn cli_what_policy_refuses_is_told() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let (ran, found) = denials(&home, &["--name", "told"], REFUSED);
    let ran = ran.expect_code(3);
    // The same answers as from a filter nobody listens to.
    for answer in ["unshare-user\tEPERM", "fsopen\tEPERM", "socket=40,2,0\tEAFNOSUPPORT", "bpf\tEPERM"] {
        assert!(ran.stdout.contains(answer), "{answer}\n{ran}");
    }
    let expected =
        ["unshare EPERM 1", "fsopen EPERM 1", "socket EAFNOSUPPORT 2", "socket EAFNOSUPPORT 1", "bpf EPERM 1"];
    assert_eq!(summary(&found), expected);
    assert_eq!((&found[2]["arguments"][0]["number"], &found[2]["arguments"][0]["value"]), (&0.into(), &40.into()));
    // The flag that allows it, where one of agentd's own profiles does.
    assert_eq!((&found[0]["allow"], &found[4]["allow"]), (&"--profile nested".into(), &Value::Null));
    assert!(ran.stderr.contains("agentd: 6 calls refused by profile default: attack unshare("), "{ran}");
    assert_eq!(home.jobs()[0]["denials"], 6);
    let table = run(home.agentd().args(["logs", "--denials", "told"])).expect_success().stdout;
    assert!(
        table.contains("socket(0=0x28") && table.contains("agentd profile explain bpf --profile default"),
        "{table}"
    );
    assert!(table.contains("what would allow it: agentd run --profile nested\n"), "{table}");
    // Quiet is quiet; it is kept all the same.
    let (ran, found) = denials(&home, &["-q"], "/attack fsopen bpf");
    assert_eq!((ran.stderr.as_str(), found.len()), ("", 2));
}

/// What programs fall back from at each start is not a denial.
#[test]
fn cli_what_programs_expect_of_an_old_kernel_is_not_told() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let script = "/attack clone3-user io-uring keyctl; python3 -c 'import threading, subprocess, socket, ssl; \
                  subprocess.run([\"true\"]); threading.Thread(target=print).start()'; git init -q /tmp/r; \
                  cd /tmp/r && git -c user.name=a -c user.email=b commit -q --allow-empty -m x && ls -laR / >/dev/null 2>&1; \
                  exit 0";
    let (ran, found) = denials(&home, &[], script);
    let ran = ran.expect_success();
    assert!(ran.stdout.contains("ENOSYS"), "{ran}");
    assert_eq!(found, Vec::<Value>::new());
    assert!(!ran.stderr.contains("refused"), "{ran}");
    assert!(home.jobs()[0]["denials"].is_null());
}

/// However often, by however many names: the answer is an error each time, and what is kept has a bound.
#[test]
fn escape_a_flood_of_refused_calls_is_bounded_and_delays_nothing() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let script = "import ctypes, socket
libc = ctypes.CDLL(None)
for i in range(5000):
    libc.prctl(15, b'\\x1b[2J%d' % (i % 300), 0, 0, 0)
    try:
        socket.socket(40, 2, 0)
        print('opened')
    except OSError as error:
        assert error.errno == 97
print('done')";
    let (ran, found) = denials(&home, &[], &format!("python3 -c \"{script}\""));
    assert!(ran.stdout.ends_with("done\n") && !ran.stdout.contains("opened"), "{ran}");
    assert_eq!(found.len(), 100);
    assert_eq!(home.jobs()[0]["denials"], 5000);
    assert!(!ran.stderr.contains('\x1b'), "{ran}");
    let table = run(home.agentd().args(["logs", "--denials", home.jobs()[0]["id"].as_str().unwrap()]));
    assert!(!table.expect_success().stdout.contains('\x1b'));
    // A payload that never stops asking is still stopped in time.
    let forever = "import socket\nwhile True:\n    try: socket.socket(40, 2, 0)\n    except OSError: pass";
    let mut command = home.run();
    let ran = run(command.args(["--timeout", "1s", "--stop-timeout", "1s", "--", "python3", "-c", forever]));
    let _ran = ran.expect_code(124);
}

/// A profile under which nobody can tell refuses just the same.
#[test]
fn escape_a_profile_that_cannot_tell_refuses_all_the_same() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let profile = home.path().join("config/p.toml");
    let text = "schema = 1\nname = \"mute\"\nabout = \"x\"\nextends = \"default\"\n[[seccomp.rule]]\ngroup = \"x\"\n\
                syscalls = [\"sendmsg\"]\nverdict = \"EPERM\"\nreason = \"x\"\n";
    std::fs::write(&profile, text).unwrap();
    let (ran, found) = denials(&home, &["--profile", profile.to_str().unwrap()], "/attack fsopen bpf");
    let ran = ran.expect_success();
    assert!(ran.stdout.contains("fsopen\tEPERM") && ran.stdout.contains("bpf\tEPERM"), "{ran}");
    assert_eq!(found, Vec::<Value>::new());
    assert!(home.jobs()[0]["warnings"].to_string().contains("not told"), "{:?}", home.jobs());
}

/// A payload chooses what its threads are called: a secret, say. Neither denials nor what is learned keep that.
#[test]
fn escape_a_secret_as_a_threads_name_is_not_kept() {
    const VALUE: &str = "hunter2-hunter";
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    // What is learned, and what never is.
    let script = "import ctypes
libc = ctypes.CDLL(None)
libc.prctl(15, open('/run/secrets/TOKEN', 'rb').read(), 0, 0, 0)
libc.personality(8)
libc.unshare(0x10000000)
print(open('/proc/self/comm').read().strip())";
    let words = ["--secret", "TOKEN", "--", "python3", "-c", script];
    let ran = run(home.run().env("TOKEN", VALUE).args(["--name", "plain"]).args(words)).expect_success();
    assert_eq!(ran.stdout, format!("{VALUE}\n"));
    assert!(ran.stderr.contains("[redacted] unshare(") && !ran.stderr.contains(VALUE), "{ran}");
    let told = run(home.agentd().args(["logs", "--denials", "plain"])).expect_success().stdout;
    assert!(told.contains("  [redacted]  unshare("), "{told}");
    let learned = home.path().join("config/learned.toml");
    let mut command = home.agentd();
    command.env("TOKEN", VALUE).args(["profile", "learn", "-o"]).arg(&learned).args(words);
    let _ran = run(&mut command).expect_success();
    let text = std::fs::read_to_string(&learned).unwrap();
    assert!(text.contains("learned: ?redacted? used it once"), "{text}");
    for path in home.paths() {
        let kept = std::fs::read(home.path().join(&path)).unwrap_or_default();
        assert!(!kept.windows(VALUE.len()).any(|window| window == VALUE.as_bytes()), "{}", path.display());
    }
}

/// Puts itself under a filter that allows everything and has a listener, then executes its arguments.
const LISTENED_TO: &str = "
import ctypes, os, platform, struct, sys
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
allow = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000))
program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', 1, ctypes.addressof(allow)))
seccomp = {'x86_64': 317, 'aarch64': 277}[platform.machine()]
listener = libc.syscall(seccomp, 1, 8, program)
assert listener >= 0
os.set_inheritable(listener, True)
os.execv(sys.argv[1], sys.argv[1:])
";

/// There is one listener a process: under somebody else's, what is refused stays refused, and the record says that it is not
/// told.
#[test]
fn escape_below_the_listener_of_another_program_calls_are_refused_all_the_same() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let boxed = home.boxed(&[]);
    let mut command = std::process::Command::new("python3");
    command.env_clear().envs(boxed.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["-c", LISTENED_TO]).arg(boxed.get_program()).args(boxed.get_args());
    let ran = run(command.args(["sh", "-c", "/attack fsopen bpf"])).expect_success();
    assert!(ran.stdout.contains("fsopen\tEPERM") && ran.stdout.contains("bpf\tEPERM"), "{ran}");
    let job = &home.jobs()[0];
    assert!(job["denials"].is_null() && job["warnings"].to_string().contains("another program listens"), "{job}");
    // Where nobody can be asked, nothing is learned, and nothing runs.
    let learn = ["profile", "learn", "--", "sh", "-c", "echo ran"];
    let mut command = std::process::Command::new("python3");
    command.env_clear().envs(boxed.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ran = run(command.args(["-c", LISTENED_TO]).arg(boxed.get_program()).args(learn)).expect_code(125);
    assert!(ran.stdout.is_empty() && ran.stderr.contains("cannot load the seccomp program"), "{ran}");
}
