//! What the host says about itself, read once. All of it only explains what a trial found.
//!
//! Invariant: a file that is missing, unreadable or not understood is "not known", never a guess.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// The host as it describes itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Host {
    /// `uname -r`.
    pub(super) release: String,
    /// Effective uid of this process.
    pub(super) uid: u32,
    /// `/proc/self/mountinfo`.
    pub(super) mounts: Vec<MountEntry>,
    /// What this process runs in.
    pub(super) enclosure: Enclosure,
    /// Whether a seccomp filter is on this process.
    pub(super) filtered: bool,
    /// Whether `no_new_privs` is set on it.
    pub(super) no_new_privs: bool,
    /// Its AppArmor label, where it is confined by one.
    pub(super) apparmor: Option<String>,
    /// Whether SELinux is enforcing.
    pub(super) selinux: bool,
    /// Whether it is in a user namespace that maps no ids at all.
    pub(super) unmapped: bool,
    /// `kernel.apparmor_restrict_unprivileged_userns` (Ubuntu 23.10 and later) is on.
    pub(super) apparmor_restricts: bool,
    /// `kernel.unprivileged_userns_clone` (Debian up to 10, hardened kernels) is off.
    pub(super) clone_forbidden: bool,
    /// Those `user.max_*_namespaces` that are 0.
    pub(super) no_namespaces: Vec<&'static str>,
    /// Namespaces of a box that this kernel does not have.
    pub(super) missing_namespaces: Vec<&'static str>,
    /// The file that this program is.
    pub(super) program: Option<PathBuf>,
}

/// A mount, as proc_pid_mountinfo(5) has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// Mount id, as statx(2) gives it.
    pub(crate) id: u64,
    /// What of the file system is mounted.
    pub(crate) root: String,
    /// Where.
    pub(crate) point: String,
    /// File system type.
    pub(crate) kind: String,
}

/// What a process can be shut in by design.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Enclosure {
    /// Nothing known.
    #[default]
    None,
    /// A Docker container.
    Docker,
    /// A Podman container.
    Podman,
    /// A Kubernetes pod.
    Pod,
    /// A systemd service, by unit name.
    Service(String),
}

/// Namespaces of a box: the name under /proc/self/ns, and its sysctl.
const NAMESPACES: &[(&str, &str)] = &[
    ("user", "max_user_namespaces"),
    ("mnt", "max_mnt_namespaces"),
    ("pid", "max_pid_namespaces"),
    ("ipc", "max_ipc_namespaces"),
    ("uts", "max_uts_namespaces"),
    ("net", "max_net_namespaces"),
    ("cgroup", "max_cgroup_namespaces"),
];

impl Host {
    /// Reads it all.
    pub(super) fn look() -> Self {
        let status = read("/proc/self/status");
        let cgroups = read("/proc/self/cgroup");
        Host {
            release: rustix::system::uname().release().to_string_lossy().into_owned(),
            uid: geteuid().as_raw(),
            mounts: parse_mounts(&read("/proc/self/mountinfo")),
            enclosure: enclosure(&cgroups),
            filtered: status_field(&status, "Seccomp") == Some("2"),
            no_new_privs: status_field(&status, "NoNewPrivs") == Some("1"),
            apparmor: confined(&read("/proc/self/attr/current")),
            selinux: read("/sys/fs/selinux/enforce").trim() == "1",
            unmapped: fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.trim().is_empty()),
            apparmor_restricts: sysctl("kernel/apparmor_restrict_unprivileged_userns") == Some(1),
            clone_forbidden: sysctl("kernel/unprivileged_userns_clone") == Some(0),
            no_namespaces: NAMESPACES
                .iter()
                .filter(|(_, limit)| sysctl(&format!("user/{limit}")) == Some(0))
                .map(|(_, limit)| *limit)
                .collect(),
            missing_namespaces: NAMESPACES
                .iter()
                .filter(|(name, _)| !is_there(&format!("/proc/self/ns/{name}")))
                .map(|(name, _)| *name)
                .collect(),
            program: fs::read_link("/proc/self/exe").ok(),
        }
    }

    /// Whether this process is in a chroot: its root is then not the root of a mount.
    pub(super) fn is_chroot(&self) -> bool {
        !self.mounts.is_empty() && !self.mounts.iter().any(|mount| mount.point == "/")
    }

    /// What is mounted over parts of `tree`, other than over directories made for it.
    pub(super) fn covered(&self, tree: &str) -> Vec<&str> {
        let made_for_it =
            ["/proc/sys/fs/binfmt_misc", "/proc/fs/nfsd", "/sys/fs/", "/sys/kernel/", "/sys/firmware/efi/"];
        self.mounts
            .iter()
            .map(|mount| mount.point.as_str())
            .filter(|point| Path::new(point).starts_with(tree) && *point != tree)
            .filter(|point| !made_for_it.iter().any(|known| point.starts_with(known)))
            .collect()
    }

    /// Kernel version, major and minor.
    pub(super) fn version(&self) -> Option<(u32, u32)> {
        let mut parts = self.release.split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

fn is_there(path: &str) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn enclosure(cgroups: &str) -> Enclosure {
    // A machine may be made of a container's image, its marks included; but it has the kernel's first pid namespace,
    // whose number is fixed (PROC_PID_INIT_INO).
    let is_machine = fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name == Path::new("pid:[4026531836]"));
    let marks = [
        ("/.dockerenv", Enclosure::Docker),
        ("/run/.containerenv", Enclosure::Podman),
        ("/run/secrets/kubernetes.io", Enclosure::Pod),
    ];
    let container = marks.into_iter().find(|(mark, _)| !is_machine && is_there(mark));
    container.map(|(_, container)| container).or_else(|| service(cgroups).map(Enclosure::Service)).unwrap_or_default()
}

fn read(path: &str) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn sysctl(name: &str) -> Option<u64> {
    read(&format!("/proc/sys/{name}")).trim().parse().ok()
}

fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The label of a confined process; a label without a mode, or none at all, confines nothing.
fn confined(label: &str) -> Option<String> {
    let label = label.trim_end_matches(['\n', '\0']);
    let name = label.strip_suffix(" (enforce)")?;
    Some(name.to_owned())
}

/// The systemd service that a process is in; those of a user's own manager are no enclosure.
fn service(cgroups: &str) -> Option<String> {
    let path = crate::cgroup::own(cgroups)
        .or_else(|| cgroups.lines().find_map(|line| Some(line.split_once(":name=systemd:")?.1)))?;
    let unit = path.rsplit('/').find(|part| part.ends_with(".service"))?;
    (!path.contains("/user@")).then(|| unit.to_owned())
}

/// The lines of a mountinfo; what is none is left out.
pub(crate) fn parse_mounts(table: &str) -> Vec<MountEntry> {
    let entry = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ');
        Some(MountEntry {
            id: mount.next()?.parse().ok()?,
            root: unescape(mount.nth(2)?),
            point: unescape(mount.next()?),
            kind: file_system.split(' ').next()?.to_owned(),
        })
    };
    table.lines().filter_map(entry).collect()
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |field, (escape, character)| field.replace(escape, character))
}

#[cfg(test)]
mod tests;
