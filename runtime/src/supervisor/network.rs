//! The network broker as its supervisor sees it: a child that gets the box's sockets, and tells what is asked of it.
//!
//! Invariant: nothing the broker does or leaves undone stops the supervisor: what it says is bounded, checked and only written
//! down; a broker that is gone costs the job its network, and that is told.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use agentd_egress::{Key, Order, Policy, Request, Told, Totals, Verdict};
use agentd_init::Secret;
use agentd_profiles::BuiltIn;
use agentd_sys::channel;
use agentd_sys::process::{Cloned, clone};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::holder;
use super::redact::Redactor;
use super::{SuperviseError, Supervisor, To};
use crate::job::events::Event;
use crate::job::number::Number;
use crate::job::record::{NameUse, NetworkUse, PolicyChange, Record};
use crate::launch::keys;
use crate::launch::plan::Plan;
use crate::launch::secrets::Values;

/// Requests that are written down one by one; of further ones only the numbers are kept.
const MOST_LINES: u64 = 10_000;

/// Refusals that are shown at the end, and names that the record counts apart.
const MOST_NAMES: usize = 100;

/// For how long the broker is waited for, between two of its messages, once the box is gone.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// For how long a broker that reads requests is waited for before the box is made: it reads the host's authorities.
const TO_BE_READY: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// The same in all: a broker that never ends what it has to say does not keep the job from its end.
const PATIENCE_IN_ALL: Duration = Duration::from_secs(5);

/// The broker of a job.
#[derive(Debug)]
pub(super) struct Broker {
    process: OwnedFd,
    channel: Option<OwnedFd>,
    /// It has been told that the box is gone: it hears nothing more, and still has to say what had passed.
    is_ending: bool,
    lines: u64,
    names: Vec<NameUse>,
    totals: Option<Totals>,
    /// Bytes that have moved, where that is news.
    moved: Option<u64>,
    refusals: Vec<Request>,
    /// The policy as it is now.
    pub(super) policy: Policy,
    /// Ports at which the box is listened to.
    pub(super) open: BTreeSet<u16>,
    /// What changed it.
    pub(super) changes: Vec<PolicyChange>,
    /// PID 1 of the box, which lives until this supervisor reaps it, and the process that was named last.
    init: Option<i32>,
    likely: Option<i32>,
}

/// What came of the network of the boxes before the last one's, where a job was started again.
#[derive(Debug, Default)]
pub(super) struct Before {
    used: NetworkUse,
    policy: Option<Policy>,
    lines: u64,
    refusals: Vec<Request>,
    warnings: Vec<String>,
}

/// What came of a job's network.
#[derive(Debug)]
struct Ended {
    /// For the record.
    used: NetworkUse,
    policy: Policy,
    /// Requests that were written down.
    lines: u64,
    /// The refusals, each kind once, with its count.
    refusals: Vec<Request>,
    /// What is still to be written down.
    last: Vec<Request>,
    /// That the broker ended before the box.
    warning: Option<String>,
}

/// Which side of the fork this is.
#[derive(Debug)]
enum Side {
    /// The process that is to be the broker, with its end of the channel.
    Broker(OwnedFd),
    /// The supervisor.
    Supervisor(Box<Broker>),
}

/// Makes the broker's process, from one with one thread.
fn fork(policy: &Policy) -> io::Result<Side> {
    let (ours, theirs) = channel::pair()?;
    Ok(match clone(0)? {
        Cloned::Child => Side::Broker(theirs),
        Cloned::Parent { pidfd, .. } => Side::Supervisor(Box::new(Broker {
            process: pidfd,
            channel: Some(ours),
            is_ending: false,
            lines: 0,
            names: Vec::new(),
            totals: None,
            moved: None,
            refusals: Vec::new(),
            open: policy.ports(),
            policy: policy.clone(),
            changes: Vec::new(),
            init: None,
            likely: None,
        })),
    })
}

/// Starts the broker, which keeps its keys and forgets every other secret.
fn start(policy: &Policy, secrets: Values) -> Result<(Broker, Values), SuperviseError> {
    match fork(policy).to("start the network broker")? {
        Side::Broker(channel) => {
            // It has a copy of this process's memory, and is near to whoever would want what is in there.
            agentd_sys::memory::forget_environment();
            let Values { inside, keys } = secrets;
            drop(inside);
            agentd_egress::run(policy.clone(), keys, channel, agentd_profiles::seccomp(BuiltIn::Broker))
        }
        Side::Supervisor(network) => Ok((*network, secrets)),
    }
}

/// What a job whose requests are read begins with.
pub(super) struct Early {
    /// The broker.
    pub(super) network: Option<Broker>,
    /// The secrets, and the certificates that came with the broker.
    pub(super) secrets: Values,
}

