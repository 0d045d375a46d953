//! Attacks over sockets: making kinds that should not exist here, and reaching those who should not be reached.

use std::io;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::raw::{self, Word};

/// Tries attack `name`; `None` when it is not one of these.
pub(crate) fn attempt(name: &str, argument: &str) -> Result<Option<io::Result<()>>> {
    let result = match name {
        "socket" => {
            let [family, kind, protocol] = numbers(argument)?;
            raw::call(libc::SYS_socket, [family, kind, protocol, 0, 0, 0]).map(drop)
        }
        "socketpair" => {
            let [family, kind, protocol] = numbers(argument)?;
            let made = [0_i32; 2];
            raw::call(libc::SYS_socketpair, [family, kind, protocol, raw::address(&made), 0, 0]).map(drop)
        }
        // LEVEL,OPTION,0 on a UDP socket; the value is one word.
        "socket-option" => {
            let [level, option, _] = numbers(argument)?;
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let socket_word = Word::from(socket.as_raw_fd().unsigned_abs());
            let words = [socket_word, level, option, raw::address(&[0_u32]), 4, 0];
            raw::call(libc::SYS_setsockopt, words).map(drop)
        }
        // x32: the 64-bit entry with bit 30 of the number set.
        "socket-x32" => {
            let [family, kind, protocol] = numbers(argument)?;
            raw::call(libc::SYS_socket | 0x4000_0000, [family, kind, protocol, 0, 0, 0]).map(drop)
        }
        #[cfg(target_arch = "x86_64")]
        "socket-i386" | "socketcall-i386" => i386(name == "socketcall-i386", numbers(argument)?)?,
        "abstract" => {
            SocketAddr::from_abstract_name(argument).and_then(|name| UnixStream::connect_addr(&name)).map(drop)
        }
        "abstract-datagram" => SocketAddr::from_abstract_name(argument)
            .and_then(|name| UnixDatagram::unbound()?.send_to_addr(b"x", &name).map(drop)),
        "unix" => UnixStream::connect(argument).map(drop),
        "tcp" => TcpStream::connect_timeout(&argument.parse()?, Duration::from_secs(2)).map(drop),
        "udp" => {
            let any = if argument.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            UdpSocket::bind(any).and_then(|socket| socket.send_to(b"x", argument)).map(drop)
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn numbers(argument: &str) -> Result<[Word; 3]> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => Word::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let numbers: Vec<Word> = argument.split(',').map(number).collect::<Result<_, _>>()?;
    <[Word; 3]>::try_from(numbers).ok().context("FAMILY,TYPE,PROTOCOL")
}

#[cfg(target_arch = "x86_64")]
fn i386(multiplexed: bool, words: [Word; 3]) -> Result<io::Result<()>> {
    use std::sync::atomic::{AtomicU32, Ordering};

    // Numbers of i386.
    const SOCKET: u32 = 359;
    const SOCKETCALL: u32 = 102;
    /// Below 4 GiB, as a static of a program that is linked low.
    static WORDS: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];

    let mut narrow = [0; 3];
    for ((narrow, wide), shared) in narrow.iter_mut().zip(words).zip(&WORDS) {
        *narrow = u32::try_from(wide)?;
        shared.store(*narrow, Ordering::SeqCst);
    }
    let result = if multiplexed {
        raw::int80(SOCKETCALL, [1, u32::try_from(raw::address(&WORDS))?, 0])
    } else {
        raw::int80(SOCKET, narrow)
    };
    Ok(result.map(drop))
}
