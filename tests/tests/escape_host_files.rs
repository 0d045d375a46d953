//! Reading host paths that were not given (THREATS.md, 1).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use agentd_tests::attack::natively;
use agentd_tests::{Feature, Home, is_root, require, run};

const CANARY: &str = "canary-of-the-host";

/// Tries `read=` of each path natively, where it works, and in a box started with `flags`, where nothing of it may.
#[track_caller]
fn assert_unreadable(home: &Home, flags: &[&str], paths: &[PathBuf]) {
    let words: Vec<String> = paths.iter().map(|path| format!("read={}", path.display())).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outside = natively(&words);
    assert!(outside.values().all(|outcome| outcome == "ok"), "{outside:?}");
    let inside = home.attack(flags, &words);
    assert!(inside.values().all(|outcome| outcome == "ENOENT"), "{flags:?} {inside:?}");
}

#[test]
fn escape_home_state_and_store_are_not_there() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    // Another job, with its record and output.
    home.said(&[], "echo output of another job");
    let mut paths =
        vec![home.path().join(".ssh/id_ed25519"), home.path().join(".claude/credentials"), home.workspace().join("x")];
    for path in &paths {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, CANARY).unwrap();
    }
    let jobs = fs::read_dir(home.state().join("jobs")).unwrap();
    paths.extend(jobs.flat_map(|job| fs::read_dir(job.unwrap().path()).unwrap()).map(|file| file.unwrap().path()));
    assert!(paths.iter().any(|path| path.ends_with("stdout.log")), "no output in {}", home.state().display());
    assert_unreadable(&home, &[], &paths);
    assert_unreadable(&home, &["--net", "host", "--user", "root"], &paths);
    if require(Feature::Busybox) {
        let image = format!("oci:{}", home.busybox_image().display());
        home.said(&["--image", &image], "true");
        paths.push(home.busybox_image().join("index.json"));
        assert_unreadable(&home, &["--image", &image], &paths);
    }
}

/// `HOME` may lead elsewhere: the home that the user database has is private all the same.
#[test]
fn escape_the_home_of_the_user_database_is_not_shown_with_the_software() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let accounts = home.path().join("config/passwd");
    let agentd = home.agentd();
    // Root of this namespace is that user, and what it mounts is his.
    let script = "mount -t tmpfs -o mode=755 none /usr/share && touch /usr/share/mine && mount --bind \"$1\" /etc/passwd && \
                  exec \"$0\" run -q -- sh -c 'ls -A /usr/share && echo listed'";
    for (of_user, seen) in [("/usr/share", "listed\n"), ("/nonexistent", "mine\nlisted\n")] {
        fs::write(&accounts, format!("root:x:0:0::{of_user}:/bin/sh\n")).unwrap();
        let mut command = Command::new("unshare");
        command.args(if is_root() { &["-m"][..] } else { &["-Urm"] }).args(["sh", "-c", script]).env_clear();
        command.arg(agentd.get_program()).arg(&accounts);
        command.envs(agentd.get_envs().filter_map(|(name, value)| Some((name, value?))));
        assert_eq!(run(&mut command).expect_success().stdout, seen, "{of_user}");
    }
}

#[test]
fn escape_no_directory_of_people_or_services_is_shown() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let said = home.said(
        &[],
        "ls -A / /home /root /var /srv /mnt /media /boot /run /tmp /var/lib /var/log /var/cache 2>/dev/null; true",
    );
    let top = said.split("\n\n").next().unwrap();
    for name in ["root", "srv", "mnt", "media", "boot", "lost+found"] {
        assert!(!top.lines().any(|line| line == name), "/{name}\n{said}");
    }
    for own in fs::read_dir("/home").into_iter().flatten().filter_map(Result::ok) {
        let name = own.file_name().into_string().unwrap();
        assert!(name == "agent" || !said.lines().any(|line| line == name), "/home/{name}");
    }
    for place in ["/var/lib", "/var/log", "/var/cache", "/run", "/tmp"] {
        let listing = said.split("\n\n").find(|part| part.starts_with(&format!("{place}:")));
        assert_eq!(listing.map(|part| part.trim_end().lines().count()), Some(1), "{place} is not empty\n{said}");
    }
}

/// Files under `dir` that not everybody may read, and directories that not everybody may enter.
fn private_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        let Ok(metadata) = entry.metadata() else { continue };
        let path = entry.path();
        let wanted = if metadata.is_dir() { 0o005 } else { 0o004 };
        if metadata.is_symlink() {
            continue;
        }
        if metadata.mode() & wanted != wanted {
            found.push(path);
        } else if metadata.is_dir() {
            private_below(&path, found);
        }
    }
}

#[test]
fn escape_no_private_file_of_etc_is_there() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let mut private = Vec::new();
    private_below(Path::new("/etc"), &mut private);
    assert!(private.contains(&"/etc/shadow".into()), "{private:?}");
    let named =
        ["ssh", "sudoers", "machine-id", "fstab", "crontab", "subuid", "subgid", "systemd", "passwd-", "group-"];
    // The backups that shadow(5)'s tools leave say the same as what they are backups of.
    let named = named.iter().chain(&["subuid-", "subgid-", "shadow-", "gshadow-"]);
    private.extend(named.map(|name| Path::new("/etc").join(name)));
    let words: Vec<String> = private.iter().map(|path| format!("read={}", path.display())).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    for flags in [&[][..], &["--user", "root"]] {
        let inside = home.attack(flags, &words);
        let wrong: Vec<_> = inside.iter().filter(|(_, outcome)| *outcome != "ENOENT").collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        // Nor through the overlay's own eyes: no listing names them.
        let listing = home.said(flags, "find /etc 2>/dev/null; true");
        let seen: Vec<_> =
            private.iter().filter(|path| listing.lines().any(|line| Path::new(line) == **path)).collect();
        assert!(seen.is_empty(), "{seen:?}");
    }
    let natively = natively(&["read=/etc/shadow"]);
    let expected = if fs::File::open("/etc/shadow").is_ok() { "ok" } else { "EACCES" };
    assert_eq!(natively["read=/etc/shadow"], expected);
}

