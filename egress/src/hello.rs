//! The first thing that a TLS client says: which name it asks for.
//!
//! A ClientHello is read across records and refused where it is not as RFC 8446 has it, so that the server behind cannot
//! read another name in it. Own code: rustls reads one too (the tests compare), but does not tell of an encrypted inner hello.
//!
//! Invariant: no byte is passed on before its name is known; how much is waited for has a bound.

/// Bytes of records that a hello may take; what clients send today (post-quantum key shares among it) is below 2 KiB.
pub(crate) const MAX_HELLO: usize = 16 * 1024;

const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// Bytes of a server's answer that tell whether it asks for another hello: the headers of record and message, the version,
/// the random.
pub(crate) const ANSWER: usize = 5 + 4 + 2 + 32;

/// The random of a server that asks for another hello (RFC 8446, 4.1.3).
const ANOTHER: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11,
    0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// Bytes that may come with a second hello: early data, which was sent before the server asked.
pub(crate) const MAX_AGAIN: usize = 4 * MAX_HELLO;

/// What the bytes are so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hello {
    /// A hello that asks for this name.
    Asks(String),
    /// Not all of it is there.
    Incomplete,
    /// No hello that may pass.
    Refused(&'static str),
}

/// A fatal alert, `access_denied` (RFC 8446, 6.2): the client fails at once, and says so.
pub(crate) const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// Reads the hello at the beginning of `untrusted_bytes`.
pub(crate) fn read(untrusted_bytes: &[u8]) -> Hello {
    let handshake = match handshake(untrusted_bytes) {
        Ok((handshake, _)) => handshake,
        Err(hello) => return hello,
    };
    match server_name(&handshake) {
        Ok(name) => Hello::Asks(name),
        Err(why) => Hello::Refused(why),
    }
}

/// How many of `bytes` the hello at their beginning takes; all of them where it takes more.
pub(crate) fn length(bytes: &[u8]) -> usize {
    handshake(bytes).map_or(bytes.len(), |(_, length)| length)
}

/// Whether a server's answer to a hello asks for another one. What it says in smaller pieces than servers do may.
pub(crate) fn asks_again(untrusted_answer: &[u8]) -> bool {
    let [HANDSHAKE, 3, _, high, low, rest @ ..] = untrusted_answer else { return false };
    let is_whole = usize::from(u16::from_be_bytes([*high, *low])) >= ANSWER - 5;
    !is_whole || rest.get(ANSWER - 5 - 32..ANSWER - 5).is_none_or(|random| random == ANOTHER)
}

/// Reads the second hello. Servers believe the name in that, which so has to be the same; what may come before it (RFC 8446,
/// 4.2.10 and D.4) they pass over.
pub(crate) fn read_again(untrusted_bytes: &[u8]) -> Hello {
    if untrusted_bytes.len() > MAX_AGAIN {
        return Hello::Refused("its second TLS hello is too long");
    }
    let mut rest = untrusted_bytes;
    while let [CHANGE_CIPHER_SPEC | APPLICATION_DATA, ..] = *rest {
        let Some((header, body)) = rest.split_at_checked(5) else { return Hello::Incomplete };
        let Some(after) = body.get(usize::from(u16::from_be_bytes([header[3], header[4]]))..) else {
            return Hello::Incomplete;
        };
        rest = after;
    }
    read(rest)
}

/// The body of the first handshake message, put together from its records, and how many bytes these take.
fn handshake(bytes: &[u8]) -> Result<(Vec<u8>, usize), Hello> {
    let refused = |why| Err(Hello::Refused(why));
    let incomplete =
        if bytes.len() > MAX_HELLO { Hello::Refused("its TLS hello is too long") } else { Hello::Incomplete };
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        match *rest {
            [] => return Err(incomplete),
            [kind, ..] if kind != HANDSHAKE => return refused("it does not speak TLS"),
            [_, major, ..] if major != 3 => return refused("it does not speak TLS"),
            _ => {}
        }
        let Some((header, body)) = rest.split_at_checked(5) else { return Err(incomplete) };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if !(1..=1 << 14).contains(&length) {
            return refused("its TLS record has no right length");
        }
        let part = body.get(..length).unwrap_or(body);
        message.extend_from_slice(part);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return refused("it does not begin with a TLS hello");
        }
        if let Some((&[_, high, middle, low], body)) = message.split_first_chunk::<4>() {
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            if length > MAX_HELLO {
                return refused("its TLS hello is too long");
            }
            // A client has nothing to say after its hello before the server has spoken (early data is a record of its own).
            if body.len() > length {
                return refused("its TLS hello has something behind it");
            }
            if body.len() == length {
                return Ok((body.to_vec(), bytes.len() - rest.len() + 5 + part.len()));
            }
        }
        if part.len() < length {
            return Err(incomplete);
        }
        rest = &body[length..];
    }
}

