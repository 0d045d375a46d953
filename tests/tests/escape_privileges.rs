//! Gaining what was given up: namespaces, mounts, capabilities, terminals, large kernel interfaces (THREATS.md, 6).

use std::fs;
use std::os::unix::fs::PermissionsExt;

use agentd_tests::attack::{Attack, Control, assert_refused, bare, in_namespaces, natively, program};
use agentd_tests::oci::{Compression, Entry, Layer};
use agentd_tests::{Feature, Home, busybox, require, run};

use Control::{InNamespaces, Natively, Nowhere};

/// CVE-2022-0185 and its kind: a user namespace of one's own is the key to most of the kernel.
#[test]
fn escape_nested_namespaces_are_refused_by_every_call() {
    if !require(Feature::Userns) {
        return;
    }
    let attacks = [
        Attack::new("unshare-user", "EPERM", Natively),
        Attack::new("unshare-mount", "EPERM", InNamespaces),
        Attack::new("unshare-net", "EPERM", InNamespaces),
        // The kernel looks at all 64 bits here and would refuse; a filter that did not see the flag would say EINVAL.
        Attack::new("unshare-user-high", "EPERM", Natively).outside("EINVAL"),
        Attack::new("clone-user", "EPERM", Natively),
        Attack::new("clone-user-vfork", "EPERM", Natively),
        Attack::new("clone3-user", "ENOSYS", Natively),
        Attack::new("setns", "EPERM", InNamespaces),
        Attack::new("hostname", "EPERM", InNamespaces),
    ];
    for flags in [&[][..], &["--user", "root"], &["--net", "host"], &["--writable"]] {
        assert_refused(&Home::new(), flags, &attacks);
    }
}

/// CVE-2026-46695: a read-only bind is only as read-only as the mount table is out of reach.
#[test]
fn escape_the_mount_table_is_out_of_reach() {
    if !require(Feature::Userns) {
        return;
    }
    let attacks = [
        Attack::new("mount=/sys", "EPERM", InNamespaces),
        Attack::new("remount-rw=/", "EPERM", InNamespaces),
        Attack::new("remount-rw=/usr", "EPERM", Nowhere("needs a mount there; the root is one")),
        Attack::new("remount-rw=/proc/sys", "EPERM", Nowhere("the same")),
        Attack::new("mount-setattr=/proc", "EPERM", InNamespaces),
        Attack::new("mount-setattr=/", "EPERM", Nowhere("the same")),
        Attack::new("fsopen", "EPERM", InNamespaces),
        Attack::new("open-tree=/proc", "EPERM", InNamespaces),
        Attack::new("chroot=/", "EPERM", InNamespaces),
        Attack::new("pivot-root=/tmp", "EPERM", InNamespaces).outside("EINVAL"),
        Attack::new("umount=/proc", "EPERM", InNamespaces),
    ];
    for flags in [&[][..], &["--user", "root"]] {
        assert_refused(&Home::new(), flags, &attacks);
    }
}

#[test]
fn escape_large_kernel_interfaces_are_closed() {
    if !require(Feature::Userns) {
        return;
    }
    let administers = Nowhere("administers the machine the test runs on");
    let attacks = [
        Attack::new("io-uring", "ENOSYS", Natively),
        Attack::new("keyctl", "ENOSYS", Natively),
        Attack::new("add-key", "ENOSYS", Natively),
        Attack::new("userfaultfd", "EPERM", Natively),
        Attack::new("perf", "EPERM", Natively),
        Attack::new("bpf", "EPERM", Control::AsRoot),
        Attack::new("fanotify", "EPERM", Natively),
        Attack::new("file-handle", "EPERM", Natively),
        Attack::new("whiteout=/tmp/agentd-attack-whiteout", "EPERM", Natively),
        Attack::new("personality-exec", "EPERM", Natively),
        Attack::new("capabilities", "EPERM", InNamespaces),
        Attack::new("syslog", "EPERM", Control::AsRoot),
        Attack::new("kexec", "EPERM", administers),
        Attack::new("module", "EPERM", administers),
        Attack::new("reboot", "EPERM", administers),
        Attack::new("iopl", "EPERM", administers),
        Attack::new("vhangup", "EPERM", administers),
    ];
    for flags in [&[][..], &["--user", "root"]] {
        assert_refused(&Home::new(), flags, &attacks);
    }
}

