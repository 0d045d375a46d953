//! What the commands of a user say to the supervisor of a running job, and how they find it.
//!
//! The supervisor makes its socket when somebody asks (`SIGURG`, which does nothing to a process that does not wait for it):
//! a job that nobody talks to costs nothing (docs/adr/0013). It lies in the job's own directory, which no box can see.
//!
//! Each message is one packet: a JSON document on a line, with at most one descriptor. Invariant: a packet longer than
//! [`agentd_sys::channel::MAX_MESSAGE`], or one that is no [`Request`], is refused; nothing that comes from inside a box is
//! ever sent or read here.

mod caller;

use agentd_egress::Change;
use serde::{Deserialize, Serialize};

pub(crate) use caller::address;
pub use caller::{Caller, ControlError, end, is_gone, terminate};

/// Name of the socket in a job's directory.
pub(crate) const SOCKET: &str = "control.sock";
/// What it is called until it can be connected to.
pub(crate) const NEW_SOCKET: &str = "control.sock.new";

/// A standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// 0: the pipe that comes with the request is read.
    Stdin,
    /// 1: the pipe is written to; with a terminal this is both.
    Stdout,
    /// 2.
    Stderr,
}

/// What may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The signal that stops the payload, then SIGKILL.
    Stop {
        /// Milliseconds in between; as the job was started where absent.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        grace_ms: Option<u64>,
    },
    /// A signal for the payload's process; SIGKILL is for the whole box.
    Signal {
        /// 1 to 64.
        number: i32,
    },
    /// Nothing of the box gets CPU time until [`Request::Unpause`].
    Pause,
    /// The end of that.
    Unpause,
    /// How the job's streams are.
    Describe,
    /// A pipe comes along, for one stream.
    Attach {
        /// Which.
        stream: Stream,
    },
    /// The size of the job's terminal.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters.
        columns: u16,
    },
    /// A pidfd of the payload, to start a command beside it.
    Enter,
    /// A pipe comes along with the new value of a secret that the broker adds to requests.
    Renew {
        /// Its name.
        secret: String,
    },
    /// The far end of a channel to that command comes along, for a process that the supervisor starts: the caller may not start
    /// one in the job's cgroup.
    Porter,
    /// The listener of that command's filter comes along: its refused calls are answered and told like the payload's.
    Listen,
    /// What the box may reach. Where it has to be listened to at further ports, nothing changes before they are there.
    Reach(Change),
    /// A socket that listens inside the box comes along.
    Door,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Answer {
    /// It is done, or under way. To [`Request::Enter`] the descriptor comes along.
    Done,
    /// To [`Request::Describe`].
    Job {
        /// Whether it has a terminal.
        terminal: bool,
        /// Whether it takes input.
        input: bool,
    },
    /// To [`Request::Reach`]: the box must be listened to at these first. A pidfd of the payload comes along.
    Ports(Vec<u16>),
    /// It cannot be done.
    Refused {
        /// Why.
        reason: String,
    },
}

/// A message as it is sent.
///
/// # Errors
/// None that these types can cause.
pub(crate) fn encode(message: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// The inverse.
pub(crate) fn decode<'m, T: Deserialize<'m>>(untrusted_line: &'m [u8]) -> serde_json::Result<T> {
    serde_json::from_slice(untrusted_line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_lines_of_json() {
        for (request, line) in [
            (Request::Stop { grace_ms: None }, "{\"stop\":{}}\n"),
            (Request::Stop { grace_ms: Some(5) }, "{\"stop\":{\"grace_ms\":5}}\n"),
            (Request::Signal { number: 9 }, "{\"signal\":{\"number\":9}}\n"),
            (Request::Attach { stream: Stream::Stderr }, "{\"attach\":{\"stream\":\"stderr\"}}\n"),
            (Request::Enter, "\"enter\"\n"),
        ] {
            assert_eq!(String::from_utf8(encode(&request).unwrap()).unwrap(), line);
            assert_eq!(decode::<Request>(line.as_bytes()).unwrap(), request);
        }
        for bad in [
            "",
            "{}",
            "\"exec\"",
            "{\"stop\":{\"grace_ms\":-1}}",
            "{\"stop\":{},\"enter\":null}",
            "{\"stop\":{\"x\":1}}",
        ] {
            assert!(decode::<Request>(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = decode::<Request>(&bytes) {
                prop_assert_eq!(decode::<Request>(&encode(&request).unwrap()).unwrap(), request);
            }
        }
    }
}