const MALFORMED: &str = "its TLS hello is malformed";

fn server_name(hello: &[u8]) -> Result<String, &'static str> {
    let mut reader = Reader(hello);
    // The legacy version, and the random.
    reader.take(2 + 32)?;
    let (_session, _ciphers, _compression) = (reader.list_u8()?, reader.list_u16()?, reader.list_u8()?);
    let mut extensions = Reader(if reader.0.is_empty() { &[] } else { reader.list_u16()? });
    reader.end()?;
    let mut name = None;
    while !extensions.0.is_empty() {
        let (kind, body) = (extensions.number()?, extensions.list_u16()?);
        match kind {
            SERVER_NAME if name.is_some() => return Err("its TLS hello names a server twice"),
            SERVER_NAME => {
                let mut reader = Reader(body);
                let mut list = Reader(reader.list_u16()?);
                reader.end()?;
                let kind = list.take(1)?;
                let host = list.list_u16()?;
                list.end()?;
                let host = std::str::from_utf8(host).ok().filter(|_| kind == [0]);
                name = Some(host.ok_or(MALFORMED)?.to_owned());
            }
            ENCRYPTED_CLIENT_HELLO => {
                return Err("its TLS hello hides another one (ECH), whose name cannot be checked");
            }
            _ => {}
        }
    }
    name.ok_or("its TLS hello names no server (SNI)")
}

