//! How a job ended, and the exit code that says so.
//!
//! The codes are docker's and podman's: the payload's own; 124 for a timeout, as timeout(1) has it; 125 when agentd failed
//! before the payload ran, 126 and 127 when the program could not be executed or was not found; 128 + n for signal n.

use std::time::{Duration, Instant};

use agentd_init::step::{Failure, Step};
use rustix::io::Errno;

use crate::cgroup::memory::Verdict;
use crate::job::record::State;

/// Exit code for a failure of agentd's own.
pub(crate) const AGENTD_FAILED: u8 = 125;
const TIMED_OUT: u8 = 124;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
const KILLED: i32 = 128 + libc::SIGKILL;

/// Why the supervisor stops a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// `--timeout`.
    Timeout,
    /// The terminal, or the process that started agentd, is gone.
    Hangup,
    /// SIGTERM to the supervisor.
    Terminated,
    /// SIGINT or SIGQUIT to the supervisor before the payload ran.
    Interrupted,
    /// `agentd stop`.
    Asked,
    /// `agentd kill`, with SIGKILL.
    Killed,
}

/// A stop under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stop {
    /// Why.
    pub(super) reason: Reason,
    /// When patience ends; `None` once SIGKILL was sent.
    pub(super) kill_at: Option<Instant>,
}

fn outside(status: Option<i32>) -> Option<String> {
    status.is_none().then(|| "PID 1 of the box was killed from outside".into())
}

/// What there is to say of a box's memory at its end.
#[derive(Debug)]
pub(super) struct Memory {
    /// What the kernel did.
    pub(super) verdict: Verdict,
    /// `--memory`, bytes.
    pub(super) limit: Option<u64>,
    /// Most bytes at once, where the kernel counts them.
    pub(super) peak: Option<u64>,
}

impl Memory {
    /// Why the box ended like this, if it was for want of memory: the payload was killed, or it passes on that a tool was.
    fn reason(&self, status: Option<i32>) -> Option<String> {
        let is_it = match status {
            Some(status) if libc::WIFEXITED(status) => libc::WEXITSTATUS(status) == KILLED,
            Some(status) => self.verdict.is_payload && libc::WTERMSIG(status) == libc::SIGKILL,
            None => self.verdict.is_payload,
        };
        let who = match &self.verdict.untrusted_name {
            Some(untrusted_name) => untrusted_name.escape_debug().to_string(),
            None => "it".into(),
        };
        let when = match self.limit.filter(|_| self.verdict.is_own_limit) {
            Some(limit) => format!("at the limit of {limit} bytes (--memory)"),
            None => "because the machine, or what agentd itself runs in, had none left".into(),
        };
        let peak = self.peak.map(|peak| format!("; the job's peak was {peak} bytes")).unwrap_or_default();
        is_it.then(|| format!("out of memory: the kernel killed {who} {when}{peak}"))
    }
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The payload ran and ended.
    Exited {
        /// What `agentd run` exits with.
        code: u8,
        /// Why, where it was not the payload's own doing.
        reason: Option<String>,
    },
    /// The payload never ran.
    Failed {
        /// 125, 126 or 127.
        code: u8,
        /// What failed.
        failure: Failure,
    },
}

