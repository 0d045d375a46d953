//! What the box sees of files: its mount table, its devices, what it may write and for how long.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use agentd_tests::{Feature, Home, agentd, is_root, require, run};

/// A line of mountinfo: mount point, mount options, file-system type, root within the file system.
struct Mount {
    point: String,
    options: Vec<String>,
    kind: String,
    root: String,
}

fn table(home: &Home, flags: &[&str]) -> Vec<Mount> {
    let said = home.said(flags, "cat /proc/self/mountinfo");
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ").unwrap();
        let left: Vec<&str> = left.split(' ').collect();
        Mount {
            root: left[3].to_owned(),
            point: left[4].to_owned(),
            options: left[5].split(',').map(str::to_owned).collect(),
            kind: right.split(' ').next().unwrap().to_owned(),
        }
    };
    said.lines().map(mount).collect()
}

impl Mount {
    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|has| has == option)
    }
}

const NODES: [&str; 6] = ["full", "null", "random", "tty", "urandom", "zero"];

#[test]
fn userns_no_mount_honours_setuid_bits_or_device_nodes_of_others() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let work = home.workspace();
    let mut wrong = Vec::new();
    for flags in [&[][..], &["--writable"], &["--net", "host"], &["--workspace", work.to_str().unwrap()]] {
        for mount in table(&home, flags) {
            let is_node = mount.point.strip_prefix("/dev/").is_some_and(|name| NODES.contains(&name));
            if !mount.has("nosuid") {
                wrong.push(format!("{flags:?} {}: suid", mount.point));
            }
            if !mount.has("nodev") && !is_node && mount.kind != "devpts" {
                wrong.push(format!("{flags:?} {}: dev", mount.point));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn userns_what_is_not_scratch_or_workspace_is_read_only() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let work = home.workspace();
    let writable: Vec<String> = table(&home, &["--workspace", work.to_str().unwrap()])
        .into_iter()
        .filter(|mount| !mount.has("ro") && !mount.point.strip_prefix("/dev/").is_some_and(|n| NODES.contains(&n)))
        .map(|mount| mount.point)
        .collect();
    let mut expected = ["/dev/shm", "/dev/pts", "/tmp", "/run", "/scratch", "/home/agent", "/workspace"].to_vec();
    // The host's root would own what is there, and modes in /proc are the whole machine's.
    if !is_root() {
        expected.push("/proc");
    }
    let mut found: Vec<&str> = writable.iter().map(String::as_str).collect();
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
    let read_only = table(&home, &["--workspace", &format!("{}:ro", work.display())]);
    assert!(read_only.iter().any(|mount| mount.point == "/workspace" && mount.has("ro")));
}

#[test]
fn userns_the_mount_table_names_nothing_of_the_host_but_what_was_given() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let given = home.path().join("given");
    fs::create_dir(&given).unwrap();
    let own = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own: Vec<&str> = own.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
    let mount = format!("type=bind,src={},dst=/given", given.display());
    // Fresh in the box, whatever the host has there.
    let fresh = ["/", "/proc", "/sys", "/dev", "/dev/shm", "/dev/pts", "/tmp", "/run"];
    for network in ["none", "host"] {
        let table = table(&home, &["--net", network, "--mount", &mount]);
        for mount in &table {
            let place = mount.point.as_str();
            // What lies below the software that the host root shows may be mounts of the host.
            let software = ["/usr", "/opt", "/bin", "/sbin", "/lib", "/lib64", "/nix", "/gnu", "/etc"];
            let is_software = software.iter().any(|name| place == *name || place.starts_with(&format!("{name}/")));
            // With the host's network /sys is the host's, and what the host has mounted there comes along: covered.
            let covers = |cover: &&Mount| {
                let below = place.strip_prefix(cover.point.as_str());
                cover.root.starts_with("/own/") && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let is_covered = place.starts_with("/sys/") && table.iter().find(covers).is_some();
            // Root's jobs have a cgroup of their own where that can be had. The host's would begin above it (`/..`).
            let is_own_cgroup = place == "/sys/fs/cgroup" && mount.root == "/" && mount.has("ro");
            let is_fresh = fresh.contains(&place) || is_own_cgroup;
            let shared = own.contains(&place) && !is_fresh && !is_software && !is_covered;
            assert!(!shared, "{place} is a mount of the host, with --net {network}");
            let root = &mount.root;
            let names_home = root.contains(home.path().to_str().unwrap());
            assert!(!names_home || place == "/given" || place == "/attack", "{place}: {root}");
        }
    }
}

/// Also where every mount is shared, as systemd has it.
#[test]
fn userns_no_mount_event_travels_between_the_host_and_the_box() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let work = home.workspace();
    let travels = |table: &str| table.contains(" shared:") || table.contains(" master:");
    for flags in [&[][..], &["--writable"], &["--net", "host"], &["--workspace", work.to_str().unwrap()]] {
        let boxed = home.boxed(flags);
        let mut command = Command::new("unshare");
        command.args(if is_root() { &["-m"][..] } else { &["-Urm"] }).args(["--propagation", "shared", "sh", "-c"]);
        command.args(["cat /proc/self/mountinfo && echo inside: && exec \"$@\"", "sh"]);
        command.arg(boxed.get_program()).args(boxed.get_args()).args(["cat", "/proc/self/mountinfo"]).env_clear();
        command.envs(boxed.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let said = run(&mut command).expect_success().stdout;
        let (outside, inside) = said.split_once("inside:\n").unwrap();
        assert!(travels(outside), "the control: {outside}");
        assert!(!inside.is_empty() && !travels(inside), "{flags:?}\n{inside}");
    }
}

#[test]
fn userns_dev_holds_the_listed_nodes_and_no_other() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let said =
        home.said(&[], "cd /dev && for name in *; do echo \"$name $(stat -c '%F %t:%T' $name)\"; done; ls pts shm");
    let numbers: BTreeMap<&str, &str> = BTreeMap::from([
        ("full", "1:7"),
        ("null", "1:3"),
        ("random", "1:8"),
        ("tty", "5:0"),
        ("urandom", "1:9"),
        ("zero", "1:5"),
    ]);
    let mut expected: Vec<String> =
        numbers.iter().map(|(name, number)| format!("{name} character special file {number}")).collect();
    expected.extend(["fd", "ptmx", "stderr", "stdin", "stdout"].map(|name| format!("{name} symbolic link 0:0")));
    expected.extend(["pts", "shm"].map(|name| format!("{name} directory 0:0")));
    let (nodes, inside) = said.split_once("pts:\n").unwrap();
    let mut found: Vec<&str> = nodes.lines().collect();
    expected.sort();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(inside, "ptmx\n\nshm:\n");
}

#[test]
fn userns_scratch_is_writable_one_tmpfs_and_gone_in_the_next_run() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let places = "/tmp /run /scratch /home/agent /dev/shm";
    let left = format!("for d in {places}; do echo x > $d/left || exit 1; done; stat -c %d {places} | sort -u | wc -l");
    assert_eq!(home.said(&[], &left), "1\n", "scratch space is one file system");
    let again = home.said(&[], &format!("for d in {places}; do ls -A $d; done"));
    assert_eq!(again, "", "something survived");
    let writable = "echo x > /usr/left && echo x > /left && ls /left";
    assert_eq!(home.said(&["--image", &busybox(&home), "--writable"], writable), "/left\n");
    assert_ne!(home.sh(&["--image", &busybox(&home), "--writable"], "ls /left /usr/left").code(), 0);
    assert_ne!(home.sh(&["--image", &busybox(&home)], "echo x > /usr/left").code(), 0);
}

