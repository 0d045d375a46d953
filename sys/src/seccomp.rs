//! Loading a compiled seccomp program.

use std::io;

/// Puts the calling thread, and every process it starts, under `program`. `no_new_privs` must be set already.
///
/// # Errors
/// `EINVAL` for a program the kernel's verifier refuses or one that is too long, `EACCES` without `no_new_privs`.
pub fn load(program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_too_long| io::Error::from_raw_os_error(libc::EINVAL))?;
    let fprog = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: SECCOMP_SET_MODE_FILTER reads `len` instructions from `filter`, which `program` holds; it writes none.
    super::check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, libc::c_ulong::from(0u8), &raw const fprog)
    })?;
    Ok(())
}