/// Starts the broker before the box, where the box needs its certificate or the broker has keys: it then has them from a
/// process that has cloned nothing else yet, and says whether it can do its work.
pub(super) fn start_early(plan: &Plan, policy: Option<&Policy>, secrets: Values) -> Result<Early, SuperviseError> {
    let Some(policy) = policy.filter(|policy| !policy.inspected().is_empty()) else {
        return Ok(Early { network: None, secrets });
    };
    let (network, mut secrets) = start(policy, secrets)?;
    let certificate = network.ready()?;
    if let Some(certificate) = certificate {
        let mut bundle = keys::image_authorities(&plan.inside);
        if !bundle.is_empty() && !bundle.ends_with(b"\n") {
            bundle.push(b'\n');
        }
        bundle.extend_from_slice(certificate.as_bytes());
        let file = |name: &str, contents: Vec<u8>| Secret { name: name.into(), value: contents.into() };
        secrets.inside.certificates =
            vec![file(keys::CERTIFICATE, certificate.into_bytes()), file(keys::BUNDLE, bundle)];
    }
    Ok(Early { network: Some(network), secrets })
}

impl Broker {
    /// Waits until it says that it can read requests; gives the certificate of the job's authority.
    fn ready(&self) -> Result<Option<String>, SuperviseError> {
        let broken = |why: String| SuperviseError::Broker { why };
        let Some(channel) = &self.channel else { return Err(broken("it has ended".into())) };
        let mut ready = [PollFd::new(channel, PollFlags::IN)];
        if poll(&mut ready, Some(&TO_BE_READY)).to("wait for the network broker")? == 0 {
            return Err(broken("it does not answer".into()));
        }
        let message = channel::receive(channel).to("hear from the network broker")?;
        match message.and_then(|message| Told::decode(&message.bytes)) {
            Some(Told::Ready { certificate }) => Ok(certificate),
            Some(Told::Unready { why }) => Err(broken(why)),
            _ => Err(broken("it has ended".into())),
        }
    }

    /// Passes a socket of the box on.
    fn open(&mut self, door: &OwnedFd) {
        self.order(&Order::Door, Some(door.as_fd()));
    }

    /// Gives the broker an order; whether it has it.
    pub(super) fn order(&mut self, order: &Order, descriptor: Option<BorrowedFd<'_>>) -> bool {
        if self.is_ending {
            return false;
        }
        let sent = self.channel.as_ref().map_or(Ok(()), |channel| {
            let mut ready = [PollFd::new(channel, PollFlags::OUT)];
            match poll(&mut ready, Some(&PATIENCE))? {
                0 => Err(io::ErrorKind::TimedOut.into()),
                _ => channel::send(channel.as_fd(), &order.encode(), descriptor),
            }
        });
        if sent.is_err() {
            // It is gone, or as good as gone; that is told at the end.
            self.channel = None;
        }
        self.channel.is_some()
    }

    /// Hands a new key over; whether it got there.
    pub(super) fn renew(&mut self, key: &Key) -> bool {
        let sent = self.channel.as_ref().map(|channel| {
            let mut ready = [PollFd::new(channel, PollFlags::OUT)];
            match poll(&mut ready, Some(&PATIENCE))? {
                0 => Err(io::ErrorKind::TimedOut.into()),
                _ => channel::send(channel.as_fd(), &key.encode(), None),
            }
        });
        matches!(sent, Some(Ok(())))
    }

