//! What a program says to the proxy inside the box: `CONNECT`, a request with its whole address, or SOCKS5.
//!
//! Invariant: a name is read by the same code as everywhere else, and what has no single meaning is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::name::Name;
use crate::policy::Target;
use crate::request::{self, Head, MAX_HEAD};

/// The proxy inside a box that has one.
pub const PROXY: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 1080);

/// SOCKS5 (RFC 1928, 3) without authentication.
pub(crate) const SOCKS_METHOD: [u8; 2] = [5, 0];

/// The answer when a connection is there, and before what the server says.
pub(crate) const CONNECTED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A connection.
    Connection(Target, u16),
    /// A request of plain HTTP, with the head to pass on.
    Request(Target, u16, Vec<u8>),
    /// Not all of it is there.
    Incomplete,
    /// Nothing that may be.
    Refused(&'static str),
}

/// An answer of SOCKS5 (RFC 1928, 6); the address in it is nobody's.
pub(crate) fn socks_answer(code: u8) -> [u8; 10] {
    [5, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

/// How long a SOCKS greeting is; `None` when its length is not there yet, an error when it is none.
pub(crate) fn socks_greeting(untrusted_bytes: &[u8]) -> Result<Option<usize>, &'static str> {
    let Some([_version, number]) = untrusted_bytes.first_chunk::<2>() else { return Ok(None) };
    let length = 2 + usize::from(*number);
    let Some(methods) = untrusted_bytes.get(2..length) else { return Ok(None) };
    if methods.contains(&0) { Ok(Some(length)) } else { Err("it wants to log in at the proxy, which has no users") }
}

/// Reads a SOCKS request; nothing may stand behind it.
pub(crate) fn socks(untrusted_bytes: &[u8]) -> Asked {
    let Some([version, command, _, kind]) = untrusted_bytes.first_chunk::<4>() else { return Asked::Incomplete };
    if *version != 5 {
        return Asked::Refused("it does not speak SOCKS5");
    }
    if *command != 1 {
        return Asked::Refused("it asks the proxy for something other than a connection");
    }
    let rest = &untrusted_bytes[4..];
    let (host, port) = match kind {
        1 => rest.split_first_chunk::<4>().map(|(octets, port)| (Ok(IpAddr::from(Ipv4Addr::from(*octets))), port)),
        4 => rest.split_first_chunk::<16>().map(|(octets, port)| (Ok(IpAddr::from(Ipv6Addr::from(*octets))), port)),
        3 => rest
            .split_first()
            .and_then(|(length, rest)| rest.split_at_checked(usize::from(*length)))
            .map(|(name, port)| (Err(name), port)),
        _ => return Asked::Refused("its address is of no known kind"),
    }
    .unwrap_or((Err(&[]), &[]));
    let port = match port {
        [high, low] => u16::from_be_bytes([*high, *low]),
        [] | [_] => return Asked::Incomplete,
        _ => return Asked::Refused("it says more than it should before it is connected"),
    };
    let target = match host {
        Ok(address) => Some(Target::Address(address.to_canonical())),
        Err(untrusted_name) => str::from_utf8(untrusted_name).ok().and_then(target),
    };
    target.map_or(Asked::Refused(NO_HOST), |target| Asked::Connection(target, port))
}

const NO_HOST: &str = "it asks the proxy for what is no host";
const MALFORMED: &str = "its request to the proxy is malformed";

/// Reads a request as a proxy gets them.
pub(crate) fn http(untrusted_bytes: &[u8]) -> Asked {
    let end = untrusted_bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let Some(end) = end else {
        return if untrusted_bytes.len() > MAX_HEAD {
            Asked::Refused("the head of its request is too long")
        } else {
            Asked::Incomplete
        };
    };
    let line = untrusted_bytes[..end].split(|byte| *byte == b'\r').next().unwrap_or_default();
    let Some(line) = str::from_utf8(line).ok().filter(|line| !line.contains(|c: char| c.is_ascii_control())) else {
        return Asked::Refused(MALFORMED);
    };
    let words: Vec<&str> = line.splitn(4, ' ').collect();
    match words[..] {
        ["CONNECT", authority, "HTTP/1.1" | "HTTP/1.0"] => {
            if untrusted_bytes.len() > end + 4 {
                return Asked::Refused("it says more than it should before it is connected");
            }
            match split(authority) {
                Some((target, Some(port))) => Asked::Connection(target, port),
                _ => Asked::Refused(NO_HOST),
            }
        }
        [method, url, version] => match url.split_at_checked(7) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http://") => {
                plain(untrusted_bytes, (method, rest, version))
            }
            _ => Asked::Refused("it takes the proxy for a server, or asks it for other than http"),
        },
        _ => Asked::Refused(MALFORMED),
    }
}

/// A request with `http://AUTHORITY/PATH`: passed on with the path alone, as the server would get it without a proxy.
fn plain(untrusted_bytes: &[u8], (method, rest, version): (&str, &str, &str)) -> Asked {
    let (host, head, length) = match request::read(untrusted_bytes) {
        Head::Asks { host, head, length } => (host, head, length),
        Head::Incomplete => return Asked::Incomplete,
        Head::Refused(why) => return Asked::Refused(why),
    };
    // That this is what the address says too, `read` has seen to.
    let Some((target, port)) = split(&host) else { return Asked::Refused(NO_HOST) };
    let path = rest.find(['/', '?', '#']).map_or("", |at| &rest[at..]);
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let lines = head.iter().position(|byte| *byte == b'\n').map_or(&[][..], |at| &head[at + 1..]);
    let first = format!("{method} {path} {version}\r\n");
    let passed = [first.as_bytes(), lines, &untrusted_bytes[length..]].concat();
    Asked::Request(target, port.unwrap_or(80), passed)
}

