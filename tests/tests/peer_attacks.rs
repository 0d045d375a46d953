//! The attacks of `agentd doctor --attack`, tried from a box of agentd's and from what bubblewrap and podman make of their
//! own recommended or default flags. The table is docs/peers.md; `UPDATE_DOCS=1` writes it anew, as an ordinary user.
#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test tells what it skips and saw, and ends by a panic"
)]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Command;

use agentd_attacks::suite::{Attack, Targets, attacks};
use agentd_tests::attack::{self, Outcomes, program};
use agentd_tests::unpackers::Podman;
use agentd_tests::{Feature, Home, require, run, skip_without};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/peers.md");

const HEAD: &str = "\
# Which of us stops what

The attacks of `agentd doctor --attack`, tried by the same program as an ordinary user: in a box of `agentd run` with no flag but the mount of that
program, in one of bubblewrap, and in one of podman. **works** means that it got through; everything else is what the kernel answered.
`tests/tests/peer_attacks.rs` makes this page (`UPDATE_DOCS=1 cargo test -p agentd-tests --test peer_attacks`) and fails when agentd stops less.

The three are not after the same thing. bubblewrap is a tool for building sandboxes: it does what its flags say, and leaves system calls to a filter
that the caller brings. podman runs services, which may be root in their container and write to its root. What would stop an attack there
too is said below the table; some of what works is harmless where it works. **itself**: the box's first process is the program that attacks it.

bwrap was given `--unshare-all --cap-drop ALL --new-session --die-with-parent` and, read-only, `/usr`, as in its man page; podman its defaults,
without a network. All were started by a process that had left a directory of its user open.
";

/// What would stop what works in a peer: the attacks, and the peer's own means. Each success must stand here.
struct Remedy {
    peer: &'static str,
    attacks: &'static [&'static str],
    means: &'static str,
}

const REMEDIES: &[Remedy] = &[
    Remedy {
        peer: "bwrap",
        attacks: &[
            "file-handle",
            "set-user-id",
            "whiteout",
            "vsock",
            "af-alg",
            "netlink-audit",
            "netlink-netfilter",
            "i386-socket",
            "x32-socket",
            "personality",
            "io-uring",
            "bpf",
            "perf",
            "userfaultfd",
            "keyctl",
            "add-key",
            "fanotify",
        ],
        means: "`--seccomp FD`, with a filter of the caller's own",
    },
    Remedy {
        peer: "bwrap",
        attacks: &["unshare-user", "clone-user", "clone3-user"],
        means: "`--unshare-user --disable-userns` (since 0.8), or the same filter",
    },
    Remedy {
        peer: "bwrap",
        attacks: &["tiocsti", "tiocsti-high", "tioclinux"],
        means: "nothing needs to: the terminal is the program's own, and `--new-session`, given here, keeps it off yours",
    },
    Remedy {
        peer: "bwrap",
        attacks: &[
            "root-of-pid-1",
            "pid-1-memory",
            "pid-1-vm",
            "trace-pid-1",
            "write-pid-1",
            "channel",
            "signal-pid-1",
        ],
        means: "the same filter (`ptrace`, `process_vm_readv`, `pidfd_getfd`), or `--as-pid-1`, with which there is nobody else. \
                It is bwrap's own process and holds its command line and streams; its rights are those of the program",
    },
    Remedy {
        peer: "bwrap",
        attacks: &["descriptors"],
        means: "the caller: bwrap hands on the descriptors it inherits, which is how `--seccomp` and `--sync-fd` get theirs",
    },
    Remedy {
        peer: "bwrap",
        attacks: &["write-root"],
        means: "`--remount-ro /`; what is written lies in memory and goes with the sandbox",
    },
    Remedy { peer: "bwrap", attacks: &["fork-bomb"], means: "`prlimit --nproc=N`, or a cgroup, around it" },
    Remedy {
        peer: "podman",
        attacks: &[
            "file-handle",
            "set-user-id",
            "whiteout",
            "vsock",
            "af-alg",
            "netlink-netfilter",
            "i386-socket",
            "x32-socket",
            "unshare-user",
            "clone-user",
            "clone3-user",
        ],
        means: "`--security-opt seccomp=FILE` with a stricter profile than its default one",
    },
    Remedy {
        peer: "podman",
        attacks: &["tiocsti", "tiocsti-high", "tioclinux"],
        means: "nothing needs to: the terminal is the container's own, with `-t` too",
    },
    Remedy {
        peer: "podman",
        attacks: &["keyctl"],
        means: "nothing needs to: the runtime gives the container a session key ring of its own",
    },
    Remedy {
        peer: "podman",
        attacks: &["write-root", "write-etc", "write-usr", "reopen", "reopen-path"],
        means: "`--read-only`; what is written stays in the container, or in the directory given to `--rootfs`",
    },
    Remedy { peer: "podman", attacks: &["chroot"], means: "`--cap-drop ALL`" },
    Remedy {
        peer: "podman",
        attacks: &["fork-bomb"],
        means: "`--pids-limit`, which is 2048 by default where podman has cgroups (rootless: version 2, delegated), else `--ulimit nproc=N`",
    },
];

