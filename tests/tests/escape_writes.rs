//! Writing where nothing may be written, or through what may be (THREATS.md, 2).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use agentd_tests::attack::{bare, natively, program};
use agentd_tests::{Feature, Home, require, run};

#[track_caller]
fn assert_all(outcomes: &agentd_tests::attack::Outcomes, allowed: &[&str]) {
    let wrong: Vec<_> = outcomes.iter().filter(|(_, outcome)| !allowed.contains(&outcome.as_str())).collect();
    assert!(wrong.is_empty(), "{wrong:?} are none of {allowed:?}");
}

#[test]
fn escape_nothing_is_written_outside_scratch_and_workspace() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let places =
        ["/", "/usr", "/usr/bin", "/etc", "/dev", "/sys", "/var", "/var/lib", "/home", "/proc", "/proc/sys/kernel"];
    let mut words = Vec::new();
    for place in places {
        for verb in ["create", "mkdir"] {
            words.push(format!("{verb}={}/agentd-attack", place.trim_end_matches('/')));
        }
        words.push(format!("tmpfile={place}"));
        // That of /proc is the mount's own and means nothing elsewhere.
        words.extend((place != "/proc").then(|| format!("chmod={place}")));
    }
    let files = ["/usr/bin/env", "/etc/passwd", "/etc/hosts", "/etc/hostname", "/etc/profile", "/attack"];
    for file in files {
        words.extend(["write", "reopen", "chmod", "remove"].map(|verb| format!("{verb}={file}")));
        words.push(format!("hardlink={file},/tmp/agentd-link"));
        words.push(format!("rename={file},{file}.moved"));
        words.push(format!("rename={file},/tmp/moved"));
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    for flags in [&[][..], &["--user", "root"]] {
        assert_all(
            &home.attack(flags, &words),
            &["EROFS", "EACCES", "EPERM", "EXDEV", "EOPNOTSUPP", "ENOENT", "EBUSY", "ETXTBSY"],
        );
    }
    // The same verbs work where writing is allowed, natively and in the box.
    let work = home.workspace();
    let verbs = |dir: &str| {
        [
            "create=DIR/new",
            "mkdir=DIR/new",
            "tmpfile=DIR",
            "write=DIR/file",
            "reopen=DIR/file",
            "chmod=DIR/file",
            "hardlink=DIR/file,DIR/link",
            "rename=DIR/file,DIR/moved",
        ]
        .map(|verb| verb.replace("DIR", dir))
    };
    fs::write(work.join("file"), "x").unwrap();
    let outside = verbs(work.to_str().unwrap());
    assert_all(&natively(&outside.each_ref().map(String::as_str)), &["ok"]);
    let inside = verbs("/workspace");
    let flags = ["--workspace", work.to_str().unwrap()];
    assert_all(&home.attack(&flags, &inside.each_ref().map(String::as_str)), &["ok"]);
    let read_only = format!("{}:ro", work.display());
    let outcomes = home.attack(&["--workspace", &read_only], &inside.each_ref().map(String::as_str));
    assert_all(&outcomes, &["EROFS", "EACCES"]);
}

/// Hard links and renames from the workspace cannot take a file of another mount along.
#[test]
fn escape_links_and_renames_do_not_cross_mounts() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let (work, other) = (home.workspace(), home.path().join("other"));
    fs::create_dir(&other).unwrap();
    fs::write(work.join("file"), "x").unwrap();
    fs::write(other.join("secret"), "x").unwrap();
    let mount = format!("type=bind,src={},dst=/other,rw", other.display());
    let flags = ["--workspace", work.to_str().unwrap(), "--mount", &mount];
    let words = [
        "hardlink=/workspace/file,/other/link",
        "rename=/workspace/file,/other/moved",
        "hardlink=/other/secret,/workspace/link",
        "rename=/other/secret,/tmp/moved",
        "rename=/workspace,/workspace2",
        "hardlink=/usr/bin/env,/workspace/env",
    ];
    assert_all(&home.attack(&flags, &words), &["EXDEV", "EBUSY", "EACCES", "EROFS", "EPERM"]);
    let outside = format!("rename={},{}", work.join("file").display(), other.join("moved").display());
    assert_all(&natively(&[&outside]), &["ok"]);
}

/// Sysctls ask for no capability, only for the host's root: which is who the box's id is where agentd runs as root.
#[test]
fn escape_no_switch_of_the_machine_is_writable() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let script = "find /proc/sys /proc/irq /proc/bus /proc/fs /proc/acpi /proc/scsi -type f 2>/dev/null | head -n 2000; \
                  find /proc -maxdepth 1 -type f; find /proc/driver /proc/tty /proc/dynamic_debug -type f 2>/dev/null; true";
    let found = home.said(&[], script);
    // A trigger of pressure-stall information is the caller's own; it changes nothing.
    let words: Vec<String> = found.lines().map(|path| format!("write={path}")).collect();
    assert!(words.len() > 200, "{}", words.len());
    for flags in [&[][..], &["--user", "root"], &["--writable"]] {
        let mut outcomes = agentd_tests::attack::Outcomes::new();
        for words in words.chunks(400) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            outcomes.extend(home.attack(flags, &words));
        }
        let writable: Vec<_> = outcomes.iter().filter(|(_, outcome)| *outcome == "ok").collect();
        assert!(writable.is_empty(), "{writable:?}");
    }
    // Modes of files at the top of /proc are one for every /proc of the machine (fs/proc/generic.c).
    let words: Vec<String> =
        home.said(&[], "find /proc -maxdepth 1 -type f").lines().map(|path| format!("chmod={path}")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_all(&home.attack(&[], &words), &["EPERM", "EROFS"]);
    // Its own sysctl is writable in bare namespaces, with the same words.
    let ran = run(bare().arg(program()).arg("write-back=/proc/sys/net/ipv4/ip_forward"));
    assert_eq!(ran.expect_success().stdout, "ok\n");
}

