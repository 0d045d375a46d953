//! Modes with set-user-ID bits, under `--fake-root`.
//!
//! Package managers make set-user-ID programs, and give up where they cannot. No such program may come into being: in a
//! workspace it would run as the user who started the box. So the call is made without those bits. The filter leaves it to
//! the supervisor (seccomp_unotify(2)), which stops the thread that waits, clears the bits in the register that holds the
//! mode, and lets it go; the kernel then begins the call anew, and the filter looks at it anew (docs/adr/0012).
//!
//! A thread of its own does this, one call after the other; it is made for the first such call. PTRACE_SEIZE waits for an
//! `execve` under way in the process that it is to seize, and that waits until the process's other threads are gone, also
//! those that somebody in the box traces. So a process can hold its tracer as long as it likes. That costs the box its
//! set-user-ID modes; the job's clock, signals and output wait for none of it.
//!
//! Invariant: the payload's own thread makes the call, with its own rights and directories. Nothing is opened, looked up or
//! read from memory here, and nothing changes but bits of one register, which are only ever cleared. The supervisor waits
//! for no thread of the box, nor for the one that traces them. No thread is held while another is
//! seized: an `execve` that waits for the first would hold up the second, and that its tracer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use agentd_sys::notify::{self, Notification};
use agentd_sys::trace::{self, Seen};
use nix::sys::ptrace;
use nix::unistd::Pid;

use crate::job::events::Denial;

/// S_ISUID and S_ISGID (inode(7)).
const SET_ID: u64 = 0o6000;

/// Calls that wait for their tracer at a time; further ones are refused.
const MOST: usize = 256;

/// A call to be mended; what becomes of it where its thread cannot be stopped.
#[derive(Debug)]
pub(super) struct Mend {
    pub(super) call: Notification,
    pub(super) errno: i32,
    pub(super) denial: Denial,
}

/// The threads of a job whose calls are being mended.
#[derive(Debug, Default)]
pub(super) struct SetId {
    tracer: Option<Tracer>,
}

/// The thread that stops others. It ends with its work.
#[derive(Debug)]
struct Tracer {
    work: SyncSender<Work>,
    refused: Receiver<Denial>,
}

/// A call, the argument that has the mode, and the listener that the call came by.
#[derive(Debug)]
struct Work {
    mend: Box<Mend>,
    argument: usize,
    listener: OwnedFd,
}

/// A thread on its way to a stop.
#[derive(Debug, Clone, Copy)]
struct Stopping {
    thread: Pid,
    mode: Option<Mode>,
}

/// Where in the registers a mode is.
#[derive(Debug, Clone, Copy)]
struct Mode {
    call: u32,
    argument: usize,
}

impl SetId {
    /// Whether a call has a mode with such bits.
    pub(super) fn concerns(call: &Notification, name: &str) -> bool {
        mode_argument(name).and_then(|argument| call.args.get(argument)).is_some_and(|mode| mode & SET_ID != 0)
    }

    /// Has a call that waits for its answer, and that this [concerns](Self::concerns), made without set-user-ID bits; false
    /// when nobody can take it on: then it is to be refused.
    pub(super) fn mend(&mut self, listener: BorrowedFd<'_>, name: &str, call: Mend) -> bool {
        if self.tracer.is_none() {
            self.tracer = Tracer::start();
        }
        let (Some(tracer), Some(argument)) = (&self.tracer, mode_argument(name)) else { return false };
        let Ok(listener) = listener.try_clone_to_owned() else { return false };
        tracer.work.try_send(Work { mend: Box::new(call), argument, listener }).is_ok()
    }

    /// What was refused since this was asked last.
    pub(super) fn refused(&self) -> Vec<Denial> {
        self.tracer.as_ref().map(|tracer| tracer.refused.try_iter().collect()).unwrap_or_default()
    }
}

impl Tracer {
    fn start() -> Option<Self> {
        let (work, to_do) = sync_channel(MOST);
        let (refuse, refused) = channel();
        let thread = thread::Builder::new().name("set-id".into()).spawn(move || trace(&to_do, &refuse));
        thread.ok().map(|_runs| Tracer { work, refused })
    }
}