/// Where agentd runs as root, a file that only root may read is as readable inside as the box's id is root's.
#[test]
fn escape_no_private_file_of_the_software_is_readable() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let mut private = Vec::new();
    for dir in ["/usr", "/opt"] {
        private_below(Path::new(dir), &mut private);
    }
    // Set-user-ID programs are often unreadable, and are no secret.
    private.retain(|path| path.metadata().is_ok_and(|found| found.is_dir() || found.mode() & 0o6000 == 0));
    let words: Vec<String> = private
        .iter()
        .map(|path| {
            let verb = if path.metadata().is_ok_and(|found| found.is_dir()) { "list" } else { "read" };
            format!("{verb}={}", path.display())
        })
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let inside = home.attack(&[], &words);
    let readable: Vec<_> = inside.iter().filter(|(_, outcome)| *outcome == "ok").collect();
    assert!(readable.is_empty(), "{readable:?}");
}

/// Links of a workspace lead where the box's own tree leads, never to the host's.
#[test]
fn escape_links_of_the_workspace_resolve_inside() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let work = home.workspace();
    let secret = home.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("file"), CANARY).unwrap();
    symlink(&secret, work.join("absolute")).unwrap();
    symlink("../secret", work.join("relative")).unwrap();
    symlink("../".repeat(40) + home.path().to_str().unwrap(), work.join("far")).unwrap();
    symlink("/proc/self/root", work.join("magic")).unwrap();
    symlink("/etc/shadow", work.join("shadow")).unwrap();
    let links = ["absolute/file", "relative/file", "far/secret/file"];
    let outside: Vec<String> = links[..2].iter().map(|link| format!("read={}", work.join(link).display())).collect();
    let outside: Vec<&str> = outside.iter().map(String::as_str).collect();
    assert!(natively(&outside).values().all(|outcome| outcome == "ok"));
    let inside: Vec<String> = links
        .iter()
        .map(|link| format!("/workspace/{link}"))
        .chain([
            format!("/workspace/magic{}/file", secret.display()),
            "/workspace/shadow".into(),
            "/workspace/../../secret/file".into(),
        ])
        .map(|path| format!("read={path}"))
        .collect();
    let inside: Vec<&str> = inside.iter().map(String::as_str).collect();
    let outcomes = home.attack(&["--workspace", work.to_str().unwrap()], &inside);
    assert!(outcomes.values().all(|outcome| outcome == "ENOENT"), "{outcomes:?}");
}

#[test]
fn escape_descriptors_and_magic_links_lead_nowhere() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let canary = home.path().join("canary");
    fs::write(&canary, CANARY).unwrap();
    let path = canary.display();
    let mut words: Vec<String> = (0..12)
        .flat_map(|fd| [format!("list=/proc/self/fd/{fd}/"), format!("read=/proc/self/fd/{fd}/../{path}")])
        .collect();
    for process in ["1", "self", "2", "thread-self", "self/task/1"] {
        for link in ["root", "cwd"] {
            words.push(format!("read=/proc/{process}/{link}{path}"));
            words.push(format!("read=/proc/{process}/{link}/../../../../..{path}"));
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let inside = home.attack(&[], &words);
    assert!(inside.values().all(|outcome| outcome != "ok"), "{inside:?}");
    let own =
        [format!("read=/proc/self/root{path}"), format!("read=/proc/thread-self/cwd/../../../../../../../../..{path}")];
    let own = own.each_ref().map(String::as_str);
    assert!(natively(&own).values().all(|outcome| outcome == "ok"));
}

/// /proc and /sys tell about the machine, and where agentd runs as root the box's id owns their files.
#[test]
fn escape_kernel_files_for_root_only_are_not_readable() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let files = [
        "/proc/kcore",
        "/proc/kmsg",
        "/proc/kpagecount",
        "/proc/kpageflags",
        "/proc/kpagecgroup",
        "/proc/slabinfo",
        "/proc/vmallocinfo",
        "/proc/pagetypeinfo",
        "/proc/sched_debug",
        "/proc/vmcore",
        "/proc/mtrr",
        "/sys/kernel/debug/sched",
        "/sys/kernel/tracing/trace",
        "/sys/kernel/security/lockdown",
        "/dev/mem",
        "/dev/kmsg",
    ];
    let words = files.map(|file| format!("read={file}"));
    let words = words.each_ref().map(String::as_str);
    for network in ["none", "host"] {
        let inside = home.attack(&["--net", network], &words);
        // A covered file may be opened and is empty.
        let readable: Vec<_> = inside.iter().filter(|(_, outcome)| *outcome == "ok").map(|(word, _)| word).collect();
        let script = readable.iter().map(|word| format!("head -c 1 {};", &word["read=".len()..])).collect::<String>();
        let said = home.said(&["--net", network], &format!("{script} true"));
        assert!(said.is_empty(), "--net {network}: {readable:?}");
    }
    assert_eq!(home.said(&[], "cat /proc/keys /proc/key-users /proc/interrupts"), "");
    assert_ne!(fs::read_to_string("/proc/keys").unwrap(), "");
    assert!(fs::metadata("/proc/keys").unwrap().permissions().mode() & 0o400 != 0);
}