fn busybox(home: &Home) -> String {
    format!("oci:{}", home.busybox_image().display())
}

/// One bound for everything: bytes, and files too, whose inodes are memory of the kernel.
#[test]
fn userns_storage_bounds_bytes_and_files() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let fill = "for d in /tmp /run /scratch /home/agent /dev/shm; do head -c 1200000 /dev/zero > $d/x || exit 3; done";
    assert_eq!(home.sh(&["--storage", "4m"], fill).code(), 3);
    assert_eq!(home.sh(&["--storage", "64m"], fill).code(), 0, "the same fits into more");
    // The writable root is of that too: what does not fit is refused, and what the host has free is nobody's business.
    let fill_root = "head -c 6000000 /dev/zero > /etc/x || { stat -c %s /etc/x; exit 3; }";
    let refused = home.sh(&["--writable", "--storage", "4m"], fill_root).expect_code(3);
    assert!(refused.stderr.contains("No space left"), "{refused}");
    assert!(refused.stdout.trim().parse::<u64>().is_ok_and(|kept| kept <= 4 << 20), "{refused}");
    assert_eq!(home.sh(&["--writable", "--storage", "64m"], fill_root).code(), 0, "the same fits into more");
    assert!(fs::symlink_metadata("/etc/x").is_err(), "the host has none of it");
    let inodes: u64 = home.said(&["--storage", "4m"], "stat -f -c %c /tmp").trim().parse().unwrap();
    assert!(inodes <= 65_536, "{inodes} files fit into 4 MiB");
}

