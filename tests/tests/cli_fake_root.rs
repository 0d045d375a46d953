//! `agentd run --fake-root`: package managers work for an ordinary user with one id, and nothing that must not come of it does.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use agentd_tests::debian::{self, Mirror};
use agentd_tests::oci::{Compression, Image, Layer};
use agentd_tests::{Feature, Home, Ran, Started, is_root, require, run, skip_without};
use serde_json::Value;

const FAKE_ROOT: [&str; 2] = ["--fake-root", "--writable"];

/// The denials of the newest job.
#[track_caller]
fn denials(home: &Home) -> Vec<String> {
    let id = home.jobs()[0]["id"].as_str().unwrap().to_owned();
    let told = run(home.agentd().args(["logs", "--denials", "--format", "json", &id])).expect_success();
    let found: Value = told.stdout.parse().unwrap_or_default();
    let row = |one: &Value| format!("{} {} {}", one["program"], one["syscall"], one["answer"]).replace('"', "");
    found.as_array().into_iter().flatten().map(row).collect()
}

/// Runs a script as the fake root of the machine's own software.
#[track_caller]
fn on_host(home: &Home, flags: &[&str], script: &str) -> Ran {
    let mut command = home.run();
    run(command.args(FAKE_ROOT).args(flags).args(["--", "sh", "-c", script]))
}

/// What a Debian needs to install more of itself.
const BASE: [&str; 26] = [
    "adduser",
    "apt",
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "debian-archive-keyring",
    "debianutils",
    "diffutils",
    "dpkg",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "init-system-helpers",
    "libc-bin",
    "login",
    "mawk",
    "ncurses-base",
    "passwd",
    "perl-base",
    "sed",
    "tar",
    "usr-is-merged",
    "util-linux",
];

/// As debootstrap does it.
const SECOND_STAGE: &str = "set -e; export DEBIAN_FRONTEND=noninteractive; cd /debs
dpkg --force-depends --install base-passwd_*.deb
dpkg --force-depends --install base-files_*.deb
dpkg --force-depends --unpack *.deb
dpkg --configure -a";

/// The packages' files, in no way installed: what dpkg needs to run.
fn first_stage(mirror: &Mirror, archives: &[PathBuf], tree: &Path) {
    for name in ["bin", "lib", "lib64", "sbin"] {
        fs::create_dir_all(tree.join("usr").join(name)).unwrap();
        symlink(format!("usr/{name}"), tree.join(name)).unwrap();
    }
    for archive in archives {
        debian::unpack(archive, tree);
    }
    // What the packages bring has to come of the box.
    drop(
        run(Command::new("find").arg(tree).args(["-perm", "/6000", "-exec", "chmod", "ug-s", "{}", "+"]))
            .expect_success(),
    );
    for name in ["passwd", "group"] {
        fs::copy(tree.join(format!("usr/share/base-passwd/{name}.master")), tree.join("etc").join(name)).unwrap();
    }
    symlink("mawk", tree.join("usr/bin/awk")).unwrap();
    fs::write(tree.join("etc/apt/sources.list"), mirror.sources()).unwrap();
    fs::create_dir_all(tree.join("var/lib/dpkg/info")).unwrap();
    fs::create_dir_all(tree.join("var/lib/dpkg/updates")).unwrap();
    for name in ["status", "available"] {
        fs::write(tree.join("var/lib/dpkg").join(name), "").unwrap();
    }
}

