//! Where an attack is tried: a process of its own for each, in a real box or in something with fewer walls.
//!
//! A process that tries an attack reads the word from a channel and answers on it, with an errno or with 0. What it cannot
//! answer any more is in how it ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use agentd_init::plan::{Access, BoxPlan, Kind, Mount};
use agentd_sys::channel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use super::super::boxes;
use super::super::trial::{self, Reached};
use super::namespaces::Attempt;
use super::walls::Wall;
use crate::launch::plan::Surroundings;

/// Where a box shows agentd itself.
pub(super) const PROGRAM: &str = "/tmp/agentd-doctor";

/// The attack that is judged by who is left.
const OUTLIVE: &str = "outlive";

/// Between two signs of life.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Where an attack can be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A box, as PID 1 makes one.
    Box,
    /// New namespaces of every kind, and no box in them.
    Namespaces,
    /// The same, among the host's processes.
    HostProcesses,
}

impl Place {
    /// The walls that can be there or not.
    pub(super) fn walls(self) -> &'static [Wall] {
        match self {
            Place::Box => &[Wall::Seccomp, Wall::Landlock, Wall::OwnRoot, Wall::ReadOnly, Wall::Network, Wall::Limits],
            Place::Namespaces => &[Wall::Seccomp, Wall::NoCapabilities, Wall::NotDumpable],
            Place::HostProcesses => &[Wall::PidNamespace],
        }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The attack worked.
    Worked,
    /// The kernel's errno.
    Errno(i32),
    /// The process was killed by this signal.
    Killed(i32),
}

/// What every box of a run is made from.
#[derive(Debug)]
pub(super) struct Boxes {
    plan: BoxPlan,
    private: Option<Mount>,
}

impl Boxes {
    /// The box that `agentd run -- agentd` would make.
    pub(super) fn new(surroundings: &Surroundings) -> Result<Self, String> {
        let command = [PROGRAM, "doctor", "--from-inside"].map(str::to_owned);
        let mut plan = boxes::host_box(surroundings, command.to_vec())?;
        let own = std::env::current_exe().map_err(|error| format!("cannot find agentd's own program: {error}"))?;
        let source = boxes::object(&own, OFlags::empty()).ok_or_else(|| format!("cannot find {}", own.display()))?;
        plan.mounts.push(Mount::Bind { source, target: PROGRAM.into(), kind: Kind::File, access: Access::ReadOnly });
        plan.process.input = true;
        Ok(Boxes { plan, private: None })
    }

    /// Says what a box without a root of its own shows.
    pub(super) fn show(&mut self, private: &Path) {
        let Some(target) = private.to_str() else { return };
        let directory = boxes::object(private, OFlags::DIRECTORY);
        let kind = if directory.is_some() { Kind::Directory } else { Kind::File };
        let source = directory.or_else(|| boxes::object(private, OFlags::NOFOLLOW));
        self.private =
            source.map(|source| Mount::Bind { source, target: target.to_owned(), kind, access: Access::ReadOnly });
    }

    /// The plan as it is for a job.
    pub(super) fn plan(&self) -> &BoxPlan {
        &self.plan
    }

    /// Tries `word` at `place` with nothing but `standing` of the walls that it can be without.
    pub(super) fn attempt(&self, place: Place, standing: &[Wall], word: &str) -> Result<Answer, String> {
        let (ours, theirs) = channel::pair().map_err(|error| format!("cannot make a channel: {error}"))?;
        let (ours, reached) = match place {
            Place::Box => {
                let mut plan = self.plan.clone();
                for wall in place.walls().iter().filter(|wall| !standing.contains(wall)) {
                    wall.remove(&mut plan, self.private.as_ref());
                }
                channel::send(ours.as_fd(), word.as_bytes(), None).map_err(|error| format!("cannot send: {error}"))?;
                let [_, stdout, stderr] = trial::null().map_err(|error| format!("/dev/null: {error}"))?;
                (ours, trial::reach_with(&plan, [theirs, stdout, stderr], &PATIENCE))
            }
            Place::Namespaces | Place::HostProcesses => {
                Attempt { place, standing, word }.reach(ours, theirs, &PATIENCE)
            }
        };
        match answer(&reached, &ours)? {
            // It said that it left somebody behind; whoever holds the channel still is that.
            Answer::Worked if word == OUTLIVE && !is_held(&ours) => Ok(Answer::Errno(libc::ESRCH)),
            answer => Ok(answer),
        }
    }
}

/// The kernel's errno, 0 for success.
pub(super) fn encode(result: &io::Result<()>) -> [u8; 4] {
    let errno = result.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
    errno.to_le_bytes()
}

fn answer(reached: &Reached, channel: &OwnedFd) -> Result<Answer, String> {
    let status = match reached {
        Reached::Ran(status) => *status,
        Reached::Refused(error) => return Err(format!("cannot create namespaces: {error}")),
        Reached::Stopped(failure) => return Err(failure.to_string()),
        Reached::Silent => return Err("it neither ended nor answered in time, and was killed".into()),
    };
    if let Some(signal) = (libc::WIFSIGNALED(status)).then(|| libc::WTERMSIG(status)) {
        return Ok(Answer::Killed(signal));
    }
    let mut ready = [PollFd::new(channel, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let message = match poll(&mut ready, Some(&now)) {
        Ok(1) => channel::receive(channel).ok().flatten(),
        _ => None,
    };
    let errno = message.and_then(|message| message.bytes.try_into().ok().map(i32::from_le_bytes));
    match errno {
        Some(0) => Ok(Answer::Worked),
        Some(errno) => Ok(Answer::Errno(errno)),
        None => Err(format!("it ended with wait status {status:#x} and without an answer")),
    }
}

/// Whether a process at the other end is still there.
fn is_held(channel: &OwnedFd) -> bool {
    let mut end = [PollFd::new(channel, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut end, Some(&now)).is_ok_and(|_ready| !end[0].revents().contains(PollFlags::HUP))
}
