//! The supervisor's one poll: everything it waits for, and what of it came.

use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::network::Broker;
use super::{SuperviseError, Supervisor, To};
use crate::cgroup::leaf::Leaf;

/// What the poll found.
#[derive(Debug, Default)]
pub(super) struct Ready {
    pub(super) signals: bool,
    pub(super) init: bool,
    pub(super) channel: bool,
    pub(super) parent: bool,
    /// A refused call waits.
    pub(super) denials: bool,
    /// None waits, and none will: the filter has no process left.
    pub(super) all_denied: bool,
    /// The job is at its memory limit, or the kernel killed for it.
    pub(super) memory: bool,
    /// The network broker reports.
    pub(super) network: bool,
    /// Somebody asks for something, or a call of a command of theirs was refused.
    pub(super) callers: bool,
    pub(super) streams: bool,
}

impl Supervisor<'_> {
    pub(super) fn wait(&self) -> Result<Ready, SuperviseError> {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let mut places = [None; 5];
        for (place, fd) in places.iter_mut().zip([
            self.alive.then_some(self.init.as_fd()),
            self.channel.as_ref().map(AsFd::as_fd),
            self.parent.as_ref().map(AsFd::as_fd),
            self.denials.listener(),
            self.network.as_ref().and_then(Broker::channel),
        ]) {
            if let Some(fd) = fd {
                *place = Some(fds.len());
                fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            }
        }
        let alarm = self.leaf.as_ref().and_then(Leaf::alarm).map(|alarm| {
            fds.push(PollFd::from_borrowed_fd(alarm, PollFlags::PRI));
            fds.len() - 1
        });
        let own = fds.len();
        self.control.interest(&mut fds);
        self.denials.guests(&mut fds);
        let streams = fds.len();
        self.streams.interest(&mut fds);
        let timeout = self.next_deadline().into_iter().chain(self.forget_at).min().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error).to("wait for the box"),
        }
        let is_any = |fds: &[PollFd<'_>]| fds.iter().any(|fd| !fd.revents().is_empty());
        let (own, others) = fds.split_at(own.min(fds.len()));
        let (callers, streams) = others.split_at((streams - own.len()).min(others.len()));
        let (callers, streams) = (is_any(callers), is_any(streams));
        let is_ready =
            |place: Option<usize>| place.and_then(|at| own.get(at)).is_some_and(|fd| !fd.revents().is_empty());
        let [init, channel, parent, listener, network] = places;
        let denials = listener.and_then(|at| own.get(at)).map_or(PollFlags::empty(), PollFd::revents);
        Ok(Ready {
            signals: is_ready(Some(0)),
            init: is_ready(init),
            channel: is_ready(channel),
            parent: is_ready(parent),
            denials: denials.contains(PollFlags::IN),
            all_denied: is_ready(listener),
            memory: is_ready(alarm),
            network: is_ready(network),
            callers,
            streams,
        })
    }
}
