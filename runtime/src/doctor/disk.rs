//! Where agentd keeps things: the store of unpacked layers, and the records.
//!
//! Invariant: nothing is made that has a name. A directory that is not there yet is judged by the nearest that is, which
//! is where it would be made.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use agentd_init::step::Step;
use agentd_rootfs::{Places, Store};
use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, XattrFlags, access, fsetxattr, openat, statvfs, statx,
};
use rustix::io::Errno;

use super::boxes::{Boxes, source};
use super::host::Host;
use super::trial::reach;
use super::{Finding, Verdict, refusal, trial};

/// Bytes below which an image of common size does not fit.
const SCARCE: u64 = 2 << 30;

/// A directory that is there, and what it lies on.
struct Ground {
    path: PathBuf,
    is_directory: bool,
    kind: String,
    free: u64,
}

/// The store, where it is or would be made: in the first place that can carry it.
pub(super) fn store(places: &Places, host: &Host, boxes: Boxes) -> Finding {
    let extra = places.extra.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
    let own = match Store::existing(places) {
        Err(error) => {
            let remedy = "see to its owner and mode, or set AGENTD_STORE to another directory";
            return Finding::limited("store", format!("no image can be used: {error}"), remedy.to_owned());
        }
        Ok(Some(store)) => store_at(store.path(), host, boxes),
        Ok(None) => {
            let mut findings = places.own.iter().map(|path| store_at(path, host, boxes));
            let first = findings.next();
            let better = first
                .as_ref()
                .filter(|first| first.verdict != Verdict::Ok)
                .and_then(|_| findings.find(|finding| finding.verdict == Verdict::Ok));
            match (first, better) {
                (Some(first), Some(better)) => {
                    Finding::ok("store", format!("{}, because {}", better.found, first.found))
                }
                (Some(first), None) => first,
                (None, _) => Finding::limited("store", "there is no place for it", "set AGENTD_STORE".to_owned()),
            }
        }
    };
    let found = if extra.is_empty() { own.found } else { format!("{}; also reads {}", own.found, extra.join(", ")) };
    Finding { found, ..own }
}

/// Can layers be unpacked there, and can a box be made of them?
fn store_at(path: &Path, host: &Host, boxes: Boxes) -> Finding {
    let subject = "store";
    let elsewhere = "set AGENTD_STORE to a directory of another file system";
    let ground = match ground(path, host) {
        Ok(ground) => ground,
        Err(problem) => {
            return Finding::limited(subject, problem, "set AGENTD_STORE to a directory of this user".to_owned());
        }
    };
    let described = describe(path, &ground);
    let limited = |problem: String, remedy: &str| {
        Finding::limited(subject, format!("{described}; no image can be used: {problem}"), remedy.to_owned())
    };
    if let Some((problem, remedy)) = unwritable(&ground, "AGENTD_STORE") {
        return limited(problem, &remedy);
    }
    if let Err(why) = open(&ground.path).map_err(|errno| errno.to_string()).and_then(agentd_rootfs::store::suitable) {
        return limited(format!("{} {why}", ground.path.display()), elsewhere);
    }
    if let Err(errno) = carries_xattrs(&ground.path) {
        return limited(format!("files there carry no user.* attributes ({errno})"), elsewhere);
    }
    if boxes == Boxes::Work
        && let Some(source) = source(&ground.path)
    {
        let reached = reach(&trial::overlay(source));
        if !reached.past(Step::AssembleRoot) {
            let Finding { found, remedy, .. } = refusal::finding(subject, &reached, host);
            return limited(found, remedy.as_deref().unwrap_or(elsewhere));
        }
    }
    Finding::ok(subject, described)
}

/// What is to be said where the store has little room.
pub(super) fn room(places: &Places, host: &Host) -> Option<Finding> {
    let existing = Store::existing(places).ok()?.map(|store| store.path().to_owned());
    let path = existing.or_else(|| places.own.first().cloned())?;
    let ground = ground(&path, host).ok().filter(|ground| ground.free < SCARCE)?;
    let remedy = "make room there, or set AGENTD_STORE to a directory of another file system";
    Some(Finding::limited("store-room", describe(&path, &ground), remedy.to_owned()))
}

