//! Bringing `lo` up inside a fresh network namespace, where it starts down.

use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// `IFF_UP` as the `short` that `ifreq` holds it in.
const UP: libc::c_short = 1;
/// Numbers whose type depends on the C library.
const GET_FLAGS: libc::Ioctl = libc::SIOCGIFFLAGS as libc::Ioctl;
const SET_FLAGS: libc::Ioctl = libc::SIOCSIFFLAGS as libc::Ioctl;

/// Sets `IFF_UP` on `lo` of the calling thread's network namespace; 127.0.0.1 and ::1 come with it.
///
/// # Errors
/// The errno of `socket(2)` or of the `SIOCGIFFLAGS`/`SIOCSIFFLAGS` ioctl (netdevice(7)); needs CAP_NET_ADMIN there.
pub fn bring_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from.cast_signed();
    }
    // SAFETY: SIOCGIFFLAGS reads the name and fills ifru_flags of an ifreq, which `request` is.
    super::check(unsafe { libc::ioctl(socket.as_raw_fd(), GET_FLAGS, &raw mut request) }.into())?;
    // SAFETY: the call above made ifru_flags the union's valid member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | UP;
    // SAFETY: SIOCSIFFLAGS reads the name and ifru_flags of an ifreq, both set above.
    super::check(unsafe { libc::ioctl(socket.as_raw_fd(), SET_FLAGS, &raw const request) }.into())?;
    Ok(())
}