fn trace(to_do: &Receiver<Work>, refuse: &Sender<Denial>) {
    for Work { mend, argument, listener } in to_do {
        if let Some(stopping) = seize(listener.as_fd(), &mend.call, argument) {
            stopping.settle();
        } else {
            // Told before the caller goes on: when the box is gone, everything has been told.
            refuse.send(mend.denial).unwrap_or_default();
            notify::refuse(listener.as_fd(), &mend.call, mend.errno).unwrap_or_default();
        }
    }
}

/// Begins to stop the thread that waits; none when it cannot be stopped (a debugger holds it).
fn seize(listener: BorrowedFd<'_>, call: &Notification, argument: usize) -> Option<Stopping> {
    let thread = i32::try_from(call.pid).map(Pid::from_raw).ok()?;
    ptrace::seize(thread, ptrace::Options::empty()).ok()?;
    // A thread that went on before it was seized may have ended, and its number be another's: that one is only let go.
    let mode = notify::is_waiting(listener, call).then_some(Mode { call: call.nr, argument });
    // It fails when the thread is gone, of which `settle` hears.
    ptrace::interrupt(thread).unwrap_or_default();
    Some(Stopping { thread, mode })
}

impl Stopping {
    /// Lets the thread go as soon as it has stopped, or hears that it is gone.
    fn settle(self) {
        loop {
            let released = match trace::wait(self.thread) {
                // It stopped because it was asked to, or with its whole process.
                Ok(Seen::Stopped) => {
                    // A thread that is killed while it stands has no registers to change.
                    self.mode.map_or(Ok(()), |mode| mode.clear(self.thread)).unwrap_or_default();
                    trace::release(self.thread, 0)
                }
                // A signal came first. It gets it, and the call comes again.
                Ok(Seen::Signal(signal)) => trace::release(self.thread, signal),
                Ok(Seen::Ended) | Err(_) => return,
            };
            // One that was killed meanwhile is still to be waited for.
            if released.is_ok() {
                return;
            }
        }
    }
}

impl Mode {
    /// Clears the bits, if the call is about to begin anew; where it is not, it comes again by itself.
    #[cfg(target_arch = "x86_64")]
    fn clear(self, thread: Pid) -> nix::Result<()> {
        /// ERESTARTSYS of include/linux/errno.h, negative as the kernel leaves it.
        const RESTART: u64 = 512_u64.wrapping_neg();
        let mut registers = ptrace::getregs(thread)?;
        let is_call = registers.orig_rax == u64::from(self.call) && registers.rax == RESTART;
        let mode = match self.argument {
            1 => &mut registers.rsi,
            2 => &mut registers.rdx,
            _ => &mut registers.r10,
        };
        if is_call && *mode & SET_ID != 0 {
            *mode &= !SET_ID;
            ptrace::setregs(thread, registers)?;
        }
        Ok(())
    }

    /// The same; at a stop the kernel has set this machine's registers for the new beginning already.
    #[cfg(target_arch = "aarch64")]
    fn clear(self, thread: Pid) -> nix::Result<()> {
        let mut registers = ptrace::getregs(thread)?;
        let is_call = registers.regs[8] == u64::from(self.call);
        let mode = &mut registers.regs[self.argument];
        if is_call && *mode & SET_ID != 0 {
            *mode &= !SET_ID;
            ptrace::setregs(thread, registers)?;
        }
        Ok(())
    }
}

/// Which argument of a call is a mode.
fn mode_argument(name: &str) -> Option<usize> {
    match name {
        "chmod" | "fchmod" | "creat" | "mknod" => Some(1),
        "fchmodat" | "fchmodat2" | "mknodat" | "open" => Some(2),
        "openat" => Some(3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every call that the default profile refuses for its set-user-ID bits can be mended, by the argument that it tests.
    #[test]
    fn the_mode_is_the_argument_that_the_rules_test() {
        let rules = &agentd_profiles::profile(agentd_profiles::BuiltIn::Default).seccomp.rules;
        let mut seen = 0;
        for rule in rules.iter() {
            let Some(condition) = rule.when.iter().find(|condition| u64::from(condition.mask) == SET_ID) else {
                continue;
            };
            for call in rule.syscalls.iter() {
                assert_eq!(mode_argument(&call.name), Some(usize::from(condition.arg)), "{}", call.name);
                seen += 1;
            }
        }
        assert_eq!(seen, 9);
    }
}
