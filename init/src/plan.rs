//! The fully resolved description of a box: everything PID 1 does follows from it, and `agentd run --dry-run` prints it.
//!
//! Invariant: a plan says what is, not what might be: paths are absolute, host objects carry the device and inode that
//! were looked at when the plan was made, and a difference at mount time ends the start.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

pub use agentd_profiles::{BuiltIn, LandlockRight, PathAccess, PathRight};
use rustix::fs::{FileType, RawMode};
use rustix::process::Resource;
use serde::{Deserialize, Serialize};

/// A box, ready to be built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoxPlan {
    /// UTS host name.
    pub hostname: String,
    /// Who the payload is; the only ids that are mapped, unless there are `subids`.
    pub identity: Identity,
    /// Further ids, which the host's helpers map before PID 1 goes on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub subids: Option<SubIds>,
    /// Which network the box sees.
    pub network: Network,
    /// What leads to the broker, where the box has one; its network is [`Network::None`] then.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub doors: Option<Doors>,
    /// What `/` is made of.
    pub root: Root,
    /// Mounts on top of the root, in this order.
    pub mounts: Vec<Mount>,
    /// Paths of writable binds that the payload must not change, parents first.
    pub guards: Vec<Guard>,
    /// Whether PID 1 begins in a cgroup that is the box's own, which the box then sees, read-only, and nothing above it.
    #[serde(default)]
    pub own_cgroup: bool,
    /// Resource limits of every process of the box.
    pub limits: Vec<Limit>,
    /// Those of the payload's processes alone, which they are given last: what was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub ulimits: Vec<Limit>,
    /// Landlock rules for the payload.
    pub landlock: Landlock,
    /// The system-call filter of the payload.
    pub seccomp: Seccomp,
    /// What is executed.
    pub process: Process,
}

/// One host id and what it is called inside; ids of the host that are not mapped appear as 65534.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The invoking user's effective uid on the host.
    pub host_uid: u32,
    /// The invoking user's effective gid on the host.
    pub host_gid: u32,
    /// The uid inside.
    pub box_uid: u32,
    /// The gid inside.
    pub box_gid: u32,
}

/// How many ids a box has. PID 1 has to know before it has its plan: it keeps some of its capabilities for several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// The user's own.
    One,
    /// His ranges as well.
    Several,
}

impl BoxPlan {
    /// How many ids the box has.
    #[must_use]
    pub fn ids(&self) -> Ids {
        if self.subids.is_some() { Ids::Several } else { Ids::One }
    }
}

/// Further ids of a box: parts of the ranges that the host's administrator has given its user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubIds {
    /// Of users.
    pub uids: Vec<IdRange>,
    /// Of groups.
    pub gids: Vec<IdRange>,
}

/// Ids in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first, inside.
    pub inside: u32,
    /// The same on the host.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The network of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// A network namespace with nothing but `lo`.
    None,
    /// The host's own network: every address the host reaches, its loopback services included.
    Host,
}

/// Addresses and sockets of a box that lead to its broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doors {
    /// Addresses that `lo` gets.
    pub addresses: Vec<Net>,
    /// Networks of which every address becomes the box's own.
    pub local: Vec<Net>,
    /// Ports at which every address of the box is listened to.
    pub ports: Vec<u16>,
    /// Where the name service is, for datagrams and streams.
    pub names: (Ipv4Addr, u16),
    /// Where the proxy is, where the box has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub proxy: Option<(Ipv4Addr, u16)>,
}

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    /// The address.
    pub address: IpAddr,
    /// Bits.
    pub prefix: u8,
}

/// A file or directory of the host, by path and by identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Absolute host path.
    pub path: PathBuf,
    /// `st_dev` when the plan was made.
    pub device: u64,
    /// `st_ino` when the plan was made.
    pub inode: u64,
}

/// What `/` is made of, under what the box may write on top of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Unpacked image layers, lowest first. Empty: the root is an empty tree that mounts fill (`host`).
    pub layers: Vec<Source>,
    /// Whether writes to the root are allowed; they land on the box's tmpfs and are thrown away.
    pub writable: bool,
    /// Whether the supervisor gets a descriptor of what was written, to keep it when the box is gone.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub keep: bool,
    /// Bytes that all writable places that are not the workspace may hold together.
    pub storage: u64,
    /// Directories, files and links laid over the layers.
    pub additions: Vec<Addition>,
    /// Directories that must exist when all is mounted; those that do not are created, following the image's links in-root.
    pub ensure: Vec<String>,
}

/// Something laid over the layers. Parents are made as needed; paths are relative to the root and free of links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum Addition {
    /// An empty directory.
    Directory {
        /// Path relative to the root.
        path: String,
    },
    /// An empty directory that a mount covers: what the layers have there is never seen.
    Covered {
        /// Path relative to the root.
        path: String,
    },
    /// A regular file, mode 0644.
    File {
        /// Path relative to the root.
        path: String,
        /// Whole contents.
        contents: String,
    },
    /// A symbolic link.
    Link {
        /// Path relative to the root.
        path: String,
        /// What it points to.
        to: String,
    },
    /// A whiteout: the name does not exist, whatever the layer below has.
    Hidden {
        /// Path relative to the root.
        path: String,
    },
}

