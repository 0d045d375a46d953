//! The name service of the box: answers one question a message, from the policy and nothing else.
//!
//! Own code, not a crate: of RFC 1035 a stub needs a header and one question without compression, which is a hundred lines
//! with every bound in sight; libraries for the whole of it bring name compression, thirty record types and their bugs.
//!
//! A name that is not allowed does not exist (NXDOMAIN). REFUSED would be truer, but resolvers take it for a server that is
//! broken today, ask again, and report a failure that may pass; NXDOMAIN ends the attempt at once. Of a name that is
//! allowed, types but A and AAAA have no data, HTTPS and SVCB among them: clients then go on with the addresses.
//!
//! Invariant: nothing of a question goes anywhere but into the answer and the audit.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::name::{MAX, Name};

/// Longest question that is read: the header, a name, type and class, and options that are not looked at.
pub(crate) const MAX_QUESTION: usize = 1232;

const HEADER: usize = 12;
const A: u16 = 1;
const AAAA: u16 = 28;
const INTERNET: u16 = 1;

/// Seconds for which a program may keep an answer: an address means its name for as long as the job runs.
const TTL: u32 = 300;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    NoError = 0,
    FormatError = 1,
    ServerFailure = 2,
    NoSuchName = 3,
    NotImplemented = 4,
    Refused = 5,
}

/// What the policy says to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is allowed, and has these addresses.
    At(Ipv4Addr, Option<Ipv6Addr>),
    /// It is not allowed.
    Nowhere,
    /// It is allowed, but there are too many names.
    Full,
}

/// The answer to a message, if it deserves one, and the name that was not found, as far as it can be told.
pub(crate) fn answer(untrusted_message: &[u8], find: impl FnOnce(&Name) -> Found) -> Option<(Vec<u8>, Option<String>)> {
    let header = untrusted_message.get(..HEADER)?;
    // A response is not answered: two such servers would never stop.
    if untrusted_message.len() > MAX_QUESTION || header[2] & 0x80 != 0 {
        return None;
    }
    let opcode = header[2] >> 3 & 0xf;
    if opcode != 0 {
        return Some((reply(header, Code::NotImplemented, &[], None), None));
    }
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let question = (count(4) == 1 && count(6) == 0 && count(8) == 0).then(|| Question::read(untrusted_message));
    let Some(question) = question.flatten() else {
        return Some((reply(header, Code::FormatError, &[], None), None));
    };
    let Question { bytes, untrusted_name, kind, class } = question;
    if class != INTERNET {
        return Some((reply(header, Code::Refused, bytes, None), Some(untrusted_name)));
    }
    let (code, data) = match Name::new(&untrusted_name).as_ref().map(find) {
        Some(Found::At(v4, _)) if kind == A => (Code::NoError, Some((A, v4.octets().to_vec()))),
        Some(Found::At(_, Some(v6))) if kind == AAAA => (Code::NoError, Some((AAAA, v6.octets().to_vec()))),
        Some(Found::At(..)) => (Code::NoError, None),
        Some(Found::Full) => (Code::ServerFailure, None),
        Some(Found::Nowhere) | None => (Code::NoSuchName, None),
    };
    Some((reply(header, code, bytes, data), (code != Code::NoError).then_some(untrusted_name)))
}

fn reply(header: &[u8], code: Code, question: &[u8], data: Option<(u16, Vec<u8>)>) -> Vec<u8> {
    // A response, of who knows best; whether recursion was wanted is repeated, and it is there.
    let flags = [0x84 | header[2] & 0x79, 0x80 | code as u8];
    let counts = [0, u8::from(!question.is_empty()), 0, u8::from(data.is_some()), 0, 0, 0, 0];
    let mut message = [&header[..2], &flags, &counts, question].concat();
    if let Some((kind, data)) = data {
        // The name is that of the question, which begins after the header.
        message.extend([0xc0, 0x0c]);
        message.extend(kind.to_be_bytes());
        message.extend(INTERNET.to_be_bytes());
        message.extend(TTL.to_be_bytes());
        message.extend([0, if kind == A { 4 } else { 16 }]);
        message.extend(data);
    }
    message
}

/// The question of a message.
struct Question<'a> {
    bytes: &'a [u8],
    /// Its labels with dots between; what is not printable is escaped, and so is no name.
    untrusted_name: String,
    kind: u16,
    class: u16,
}

