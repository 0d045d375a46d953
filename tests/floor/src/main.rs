//! The floor of a start: the kernel operations that `agentd run` needs, in its order, with nothing around them.
//!
//! `agentd-floor WORKSPACE LAYER… -- COMMAND…` puts COMMAND (an absolute path) into a box over the layers, the lowest
//! one first. `cargo xtask bench start` divides agentd's time by this program's, so it has no plan, no records and no
//! policy of its own; it does look at every return value, because a step that failed would make the floor too low.
//!
//! Invariant: a measuring instrument, never shipped and never a sandbox to rely on.
#![expect(
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::print_stderr,
    clippy::exit,
    reason = "raw system calls one after another are what this program measures"
)]

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStringExt;
use std::ptr::null;

/// A raw system call that ends the program, naming itself and its line, when it fails.
macro_rules! sys {
    ($number:ident $(, $argument:expr)* $(,)?) => {
        must(stringify!($number), line!(), unsafe { libc::syscall(libc::$number $(, $argument)*) })
    };
}

fn must(name: &str, line: u32, ret: libc::c_long) -> i32 {
    if ret < 0 {
        eprintln!("agentd-floor: {name} at line {line}: {}", std::io::Error::last_os_error());
        std::process::exit(125);
    }
    ret as i32
}

const HERE: i32 = libc::AT_FDCWD;
const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
/// `enum fsconfig_command` of linux/mount.h.
const SET_FLAG: u32 = 0;
const SET_STRING: u32 = 1;
const CMD_CREATE: u32 = 6;
const DEVICES: &str = "null zero full random urandom tty";

/// fsopen, one fsconfig an option, create, fsmount: a detached mount.
fn file_system(kind: &CStr, options: &[(&CStr, &CStr)], attributes: u64) -> i32 {
    let context = sys!(SYS_fsopen, kind.as_ptr(), 1);
    for (key, value) in options {
        if value.is_empty() {
            sys!(SYS_fsconfig, context, SET_FLAG, key.as_ptr(), null::<u8>(), 0);
        } else {
            sys!(SYS_fsconfig, context, SET_STRING, key.as_ptr(), value.as_ptr(), 0);
        }
    }
    sys!(SYS_fsconfig, context, CMD_CREATE, null::<u8>(), null::<u8>(), 0);
    let mount = sys!(SYS_fsmount, context, 1, attributes);
    sys!(SYS_close, context);
    mount
}

fn attach(mount: i32, target: &CStr) {
    sys!(SYS_move_mount, mount, c"".as_ptr(), HERE, target.as_ptr(), libc::MOVE_MOUNT_F_EMPTY_PATH);
}

fn set_attributes(mount: i32, set: u64, flags: i32) {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let size = size_of::<libc::mount_attr>();
    sys!(SYS_mount_setattr, mount, c"".as_ptr(), libc::AT_EMPTY_PATH | flags, &raw const attributes, size);
}

fn clone_tree(directory: i32, source: &CStr, flags: i32) -> i32 {
    let clone = libc::OPEN_TREE_CLONE as i32 | libc::OPEN_TREE_CLOEXEC as i32 | flags;
    sys!(SYS_open_tree, directory, source.as_ptr(), clone)
}

/// A bind mount: open_tree, mount_setattr, move_mount.
fn bind(directory: i32, source: &CStr, target: &CStr, attributes: u64, flags: i32) {
    let tree = clone_tree(directory, source, flags);
    set_attributes(tree, attributes, flags);
    attach(tree, target);
    sys!(SYS_close, tree);
}

fn mount(kind: &CStr, options: &[(&CStr, &CStr)], target: &CStr, attributes: u64) {
    let mount = file_system(kind, options, attributes);
    attach(mount, target);
    sys!(SYS_close, mount);
}

fn write_file(path: &CStr, text: &str) {
    let file = sys!(SYS_openat, HERE, path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC, 0);
    sys!(SYS_write, file, text.as_ptr(), text.len());
    sys!(SYS_close, file);
}

fn make_file(directory: i32, path: &CStr, text: &str) {
    let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC;
    let file = sys!(SYS_openat, directory, path.as_ptr(), flags, 0o644);
    if !text.is_empty() {
        sys!(SYS_write, file, text.as_ptr(), text.len());
    }
    sys!(SYS_close, file);
}

