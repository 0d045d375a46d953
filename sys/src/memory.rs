//! Giving memory back.
//!
//! Invariant: what is given back is read again from the program's file when it is needed: nothing that was written is lost.

use std::io;
use std::time::Duration;

// The linker defines both for every static program; they have an address and no value.
unsafe extern "C" {
    static __executable_start: u8;
    static etext: u8;
}

/// How long a process waits before it calls [`forget_code`]: most of what ends sooner never waited for anything, and what it
/// needs for its end would be read twice.
pub const BEFORE_FORGETTING: Duration = Duration::from_millis(100);

/// Takes this program's code and constants out of this process's memory. A process that is about to wait needs few of the
/// pages that its beginning touched.
///
/// # Errors
/// The errno of `madvise(2)`.
pub fn forget_code() -> io::Result<()> {
    let (start, end) = (&raw const __executable_start, &raw const etext);
    let length = (end.addr() - start.addr()) & !(PAGE - 1);
    // SAFETY: the range is this program's read-only, private mapping of its own file: MADV_DONTNEED drops clean pages, which
    // the next access reads from the file again.
    super::check(unsafe { libc::madvise(start.cast_mut().cast(), length, libc::MADV_DONTNEED) }.into())?;
    Ok(())
}

// As environ(7) has it.
unsafe extern "C" {
    static mut environ: *mut *mut libc::c_char;
}

/// Overwrites this process's environment, and leaves it an empty one. For a clone that is near to a box: what was set where
/// agentd was started, keys among it, is not its business.
///
/// Must be called while this process has one thread; references to the environment do not outlive the calls that gave them.
pub fn forget_environment() {
    // SAFETY: with one thread nobody changes the pointer.
    let list = unsafe { environ };
    if list.is_null() {
        return;
    }
    let mut next = list;
    loop {
        // SAFETY: the list ends with a null pointer, before which the loop has not gone on.
        let variable = unsafe { *next };
        if variable.is_null() {
            break;
        }
        // SAFETY: every entry is a C string.
        let length = unsafe { libc::strlen(variable) };
        for at in 0..length {
            // SAFETY: at is before the string's end.
            let byte = unsafe { variable.add(at) };
            // SAFETY: the strings are this process's own and writable (the kernel put them on the stack, or setenv(3) on the
            // heap); volatile, because nobody reads them again.
            unsafe { byte.write_volatile(0) };
        }
        // SAFETY: the entry was not the last.
        next = unsafe { next.add(1) };
    }
    // SAFETY: the first entry is there, if only as the end.
    unsafe { *list = std::ptr::null_mut() };
}

/// The largest page of any supported machine: what is rounded off stays.
const PAGE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    /// In a child: the tests of this program run in threads and look at their environment.
    #[test]
    fn an_environment_that_was_forgotten_is_nowhere() {
        const RUN: &str = "AGENTD_FORGET_IN_THIS_PROCESS";
        if std::env::var_os(RUN).is_some() {
            let in_proc = || std::fs::read("/proc/self/environ").unwrap();
            assert!(in_proc().iter().any(|byte| *byte != 0));
            super::forget_environment();
            assert_eq!(std::env::vars_os().count(), 0);
            assert!(in_proc().iter().all(|byte| *byte == 0));
            return;
        }
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["an_environment_that", "--test-threads=1"]).env(RUN, "1");
        assert!(child.output().unwrap().status.success());
    }

    #[test]
    fn code_that_was_forgotten_still_runs() {
        super::forget_code().unwrap();
        assert_eq!(format!("{}", 6 * 7), "42");
    }
}
