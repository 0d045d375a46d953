//! System calls that policy refuses: answered here, so that they can be told.
//!
//! The payload's filter leaves its denials to this process (seccomp_unotify(2)). What a call is answered with follows from
//! the same rules the filter was compiled from, and is always an error, but in a job that learns (`agentd profile learn`);
//! calls that are allowed never come here. Under `--fake-root` some are not
//! answered, but begin anew ([`super::set_id`]).
//!
//! Invariant: a call that cannot be looked at is refused like any other. However many are refused, and whatever the payload
//! calls itself, what is kept has a bound, and none of the job's secrets whole in it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agentd_profiles::evaluate::{Call, deciding};
use agentd_profiles::{Lessons, NATIVE, SeccompRules, Verdict};
use agentd_sys::notify;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::redact::Redactor;
use super::set_id::{Mend, SetId};
use crate::job::events::{Argument, Denial, Event, Events};
use crate::job::store::now;
use crate::launch::plan::Plan;

/// Denials that are told apart; of further ones only the number is kept.
const MOST: usize = 100;

/// Commands beside the payload that are listened to at once.
const MOST_GUESTS: usize = 64;

/// Bytes of a thread's name (TASK_COMM_LEN, with its NUL).
const COMM: u64 = 16;

/// The denials of a job.
#[derive(Debug)]
pub(super) struct Denials<'a> {
    plan: &'a Plan,
    listener: Option<OwnedFd>,
    /// Of commands beside the payload (`agentd exec`), under the same rules.
    guests: Vec<OwnedFd>,
    /// Whether there ever was a listener.
    told: bool,
    found: Vec<Denial>,
    total: u64,
    events: Events,
    lessons: Option<Lessons>,
    /// Under `--fake-root` and `--userns subids`: what becomes of modes with set-user-ID bits.
    set_id: Option<SetId>,
    redactor: Option<Redactor>,
}

impl<'a> Denials<'a> {
    pub(super) fn new(plan: &'a Plan, events: Events) -> Self {
        let lessons = plan.learning.clone().map(Lessons::new);
        let set_id = (plan.fake_root || plan.id_helpers.is_some()).then(SetId::default);
        let (listener, guests, told, found, total) = (None, Vec::new(), false, Vec::new(), 0);
        Denials { plan, listener, guests, told, found, total, events, lessons, set_id, redactor: None }
    }

    /// Has `redactor` clean what is told from now on.
    pub(super) fn redact(&mut self, redactor: &Redactor) {
        self.redactor = Some(redactor.clone());
    }

    /// From now on refused calls wait for [`Denials::answer`].
    pub(super) fn listen(&mut self, listener: OwnedFd) {
        self.listener = Some(listener);
        self.told = true;
    }

    /// What to poll.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// The same for a command beside the payload; false when there are too many.
    pub(super) fn listen_too(&mut self, listener: OwnedFd) -> bool {
        let has_room = self.guests.len() < MOST_GUESTS;
        if has_room {
            self.guests.push(listener);
        }
        has_room
    }

    /// What to poll of those.
    pub(super) fn guests<'f>(&'f self, fds: &mut Vec<PollFd<'f>>) {
        fds.extend(self.guests.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
    }

    /// Answers a call of each command that has one waiting; what is no listener, or has no process left, is let go.
    pub(super) fn answer_guests(&mut self) {
        for listener in std::mem::take(&mut self.guests) {
            let mut fds = [PollFd::new(&listener, PollFlags::IN)];
            let found = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
            let revents = fds.first().map_or(PollFlags::empty(), PollFd::revents);
            let is_over = found.is_err() || (!revents.is_empty() && !revents.contains(PollFlags::IN));
            if is_over || (revents.contains(PollFlags::IN) && self.answer_one(listener.as_fd()).is_err()) {
                continue;
            }
            self.guests.push(listener);
        }
    }

    /// No process is left under the filter.
    pub(super) fn close(&mut self) {
        self.listener = None;
    }

    /// No process is left in the box.
    pub(super) fn close_all(&mut self) {
        self.close();
        self.guests.clear();
        // Nothing is left to be traced; and what starts the job again must have one thread.
        self.count_refused();
        self.set_id = self.set_id.take().map(|_done| SetId::default());
    }

    /// Whether the plan wanted denials told and the kernel could not.
    pub(super) fn is_silent(&self) -> bool {
        self.plan.inside.seccomp.told && !self.told
    }

    /// Counts what the tracer of `--fake-root` has refused.
    fn count_refused(&mut self) {
        let refused = self.set_id.as_ref().map(SetId::refused);
        refused.into_iter().flatten().for_each(|denial| self.count(denial));
    }

    /// Answers one call that waits.
    pub(super) fn answer(&mut self) -> io::Result<()> {
        self.count_refused();
        let Some(listener) = self.listener.take() else { return Ok(()) };
        let answered = self.answer_one(listener.as_fd());
        self.listener = Some(listener);
        answered
    }

