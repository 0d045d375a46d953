//! Attacks on the kernel's walls: namespaces, mounts, terminals, and the large interfaces.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::OpenOptionsExt;

use crate::Attempted;
use crate::raw::{CWD, Word, address, call, descriptor, room};

/// Calls whose words are all numbers: name, number, words.
const PLAIN: &[(&str, libc::c_long, [Word; 6])] = &[
    ("unshare-user", libc::SYS_unshare, [libc::CLONE_NEWUSER as Word, 0, 0, 0, 0, 0]),
    ("unshare-mount", libc::SYS_unshare, [libc::CLONE_NEWNS as Word, 0, 0, 0, 0, 0]),
    ("unshare-net", libc::SYS_unshare, [libc::CLONE_NEWNET as Word, 0, 0, 0, 0, 0]),
    // 64-bit garbage above what the kernel looks at.
    ("unshare-user-high", libc::SYS_unshare, [0xdead_beef_0000_0000 | libc::CLONE_NEWUSER as Word, 0, 0, 0, 0, 0]),
    ("clone-user", libc::SYS_clone, [libc::CLONE_NEWUSER as Word | libc::SIGCHLD as Word, 0, 0, 0, 0, 0]),
    (
        "clone-user-vfork",
        libc::SYS_clone,
        [libc::CLONE_NEWUSER as Word | libc::CLONE_VFORK as Word | libc::SIGCHLD as Word, 0, 0, 0, 0, 0],
    ),
    ("personality-exec", libc::SYS_personality, [libc::READ_IMPLIES_EXEC as Word, 0, 0, 0, 0, 0]),
    // PER_LINUX32
    ("personality-32", libc::SYS_personality, [8, 0, 0, 0, 0, 0]),
    // The last word must be 0, which is looked at before who calls.
    ("set-mm", libc::SYS_prctl, [libc::PR_SET_MM as Word, 1, 0, 0, 1, 0]),
    ("io-uring-enter", libc::SYS_io_uring_enter, [Word::MAX, 0, 0, 0, 0, 0]),
    ("vmsplice", libc::SYS_vmsplice, [Word::MAX, 0, 0, 0, 0, 0]),
    ("message-queue", libc::SYS_msgget, [libc::IPC_PRIVATE as Word, 0o600, 0, 0, 0, 0]),
    ("keyctl", libc::SYS_keyctl, [0, (-3_i64).cast_unsigned(), 0, 0, 0, 0]),
    ("userfaultfd", libc::SYS_userfaultfd, [1, 0, 0, 0, 0, 0]),
    ("fanotify", libc::SYS_fanotify_init, [libc::FAN_REPORT_FID as Word, 0, 0, 0, 0, 0]),
    // Refused for their caller here; else for their words, which mean nothing.
    ("kexec", libc::SYS_kexec_load, [0, 0, 0, Word::MAX, 0, 0]),
    ("module", libc::SYS_finit_module, [Word::MAX, 0, 0, 0, 0, 0]),
    ("reboot", libc::SYS_reboot, [1, 2, 3, 0, 0, 0]),
    ("iopl", libc::SYS_iopl, [3, 0, 0, 0, 0, 0]),
    ("vhangup", libc::SYS_vhangup, [0; 6]),
    ("syslog", libc::SYS_syslog, [10, 0, 0, 0, 0, 0]),
    ("setuid-0", libc::SYS_setuid, [0; 6]),
];

