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

/// Headers that say how long a body is: with two of them, servers behind each other disagree on where the next request
/// begins (RFC 9112, 6.1).
const OF_THE_LENGTH: [&str; 2] = ["content-length", "transfer-encoding"];

/// Methods whose target need not look like one (`CONNECT host:port`).
const METHODS: [&[u8]; 9] = [b"GET", b"POST", b"PUT", b"HEAD", b"PATCH", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE"];

/// How targets begin, whatever the method is: a server answers a `PROPFIND` of its own host, and the preface of HTTP/2
/// (RFC 9113, 3.4), as well as a `GET`.
const TARGETS: [&[u8]; 4] = [b"/", b"* HTTP/", b"http://", b"https://"];

/// What a client's first bytes may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// Of a request, as a lenient server reads it.
    Request,
    /// Too few to say.
    Unclear,
    /// Of something else.
    Other,
}

/// Whether bytes begin like a request.
pub(crate) fn beginning(untrusted_bytes: &[u8]) -> Beginning {
    // Servers pass over empty lines before a request (RFC 9112, 2.2), and some over more than one space in it.
    let skip = |bytes: &[u8], blank: &[u8]| bytes.iter().take_while(|byte| blank.contains(byte)).count();
    let line = &untrusted_bytes[skip(untrusted_bytes, b"\r\n")..];
    let (method, rest) = line.split_at(line.iter().take_while(|byte| is_token(**byte)).count());
    let target = &rest[skip(rest, b" \t")..];
    // Of git's own protocol a line begins with its length, and has a path behind a word too.
    if method.first().is_some_and(|byte| !byte.is_ascii_alphabetic()) {
        return Beginning::Other;
    }
    let is_prefix = |of: &[u8]| of.len() > target.len() && of[..target.len()].eq_ignore_ascii_case(target);
    let begins = |with: &[u8]| target.get(..with.len()).is_some_and(|bytes| bytes.eq_ignore_ascii_case(with));
    let is_known = METHODS.iter().any(|known| known.eq_ignore_ascii_case(method));
    match (method, rest) {
        (_, []) => Beginning::Unclear,
        ([], _) | (_, [0..=8 | 10..=31 | 33.., ..]) => Beginning::Other,
        _ if is_known || TARGETS.into_iter().any(begins) => Beginning::Request,
        _ if TARGETS.into_iter().any(is_prefix) => Beginning::Unclear,
        _ => Beginning::Other,
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
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
    let (mut host, mut lengths) = (None, 0);
    let mut passed = format!("{request}\r\n");
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(MALFORMED)?;
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(MALFORMED);
        }
        if name.eq_ignore_ascii_case("host") && host.replace(value.trim_matches([' ', '\t'])).is_some() {
            return Err("its request names two hosts");
        }
        lengths += usize::from(OF_THE_LENGTH.iter().any(|length| name.eq_ignore_ascii_case(length)));
        if lengths > 1 {
            return Err("its request says twice how long it is");
        }
        if !OF_THE_CONNECTION.iter().any(|own| name.eq_ignore_ascii_case(own)) {
            passed.push_str(line);
            passed.push_str("\r\n");
        }
    }
    let host = host.ok_or("its request names no host")?;
    // A server believes the target before the header (RFC 9112, 3.2.2); what begins with `/` names no host.
    if !target.starts_with('/') && target != "*" {
        let (scheme, rest) = target.split_once("://").ok_or(MALFORMED)?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("http") || authority != host {
            return Err("its request names two hosts");
        }
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
    answer("403 Forbidden", &forbidden_text(why, allow))
}

/// What it says.
pub(crate) fn forbidden_text(why: &str, allow: Option<&str>) -> String {
    let hint =
        allow.map(|allow| format!("; whoever started this job can allow it: agentd run {allow}")).unwrap_or_default();
    format!("blocked by policy, do not retry: {why}{hint}\n")
}

/// The answer to a request that was allowed and could not be passed on.
pub(crate) fn bad_gateway(why: &str) -> Vec<u8> {
    answer("502 Bad Gateway", &bad_gateway_text(why))
}

/// What it says.
pub(crate) fn bad_gateway_text(why: &str) -> String {
    format!("cannot be reached: {why}\n")
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
        for lines in ["Content-Length: 3\r\nTransfer-Encoding: chunked", "content-length: 3\r\nContent-Length: 3"] {
            assert!(get(&format!("Host: a.org\r\n{lines}")).contains("how long"));
        }
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
    fn a_path_that_holds_an_address_is_a_path() {
        for target in ["/?next=http://b.org/", "/web/2020/https://b.org/x", "//b.org/"] {
            let text = format!("GET {target} HTTP/1.1\r\nHost: a.org\r\n\r\n");
            assert!(matches!(read(text.as_bytes()), Head::Asks { host, .. } if host == "a.org"), "{target}");
        }
        assert!(
            matches!(read(b"GET / HTTP/1.1\r\nHost: \xc2\xa0a.org\r\n\r\n"), Head::Asks { host, .. } if host != "a.org")
        );
    }

    #[test]
    fn a_request_is_known_by_its_shape() {
        for text in [
            "GET x",
            "CONNECT b.org:443 HTTP/1.1",
            "\r\nGET / HTTP/1.1",
            "\n\n\r\nCONNECT b.org:443 HTTP/1.1",
            "PROPFIND / HTTP/1.1",
            "QUERY  /x",
            "FOO\t/",
            "get http://b.org/ HTTP/1.1",
            "BREW HTTP://b.org/ HTTP/1.1",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            &("A".repeat(1000) + " /"),
        ] {
            assert_eq!(beginning(text.as_bytes()), Beginning::Request, "{text:?}");
            let unclear = (0..text.len()).map(|length| beginning(&text.as_bytes()[..length]));
            assert!(unclear.into_iter().all(|part| part != Beginning::Other), "{text:?}");
        }
        for text in [
            "SSH-2.0-OpenSSH_9.6 Debian\r\n",
            "EHLO a.org\r\n",
            "0032git-upload-pack /x.git\0host=a.org\0",
            "{\"method\":\"GET / HTTP/1.1\"}",
            "PING\r\n",
            "*1\r\n$4\r\nPING\r\n",
            "RFB 003.008\n",
            "\0\0\0\x08\x04\x52\x16\x2f",
        ] {
            assert_eq!(beginning(text.as_bytes()), Beginning::Other, "{text:?}");
        }
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
