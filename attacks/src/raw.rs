//! System calls as an attacker makes them: numbers and words, no wrapper that would refuse what the kernel might take.
//!
//! Invariant: the only unsafe code of this crate, and for nobody outside it. A pointer among the words is to a buffer that
//! outlives the call, and to one that was borrowed mutably ([`room`]) where the kernel writes.

#![expect(unsafe_code, reason = "an attack is a call that no safe wrapper offers")]

use std::io;
use std::os::fd::AsRawFd;

/// A word of a system call.
pub(crate) type Word = u64;

/// The address of what a call reads.
pub(crate) fn address<T: ?Sized>(of: &T) -> Word {
    std::ptr::from_ref(of).expose_provenance() as Word
}

/// The address of what a call may write.
pub(crate) fn room<T>(of: &mut T) -> Word {
    std::ptr::from_mut(of).expose_provenance() as Word
}

/// A descriptor, as a word of a call.
pub(crate) fn descriptor(of: &impl AsRawFd) -> Word {
    Word::from(of.as_raw_fd().unsigned_abs())
}

/// Where paths without a directory begin.
pub(crate) const CWD: Word = (libc::AT_FDCWD as i64).cast_unsigned();

/// Makes call `number`. A process that it makes ends at once.
pub(crate) fn call(number: libc::c_long, words: [Word; 6]) -> io::Result<i64> {
    let [a, b, c, d, e, f] = words;
    // SAFETY: syscall(2) has no precondition but that the kernel may write where the words point to: callers pass
    // integers and addresses of live buffers, and map, unmap or protect nothing of this program.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    let makes_process = [libc::SYS_clone, libc::SYS_clone3].contains(&number);
    if result == 0 && makes_process {
        end();
    }
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks a child that sleeps until it is killed.
pub(crate) fn sleeper() -> io::Result<i32> {
    // SAFETY: fork(2) in a program of one thread; the child calls nothing but pause(2).
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => loop {
            // SAFETY: pause(2) has no precondition.
            unsafe { libc::pause() };
        },
        child => Ok(child),
    }
}

/// Forks a child that lives for as long as the other end of standard input, a socket, is open.
pub(crate) fn straggler() -> io::Result<i32> {
    // SAFETY: fork(2) in a program of one thread; the child calls nothing but poll(2) and _exit(2).
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let mut stdin = libc::pollfd { fd: 0, events: 0, revents: 0 };
            // SAFETY: poll(2) writes the one pollfd here; without events it waits for the hang-up.
            unsafe { libc::poll(&raw mut stdin, 1, -1) };
            end()
        }
        child => Ok(child),
    }
}

fn end() -> ! {
    // SAFETY: _exit(2) has no precondition and runs nothing of this program.
    unsafe { libc::_exit(0) }
}

/// The i386 entry. Words are cut to 32 bits, as the kernel does; addresses must be those of statics of a program that is
/// linked low.
#[cfg(target_arch = "x86_64")]
pub(crate) fn int80(number: u32, words: [u32; 3]) -> io::Result<i32> {
    let result: i64;
    // SAFETY: the i386 entry clobbers r8 to r11 and keeps the rest; rbx, which the compiler reserves, is put back.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "mov ebx, {first:e}",
            "int 0x80",
            "pop rbx",
            first = in(reg) words[0],
            inlateout("rax") i64::from(number) => result,
            in("rcx") u64::from(words[1]),
            in("rdx") u64::from(words[2]),
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
        );
    }
    let result = i32::try_from(result << 32 >> 32).unwrap_or(i32::MIN);
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}
