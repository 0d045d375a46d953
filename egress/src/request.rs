//! The first thing that a plain HTTP client says: which host it asks for.
//!
//! A connection carries one request: the head is passed on with `Connection: close`, after which a server answers nothing
//! more (RFC 9112, 9.6), so a second request with another host behind the first reaches nobody.
//!
//! Invariant: a head that two programs could read differently is refused, not mended: bare line ends, folded lines, two
//! hosts, odd characters.

/// Bytes of a head.
pub(crate) const MAX_HEAD: usize = 32 * 1024;

/// What the bytes are so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Head {
    /// A request for `host`.
    Asks {
        /// The host, with its port if it has one.
        host: String,
        /// The head to pass on.
        head: Vec<u8>,
        /// Bytes of what was read that it stands for.
        length: usize,
    },
    /// Not all of it is there.
    Incomplete,
    /// No request that may pass.
    Refused(&'static str),
}

/// Headers that are about this connection, which is to end after its request.
const OF_THE_CONNECTION: [&str; 4] = ["connection", "keep-alive", "proxy-connection", "upgrade"];

/// How requests begin.
const METHODS: [&[u8]; 9] =
    [b"GET ", b"POST ", b"PUT ", b"HEAD ", b"PATCH ", b"DELETE ", b"OPTIONS ", b"CONNECT ", b"TRACE "];

/// Whether bytes begin like a request.
pub(crate) fn looks_like(untrusted_bytes: &[u8]) -> bool {
    METHODS.iter().any(|method| untrusted_bytes.starts_with(method))
}

/// Whether bytes are too few to say whether they begin like one.
pub(crate) fn may_become_one(untrusted_bytes: &[u8]) -> bool {
    METHODS.iter().any(|method| method.starts_with(untrusted_bytes))
}

/// Reads the head at the beginning of `untrusted_bytes`.
pub(crate) fn read(untrusted_bytes: &[u8]) -> Head {
    let end = untrusted_bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let within = &untrusted_bytes[..end.map_or(untrusted_bytes.len(), |end| end + 4)];
    if within.len() > MAX_HEAD {
        return Head::Refused("the head of its request is too long");
    }
    let first = within.split(|byte| *byte == b' ').next().unwrap_or_default();
    if first.is_empty() && !within.is_empty() || first.len() > 32 || !first.iter().all(u8::is_ascii_uppercase) {
        return Head::Refused("it does not speak HTTP/1.1");
    }
    let Some(end) = end else { return Head::Incomplete };
    match parse(&untrusted_bytes[..end]) {
        Ok((host, head)) => Head::Asks { host, head, length: end + 4 },
        Err(why) => Head::Refused(why),
    }
}

const MALFORMED: &str = "the head of its request is malformed";

fn parse(head: &[u8]) -> Result<(String, Vec<u8>), &'static str> {
    let text = std::str::from_utf8(head).map_err(|_other_bytes| MALFORMED)?;
    // What is left of line ends once these are taken out is bare.
    if text.replace("\r\n", "").contains(|c: char| c.is_ascii_control() && c != '\t') {
        return Err(MALFORMED);
    }
    let mut lines = text.split("\r\n");
    let request = lines.next().unwrap_or_default();
    let mut words = request.split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(MALFORMED);
    };
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Err("it does not speak HTTP/1.1");
    }
    if method == "CONNECT" {
        return Err("it takes this host for a proxy (CONNECT)");
    }
    let mut host = None;
    let mut passed = format!("{request}\r\n");
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(MALFORMED)?;
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(MALFORMED);
        }
        if name.eq_ignore_ascii_case("host") && host.replace(value.trim()).is_some() {
            return Err("its request names two hosts");
        }
        if !OF_THE_CONNECTION.iter().any(|own| name.eq_ignore_ascii_case(own)) {
            passed.push_str(line);
            passed.push_str("\r\n");
        }
    }
    let host = host.ok_or("its request names no host")?;
    // A server believes the target before the header (RFC 9112, 3.2.2).
    if let Some((scheme, rest)) = target.split_once("://") {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("http") || authority != host {
            return Err("its request names two hosts");
        }
    } else if !target.starts_with('/') && target != "*" {
        return Err(MALFORMED);
    }
    passed.push_str("Connection: close\r\n\r\n");
    Ok((host.to_owned(), passed.into_bytes()))
}

/// Whether `untrusted_host` (of a request that came for `port`) is `name`.
pub(crate) fn is_for(untrusted_host: &str, name: &crate::Name, port: u16) -> bool {
    let (host, written) = match untrusted_host.rsplit_once(':') {
        Some((host, written)) => (host, Some(written)),
        None => (untrusted_host, None),
    };
    crate::Name::new(host).as_ref() == Some(name) && written.is_none_or(|written| written == port.to_string())
}