/// A device node is bound from the host: its mode and its times are those of the host's.
#[test]
fn escape_the_hosts_device_nodes_keep_their_modes() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let nodes = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/stdin"];
    let words = nodes.map(|node| format!("chmod={node}"));
    let words = words.each_ref().map(String::as_str);
    for flags in [&[][..], &["--user", "root"], &["-i"]] {
        let mut outcomes = home.attack(flags, &words);
        if flags == ["-i"] {
            // A pipe of the supervisor's, with nobody else at it.
            outcomes.remove("chmod=/dev/stdin");
        }
        assert_all(&outcomes, &["EPERM", "EROFS"]);
    }
    let own = home.path().join("own");
    fs::write(&own, "").unwrap();
    assert_all(&natively(&[&format!("chmod={}", own.display())]), &["ok"]);
    assert_eq!(fs::metadata("/dev/null").unwrap().permissions().mode() & 0o777, 0o666);
}

/// What a job writes to its root is its own: the store keeps what the image says, for every job and image that shares it.
#[test]
fn escape_the_store_does_not_change_through_a_root() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let image = format!("oci:{}", home.busybox_image().display());
    home.said(&["--image", &image], "true");
    let store = home.path().join("data/agentd/store");
    let state = || run(Command::new("find").arg(&store).args(["-printf", "%p %m %U %s %T@ %n %l\n"])).stdout;
    home.wait_until_written_back();
    let before = state();
    let script = "echo evil >> /etc/passwd; chmod 4777 /bin/busybox; rm -f /bin/cat; mv /etc /etc2; ln /bin/busybox /b; \
                  echo x > /new; touch -t 200001010000 /bin/sh; truncate -s 0 /bin/busybox; true";
    for flags in [
        &["--image", &image, "--writable"][..],
        &["--image", &image],
        &["--image", &image, "--writable", "--user", "root"],
    ] {
        home.sh(flags, script);
    }
    assert_eq!(state(), before);
    assert_eq!(home.said(&["--image", &image], "cat /etc/passwd | wc -l; ls /new /etc2 2>/dev/null; true").trim(), "2");
    // The same words change a directory that is written to directly.
    let direct = home.path().join("direct");
    fs::create_dir(&direct).unwrap();
    home.said(&["--workspace", direct.to_str().unwrap()], "echo x > /workspace/new");
    assert_eq!(fs::metadata(direct.join("new")).unwrap().size(), 2);
}

/// A workspace that holds agentd's own directories would let a job rewrite the store, records and logs.
#[test]
fn escape_a_workspace_around_agentds_own_directories_gives_no_way_in() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let image = format!("oci:{}", home.busybox_image().display());
    home.said(&["--image", &image], "true");
    let whole = home.path().to_str().unwrap();
    let mount = format!("type=bind,src={whole},dst=/home-of-user,rw");
    for (flags, place) in [(["--workspace", whole], "/workspace"), (["--mount", &mount], "/home-of-user")] {
        let script = format!("cd {place} && echo evil > data/agentd/store/evil; echo evil > state/agentd/evil; true");
        // Refused at the start, or out of reach inside: both are right.
        home.sh(&flags, &script);
        for place in ["data/agentd/store/evil", "state/agentd/evil"] {
            assert!(fs::metadata(home.path().join(place)).is_err(), "{flags:?} wrote {place}");
        }
    }
}

/// CVE-2026-46406: scratch files of agentd's own have no name that another user could have put there first.
#[test]
fn escape_cve_2026_46406_no_predictable_path_in_the_hosts_tmp() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let names = || -> Vec<String> {
        let entries = fs::read_dir("/tmp").unwrap().filter_map(Result::ok);
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.contains("agentd"))
            .collect()
    };
    let (before, inside) = (names(), home.said(&[], "ls -A /tmp /var/tmp"));
    assert_eq!(inside, "/tmp:\n\n/var/tmp:\n");
    let new: Vec<_> =
        names().into_iter().filter(|name| !before.contains(name) && !name.starts_with("agentd-test-")).collect();
    assert!(new.is_empty(), "{new:?}");
}

/// A set-user-ID program in a workspace runs outside as whoever started agentd, for every user of the host who finds it.
#[test]
fn escape_no_set_user_id_program_is_left_in_the_workspace() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let work = home.workspace();
    fs::write(work.join("file"), "x").unwrap();
    let words = |dir: &str| ["create-setuid=DIR/new", "chmod-setuid=DIR/file"].map(|word| word.replace("DIR", dir));
    let tried = words("/workspace");
    let flags = ["--workspace", work.to_str().unwrap()];
    assert_all(&home.attack(&flags, &tried.each_ref().map(String::as_str)), &["EPERM"]);
    for file in ["new", "file"] {
        let mode = fs::metadata(work.join(file)).map_or(0, |found| found.permissions().mode());
        assert_eq!(mode & 0o6000, 0, "{file}: {mode:o}");
    }
    let other = home.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("file"), "x").unwrap();
    let outside = words(other.to_str().unwrap());
    assert_all(&natively(&outside.each_ref().map(String::as_str)), &["ok"]);
}
