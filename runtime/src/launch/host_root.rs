//! `--image host`: the machine's own software, read-only, without its people and secrets.
//!
//! What is shown is a list, not what is hidden: directories that hold software by the Filesystem Hierarchy Standard.
//! Home directories, /root, /var, /run, /srv, /mnt, /boot and whatever else a machine has are simply not there. /etc is
//! the one directory of the list that also holds secrets: it is seen through an overlay that hides every file that not
//! everybody may read, and the names of [`HIDDEN`].
//!
//! Invariant: nothing under /etc that is not world-readable is visible, also when agentd runs as the host's root.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use agentd_init::plan::{Access, Addition, Kind, Mount, Source, is_for_everybody};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, readlinkat, statat};
use rustix::io::Errno;

use super::PlanError;

/// Directories of the host's root that hold software. /opt is left out for root, whose private files there are its own.
pub(crate) const SOFTWARE: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "opt", "nix", "gnu"];

/// Names under /etc that are world-readable on many machines and say more than software needs.
const HIDDEN: &[(&str, &str)] = &[
    ("NetworkManager", "networks and their passwords"),
    ("agentd", "what agentd runs on this machine"),
    ("cloud", "instance data"),
    ("cron.d", "what runs when, with which arguments"),
    ("crontab", "what runs when, with which arguments"),
    ("crypttab", "disks"),
    ("docker", "registry and daemon credentials"),
    ("environment", "often holds tokens"),
    ("exports", "the network's file systems"),
    ("fstab", "may hold credentials of network file systems"),
    ("gshadow", "group passwords"),
    ("krb5.keytab", "keys"),
    ("kubernetes", "cluster credentials"),
    ("machine-id", "identifies the machine"),
    ("openvpn", "keys"),
    ("passwd-", "names of people"),
    ("group-", "names of people"),
    ("rancher", "cluster credentials"),
    ("shadow", "password hashes"),
    ("ssh", "host keys, and who may log in"),
    ("subgid", "names of people"),
    ("subgid-", "names of people"),
    ("subuid", "names of people"),
    ("subuid-", "names of people"),
    ("sudoers", "who may become root"),
    ("sudoers.d", "who may become root"),
    ("systemd", "units, whose environment often holds tokens"),
    ("wireguard", "keys"),
    ("wpa_supplicant", "networks and their passwords"),
];

/// Bounds of the walk through /etc.
const MAX_DEPTH: usize = 16;
const MAX_ENTRIES: usize = 100_000;

/// What the host's root is made of.
pub(super) struct HostRoot {
    /// Laid over the empty root.
    pub(super) additions: Vec<Addition>,
    /// The software.
    pub(super) mounts: Vec<Mount>,
}

/// Looks at the host's root. `private` are host paths (homes, state) that must not be seen even if they lie in one of
/// the directories of software; `replacements` are the files of /etc that the box has of its own.
pub(super) fn plan(
    as_root: bool,
    writable: bool,
    private: &[PathBuf],
    replacements: Vec<Addition>,
) -> Result<HostRoot, PlanError> {
    let error = |path: &str, errno: Errno| PlanError::HostPath {
        what: "the host's",
        path: path.into(),
        cause: errno.into(),
        hint: None,
    };
    let mut root = HostRoot { additions: Vec::new(), mounts: Vec::new() };
    for name in SOFTWARE.iter().filter(|name| !(as_root && **name == "opt")) {
        let path = format!("/{name}");
        let stat = match statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(error(&path, errno)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let to = readlinkat(CWD, &path, Vec::new()).map_err(|errno| error(&path, errno))?;
                let to = to.to_string_lossy().into_owned();
                root.additions.push(Addition::Link { path: (*name).to_owned(), to });
            }
            FileType::Directory => root.mounts.push(Mount::Bind {
                source: Source { path: (&path).into(), device: stat.st_dev, inode: stat.st_ino },
                target: path,
                kind: Kind::Directory,
                access: Access::ReadOnly,
            }),
            _ => {}
        }
    }
    for directory in ["var/cache", "var/lib", "var/log"] {
        root.additions.push(Addition::Directory { path: directory.into() });
    }
    for (link, to) in [("var/tmp", "../tmp"), ("var/run", "../run")] {
        root.additions.push(Addition::Link { path: link.into(), to: to.into() });
    }
    root.mounts.push(Mount::HostTree {
        source: super::directory(Path::new("/etc"), "the host's")?,
        target: "/etc".into(),
        writable,
        additions: etc(replacements).map_err(|source| PlanError::Host { what: "what /etc holds", source })?,
    });
    let shown = |path: &&PathBuf| SOFTWARE.iter().any(|name| path.starts_with(format!("/{name}")));
    for path in private.iter().filter(shown) {
        if let (Some(target), Ok((_, Kind::Directory))) = (path.to_str(), super::source(path, "private")) {
            root.mounts.push(Mount::Scratch { target: target.to_owned(), mode: 0o700 });
        }
    }
    Ok(root)
}

/// `replacements`, and a whiteout for everything under /etc that is not for everybody.
fn etc(replacements: Vec<Addition>) -> io::Result<Vec<Addition>> {
    let mut additions = replacements;
    let replaced: Vec<String> = additions
        .iter()
        .filter_map(|addition| match addition {
            Addition::File { path, .. } => Some(path.clone()),
            _ => None,
        })
        .collect();
    let is_hidden = |path: &str| HIDDEN.iter().any(|(name, _)| *name == path);
    let mut entries = 0;
    let etc = openat(CWD, "/etc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut directories: Vec<(OwnedFd, String)> = vec![(etc, String::new())];
    while let Some((directory, prefix)) = directories.pop() {
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else {
                // A name that is no text cannot stand in the plan; a walk that cannot see everything must not go on.
                return Err(io::Error::other(format!("/etc/{prefix}: a name there is not UTF-8")));
            };
            if matches!(name, "." | "..") {
                continue;
            }
            entries += 1;
            let path = format!("{prefix}{name}");
            let is_link = entry.file_type() == FileType::Symlink;
            if replaced.contains(&path) || (is_link && !is_hidden(&path)) {
                continue;
            }
            let stat = match statat(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            if is_hidden(&path) || !is_for_everybody(kind, stat.st_mode) {
                additions.push(Addition::Hidden { path });
            } else if kind == FileType::Directory {
                if path.split('/').count() > MAX_DEPTH || entries > MAX_ENTRIES {
                    return Err(io::Error::other(format!("/etc/{path}: more than agentd looks through")));
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                directories.push((openat(&directory, name, flags, Mode::empty())?, format!("{path}/")));
            }
        }
    }
    Ok(additions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_private_below_the_software_is_covered_after_it() {
        let private = ["/usr/share", "/etc", "/usr/no-such-directory"].map(PathBuf::from);
        for writable in [false, true] {
            let root = plan(false, writable, &private, Vec::new()).unwrap();
            let is_software = |mount: &Mount| matches!(mount, Mount::Bind { target, .. } if target == "/usr");
            let is_cover = |mount: &Mount| matches!(mount, Mount::Scratch { .. });
            let software = root.mounts.iter().position(is_software).unwrap();
            let covers: Vec<&Mount> = root.mounts.iter().skip(software).filter(|mount| is_cover(mount)).collect();
            assert_eq!(covers, [&Mount::Scratch { target: "/usr/share".into(), mode: 0o700 }]);
        }
        let nothing = plan(false, false, &[], Vec::new()).unwrap();
        assert!(!nothing.mounts.iter().any(|mount| matches!(mount, Mount::Scratch { .. })));
    }
}