/// Whether everybody may read what has this mode: of the host's /etc nothing else is shown.
#[must_use]
pub fn is_for_everybody(kind: FileType, mode: RawMode) -> bool {
    let wanted = if kind == FileType::Directory { 0o005 } else { 0o004 };
    mode & wanted == wanted
}

impl Addition {
    /// Path relative to the root.
    #[must_use]
    pub fn path(&self) -> &str {
        let (Self::Directory { path }
        | Self::Covered { path }
        | Self::File { path, .. }
        | Self::Link { path, .. }
        | Self::Hidden { path }) = self;
        path
    }

    /// The same addition at another path.
    #[must_use]
    pub fn at(mut self, elsewhere: String) -> Self {
        let (Self::Directory { path }
        | Self::Covered { path }
        | Self::File { path, .. }
        | Self::Link { path, .. }
        | Self::Hidden { path }) = &mut self;
        *path = elsewhere;
        self
    }
}

/// Whether what is bound may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Writes fail with EROFS.
    ReadOnly,
    /// Writes go to the host.
    ReadWrite,
}

/// File or directory: what a bind's target has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// A mount on top of the root. Targets are absolute box paths, resolved inside the root whatever links the image holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum Mount {
    /// A fresh /proc of the box's pid namespace.
    Proc {
        /// Read-only as a whole where the mapped id is the host's root: it owns files there whose modes are the machine's.
        access: Access,
        /// Paths under /proc that become read-only where they exist.
        read_only: Vec<String>,
        /// Paths under /proc that are covered by something empty where they exist.
        masked: Vec<String>,
    },
    /// A fresh /dev.
    Dev {
        /// Names of the host's /dev that are bound.
        nodes: Vec<String>,
    },
    /// /sys, read-only.
    Sys {
        /// Paths under /sys that are covered by something empty where they exist.
        masked: Vec<String>,
    },
    /// A directory of the box's own tmpfs.
    Scratch {
        /// Absolute box path.
        target: String,
        /// Permission bits.
        mode: u32,
    },
    /// A directory of the root itself that stays writable when the root is sealed; writes are thrown away.
    Writable {
        /// Absolute box path.
        target: String,
    },
    /// A host directory seen through an overlay: parts hidden or replaced, writes kept off the host.
    HostTree {
        /// The host directory.
        source: Source,
        /// Absolute box path.
        target: String,
        /// Whether writes are allowed; they are thrown away.
        writable: bool,
        /// What differs from the host's.
        additions: Vec<Addition>,
    },
    /// A host file or directory, with what is mounted below it.
    Bind {
        /// The host object.
        source: Source,
        /// Absolute box path.
        target: String,
        /// Whether the target is a directory.
        kind: Kind,
        /// Whether it may be written.
        access: Access,
    },
    /// Secrets, each a file of mode 0400 that nobody can write, in memory that is never swapped.
    Secrets {
        /// Absolute box path.
        target: String,
        /// Names of the files; what is in them comes another way ([`crate::Secrets`]).
        names: Vec<String>,
    },
    /// Certificates, the same way: they are made when the box is started.
    Trust {
        /// Absolute box path.
        target: String,
        /// Names of the files.
        names: Vec<String>,
    },
}

impl Mount {
    /// Absolute box path of the mount.
    #[must_use]
    pub fn target(&self) -> &str {
        match self {
            Mount::Proc { .. } => "/proc",
            Mount::Dev { .. } => "/dev",
            Mount::Sys { .. } => "/sys",
            Mount::Scratch { target, .. }
            | Mount::Writable { target }
            | Mount::HostTree { target, .. }
            | Mount::Bind { target, .. }
            | Mount::Trust { target, .. }
            | Mount::Secrets { target, .. } => target,
        }
    }
}

/// A path of a writable bind that the payload must not change, or must not move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// Absolute box path of the bind.
    pub base: String,
    /// Below it: names with slashes between; none but the last is a link, and each of those before is a guard too.
    pub path: String,
    /// How it is held.
    #[serde(flatten)]
    pub hold: Hold,
}

/// How a path is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "hold")]
pub enum Hold {
    /// A directory on the way: it stays where it is, and what is in it may change.
    Pinned {
        /// The directory.
        object: Object,
    },
    /// It stays as it is, with everything in it.
    ReadOnly {
        /// The file, directory or link.
        object: Object,
    },
    /// It stays absent.
    Absent {
        /// What stands there meanwhile.
        stub: Stub,
    },
}

/// A host object, as it was when the plan was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// `st_ctime`, in nanoseconds.
    pub changed: i64,
}

/// Names of projects' settings that [`Stub::Socket`] stands for as an empty directory, as a payload sees it; where a link of
/// a protected directory leads, it sees nothing.
pub const SETTINGS: [&str; 9] =
    [".git", ".agentd", ".claude", ".cursor", ".vscode", ".idea", ".devcontainer", ".envrc", ".husky"];