/// One who makes boxes.
struct Peer<'a> {
    name: &'static str,
    version: String,
    /// Starts `/attack` in a box of its own.
    make: Box<dyn Fn() -> Command + 'a>,
    /// The program is the first process: what it does to that, it does to itself.
    is_pid_1: bool,
}

impl<'a> Peer<'a> {
    fn find(name: &'static str, is_pid_1: bool, make: impl Fn() -> Command + 'a) -> Option<Self> {
        let Ok(output) = Command::new(name).arg("--version").output() else {
            skip_without(&[name], &format!("{name} is not installed"));
            return None;
        };
        let version = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
        Some(Peer { name, version, make: Box::new(make), is_pid_1 })
    }

    /// Tries `words`; none when the peer cannot run here.
    fn attempt(&self, words: &[&str]) -> Option<Outcomes> {
        let ran = run((self.make)().args(["list=/", "list=/"]));
        if ran.code() != 0 {
            eprintln!("skipped: {} does not run here\n{ran}", self.name);
            return None;
        }
        Some(attack::outcomes(words, |words| run((self.make)().args(words))))
    }
}

/// bwrap(1)'s own example, with every namespace and no capability.
fn bubblewrap() -> Option<Peer<'static>> {
    let words = "--unshare-all --cap-drop ALL --new-session --die-with-parent --ro-bind /usr /usr --symlink usr/bin /bin \
                 --symlink usr/lib /lib --symlink usr/lib64 /lib64 --proc /proc --dev /dev --tmpfs /tmp --ro-bind";
    Peer::find("bwrap", false, move || {
        let mut command = Command::new("bwrap");
        command.args(words.split_whitespace()).arg(program()).args(["/attack", "/attack"]);
        command
    })
}

/// podman's defaults, on a root that holds the program and the usual directories. What comes before `run` is what a machine
/// without systemd needs.
fn in_podman<'a>(podman: &'a Podman<'_>, root: &'a Path) -> Option<Peer<'a>> {
    for directory in ["usr", "etc", "tmp", "proc", "sys", "dev", "run"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(program(), root.join("attack")).unwrap();
    let words = "--runtime runc --cgroup-manager cgroupfs run --rm --network none --rootfs";
    Peer::find("podman", true, move || {
        let mut command = podman.command();
        command.args(words.split_whitespace()).arg(root).arg("/attack");
        command
    })
}

