//! The attacks that any sandbox for untrusted programs should stop, each with what it would mean.
//!
//! They need nothing inside but this machine's usual directories.
//!
//! Invariant: an errno among an attack's `reached` comes from behind the kernel's check of who may do this: the call was
//! let through, and only its words, which are meaningless on purpose, were refused.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::PathBuf;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attack {
    /// A stable name in kebab-case.
    pub name: &'static str,
    /// What it does, in words, after "a program inside …".
    pub says: &'static str,
    /// What [`crate::attempt`] is to try.
    pub word: Cow<'static, str>,
    /// The system call it stands or falls with, where there is one.
    pub call: Option<&'static str>,
    /// Answers that mean that it got through although they are errors.
    pub reached: &'static [i32],
    /// Where it can be tried too, when it works in no box.
    pub elsewhere: Option<Elsewhere>,
}

/// A place with fewer walls than any box has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elsewhere {
    /// New namespaces with every capability over them, and the host's own files.
    Namespaces,
    /// The same without a pid namespace: the host's processes are in sight.
    HostProcesses,
}

/// What of the host the attacks are aimed at.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    /// A file or directory of the user's that is not given.
    pub private: Option<PathBuf>,
    /// Listeners on the host's loopback.
    pub listeners: Vec<SocketAddr>,
    /// The name of an abstract stream socket that somebody listens at.
    pub abstract_socket: Option<String>,
    /// A process of the host, of the same user.
    pub process: Option<u32>,
    /// How many processes at once are too many; none where nothing bounds them.
    pub processes: Option<u32>,
}

impl Attack {
    /// Whether `errno` (none: success) means that the attack worked.
    #[must_use]
    pub fn worked(&self, errno: Option<i32>) -> bool {
        errno.is_none_or(|errno| self.reached.contains(&errno))
    }

    /// Whether it is aimed at the box's first process, which is somebody else only where that is not the program itself.
    #[must_use]
    pub fn is_about_pid_1(&self) -> bool {
        self.word.ends_with("=1") || self.word.contains("/proc/1/")
    }

    const fn new(name: &'static str, word: &'static str, says: &'static str) -> Self {
        Attack { name, says, word: Cow::Borrowed(word), call: None, reached: &[], elsewhere: None }
    }

    fn aimed(name: &'static str, word: String, says: &'static str) -> Self {
        Attack { word: Cow::Owned(word), ..Self::new(name, "", says) }
    }

    /// By this call alone.
    const fn call(mut self, call: &'static str) -> Self {
        self.call = Some(call);
        self
    }

    const fn reached(mut self, errnos: &'static [i32]) -> Self {
        self.reached = errnos;
        self
    }

    const fn elsewhere(mut self, place: Elsewhere) -> Self {
        self.elsewhere = Some(place);
        self
    }
}

/// Every attack that `targets` allow.
#[must_use]
pub fn attacks(targets: &Targets) -> Vec<Attack> {
    let mut attacks = Vec::new();
    if let Some(path) = &targets.private {
        let path = path.display();
        attacks.push(Attack::aimed(
            "private-file",
            format!("open={path}"),
            "opens something of yours that was not given",
        ));
        let by_root = Attack::aimed(
            "root-of-pid-1",
            format!("open=/proc/1/root{path}"),
            "opens the same through the root of the box's first process",
        );
        attacks.push(by_root.elsewhere(Elsewhere::Namespaces));
    }
    attacks.extend_from_slice(READING);
    attacks.extend_from_slice(WRITING);
    for listener in &targets.listeners {
        let (name, says) = if listener.is_ipv4() {
            ("loopback-tcp", "connects to a service on the host's 127.0.0.1")
        } else {
            ("loopback-tcp6", "connects to a service on the host's ::1")
        };
        attacks.push(Attack::aimed(name, format!("tcp={listener}"), says));
    }
    if let Some(name) = &targets.abstract_socket {
        let says = "connects to an abstract socket of the host, as X11 and D-Bus have them";
        attacks.push(Attack::aimed("abstract-socket", format!("abstract={name}"), says));
    }
    attacks.extend_from_slice(NETWORK);
    attacks.extend_from_slice(PRIVILEGES);
    attacks.extend_from_slice(KERNEL);
    attacks.extend_from_slice(PROCESSES);
    if let Some(pid) = targets.process {
        let signal = Attack::aimed("signal-host", format!("signal={pid}"), "sends a signal to a process of the host");
        attacks.push(signal.elsewhere(Elsewhere::HostProcesses).call("kill"));
    }
    attacks.push(
        Attack::new("outlive", "outlive", "leaves a process behind that outlives the job")
            .elsewhere(Elsewhere::HostProcesses),
    );
    if let Some(count) = targets.processes {
        attacks.push(Attack::aimed("fork-bomb", format!("forks={count}"), "makes processes without end"));
    }
    attacks
}

