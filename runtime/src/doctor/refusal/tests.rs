//! What failed on which host, and the remedy that must be named.

use super::*;

fn refused(errno: i32) -> Reached {
    Reached::Refused(io::Error::from_raw_os_error(errno))
}

fn stopped(step: Step, object: &str, errno: i32) -> Reached {
    Reached::Stopped(Failure { step, object: object.into(), errno })
}

fn user() -> Host {
    Host {
        uid: 1000,
        release: "6.8.0-45-generic".into(),
        program: Some("/usr/local/bin/agentd".into()),
        ..Host::default()
    }
}

fn mounted(host: Host, point: &str) -> Host {
    let mount = super::super::host::MountEntry { id: 1, root: "/".into(), point: point.into(), kind: "tmpfs".into() };
    Host { mounts: vec![mount], ..host }
}

#[test]
fn every_known_cause_has_its_remedy() {
    let map_refused = || stopped(Step::WriteIdMaps, "/proc/self/uid_map", libc::EPERM);
    let docker = || Host { enclosure: Enclosure::Docker, filtered: true, ..user() };
    for (what, reached, host, words) in [
        (
            "RHEL 7 and hardened hosts: none allowed",
            refused(libc::ENOSPC),
            Host { no_namespaces: vec!["max_user_namespaces"], ..user() },
            &["sysctl -w user.max_user_namespaces=15000", "/etc/sysctl.d/"][..],
        ),
        ("too many, or too deep", refused(libc::ENOSPC), user(), &["user.max_user_namespaces", "32"]),
        (
            "no network namespaces",
            stopped(Step::MakeNetwork, "network namespace", libc::ENOSPC),
            Host { no_namespaces: vec!["max_net_namespaces"], ..user() },
            &["user.max_net_namespaces=15000"],
        ),
        ("RLIMIT_NPROC", refused(libc::EAGAIN), user(), &["ulimit -u"]),
        (
            "a kernel without them",
            refused(libc::EINVAL),
            Host { missing_namespaces: vec!["user", "cgroup"], ..user() },
            &["user, cgroup", "CONFIG_USER_NS"],
        ),
        (
            "Debian 10, hardened kernels",
            refused(libc::EPERM),
            Host { clone_forbidden: true, ..user() },
            &["kernel.unprivileged_userns_clone=1"],
        ),
        (
            "Ubuntu 24.04: the map",
            map_refused(),
            Host { apparmor_restricts: true, ..user() },
            &["profile agentd /usr/local/bin/agentd flags=(unconfined) { userns, }", "apparmor_parser -r"],
        ),
        (
            "Ubuntu 24.04: the map, as EACCES",
            stopped(Step::WriteIdMaps, "/proc/self/uid_map", libc::EACCES),
            Host { apparmor_restricts: true, ..user() },
            &["profile agentd"],
        ),
        (
            "Ubuntu 24.04: the first thing that asks for a capability",
            stopped(Step::SetHostname, "doctor", libc::EPERM),
            Host { apparmor_restricts: true, apparmor: Some("unprivileged_userns".into()), ..user() },
            &["profile agentd"],
        ),
        (
            "Ubuntu 24.04, a system service",
            map_refused(),
            Host { apparmor_restricts: true, enclosure: Enclosure::Service("ci.service".into()), ..user() },
            &["profile agentd"],
        ),
        (
            "Ubuntu 24.04, a path that could mean something else",
            map_refused(),
            Host { apparmor_restricts: true, program: Some("/home/ann/my 'tools'/agentd".into()), ..user() },
            &["kernel.apparmor_restrict_unprivileged_userns=0"],
        ),
        (
            "Docker: clone3 is hidden",
            refused(libc::ENOSYS),
            docker(),
            &["seccomp=unconfined", "systempaths=unconfined"],
        ),
        ("Docker: clone is refused", refused(libc::EPERM), docker(), &["seccomp=unconfined"]),
        (
            "Docker on Ubuntu: the container comes first",
            refused(libc::EPERM),
            Host { apparmor_restricts: true, ..docker() },
            &["seccomp=unconfined", "apparmor=unconfined"],
        ),
        (
            "Docker without seccomp: AppArmor refuses mounts",
            stopped(Step::MakePrivate, "/", libc::EACCES),
            Host { filtered: false, apparmor: Some("docker-default".into()), ..docker() },
            &["apparmor=unconfined"],
        ),
        (
            "Docker: /proc is masked",
            stopped(Step::MountProc, "proc", libc::EPERM),
            mounted(docker(), "/proc/kcore"),
            &["/proc/kcore", "systempaths=unconfined"],
        ),
        (
            "Podman: /sys is masked",
            stopped(Step::MakeNetwork, "sysfs", libc::EPERM),
            mounted(Host { enclosure: Enclosure::Podman, ..user() }, "/sys/firmware"),
            &["/sys/firmware", "unmask=ALL"],
        ),
        (
            "Kubernetes",
            refused(libc::EPERM),
            Host { enclosure: Enclosure::Pod, filtered: true, ..user() },
            &["hostUsers: false", "procMount: Unmasked"],
        ),
        (
            "a hardened systemd service",
            refused(libc::EPERM),
            Host { enclosure: Enclosure::Service("ci.service".into()), filtered: true, ..user() },
            &["systemctl edit ci.service", "RestrictNamespaces=no"],
        ),
        (
            "ProtectKernelTunables=",
            stopped(Step::MountProc, "proc", libc::EPERM),
            mounted(Host { enclosure: Enclosure::Service("ci.service".into()), ..user() }, "/proc/sys"),
            &["/proc/sys", "ProtectKernelTunables=no"],
        ),
        ("a chroot", refused(libc::EPERM), mounted(user(), "/proc"), &["outside of the chroot"]),
        ("unshare -U", refused(libc::EPERM), Host { unmapped: true, ..user() }, &["--map-current-user"]),
        ("SELinux", refused(libc::EACCES), Host { selinux: true, ..user() }, &["ausearch"]),
        (
            "another AppArmor profile",
            stopped(Step::Stage, "tmpfs", libc::EACCES),
            Host { apparmor: Some("ci-job".into()), ..user() },
            &["`ci-job`", "userns,"],
        ),
        ("no /proc", refused(libc::ENOENT), user(), &["mount /proc"]),
        (
            "Debian 10: no overlay in a user namespace",
            stopped(Step::AssembleRoot, "overlay", libc::EPERM),
            Host { release: "4.19.0-27-amd64".into(), ..user() },
            &["Linux 5.13", "4.19.0-27-amd64"],
        ),
        ("no overlay", stopped(Step::AssembleRoot, "overlay", libc::ENODEV), user(), &["modprobe overlay"]),
    ] {
        let finding = finding("subject", &reached, &host);
        let remedy = finding.remedy.unwrap_or_default();
        for word in words {
            assert!(remedy.contains(word), "{what}: `{word}` is not in `{remedy}`");
        }
        assert!(!remedy.contains('\n'), "{what}: more than one line");
        assert!(!remedy.contains("  "), "{what}: `{remedy}`");
    }
}