    /// What to poll.
    pub(super) fn channel(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// Hears one message; gives what is to be written down.
    fn hear(&mut self) -> Option<Request> {
        let message = self.channel.as_ref().map(channel::receive);
        // Nonsense, and an end.
        let Some(Ok(Some(message))) = message else {
            self.channel = None;
            return None;
        };
        match Told::decode(&message.bytes) {
            Some(Told::Request(request)) => {
                self.lines += 1;
                if request.verdict == Verdict::Refused {
                    if self.refusals.len() < MOST_NAMES {
                        self.refusals.push(request.clone());
                    }
                } else {
                    self.count(&request);
                }
                (self.lines <= MOST_LINES).then_some(request)
            }
            Some(Told::Again(request)) => {
                let known = self.refusals.iter_mut().find(|known| known.is_like(&request))?;
                known.count = request.count;
                self.lines += 1;
                (self.lines <= MOST_LINES + MOST_NAMES as u64).then_some(request)
            }
            Some(Told::Moved(bytes)) => {
                self.moved = Some(bytes);
                None
            }
            Some(Told::Totals(totals)) => {
                self.totals = Some(totals);
                None
            }
            Some(Told::Dial { id, at }) => {
                let socket = self.dial(at);
                self.order(&Order::Dialled(id), socket.as_ref().map(AsFd::as_fd));
                None
            }
            Some(Told::Whose { id, inode }) => {
                let program = self.init.and_then(|init| holder::find(init, &mut self.likely, inode));
                self.order(&Order::Whose { id, program }, None);
                None
            }
            // These come first or not at all.
            Some(Told::Ready { .. } | Told::Unready { .. }) | None => {
                self.channel = None;
                None
            }
        }
    }

    fn count(&mut self, request: &Request) {
        let Request { untrusted_host: name, port: Some(port), up, down, verdict: Verdict::Allowed, .. } = request
        else {
            return;
        };
        let known = self.names.iter_mut().find(|known| known.name == *name && known.port == *port);
        if let Some(known) = known {
            known.connections += 1;
            known.up = known.up.saturating_add(*up);
            known.down = known.down.saturating_add(*down);
        } else if self.names.len() < MOST_NAMES {
            self.names.push(NameUse { name: name.clone(), port: *port, connections: 1, up: *up, down: *down });
        }
    }

    /// Tells the broker, which then comes to its end while what the box has written is passed on.
    pub(super) fn box_is_gone(&mut self) {
        self.is_ending = true;
        // Its number may be another process's by now.
        self.init = None;
        if let Some(channel) = &self.channel {
            // The broker may be gone as well.
            rustix::net::shutdown(channel, Shutdown::Write).unwrap_or_default();
        }
    }

    /// Hears the broker out when the box is gone; it is reaped with this value.
    fn finish(mut self) -> Ended {
        let mut last = Vec::new();
        self.box_is_gone();
        let was_there = self.channel.is_some();
        let until = Instant::now() + PATIENCE_IN_ALL;
        while let Some(channel) = self.channel.as_ref().filter(|_| Instant::now() < until) {
            let mut ready = [PollFd::new(channel, PollFlags::IN)];
            if !poll(&mut ready, Some(&PATIENCE)).is_ok_and(|ready| ready > 0) {
                break;
            }
            last.extend(self.hear());
        }
        // One that was there until the box was gone has done what it had to; that it was too slow to say how much is another thing.
        let warning = match (self.totals, was_there) {
            (Some(_), _) => None,
            (None, false) => Some("the network broker ended before the job; from then on it had no network"),
            (None, true) => Some("the network broker did not say how much had passed; it is not counted here"),
        };
        let warning = warning.map(str::to_owned);
        let Totals { allowed, refused, failed, up, down, untold } = self.totals.unwrap_or_default();
        let names = std::mem::take(&mut self.names);
        let changes = std::mem::take(&mut self.changes);
        let used = NetworkUse { allowed, refused, failed, up, down, untold, names, changes };
        let (policy, refusals) = (self.policy.clone(), std::mem::take(&mut self.refusals));
        Ended { used, policy, lines: self.lines, refusals, last, warning }
    }
}

impl Supervisor<'_> {
    /// Starts the broker, where the box may reach something and it is not there yet; gives the secrets back, which the broker
    /// is not to have.
    pub(super) fn start_network(&mut self, init: Pid, mut secrets: Values) -> Result<Values, SuperviseError> {
        if let Some(policy) = self.policy().filter(|_| self.network.is_none()) {
            let (network, others) = start(policy, secrets)?;
            (self.network, secrets) = (Some(network), others);
        }
        if let Some(network) = &mut self.network {
            network.init = Some(init.as_raw_pid());
        }
        Ok(secrets)
    }

    /// What the job may reach by now.
    pub(super) fn policy(&self) -> Option<&Policy> {
        let changed = self.network_before.as_ref().and_then(|before| before.policy.as_ref());
        changed.or(self.plan.reach.as_ref())
    }

    /// Has the broker of a later box go on with what is kept of the one before: it has one bound for all of them.
    pub(super) fn resume_network(&mut self) {
        if let (Some(network), Some(before)) = (&mut self.network, &mut self.network_before) {
            // The box listens where its plan says.
            network.open = self.plan.reach.as_ref().map(Policy::ports).unwrap_or_default();
            network.lines = before.lines;
            network.names = std::mem::take(&mut before.used.names);
            network.changes = std::mem::take(&mut before.used.changes);
            network.refusals = std::mem::take(&mut before.refusals);
        }
    }

    /// Passes a socket of the box on to the broker.
    pub(super) fn open_door(&mut self, door: &OwnedFd) {
        if let Some(network) = &mut self.network {
            network.open(door);
        }
    }

    /// One message of the broker.
    pub(super) fn hear_network(&mut self) {
        if let Some(request) = self.network.as_mut().and_then(Broker::hear) {
            self.put_down(request);
        }
        if let Some(moved) = self.network.as_mut().and_then(|network| network.moved.take()) {
            let before =
                self.network_before.as_ref().map_or(0, |before| before.used.up.saturating_add(before.used.down));
            Number::Moved.note(self.control.directory(), before.saturating_add(moved));
        }
    }

