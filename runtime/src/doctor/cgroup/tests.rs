//! Recorded cgroup layouts of other hosts, and what the doctor says of them.

use super::*;
use crate::doctor::host::MountEntry;

fn host(kind: &str, root: &str, point: &str, cgroups: &str) -> Host {
    let mount = MountEntry { id: 1, root: root.into(), point: point.into(), kind: kind.into() };
    Host { mounts: vec![mount], cgroups: cgroups.into(), ..Host::default() }
}

#[test]
fn a_process_is_found_in_the_hierarchy() {
    let session = "/user.slice/user-1000.slice/session-3.scope";
    for (what, host, place) in [
        (
            "Ubuntu 24.04, Debian 12, RHEL 9",
            host("cgroup2", "/", "/sys/fs/cgroup", &format!("0::{session}\n")),
            Place::At(format!("/sys/fs/cgroup{session}").into()),
        ),
        (
            "a hybrid host",
            host("cgroup2", "/", "/sys/fs/cgroup/unified", "9:name=systemd:/\n8:pids:/\n0::/\n"),
            Place::At("/sys/fs/cgroup/unified".into()),
        ),
        (
            "Docker, a cgroup namespace",
            host("cgroup2", "/", "/sys/fs/cgroup", "0::/\n"),
            Place::At("/sys/fs/cgroup".into()),
        ),
        (
            "Docker, --cgroupns=host",
            host("cgroup2", "/system.slice/docker-1.scope", "/sys/fs/cgroup", "0::/system.slice/docker-1.scope\n"),
            Place::At("/sys/fs/cgroup".into()),
        ),
        ("moved out of its namespace", host("cgroup2", "/", "/sys/fs/cgroup", "0::/../other\n"), Place::Elsewhere),
        ("a part that it is not in", host("cgroup2", "/a", "/sys/fs/cgroup", "0::/ab\n"), Place::Elsewhere),
        ("cgroup v1", host("cgroup", "/", "/sys/fs/cgroup/pids", "8:pids:/\n"), Place::NoHierarchy),
        ("nothing known", Host::default(), Place::NoHierarchy),
    ] {
        assert_eq!(super::place(&host), place, "{what}");
    }
}

#[test]
fn missing_controllers_are_named() {
    assert!(missing("cpuset cpu io memory hugetlb pids rdma misc\n").is_empty());
    assert_eq!(missing("memory pids\n"), ["cpu"]);
    assert_eq!(missing("hugetlb"), ["cpu", "memory", "pids"]);
    assert_eq!(missing("cpuset"), ["cpu", "memory", "pids"]);
}

#[test]
fn every_way_to_the_controllers_is_said() {
    let bare = Host::default();
    assert_eq!(
        without_controllers(&bare, &["cpu"]),
        "in `sudo systemctl edit user@.service` set Delegate=cpu cpuset io, then log in again"
    );
    let service = Host { enclosure: Enclosure::Service("ci.service".into()), ..Host::default() };
    assert!(without_controllers(&service, &["cpu"]).contains("systemctl edit ci.service"));
    assert!(without_controllers(&host("cgroup", "/", "/x", ""), &["cpu"]).contains("unified_cgroup_hierarchy"));
}

#[test]
fn a_place_without_systemd_has_no_manager() {
    assert!(!manager_answers(Path::new("/proc/self")));
}
