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

/// The largest page of any supported machine: what is rounded off stays.
const PAGE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    #[test]
    fn code_that_was_forgotten_still_runs() {
        super::forget_code().unwrap();
        assert_eq!(format!("{}", 6 * 7), "42");
    }
}