fn names(prefix: &str, list: &str) -> impl Iterator<Item = CString> {
    list.split(' ').map(move |name| CString::new(format!("{prefix}{name}")).unwrap_or_default())
}

fn make_directory(directory: i32, path: &CStr) {
    sys!(SYS_mkdirat, directory, path.as_ptr(), 0o755);
}

fn is_there(path: &CStr) -> bool {
    unsafe { libc::faccessat(HERE, path.as_ptr(), libc::F_OK, 0) == 0 }
}

/// The one tmpfs of the box, over the host's root where only its descriptor reaches it.
fn make_stage() -> i32 {
    let stage = file_system(c"tmpfs", &[(c"size", c"1g"), (c"mode", c"0700")], NOSUID | NODEV);
    attach(stage, c"/sys");
    for name in names("", "root upper work nothing.d dev shm tmp run scratch") {
        make_directory(stage, &name);
    }
    make_file(stage, c"nothing", "");
    for name in names("upper/", "proc dev sys tmp run scratch workspace home home/agent etc") {
        make_directory(stage, &name);
    }
    for name in names("upper/etc/", "passwd group hostname hosts resolv.conf") {
        make_file(stage, &name, "root:x:0:0::/root:/bin/sh\n");
    }
    stage
}

/// Overlay, /proc, /dev, /sys, the writable places, the workspace; ends inside the new root.
fn build_root(layers: &[CString], workspace: &CStr) {
    sys!(SYS_mount, null::<u8>(), c"/".as_ptr(), null::<u8>(), libc::MS_REC | libc::MS_PRIVATE, null::<u8>());
    let stage = make_stage();
    let through = |name: &str| CString::new(format!("/proc/self/fd/{stage}/{name}")).unwrap_or_default();
    let (upper, work) = (through("upper"), through("work"));
    let mut options: Vec<(&CStr, &CStr)> = layers.iter().rev().map(|layer| (c"lowerdir+", layer.as_c_str())).collect();
    options.extend([(c"upperdir", upper.as_c_str()), (c"workdir", &work), (c"userxattr", c""), (c"volatile", c"")]);
    let root = file_system(c"overlay", &options, NOSUID | NODEV);
    sys!(SYS_move_mount, root, c"".as_ptr(), stage, c"root".as_ptr(), libc::MOVE_MOUNT_F_EMPTY_PATH);
    sys!(SYS_fchdir, root);
    mount(c"proc", &[], c"proc", NOSUID | NODEV | NOEXEC);
    for name in names("proc/", "sys") {
        if is_there(&name) {
            bind(HERE, &name, &name, RDONLY | NOSUID | NODEV, 0);
        }
    }
    for name in names("proc/", "keys key-users sched_debug interrupts") {
        mask(stage, c"nothing", &name);
    }
    for name in names("proc/", "acpi scsi asound") {
        mask(stage, c"nothing.d", &name);
    }

    make_dev(stage);
    mount(c"sysfs", &[], c"sys", RDONLY | NOSUID | NODEV | NOEXEC);
    for name in [c"sys/firmware", c"sys/devices/virtual/powercap"] {
        mask(stage, c"nothing.d", name);
    }
    for name in [c"tmp", c"run", c"scratch"] {
        own(stage, name, name);
    }
    own(root, c"home/agent", c"home/agent");
    bind(HERE, workspace, c"workspace", NOSUID | NODEV, libc::AT_RECURSIVE);
    loopback_up();

    sys!(SYS_pivot_root, c".".as_ptr(), c".".as_ptr());
    sys!(SYS_umount2, c".".as_ptr(), libc::MNT_DETACH);
    sys!(SYS_chdir, c"/".as_ptr());
    sys!(SYS_close, stage);
    set_attributes(root, RDONLY, 0);
    sys!(SYS_close, root);
}

fn mask(stage: i32, with: &CStr, name: &CStr) {
    if is_there(name) {
        bind(stage, with, name, RDONLY | NOSUID | NODEV, 0);
    }
}

/// A directory of a tree of our own, attached without any attribute to set.
fn own(directory: i32, source: &CStr, target: &CStr) {
    let tree = clone_tree(directory, source, 0);
    attach(tree, target);
    sys!(SYS_close, tree);
}