#[test]
fn peer_attacks_are_stopped_by_agentd_whatever_others_stop() {
    if !require(Feature::Userns) || !require(Feature::OrdinaryUser) {
        return;
    }
    let home = Home::new();
    let private = home.path().join("canary");
    fs::write(&private, "canary").unwrap();
    let listeners: Vec<TcpListener> =
        ["127.0.0.1:0", "[::1]:0"].iter().filter_map(|address| TcpListener::bind(address).ok()).collect();
    let name = format!("agentd-peers-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let targets = Targets {
        private: Some(private),
        listeners: listeners.iter().map(|listener| listener.local_addr().unwrap()).collect(),
        abstract_socket: Some(name),
        process: Some(std::process::id()),
        processes: Some(4200),
    };
    // Who outlives a box is judged from outside it.
    let all: Vec<Attack> = attacks(&targets).into_iter().filter(|attack| attack.word != "outlive").collect();
    let words: Vec<&str> = all.iter().map(|attack| &*attack.word).collect();

    // For everybody: what a careless caller leaves open.
    let left_open = fs::File::open(home.path()).unwrap();
    rustix::io::fcntl_setfd(&left_open, rustix::io::FdFlags::empty()).unwrap();
    let version = run(home.agentd().arg("--version")).expect_success().stdout.trim().to_owned();
    let mut columns = vec![Column { name: "agentd", version, is_pid_1: false, outcomes: home.attack(&[], &words) }];
    let root = home.path().join("podman-root");
    let podman = Podman::new(&home);
    for peer in [bubblewrap(), in_podman(&podman, &root)].into_iter().flatten() {
        if let Some(outcomes) = peer.attempt(&words) {
            columns.push(Column { name: peer.name, version: peer.version, is_pid_1: peer.is_pid_1, outcomes });
        }
    }

    let working: BTreeMap<&str, Vec<&str>> = columns
        .iter()
        .map(|column| (column.name, all.iter().filter(|a| column.lets_through(a)).map(|a| a.name).collect()))
        .collect();
    eprintln!("{working:#?}");
    assert!(working["agentd"].is_empty(), "{:?} got through", working["agentd"]);
    // What the words could never do would be stopped by everybody.
    let natively = attack::natively(&["unshare-user", "io-uring", "open=/etc/passwd"]);
    assert!(natively.values().all(|outcome| outcome == "ok"), "{natively:?}");
    let unexplained: Vec<_> = working
        .iter()
        .flat_map(|(peer, names)| names.iter().map(move |name| (*peer, *name)))
        .filter(|(peer, name)| !REMEDIES.iter().any(|r| r.peer == *peer && r.attacks.contains(name)))
        .collect();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(PAGE, page(&all, &columns)).unwrap();
    }
    assert!(unexplained.is_empty(), "nothing is said of what would stop {unexplained:?}");
    let page = fs::read_to_string(PAGE).unwrap();
    let missing: Vec<_> = all.iter().filter(|attack| !page.contains(&format!("| {} |", attack.name))).collect();
    assert!(missing.is_empty(), "write docs/peers.md anew with UPDATE_DOCS=1: {missing:?}");
}

/// What one of them did.
struct Column {
    name: &'static str,
    version: String,
    is_pid_1: bool,
    outcomes: Outcomes,
}

impl Column {
    fn lets_through(&self, attack: &Attack) -> bool {
        let said = &self.outcomes[&*attack.word];
        let is_own = self.is_pid_1 && attack.is_about_pid_1();
        let reached = || attack.reached.iter().any(|errno| agentd_attacks::errno_name(*errno) == *said);
        !is_own && (said == "ok" || reached())
    }

    fn cell(&self, attack: &Attack) -> String {
        if self.lets_through(attack) {
            "**works**".into()
        } else if self.is_pid_1 && attack.is_about_pid_1() {
            "itself".into()
        } else {
            self.outcomes[&*attack.word].replace("killed by 31", "SIGSYS")
        }
    }
}

fn page(all: &[Attack], columns: &[Column]) -> String {
    let mut page = HEAD.to_owned();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let today = run(Command::new("date").arg("+%-d %B %Y")).expect_success().stdout;
    let joined = |cell: &dyn Fn(&Column) -> String, by: &str| columns.iter().map(cell).collect::<Vec<_>>().join(by);
    let versions = joined(&|column| column.version.clone(), ", ");
    page += &format!("\nSeen on {}, Linux {}: {versions}.\n\n", today.trim(), kernel.trim());
    let names = joined(&|column| column.name.to_owned(), " | ");
    page += &format!("| attack | a program inside … | {names} |\n|---|---|{}\n", "---|".repeat(columns.len()));
    for attack in all {
        let cells = joined(&|column| column.cell(attack), " | ");
        page += &format!("| {} | {} | {cells} |\n", attack.name, attack.says);
    }
    let count = |column: &Column| all.iter().filter(|attack| column.lets_through(attack)).count().to_string();
    page += &format!("| | **work** | {} |\n", joined(&count, " | "));
    for column in &columns[1..] {
        page += &format!("\n## What would stop the rest in {}\n\n", column.name);
        for remedy in REMEDIES.iter().filter(|remedy| remedy.peer == column.name) {
            let worked = all.iter().filter(|attack| column.lets_through(attack)).map(|attack| attack.name);
            let names: Vec<String> =
                worked.filter(|name| remedy.attacks.contains(name)).map(|name| format!("`{name}`")).collect();
            if !names.is_empty() {
                page += &format!("- {}: {}\n", names.join(", "), remedy.means);
            }
        }
    }
    page
}