/// As every container has it: files of /etc are mounts, which an overlay in a user namespace must not uncover.
#[test]
fn userns_etc_is_the_same_where_something_is_mounted_below_it() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let look = "cd /etc; find . -type d -o -type l -printf '%p -> %l\\n' -o -printf '%p\\n' | sort; \
        find . -type f ! -name hostname ! -name hosts | sort | xargs sha256sum; \
        echo x >new || echo refused; echo x >profile || echo refused; echo x >ssl/new || echo refused; head -n1 ssl/new /dev/null; true";
    fs::write(home.path().join("look"), look).unwrap();
    let script = r#"
        look() { "$A" run -q --mount type=bind,src="$HOME/look",dst=/mnt/look "$@" -- sh /mnt/look 2>"$HOME/said"; }
        look >"$HOME/sealed" || exit 90
        look --writable >"$HOME/writable" || exit 91
        echo mounted >"$HOME/file"; mkdir "$HOME/directory"; echo secret >"$HOME/directory/below"
        chmod 600 "$HOME/directory/below"; echo shown >"$HOME/directory/shown"
        hash=$(sha256sum /etc/profile)
        for name in resolv.conf hosts hostname; do
            [ -e /etc/$name ] || continue
            mount --bind "$HOME/file" /etc/$name || exit 92
        done
        # In a directory, on one that is hidden, and on one that is seen, with something to hide.
        mount --bind "$HOME/file" "$(find /etc/pam.d /etc/ssl -maxdepth 1 -type f -perm -004 | head -n1)" || exit 93
        mount --bind "$HOME/directory" /etc/systemd && mount --bind "$HOME/directory" /etc/default || exit 94
        look >"$HOME/sealed.mounted" || { cat "$HOME/said"; exit 95; }
        look --writable >"$HOME/writable.mounted" || { cat "$HOME/said"; exit 96; }
        [ "$hash" = "$(sha256sum /etc/profile)" ] && [ ! -e /etc/new ] && [ ! -e /etc/ssl/new ] || exit 97
        # The control: these mounts are what no overlay goes over.
        mkdir -p "$HOME/o/u" "$HOME/o/w" "$HOME/o/m"; mount -t tmpfs none "$HOME/o" && mkdir "$HOME/o/u" "$HOME/o/w" "$HOME/o/m"
        unshare -Urm mount -t overlay -o "userxattr,lowerdir=/etc,upperdir=$HOME/o/u,workdir=$HOME/o/w" none "$HOME/o/m" 2>/dev/null && exit 98
        exit 0
    "#;
    let mut command = Command::new("unshare");
    command.args(if is_root() { &["-m"][..] } else { &["-Urm"] }).args(["sh", "-c", script]).env_clear();
    command.envs(home.agentd().get_envs().filter_map(|(name, value)| Some((name, value?)))).env("A", agentd());
    let _ran = run(&mut command).expect_success();
    let read = |name: &str| fs::read_to_string(home.path().join(name)).unwrap();
    // A copy belongs to the box, which could put another file in the place of one that does not.
    let others = |said: &str| -> Vec<String> {
        said.lines().filter(|line| line.contains("./") && !line.contains("./default/")).map(str::to_owned).collect()
    };
    for name in ["sealed", "writable"] {
        let (plain, mounted) = (read(name), read(&format!("{name}.mounted")));
        assert!(plain.contains("./profile\n") && !plain.contains("./shadow\n"), "{plain}");
        assert!(mounted.contains("./default/shown\n") && !mounted.contains("./default/below"), "{mounted}");
        let (plain, mounted) = (others(&plain), others(&mounted));
        let gone: Vec<_> = plain.iter().filter(|line| !mounted.contains(line)).collect();
        assert_eq!(gone.len(), 1, "{gone:?}");
        // Of the rest only the file that was mounted is another.
        let differ: Vec<_> = mounted.iter().filter(|line| !plain.contains(line)).collect();
        assert_eq!(differ.len(), 1, "{differ:?}");
    }
    assert_eq!(read("sealed.mounted").matches("refused").count(), 3);
    // A small machine has no certificates, and then no such directory.
    let has_certificates = fs::exists("/etc/ssl").unwrap();
    for name in ["writable", "writable.mounted"].iter().filter(|_| has_certificates) {
        assert!(read(name).contains("==> ssl/new <==\nx\n"), "{}", read(name));
    }
}