/// A Debian installs itself from nothing but its packages; then, kept as an image, installs more from the mirror.
#[test]
fn cli_fake_root_installs_debian_packages() {
    if !require(Feature::Userns) {
        return;
    }
    let Some(mirror) = Mirror::require() else { return };
    let home = Home::new();
    let archives = mirror.closure(&BASE);
    let tree = home.path().join("tree");
    first_stage(&mirror, &archives, &tree);
    let layout = home.path().join("img");
    Image::new().layer(Layer::Tree(tree.clone()), Compression::Plain).write(&layout, "latest").unwrap();
    fs::remove_dir_all(&tree).unwrap();

    // Offline: dpkg and the packages' own scripts.
    let debs = format!("type=bind,src={},dst=/debs", archives[0].parent().unwrap().display());
    let mut command = home.run();
    command.args(FAKE_ROOT).args(["-q", "--keep", "--name", "base", "--mount", &debs]);
    command.args(["--image", &format!("oci:{}", layout.display()), "--", "sh", "-c", SECOND_STAGE]);
    drop(run(&mut command).expect_success());
    assert_eq!(denials(&home), Vec::<String>::new());
    drop(run(home.agentd().args(["commit", "-q", "base", "debian"])).expect_success());

    let debian = |flags: &[&str], script: &str| {
        let mut command = home.run();
        run(command.args(["-q", "--image", "debian"]).args(flags).args(["--", "sh", "-c", script]))
    };
    // Whole, and nothing of agentd's own in it. Set-user-ID programs are there, without the bit.
    let script = "dpkg --audit; dpkg-query -W apt passwd | wc -l; find / -xdev -name '*agentd*' ! -path /etc/agentd-policy.txt; ls /usr/bin/passwd /usr/bin/su; \
                  find / -xdev -perm /6000";
    assert_eq!(debian(&[], script).expect_success().stdout, "2\n/usr/bin/passwd\n/usr/bin/su\n");

    // From the mirror: a set-group-ID program, a group, a set-user-ID program with read-only settings, and its use.
    let script = "export DEBIAN_FRONTEND=noninteractive; apt-get -q update && \
                  apt-get -qy --no-install-recommends install openssh-client sudo && dpkg --audit && getent group _ssh && \
                  ssh -V && sudo -n true && sudo -n -u nobody true && stat -c %a /usr/bin/sudo /usr/bin/ssh-agent /etc/sudoers";
    let ran = debian(&[&FAKE_ROOT[..], &["--net", "host"]].concat(), script).expect_success();
    assert!(ran.stdout.ends_with("755\n755\n440\n"), "{ran}");
    assert_eq!(denials(&home), Vec::<String>::new());

    // Users, and what becomes theirs.
    let script = "set -e; useradd -m alice; adduser --system --group --home /srv/daemon daemon2; echo alice:x | chpasswd; \
                  su alice -c 'id -u'; chown -R alice:alice /home/alice; install -o daemon2 -g daemon2 -m 2750 /bin/true /srv/t; \
                  tar -C / -c --owner=alice --group=daemon2 etc | tar -C /srv -xp; stat -c '%u %a' /srv/t; getent passwd alice daemon2";
    let ran = debian(&FAKE_ROOT, script).expect_success();
    assert!(ran.stdout.contains("\n0\n0 750\nalice:x:1000:1000:") && ran.stdout.contains("daemon2:x:"), "{ran}");
    assert_eq!(denials(&home), Vec::<String>::new());

    // With several ids nothing is pretended: apt downloads as a user of its own, files are whose they are, su becomes somebody.
    if require(Feature::Ranges) {
        let script = "export DEBIAN_FRONTEND=noninteractive; apt-get -q update 2>&1 | grep -c sandbox; stat -c %U /var/lib/apt/lists/partial; \
                      apt-get -qy --no-install-recommends install openssh-client sudo >/dev/null && dpkg --audit && stat -c '%G %a' /usr/bin/ssh-agent && \
                      useradd -m alice && su alice -c 'id -un; touch ~/x' && stat -c %U /home/alice/x && sudo -n -u nobody id -un";
        let ran = debian(&["--userns", "subids", "--writable", "--net", "host"], script).expect_success();
        assert_eq!(ran.stdout, "0\n_apt\n_ssh 755\nalice\nalice\nnobody\n", "{ran}");
        assert_eq!(denials(&home), Vec::<String>::new());
    }

    // Without the flag it is what it was.
    let ran = debian(&["--user", "root", "--writable", "--net", "host"], "apt-get -q update; dpkg -i /dev/null");
    assert_ne!(ran.code(), 0, "{ran}");
    assert!(ran.stderr.contains("setgroups") || ran.stderr.contains("Operation not permitted"), "{ran}");
}

/// What every part answers: owners, ids, modes; errors that stay errors.
#[test]
fn cli_fake_root_pretends_what_one_id_cannot_do_and_nothing_else() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let python = "
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def tried(what, *arguments):
    ctypes.set_errno(0)
    return 'ok' if getattr(libc, what)(*arguments) == 0 else errno.errorcode[ctypes.get_errno()]