/// THREATS 1.
const READING: &[Attack] = &[
    Attack::new("shadow", "read=/etc/shadow", "reads the machine's password hashes"),
    Attack::new("kernel-memory", "read=/proc/kcore", "reads the kernel's memory (/proc/kcore)"),
    Attack::new("descriptors", "descriptors", "finds a descriptor that was left open (CVE-2024-21626)")
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("file-handle", "file-handle", "asks for a file's handle, which works past every mount")
        .call("name_to_handle_at"),
    Attack::new("open-handle", "open-handle=/", "opens the host's root by handle (\"shocker\")")
        .call("open_by_handle_at")
        .reached(&[libc::ESTALE]),
    Attack::new("pid-1-memory", "read-memory=1", "reads memory and environment of the box's first process")
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("pid-1-vm", "read-vm=1", "the same by process_vm_readv")
        .call("process_vm_readv")
        .reached(&[libc::EFAULT])
        .elsewhere(Elsewhere::Namespaces),
];

/// THREATS 2.
const WRITING: &[Attack] = &[
    Attack::new("write-root", "create=/agentd-attack", "makes a file in /"),
    Attack::new("write-etc", "create=/etc/agentd-attack", "makes a file in /etc"),
    Attack::new("write-usr", "create=/usr/agentd-attack", "makes a file in /usr"),
    Attack::new("reopen", "reopen=/etc/hosts", "opens a read-only file again for writing, by its link in /proc"),
    Attack::new("reopen-path", "reopen-path=/etc/hosts", "the same from an O_PATH descriptor"),
    Attack::new("remount", "remount-rw=/", "remounts the root for writing (CVE-2026-46695)")
        .call("mount")
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("mount-setattr", "mount-setattr=/", "clears the read-only flag of the root's mount")
        .call("mount_setattr")
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("program", "write=/proc/1/exe", "overwrites the host's program behind PID 1 (CVE-2019-5736)")
        .reached(&[libc::ETXTBSY])
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("set-user-id", "create-setuid=/tmp/agentd-attack-program", "makes a set-user-ID program"),
    Attack::new("core-pattern", "write=/proc/sys/kernel/core_pattern", "has the kernel run a program (core_pattern)"),
    Attack::new("sysctl", "write=/proc/sys/net/ipv4/ip_forward", "writes a sysctl"),
    Attack::new("sysrq", "write=/proc/sysrq-trigger", "presses SysRq"),
    Attack::new("device-mode", "chmod=/dev/null", "changes the mode of the host's /dev/null")
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("device-node", "device=/tmp/agentd-attack-device", "makes a device node of the machine's memory")
        .call("mknodat"),
    Attack::new("whiteout", "whiteout=/tmp/agentd-attack-whiteout", "makes an overlay's whiteout").call("mknodat"),
];

/// THREATS 4.
const NETWORK: &[Attack] = &[
    Attack::new("route", "route=192.0.2.1:443", "finds a way out of the host (IPv4)"),
    Attack::new("route6", "route=[2001:db8::1]:443", "finds a way out of the host (IPv6)"),
    Attack::new("raw-socket", "socket=2,3,1", "opens a raw socket").call("socket").elsewhere(Elsewhere::Namespaces),
    Attack::new("packet-socket", "socket=17,3,0", "opens a packet socket")
        .call("socket")
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("vsock", "socket=40,1,0", "opens a vsock, to the hypervisor").call("socket"),
    Attack::new("af-alg", "socket=38,5,0", "opens AF_ALG, the kernel's crypto (CVE-2026-31431)").call("socket"),
    Attack::new("netlink-audit", "socket=16,3,9", "opens an audit netlink socket").call("socket"),
    Attack::new("netlink-netfilter", "socket=16,3,12", "opens a netfilter netlink socket").call("socket"),
    #[cfg(target_arch = "x86_64")]
    Attack::new("i386-socket", "socket-i386=1,1,0", "makes a system call by the i386 entry"),
    #[cfg(target_arch = "x86_64")]
    Attack::new("x32-socket", "socket-x32=1,1,0", "makes a system call by an x32 number"),
];

