//! Host names in a static binary: glibc's name service without its loadable modules.
//!
//! A static glibc opens what /etc/nsswitch.conf names (`resolve`, `mymachines`, `ldap`, …) with dlopen, and with it the
//! host's own C library, which works only where that is of the very version linked in here and may crash elsewhere.
//! `files` and `dns` are built in since glibc 2.34. Invariant: after [`use_builtin`] a host name is looked up in
//! /etc/hosts and by DNS as /etc/resolv.conf says, and nothing is loaded.

use std::io;

/// Keeps host names to `files` and `dns`. To be called before the process looks up any.
#[cfg(target_env = "gnu")]
pub fn use_builtin() -> io::Result<()> {
    unsafe extern "C" {
        /// <nss.h>, since glibc 2.0; -1 with errno EINVAL for what cannot be parsed.
        fn __nss_configure_lookup(database: *const libc::c_char, services: *const libc::c_char) -> libc::c_int;
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        // SAFETY: both are NUL-terminated and only read during the call. It must not run beside itself, which `Once`
        // sees to; beside a look-up it replaces one pointer, and both old and new actions stay allocated for ever.
        let ret = unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
        if ret != 0 {
            result = Err(io::Error::last_os_error());
        }
    });
    result
}

/// musl has nothing else.
#[cfg(not(target_env = "gnu"))]
pub fn use_builtin() -> io::Result<()> {
    Ok(())
}

/// Makes every name an absolute one for this process: none is asked for below a domain of /etc/resolv.conf's search list,
/// where somebody else may own it, and hears of it.
///
/// Must be called while the process has one thread, and before it looks up any name.
pub fn use_absolute() -> io::Result<()> {
    // resolv.conf(5): the variable stands in for the list, and the root alone is no list.
    // SAFETY: both are NUL-terminated and copied. setenv(3) must not run beside a reader of the environment; the caller
    // sees to it that there is no other thread.
    let ret = unsafe { libc::setenv(c"LOCALDOMAIN".as_ptr(), c".".as_ptr(), 1) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::ToSocketAddrs;

    #[test]
    fn names_are_still_found() {
        super::use_builtin().unwrap();
        super::use_builtin().unwrap();
        assert!(("localhost", 80).to_socket_addrs().unwrap().all(|address| address.ip().is_loopback()));
    }
}