fn make_dev(stage: i32) {
    let dev = clone_tree(stage, c"dev", 0);
    attach(dev, c"dev");
    for (device, target) in names("/dev/", DEVICES).zip(names("dev/", DEVICES)) {
        make_file(HERE, &target, "");
        bind(HERE, &device, &target, RDONLY | NOSUID | NOEXEC, 0);
    }
    for (text, name) in [
        (c"/proc/self/fd", c"dev/fd"),
        (c"/proc/self/fd/0", c"dev/stdin"),
        (c"/proc/self/fd/1", c"dev/stdout"),
        (c"/proc/self/fd/2", c"dev/stderr"),
        (c"pts/ptmx", c"dev/ptmx"),
    ] {
        sys!(SYS_symlinkat, text.as_ptr(), HERE, name.as_ptr());
    }
    make_directory(HERE, c"dev/shm");
    own(stage, c"shm", c"dev/shm");
    make_directory(HERE, c"dev/pts");
    mount(c"devpts", &[(c"ptmxmode", c"0666"), (c"mode", c"0620")], c"dev/pts", NOSUID | NOEXEC);
    set_attributes(dev, RDONLY | NOSUID | NODEV, 0);
    sys!(SYS_close, dev);
}

fn loopback_up() {
    let socket = sys!(SYS_socket, libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    sys!(SYS_ioctl, socket, libc::SIOCSIFFLAGS, &raw const request);
    sys!(SYS_close, socket);
}

fn limit() {
    for (resource, value) in [(libc::RLIMIT_CORE, 0), (libc::RLIMIT_NOFILE, 1024), (libc::RLIMIT_NPROC, 4096)] {
        let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        sys!(SYS_prlimit64, 0, resource, &raw const limit, null::<u8>());
    }
}

fn drop_capabilities() {
    // `_LINUX_CAPABILITY_VERSION_3`, this process; two words each of effective, permitted and inheritable.
    let header: [u32; 2] = [0x2008_0522, 0];
    let none = [0u32; 6];
    sys!(SYS_capset, header.as_ptr(), none.as_ptr());
}

/// A ruleset of nine paths and both scopes, enforced on this process.
fn landlock() {
    let handled: u64 = 0xffff;
    // struct landlock_ruleset_attr: file system, network, scopes.
    let attributes = [handled, 0, 0b11];
    let ruleset = sys!(SYS_landlock_create_ruleset, attributes.as_ptr(), size_of_val(&attributes), 0);
    for (number, path) in names("/", " dev proc dev/shm tmp run scratch home/agent workspace").enumerate() {
        let access = if number < 3 { 0b1101 } else { handled };
        let directory = sys!(SYS_openat, HERE, path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC, 0);
        // struct landlock_path_beneath_attr is packed: eight bytes of access, four of descriptor.
        let mut rule = [0u8; 12];
        rule[..8].copy_from_slice(&access.to_ne_bytes());
        rule[8..].copy_from_slice(&directory.to_ne_bytes());
        sys!(SYS_landlock_add_rule, ruleset, 1, rule.as_ptr(), 0);
        sys!(SYS_close, directory);
    }
    sys!(SYS_landlock_restrict_self, ruleset, 0);
    sys!(SYS_close, ruleset);
}

/// Allows everything, by a binary search over the system-call number: 131 instructions, as a real filter has.
fn seccomp() {
    let op = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let allow = op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW);
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let mut program = vec![op(load, 0, 0, 4)];
    program.push(op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, 0xc000_003e));
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_KILL_PROCESS));
    program.push(op(load, 0, 0, 0));
    // Depth first, so that the right half of 2^depth - 1 instructions starts behind the left one.
    let mut open = vec![(0u32, 512u32)];
    while let Some((low, high)) = open.pop() {
        if high - low <= 8 {
            program.push(allow);
            continue;
        }
        let middle = low + (high - low) / 2;
        program.push(op(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, ((high - low) / 8 - 1) as u8, 0, middle));
        open.extend([(middle, high), (low, middle)]);
    }
    let fprog = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    sys!(SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const fprog);
}

fn prctl(option: i32, argument: libc::c_ulong) {
    sys!(SYS_prctl, option, argument, 0usize, 0usize, 0usize);
}

