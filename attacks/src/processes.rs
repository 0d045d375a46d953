//! Attacks on other processes, and by their number.

use std::fs::{File, OpenOptions};
use std::io;

use crate::raw::{self, Word, address, call, room};
use crate::{Attempted, BadWord};

/// Tries attack `name`; `None` when it is not one of these.
pub(crate) fn attempt(name: &str, argument: &str) -> Attempted {
    let result = match name {
        "ptrace" | "read-memory" | "write-memory" | "steal-descriptor" | "read-vm" | "signal" => {
            let who = match argument {
                "child" => None,
                number => Some(number.parse().map_err(|_bad| BadWord::argument("PID or `child`", argument))?),
            };
            on_process(name, who)
        }
        "forks" => forks(argument.parse().map_err(|_bad| BadWord::argument("COUNT", argument))?),
        "outlive" => raw::straggler().map(drop),
        _ => return Ok(None),
    };
    Ok(Some(result))
}

/// Attacks on process `who`, or on a child, where they work.
fn on_process(name: &str, who: Option<i32>) -> io::Result<()> {
    let (pid, is_child) = match who {
        Some(pid) => (pid, false),
        None => (raw::sleeper()?, true),
    };
    let word = Word::from(pid.unsigned_abs());
    let result = match name {
        "ptrace" => call(libc::SYS_ptrace, [libc::PTRACE_SEIZE as Word, word, 0, 0, 0, 0]).map(drop),
        "read-memory" => File::open(format!("/proc/{pid}/mem"))
            .map(drop)
            .and_then(|()| File::open(format!("/proc/{pid}/environ")).map(drop)),
        "write-memory" => OpenOptions::new().write(true).open(format!("/proc/{pid}/mem")).map(drop),
        "steal-descriptor" => call(libc::SYS_pidfd_open, [word, 0, 0, 0, 0, 0])
            .and_then(|pidfd| call(libc::SYS_pidfd_getfd, [pidfd.cast_unsigned(), 1, 0, 0, 0, 0]))
            .map(drop),
        "read-vm" => {
            // One byte of what is mapped at the same place in a copy of this program.
            let mut byte = [0_u8; 1];
            let local = [room(&mut byte), 1];
            call(libc::SYS_process_vm_readv, [word, address(&local), 1, address(&local), 1, 0]).map(drop)
        }
        // SIGWINCH means nothing to who is not waiting for it.
        _ => call(libc::SYS_kill, [word, libc::SIGWINCH as Word, 0, 0, 0, 0]).map(drop),
    };
    if is_child {
        call(libc::SYS_kill, [word, libc::SIGKILL as Word, 0, 0, 0, 0])?;
    }
    result
}

/// Forks until refused; the error is the refusal. Works when `count` processes are there at once.
fn forks(count: u32) -> io::Result<()> {
    let mut children = Vec::new();
    let made = (0..count).try_for_each(|_| raw::sleeper().map(|child| children.push(child)));
    for child in children {
        call(libc::SYS_kill, [Word::from(child.unsigned_abs()), libc::SIGKILL as Word, 0, 0, 0, 0])?;
    }
    let mut reaped = Ok(0);
    while reaped.is_ok() {
        reaped = call(libc::SYS_wait4, [Word::MAX, 0, 0, 0, 0, 0]);
    }
    made
}
