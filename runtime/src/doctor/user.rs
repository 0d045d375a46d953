//! What the kernel and this user are: little of it decides anything, all of it helps whoever reads a report.

use std::fs;

use rustix::process::{Resource, getgid, getrlimit, getuid};

use super::Finding;
use super::host::Host;

/// Processes below which an agent's build fails for want of them.
const FEW_PROCESSES: u64 = 256;

/// Open files below which common tools fail.
const FEW_FILES: u64 = 1024;

/// The running kernel.
pub(super) fn kernel(host: &Host) -> Finding {
    Finding::ok("kernel", format!("Linux {}", host.release))
}

/// Who runs agentd.
pub(super) fn user(host: &Host) -> Finding {
    let no_new_privs = if host.no_new_privs { ", no_new_privs is set already" } else { "" };
    let found = format!("uid {}, gid {}{no_new_privs}", host.uid, getgid().as_raw());
    if host.uid == 0 {
        let remedy = "run agentd as an ordinary user: what got out of a box would then not be root".to_owned();
        return Finding::limited("user", found, remedy);
    }
    Finding::ok("user", found)
}

/// RLIMIT_NPROC, which a box inherits.
pub(super) fn processes() -> Finding {
    limit("processes", getrlimit(Resource::Nproc).current, FEW_PROCESSES, "`ulimit -u`, nproc in limits.conf(5)")
}

/// RLIMIT_NOFILE: agentd raises the soft limit of a box, up to the hard one.
pub(super) fn open_files() -> Finding {
    limit("open-files", getrlimit(Resource::Nofile).maximum, FEW_FILES, "`ulimit -Hn`, nofile in limits.conf(5)")
}

fn limit(subject: &'static str, limit: Option<u64>, few: u64, where_set: &str) -> Finding {
    match limit {
        Some(limit) if limit < few => {
            Finding::limited(subject, format!("at most {limit}"), format!("raise it to {few} or more ({where_set})"))
        }
        Some(limit) => Finding::ok(subject, format!("at most {limit}")),
        None => Finding::ok(subject, "unlimited"),
    }
}

/// Ranges of subordinate ids. A box maps one id, so this is for whoever wonders.
pub(super) fn id_ranges() -> Finding {
    let uid = getuid().as_raw().to_string();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let ranges = fs::read_to_string("/etc/subuid").unwrap_or_default();
    let found = if has_range(&ranges, &passwd, &uid) { "in /etc/subuid" } else { "none" };
    Finding::ok("id-ranges", format!("{found}; a box needs none"))
}

fn has_range(ranges: &str, passwd: &str, uid: &str) -> bool {
    let name = passwd.lines().find(|line| line.split(':').nth(2) == Some(uid)).and_then(|line| line.split(':').next());
    ranges.lines().filter_map(|line| line.split(':').next()).any(|owner| owner == uid || Some(owner) == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_range_is_found_by_name_and_by_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        for (ranges, uid, expected) in [
            ("ann:100000:65536\n", "1000", true),
            ("1000:100000:65536\n", "1000", true),
            ("bob:100000:65536\n", "1000", false),
            ("", "1000", false),
            ("ann:100000:65536\n", "1001", false),
            ("\n", "1001", false),
        ] {
            assert_eq!(has_range(ranges, passwd, uid), expected, "{ranges:?} {uid}");
        }
    }

    #[test]
    fn only_absurdly_low_limits_are_worth_words() {
        for (given, verdict) in [(Some(20), Verdict::Limited), (Some(1024), Verdict::Ok), (None, Verdict::Ok)] {
            assert_eq!(limit("open-files", given, FEW_FILES, "").verdict, verdict);
        }
    }
}
