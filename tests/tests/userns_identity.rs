//! What a process of the box is: its ids, rights, namespaces, limits, descriptors and directory, as the kernel says.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use agentd_tests::attack::natively;
use agentd_tests::kernel::Process;
use agentd_tests::{Feature, Home, Started, require, run, wait_until};

/// /proc/PID/status lines that say what a process may do.
const RIGHTS: &str = "grep -e ^Seccomp: -e ^NoNewPrivs: -e ^Cap";

fn confined(status: &str) -> Vec<&str> {
    status.lines().map(|line| line.split_once(':').map_or(line, |(name, _)| name)).collect()
}

#[track_caller]
fn assert_rights_are_gone(status: &str) {
    assert_eq!(confined(status), ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"]);
    for line in status.lines() {
        let value = line.split_whitespace().nth(1).unwrap();
        let expected = match line.split(':').next().unwrap() {
            "NoNewPrivs" => "1",
            "Seccomp" => "2",
            _ => "0000000000000000",
        };
        assert_eq!(value, expected, "{line}");
    }
}

#[test]
fn userns_no_process_of_the_box_has_a_right() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    for user in [&[][..], &["--user", "root"]] {
        for who in ["/proc/self/status", "/proc/$$/status"] {
            assert_rights_are_gone(&home.said(user, &format!("{RIGHTS} {who}")));
        }
        assert_rights_are_gone(&home.said(user, &format!("sh -c 'sh -c \"{RIGHTS} /proc/self/status; true\"; true'")));
        assert_rights_are_gone(&home.said(user, &format!("({RIGHTS} /proc/self/status) & wait")));
    }
    // The same words tell of rights where there are some: a fresh user namespace has them all.
    let outside = run(Command::new("unshare").args(["-Ur", "sh", "-c", &format!("{RIGHTS} /proc/self/status")]));
    assert!(outside.stdout.lines().any(|line| line.starts_with("CapEff:") && !line.ends_with("0000000000000000")));
}

/// As the host's kernel says. PID 1 gives its rights up while the payload starts, the filter being the last of it.
#[test]
fn userns_pid_1_has_no_right_either() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let mut job = Started::new(home.boxed(&[]).args(["sh", "-c", "echo ready; exec sleep 1000"]));
    job.wait_for("ready");
    let init = Process::of(job.pid()).unwrap().descendants()[0].pid;
    let status = || fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    let is_filtered = wait_until(Duration::from_secs(60), || status().contains("\nSeccomp:\t2\n"));
    let status = status();
    assert!(is_filtered, "{status}");
    assert!(status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")), "{status}");
    let is_right = |line: &&str| ["Seccomp:", "NoNewPrivs:", "Cap"].iter().any(|name| line.starts_with(name));
    assert_rights_are_gone(&status.lines().filter(is_right).collect::<Vec<_>>().join("\n"));
}

#[test]
fn userns_one_id_is_mapped_and_groups_cannot_be_set() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let own = |file: &str| {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(file)).unwrap().to_owned();
        line.split_whitespace().nth(2).unwrap().to_owned()
    };
    let (uid, gid) = (own("Uid:"), own("Gid:"));
    let script = "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; id -u; id -g";
    for (flags, inside) in
        [(&[][..], ["1000", "1000"]), (&["--user", "root"], ["0", "0"]), (&["--user", "7:8"], ["7", "8"])]
    {
        let said = home.said(flags, script);
        let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
        let expected =
            [vec![inside[0], &uid, "1"], vec![inside[1], &gid, "1"], vec!["deny"], vec![inside[0]], vec![inside[1]]];
        assert_eq!(lines, expected, "{flags:?}");
    }
}

const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

#[test]
fn userns_every_namespace_is_the_boxs_own() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let script = format!("cd /proc/self/ns && for ns in {}; do readlink $ns; done", NAMESPACES.join(" "));
    let own: Vec<String> = NAMESPACES
        .iter()
        .map(|name| fs::read_link(format!("/proc/self/ns/{name}")).unwrap().to_str().unwrap().to_owned())
        .collect();
    let other = |network: &str| {
        let said = home.said(&["--net", network], &script);
        let inside: Vec<String> = said.lines().map(str::to_owned).collect();
        assert_eq!(inside.len(), NAMESPACES.len(), "{said}");
        let shared = NAMESPACES.iter().zip(own.iter().zip(inside)).filter(|(_, (own, inside))| *own == inside);
        shared.map(|(name, _)| *name).collect::<Vec<_>>()
    };
    assert_eq!(other("none"), [""; 0]);
    assert_eq!(other("host"), ["net"]);
}

