//! What happened in a job beside its output: `events.jsonl`, a document a line, made with the first.
//!
//! Invariant: the number of lines is bounded by who writes them; a reader takes no more than its bound, and leaves out a
//! line that a crash cut short.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use agentd_egress::{Request, Verdict};
use serde::{Deserialize, Serialize};

use super::record::PolicyChange;
use super::store::read_bounded;

/// Its name in a job's directory.
pub const EVENTS: &str = "events.jsonl";

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// A system call was refused by policy.
    Denial(Denial),
    /// Something was asked of the network.
    Network(Request),
    /// What the job may reach was changed while it ran.
    Policy(PolicyChange),
}

/// System calls of one kind that one program made and policy refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// RFC 3339, UTC: the first of them.
    pub time: String,
    /// Name of the call.
    pub syscall: String,
    /// The arguments that have a say in the verdict on it, by number.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub arguments: Vec<Argument>,
    /// The errno.
    pub answer: String,
    /// The profile.
    pub profile: String,
    /// Group of the rule; empty where no rule names the call.
    pub rule: String,
    /// Why.
    pub reason: String,
    /// Name of the program's thread, as the payload set it.
    #[serde(rename = "program")]
    pub untrusted_program: String,
    /// Process id on the host of the first that called.
    pub pid: u32,
    /// How many there were.
    pub count: u64,
}

/// One argument of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argument {
    /// Which, from 0.
    pub number: u8,
    /// Its low 32 bits.
    pub value: u32,
}

impl Denial {
    /// Whether `other` is one more of these.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        (&self.syscall, &self.arguments, &self.untrusted_program, &self.answer)
            == (&other.syscall, &other.arguments, &other.untrusted_program, &other.answer)
    }

    /// The call with what matters of its arguments.
    #[must_use]
    pub fn call(&self) -> String {
        let arguments: Vec<String> =
            self.arguments.iter().map(|one| format!("{}={:#x}", one.number, one.value)).collect();
        format!("{}({})", self.syscall, arguments.join(", "))
    }
}

/// The file.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: Option<File>,
}

impl Events {
    /// At `path`; nothing is made before the first event.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Events { path, file: None }
    }

    /// Appends one.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn append(&mut self, event: &Event) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::options().append(true).create(true).mode(0o600).open(&self.path)?),
        };
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        file.write_all(&line)
    }

    /// The denials, each once, with the last count that was written.
    ///
    /// # Errors
    /// Those of the file system; that there is no file is none.
    pub fn denials(&self) -> io::Result<Vec<Denial>> {
        let mut denials: Vec<Denial> = Vec::new();
        for event in self.all()? {
            let Event::Denial(denial) = event else { continue };
            match denials.iter_mut().find(|known| known.is_like(&denial)) {
                Some(known) => *known = denial,
                None => denials.push(denial),
            }
        }
        Ok(denials)
    }

    /// What was asked of the network, in the order in which it ended; refusals once a kind, with the last count.
    ///
    /// # Errors
    /// Those of the file system; that there is no file is none.
    pub fn requests(&self) -> io::Result<Vec<Request>> {
        let mut requests: Vec<Request> = Vec::new();
        let mut refused = Vec::new();
        for event in self.all()? {
            let Event::Network(request) = event else { continue };
            if request.verdict == Verdict::Refused {
                let known = |place: &&usize| requests.get(**place).is_some_and(|known| known.is_like(&request));
                if let Some(place) = refused.iter().find(known).copied() {
                    requests[place] = request;
                    continue;
                }
                refused.push(requests.len());
            }
            requests.push(request);
        }
        Ok(requests)
    }

    fn all(&self) -> io::Result<Vec<Event>> {
        let text = match read_bounded(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text?,
        };
        Ok(text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_once_with_its_last_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(EVENTS);
        assert_eq!(Events::at(path.clone()).denials().unwrap(), []);
        let denial = |value, count| Denial {
            time: "now".into(),
            syscall: "socket".into(),
            arguments: vec![Argument { number: 0, value }],
            answer: "EPERM".into(),
            profile: "default".into(),
            rule: "network".into(),
            reason: "because".into(),
            untrusted_program: "a\n\u{1b}".into(),
            pid: 7,
            count,
        };
        let mut events = Events::at(path.clone());
        for one in [denial(40, 1), denial(38, 1), denial(40, 9)] {
            events.append(&Event::Denial(one)).unwrap();
        }
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"{\"event\":\"denial\",\"time", b"\nnoise\n"].concat()).unwrap();
        assert_eq!(events.denials().unwrap(), [denial(40, 9), denial(38, 1)]);
        assert_eq!(denial(40, 1).call(), "socket(0=0x28)");
    }
}
