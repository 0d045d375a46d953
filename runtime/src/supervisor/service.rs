//! What systemd is told of a job that runs as one of its services: that it runs, that it stops (sd_notify(3)), and in the
//! journal how it began and ended, in fields.
//!
//! Of both protocols this is one datagram a message. A journal entry carries the unit and its invocation, put there by
//! journald; so the job's own lines, which have those too, are found by the job's id.
//!
//! Invariant: nothing here is waited for longer than [`PATIENCE`], and that nobody listens is no failure of the job's. Who
//! listens is settled before the box is made; the box has neither the sockets nor their names.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use crate::job::record::{Record, State};
use crate::launch::plan::Plan;

/// A manager that is alive reads at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// What agentd itself does at the end of a job, on a busy machine.
const END_WITHIN: Duration = Duration::from_secs(10);

/// Where journald takes entries with fields (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL>).
const JOURNAL: &str = "/run/systemd/journal/socket";

/// MESSAGE_ID of the entry that says that a job runs.
pub const STARTED: &str = "2647235258354fc9841fceb593099311";
/// MESSAGE_ID of the entry that says how a job ended.
pub const ENDED: &str = "29ba3a38d88e4ebd8ad6aa726bb6ea71";

/// Priorities, as syslog(3) has them.
const ERROR: &str = "3";
const WARNING: &str = "4";
const INFO: &str = "6";

/// Who is told of a job beside who started it; nobody by default.
#[derive(Debug, Default)]
pub struct Service {
    manager: Option<SocketAddr>,
    journal: Option<SocketAddr>,
}

impl Service {
    /// From `$NOTIFY_SOCKET`, and whether this program's standard error is the journal.
    #[must_use]
    pub fn new(notify_socket: Option<&OsStr>, is_journal: bool) -> Self {
        let address = |name: &OsStr| match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
            [b'/', ..] => SocketAddr::from_pathname(name).ok(),
            // vsock, where a whole machine tells its host.
            _ => None,
        };
        let journal = if is_journal { SocketAddr::from_pathname(Path::new(JOURNAL)).ok() } else { None };
        Self { manager: notify_socket.and_then(address), journal }
    }

    /// The payload runs.
    pub(super) fn started(&self, plan: &Plan) {
        let id = plan.id.as_str();
        // With `run -d` the process that systemd started is not this one.
        self.notify(|| format!("READY=1\nMAINPID={}\nSTATUS=job {id} runs", std::process::id()));
        self.log(|| {
            let mut entry = Entry::new(STARTED, INFO, &format!("job {id} runs"));
            entry.job(id, plan.name.as_ref().map(|name| name.as_str()), &plan.image);
            entry
        });
    }

    /// The payload was told to end, and has so long.
    pub(super) fn stopping(&self, grace: Duration) {
        // What is unread of its output may take as long again; else systemd would kill after a time of its own.
        let within = grace.saturating_mul(2).saturating_add(END_WITHIN).as_micros();
        self.notify(|| format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={within}\nSTATUS=the job is being stopped"));
    }

    /// It is over.
    pub(super) fn ended(&self, record: &Record) {
        let (id, summary) = (record.id.as_str(), record.state.summary());
        self.notify(|| format!("STATUS=job {id}: {summary}"));
        self.log(|| {
            let reason = match &record.state {
                State::Exited { reason, .. } => reason.as_deref(),
                State::Failed { reason, .. } | State::Lost { reason } => Some(reason.as_str()),
                State::Running => None,
            };
            let priority = match &record.state {
                State::Exited { exit_code: 0, .. } | State::Running => INFO,
                State::Exited { .. } => WARNING,
                State::Failed { .. } | State::Lost { .. } => ERROR,
            };
            let said = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            let mut entry = Entry::new(ENDED, priority, &format!("job {id} {summary}{said}"));
            entry.job(id, record.name.as_ref().map(|name| name.as_str()), &record.image);
            entry.field("AGENTD_STATE", record.state.word());
            entry.number("AGENTD_EXIT_CODE", record.state.exit_code().map(u64::from));
            entry.field("AGENTD_REASON", reason.unwrap_or_default());
            entry.number("AGENTD_DURATION_MS", record.duration_ms);
            entry.number("AGENTD_DENIALS", Some(record.denials));
            if let Some(usage) = &record.usage {
                entry.number("AGENTD_MEMORY_PEAK", usage.memory_peak);
                entry.number("AGENTD_PIDS_PEAK", usage.pids_peak);
                entry.number("AGENTD_CPU_US", usage.cpu_us);
                entry.number("AGENTD_OOM_KILLS", usage.oom_kills);
            }
            entry
        });
    }

    fn notify(&self, state: impl FnOnce() -> String) {
        if let Some(manager) = &self.manager {
            tell(manager, state().as_bytes());
        }
    }

    fn log(&self, entry: impl FnOnce() -> Entry) {
        if let Some(journal) = &self.journal {
            tell(journal, &entry().0);
        }
    }
}

fn tell(whom: &SocketAddr, message: &[u8]) {
    let send = || -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.send_to_addr(message, whom).map(drop)
    };
    if let Err(error) = send() {
        tracing::debug!(?whom, %error, "systemd was not told");
    }
}

/// A journal entry.
struct Entry(Vec<u8>);

impl Entry {
    fn new(id: &str, priority: &str, message: &str) -> Self {
        let mut entry = Self(Vec::new());
        entry.field("MESSAGE", message);
        entry.field("MESSAGE_ID", id);
        entry.field("PRIORITY", priority);
        entry.field("SYSLOG_IDENTIFIER", "agentd");
        entry
    }

    fn job(&mut self, id: &str, name: Option<&str>, image: &str) {
        self.field("AGENTD_JOB", id);
        self.field("AGENTD_NAME", name.unwrap_or_default());
        self.field("AGENTD_IMAGE", image);
    }

    fn number(&mut self, name: &str, value: Option<u64>) {
        self.field(name, &value.map(|value| value.to_string()).unwrap_or_default());
    }

    /// An empty one is left out. A value with lines of its own has its length before it: it cannot make further fields.
    fn field(&mut self, name: &str, value: &str) {
        if value.is_empty() {
            return;
        }
        self.0.extend(name.as_bytes());
        if value.contains('\n') {
            self.0.push(b'\n');
            self.0.extend((value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend(value.as_bytes());
        self.0.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_with_lines_is_one_field() {
        let mut entry = Entry(Vec::new());
        entry.field("A", "plain = a");
        entry.field("B", "x\nPRIORITY=0");
        entry.field("C", "");
        assert_eq!(entry.0, b"A=plain = a\nB\n\x0c\0\0\0\0\0\0\0x\nPRIORITY=0\n");
    }

    #[test]
    fn the_manager_is_told_by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("agentd-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, address) in [(by_path, path.into_os_string()), (by_name, format!("@{name}").into())] {
            Service::new(Some(&address), false).stopping(Duration::from_secs(120));
            let mut buffer = [0; 100];
            let read = socket.recv(&mut buffer).unwrap();
            assert!(buffer[..read].starts_with(b"STOPPING=1\nEXTEND_TIMEOUT_USEC=250000000\n"));
        }
        // Nobody listens, or the address is none: as if there were no manager.
        for nowhere in ["/nonexistent/notify", "vsock:2:1", "", "@"] {
            Service::new(Some(OsStr::new(nowhere)), false).stopping(Duration::MAX);
        }
    }
}