open('/tmp/f', 'w').close()
f = os.open('/tmp/f', os.O_RDWR)
print(tried('chown', b'/tmp/f', 42, 42), tried('lchown', b'/tmp/f', 42, 0), tried('fchown', f, 0, 42), tried('fchownat', -100, b'/tmp/f', 42, 42, 0))
print(tried('chown', b'/tmp/none', 0, 0), tried('fchown', 99, -1, -1), tried('chown', b'/tmp/f', 0, -1))
print(tried('setgroups', 1, (ctypes.c_uint * 1)(42)), tried('setgid', 42), tried('setuid', 42), tried('setresuid', 42, 42, 42), tried('setregid', 42, 42))
print(tried('chmod', b'/tmp/f', 0o6711), oct(os.stat('/tmp/f').st_mode), tried('chmod', b'/tmp/none', 0o4755), tried('fchmod', 99, 0o4755))
print(os.getuid(), os.stat('/tmp/f').st_uid, tried('mknod', b'/tmp/node', 0o020666, 0x103), tried('chroot', b'/tmp'))
";
    let script = format!("python3 -c \"{python}\"");
    let said = on_host(&home, &["-q"], &script).expect_success().stdout;
    let expected = "ok ok ok ok\nENOENT EBADF ok\nok ok ok ok ok\nok 0o100711 ENOENT EBADF\n0 0 EPERM EPERM\n";
    assert_eq!(said, expected);
    assert_eq!(denials(&home), ["python3 mknodat EPERM", "python3 chroot EPERM"]);
    // The same words without the flag.
    let mut command = home.run();
    let plain = run(command.args(["-q", "--writable", "--user", "root", "--", "sh", "-c", &script])).expect_success();
    let lines: Vec<&str> = plain.stdout.lines().collect();
    assert_eq!(lines[0], "EINVAL EINVAL EINVAL EINVAL");
    assert_eq!(lines[2], "EPERM EINVAL EINVAL EINVAL EINVAL");
    assert!(lines[3].starts_with("EPERM 0o100644 "), "{plain}");
}

/// Words that contradict each other, before anything is started.
#[test]
fn cli_fake_root_refuses_what_does_not_go_with_it() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    for (flags, says) in [
        (&["--fake-root"][..], "--writable"),
        (&["--fake-root", "--writable", "--user", "nobody"], "--user nobody somebody else"),
        (
            &["--fake-root", "--writable", "--profile", "nested"],
            if is_root() { "profile nested" } else { "profile nested goes with no --fake-root" },
        ),
    ] {
        let mut command = home.run();
        let ran = run(command.args(flags).args(["--", "true"]));
        assert_ne!(ran.code(), 0, "{flags:?}\n{ran}");
        assert!(ran.stderr.contains(says), "{flags:?}\n{ran}");
    }
    // Of the one id that there is.
    let script =
        "test $(id -u) = 0 && set -- $(cat /proc/self/uid_map /proc/self/gid_map) && test \"$# $3 $6\" = '6 1 1'";
    for user in ["root", "0", "0:0"] {
        drop(on_host(&home, &["--user", user], script).expect_success());
    }
    // A profile that refuses more refuses it still; one of the workspace as well.
    let work = home.workspace();
    fs::create_dir(work.join(".agentd")).unwrap();
    let refuse = "schema = 1\n[[seccomp.rule]]\ngroup = \"x\"\nsyscalls = [\"chown\", \"fchownat\", \"fchmod\"]\nverdict = \"EPERM\"\nreason = \"x\"\n";
    fs::write(work.join(".agentd/profile.toml"), refuse).unwrap();
    let script =
        "cd /tmp; touch f; chown 42 f; python3 -c 'import os; os.fchmod(os.open(\"f\", 0), 0o4755)'; stat -c %a f";
    let ran = on_host(&home, &["--workspace", work.to_str().unwrap()], script).expect_success();
    assert!(ran.stdout == "644\n" && ran.stderr.contains("PermissionError"), "{ran}");
    assert!(denials(&home).contains(&"python3 fchmod EPERM".to_owned()), "{:?}", denials(&home));
}

/// Makes set-user-ID files in the directory that is its argument, by each call that can, and says how each ended.
const MAKE_SET_ID: &str = "
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(sys.argv[1])
def tried(name, made):
    for old in (name,):
        try: os.unlink(old)
        except OSError: pass
    ctypes.set_errno(0)
    result = made(name.encode())
    print(name, 'ok' if result >= 0 else errno.errorcode[ctypes.get_errno()])
def empty(name):
    return os.open(name, os.O_CREAT | os.O_RDWR, 0o755)
AT = -100
tried('chmod', lambda n: (empty(n), libc.chmod(n, 0o4755))[1])
tried('fchmod', lambda n: libc.fchmod(empty(n), 0o6755))
tried('fchmodat', lambda n: (empty(n), libc.fchmodat(AT, n, 0o2755, 0))[1])
tried('nofollow', lambda n: (empty(n), libc.fchmodat(AT, n, 0o4755, 0x100))[1])
tried('creat', lambda n: libc.creat(n, 0o4755))
tried('open', lambda n: libc.open(n, os.O_CREAT | os.O_WRONLY, 0o4755))
tried('openat', lambda n: libc.openat(AT, n, os.O_CREAT | os.O_WRONLY, 0o6755))
tried('mknod', lambda n: libc.mknod(n, 0o104755, 0))
tried('mknodat', lambda n: libc.mknodat(AT, n, 0o104755, 0))
def unnamed(n):
    fd = libc.open(b'.', os.O_TMPFILE | os.O_RDWR, 0o4755)
    return fd if fd < 0 else libc.linkat(AT, b'/proc/self/fd/%d' % fd, AT, n, 0x400)
