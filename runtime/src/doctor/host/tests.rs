//! Recorded files of other hosts, as the doctor reads them.

use super::*;

/// Ubuntu 24.04, a login shell.
const UBUNTU: &str = "\
24 31 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw
25 31 0:23 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
31 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,discard,errors=remount-ro
32 25 0:6 / /sys/kernel/security rw,nosuid,nodev,noexec,relatime shared:8 - securityfs securityfs rw
35 25 0:28 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
39 24 0:32 / /proc/sys/fs/binfmt_misc rw,relatime shared:14 - autofs systemd-1 rw,fd=32,pgrp=1,timeout=0,direct
90 31 8:16 / /media/ann/USB\\040stick rw,nosuid,nodev,relatime shared:60 - vfat /dev/sdb rw,fmask=0022
";

/// `docker run debian` on a host with cgroup v2.
const DOCKER: &str = "\
1021 890 0:95 / / rw,relatime master:321 - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/A,upperdir=/u,workdir=/w
1022 1021 0:98 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
1023 1021 0:99 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
1025 1021 0:101 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
1026 1025 0:29 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate
891 1022 0:98 /bus /proc/bus ro,nosuid,nodev,noexec,relatime - proc proc rw
895 1022 0:98 /sysrq-trigger /proc/sysrq-trigger ro,nosuid,nodev,noexec,relatime - proc proc rw
896 1022 0:102 / /proc/acpi ro,relatime - tmpfs tmpfs ro
897 1022 0:99 /null /proc/kcore rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
902 1025 0:104 / /sys/firmware ro,relatime - tmpfs tmpfs ro
";

fn host(mounts: &str) -> Host {
    Host { mounts: parse_mounts(mounts), ..Host::default() }
}

#[test]
fn a_mount_table_is_read() {
    let mounts = parse_mounts(UBUNTU);
    assert_eq!(mounts.len(), 7);
    let stick = mounts.last().unwrap();
    assert_eq!((stick.id, stick.point.as_str(), stick.kind.as_str()), (90, "/media/ann/USB stick", "vfat"));
    assert_eq!(parse_mounts(DOCKER)[5].root, "/bus");
    for broken in ["", "\n", "24 31", "x 31 0:22 / /proc rw - proc proc rw", "24 31 0:22 / /proc rw"] {
        assert_eq!(parse_mounts(broken), [], "{broken:?}");
    }
}

#[test]
fn a_container_covers_parts_of_proc_and_a_machine_does_not() {
    assert!(host(UBUNTU).covered("/proc").is_empty());
    assert!(host(UBUNTU).covered("/sys").is_empty());
    assert_eq!(host(DOCKER).covered("/proc"), ["/proc/bus", "/proc/sysrq-trigger", "/proc/acpi", "/proc/kcore"]);
    assert_eq!(host(DOCKER).covered("/sys"), ["/sys/firmware"]);
}

#[test]
fn a_chroot_has_no_mount_at_its_root() {
    assert!(!host(UBUNTU).is_chroot());
    assert!(host("24 31 0:22 / /proc rw,relatime shared:13 - proc proc rw\n").is_chroot());
    assert!(!Host::default().is_chroot(), "nothing is known without a table");
}

#[test]
fn a_service_is_told_from_a_login() {
    for (cgroups, unit) in [
        // Ubuntu 24.04, Debian 12, RHEL 9: over ssh; in a desktop's terminal; in a service of the user's manager.
        ("0::/user.slice/user-1000.slice/session-3.scope\n", None),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-terminal.scope\n", None),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/agent.service\n", None),
        // System services, on pure and on hybrid hosts.
        ("0::/system.slice/actions.runner.service\n", Some("actions.runner.service")),
        ("0::/system.slice/system-ci.slice/ci@1.service/leaf\n", Some("ci@1.service")),
        ("12:pids:/system.slice/cron.service\n1:name=systemd:/system.slice/cron.service\n", Some("cron.service")),
        // In a container.
        ("0::/\n", None),
        ("", None),
    ] {
        assert_eq!(service(cgroups).as_deref(), unit, "{cgroups}");
    }
}

#[test]
fn status_and_labels_are_read() {
    let status = "Name:\tagentd\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
    assert_eq!(status_field(status, "Seccomp"), Some("2"));
    assert_eq!(status_field(status, "NoNewPrivs"), Some("1"));
    assert_eq!(status_field(status, "Speculation"), None);
    for (label, expected) in [
        ("docker-default (enforce)\n", Some("docker-default")),
        ("unprivileged_userns (enforce)\n", Some("unprivileged_userns")),
        ("unconfined\n", None),
        ("agentd (unconfined)\n", None),
        ("snap.code.code (complain)\n", None),
        ("unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023\0", None),
        ("", None),
    ] {
        assert_eq!(confined(label).as_deref(), expected, "{label}");
    }
}

#[test]
fn kernel_releases_are_read() {
    for (release, version) in [
        ("6.8.0-45-generic", Some((6, 8))),
        ("6.1.0-25-amd64", Some((6, 1))),
        ("5.14.0-427.13.1.el9_4.x86_64", Some((5, 14))),
        ("7.0", Some((7, 0))),
        ("7", None),
        ("rolling", None),
    ] {
        let host = Host { release: release.into(), ..Host::default() };
        assert_eq!(host.version(), version, "{release}");
    }
}
