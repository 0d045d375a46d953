//! What the kernel and this user are: little of it decides anything, all of it helps whoever reads a report.

use std::fs;

use rustix::process::{Resource, getgid, getrlimit, getuid};

use super::Finding;
use super::host::Host;
use crate::launch::subids;

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

/// Ranges of subordinate ids. A box maps one id, so this is for `--userns subids` and for whoever wonders.
pub(super) fn id_ranges() -> Finding {
    let uid = getuid().as_raw();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let table = fs::read_to_string("/etc/subuid").unwrap_or_default();
    let ranges = subids::ranges(&table, uid, subids::name_of(&passwd, uid), uid);
    let found = if ranges.is_empty() { "none" } else { "in /etc/subuid" };
    Finding::ok("id-ranges", format!("{found}; only --userns subids needs some"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn only_absurdly_low_limits_are_worth_words() {
        for (given, verdict) in [(Some(20), Verdict::Limited), (Some(1024), Verdict::Ok), (None, Verdict::Ok)] {
            assert_eq!(limit("open-files", given, FEW_FILES, "").verdict, verdict);
        }
    }
}
