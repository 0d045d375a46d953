//! Those who look at a job's output beside agentd's own streams (`agentd attach`): each a pipe that its viewer made.
//!
//! Invariant: a viewer never holds the job up. What one has not taken yet is kept for it up to a bound; one that falls
//! further behind is let go, which it sees as the end of its pipe.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, write};
use rustix::pipe::fcntl_setpipe_size;

/// Viewers of one stream at most.
pub(super) const MOST: usize = 16;
/// Bytes that are kept for a viewer.
const BEHIND: usize = 1 << 20;
/// How long viewers may take for what does not fit their pipes when the job is over.
const PATIENCE: Duration = Duration::from_secs(1);

/// One of them.
#[derive(Debug)]
pub(super) struct Viewer {
    /// Does not block.
    pipe: OwnedFd,
    waiting: VecDeque<u8>,
}

impl Viewer {
    /// `pipe` must not block.
    pub(super) fn new(pipe: OwnedFd) -> Self {
        Viewer { pipe, waiting: VecDeque::new() }
    }

    /// Room, where something waits; else only that its reader has gone, which poll always tells.
    pub(super) fn interest(&self) -> PollFd<'_> {
        PollFd::new(&self.pipe, if self.waiting.is_empty() { PollFlags::empty() } else { PollFlags::OUT })
    }

    /// Passes `bytes` on, now or later; false when it is to be let go.
    pub(super) fn give(&mut self, bytes: &[u8]) -> bool {
        self.waiting.extend(bytes);
        self.write_some() && self.waiting.len() <= BEHIND
    }

    /// The poll said that there is room, or nobody; false when it is gone.
    pub(super) fn take_some(&mut self) -> bool {
        !self.waiting.is_empty() && self.write_some()
    }

    fn write_some(&mut self) -> bool {
        while !self.waiting.is_empty() {
            match write(&self.pipe, self.waiting.as_slices().0) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(Errno::INTR) => {}
                Err(error) => return error == Errno::AGAIN,
            }
        }
        // The room that a burst needed is not kept.
        self.waiting.shrink_to(0);
        true
    }
}

/// Gives each what still waits for it: most of it, or all, at once, for what is in a pipe stays there for a viewer that has not
/// come to it on a busy machine; and the rest for a moment.
pub(super) fn flush(mut viewers: Vec<Viewer>) {
    for viewer in viewers.iter().filter(|viewer| !viewer.waiting.is_empty()) {
        // Not allowed to everybody (pipe(7), "/proc files"): the moment has to do.
        fcntl_setpipe_size(&viewer.pipe, BEHIND).map(drop).unwrap_or_default();
    }
    let until = Instant::now() + PATIENCE;
    loop {
        viewers.retain_mut(|viewer| !viewer.waiting.is_empty() && viewer.write_some() && !viewer.waiting.is_empty());
        let left = until.saturating_duration_since(Instant::now());
        if viewers.is_empty() || left.is_zero() {
            return;
        }
        let mut fds: Vec<PollFd<'_>> = viewers.iter().map(Viewer::interest).collect();
        let timeout = Timespec { tv_sec: i64::from(left.as_secs() > 0), tv_nsec: left.subsec_nanos().into() };
        // Whatever it says, the next round looks at the clock.
        poll(&mut fds, Some(&timeout)).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::io::Read;

    #[test]
    fn a_viewer_that_does_not_read_is_let_go_and_one_that_reads_gets_all() {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let mut viewer = Viewer::new(writer);
        let block = [7; 64 * 1024];
        let mut given = 0;
        while viewer.give(&block) {
            given += block.len();
            assert!(given < 4 * BEHIND);
        }
        assert!(given >= BEHIND);
        drop(reader);

        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
        let mut viewer = Viewer::new(writer);
        assert!(viewer.give(&vec![7; 300_000]));
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            std::fs::File::from(reader).read_to_end(&mut all).unwrap();
            all.len()
        });
        flush(vec![viewer]);
        assert_eq!(reading.join().unwrap(), 300_000);
    }

    #[test]
    fn what_waits_at_the_end_is_there_for_a_viewer_that_comes_late() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
        if fcntl_setpipe_size(&writer, BEHIND).is_err() || fcntl_setpipe_size(&writer, 4096).is_err() {
            return;
        }
        let mut viewer = Viewer::new(writer);
        assert!(viewer.give(&vec![7; BEHIND / 2]));
        assert!(!viewer.waiting.is_empty());
        flush(vec![viewer]);
        let mut all = Vec::new();
        std::fs::File::from(reader).read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), BEHIND / 2);
    }

    #[test]
    fn a_viewer_that_is_gone_is_noticed() {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let mut viewer = Viewer::new(writer);
        assert!(viewer.give(b"a"));
        drop(reader);
        assert!(!viewer.take_some());
        assert!(!viewer.give(b"b"));
    }
}