fn open(directory: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The records: without one no job starts.
pub(super) fn records(path: &Path, host: &Host) -> Finding {
    let subject = "records";
    match ground(path, host) {
        Err(problem) => Finding::broken(subject, problem, "set XDG_STATE_HOME to a directory of this user".to_owned()),
        Ok(ground) => match unwritable(&ground, "XDG_STATE_HOME") {
            Some((problem, remedy)) => {
                Finding::broken(subject, format!("{}; {problem}", describe(path, &ground)), remedy)
            }
            None => Finding::ok(subject, describe(path, &ground)),
        },
    }
}

fn ground(path: &Path, host: &Host) -> Result<Ground, String> {
    let problem = |path: &Path, errno: Errno| format!("{}: {errno}", path.display());
    for path in path.ancestors().filter(|path| path.is_absolute()) {
        let stat = match statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS | StatxFlags::MNT_ID) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(problem(path, errno)),
        };
        let space = statvfs(path).map_err(|errno| problem(path, errno))?;
        let kind = host.mounts.iter().find(|mount| mount.id == stat.stx_mnt_id).map(|mount| mount.kind.clone());
        return Ok(Ground {
            path: path.to_owned(),
            is_directory: FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory,
            kind: kind.unwrap_or_else(|| "an unknown file system".into()),
            free: space.f_bavail.saturating_mul(space.f_frsize),
        });
    }
    Err(format!("{}: not an absolute path", path.display()))
}

fn describe(path: &Path, ground: &Ground) -> String {
    let yet = if ground.path == path { "" } else { " (made when needed)" };
    format!("{}{yet} on {}, {} free", path.display(), ground.kind, size(ground.free))
}

/// What keeps this user from making things there, and what to do about it.
fn unwritable(ground: &Ground, variable: &str) -> Option<(String, String)> {
    let path = ground.path.display();
    if !ground.is_directory {
        return Some((format!("{path} is not a directory"), format!("move it away, or set {variable}")));
    }
    let errno = access(&ground.path, Access::WRITE_OK | Access::EXEC_OK).err()?;
    Some((
        format!("{path} cannot be written: {errno}"),
        format!("make it this user's, or set {variable} to a directory that is"),
    ))
}

/// Layers are marked with user extended attributes (opaque directories). Where no nameless file can be made there is
/// nothing to try it on.
fn carries_xattrs(directory: &Path) -> Result<(), Errno> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let Ok(file) = openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR) else { return Ok(()) };
    fsetxattr(&file, "user.agentd.doctor", b"y", XattrFlags::empty())
}

fn size(bytes: u64) -> String {
    let tenths = |unit: u64| format!("{}.{}", bytes / unit, bytes % unit * 10 / unit);
    match bytes {
        0..0x4000_0000 => format!("{} MiB", tenths(1 << 20)),
        _ => format!("{} GiB", tenths(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_with_a_unit() {
        for (bytes, text) in
            [(0, "0.0 MiB"), (3 << 19, "1.5 MiB"), (1 << 30, "1.0 GiB"), (u64::MAX, "17179869183.9 GiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_judged_by_the_one_above() {
        let host = Host::look();
        let ground = ground(Path::new("/proc/self/not/there"), &host).unwrap();
        assert_eq!((ground.path.as_path(), ground.kind.as_str()), (Path::new("/proc/self"), "proc"));
        let file = super::ground(Path::new("/proc/self/status/below"), &host);
        assert!(file.is_err_and(|problem| problem.contains("Not a directory")));
    }

    #[test]
    fn records_that_cannot_be_made_stop_every_run() {
        let finding = records(Path::new("/proc/self/status"), &Host::look());
        assert_eq!(finding.verdict, super::super::Verdict::Broken);
        assert!(finding.found.contains("is not a directory"), "{finding:?}");
        assert!(finding.remedy.is_some_and(|remedy| remedy.contains("XDG_STATE_HOME")));
    }
}