/// The answer to a request that is refused: final, and for a reader who might try again.
pub(crate) fn forbidden(why: &str, allow: Option<&str>) -> Vec<u8> {
    let hint =
        allow.map(|allow| format!("; whoever started this job can allow it: agentd run {allow}")).unwrap_or_default();
    answer("403 Forbidden", &format!("blocked by policy, do not retry: {why}{hint}\n"))
}

/// The answer to a request that was allowed and could not be passed on.
pub(crate) fn bad_gateway(why: &str) -> Vec<u8> {
    answer("502 Bad Gateway", &format!("cannot be reached: {why}\n"))
}

fn answer(status: &str, text: &str) -> Vec<u8> {
    let length = text.len();
    let head = "Content-Type: text/plain; charset=utf-8\r\nConnection: close";
    format!("HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {length}\r\n\r\n{text}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> &'static str {
        match read(text.as_bytes()) {
            Head::Refused(why) => why,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn one_request_passes_and_closes() {
        let text = "POST /x?a=b HTTP/1.1\r\nhOST: a.org:80\r\nConnection: keep-alive, Upgrade\r\nUpgrade: h2c\r\nX: é\r\nContent-Length: 3\r\n\r\nabc";
        let Head::Asks { host, head, length } = read(text.as_bytes()) else { panic!() };
        let expected =
            "POST /x?a=b HTTP/1.1\r\nhOST: a.org:80\r\nX: é\r\nContent-Length: 3\r\nConnection: close\r\n\r\n";
        assert_eq!((host.as_str(), String::from_utf8(head).unwrap().as_str()), ("a.org:80", expected));
        assert_eq!(&text[length..], "abc");
        assert!(matches!(read(b"GET http://a.org/ HTTP/1.1\r\nHost: a.org\r\n\r\n"), Head::Asks { .. }));
        for length in 0..text.find("abc").unwrap() - 1 {
            assert_eq!(read(&text.as_bytes()[..length]), Head::Incomplete, "{length}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let get = |lines: &str| refused(&format!("GET / HTTP/1.1\r\n{lines}\r\n\r\n"));
        assert!(get("Host: a.org\r\nHost: b.org").contains("two hosts"));
        assert!(refused("GET http://b.org/ HTTP/1.1\r\nHost: a.org\r\n\r\n").contains("two hosts"));
        assert!(refused("GET https://a.org/ HTTP/1.1\r\nHost: a.org\r\n\r\n").contains("two hosts"));
        assert!(get("X: y").contains("no host"));
        assert!(refused("CONNECT b.org:443 HTTP/1.1\r\nHost: a.org\r\n\r\n").contains("CONNECT"));
        for lines in [
            "Host: a.org\r\n X: y",
            "Host : a.org",
            "Host: a.org\nX: y",
            "Host: a.org\rX: y",
            "Host: a\0.org",
            ": x",
            "x",
        ] {
            assert_eq!(get(lines), MALFORMED, "{lines:?}");
        }
        for start in [
            "EHLO evil.org\r\n",
            "PRI * HTTP/2.0\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\n\r\n",
            "\x16\x03\x01",
            "get / HTTP/1.1\r\n\r\n",
            "GET / HTTP/3\r\n\r\n",
        ] {
            assert!(matches!(read(start.as_bytes()), Head::Refused(_) | Head::Incomplete), "{start:?}");
        }
        for start in ["\r\nGET", "\x16\x03\x01", "get / ", "EHLO\r\n"] {
            assert!(refused(start).contains("HTTP"), "{start:?}");
        }
        let huge = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(MAX_HEAD));
        assert!(refused(&huge).contains("too long"));
        assert!(refused(&(huge + "\r\n\r\n")).contains("too long"));
    }

    #[test]
    fn a_host_is_the_name_or_is_not() {
        let name = crate::Name::new("a.org").unwrap();
        for host in ["a.org", "A.ORG", "a.org.", "a.org:80"] {
            assert!(is_for(host, &name, 80), "{host}");
        }
        for host in
            ["", "b.org", "a.org:81", "a.org:", "a.org@b.org", "b.org,a.org", "a.org\0", "1.1.1.1", "a.org:80:80"]
        {
            assert!(!is_for(host, &name, 80), "{host}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            read(&bytes);
            let request = [b"GET / HTTP/1.1\r\nHost: a.org\r\n", &bytes[..], b"\r\n\r\n"].concat();
            if let Head::Asks { head, .. } = read(&request) {
                prop_assert!(head.ends_with(b"Connection: close\r\n\r\n"));
                let again = matches!(read(&head), Head::Asks { length, .. } if length == head.len());
                prop_assert!(again);
            }
        }
    }
}
