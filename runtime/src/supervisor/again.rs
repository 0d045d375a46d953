//! Jobs that are started again when their command ends (`--restart`).
//!
//! Every start is a box of its own: new namespaces, a fresh root, the same plan. The job is one: its record, its logs, those
//! who are attached, its time.
//!
//! Invariant: what somebody stopped, killed or interrupted is not started again, nor what reached its timeout, nor a job
//! whose first start failed or whose protected paths somebody has replaced. Between two starts there is no process of the
//! box, and the supervisor hears everybody.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use agentd_init::step::Step;
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::ending::{Reason, Stop};
use super::network::{self, Early};
use super::shell::Shell;
use super::streams::Wanted;
use super::{Ending, SuperviseError, Supervisor, To};
use crate::cgroup::leaf::{Leaf, Usage};
use crate::job::number::Number;
use crate::job::restart::Restart;
use crate::launch::secrets::Values;

/// Before the first start again; then each time twice as long.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);
/// What ran for so long is no longer taken to fail at once.
const SETTLED: Duration = Duration::from_secs(10);

/// What a job that is started again needs for it.
#[derive(Debug)]
pub(super) struct Again {
    policy: Restart,
    /// Kept for the next start, unlike those of other jobs.
    secrets: Values,
    count: u32,
    pause: Duration,
    begun: Instant,
    /// Whether nothing runs just now.
    pub(super) rests: bool,
    /// Whether somebody at the terminal wanted its end.
    pub(super) is_interrupted: bool,
    /// What the boxes before this one used.
    spent: Option<Usage>,
}

impl Again {
    /// Of a job with this policy; `None` where it is never started again.
    pub(super) fn new(policy: Restart, secrets: Values) -> Option<Self> {
        (policy != Restart::No).then(|| Again {
            policy,
            secrets,
            count: 0,
            pause: FIRST,
            begun: Instant::now(),
            rests: false,
            is_interrupted: false,
            spent: None,
        })
    }

    /// Before which pause the job begins again after such an end; `None`: it does not.
    fn after(&mut self, ending: &Ending) -> Option<Duration> {
        let failed_for_good = match ending {
            // Protected paths that are no longer what the plan says will not be again: the next box fails as this one did.
            Ending::Failed { failure, .. } => self.count == 0 || failure.step == Step::Protect,
            Ending::Exited { .. } => false,
        };
        if self.is_interrupted || failed_for_good || !self.policy.wants(ending.code(), self.count) {
            return None;
        }
        if self.begun.elapsed() >= SETTLED {
            self.pause = FIRST;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST);
        Some(pause)
    }
}

