//! What the supervisor tells PID 1, in this order: the plan, the payload's standard streams, and the word to go.
//!
//! PID 1 is cloned before its plan is known, so that it makes the network meanwhile (docs/adr/0017). The plan comes as JSON in a
//! file in memory: a message has a bound, and a plan need not have one, since it is the supervisor's.
//!
//! Invariant: only the supervisor holds the other end of the channel. A box that did not get all of its plan ends.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agentd_sys::channel::{self, Message};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::plan::BoxPlan;

/// More than the plan of a usual box takes, so that it is written without being moved.
const USUAL_BYTES: usize = 16 << 10;

/// Sends the plan, and what the payload gets as 0, 1 and 2; with a terminal these are replaced by the box's own pty.
///
/// # Errors
/// The errno of `memfd_create(2)`, `write(2)` or `sendmsg(2)`; `EPIPE` when PID 1 is gone.
pub fn send(channel: impl AsFd, plan: &BoxPlan, streams: [BorrowedFd<'_>; 3]) -> io::Result<()> {
    let mut file = File::from(memfd_create("plan", MemfdFlags::CLOEXEC)?);
    let mut text = Vec::with_capacity(USUAL_BYTES);
    serde_json::to_writer(&mut text, plan)?;
    file.write_all(&text)?;
    file.rewind()?;
    for descriptor in [file.as_fd()].into_iter().chain(streams) {
        channel::send(channel.as_fd(), b"P", Some(descriptor))?;
    }
    Ok(())
}

/// Waits for what [`send`] sends.
///
/// # Errors
/// `EPIPE` when the sender is gone; `InvalidData` for what is no plan, or comes without its descriptor.
pub fn receive(channel: impl AsFd) -> io::Result<(BoxPlan, [OwnedFd; 3])> {
    let descriptor = || match channel::receive(channel.as_fd())? {
        Some(Message { descriptor: Some(descriptor), .. }) => Ok(descriptor),
        Some(_) => Err(io::Error::from(io::ErrorKind::InvalidData)),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    };
    let mut file = File::from(descriptor()?);
    let mut text = Vec::with_capacity(usize::try_from(file.metadata()?.len()).unwrap_or_default() + 1);
    file.read_to_end(&mut text)?;
    let plan = serde_json::from_slice(&text)?;
    Ok((plan, [descriptor()?, descriptor()?, descriptor()?]))
}

/// What has to be on disk before the payload runs is there.
///
/// # Errors
/// The errno of `sendmsg(2)`; `EPIPE` when PID 1 is gone.
pub fn release(channel: impl AsFd) -> io::Result<()> {
    channel::send(channel.as_fd(), b"G", None)
}

/// Waits for [`release`].
pub(crate) fn wait_for_release(channel: impl AsFd) -> io::Result<()> {
    match channel::receive(channel)? {
        Some(_) => Ok(()),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    }
}
