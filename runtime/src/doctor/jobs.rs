//! How the jobs of this user are: their records, those that run, what is left of those that do not, and room for more.
//!
//! Invariant: nothing is changed here; what could be mended by `Jobs::sweep` was, and what it could not comes along.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rustix::fs::statvfs;

use super::Finding;
use crate::job::id::JobId;
use crate::job::record::Record;
use crate::job::store::{JobStoreError, Jobs};

/// Of a file system's blocks and inodes, that many hundredths should be free.
const SCARCE: u64 = 5;
/// Names that are told of many.
const SHOWN: usize = 3;

/// Looks at the jobs; `swept` is what [`Jobs::sweep`] has just said, `places` are directories that need room.
#[must_use]
pub fn examine(
    jobs: &Jobs,
    swept: &(Vec<JobId>, Vec<JobStoreError>),
    places: &[(&'static str, &Path)],
) -> Vec<Finding> {
    let mut findings = vec![records(jobs), running(jobs), left(jobs, swept)];
    findings.extend(places.iter().filter_map(|(subject, path)| room(subject, path)));
    findings
}

fn records(jobs: &Jobs) -> Finding {
    let subject = "job-records";
    match jobs.list_brief() {
        Err(error) => {
            Finding::limited(subject, text(&error), "see to the owner and mode of the state directory".to_owned())
        }
        Ok((records, troubles)) if troubles.is_empty() => {
            Finding::ok(subject, format!("{} can be read", records.len()))
        }
        Ok((_, troubles)) => {
            let first: Vec<String> = troubles.iter().take(SHOWN).map(text).collect();
            let found = format!("{} cannot be read: {}", troubles.len(), first.join("; "));
            Finding::limited(subject, found, "`agentd rm` removes a job whose record is lost".to_owned())
        }
    }
}

fn running(jobs: &Jobs) -> Finding {
    let subject = "running-jobs";
    let (records, _told_above) = match jobs.list_running() {
        Ok(listed) => listed,
        Err(error) => return Finding::limited(subject, text(&error), None),
    };
    let silent: Vec<&Record> = records.iter().filter(|record| is_stopped(record.supervisor_pid)).collect();
    match silent.first() {
        None => Finding::ok(subject, format!("{} run", records.len())),
        Some(first) => {
            let found =
                format!("{} of {} have a supervisor that is stopped: {}", silent.len(), records.len(), first.id);
            let remedy =
                format!("`kill -CONT {}` lets it go on, `agentd rm -f {}` ends it", first.supervisor_pid, first.id);
            Finding::limited(subject, found, remedy)
        }
    }
}

/// Whether a process is stopped by a signal or a debugger (proc_pid_stat(5)): it answers nobody and keeps no time.
fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

/// What jobs that do not run have left beside their records.
fn left(jobs: &Jobs, (lost, troubles): &(Vec<JobId>, Vec<JobStoreError>)) -> Finding {
    let subject = "left-behind";
    let running: BTreeSet<String> = jobs.running().unwrap_or_default().into_iter().map(String::from).collect();
    let mut left: Vec<String> = troubles.iter().map(text).collect();
    if running.is_empty() && fs::read(jobs.stubs()).is_ok_and(|list| list.iter().any(|byte| *byte != 0)) {
        left.push("stubs of protected paths in workspaces".into());
    }
    left.extend(
        cgroups().into_iter().filter(|(id, _)| !running.contains(id)).map(|(_, path)| format!("the cgroup {path}")),
    );
    if let Some(first) = left.first() {
        let found = format!("{}: {first}", left.len());
        return Finding::limited(subject, found, "`agentd prune` removes what it may; see why it may not".to_owned());
    }
    match lost.len() {
        0 => Finding::ok(subject, "nothing"),
        count => Finding::ok(
            subject,
            format!("nothing any more; {count} jobs whose supervisor was killed are cleaned up after"),
        ),
    }
}

/// The cgroups called `agentd-ID` that this user can see and change, with the id.
fn cgroups() -> Vec<(String, String)> {
    /// Directories that are looked at: a machine has hundreds.
    const MOST: usize = 20_000;
    let (mut found, mut next) = (Vec::new(), vec![std::path::PathBuf::from("/sys/fs/cgroup")]);
    let mut seen = 0;
    while let Some(directory) = next.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            seen += 1;
            if seen > MOST || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_prefix("agentd-")?.parse::<JobId>().ok());
            let is_ours = rustix::fs::access(entry.path(), rustix::fs::Access::WRITE_OK).is_ok();
            match id.filter(|_| is_ours) {
                Some(id) => found.push((id.into(), entry.path().display().to_string())),
                None => next.push(entry.path()),
            }
        }
    }
    found
}

/// Room for more; nothing to say of a directory that is not there yet, and of a file system that counts no inodes.
fn room(subject: &'static str, path: &Path) -> Option<Finding> {
    let space = path.ancestors().find_map(|path| statvfs(path).ok())?;
    let hundredths = |free: u64, all: u64| free.saturating_mul(100).checked_div(all).unwrap_or(100);
    let (blocks, inodes) = (hundredths(space.f_bavail, space.f_blocks), hundredths(space.f_favail, space.f_files));
    let found = format!("{}: {blocks} % of its file system is free, {inodes} % of the inodes", path.display());
    Some(if blocks < SCARCE || inodes < SCARCE {
        Finding::limited(
            subject,
            found,
            "make room: `agentd rm -a` forgets jobs, `agentd prune` removes layers".to_owned(),
        )
    } else {
        Finding::ok(subject, found)
    })
}

fn text(error: &JobStoreError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
