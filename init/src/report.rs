//! What PID 1 tells the supervisor, one message each.
//!
//! Invariant: only PID 1 and, until its exec, the payload's process hold the sending end; a payload never does. The
//! receiver still bounds and checks what it reads.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agentd_sys::channel::{self, Message};

use crate::step::{Failure, Step};

/// A message from PID 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The pty's controlling side comes with this message.
    Terminal,
    /// The directory that holds what is written to the root comes with this message, when the box is built.
    Upper,
    /// What hears of the payload's refused calls comes with this message.
    Denials,
    /// A socket of the box that the broker answers comes with this message.
    Door,
    /// A step failed; the start is over.
    Failed(Failure),
    /// The payload's exec succeeded. A pidfd of it comes with this message.
    Started,
    /// The payload ended.
    Exited {
        /// A status as `wait(2)` gives it.
        status: i32,
        /// Whether PID 1 is the last process of the box: nothing the payload started still runs.
        empty: bool,
    },
}

/// Longest `object` that is sent, in bytes.
const MAX_OBJECT: usize = 4096;

impl Report {
    /// Bytes: a tag, then for `Failed` step, errno (little endian) and object; for `Exited` the status, and 1 when the box is
    /// empty.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Report::Terminal => vec![b'T'],
            Report::Upper => vec![b'U'],
            Report::Started => vec![b'S'],
            Report::Denials => vec![b'D'],
            Report::Door => vec![b'O'],
            Report::Exited { status, empty } => [&b"E"[..], &status.to_le_bytes(), &[u8::from(*empty)]].concat(),
            Report::Failed(failure) => {
                let step = Step::ALL.iter().position(|step| *step == failure.step).unwrap_or_default();
                let object = failure.object.as_bytes();
                let object = &object[..object.len().min(MAX_OBJECT)];
                let step = u8::try_from(step).unwrap_or(u8::MAX);
                [&[b'F', step][..], &failure.errno.to_le_bytes(), object].concat()
            }
        }
    }

    /// The inverse of [`Report::encode`]; `None` for anything else.
    #[must_use]
    pub fn decode(untrusted_bytes: &[u8]) -> Option<Self> {
        match untrusted_bytes {
            [b'T'] => Some(Report::Terminal),
            [b'U'] => Some(Report::Upper),
            [b'S'] => Some(Report::Started),
            [b'D'] => Some(Report::Denials),
            [b'O'] => Some(Report::Door),
            [b'E', status @ .., empty @ (0 | 1)] => {
                Some(Report::Exited { status: i32::from_le_bytes(status.try_into().ok()?), empty: *empty == 1 })
            }
            [b'F', step, rest @ ..] => {
                let (errno, object) = rest.split_first_chunk::<4>()?;
                Some(Report::Failed(Failure {
                    step: *Step::ALL.get(usize::from(*step))?,
                    errno: i32::from_le_bytes(*errno),
                    object: String::from_utf8_lossy(object).into_owned(),
                }))
            }
            _ => None,
        }
    }
}

/// Sends one report, with a descriptor when there is one.
///
/// # Errors
/// The errno of `sendmsg(2)`; `EPIPE` when the supervisor is gone.
pub fn send(channel: impl AsFd, report: &Report, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    channel::send(channel.as_fd(), &report.encode(), descriptor)
}

/// Receives one report; `None` when PID 1 is gone.
///
/// # Errors
/// The errno of `recvmsg(2)`; `InvalidData` for what is not a report.
pub fn receive(channel: impl AsFd) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
    let Some(Message { bytes, descriptor }) = channel::receive(channel)? else { return Ok(None) };
    let report = Report::decode(&bytes).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some((report, descriptor)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_step_survives_the_channel() {
        for step in Step::ALL {
            let report = Report::Failed(Failure::new(*step, "/some/path", 13));
            assert_eq!(Report::decode(&report.encode()), Some(report));
        }
        let exited = |status, empty| Report::Exited { status, empty };
        let bare = [Report::Terminal, Report::Upper, Report::Denials, Report::Door, Report::Started];
        for report in bare.into_iter().chain([exited(256, true), exited(-1, false)]) {
            assert_eq!(Report::decode(&report.encode()), Some(report));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(report) = Report::decode(&bytes) {
                prop_assert_eq!(Report::decode(&report.encode()), Some(report));
            }
        }

        #[test]
        fn a_long_object_still_fits_a_message(object in ".{0,6000}") {
            let report = Report::Failed(Failure::new(Step::Exec, object, 2));
            prop_assert!(report.encode().len() <= agentd_sys::channel::MAX_MESSAGE);
            prop_assert!(Report::decode(&report.encode()).is_some());
        }
    }
}