/// Host and port of an authority.
fn split(authority: &str) -> Option<(Target, Option<u16>)> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let port = match port {
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(port.parse().ok().filter(|port| *port > 0)?)
        }
        Some(_) => return None,
        None => None,
    };
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return inner.parse::<Ipv6Addr>().ok().map(|v6| (Target::Address(IpAddr::from(v6).to_canonical()), port));
    }
    if host.contains(':') { None } else { target(host).map(|target| (target, port)) }
}

fn target(untrusted_host: &str) -> Option<Target> {
    match untrusted_host.parse::<IpAddr>() {
        Ok(address) => Some(Target::Address(address.to_canonical())),
        Err(_) => Name::new(untrusted_host).map(Target::Name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Target {
        Target::Name(Name::new(text).unwrap())
    }

    fn address(text: &str) -> Target {
        Target::Address(text.parse().unwrap())
    }

    #[test]
    fn connect_names_a_host_and_a_port() {
        let ask = |authority: &str| http(format!("CONNECT {authority} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        assert_eq!(ask("A.org.:443"), Asked::Connection(name("a.org"), 443));
        assert_eq!(ask("10.0.0.1:22"), Asked::Connection(address("10.0.0.1"), 22));
        assert_eq!(ask("[::1]:22"), Asked::Connection(address("::1"), 22));
        assert_eq!(ask("[::ffff:10.0.0.1]:22"), Asked::Connection(address("10.0.0.1"), 22));
        for bad in [
            "a.org",
            "a.org:",
            "a.org:0",
            "a.org:+1",
            "a.org:65536",
            "a.org:443:443",
            "::1:22",
            "[::1]",
            "a\0.org:1",
            "a.org@b.org:443",
            "xn--\u{fc}:1",
            "2130706433:80",
            "127.1:80",
            "0x7f.1:80",
            "a.org:443 x",
        ] {
            assert!(matches!(ask(bad), Asked::Refused(_)), "{bad:?}: {:?}", ask(bad));
        }
        assert_eq!(http(b"CONNECT a.org:443 HTTP/1.1\r\n"), Asked::Incomplete);
        assert!(matches!(http(b"CONNECT a.org:443 HTTP/1.1\r\n\r\n\x16"), Asked::Refused(_)));
        assert!(matches!(http(&[b'C'; MAX_HEAD + 1]), Asked::Refused(_)));
    }

    #[test]
    fn a_whole_address_becomes_a_path() {
        let ask =
            |url: &str, host: &str| http(format!("GET {url} HTTP/1.1\r\nHost: {host}\r\nX: y\r\n\r\nz").as_bytes());
        let passed = |path: &str, host: &str| {
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nX: y\r\nConnection: close\r\n\r\nz").into_bytes()
        };
        assert_eq!(ask("http://a.org/x?y", "a.org"), Asked::Request(name("a.org"), 80, passed("/x?y", "a.org")));
        assert_eq!(ask("http://a.org:81", "a.org:81"), Asked::Request(name("a.org"), 81, passed("/", "a.org:81")));
        assert_eq!(ask("http://a.org?y", "a.org"), Asked::Request(name("a.org"), 80, passed("/?y", "a.org")));
        for (url, host) in [("/x", "a.org"), ("http://a.org/", "b.org"), ("https://a.org/", "a.org"), ("*", "a.org")] {
            assert!(matches!(ask(url, host), Asked::Refused(_)), "{url}");
        }
    }

    #[test]
    fn socks_names_a_host_and_a_port() {
        assert_eq!(socks_greeting(&[5, 2, 2, 0]), Ok(Some(4)));
        assert_eq!(socks_greeting(&[5, 2, 2]), Ok(None));
        assert!(socks_greeting(&[5, 1, 2]).is_err());
        let named = |host: &[u8]| [&[5, 1, 0, 3, u8::try_from(host.len()).unwrap()], host, &[1, 187]].concat();
        let whole = named(b"a.org");
        assert_eq!(socks(&whole), Asked::Connection(name("a.org"), 443));
        assert_eq!(socks(&[5, 1, 0, 1, 10, 0, 0, 1, 0, 22]), Asked::Connection(address("10.0.0.1"), 22));
        assert_eq!(socks(&named(b"::ffff:10.0.0.1")), Asked::Connection(address("10.0.0.1"), 443));
        for length in 0..whole.len() {
            assert_eq!(socks(&whole[..length]), Asked::Incomplete, "{length}");
        }
        for bad in
            [named(b"a\0.org"), named(b""), vec![5, 3, 0, 1, 1, 1, 1, 1, 0, 1], vec![4, 1, 0, 1, 1, 1, 1, 1, 0, 1]]
        {
            assert!(matches!(socks(&bad), Asked::Refused(_)), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            socks(&bytes);
            http(&bytes);
            let _read = socks_greeting(&bytes);
            http(&[&b"CONNECT "[..], &bytes, b" HTTP/1.1\r\n\r\n"].concat());
            if let Asked::Request(_, _, passed) = http(&[&b"GET http://"[..], &bytes, b"\r\n\r\n"].concat()) {
                let is_one = matches!(request::read(&passed), Head::Asks { .. });
                prop_assert!(is_one);
            }
        }
    }
}
