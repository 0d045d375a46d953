//! The one host process of a job: starts the box, passes its streams and signals, keeps time, writes the record.
//!
//! Invariant: single-threaded but for the tracer of `--fake-root` (`set_id`), and it never blocks on anything but its one `poll`: a payload that floods its output, or a
//! reader that does not read, delays neither a timeout nor a signal. It reads from inside only PID 1's reports (bounded,
//! checked), bytes of output, which it copies and never interprets, and the registers of refused calls, which it answers;
//! under `--fake-root` it clears bits in one of them.

mod again;
pub mod attached;
mod control;
mod course;
mod denials;
pub mod detach;
mod ending;
pub mod guest;
mod holder;
mod keep;
pub mod keys;
mod log;
mod network;
mod obey;
pub mod porter;
mod reach;
mod ready;
mod redact;
mod renew;
pub mod service;
mod set_id;
pub mod shell;
mod streams;
mod subids;
mod terminal;
mod viewers;

use std::borrow::Cow;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agentd_init::brief;
use agentd_init::reaper::RELAYED;
use agentd_init::report::{self, Report};
use agentd_init::step::Failure;
use agentd_rootfs::commit::Upper;
use agentd_sys::memory::BEFORE_FORGETTING;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, WaitId, WaitIdOptions, getppid, kill_process, pidfd_open, pidfd_send_signal, waitid,
};

pub use course::{Finished, Presence, run};
pub(crate) use ending::AGENTD_FAILED as FAILED;
pub use ending::Ending;
pub(crate) use redact::LEAST_BYTES;

use crate::cgroup::leaf::{Leaf, LeafError};
use crate::job::events::{EVENTS, Events};
use crate::job::record::Record;
use crate::job::store::JobStoreError;
use crate::launch::plan::Plan;
use crate::launch::protect::stubs::StubError;
use crate::launch::secrets::Values;
use again::Again;
use control::Control;
use denials::Denials;
use detach::Notice;
use ending::{Memory, Reason, Stop};
use network::{Broker, Early};
use porter::Porters;
use redact::Redactor;
use service::Service;
use shell::Shell;
use streams::{Own, Streams, Wanted};
use subids::{MapError, Steward};