/// THREATS 6: what was given up.
const PRIVILEGES: &[Attack] = &[
    Attack::new("unshare-user", "unshare-user", "makes a user namespace of its own").call("unshare"),
    Attack::new("clone-user", "clone-user", "the same by clone").call("clone"),
    Attack::new("clone3-user", "clone3-user", "the same by clone3, past a filter's eyes").call("clone3"),
    Attack::new("setns", "setns", "joins a namespace").call("setns").elsewhere(Elsewhere::Namespaces),
    Attack::new("capabilities", "capabilities", "takes every capability")
        .call("capset")
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("mount", "mount=/tmp", "mounts a file system").call("mount").elsewhere(Elsewhere::Namespaces),
    Attack::new("fsopen", "fsopen", "the same by the newer calls (CVE-2022-0185)")
        .call("fsopen")
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("mount-cgroup", "mount-cgroup=/tmp", "mounts the cgroup tree (CVE-2022-0492)")
        .call("mount")
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("umount", "umount=/proc", "takes a mount away that covers something")
        .call("umount2")
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("open-tree", "open-tree=/proc", "copies a part of the mount tree")
        .call("open_tree")
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("chroot", "chroot=/tmp", "changes its root, the first half of leaving it")
        .call("chroot")
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("pivot-root", "pivot-root=/tmp", "changes the root of everybody")
        .call("pivot_root")
        .reached(&[libc::EINVAL])
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("host-name", "hostname", "renames the host").call("sethostname").elsewhere(Elsewhere::Namespaces),
    Attack::new("personality", "personality-exec", "weakens memory protection (READ_IMPLIES_EXEC)").call("personality"),
    Attack::new("tiocsti", "tiocsti", "types into a terminal of its own (CVE-2017-5226, where it is yours)")
        .call("ioctl")
        .reached(&[libc::EIO]),
    Attack::new("tiocsti-high", "tiocsti-high", "the same with garbage above 32 bits (CVE-2023-1523)")
        .call("ioctl")
        .reached(&[libc::EIO]),
    Attack::new("tioclinux", "tioclinux", "pastes into a console").call("ioctl").reached(&[libc::ENOTTY]),
];

/// The kernel's large interfaces, and the machine's switches.
const KERNEL: &[Attack] = &[
    Attack::new("io-uring", "io-uring", "makes calls through io_uring, past seccomp").call("io_uring_setup"),
    Attack::new("bpf", "bpf", "loads something into the kernel's virtual machine").call("bpf"),
    Attack::new("perf", "perf", "opens a performance counter").call("perf_event_open"),
    Attack::new("userfaultfd", "userfaultfd", "holds the kernel at a page fault").call("userfaultfd"),
    Attack::new("keyctl", "keyctl", "reaches the key ring of your session").call("keyctl"),
    Attack::new("add-key", "add-key", "makes a kernel key").call("add_key"),
    Attack::new("fanotify", "fanotify", "watches a file system").call("fanotify_init"),
    Attack::new("kernel-log", "syslog", "reads the kernel's log").call("syslog"),
    Attack::new("kexec", "kexec", "loads another kernel").call("kexec_load").reached(&[libc::EINVAL]),
    Attack::new("module", "module", "loads a kernel module").call("finit_module").reached(&[libc::EBADF]),
    Attack::new("reboot", "reboot", "reboots the machine").call("reboot").reached(&[libc::EINVAL]),
];

/// THREATS 6 to 8: other processes, and the supervisor's channel.
const PROCESSES: &[Attack] = &[
    Attack::new("trace-pid-1", "ptrace=1", "traces the box's first process")
        .call("ptrace")
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("write-pid-1", "write-memory=1", "writes the memory of the box's first process")
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("channel", "steal-descriptor=1", "takes the channel to the supervisor from the box's first process")
        .call("pidfd_getfd")
        .elsewhere(Elsewhere::Namespaces),
    Attack::new("signal-pid-1", "signal=1", "sends a signal to the box's first process").call("kill"),
    Attack::new("cgroup", "write=/sys/fs/cgroup/cgroup.procs", "leaves its cgroup"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_attack_has_a_name_of_its_own_and_a_word_that_exists() {
        let targets = Targets {
            private: Some("/etc".into()),
            listeners: vec!["127.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap()],
            abstract_socket: Some("nobody".into()),
            process: Some(1),
            processes: Some(2),
        };
        let all = attacks(&targets);
        assert!(all.len() > 60, "{}", all.len());
        let names: BTreeSet<_> = all.iter().map(|attack| attack.name).collect();
        assert_eq!(names.len(), all.len());
        assert_eq!(attacks(&Targets::default()).len() + 7, all.len());
    }

    #[test]
    fn an_answer_from_behind_the_check_counts_as_success() {
        let kexec = KERNEL.iter().find(|attack| attack.name == "kexec").unwrap();
        assert!(kexec.worked(None) && kexec.worked(Some(libc::EINVAL)));
        assert!(!kexec.worked(Some(libc::EPERM)));
    }
}