    fn answer_one(&mut self, listener: BorrowedFd<'_>) -> io::Result<()> {
        let Some(call) = notify::receive(listener)? else { return Ok(()) };
        let seen = Call { arch: call.arch, nr: call.nr, args: call.args };
        let verdict = self.plan.rules.as_deref().map(|rules| (rules, deciding(rules, NATIVE, &seen)));
        let answer = match verdict {
            Some((_, Some(rule))) => rule.verdict,
            Some((rules, None)) => Verdict::Refuse(rules.unlisted),
            None => Verdict::Refuse(agentd_profiles::Errno::Eperm),
        };
        let (rules, rule) = verdict.unzip();
        let rule = rule.flatten();
        let named = rule.and_then(|rule| rule.syscalls.iter().find(|named| named.number(NATIVE) == Some(call.nr)));
        // The filter asks about denials only; were it ever otherwise, the call is denied all the same.
        let errno = if let Verdict::Refuse(errno) = answer { i32::from(errno as u16) } else { libc::EPERM };
        // Before the answer, while the caller still waits: afterwards its number may be somebody else's.
        let mut untrusted_program = program(call.pid);
        if let Some(redactor) = &self.redactor {
            redactor.texts([&mut untrusted_program]);
        }
        let syscall = named.map_or_else(|| format!("number {}", call.nr), |named| named.name.to_string());
        let mut tested: Vec<u8> = rules.into_iter().flat_map(|rules| tested(rules, call.nr)).collect();
        tested.sort_unstable();
        tested.dedup();
        let argument = |number: u8| {
            let low = call.args.get(usize::from(number))? & u64::from(u32::MAX);
            Some(Argument { number, value: u32::try_from(low).ok()? })
        };
        let denial = Denial {
            time: now(),
            syscall,
            arguments: tested.into_iter().filter_map(argument).collect(),
            answer: answer.to_string(),
            profile: self.plan.inside.seccomp.profile.clone(),
            rule: rule.map_or_else(String::new, |rule| rule.group.to_string()),
            reason: rule.map_or_else(|| "no rule names it".into(), |rule| rule.reason.to_string()),
            untrusted_program,
            pid: call.pid,
            count: 1,
        };
        if let (Some(set_id), Some(named)) = (&mut self.set_id, named)
            && SetId::concerns(&call, &named.name)
            && set_id.mend(listener, &named.name, Mend { call, errno, denial: denial.clone() })
        {
            return Ok(());
        }
        if let (Some(lessons), Some(rules)) = (&mut self.lessons, self.plan.rules.as_deref()) {
            if lessons.judge(rules, &seen, &denial.untrusted_program) {
                return notify::let_through(listener, &call);
            }
            if !answer.is_denial() {
                return notify::refuse(listener, &call, errno);
            }
        }
        notify::refuse(listener, &call, errno)?;
        self.count(denial);
        Ok(())
    }

    fn count(&mut self, denial: Denial) {
        self.total += 1;
        if let Some(known) = self.found.iter_mut().find(|known| known.is_like(&denial)) {
            known.count += 1;
        } else if self.found.len() < MOST {
            self.keep(&Event::Denial(denial.clone()));
            self.found.push(denial);
        }
    }

    /// A disk that takes no more costs what is kept, not the job: the number is in the record.
    pub(super) fn keep(&mut self, event: &Event) {
        if let Err(error) = self.events.append(event) {
            tracing::debug!(%error, "a denial could not be written");
        }
    }

    /// What a job that learns has learned.
    pub(super) fn lessons(&mut self) -> Option<Lessons> {
        self.lessons.take()
    }

    /// Writes the counts; gives each denial, and how many there were.
    pub(super) fn finish(&mut self) -> (Vec<Denial>, u64) {
        self.count_refused();
        for denial in std::mem::take(&mut self.found) {
            if denial.count > 1 {
                self.keep(&Event::Denial(denial.clone()));
            }
            self.found.push(denial);
        }
        (std::mem::take(&mut self.found), self.total)
    }
}

/// The arguments that any rule about the call looks at.
fn tested(rules: &SeccompRules, nr: u32) -> impl Iterator<Item = u8> {
    let about = rules.rules.iter().filter(move |rule| rule.syscalls.iter().any(|one| one.number(NATIVE) == Some(nr)));
    about.flat_map(|rule| rule.when.iter().map(|condition| condition.arg))
}

/// The name the calling thread has given itself.
fn program(pid: u32) -> String {
    let mut name = Vec::new();
    let read = File::open(format!("/proc/{pid}/comm")).and_then(|file| file.take(COMM).read_to_end(&mut name));
    // It may be gone, or hidden from this user.
    if read.is_err() { "?".into() } else { String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned() }
}
