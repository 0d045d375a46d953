//! Attacks over sockets: making kinds that should not exist here, and reaching those who should not be reached.

use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixStream};
use std::time::Duration;

use crate::raw::{self, Word};
use crate::{Attempted, BadWord};

/// Tries attack `name`; `None` when it is not one of these.
pub(crate) fn attempt(name: &str, argument: &str) -> Attempted {
    let result = match name {
        "socket" => {
            let [family, kind, protocol] = numbers(argument)?;
            raw::call(libc::SYS_socket, [family, kind, protocol, 0, 0, 0]).map(drop)
        }
        "socketpair" => {
            let [family, kind, protocol] = numbers(argument)?;
            let mut made = [0_i32; 2];
            raw::call(libc::SYS_socketpair, [family, kind, protocol, raw::room(&mut made), 0, 0]).map(drop)
        }
        // LEVEL,OPTION,0 on a UDP socket; the value is one word.
        "socket-option" => {
            let [level, option, _] = numbers(argument)?;
            UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
                let words = [raw::descriptor(&socket), level, option, raw::address(&[0_u32]), 4, 0];
                raw::call(libc::SYS_setsockopt, words).map(drop)
            })
        }
        // x32: the 64-bit entry with bit 30 of the number set.
        "socket-x32" => {
            let [family, kind, protocol] = numbers(argument)?;
            raw::call(libc::SYS_socket | 0x4000_0000, [family, kind, protocol, 0, 0, 0]).map(drop)
        }
        #[cfg(target_arch = "x86_64")]
        "socket-i386" | "socketcall-i386" => i386(name == "socketcall-i386", numbers(argument)?),
        "abstract" => UnixAddr::from_abstract_name(argument).and_then(|name| UnixStream::connect_addr(&name)).map(drop),
        "abstract-datagram" => UnixAddr::from_abstract_name(argument)
            .and_then(|name| UnixDatagram::unbound()?.send_to_addr(b"x", &name).map(drop)),
        "unix" => UnixStream::connect(argument).map(drop),
        "tcp" => TcpStream::connect_timeout(&endpoint(argument)?, Duration::from_secs(2)).map(drop),
        // Asks the routing table and sends nothing.
        "route" => {
            let endpoint = endpoint(argument)?;
            let any = if endpoint.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            UdpSocket::bind(any).and_then(|socket| socket.connect(endpoint))
        }
        "udp" => {
            let any = if argument.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            UdpSocket::bind(any).and_then(|socket| socket.send_to(b"x", argument)).map(drop)
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn numbers(argument: &str) -> Result<[Word; 3], BadWord> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => Word::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let numbers: Option<Vec<Word>> = argument.split(',').map(|text| number(text).ok()).collect();
    let three = numbers.and_then(|numbers| <[Word; 3]>::try_from(numbers).ok());
    three.ok_or_else(|| BadWord::argument("FAMILY,TYPE,PROTOCOL", argument))
}

fn endpoint(argument: &str) -> Result<SocketAddr, BadWord> {
    argument.parse().map_err(|_bad| BadWord::argument("ADDRESS:PORT", argument))
}

/// 32 bits of each word are left, as the kernel would look at them.
#[cfg(target_arch = "x86_64")]
fn i386(multiplexed: bool, words: [Word; 3]) -> io::Result<()> {
    use std::sync::atomic::{AtomicU32, Ordering};

    // Numbers of i386.
    const SOCKET: u32 = 359;
    const SOCKETCALL: u32 = 102;
    /// Below 4 GiB, as a static of a program that is linked low.
    static WORDS: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];

    let low = |word: Word| u32::try_from(word & Word::from(u32::MAX)).unwrap_or_default();
    let narrow = words.map(low);
    for (narrow, shared) in narrow.iter().zip(&WORDS) {
        shared.store(*narrow, Ordering::SeqCst);
    }
    if multiplexed {
        // SYS_SOCKET of net.h
        raw::int80(SOCKETCALL, [1, low(raw::address(&WORDS)), 0])
    } else {
        raw::int80(SOCKET, narrow)
    }
    .map(drop)
}