tried('unnamed', unnamed)
tried('directory', lambda n: (os.mkdir(n), libc.chmod(n, 0o2775))[1])
";

/// Names below `directory` that have a set-user-ID or set-group-ID bit.
fn with_set_id(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let set = entries.filter(|entry| entry.metadata().unwrap().mode() & 0o6000 != 0);
    let mut names: Vec<String> = set.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The calls succeed, and no such file comes into being: not in the workspace, not in a mount, not in what is kept.
#[test]
fn escape_fake_root_leaves_no_set_user_id_program_behind() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let (work, other, natively) = (home.workspace(), home.path().join("other"), home.path().join("natively"));
    fs::create_dir(&other).unwrap();
    fs::create_dir(&natively).unwrap();
    let ran = run(Command::new("python3").args(["-c", MAKE_SET_ID]).arg(&natively)).expect_success();
    let names: Vec<&str> = ran.stdout.lines().filter_map(|line| line.strip_suffix(" ok")).collect();
    assert_eq!(names.len(), ran.stdout.lines().count(), "{ran}");
    let mut expected = names.clone();
    expected.sort_unstable();
    assert_eq!(with_set_id(&natively), expected);

    let mount = format!("type=bind,src={},dst=/mnt,rw", other.display());
    let flags = ["--workspace", work.to_str().unwrap(), "--mount", &mount];
    let python = format!("python3 -c \"{MAKE_SET_ID}\"");
    let ran =
        on_host(&home, &flags, &format!("{python} /workspace && {python} /mnt && {python} /tmp")).expect_success();
    assert_eq!(ran.stdout.lines().filter(|line| line.ends_with(" ok")).count(), 3 * names.len(), "{ran}");
    for directory in [&work, &other] {
        assert_eq!(with_set_id(directory), Vec::<String>::new());
        assert_eq!(fs::read_dir(directory).unwrap().count(), names.len());
        // The other bits are those that were asked for.
        assert_eq!(fs::metadata(directory.join("fchmod")).unwrap().mode() & 0o7777, 0o755);
    }
    assert_eq!(denials(&home), Vec::<String>::new());
}

/// A kept root has none either, in the layer and in the image.
#[test]
fn escape_fake_root_keeps_no_set_user_id_program() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let script = "cp /bin/busybox /bin/set && chmod 4755 /bin/set && mkdir /d && chmod 2777 /d && chown 42:42 /bin/set";
    let mut command = home.run_busybox();
    drop(run(command.args(FAKE_ROOT).args(["--keep", "--name", "x", "--", "sh", "-c", script])).expect_success());
    drop(run(home.agentd().args(["commit", "-q", "x", "kept"])).expect_success());
    let mut command = home.run();
    let ran = run(command.args([
        "-q",
        "--image",
        "kept",
        "--",
        "sh",
        "-c",
        "stat -c %a /bin/set /d; find / -xdev -perm /6000",
    ]));
    assert_eq!(ran.expect_success().stdout, "755\n777\n");
    let list = "zstd -dc \"$1\"/jobs/*/root.tar.zst | tar -tv | grep -c '^-..s\\|^-.....s\\|^d.....s'";
    let ran = run(Command::new("sh").args(["-c", list, "list"]).arg(home.state()));
    assert_eq!(ran.stdout, "0\n", "{ran}");
}

/// A caller that changes everything it can while its call waits: its path, its descriptors, its signals, its threads.
#[test]
fn race_fake_root_modes_under_fire() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let work = home.workspace();
    let python = "
import os, signal, sys, threading, time
for number in (signal.SIGUSR1, signal.SIGRTMIN):
    signal.signal(number, lambda *_: None)
os.chdir('/workspace')
over = False
main = threading.main_thread().ident
for name in ('a', 'b'):
    open(name, 'w').close()
def fire():
    while not over:
        signal.pthread_kill(main, signal.SIGUSR1)
        signal.pthread_kill(main, signal.SIGRTMIN)
        os.rename('a', 'c'); os.rename('b', 'a'); os.rename('c', 'b')
def bits():
    while not over:
        try: os.chmod('b', 0o2755)
        except OSError: pass
for target in (fire, bits, bits):
    threading.Thread(target=target).start()
