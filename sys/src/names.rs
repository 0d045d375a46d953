//! Host names in a static binary: without the loadable modules of glibc's name service, where it is glibc's, and without the
//! search list, where a name must be the one that was said.
//!
//! A static glibc opens what /etc/nsswitch.conf names (`resolve`, `mymachines`, `ldap`, …) with dlopen, and with it the
//! host's own C library, which works only where that is of the very version linked in here and may crash elsewhere.
//! `files` and `dns` are built in since glibc 2.34. Invariant: after [`use_builtin`] a host name is looked up in
//! /etc/hosts and by DNS as /etc/resolv.conf says, and nothing is loaded.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, ToSocketAddrs};

const HOSTS: &str = "/etc/hosts";
/// Bytes of it that are read; there are lists of unwanted hosts of some 5 MiB.
const MOST_HOSTS: u64 = 16 << 20;

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

/// The addresses of `host` as an absolute name: none is asked for below a domain of /etc/resolv.conf's search list, where
/// somebody else may own it, and hears of it.
///
/// # Errors
/// Those of getaddrinfo(3), and of reading /etc/hosts.
pub fn absolute(host: &str) -> io::Result<Vec<IpAddr>> {
    // The dot that makes a name absolute for DNS makes it unknown to /etc/hosts, so that is looked at here.
    let mut hosts = Vec::new();
    match File::open(HOSTS) {
        Ok(file) => drop(file.take(MOST_HOSTS).read_to_end(&mut hosts)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listed = in_hosts(&String::from_utf8_lossy(&hosts), host);
    if !listed.is_empty() {
        return Ok(listed);
    }
    Ok((format!("{host}."), 0).to_socket_addrs()?.map(|address| address.ip()).collect())
}

/// What `hosts`, a text as hosts(5) has it, says of `name`.
fn in_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in hosts.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse) else { continue };
        if words.any(|alias| alias.eq_ignore_ascii_case(name)) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_what_the_file_says() {
        let hosts = "127.0.0.1 localhost\n# 10.0.0.1 no.test\n10.0.0.2\tone.test One # two.test\n\nfd00::1 one.test\nx y\n\
                     fe80::1%eth0 one.test\n10.0.0.3";
        let found = |name| in_hosts(hosts, name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found("ONE.test"), ["10.0.0.2", "fd00::1"]);
        assert_eq!(found("one"), ["10.0.0.2"]);
        for unknown in ["no.test", "two.test", "y", "test", "10.0.0.2", ""] {
            assert!(found(unknown).is_empty(), "{unknown}");
        }
    }

    #[test]
    fn names_are_still_found() {
        super::use_builtin().unwrap();
        super::use_builtin().unwrap();
        assert!(("localhost", 80).to_socket_addrs().unwrap().all(|address| address.ip().is_loopback()));
        assert!(absolute("localhost").unwrap().iter().all(IpAddr::is_loopback));
    }
}