/// CVE-2017-5226, CVE-2023-1523: typing into the terminal that the box shares, also with garbage above the request's
/// 32 bits.
#[test]
fn escape_no_process_types_into_a_terminal() {
    if !require(Feature::Userns) {
        return;
    }
    let allowed = fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti").map_or(true, |value| value.trim() == "1");
    let (control, outside) = if allowed { (Natively, "ok") } else { (Natively, "EIO") };
    let attacks = [
        Attack::new("tiocsti", "EPERM", control).outside(outside),
        Attack::new("tiocsti-high", "EPERM", control).outside(outside),
        // Not a virtual console: past the check, not for a pty.
        Attack::new("tioclinux", "EPERM", Natively).outside("ENOTTY"),
        Attack::new("tiocsetd", "EPERM", Natively),
    ];
    assert_refused(&Home::new(), &[], &attacks);
}

/// RTM_NEWLINK for interface 1, `lo`: not to be up. Prints what the kernel acknowledges.
const LO_DOWN: &str = "
import socket, struct
link = socket.socket(16, 3, 0)
link.send(struct.pack('=IHHIIBxHiII', 32, 16, 5, 1, 0, 0, 0, 1, 0, 1))
print(struct.unpack_from('=i', link.recv(4096), 16)[0])";

/// The filter lets rtnetlink through, which everything reads; who writes needs a capability that no process of a box has.
#[test]
fn escape_interfaces_and_routes_are_not_changed_by_netlink() {
    if !require(Feature::Userns) {
        return;
    }
    for flags in [&[][..], &["--user", "root"]] {
        let ran = run(Home::new().boxed(flags).args(["python3", "-c", LO_DOWN])).expect_success();
        assert_eq!(ran.stdout, "-1\n", "EPERM");
    }
    assert_eq!(run(bare().args(["python3", "-c", LO_DOWN])).expect_success().stdout, "0\n");
}

/// A setuid bit and a file capability in an image are worth nothing, also where the image says they are root's.
#[test]
fn escape_setuid_bits_and_file_capabilities_of_an_image_give_nothing() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let attack = fs::read(program()).unwrap();
    // VFS_CAP_REVISION_2 with the effective bit, every capability permitted.
    let all = [1, 0, 0, 2, 255, 255, 255, 255, 0, 0, 0, 0, 255, 1, 0, 0, 0, 0, 0, 0];
    let busybox_program = fs::read("/bin/busybox").unwrap();
    let entries = vec![
        Entry::file("suid", &attack).mode(0o6755).owner(0, 0).pax("SCHILY.xattr.security.capability", &all),
        Entry::file("id", busybox_program).mode(0o4755).owner(0, 0),
    ];
    let image = home.path().join("suid-image");
    busybox().layer(Layer::Entries(entries), Compression::Plain).write(&image, "t").unwrap();
    let image = format!("oci:{}:t", image.display());
    for flags in [&["--image", &image][..], &["--image", &image, "--writable"]] {
        let ran =
            run(home.boxed(flags).args(["sh", "-c", "/id -u; /suid mount=/tmp unshare-user setuid-0 capabilities"]));
        let said = ran.expect_success().stdout;
        assert!(said.starts_with("1000\n"), "{said}");
        assert!(!said.contains("\tok"), "{said}");
        let rights = home.said(
            flags,
            "cat /id > /tmp/sh; chmod 755 /tmp/sh; chmod 6755 /tmp/sh 2>/dev/null && echo set; \
                                       /tmp/sh -c 'grep -e CapEff -e CapPrm -e NoNewPrivs /proc/self/status; true'",
        );
        assert_eq!(rights, "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n");
    }
}

/// A program that confines itself further, as browsers and agents do, still can.
#[test]
fn escape_control_ordinary_work_is_not_refused() {
    if !require(Feature::Userns) {
        return;
    }
    let outcomes =
        Home::new().attack(&[], &["ptrace=child", "signal=child", "socket=1,1,0", "socket=2,1,0", "forks=50"]);
    assert!(outcomes.values().all(|outcome| outcome == "ok"), "{outcomes:?}");
    assert!(natively(&["forks=50"]).values().all(|outcome| outcome == "ok"));
    assert!(in_namespaces(&["mount=/sys"]).values().all(|outcome| outcome == "ok"));
    assert!(fs::metadata(program()).unwrap().permissions().mode() & 0o111 != 0);
    assert!(run(bare().arg("true")).status.success());
}