#[test]
fn userns_descriptors_are_the_three_streams() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    // The shell's, not those of `ls`, which opens one more to list them.
    let script = "ls /proc/$$/fd; true";
    for flags in [&[][..], &["-i"], &["--image", "host", "--workspace", "."]] {
        let mut command = home.boxed(flags);
        // Descriptors that whoever starts agentd left open, without close-on-exec.
        let outer = run(Command::new("sh")
            .args(["-c", "exec 7</ 8</etc/hostname 9</proc/self/ns/net; exec \"$@\"", "sh"])
            .arg(command.get_program())
            .args(command.args(["sh", "-c", script]).get_args())
            .env("HOME", home.path())
            .env("XDG_STATE_HOME", home.path().join("state")));
        assert_eq!(outer.expect_success().stdout, "0\n1\n2\n", "{flags:?}");
    }
}

/// CVE-2024-21626: a working directory that is the host's, reached by a leaked descriptor or from where agentd ran.
#[test]
fn userns_the_working_directory_lies_inside() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let work = home.workspace();
    let workspace = work.to_str().unwrap();
    for (flags, expected) in [
        (&[][..], "/"),
        (&["--workspace", workspace], "/workspace"),
        (&["-w", "/tmp"], "/tmp"),
        (&["-w", "/usr/lib"], "/usr/lib"),
    ] {
        let mut command = home.boxed(flags);
        command.current_dir(home.path());
        let said = run(command.args(["sh", "-c", "readlink /proc/self/cwd; cd ../../../../../..; pwd; ls"]));
        let said = said.expect_success().stdout;
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..2], [expected, "/"], "{flags:?}");
        assert!(lines.contains(&"proc") && lines.contains(&"scratch"), "{lines:?}");
    }
    // Every descriptor that PID 1 or the payload's process may hold while it enters the directory.
    for fd in 0..24 {
        let ran = run(home.boxed(&["-w", &format!("/proc/self/fd/{fd}")]).arg("pwd"));
        assert_ne!(ran.code(), 0, "the working directory may be descriptor {fd}\n{ran}");
    }
}

#[test]
fn userns_limits_host_name_and_environment_are_the_plans() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let said = home.said(&["--hostname", "in-the-box"], "hostname; cat /etc/hostname /proc/self/limits");
    assert!(said.starts_with("in-the-box\nin-the-box\n"), "{said}");
    let hard = |name: &str| -> u64 {
        let line = said.lines().find(|line| line.starts_with(name)).unwrap();
        line.strip_prefix(name).unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    assert_eq!(hard("Max core file size"), 0);
    assert!(hard("Max processes") <= 4096 && hard("Max open files") <= 1_048_576, "{said}");
    // A secret in the environment of whoever runs agentd stays there.
    let mut command = home.boxed(&["-e", "GIVEN=1"]);
    let ran = run(command.env("AGENTD_TEST_TOKEN", "s3cret").env("LD_PRELOAD_NOT", "x").args(["sh", "-c", "env; set"]));
    let said = ran.expect_success().stdout;
    assert!(said.contains("GIVEN=1") && said.contains("HOME=/home/agent"), "{said}");
    for leaked in ["s3cret", "AGENTD_TEST", "XDG_", home.path().to_str().unwrap()] {
        assert!(!said.contains(leaked), "{leaked}\n{said}");
    }
}

#[test]
fn userns_the_network_is_a_loopback_that_is_up() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let said = home.said(&[], "tail -n +3 /proc/net/dev | cut -d: -f1; cat /proc/net/route /proc/net/if_inet6");
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    assert_eq!(lines[0], "lo");
    assert!(lines[1].starts_with("Iface"), "a route exists\n{said}");
    assert!(lines[2..].iter().all(|line| line.starts_with("00000000000000000000000000000001")), "{said}");
    // Up: a connection to it is refused, not unreachable.
    for word in ["tcp=127.0.0.1:9", "tcp=[::1]:9"] {
        assert_eq!(home.attack(&[], &[word])[word], "ECONNREFUSED");
    }
    assert_eq!(natively(&["tcp=127.0.0.1:9"])["tcp=127.0.0.1:9"], "ECONNREFUSED");
}