/// A job that could not be supervised. What fails inside the box is an [`Ending`], not an error.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The state directory.
    #[error(transparent)]
    Store(#[from] JobStoreError),
    /// Protected paths.
    #[error(transparent)]
    Stubs(#[from] StubError),
    /// The job's cgroup.
    #[error("cannot enforce the limits")]
    Cgroup(#[from] LeafError),
    /// Several ids.
    #[error(transparent)]
    Ids(#[from] MapError),
    /// `clone3`.
    #[error("cannot create namespaces for the box; `agentd doctor` says what this host allows")]
    Clone(#[source] io::Error),
    /// The network broker.
    #[error("cannot start the network broker: {why}")]
    Broker {
        /// Why not.
        why: String,
    },
    /// Any other call on the host.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Names what a system call on the host was for.
trait To<T> {
    fn to(self, what: &'static str) -> Result<T, SuperviseError>;
}

impl<T, E: Into<io::Error>> To<T> for Result<T, E> {
    fn to(self, what: &'static str) -> Result<T, SuperviseError> {
        self.map_err(|source| SuperviseError::Host { what, source: source.into() })
    }
}

/// How long a start may go on after it was told to stop.
const GRACE_OF_A_START: Duration = Duration::from_secs(1);

/// A running box, from outside.
struct Supervisor<'a> {
    plan: &'a Plan,
    service: &'a Service,
    signals: SignalFd,
    /// Whoever started this program; its end counts as a hang-up unless hang-ups are ignored (`nohup`).
    parent: Option<OwnedFd>,
    /// What tells whoever started it, if it is to be detached, that the job runs.
    notice: Option<Notice>,
    /// A pidfd of the payload, once it runs.
    payload: Option<OwnedFd>,
    control: Control,
    /// What takes commands into the box for callers that may not start a process in its cgroup.
    porters: Porters,
    init: OwnedFd,
    /// The box's cgroup, where it has limits; after `init`, which has to end before it can be removed.
    leaf: Option<Leaf>,
    channel: Option<OwnedFd>,
    streams: Streams,
    /// What takes the job's secrets out of what is kept, where it has any.
    redactor: Option<Redactor>,
    denials: Denials<'a>,
    /// What starts it again, where that is wanted.
    again: Option<Again>,
    /// The broker, where the box may reach something.
    network: Option<Broker>,
    network_before: Option<network::Before>,
    /// Who gives back what the box's other ids own, where they could own something.
    steward: Option<Steward>,
    /// What is written to the root, where it is to be kept.
    upper: Option<Upper>,
    deadline: Option<Instant>,
    /// When to give back the half of this program that only its start needed.
    forget_at: Option<Instant>,
    stop: Option<Stop>,
    /// Whether the box may still hold a process other than a PID 1 that is on its way out.
    alive: bool,
    started: bool,
    /// When a stopped job's unread output is given up.
    abandon_at: Option<Instant>,
    /// Told to go while only output was left to pass on.
    abandoned: bool,
    failure: Option<Failure>,
    status: Option<i32>,
}

impl<'a> Supervisor<'a> {
    fn start(
        plan: &'a Plan,
        directory: &Path,
        secrets: Values,
        presence: Presence,
        shell: Option<io::Result<Shell>>,
        service: &'a Service,
    ) -> Result<Self, SuperviseError> {
        let (own, notice) = match presence {
            Presence::Foreground => (Own::Standard, None),
            Presence::Detached(notice) => (Own::Nothing, Some(notice)),
        };
        let parent = watch_parent()?;
        let mut watched: SigSet = RELAYED.iter().copied().collect();
        watched.extend([Signal::SIGCHLD, Signal::SIGWINCH, Signal::SIGURG]);
        let signals = agentd_sys::signal::descriptor(&watched).to("block signals")?;
        let process = &plan.inside.process;
        let kept = Some((directory, plan.max_output));
        let wanted = Wanted { terminal: process.terminal, input: process.input, own, kept };
        let (streams, stdio) = Streams::new(&wanted).to("set the streams up")?;
        let leaf = plan.cgroup.as_ref().map(|cgroup| Leaf::make(cgroup, &plan.id)).transpose()?;
        let Early { network, mut secrets } = network::start_early(plan, plan.reach.as_ref(), secrets)?;
        let (kind, ids) = (plan.inside.network, plan.inside.ids());
        let fits = |shell: &Shell| secrets.inside.is_empty() && shell.fits(kind, ids, leaf.is_some());
        let shell = shell
            .filter(|shell| shell.as_ref().map_or(true, fits))
            .unwrap_or_else(|| Shell::new(kind, ids, leaf.as_ref().map(Leaf::as_fd), &mut secrets));
        let Shell { pid, init, channel, .. } = shell.map_err(SuperviseError::Clone)?;
        brief(&channel, plan, &stdio)?;
        drop(stdio);
        tracing::debug!(id = %plan.id, "box cloned");
        let mut supervisor = Supervisor {
            plan,
            service,
            signals,
            parent,
            notice,
            payload: None,
            control: Control::new(directory.to_owned()),
            porters: Porters::default(),
            init,
            leaf,
            channel: Some(channel),
            streams,
            redactor: None,
            denials: Denials::new(plan, Events::at(directory.join(EVENTS))),
            again: None,
            network,
            network_before: None,
            steward: None,
            upper: None,
            deadline: plan.timeout_ms.and_then(|timeout| Instant::now().checked_add(Duration::from_millis(timeout))),
            stop: None,
            alive: true,
            started: false,
            abandon_at: None,
            forget_at: None,
            abandoned: false,
            failure: None,
            status: None,
        };
        supervisor.map_ids(pid)?;
        let secrets = supervisor.start_network(pid, secrets)?;
        // After the clone: PID 1 has no copy of what it needs.
        let values = secrets.named().map(|(_, value)| value);
        supervisor.redactor = Redactor::new(values).map_err(io::Error::other).to("look for secrets")?;
        if let Some(redactor) = &supervisor.redactor {
            supervisor.streams.redact(redactor);
            supervisor.denials.redact(redactor);
        }
        supervisor.again = Again::new(plan.restart, secrets);
        Ok(supervisor)
    }

    /// The plan as it is kept.
    fn kept(&self) -> Cow<'a, Plan> {
        let Some(redactor) = &self.redactor else { return Cow::Borrowed(self.plan) };
        let mut kept = self.plan.clone();
        let process = &mut kept.inside.process;
        let asked = kept.asked.iter_mut().flat_map(|asked| &mut asked.words);
        redactor.texts(process.argv.iter_mut().chain(&mut process.env).chain(&mut kept.warnings).chain(asked));
        Cow::Owned(kept)
    }

    fn redact(&self, record: &mut Record) {
        if let Some(redactor) = &self.redactor {
            redactor.record(record);
        }
    }

    /// Lets PID 1 start the payload.
    fn release(&self) -> Result<(), SuperviseError> {
        match self.channel.as_ref().map_or(Ok(()), brief::release) {
            // PID 1 has failed and is gone; why is in the channel.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            released => released.to("release the box"),
        }
    }

    /// Until PID 1 is gone and its output is passed on.
    fn watch(&mut self) -> Result<Ending, SuperviseError> {
        while self.alive || !(self.streams.done() || self.abandoned) {
            let ready = self.wait()?;
            if ready.channel {
                self.hear()?;
            }
            if ready.denials {
                self.denials.answer().to("answer a refused call")?;
            } else if ready.all_denied {
                self.denials.close();
            }
            if let (true, Some(leaf)) = (ready.memory, &mut self.leaf) {
                leaf.look();
            }
            if ready.network {
                self.hear_network();
            }
            if ready.signals {
                self.relay()?;
            }
            if ready.parent {
                self.parent = None;
                self.stop(Reason::Hangup)?;
            }
            self.keep_time()?;
            if ready.callers {
                self.serve()?;
                self.denials.answer_guests();
            }
            if ready.streams {
                self.streams.pass().to("pass the output on")?;
            }
            if ready.init && self.alive {
                self.bury()?;
            }
        }
        let memory = self.memory();
        Ok(Ending::new(self.failure.take(), self.status, self.stop, self.timeout(), memory.as_ref()))
    }

    /// What the kernel did to this box for want of memory.
    fn memory(&mut self) -> Option<Memory> {
        let leaf = self.leaf.as_mut()?;
        let verdict = leaf.verdict()?;
        let limit = self.plan.cgroup.as_ref().and_then(|cgroup| cgroup.limits.memory);
        Some(Memory { verdict, limit, peak: leaf.memory_peak() })
    }

    fn timeout(&self) -> Option<Duration> {
        self.plan.timeout_ms.map(Duration::from_millis)
    }

    fn next_deadline(&self) -> Option<Instant> {
        match self.stop {
            _ if !self.alive => self.abandon_at,
            Some(stop) => stop.kill_at,
            None => self.deadline,
        }
    }

    fn keep_time(&mut self) -> Result<(), SuperviseError> {
        if self.forget_at.is_some_and(|at| at <= Instant::now()) {
            self.forget_at = None;
            // Not to succeed costs memory only.
            agentd_sys::memory::forget_code().unwrap_or_default();
        }
        if self.next_deadline().is_none_or(|deadline| Instant::now() < deadline) {
            return Ok(());
        }
        match self.stop {
            _ if !self.alive => {
                self.abandoned = true;
                Ok(())
            }
            None => self.stop(Reason::Timeout),
            Some(stop) => {
                self.stop = Some(Stop { kill_at: None, ..stop });
                pidfd_send_signal(&self.init, rustix::process::Signal::KILL).or_else(gone).to("kill the box")
            }
        }
    }

    /// SIGTERM now, SIGKILL after the grace period: a short one as long as no payload is known to run.
    fn stop(&mut self, reason: Reason) -> Result<(), SuperviseError> {
        self.stop_within(reason, self.grace())
    }

    /// The same with a grace period of its own; who asks again can only shorten the first one's.
    fn stop_within(&mut self, reason: Reason, grace: Duration) -> Result<(), SuperviseError> {
        let grace = if self.started { grace } else { grace.min(GRACE_OF_A_START) };
        let end = Instant::now().checked_add(grace);
        if let Some(stop) = &mut self.stop {
            stop.kill_at = stop.kill_at.map(|at| end.map_or(at, |end| end.min(at)));
            return Ok(());
        }
        self.stop = Some(Stop { reason, kill_at: end });
        if let Some(leaf) = self.leaf.as_mut().filter(|leaf| leaf.is_frozen()) {
            // It is to hear of it. One that does not thaw is killed when its time is over.
            leaf.freeze(false).unwrap_or_default();
        }
        self.service.stopping(grace);
        pidfd_send_signal(&self.init, rustix::process::Signal::TERM).or_else(gone).to("stop the box")
    }

    fn grace(&self) -> Duration {
        Duration::from_millis(self.plan.grace_ms)
    }

    fn relay(&mut self) -> Result<(), SuperviseError> {
        while let Some(info) = self.signals.read_signal().to("read signals")? {
            let Some(signal) = i32::try_from(info.ssi_signo).ok().and_then(|raw| Signal::try_from(raw).ok()) else {
                continue;
            };
            match signal {
                Signal::SIGWINCH => self.streams.resize(),
                Signal::SIGCHLD => self.porters.reap(),
                // Somebody looks for the socket.
                Signal::SIGURG => {
                    if let Err(error) = self.control.open() {
                        // It is the caller's to say that nobody answers: the job has no part in it.
                        tracing::debug!(%error, "no control socket");
                    }
                }
                // Only a reader that does not read keeps this program here.
                _ if !self.alive && !self.rests() => self.abandoned = true,
                Signal::SIGHUP => self.stop(Reason::Hangup)?,
                Signal::SIGTERM => self.stop(Reason::Terminated)?,
                signal => {
                    // A start that hangs must not outlast a Ctrl-C. One that has just succeeded has not said so yet: its
                    // payload gets the signal all the same, and is not stopped for it.
                    if matches!(signal, Signal::SIGINT | Signal::SIGQUIT) && !self.started && self.stop.is_none() {
                        let kill_at = Some(Instant::now() + GRACE_OF_A_START);
                        self.stop = Some(Stop { reason: Reason::Interrupted, kill_at });
                    }
                    if let (Some(again), Signal::SIGINT | Signal::SIGQUIT) = (&mut self.again, signal) {
                        again.is_interrupted = true;
                    }
                    if let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) {
                        pidfd_send_signal(&self.init, signal).or_else(gone).to("relay a signal")?;
                    }
                }
            }
        }
        Ok(())
    }

    /// One report of PID 1.
    fn hear(&mut self) -> Result<(), SuperviseError> {
        let Some(channel) = &self.channel else { return Ok(()) };
        match report::receive(channel).to("hear from the box")? {
            None => self.channel = None,
            Some((Report::Started, payload)) => {
                self.started = true;
                self.payload = payload;
                self.service.started(self.plan);
                if let Some(notice) = self.notice.take() {
                    // From here on it is nobody's.
                    self.parent = None;
                    notice.tell().to("detach")?;
                }
                self.forget_at = Instant::now().checked_add(BEFORE_FORGETTING);
                if self.stop.is_some_and(|stop| stop.reason == Reason::Interrupted && stop.kill_at.is_some()) {
                    self.stop = None;
                }
                // It began to run while it was being stopped: PID 1 relays the SIGTERM, and the payload has its full time.
                let kill_at = Instant::now() + self.grace();
                if let Some(Stop { kill_at: Some(early), .. }) = &mut self.stop {
                    *early = kill_at;
                }
                tracing::debug!(id = %self.plan.id, "payload started");
            }
            Some((Report::Failed(failure), _)) => self.failure = Some(failure),
            Some((Report::Exited { status, empty }, _)) => {
                self.status = Some(status);
                // The kernel needs as long again as `true` to take the mounts down (docs/adr/0008). Nobody has to wait:
                // PID 1 is on its way out, and would be killed with this process.
                if empty {
                    self.channel = None;
                    self.box_is_gone();
                }
            }
            Some((Report::Terminal, Some(controller))) => self.streams.attach(controller).to("use the terminal")?,
            Some((Report::Denials, Some(listener))) => self.denials.listen(listener),
            Some((Report::Upper, Some(upper))) => {
                let layers: Vec<PathBuf> =
                    self.plan.inside.root.layers.iter().map(|layer| layer.path.clone()).collect();
                self.upper = Some(Upper::new(upper, &layers).to("look at the root")?);
                self.release()?;
            }
            Some((Report::Door, Some(door))) => self.open_door(&door),
            Some((Report::Terminal | Report::Denials | Report::Upper | Report::Door, None)) => {
                return Err(io::Error::from(io::ErrorKind::InvalidData)).to("hear from the box");
            }
        }
        Ok(())
    }

    /// PID 1 is gone, and with it every process of the box: hears what it still had to say and reaps it.
    fn bury(&mut self) -> Result<(), SuperviseError> {
        while self.channel.is_some() {
            self.hear()?;
        }
        waitid(WaitId::PidFd(self.init.as_fd()), WaitIdOptions::EXITED).to("reap the box")?;
        if self.alive {
            self.box_is_gone();
        }
        Ok(())
    }

    /// No process of the box is left to speak or to be stopped.
    fn box_is_gone(&mut self) {
        self.alive = false;
        self.payload = None;
        self.denials.close_all();
        if let Some(broker) = &mut self.network {
            broker.box_is_gone();
        }
        // A job that was stopped ends even if nobody reads what it had still to say.
        self.abandon_at = self.stop.map(|_| Instant::now() + self.grace());
        self.streams.box_is_gone();
    }
}

impl Drop for Supervisor<'_> {
    fn drop(&mut self) {
        // On the way out of an error the box must not be left behind, not even as something that is about to end.
        if self.alive && pidfd_send_signal(&self.init, rustix::process::Signal::KILL).is_ok() {
            // Nobody else waits for it; there is nothing better to do about an error here than to go.
            waitid(WaitId::PidFd(self.init.as_fd()), WaitIdOptions::EXITED).unwrap_or_default();
        }
    }
}

/// Tells PID 1 what its box is to be, and what the payload gets as 0, 1 and 2.
fn brief(channel: &OwnedFd, plan: &Plan, stdio: &[OwnedFd; 3]) -> Result<(), SuperviseError> {
    match brief::send(channel, &plan.inside, stdio.each_ref().map(AsFd::as_fd)) {
        // PID 1 has failed and is gone; why is in the channel.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        sent => sent.to("brief the box"),
    }
}

fn gone(error: Errno) -> Result<(), Errno> {
    if error == Errno::SRCH { Ok(()) } else { Err(error) }
}

/// A pidfd of the process that started this one; none under `nohup`, where its end means nothing.
fn watch_parent() -> Result<Option<OwnedFd>, SuperviseError> {
    if agentd_sys::signal::hangup_is_ignored().to("look at SIGHUP")? {
        return Ok(None);
    }
    let Some(parent) = getppid().filter(|parent| *parent != Pid::INIT) else { return Ok(None) };
    match pidfd_open(parent, PidfdFlags::empty()) {
        Ok(pidfd) if getppid() == Some(parent) => Ok(Some(pidfd)),
        // It ended just now: as if it had ended a moment later.
        Ok(_) | Err(Errno::SRCH) => {
            kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).to("hang up")?;
            Ok(None)
        }
        Err(error) => Err(error).to("watch the parent process"),
    }
}
