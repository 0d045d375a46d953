//! A box with several ids, from outside: has its ids mapped, and gives files of theirs back when it is gone (docs/adr/0021).
//!
//! Root of such a box may give a file of a writable directory of the host to one of its ids, which outside is nobody whom the
//! user could be. So each such job has a steward: a process that waits until the box is gone, whether its supervisor saw that or was
//! killed, enters the box's user namespace, and makes those files the user's again. What belonged to such an id before, and was left
//! alone (a volume of podman's), stays as it is: a change of owner sets a file's change time, and nothing in the box turns that back.
//!
//! Invariant: the steward changes owners and nothing else, and only of what belongs to an id of the box's own map, as the kernel
//! judges it (capabilities(7), CAP_CHOWN). It follows no link; a directory that moves meanwhile leads it to nothing but more files
//! of the user's own ids.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use agentd_init::plan::{Access, IdRange, Identity, Mount, Source, SubIds};
use agentd_sys::channel;
use agentd_sys::process::{Cloned, clone, exit_now};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, chownat, fstat, openat, openat2, statat,
};
use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, setsid, waitid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustix::time::{ClockId, Timespec as Time, clock_gettime};

use crate::job::record::Record;
use crate::launch::plan::Plan;
use crate::launch::subids::Helpers;

/// What an id that is not mapped looks like, and an id itself.
const OVERFLOW: u32 = 65_534;

/// Directories in each other that are looked into; each is an open descriptor.
const DEEPEST: usize = 256;

/// For how long a job's end waits for its steward, who goes on by himself.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// Ids that could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// A helper says no.
    #[error(
        "{helper} maps no ids for this job: {said}; it has to be set-user-ID root (or have file capabilities), and /etc/subuid and /etc/subgid to give the ranges; --fake-root needs neither"
    )]
    Refused {
        /// Its path.
        helper: String,
        /// Its words.
        said: String,
    },
    /// A call.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> MapError {
    move |source| MapError::Host { what, source: source.into() }
}

/// Waits for the end of a job to give back what is the user's.
#[derive(Debug)]
pub(super) struct Steward {
    process: OwnedFd,
    channel: OwnedFd,
}

/// Has the ids of a box mapped, whose PID 1 waits for that and is still dumpable; gives its steward, where it has a use for one.
pub(super) fn map(plan: &Plan, init: Pid, pidfd: &OwnedFd) -> Result<Option<Steward>, MapError> {
    let inside = &plan.inside;
    let (Some(SubIds { uids, gids }), Some(helpers)) = (&inside.subids, &plan.id_helpers) else { return Ok(None) };
    let Identity { host_uid, host_gid, box_uid, box_gid } = inside.identity;
    let Helpers { uids: newuidmap, gids: newgidmap } = helpers;
    // Side by side: each takes its time to start.
    let mut asked = Vec::new();
    for (helper, own, ranges) in [(newuidmap, (box_uid, host_uid), uids), (newgidmap, (box_gid, host_gid), gids)] {
        let own = IdRange { inside: own.0, outside: own.1, count: 1 };
        let rows = [&[own], ranges.as_slice()].concat();
        let mut command = Command::new(helper);
        command.env_clear().arg(init.as_raw_nonzero().to_string());
        command.args(rows.iter().flat_map(|row| [row.inside, row.outside, row.count]).map(|id| id.to_string()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        asked.push((helper, command.spawn().map_err(host("run a helper of the host"))?));
    }
    for (helper, child) in asked {
        let ran = child.wait_with_output().map_err(host("hear from a helper of the host"))?;
        if !ran.status.success() {
            let said = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
            return Err(MapError::Refused { helper: helper.display().to_string(), said });
        }
    }
    let writable = inside.mounts.iter().filter_map(|mount| match mount {
        Mount::Bind { source, access: Access::ReadWrite, .. } => Some(source),
        _ => None,
    });
    let roots: Vec<OwnedFd> = writable.map(open).collect::<Result<_, _>>()?;
    if roots.is_empty() {
        return Ok(None);
    }
    // The clock that file systems look at.
    let since = clock_gettime(ClockId::RealtimeCoarse);
    let users =
        File::open(format!("/proc/{}/ns/user", init.as_raw_nonzero())).map_err(host("open the box's namespace"))?;
    let (ours, theirs) = channel::pair().map_err(host("make a channel"))?;
    match clone(0).map_err(host("fork a steward"))? {
        Cloned::Child => {
            drop(ours);
            let done = serve(&theirs, pidfd, &users, &roots, since);
            exit_now(i32::from(done.is_err()))
        }
        Cloned::Parent { pidfd, .. } => Ok(Some(Steward { process: pidfd, channel: ours })),
    }
}

/// What is given to the box, if it still is what the plan means.
fn open(source: &Source) -> Result<OwnedFd, MapError> {
    let what = "open what the job may write";
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = openat2(CWD, &source.path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).map_err(host(what))?;
    let Stat { st_dev, st_ino, .. } = fstat(&opened).map_err(host(what))?;
    if (st_dev, st_ino) != (source.device, source.inode) {
        return Err(host(what)(Errno::STALE));
    }
    Ok(opened)
}

impl Steward {
    /// The box is gone: has the files given back, and says in the record what came of it.
    pub(super) fn finish(self, record: &mut Record) {
        match self.counts() {
            Ok(Counts { given: 0, left: 0 }) => {}
            Ok(Counts { given, left: 0 }) => {
                record.warnings.push(format!("{given} files that the command gave to other ids are yours again"));
            }
            Ok(Counts { left, .. }) => record.left.push(format!(
                "{left} files or directories that the job could write may still belong to ids of /etc/subuid: a further job with \
                 --userns subids and the same directories tries again when it ends"
            )),
            Err(error) => record.left.push(format!(
                "files that the job could write may still belong to ids of /etc/subuid, and are being given back: {error}"
            )),
        }
    }

    fn counts(&self) -> io::Result<Counts> {
        channel::send(self.channel.as_fd(), b"G", None)?;
        if poll(&mut [PollFd::new(&self.channel, PollFlags::IN)], Some(&PATIENCE))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let counts = channel::receive(&self.channel)?.and_then(|message| Counts::decode(&message.bytes));
        waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED)?;
        counts.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// What a steward did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    given: u64,
    left: u64,
}

impl Counts {
    fn encode(self) -> [u8; 16] {
        (u128::from(self.given) | u128::from(self.left) << 64).to_le_bytes()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (given, left) = bytes.split_first_chunk()?;
        Some(Counts { given: u64::from_le_bytes(*given), left: u64::from_le_bytes(left.try_into().ok()?) })
    }
}

/// The steward's life.
fn serve(channel: &OwnedFd, init: &OwnedFd, users: &File, roots: &[OwnedFd], since: Time) -> io::Result<()> {
    setsid()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    let mut keep = vec![channel.as_raw_fd(), init.as_raw_fd(), users.as_raw_fd()];
    keep.extend(roots.iter().map(AsRawFd::as_raw_fd));
    agentd_sys::descriptors::close_all_but(&mut keep)?;
    // The supervisor's word, or its end.
    channel::receive(channel)?;
    // PID 1 goes last, and with its supervisor at the latest.
    while poll(&mut [PollFd::new(init, PollFlags::IN)], None) == Err(Errno::INTR) {}
    move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User))?;
    let mut counts = Counts::default();
    for root in roots {
        give_back(root, since, &mut counts);
    }
    // Who is gone needs no answer.
    channel::send(channel.as_fd(), &counts.encode(), None).unwrap_or_default();
    Ok(())
}

