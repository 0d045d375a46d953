//! What a running job does for those who ask ([`crate::control`]).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use agentd_sys::memory::BEFORE_FORGETTING;
use rustix::process::{Signal, pidfd_send_signal};

use super::control::{self, Asked};
use super::ending::{Reason, Stop};
use super::{SuperviseError, Supervisor, To, gone};
use crate::cgroup::leaf::Leaf;
use crate::control::{Answer, Request};

/// The kernel's highest signal.
const SIGRTMAX: i32 = 64;

impl Supervisor<'_> {
    /// Hears those who ask, and answers.
    pub(super) fn serve(&mut self) -> Result<(), SuperviseError> {
        for asked in self.control.hear() {
            self.obey(asked)?;
            // What that needed of this program is not needed while it waits.
            self.forget_at = Instant::now().checked_add(BEFORE_FORGETTING);
        }
        Ok(())
    }

    fn obey(&mut self, mut asked: Asked) -> Result<(), SuperviseError> {
        let request = match &asked.request {
            Ok(request) => request.clone(),
            Err(error) => {
                let reason = format!("not understood: {error}");
                asked.answer(&Answer::Refused { reason }, None);
                return Ok(());
            }
        };
        let descriptor = asked.descriptor.take();
        let refused = |reason: &str| Answer::Refused { reason: reason.to_owned() };
        let answer = match request {
            // What is over needs no stopping.
            Request::Stop { .. } if !self.alive && !self.rests() => Answer::Done,
            Request::Stop { grace_ms } => {
                let grace = grace_ms.map_or_else(|| self.grace(), Duration::from_millis);
                self.stop_within(Reason::Asked, grace)?;
                Answer::Done
            }
            Request::Signal { number: libc::SIGKILL } => {
                let reason = self.stop.map_or(Reason::Killed, |stop| stop.reason);
                self.stop = Some(Stop { reason, kill_at: None });
                self.signal_init(Signal::KILL)?;
                Answer::Done
            }
            Request::Signal { number } if (1..=SIGRTMAX).contains(&number) => match &self.payload {
                Some(payload) => match agentd_sys::signal::send_by_pidfd(payload.as_fd(), number) {
                    // It has just ended, which is what most signals are for.
                    Ok(()) => Answer::Done,
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Answer::Done,
                    Err(error) => refused(&format!("signal {number} cannot be sent: {error}")),
                },
                None => refused("its command has not started yet"),
            },
            Request::Signal { .. } => refused("signals are numbered from 1 to 64"),
            Request::Pause | Request::Unpause => match self.freeze(matches!(request, Request::Pause)) {
                Ok(()) => Answer::Done,
                Err(why) => refused(&why),
            },
            Request::Porter => match self.porters.start(descriptor) {
                Ok(()) => Answer::Done,
                Err(reason) => Answer::Refused { reason },
            },
            Request::Renew { secret } => match self.renew(&secret, descriptor)? {
                Ok(()) => Answer::Done,
                Err(reason) => refused(&reason),
            },
            Request::Describe => {
                let process = &self.plan.inside.process;
                Answer::Job { terminal: process.terminal, input: process.input }
            }
            Request::Attach { stream } => {
                match control::pipe(descriptor).and_then(|pipe| self.streams.view(stream, pipe)) {
                    Ok(()) => Answer::Done,
                    Err(reason) => refused(reason),
                }
            }
            Request::Resize { rows, columns } => {
                self.streams.resize_to(rows, columns);
                Answer::Done
            }
            Request::Listen => match descriptor.map(|listener| self.denials.listen_too(listener)) {
                Some(true) => Answer::Done,
                Some(false) => refused("too many commands are listened to"),
                None => refused("no listener came along"),
            },
            Request::Reach(change) => match self.change_reach(change) {
                Ok(ports) if ports.is_empty() => Answer::Done,
                Ok(ports) => match &self.payload {
                    Some(payload) if self.alive => {
                        asked.answer(&Answer::Ports(ports), Some(payload.as_fd()));
                        return Ok(());
                    }
                    _ => refused("its command does not run"),
                },
                Err(reason) => Answer::Refused { reason },
            },
            Request::Door => match descriptor.ok_or("no socket came along").and_then(|door| self.open_late(&door)) {
                Ok(()) => Answer::Done,
                Err(reason) => refused(reason),
            },
            Request::Enter if self.leaf.as_ref().is_some_and(Leaf::is_frozen) => {
                refused("it is paused; `agentd unpause` lets it go on")
            }
            Request::Enter => match &self.payload {
                Some(payload) if self.alive => {
                    asked.answer(&Answer::Done, Some(payload.as_fd()));
                    return Ok(());
                }
                _ => refused("its command does not run"),
            },
        };
        asked.answer(&answer, None);
        Ok(())
    }

    /// Pauses the box, or lets it go on.
    fn freeze(&mut self, frozen: bool) -> Result<(), String> {
        if !self.alive {
            return Err("its command does not run".into());
        }
        let Some(leaf) = &mut self.leaf else {
            return Err(
                "it has no cgroup of its own and cannot be paused; start it with --pids or another limit, where \
                        `agentd doctor` finds cgroups"
                    .into(),
            );
        };
        leaf.freeze(frozen).map_err(|error| format!("its cgroup cannot be frozen or thawed: {error}"))
    }

    fn signal_init(&self, signal: Signal) -> Result<(), SuperviseError> {
        pidfd_send_signal(&self.init, signal).or_else(gone).to("signal the box")
    }
}