impl<'a> Question<'a> {
    fn read(message: &'a [u8]) -> Option<Self> {
        let mut at = HEADER;
        let mut untrusted_name = String::new();
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            match length {
                0 => break,
                1..=63 => {}
                // A pointer. There is nothing yet that a question could point to.
                _ => return None,
            }
            let label = message.get(at..at + length)?;
            at += length;
            if at - HEADER > MAX + 1 {
                return None;
            }
            if !untrusted_name.is_empty() {
                untrusted_name.push('.');
            }
            for byte in label {
                match byte {
                    // A dot within a label is none between labels.
                    b'.' => untrusted_name.push_str("\\."),
                    byte => untrusted_name.extend(byte.escape_ascii().map(char::from)),
                }
            }
        }
        let fixed = message.get(at..at + 4)?;
        Some(Question {
            bytes: &message[HEADER..at + 4],
            untrusted_name,
            kind: u16::from_be_bytes([fixed[0], fixed[1]]),
            class: u16::from_be_bytes([fixed[2], fixed[3]]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V4: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 0);
    const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xa9e, 0, 0, 0, 0, 0, 0x100);

    fn question(labels: &[&[u8]], kind: u16, class: u16) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in labels {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend(*label);
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend(class.to_be_bytes());
        message
    }

    fn find(name: &Name) -> Found {
        if name.as_str() == "a.org" { Found::At(V4, Some(V6)) } else { Found::Nowhere }
    }

    fn ask(labels: &[&[u8]], kind: u16, class: u16) -> (u8, u8, Vec<u8>, Option<String>) {
        let asked = question(labels, kind, class);
        let (answer, refused) = answer(&asked, find).unwrap();
        assert_eq!((&answer[..2], answer[2]), (&[0xab, 0xcd][..], 0x85));
        let data = answer.get(asked.len()..).unwrap_or_default().to_vec();
        (answer[3] & 0xf, answer[7], data, refused)
    }

    #[test]
    fn an_allowed_name_has_addresses_and_nothing_else() {
        let (code, answers, data, refused) = ask(&[b"A", b"Org"], A, 1);
        assert_eq!((code, answers, refused), (0, 1, None));
        assert_eq!(data, [&[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4][..], &V4.octets()].concat());
        let (_, answers, data, _) = ask(&[b"a", b"org"], AAAA, 1);
        assert_eq!((answers, &data[12..]), (1, &V6.octets()[..]));
        // TXT, MX, SRV, SVCB, HTTPS, ANY.
        for kind in [16, 15, 33, 64, 65, 255] {
            assert_eq!(ask(&[b"a", b"org"], kind, 1), (0, 0, Vec::new(), None));
        }
    }

    #[test]
    fn what_is_not_allowed_or_no_name_does_not_exist() {
        let evil: &[&[u8]] = &[b"secret", b"evil", b"org"];
        assert_eq!(ask(evil, 16, 1), (3, 0, Vec::new(), Some("secret.evil.org".into())));
        for labels in
            [&[&b"a\0"[..], b"org"][..], &[b"a.org"], &[b"\xc3\xa9", b"org"], &[b"a", b"org\0"], &[], &[b"a b"]]
        {
            assert_eq!(ask(labels, A, 1).0, 3, "{labels:?}");
        }
        assert_eq!(ask(&[b"a", b"org"], A, 3).0, 5);
        let (message, _) = answer(&question(&[b"a", b"org"], A, 1), |_| Found::Full).unwrap();
        assert_eq!(message[3] & 0xf, 2);
    }

    #[test]
    fn what_is_no_question_is_told_so_or_ignored() {
        let code = |message: &[u8]| answer(message, find).map(|(answer, _)| answer[3] & 0xf);
        let good = question(&[b"a", b"org"], A, 1);
        let with = |at: usize, byte: u8| {
            let mut message = good.clone();
            message[at] = byte;
            message
        };
        assert_eq!(code(&good[..11]), None);
        assert_eq!(code(&with(2, 0x81)), None, "a response");
        assert_eq!(code(&with(2, 0x28)), Some(4), "an update");
        assert_eq!(code(&with(5, 0)), Some(1), "no question");
        assert_eq!(code(&with(5, 2)), Some(1), "two questions");
        assert_eq!(code(&with(7, 1)), Some(1), "an answer in a question");
        assert_eq!(code(&with(12, 0xc0)), Some(1), "a pointer");
        assert_eq!(code(&good[..good.len() - 1]), Some(1), "cut short");
        assert_eq!(code(&vec![0; MAX_QUESTION + 1]), None);
        assert_eq!(code(&question(&[&[b'a'; 63][..]; 4], A, 1)), Some(1), "a long name");
    }

    proptest! {
        #[test]
        fn any_message_is_answered_within_a_bound_or_ignored(message in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some((answer, _)) = answer(&message, find) {
                prop_assert!(answer.len() <= message.len() + 28);
                prop_assert_eq!(&answer[..2], &message[..2]);
                prop_assert!(answer[2] & 0x80 != 0);
            }
        }

        #[test]
        fn a_question_with_noise_is_answered_or_refused(
            labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..63), 0..6),
            kind in any::<u16>(), class in 0u16..3, at in any::<usize>(), byte in any::<u8>(),
        ) {
            let labels: Vec<&[u8]> = labels.iter().map(Vec::as_slice).collect();
            let mut message = question(&labels, kind, class);
            let at = at % message.len();
            message[at] = byte;
            if let Some((answer, Some(name))) = answer(&message, find) {
                prop_assert!(answer[7] == 0 && name.is_ascii() && !name.contains(|c: char| c.is_ascii_control()));
            }
        }
    }
}