impl Supervisor<'_> {
    /// How often it was started again.
    pub(super) fn restarts(&self) -> u32 {
        self.again.as_ref().map_or(0, |again| again.count)
    }

    /// What all of its boxes used.
    pub(super) fn usage(&mut self) -> Option<Usage> {
        let last = self.leaf.as_mut().map(Leaf::usage);
        match (self.again.as_mut().and_then(|again| again.spent.take()), last) {
            (Some(before), Some(last)) => Some(before.and(last)),
            (before, last) => last.or(before),
        }
    }

    pub(super) fn rests(&self) -> bool {
        self.again.as_ref().is_some_and(|again| again.rests)
    }

    /// Until the job is over, box after box.
    pub(super) fn supervise(&mut self) -> Result<Ending, SuperviseError> {
        loop {
            let ending = self.watch()?;
            let pause = match (&mut self.again, self.stop) {
                (Some(again), None) => again.after(&ending),
                _ => None,
            };
            let Some(pause) = pause else { return Ok(ending) };
            tracing::debug!(?pause, code = ending.code(), "the job is started again");
            self.clear_away()?;
            self.rest(pause)?;
            if self.stop.is_some() {
                return Ok(Ending::new(None, self.status.take(), self.stop, self.timeout(), None));
            }
            self.begin_again()?;
        }
    }

    /// Lets go of what was the last box's.
    fn clear_away(&mut self) -> Result<(), SuperviseError> {
        match waitid(WaitId::PidFd(self.init.as_fd()), WaitIdOptions::EXITED) {
            // Reaped when it was seen to be gone.
            Ok(_) | Err(Errno::CHILD) => {}
            Err(error) => return Err(error).to("reap the box"),
        }
        self.rest_network();
        let spent = self.usage();
        self.leaf = None;
        if let Some(again) = &mut self.again {
            (again.spent, again.rests) = (spent, true);
        }
        self.started = false;
        Ok(())
    }

    /// Waits, and hears whoever has something to say; who wants the job's end has it at once.
    fn rest(&mut self, pause: Duration) -> Result<(), SuperviseError> {
        let until = Instant::now() + pause;
        let is_timeout = self.deadline.is_some_and(|deadline| deadline <= until);
        self.abandon_at = self.deadline.filter(|_| is_timeout).or(Some(until));
        while !self.abandoned && self.stop.is_none() {
            let ready = self.wait()?;
            if ready.signals {
                self.relay()?;
            }
            if ready.parent {
                self.parent = None;
                self.stop(Reason::Hangup)?;
            }
            if ready.callers {
                self.serve()?;
            }
            self.keep_time()?;
        }
        if is_timeout && self.stop.is_none() {
            self.stop = Some(Stop { reason: Reason::Timeout, kill_at: None });
        }
        Ok(())
    }

    fn begin_again(&mut self) -> Result<(), SuperviseError> {
        let plan = self.plan;
        let Some(again) = &mut self.again else { return Ok(()) };
        let secrets = std::mem::take(&mut again.secrets);
        let process = &plan.inside.process;
        let wanted = Wanted { terminal: process.terminal, input: process.input, own: self.streams.own(), kept: None };
        let stdio = self.streams.begin_again(&wanted, self.redactor.as_ref()).to("set the streams up")?;
        self.leaf = plan.cgroup.as_ref().map(|cgroup| Leaf::make(cgroup, &plan.id)).transpose()?;
        let Early { network, mut secrets } = network::start_early(plan, self.policy(), secrets)?;
        let cgroup = self.leaf.as_ref().map(Leaf::as_fd);
        let shell = Shell::new(plan.inside.network, plan.inside.ids(), cgroup, &mut secrets);
        let Shell { pid, init, channel, .. } = shell.map_err(SuperviseError::Clone)?;
        (self.init, self.network) = (init, network);
        super::brief(&channel, plan, &stdio)?;
        drop(stdio);
        self.channel = Some(channel);
        self.map_ids(pid)?;
        (self.alive, self.abandoned, self.abandon_at) = (true, false, None);
        (self.payload, self.failure, self.status) = (None, None, None);
        let secrets = self.start_network(pid, secrets)?;
        self.resume_network();
        if let Some(again) = &mut self.again {
            (again.secrets, again.rests, again.begun) = (secrets, false, Instant::now());
            again.count += 1;
            Number::Restarts.note(self.control.directory(), again.count.into());
        }
        self.release()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentd_init::step::Failure;

    fn exited(code: u8) -> Ending {
        Ending::Exited { code, reason: None }
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_begin_anew_after_a_long_run() {
        let mut again = Again::new(Restart::Always, Values::default()).unwrap();
        let pauses: Vec<u128> = (0..12).map(|_| again.after(&exited(0)).unwrap().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000]);
        again.begun = Instant::now().checked_sub(SETTLED).unwrap();
        assert_eq!(again.after(&exited(0)).unwrap(), FIRST);
    }

    #[test]
    fn what_never_ran_or_was_interrupted_is_not_started_again() {
        assert!(Again::new(Restart::No, Values::default()).is_none());
        let mut again = Again::new(Restart::Always, Values::default()).unwrap();
        let failed = Ending::Failed { code: 127, failure: Failure { step: Step::Exec, object: "x".into(), errno: 2 } };
        assert_eq!(again.after(&failed), None);
        again.count = 1;
        assert!(again.after(&failed).is_some(), "it ran before");
        let changed = Failure { step: Step::Protect, object: ".git/config".into(), errno: libc::ESTALE };
        assert_eq!(again.after(&Ending::Failed { code: 125, failure: changed }), None);
        again.is_interrupted = true;
        assert_eq!(again.after(&exited(1)), None);
    }
}