/// PID 1: everything up to the fork of the payload, then reaping.
fn init(layers: &[CString], workspace: &CStr, command: &[CString], ids: (i32, i32)) -> ! {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong);
    prctl(libc::PR_SET_DUMPABLE, 1);
    write_file(c"/proc/self/setgroups", "deny");
    write_file(c"/proc/self/uid_map", &format!("1000 {} 1", ids.0));
    write_file(c"/proc/self/gid_map", &format!("1000 {} 1", ids.1));
    sys!(SYS_sethostname, c"floor".as_ptr(), 5);
    sys!(SYS_setsid);
    build_root(layers, workspace);
    limit();
    for capability in 0..41 {
        prctl(libc::PR_CAPBSET_DROP, capability);
    }
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong);
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1);
    let start = pipe();
    let payload = must("fork", line!(), unsafe { libc::fork() }.into());
    if payload == 0 {
        sys!(SYS_setsid);
        landlock();
        drop_capabilities();
        let mut argv: Vec<_> = command.iter().map(|word| word.as_ptr()).collect();
        argv.push(null());
        let environment = [c"PATH=/usr/local/bin:/usr/bin:/bin".as_ptr(), null()];
        sys!(SYS_chdir, c"/workspace".as_ptr());
        seccomp();
        sys!(SYS_execve, argv[0], argv.as_ptr(), environment.as_ptr());
    }
    sys!(SYS_close, start[1]);
    let nothing = sys!(SYS_openat, HERE, c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC, 0);
    for stream in 0..3 {
        sys!(SYS_dup3, nothing, stream, 0);
    }
    drop_capabilities();
    seccomp();
    // End-of-file: the payload's program runs.
    sys!(SYS_read, start[0], [0u8; 1].as_mut_ptr(), 1);
    let mut status = 0;
    while must("wait", line!(), unsafe { libc::wait(&raw mut status) }.into()) != payload {}
    std::process::exit(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) })
}

fn pipe() -> [i32; 2] {
    let mut ends = [0; 2];
    sys!(SYS_pipe2, ends.as_mut_ptr(), libc::O_CLOEXEC);
    ends
}

fn main() {
    let mut words: Vec<CString> =
        std::env::args_os().skip(1).map(|word| CString::new(word.into_vec()).unwrap_or_default()).collect();
    let Some(separator) = words.iter().position(|word| word.as_c_str() == c"--").filter(|at| *at >= 2) else {
        eprintln!("usage: agentd-floor WORKSPACE LAYER… -- COMMAND…");
        std::process::exit(125);
    };
    let command = words.split_off(separator + 1);
    let (out, err) = (pipe(), pipe());
    let (uid, gid) = (sys!(SYS_geteuid), sys!(SYS_getegid));
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP;
    let mut pidfd = -1;
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (namespaces | libc::CLONE_PIDFD) as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if sys!(SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) == 0 {
        sys!(SYS_dup3, out[1], 1, 0);
        sys!(SYS_dup3, err[1], 2, 0);
        init(&words[1..separator], &words[0], &command, (uid, gid));
    }
    sys!(SYS_close, out[1]);
    sys!(SYS_close, err[1]);
    pump([(out[0], 1), (err[0], 2)]);
    let mut exit: libc::siginfo_t = unsafe { std::mem::zeroed() };
    sys!(SYS_waitid, libc::P_PIDFD, pidfd, &raw mut exit, libc::WEXITED, null::<u8>());
    std::process::exit(unsafe { exit.si_status() });
}

/// Carries what the payload says until both of its ends are closed, which the end of the box does.
fn pump(streams: [(i32, i32); 2]) {
    let mut polled = streams.map(|(from, _)| libc::pollfd { fd: from, events: libc::POLLIN, revents: 0 });
    let mut buffer = [0u8; 16_384];
    while polled.iter().any(|entry| entry.fd >= 0) {
        sys!(SYS_poll, polled.as_mut_ptr(), polled.len(), -1);
        for (entry, (from, to)) in polled.iter_mut().zip(streams) {
            if entry.fd < 0 || entry.revents == 0 {
                continue;
            }
            match sys!(SYS_read, from, buffer.as_mut_ptr(), buffer.len()) {
                0 => entry.fd = -1,
                count => drop(sys!(SYS_write, to, buffer.as_ptr(), count as usize)),
            }
        }
    }
}