#[test]
fn what_is_not_known_gets_no_remedy() {
    for reached in
        [refused(libc::EPERM), refused(libc::EIO), stopped(Step::PivotRoot, "/", libc::EINVAL), Reached::Silent]
    {
        let host = mounted(user(), "/");
        let finding = finding("subject", &reached, &host);
        assert_eq!(finding.remedy, None, "{reached:?}");
        assert!(!finding.found.is_empty());
    }
}

#[test]
fn a_missing_landlock_is_told_apart() {
    let error = |errno| io::Error::from_raw_os_error(errno);
    assert!(of_landlock(&error(libc::EOPNOTSUPP), &user()).is_some_and(|remedy| remedy.contains("lsm=")));
    assert!(of_landlock(&error(libc::ENOSYS), &user()).is_some_and(|remedy| remedy.contains("5.13")));
    let filtered = Host { filtered: true, enclosure: Enclosure::Docker, ..user() };
    assert!(of_landlock(&error(libc::ENOSYS), &filtered).is_some_and(|remedy| remedy.contains("seccomp=unconfined")));
}

#[test]
fn long_lists_are_cut() {
    assert_eq!(shorten(&["a", "b", "c"]), "a, b, c");
    assert_eq!(shorten(&["a", "b", "c", "d", "e"]), "a, b, c and 2 more");
}