/// Lengths and what they are of.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(MALFORMED)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u16, &'static str> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn list_u8(&mut self) -> Result<&'a [u8], &'static str> {
        let length = usize::from(self.take(1)?[0]);
        self.take(length)
    }

    fn list_u16(&mut self) -> Result<&'a [u8], &'static str> {
        let length = usize::from(self.number()?);
        self.take(length)
    }

    fn end(&self) -> Result<(), &'static str> {
        if self.0.is_empty() { Ok(()) } else { Err(MALFORMED) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::name::Name;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// A hello as rustls writes it; none of the names is ever connected to.
    pub(crate) fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// What rustls makes of it.
    fn by_rustls(bytes: &[u8]) -> Option<String> {
        let mut acceptor = rustls::server::Acceptor::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            acceptor.read_tls(&mut rest).ok()?;
            if let Some(accepted) = acceptor.accept().ok()? {
                return accepted.client_hello().server_name().map(str::to_owned);
            }
        }
        None
    }

    /// The same handshake in records of `size` bytes.
    fn cut(bytes: &[u8], size: usize) -> Vec<u8> {
        let record = |part: &[u8]| [&[22, 3, 1][..], &u16::try_from(part.len()).unwrap().to_be_bytes(), part].concat();
        bytes[5..].chunks(size).flat_map(record).collect()
    }

    /// A hello with these extensions and no more.
    fn with(extensions: &[(u16, &[u8])]) -> Vec<u8> {
        let two = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
        let list: Vec<u8> = extensions
            .iter()
            .flat_map(|(kind, body)| [&kind.to_be_bytes()[..], &two(body.len()), body].concat())
            .collect();
        let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &two(list.len()), &list].concat();
        let message = [&[1, 0][..], &two(body.len()), &body].concat();
        [&[22, 3, 1][..], &two(message.len()), &message].concat()
    }

    const SNI: &[u8] = b"\0\x08\0\0\x05a.org";

    #[test]
    fn the_name_is_found_however_the_hello_is_cut() {
        let whole = hello("api.example.org");
        assert_eq!(read(&whole), Hello::Asks("api.example.org".into()));
        assert_eq!(by_rustls(&whole).as_deref(), Some("api.example.org"));
        for size in [1, 2, 3, 7, 100] {
            assert_eq!(read(&cut(&whole, size)), Hello::Asks("api.example.org".into()), "records of {size}");
        }
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length]), Hello::Incomplete, "{length} bytes of it");
        }
    }

    #[test]
    fn a_second_hello_is_read_behind_what_servers_pass_over() {
        let again = with(&[(0, SNI)]);
        let before = [&[20, 3, 3, 0, 1, 1][..], &[23, 3, 3, 0, 3, 9, 9, 9]].concat();
        let whole = [&before[..], &again].concat();
        assert_eq!(read_again(&whole), Hello::Asks("a.org".into()));
        for length in 0..whole.len() {
            assert_eq!(read_again(&whole[..length]), Hello::Incomplete, "{length} bytes of it");
        }
        assert!(matches!(read_again(&[20, 3, 3, 0, 1, 1, 21, 3, 3, 0, 2, 2, 40]), Hello::Refused(_)));
        assert!(matches!(read_again(&[23, 3, 3, 0, 0].repeat(MAX_AGAIN)), Hello::Refused(_)));
        assert_eq!(length(&[&again[..], b"more"].concat()), again.len());
        assert_eq!(length(&cut(&again, 7)), cut(&again, 7).len());

        let answer = |random: [u8; 32]| [&[22, 3, 3, 0, 80, 2, 0, 0, 76, 3, 3][..], &random].concat();
        assert!(asks_again(&answer(ANOTHER)) && !asks_again(&answer([7; 32])) && asks_again(&[22, 3, 3, 0, 1, 2]));
        assert!(
            !asks_again(&[])
                && !asks_again(&[21, 3, 3, 0, 2, 2, 40])
                && !asks_again(b"220 a.org ESMTP")
                && !asks_again(&[22, 0, 0, 0, 10])
        );
        assert_eq!(answer(ANOTHER).len(), ANSWER);
    }

    #[test]
    fn what_hides_a_name_or_is_no_hello_is_refused() {
        assert_eq!(read(&with(&[(0, SNI)])), Hello::Asks("a.org".into()));
        let refused = |bytes: &[u8]| match read(bytes) {
            Hello::Refused(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(refused(&with(&[(10, b"")])).contains("no server"));
        assert!(refused(&with(&[(0, SNI), (0xfe0d, b"x")])).contains("ECH"));
        assert!(refused(&with(&[(0, SNI), (0, SNI)])).contains("twice"));
        for list in
            [&b"\0\0"[..], b"\0\x08\x01\0\x05a.org", b"\0\x10\0\0\x05a.org\0\0\x05b.org", b"\0\x09\0\0\x05a.org"]
        {
            assert_eq!(refused(&with(&[(0, list)])), MALFORMED);
        }
        for bytes in [&b"SSH-2.0-x\r\n"[..], b"EHLO evil\r\n", b"GET / HTTP/1.1\r\n", b"\x16\x02", b"\x80\x2e\x01"] {
            assert!(refused(bytes).contains("TLS"), "{bytes:?}");
        }
        // What has a NUL in it is no name, and so not that of any host.
        let with_nul = read(&with(&[(0, b"\0\x0b\0\0\x08a.org\0.b")]));
        assert!(matches!(&with_nul, Hello::Asks(asked) if asked == "a.org\0.b" && Name::new(asked).is_none()));
        let mut behind = with(&[(0, SNI)]);
        behind[4] += 1;
        behind.push(2);
        assert!(refused(&behind).contains("behind"));
        assert!(refused(&[22, 3, 1, 0, 0]).contains("length"));
        assert!(refused(&[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff]).contains("too long"));
        // A hello that never ends, a byte a record.
        let endless: Vec<u8> =
            [22, 3, 1, 0, 1].into_iter().chain([1]).chain([22, 3, 1, 0, 1, 0].repeat(3000)).collect();
        assert!(refused(&endless).contains("malformed") || refused(&endless).contains("behind"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_within_a_bound(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            read(&bytes);
            bytes.splice(0..0, [22, 3, 1, 0, 180, 1, 0, 0, 170]);
            read(&bytes);
        }

        /// Where both find a name in a damaged hello, it is the same one.
        #[test]
        fn rustls_reads_no_other_name(at in 0usize..400, byte in any::<u8>(), size in 1usize..300) {
            let mut bytes = hello("api.example.org");
            let at = at % bytes.len();
            bytes[at] = byte;
            for bytes in [cut(&bytes, size), bytes] {
                if let (Hello::Asks(ours), Some(theirs)) = (read(&bytes), by_rustls(&bytes)) {
                    prop_assert_eq!(ours.to_ascii_lowercase(), theirs.to_ascii_lowercase());
                }
            }
        }
    }
}