done = seen = 0
end = time.monotonic() + 2
while done < 20 or time.monotonic() < end:
    try:
        os.chmod('a', 0o6777)
        done += 1
    except OSError: pass
    for name in ('a', 'b'):
        try: seen |= os.stat(name).st_mode & 0o6000
        except OSError: pass
over = True
print('done', seen)
";
    let flags = ["-q", "--workspace", work.to_str().unwrap()];
    let ran = on_host(&home, &flags, &format!("exec python3 -c \"{python}\"")).expect_success();
    assert_eq!(ran.stdout, "done 0\n", "{ran}");
    assert_eq!(with_set_id(&work), Vec::<String>::new());
}

/// The kernel holds the tracer of a process that executes a program until its traced threads are reaped: the job's clock,
/// signals and end wait for neither.
#[test]
fn race_fake_root_modes_beside_an_exec() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let python = "
import os, threading
open('/tmp/f', 'w').close()
def ask():
    while True:
        os.chmod('/tmp/f', 0o4755)
while True:
    child = os.fork()
    if child == 0:
        for _ in range(4):
            threading.Thread(target=ask).start()
        os.execv('/bin/true', ['true'])
    os.waitpid(child, 0)
";
    let script = format!("exec python3 -c \"{python}\"");
    let _ran = on_host(&home, &["--timeout", "3s", "--stop-timeout", "1s"], &script).expect_code(124);
}

/// A thread that a debugger of the box holds cannot be mended: its call is refused, and told.
#[test]
fn escape_fake_root_refuses_modes_of_a_traced_program() {
    if !require(Feature::Userns) {
        return;
    }
    if fs::metadata("/usr/bin/strace").is_err() {
        skip_without(&["strace"], "no strace (Debian: strace)");
        return;
    }
    let home = Home::new();
    let ran = on_host(
        &home,
        &["-q"],
        "touch /tmp/f; strace -f -o /dev/null chmod 4755 /tmp/f; chmod 4711 /tmp/f; stat -c %a /tmp/f",
    );
    assert_eq!(ran.expect_success().stdout, "711\n");
    assert_eq!(denials(&home), ["chmod fchmodat EPERM"]);
}

/// Programs that never stop asking are ended in time, and by Ctrl-C's and kill's, with calls under way.
#[test]
fn cli_fake_root_jobs_end_while_modes_are_being_mended() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let ask = "touch /tmp/f; for i in 1 2 3 4; do python3 -c 'import os\nwhile True: os.chmod(\"/tmp/f\", 0o4755)' & done; echo on; wait";
    let _ran = on_host(&home, &["--timeout", "2s", "--stop-timeout", "1s"], ask).expect_code(124);
    // SIGKILL to the supervisor: the box goes with it.
    let mut command = home.run();
    let mut started = Started::new(command.args(FAKE_ROOT).args(["--", "sh", "-c", ask]));
    started.wait_for("on");
    started.signal(rustix::process::Signal::KILL);
    assert_eq!(started.finish().code(), -9);
    // A payload that leaves such programs behind ends them.
    let left = ask.replace("echo on; wait", "exit 7");
    drop(on_host(&home, &[], &left).expect_code(7));
}

/// A command by `agentd exec` has a listener of its own, and gets the same answers: modes without the bits under
/// `--fake-root`, EPERM that is told without it.
#[test]
fn escape_exec_leaves_no_set_user_id_program_behind() {
    if !require(Feature::Userns) {
        return;
    }
    for (flags, outcome) in [(&FAKE_ROOT[..], "ok"), (&["--user", "root"], "EPERM")] {
        let home = Home::new();
        let (work, natively) = (home.workspace(), home.path().join("natively"));
        fs::create_dir(&natively).unwrap();
        let ran = run(Command::new("python3").args(["-c", MAKE_SET_ID]).arg(&natively)).expect_success();
        assert_eq!(with_set_id(&natively).len(), ran.stdout.lines().count(), "{ran}");
        let id = home.detached(&[flags, &["--workspace", work.to_str().unwrap()]].concat(), "exec sleep 1000");
        let said = home.say(&["exec", &id, "python3", "-c", MAKE_SET_ID, "/workspace"]).expect_success().stdout;
        assert!(said.lines().all(|line| line.ends_with(&format!(" {outcome}"))), "{flags:?}: {said}");
        assert_eq!(said.lines().count(), ran.stdout.lines().count());
        assert_eq!(with_set_id(&work), Vec::<String>::new());
        let told = denials(&home);
        assert_eq!(told.is_empty(), outcome == "ok", "{told:?}");
        assert!(told.iter().all(|denial| denial.starts_with("python3 ") && denial.ends_with(" EPERM")), "{told:?}");
    }
}
