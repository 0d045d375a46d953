//! How the jobs of this user are: their records, those that run, what is left of those that do not, and room for more.
//!
//! Invariant: nothing is changed here; what could be mended by `Jobs::sweep` was, and what it could not comes along.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::statvfs;
use rustix::process::geteuid;

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
    let mut cgroups = abandoned(Path::new(HIERARCHY), jobs);
    if !cgroups.is_empty() {
        // Of a job that begins or ends in this moment: it has its cgroup before its record, and before anyone is in there.
        std::thread::sleep(MOMENT);
        let still = abandoned(Path::new(HIERARCHY), jobs);
        cgroups.retain(|path| still.contains(path));
    }
    let mut left: Vec<String> = troubles.iter().map(text).collect();
    if jobs.running().is_ok_and(|running| running.is_empty())
        && fs::read(jobs.stubs()).is_ok_and(|list| list.iter().any(|byte| *byte != 0))
    {
        left.push("stubs of protected paths in workspaces".into());
    }
    left.extend(cgroups.into_iter().map(|path| format!("the cgroup {}", path.display())));
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

/// Where cgroups are.
const HIERARCHY: &str = "/sys/fs/cgroup";
/// Longer than a start takes from its cgroup to a process in there.
const MOMENT: Duration = Duration::from_secs(1);

/// The cgroups below `hierarchy` that are called `agentd-ID`, belong to this user and hold nobody, of no job that runs here.
/// One that somebody lives in is another's: root may write in everybody's, and a user has as many state directories as
/// `XDG_STATE_HOME` had values.
fn abandoned(hierarchy: &Path, jobs: &Jobs) -> Vec<PathBuf> {
    /// Directories that are looked at: a machine has hundreds.
    const MOST: usize = 20_000;
    let (mut found, mut next) = (Vec::new(), vec![hierarchy.to_owned()]);
    let mut seen = 0;
    while let Some(directory) = next.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            seen += 1;
            if seen > MOST || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            match name.to_str().and_then(|name| name.strip_prefix("agentd-")?.parse::<JobId>().ok()) {
                Some(id) if is_ours_and_empty(&entry.path()) => found.push((id, entry.path())),
                Some(_) => {}
                None => next.push(entry.path()),
            }
        }
    }
    // Asked for last: a job that has begun since is no stranger.
    let running: BTreeSet<String> = jobs.running().unwrap_or_default().into_iter().map(String::from).collect();
    found.into_iter().filter(|(id, _)| !running.contains(id.as_str())).map(|(_, path)| path).collect()
}

/// Whether this user owns the cgroup and no process is in it or below (cgroup-v2.rst, "Un-populated notification").
fn is_ours_and_empty(cgroup: &Path) -> bool {
    let is_ours = fs::symlink_metadata(cgroup).is_ok_and(|found| found.uid() == geteuid().as_raw());
    let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
    is_ours && events.lines().any(|line| line == "populated 0")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_left_if_it_is_ours_and_nobody_lives_in_it() {
        let place = tempfile::tempdir().unwrap();
        let jobs = Jobs::at(place.path().join("state"));
        fs::create_dir_all(place.path().join("state/live")).unwrap();
        let cgroup = |path: &str, events: &str| {
            let path = place.path().join("cgroup").join(path);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("cgroup.events"), events).unwrap();
            path
        };
        let left = cgroup("user.slice/agentd-0123456789ab", "populated 0\nfrozen 0\n");
        cgroup("user.slice/agentd-0123456789ac", "populated 1\nfrozen 0\n");
        cgroup("user.slice/agentd-of-another-kind", "populated 0\n");
        // One that runs and has just come, one of a hierarchy that agentd makes nothing in.
        cgroup("agentd-0123456789ad", "populated 0\n");
        fs::write(place.path().join("state/live/0123456789ad"), "").unwrap();
        fs::create_dir_all(place.path().join("cgroup/agentd-0123456789ae")).unwrap();
        assert_eq!(abandoned(&place.path().join("cgroup"), &jobs), [left.as_path()]);
        if geteuid().is_root() {
            // Root may write in everybody's, and this one is not root's.
            std::os::unix::fs::chown(&left, Some(1), None).unwrap();
            assert!(abandoned(&place.path().join("cgroup"), &jobs).is_empty());
        }
    }
}