impl Ending {
    /// From what PID 1 reported and what the supervisor did.
    pub(super) fn new(
        failure: Option<Failure>,
        status: Option<i32>,
        stop: Option<Stop>,
        timeout: Option<Duration>,
        memory: Option<&Memory>,
    ) -> Self {
        if let Some(failure) = failure {
            let code = match (failure.step, Errno::from_raw_os_error(failure.errno)) {
                (Step::Exec, Errno::NOENT) => NOT_FOUND,
                (Step::Exec, _) => NOT_EXECUTABLE,
                _ => AGENTD_FAILED,
            };
            return Ending::Failed { code, failure };
        }
        let code = match status {
            Some(status) if libc::WIFSIGNALED(status) => 128 + libc::WTERMSIG(status),
            Some(status) => libc::WEXITSTATUS(status),
            // PID 1 had no time to report: SIGKILL, by this supervisor or by somebody else.
            None => KILLED,
        };
        let code = u8::try_from(code).unwrap_or(AGENTD_FAILED);
        let limit = timeout.map(|timeout| humantime::format_duration(timeout).to_string()).unwrap_or_default();
        let (code, reason) = match stop.map(|stop| stop.reason) {
            Some(Reason::Timeout) => (TIMED_OUT, Some(format!("stopped after the timeout of {limit}"))),
            Some(Reason::Hangup) => (code, Some("stopped: the terminal or the process that started it is gone".into())),
            Some(Reason::Terminated) => (code, Some("stopped by SIGTERM".into())),
            Some(Reason::Interrupted) => (code, Some("interrupted before it ran".into())),
            Some(Reason::Asked) => (code, Some("stopped by `agentd stop`".into())),
            Some(Reason::Killed) => (code, Some("killed by `agentd kill`".into())),
            None => (code, memory.and_then(|memory| memory.reason(status)).or_else(|| outside(status))),
        };
        Ending::Exited { code, reason }
    }

    /// What `agentd run` exits with.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Ending::Exited { code, .. } | Ending::Failed { code, .. } => *code,
        }
    }

    /// The same for the record.
    #[must_use]
    pub fn state(&self) -> State {
        match self.clone() {
            Ending::Exited { code, reason } => State::Exited { exit_code: code, reason },
            Ending::Failed { code, failure } => State::Failed { exit_code: code, reason: failure.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(step: Step, errno: Errno) -> Ending {
        let failure = Failure { step, object: "x".into(), errno: errno.raw_os_error() };
        Ending::new(Some(failure), None, None, None, None)
    }

    fn ended(status: Option<i32>, reason: Option<Reason>) -> (u8, bool) {
        let stop = reason.map(|reason| Stop { reason, kill_at: None });
        match Ending::new(None, status, stop, Some(Duration::from_secs(5)), None) {
            Ending::Exited { code, reason } => (code, reason.is_some()),
            Ending::Failed { .. } => panic!("nothing failed"),
        }
    }

    #[test]
    fn codes_are_those_of_docker_and_timeout() {
        assert_eq!(failed(Step::Exec, Errno::NOENT).code(), 127);
        assert_eq!(failed(Step::Exec, Errno::ACCESS).code(), 126);
        assert_eq!(failed(Step::Exec, Errno::NOEXEC).code(), 126);
        assert_eq!(failed(Step::Bind, Errno::NOENT).code(), 125);
        assert_eq!(ended(Some(3 << 8), None), (3, false));
        assert_eq!(ended(Some(11), None), (139, false));
        assert_eq!(ended(Some(15), Some(Reason::Terminated)), (143, true));
        assert_eq!(ended(Some(0), Some(Reason::Timeout)), (124, true));
        assert_eq!(ended(None, Some(Reason::Hangup)), (137, true));
        assert_eq!(ended(None, None), (137, true));
    }

    #[test]
    fn want_of_memory_is_told_apart_from_other_kills() {
        let said = |status: Option<i32>, is_payload: bool, is_own_limit: bool| {
            let verdict = Verdict { untrusted_name: Some("awk\n".into()), is_own_limit, is_payload };
            let memory = Memory { verdict, limit: Some(64), peak: Some(63) };
            let Ending::Exited { reason, .. } = Ending::new(None, status, None, None, Some(&memory)) else { panic!() };
            reason.unwrap_or_default()
        };
        let killed =
            "out of memory: the kernel killed awk\\n at the limit of 64 bytes (--memory); the job's peak was 63 bytes";
        for status in [Some(9), Some(137 << 8)] {
            assert_eq!(said(status, true, true), killed);
        }
        assert_eq!(said(Some(137 << 8), false, true), killed, "it passes on what became of a tool");
        assert_eq!(said(None, true, true), killed);
        assert!(said(Some(9), true, false).contains("awk\\n because the machine"));
        // A tool was killed, and the payload by somebody else; or it ended otherwise.
        assert_eq!(said(Some(9), false, true), "");
        assert!(said(None, false, true).contains("from outside"));
        assert_eq!((said(Some(1 << 8), true, true), said(Some(15), true, true)), (String::new(), String::new()));
    }
}