/// The one that is a list of servers, without any.
pub const SERVERS: &str = ".mcp.json";

/// What stands on the host, as long as the job runs, where a protected path does not exist: nothing to programs there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stub {
    /// A socket nobody listens on: git neither shows, adds nor cleans it.
    Socket,
    /// An empty directory.
    Directory,
    /// An empty file.
    Empty,
    /// A file that says `.`: to git's `commondir` what its absence means.
    Here,
}

/// A resource limit (getrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Which.
    pub resource: LimitedResource,
    /// Soft limit; `None` is unlimited.
    pub soft: Option<u64>,
    /// Hard limit; `None` is unlimited.
    pub hard: Option<u64>,
}

/// What can be limited (getrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitedResource {
    /// Size of a core dump in bytes.
    Core,
    /// Open descriptors of a process.
    OpenFiles,
    /// Processes and threads of the box (counted per user namespace since Linux 5.14).
    Processes,
    /// Seconds of processor time of a process.
    CpuTime,
    /// Bytes of a process's data.
    Data,
    /// Bytes of a file that it writes.
    FileSize,
    /// Locks of files.
    Locks,
    /// Bytes of memory that is kept from being swapped.
    LockedMemory,
    /// Bytes of POSIX message queues.
    MessageQueues,
    /// 20 less the lowest nice value.
    Nice,
    /// Real-time priority.
    RealTimePriority,
    /// Microseconds of real-time scheduling without a pause.
    RealTimeTime,
    /// Bytes of resident memory; Linux does not enforce it.
    ResidentSet,
    /// Signals that wait.
    PendingSignals,
    /// Bytes of a stack.
    Stack,
}

impl LimitedResource {
    /// Which it is for getrlimit(2), and its name in docker's and podman's words, which are limits.conf(5)'s.
    #[must_use]
    pub fn names(self) -> (Resource, &'static str) {
        match self {
            Self::Core => (Resource::Core, "core"),
            Self::OpenFiles => (Resource::Nofile, "nofile"),
            Self::Processes => (Resource::Nproc, "nproc"),
            Self::CpuTime => (Resource::Cpu, "cpu"),
            Self::Data => (Resource::Data, "data"),
            Self::FileSize => (Resource::Fsize, "fsize"),
            Self::Locks => (Resource::Locks, "locks"),
            Self::LockedMemory => (Resource::Memlock, "memlock"),
            Self::MessageQueues => (Resource::Msgqueue, "msgqueue"),
            Self::Nice => (Resource::Nice, "nice"),
            Self::RealTimePriority => (Resource::Rtprio, "rtprio"),
            Self::RealTimeTime => (Resource::Rttime, "rttime"),
            Self::ResidentSet => (Resource::Rss, "rss"),
            Self::PendingSignals => (Resource::Sigpending, "sigpending"),
            Self::Stack => (Resource::Stack, "stack"),
        }
    }
}

/// Landlock rules (landlock(7)); what no rule grants is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landlock {
    /// The kernel's ABI.
    pub abi: u32,
    /// What is enforced; a kernel that cannot ends the start.
    pub rights: Vec<LandlockRight>,
    /// Grants; none where no right is about files.
    pub paths: Vec<PathGrant>,
}

/// A system-call filter, and the profile it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seccomp {
    /// Name of the profile.
    pub profile: String,
    /// `sha256:…` of all that the profile has the kernel enforce.
    pub digest: String,
    /// The filter.
    pub filter: Filter,
    /// Whether the supervisor answers the filter's denials, and so hears of them.
    #[serde(default)]
    pub told: bool,
    /// Whether the supervisor is asked about every refusal, and may let calls through: `agentd profile learn`.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub learning: bool,
}

/// Where a filter's program is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// In agentd itself.
    BuiltIn(BuiltIn),
    /// Here: compiled from a file.
    Compiled(Vec<Instruction>),
}

/// An instruction of classic BPF: code, jumps when true and when false, operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction(pub u16, pub u8, pub u8, pub u32);

/// What may be done beneath a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathGrant {
    /// Absolute box path.
    pub path: String,
    /// The rights.
    pub access: PathAccess,
}

/// What is executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments; a program without a slash is looked up in the box along its PATH.
    pub argv: Vec<String>,
    /// The whole environment, `NAME=value`.
    pub env: Vec<String>,
    /// Absolute box path of the working directory.
    pub cwd: String,
    /// Whether it gets a terminal of the box's own devpts.
    pub terminal: bool,
    /// Whether standard input is passed on; else it is the box's /dev/null.
    pub input: bool,
    /// Number of the signal that asks it to end, 1 to 64.
    #[serde(default = "sigterm")]
    pub stop_signal: i32,
}

/// What plans of earlier versions stand for.
fn sigterm() -> i32 {
    libc::SIGTERM
}

impl Process {
    /// The directories, separated by colons, in which a program without a slash is looked up.
    #[must_use]
    pub fn search_path(&self) -> &str {
        self.env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default()
    }
}
