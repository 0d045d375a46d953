//! Modes with set-user-ID bits, under `--fake-root`.
//!
//! Package managers make set-user-ID programs, and give up where they cannot. No such program may come into being: in a
//! workspace it would run as the user who started the box. So the call is made without those bits. The filter leaves it to
//! the supervisor (seccomp_unotify(2)), which stops the thread that waits, clears the bits in the register that holds the
//! mode, and lets it go; the kernel then begins the call anew, and the filter looks at it anew (docs/adr/0012).
//!
//! Invariant: the payload's own thread makes the call, with its own rights and directories. Nothing is opened, looked up or
//! read from memory here, and nothing changes but bits of one register, which are only ever cleared. The supervisor waits
//! for no thread of the box: a hostile one can stay in the kernel as long as it likes.

use std::os::fd::BorrowedFd;

use agentd_sys::notify::{self, Notification};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// S_ISUID and S_ISGID (inode(7)).
const SET_ID: u64 = 0o6000;

/// Threads that are being stopped at a time; calls of further ones are refused.
const MOST: usize = 256;

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

/// The threads of a job whose calls are being mended.
#[derive(Debug, Default)]
pub(super) struct SetId {
    stopping: Vec<Stopping>,
}

impl SetId {
    /// Has a call that waits for its answer made without set-user-ID bits; false when it is no such call, or its thread
    /// cannot be stopped (a debugger holds it): then it is to be refused.
    pub(super) fn mend(&mut self, listener: BorrowedFd<'_>, call: &Notification, name: &str) -> bool {
        let Some(argument) = mode_argument(name) else { return false };
        if call.args.get(argument).is_none_or(|mode| mode & SET_ID == 0) || self.stopping.len() >= MOST {
            return false;
        }
        let Ok(thread) = i32::try_from(call.pid).map(Pid::from_raw) else { return false };
        if ptrace::seize(thread, ptrace::Options::empty()).is_err() {
            return false;
        }
        // A thread that went on before it was seized may have ended, and its number be another's: that one is only let go.
        let mode = notify::is_waiting(listener, call).then_some(Mode { call: call.nr, argument });
        // It fails when the thread is gone, of which `settle` hears.
        ptrace::interrupt(thread).unwrap_or_default();
        self.stopping.push(Stopping { thread, mode });
        true
    }

    /// Lets go of every thread that has stopped; to be called at each SIGCHLD.
    pub(super) fn settle(&mut self) {
        self.stopping.retain(|stopping| !stopping.is_settled(WaitPidFlag::WNOHANG));
    }

    /// The box was killed: its processes are not gone as long as their tracer has not heard of it.
    pub(super) fn bury(&mut self) {
        for stopping in self.stopping.drain(..) {
            while !stopping.is_settled(WaitPidFlag::empty()) {}
        }
    }
}

impl Stopping {
    fn is_settled(self, patience: WaitPidFlag) -> bool {
        match waitpid(self.thread, Some(patience | WaitPidFlag::__WALL)) {
            Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::EINTR) => false,
            // It stopped because it was asked to, or with its whole process.
            Ok(WaitStatus::PtraceEvent(..)) => {
                // A thread that is killed while it stands has no registers to change.
                self.mode.map_or(Ok(()), |mode| mode.clear(self.thread)).unwrap_or_default();
                self.release(None)
            }
            // A signal came first. It gets it, and the call comes again.
            Ok(WaitStatus::Stopped(_, signal)) => self.release(Some(signal)),
            // Gone.
            Ok(_) | Err(_) => true,
        }
    }

    /// One that was killed meanwhile is still to be waited for.
    fn release(self, signal: Option<Signal>) -> bool {
        ptrace::detach(self.thread, signal).is_ok()
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
        assert_eq!(seen, 11);
    }
}