    /// Writes down what the broker still has to tell; gives what it refused.
    pub(super) fn end_network(&mut self, record: &mut Record) -> Vec<Request> {
        self.rest_network();
        let Some(Before { mut used, mut refusals, warnings, .. }) = self.network_before.take() else {
            return Vec::new();
        };
        if let Some(redactor) = &self.redactor {
            redactor.texts(used.names.iter_mut().map(|name| &mut name.name));
            refusals.iter_mut().for_each(|refusal| redact(redactor, refusal));
        }
        record.warnings.extend(warnings);
        record.network = Some(used);
        refusals
    }

    /// Hears the broker out, and keeps what came of it: the box it was for is gone.
    pub(super) fn rest_network(&mut self) {
        let Some(network) = self.network.take() else { return };
        let Ended { used, policy, lines, refusals, last, warning } = network.finish();
        for request in last {
            self.put_down(request);
        }
        let before = self.network_before.get_or_insert_default();
        before.used = std::mem::take(&mut before.used).and(used);
        (before.policy, before.lines, before.refusals) = (Some(policy), lines, refusals);
        if before.warnings.is_empty() {
            before.warnings.extend(warning);
        }
    }

    fn put_down(&mut self, mut request: Request) {
        if let Some(redactor) = &self.redactor {
            redact(redactor, &mut request);
        }
        self.denials.keep(&Event::Network(request));
    }
}

/// A name that the payload asks for can be a secret as well as any.
fn redact(redactor: &Redactor, request: &mut Request) {
    let before = request.untrusted_host.clone();
    let Request { untrusted_host, untrusted_request, untrusted_program, why, allow, .. } = &mut *request;
    let texts = [untrusted_request, untrusted_program, why, allow].into_iter().flatten();
    redactor.texts([untrusted_host].into_iter().chain(texts));
    if request.untrusted_host != before {
        // It repeats the name in lower case, where the secret is not known again.
        request.allow = None;
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Whatever it still does, it is nothing of this job's any more. Both fail only where it is gone.
        pidfd_send_signal(&self.process, Signal::KILL).unwrap_or_default();
        waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{PidfdFlags, pidfd_open};

    /// A broker that never ends by itself, and what it says by.
    #[expect(clippy::zombie_processes, reason = "the broker's drop waits for it, by its pidfd")]
    fn broker() -> (Broker, OwnedFd) {
        let (ours, theirs) = channel::pair().unwrap();
        let process = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let broker = Broker {
            process: pidfd_open(Pid::from_child(&process), PidfdFlags::empty()).unwrap(),
            channel: Some(ours),
            is_ending: false,
            lines: 0,
            names: Vec::new(),
            totals: None,
            moved: None,
            refusals: Vec::new(),
            policy: Policy::new(Vec::new(), Vec::new(), Vec::new()).unwrap(),
            open: BTreeSet::new(),
            changes: Vec::new(),
            init: None,
            likely: None,
        };
        (broker, theirs)
    }

    #[test]
    fn a_broker_that_never_ends_what_it_says_does_not_hold_the_job() {
        let (broker, theirs) = broker();
        let begun = Request::begun("2026-11-21T15:38:40.649Z".into(), "a.org".into(), None);
        let mut refused = Request { verdict: Verdict::Refused, ..begun };
        channel::send(theirs.as_fd(), &Told::Request(refused.clone()).encode(), None).unwrap();
        refused.count = 7;
        let talking = std::thread::spawn(move || {
            let again = Told::Again(refused).encode();
            while channel::send(theirs.as_fd(), &again, None).is_ok() {}
        });
        let begun = Instant::now();
        let ended = broker.finish();
        assert!(begun.elapsed() < PATIENCE_IN_ALL * 2);
        assert!(ended.last.len() as u64 <= MOST_LINES + MOST_NAMES as u64);
        assert!(ended.warning.unwrap().contains("did not say") && ended.refusals[0].count == 7);
        talking.join().unwrap();
    }

    /// What it asks when it cannot be answered any more costs nothing of what it tells.
    #[test]
    fn a_question_after_the_end_of_the_box_loses_no_count() {
        let (mut broker, theirs) = broker();
        broker.box_is_gone();
        let totals = Totals { allowed: 2, ..Totals::default() };
        let questions = [Told::Whose { id: 1, inode: 1 }, Told::Dial { id: 2, at: ([127, 0, 0, 1], 1).into() }];
        for told in questions.into_iter().chain([Told::Totals(totals)]) {
            channel::send(theirs.as_fd(), &told.encode(), None).unwrap();
        }
        drop(theirs);
        let ended = broker.finish();
        assert_eq!((ended.used.allowed, ended.warning), (2, None));
    }
}
