//! Asking the kernel for its Landlock ABI; rulesets themselves are made with the `landlock` crate.

use std::io;

/// `LANDLOCK_CREATE_RULESET_VERSION` of linux/landlock.h.
const CREATE_RULESET_VERSION: libc::c_long = 1;

/// The Landlock ABI of the running kernel (1 is Linux 5.13, 7 is Linux 6.15).
///
/// # Errors
/// `ENOSYS` where the kernel has no Landlock, `EOPNOTSUPP` where it was left out of the `lsm=` boot parameter.
pub fn abi() -> io::Result<u32> {
    // SAFETY: with a null attribute of size 0 and the version flag, landlock_create_ruleset(2) touches no memory.
    let version = super::check(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    })?;
    u32::try_from(version).map_err(|_negative| io::ErrorKind::InvalidData.into())
}
