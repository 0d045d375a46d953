//! How a job ended, and the exit code that says so.
//!
//! The codes are docker's and podman's: the payload's own; 124 for a timeout, as timeout(1) has it; 125 when agentd failed
//! before the payload ran, 126 and 127 when the program could not be executed or was not found; 128 + n for signal n.

use std::time::{Duration, Instant};

use agentd_init::step::{Failure, Step};
use rustix::io::Errno;

use crate::cgroup::Cgroup;
use crate::cgroup::leaf::Usage;
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
            None if status.is_none() => (code, Some("PID 1 of the box was killed from outside".into())),
            None => (code, None),
        };
        Ending::Exited { code, reason }
    }

    /// The same, with the kernel's reason where it killed the payload for want of memory.
    pub(super) fn told_of(self, usage: Option<&Usage>, cgroup: Option<&Cgroup>) -> Self {
        let Ending::Exited { code, reason: None } = self else { return self };
        let oom_kills = usage.and_then(|usage| usage.oom_kills).unwrap_or(0);
        let limit = cgroup.and_then(|cgroup| cgroup.limits.memory);
        let (Some(limit), true) = (limit, oom_kills > 0 && i32::from(code) == KILLED) else {
            return Ending::Exited { code, reason: None };
        };
        let reason = format!("out of memory: the kernel killed it at its limit of {limit} bytes (--memory)");
        Ending::Exited { code, reason: Some(reason) }
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
        Ending::new(Some(failure), None, None, None)
    }

    fn ended(status: Option<i32>, reason: Option<Reason>) -> (u8, bool) {
        let stop = reason.map(|reason| Stop { reason, kill_at: None });
        match Ending::new(None, status, stop, Some(Duration::from_secs(5))) {
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
}