/// Tries attack `name`; `None` when it is not one of these.
pub(crate) fn attempt(name: &str, argument: &str) -> Attempted {
    if let Some((_, number, words)) = PLAIN.iter().find(|(known, ..)| *known == name) {
        return Ok(Some(call(*number, *words).map(drop)));
    }
    let result = match name {
        "clone3-user" => clone3(libc::CLONE_NEWUSER as Word),
        "setns" => File::open("/proc/self/ns/uts").and_then(|own| {
            call(libc::SYS_setns, [descriptor(&own), libc::CLONE_NEWUTS as Word, 0, 0, 0, 0]).map(drop)
        }),
        "hostname" => call(libc::SYS_sethostname, [address(b"evil"), 4, 0, 0, 0, 0]).map(drop),
        "mount" | "mount-cgroup" | "remount-rw" | "umount" | "chroot" | "pivot-root" | "fsopen" | "open-tree"
        | "mount-setattr" => mounts(name, argument),
        "tiocsti" | "tioclinux" | "tiocsetd" | "tiocsti-high" => terminal(name),
        "capabilities" => all_capabilities(),
        "bpf" => {
            // BPF_MAP_CREATE of an array of one word.
            let attributes: [u32; 32] = std::array::from_fn(|at| [2, 4, 4, 1].get(at).copied().unwrap_or(0));
            call(libc::SYS_bpf, [0, address(&attributes), 128, 0, 0, 0]).map(drop)
        }
        "perf" => {
            // PERF_TYPE_SOFTWARE, size, PERF_COUNT_SW_TASK_CLOCK; of itself, without the kernel and the hypervisor.
            let attributes: [u64; 16] =
                std::array::from_fn(|at| [1 | 128 << 32, 1, 0, 0, 0, 0b110_0000].get(at).copied().unwrap_or(0));
            call(libc::SYS_perf_event_open, [address(&attributes), 0, Word::MAX, Word::MAX, 0, 0]).map(drop)
        }
        "io-uring" => {
            let mut parameters = [0_u64; 15];
            call(libc::SYS_io_uring_setup, [1, room(&mut parameters), 0, 0, 0, 0]).map(drop)
        }
        "add-key" => {
            // To the process's own ring, which ends with it.
            let ring = (-2_i64).cast_unsigned();
            call(libc::SYS_add_key, [address(b"user\0"), address(b"agentd\0"), address(b"x"), 1, ring, 0]).map(drop)
        }
        "file-handle" => {
            let mut handle = [128_u32; 40];
            let mut mount = 0_u64;
            let words = [CWD, address(b".\0"), room(&mut handle), room(&mut mount), 0, 0];
            call(libc::SYS_name_to_handle_at, words).map(drop)
        }
        // The "shocker": inode 2 is the root of most file systems, whatever is mounted where.
        "open-handle" => File::open(argument).and_then(|mount| {
            // struct file_handle: 8 bytes of type 1 (FILEID_INO32_GEN): inode, generation
            let handle = [8_u32, 1, 2, 0];
            let words = [descriptor(&mount), address(&handle), libc::O_PATH as Word, 0, 0, 0];
            call(libc::SYS_open_by_handle_at, words).map(drop)
        }),
        "whiteout" => {
            let path = c_path(argument);
            call(libc::SYS_mknodat, [CWD, address(&path[..]), libc::S_IFCHR as Word, 0, 0, 0])
                .and_then(|_| std::fs::remove_file(argument))
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn c_path(path: &str) -> Vec<u8> {
    [path.as_bytes(), b"\0"].concat()
}

fn clone3(flags: Word) -> io::Result<()> {
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, …
    let arguments: [Word; 11] = [flags, 0, 0, 0, libc::SIGCHLD as Word, 0, 0, 0, 0, 0, 0];
    call(libc::SYS_clone3, [address(&arguments), 88, 0, 0, 0, 0]).map(drop)
}

fn mounts(name: &str, argument: &str) -> io::Result<()> {
    let bytes = c_path(argument);
    let path = address(&bytes[..]);
    let (tmpfs, cgroup) = (address(b"tmpfs\0"), address(b"cgroup2\0"));
    match name {
        "mount" => call(libc::SYS_mount, [tmpfs, path, tmpfs, 0, 0, 0]),
        "mount-cgroup" => call(libc::SYS_mount, [cgroup, path, cgroup, 0, 0, 0]),
        "remount-rw" => {
            let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_NOSUID | libc::MS_NODEV;
            call(libc::SYS_mount, [0, path, 0, flags, 0, 0])
        }
        "umount" => call(libc::SYS_umount2, [path, libc::MNT_DETACH as Word, 0, 0, 0, 0]),
        "chroot" => call(libc::SYS_chroot, [path, 0, 0, 0, 0, 0]),
        "pivot-root" => call(libc::SYS_pivot_root, [path, path, 0, 0, 0, 0]),
        "fsopen" => call(libc::SYS_fsopen, [tmpfs, 0, 0, 0, 0, 0]),
        "open-tree" => call(libc::SYS_open_tree, [CWD, path, 1, 0, 0, 0]),
        _ => {
            // struct mount_attr: attr_set, attr_clr (MOUNT_ATTR_RDONLY), propagation, userns_fd
            let attributes: [Word; 4] = [0, 1, 0, 0];
            call(libc::SYS_mount_setattr, [CWD, path, 0, address(&attributes), 32, 0])
        }
    }
    .map(drop)
}

/// Types into a terminal, or bends it: a pty of this process's own, which it makes its controlling terminal.
fn terminal(name: &str) -> io::Result<()> {
    /// TIOCSPTLCK
    const UNLOCK: Word = 0x4004_5431;
    /// TIOCGPTPEER
    const PEER: Word = 0x5441;
    let controller = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/ptmx")?;
    let ioctl = |on: Word, request: Word, argument: Word| call(libc::SYS_ioctl, [on, request, argument, 0, 0, 0]);
    ioctl(descriptor(&controller), UNLOCK, address(&0_i32))?;
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let terminal = ioctl(descriptor(&controller), PEER, Word::from(flags.unsigned_abs()))?.cast_unsigned();
    // Left open: its end would hang this session up before the outcome is told.
    let _left_open = controller.into_raw_fd();
    // A process that leads a group already leads no session.
    call(libc::SYS_setsid, [0; 6]).ok();
    ioctl(terminal, libc::TIOCSCTTY as Word, 0)?;
    match name {
        "tiocsti" => ioctl(terminal, libc::TIOCSTI as Word, address(b"x")),
        "tiocsti-high" => ioctl(terminal, 0xdead_beef_0000_0000 | libc::TIOCSTI as Word, address(b"x")),
        "tioclinux" => ioctl(terminal, libc::TIOCLINUX as Word, address(&[6_u8; 8])),
        _ => ioctl(terminal, libc::TIOCSETD as Word, address(&0_i32)),
    }
    .map(drop)
}

/// Asks for every capability.
fn all_capabilities() -> io::Result<()> {
    // _LINUX_CAPABILITY_VERSION_3, this process; effective, permitted, inheritable, for the low and the high 32.
    let header = [0x2008_0522_u32, 0];
    let sets = [u32::MAX, u32::MAX, 0, 0x1ff, 0x1ff, 0];
    call(libc::SYS_capset, [address(&header), address(&sets), 0, 0, 0, 0]).map(drop)
}