/// Makes `root` and everything below it the user's where it belongs to one of the box's ids and has changed `since`.
fn give_back(root: &OwnedFd, since: Time, counts: &mut Counts) {
    let mut open: Vec<Dir> = Vec::new();
    if take(root.as_fd(), c"", AtFlags::EMPTY_PATH, since, counts) {
        open.extend(enter(root.as_fd(), c".").and_then(|directory| Dir::new(directory).ok()));
    }
    while let Some(directory) = open.last_mut() {
        let Some(entry) = directory.read() else {
            open.pop();
            continue;
        };
        // A directory that cannot be read on is left.
        let (Ok(entry), Ok(at)) = (entry, directory.fd()) else {
            counts.left += 1;
            open.pop();
            continue;
        };
        let name = entry.file_name();
        if name == c"." || name == c".." || !take(at, name, AtFlags::SYMLINK_NOFOLLOW, since, counts) {
            continue;
        }
        match enter(at, name).map(Dir::new) {
            Some(Ok(_)) if open.len() == DEEPEST => counts.left += 1,
            Some(Ok(below)) => open.push(below),
            Some(Err(_)) => counts.left += 1,
            // It is gone, or neither the user's nor one of his ids': nobody of the box was in there either.
            None => {}
        }
    }
}

fn enter(at: BorrowedFd<'_>, name: &CStr) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty()).ok()
}

/// Gives one file back, if it is to be; whether it is a directory.
fn take(at: BorrowedFd<'_>, name: &CStr, flags: AtFlags, since: Time, counts: &mut Counts) -> bool {
    let Ok(stat) = statat(at, name, flags) else { return false };
    // A group that is not mapped looks like the last one that is. Of the user's own file it is left as it is: he can do with the
    // file what he likes.
    let uid = (stat.st_uid != 0).then_some(Uid::ROOT);
    let gid = (stat.st_gid != 0 && (uid.is_some() || stat.st_gid != OVERFLOW)).then_some(Gid::ROOT);
    let is_changed = (stat.st_ctime, i128::from(stat.st_ctime_nsec)) >= (since.tv_sec, i128::from(since.tv_nsec));
    if is_changed && (uid.is_some() || gid.is_some()) {
        match chownat(at, name, uid, gid, flags) {
            Ok(()) => counts.given += 1,
            // Somebody else's, whose id is not mapped; or gone, or where nobody can write.
            Err(Errno::PERM) if stat.st_uid == OVERFLOW => {}
            Err(Errno::NOENT | Errno::ROFS) => {}
            Err(_) => counts.left += 1,
        }
    }
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_survive_the_channel(given in any::<u64>(), left in any::<u64>()) {
            let counts = Counts { given, left };
            prop_assert_eq!(Counts::decode(&counts.encode()), Some(counts));
        }

        #[test]
        fn other_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(Counts::decode(&bytes).is_some(), bytes.len() == 16);
        }
    }
}
