//! What the broker tells the supervisor: a request that was made of it, and at the end how many there were.
//!
//! Invariant: a message fits the channel whatever the box called its hosts; like everything that a process near the box
//! says, it is read with a bound and may be nonsense.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::order::Program;

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It was passed on.
    Allowed,
    /// Policy refused it.
    Refused,
    /// It was allowed and did not get there.
    Failed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Allowed => "allowed",
            Verdict::Refused => "refused",
            Verdict::Failed => "failed",
        })
    }
}

/// A connection, or a name that was asked for and does not exist for the box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// RFC 3339, UTC: when it began.
    pub time: String,
    /// The name, or the address that was connected to where it stands for no name; as the box wrote it.
    #[serde(rename = "host")]
    pub untrusted_host: String,
    /// The port; absent where only the name was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// Method and path, without the query, of a request that the broker has read.
    #[serde(rename = "request", skip_serializing_if = "Option::is_none", default)]
    pub untrusted_request: Option<String>,
    /// What the program calls itself that has asked, where it could be seen.
    #[serde(rename = "program", skip_serializing_if = "Option::is_none", default)]
    pub untrusted_program: Option<String>,
    /// Its number inside.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<u32>,
    /// Where it was dialled.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<String>,
    /// The rule that decided, where one did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rule: Option<String>,
    /// Bytes from the box.
    #[serde(default)]
    pub up: u64,
    /// Bytes to the box.
    #[serde(default)]
    pub down: u64,
    /// Milliseconds from its beginning to its end.
    #[serde(default)]
    pub duration_ms: u64,
    /// What came of it.
    pub verdict: Verdict,
    /// Why, where it did not get there.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
    /// The flag that would allow it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub allow: Option<String>,
    /// How many there were like it.
    #[serde(default = "one")]
    pub count: u64,
}

fn one() -> u64 {
    1
}

impl Request {
    /// One that begins at `time`, as long as nothing else is known of it.
    #[must_use]
    pub fn begun(time: String, untrusted_host: String, port: Option<u16>) -> Self {
        Request {
            time,
            untrusted_host,
            port,
            untrusted_request: None,
            untrusted_program: None,
            pid: None,
            address: None,
            rule: None,
            up: 0,
            down: 0,
            duration_ms: 0,
            verdict: Verdict::Allowed,
            why: None,
            allow: None,
            count: 1,
        }
    }

    /// The same, asked by `program`.
    #[must_use]
    pub fn by(self, program: Option<Program>) -> Self {
        let (untrusted_program, pid) = program.map(|program| (program.untrusted_name, program.pid)).unzip();
        Request { untrusted_program, pid, ..self }
    }

    /// Whether `other` was refused for the same thing.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        (&self.untrusted_host, self.port, self.verdict, &self.why, &self.untrusted_request)
            == (&other.untrusted_host, other.port, other.verdict, &other.why, &other.untrusted_request)
    }
}

/// Numbers of a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Connections that were passed on.
    pub allowed: u64,
    /// Requests that policy refused.
    pub refused: u64,
    /// Connections that were allowed and did not get there.
    pub failed: u64,
    /// Bytes from the box.
    pub up: u64,
    /// Bytes to the box.
    pub down: u64,
    /// Requests that are counted here and told nowhere else.
    pub untold: u64,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// A request that is over; for a refusal, the first of its kind.
    Request(Request),
    /// At the end: a refusal again, with the number of its kind.
    Again(Request),
    /// While bytes move, once a second: how many have moved so far, both ways together.
    Moved(u64),
    /// The last message.
    Totals(Totals),
    /// A connection is wanted at a port that was allowed while the job ran, which the broker cannot dial itself.
    Dial {
        /// Of [`crate::Order::Dialled`].
        id: u64,
        /// Where to.
        at: SocketAddr,
    },
    /// Whose is this socket of the box?
    Whose {
        /// Of [`crate::Order::Whose`].
        id: u64,
        /// Of the socket, as /proc/PID/fd has it.
        inode: u32,
    },
    /// The first message of a broker that reads requests: it can.
    Ready {
        /// The certificate of the job's own authority in PEM form, where it has one.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        certificate: Option<String>,
    },
    /// The same of one that cannot, and why.
    Unready {
        /// Why.
        why: String,
    },
}

/// Longest text of a message, in bytes: with seven of them it fits the channel. They hold no control characters, whose
/// escapes would be six times as long.
const MOST_TEXT: usize = 300;

impl Told {
    /// The message as it is sent.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut told = self.clone();
        if let Told::Request(request) | Told::Again(request) = &mut told {
            let Request { untrusted_host, untrusted_request, untrusted_program, address, rule, why, allow, .. } =
                request;
            for text in [untrusted_request, untrusted_program, address, rule, why, allow]
                .into_iter()
                .flatten()
                .chain([untrusted_host])
            {
                text.truncate(text.floor_char_boundary(MOST_TEXT));
                *text = text.replace(|c: char| c.is_ascii_control(), "?");
            }
        }
        // Of numbers and texts JSON can always be made.
        serde_json::to_vec(&told).unwrap_or_default()
    }

    /// The inverse of [`Told::encode`]; `None` for anything else.
    #[must_use]
    pub fn decode(untrusted_bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(untrusted_bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(text: &str) -> Request {
        Request {
            time: "2026-11-21T15:38:40.649Z".into(),
            untrusted_host: text.into(),
            port: Some(443),
            untrusted_request: Some(text.into()),
            untrusted_program: Some(text.into()),
            pid: Some(u32::MAX),
            address: Some(text.into()),
            rule: Some(text.into()),
            up: u64::MAX,
            down: u64::MAX,
            duration_ms: u64::MAX,
            verdict: Verdict::Refused,
            why: Some(text.into()),
            allow: Some(text.into()),
            count: u64::MAX,
        }
    }

    proptest! {
        #[test]
        fn a_message_fits_the_channel_and_survives_it(text in "\\PC{0,400}|[\\x00-\\x1f]{0,600}") {
            let bytes = Told::Request(request(&text)).encode();
            prop_assert!(bytes.len() <= agentd_sys::channel::MAX_MESSAGE, "{}", bytes.len());
            let Some(Told::Request(read)) = Told::decode(&bytes) else { panic!() };
            let shown = text.replace(|c: char| c.is_ascii_control(), "?");
            prop_assert!(shown.starts_with(&read.untrusted_host) && read.untrusted_host.len() <= MOST_TEXT);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _read_or_refused = Told::decode(&bytes);
        }
    }
}
