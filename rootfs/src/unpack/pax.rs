//! PAX extended header records: `LENGTH KEY=VALUE\n`, the length counting itself.
//!
//! Invariant: a value may hold any byte, newlines too; a record that does not add up is refused, never skipped.

use std::collections::{BTreeMap, BTreeSet};

use super::archive::Mtime;

/// What is wrong with a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PaxError(pub(crate) &'static str);

/// The records that matter here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(super) mtime: Option<Mtime>,
    /// A map, so that a record of thousands of names costs no quadratic time.
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Names of attributes that are not kept, each once: writers say one attribute under several keys.
    pub(super) dropped_xattrs: BTreeSet<Vec<u8>>,
    /// Any `GNU.sparse.*` record.
    pub(crate) sparse: bool,
    pub(super) sparse_version: (Option<u64>, Option<u64>),
    pub(super) sparse_name: Option<Vec<u8>>,
    pub(super) sparse_real_size: Option<u64>,
    /// Offsets and lengths in turn: in formats 0.0 and 0.1 the map is here, and not before the data.
    pub(super) sparse_map: Vec<u64>,
    pub(super) sparse_count: Option<u64>,
}

impl Pax {
    pub(crate) fn parse(mut rest: &[u8]) -> Result<Pax, PaxError> {
        let mut pax = Pax::default();
        while !rest.is_empty() {
            let space = rest.iter().take(20).position(|b| *b == b' ').ok_or(PaxError("no length"))?;
            let length = number(&rest[..space]).and_then(|n| usize::try_from(n).ok()).ok_or(PaxError("bad length"))?;
            let record = rest.get(space + 1..length).ok_or(PaxError("the length is beyond its end"))?;
            let (newline, record) = record.split_last().ok_or(PaxError("empty"))?;
            let equals = record.iter().position(|b| *b == b'=').ok_or(PaxError("no `=`"))?;
            if *newline != b'\n' || equals == 0 {
                return Err(PaxError("no newline or no key"));
            }
            pax.set(&record[..equals], &record[equals + 1..])?;
            rest = &rest[length..];
        }
        // bsdtar writes each attribute under two keys, of which one is read.
        pax.dropped_xattrs.retain(|name| !pax.xattrs.contains_key(name));
        Ok(pax)
    }

    /// Of records with one key the last counts; an empty value means the header's own (POSIX pax, "pax Header Block"), where all
    /// programs agree that it does.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), PaxError> {
        // An empty one would mean the header's own, and does to Go; GNU tar takes it as it is.
        let name = || match value {
            [] => Err(PaxError("a path is empty")),
            value if value.contains(&0) => Err(PaxError("a path holds a NUL")),
            value => Ok(Some(value.to_vec())),
        };
        // An empty one would mean the header's own; GNU tar and bsdtar take it for 0.
        let count = || number(value).map(Some).ok_or(PaxError("a size is not a number"));
        if key.starts_with(b"GNU.sparse.") {
            self.sparse = true;
        }
        match key {
            b"path" => self.path = name()?,
            b"linkpath" => self.link = name()?,
            b"size" => self.size = count()?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value)?) },
            b"GNU.sparse.major" => self.sparse_version.0 = count()?,
            b"GNU.sparse.minor" => self.sparse_version.1 = count()?,
            b"GNU.sparse.name" => self.sparse_name = name()?,
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse_real_size = count()?,
            b"GNU.sparse.numblocks" => self.sparse_count = count()?,
            b"GNU.sparse.map" => self.set_sparse_map(value.split(|b| *b == b','))?,
            // The one pair of keys that stands there again for every segment.
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let is_offset = self.sparse_map.len().is_multiple_of(2);
                if is_offset != (key == b"GNU.sparse.offset") {
                    return Err(PaxError("offsets and lengths of a sparse file do not alternate"));
                }
                self.sparse_map.extend(count()?);
            }
            _ => {
                if let Some(xattr) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(xattr, value);
                } else if let Some(escaped) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    self.dropped_xattrs.insert(unescaped(escaped));
                } else if key.starts_with(b"SCHILY.acl.") {
                    self.dropped_xattrs.insert(key.to_vec());
                } else if key == b"RHT.security.selinux" {
                    self.dropped_xattrs.insert(b"security.selinux".to_vec());
                }
            }
        }
        Ok(())
    }

    fn set_sparse_map<'v>(&mut self, mut numbers: impl Iterator<Item = &'v [u8]>) -> Result<(), PaxError> {
        if !self.sparse_map.is_empty() {
            return Err(PaxError("two sparse maps"));
        }
        numbers.try_for_each(|text| {
            self.sparse_map.push(number(text).ok_or(PaxError("the sparse map holds what is not a number"))?);
            Ok(())
        })
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8]) {
        // The overlay's own attributes decide what a job sees of lower layers: only we write those.
        let kept = name.len() > b"user.".len() && name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if !kept || name.contains(&0) {
            self.dropped_xattrs.insert(name.to_vec());
            return;
        }
        self.xattrs.insert(name.to_vec(), value.to_vec());
    }

    /// Whether a record changes where entries start or what they are called.
    pub(crate) fn changes_layout(&self) -> bool {
        self.path.is_some() || self.link.is_some() || self.size.is_some() || self.sparse
    }
}

fn number(text: &[u8]) -> Option<u64> {
    // `parse` would accept a sign.
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The name of an attribute without libarchive's `%XX`.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let hex = |digit: u8| char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok());
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        let escaped = match after {
            [high, low, ..] if *first == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        let (byte, after) = match escaped {
            Some((high, low)) => ((high << 4) | low, &after[2..]),
            None => (*first, after),
        };
        bytes.push(byte);
        rest = after;
    }
    bytes
}

/// Decimal seconds with an optional fraction; digits beyond nanoseconds are cut.
fn time(text: &[u8]) -> Result<Mtime, PaxError> {
    let bad = PaxError("a time is not a number");
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let point = text.iter().position(|b| *b == b'.');
    let (whole, fraction) = match point {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &b""[..]),
    };
    let Some(seconds) = number(whole).and_then(|n| i64::try_from(n).ok()) else { return Err(bad) };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad);
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0u32, |n, digit| n * 10 + u32::from(digit - b'0'));
    Ok(match (negative, nanoseconds) {
        (false, _) => Mtime { seconds, nanoseconds },
        (true, 0) => Mtime { seconds: -seconds, nanoseconds: 0 },
        (true, _) => Mtime { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Records with right lengths.
    pub(in crate::unpack) fn pax(records: &[(&str, &str)]) -> Vec<u8> {
        let mut data = String::new();
        for (key, value) in records {
            let body = format!(" {key}={value}\n");
            let mut length = body.len();
            while length != body.len() + length.to_string().len() {
                length = body.len() + length.to_string().len();
            }
            data.push_str(&format!("{length}{body}"));
        }
        data.into_bytes()
    }

    #[test]
    fn values_may_hold_newlines_and_equals() {
        let pax =
            Pax::parse(&pax(&[("SCHILY.xattr.user.a", "x\n9 size=9\n"), ("size", "7"), ("path", "a=b/c")])).unwrap();
        assert_eq!(pax.xattrs[&b"user.a"[..]], b"x\n9 size=9\n");
        assert_eq!((pax.size, pax.path.as_deref()), (Some(7), Some(&b"a=b/c"[..])));
    }

    #[test]
    fn the_last_record_counts_and_empty_resets() {
        assert_eq!(Pax::parse(b"9 size=7\n9 size=8\n").unwrap().size, Some(8));
        assert_eq!(Pax::parse(b"11 mtime=1\n10 mtime=\n").unwrap().mtime, None);
        assert!(Pax::parse(b"9 size=7\n8 size=\n").is_err());
        assert!(Pax::parse(b"10 path=a\n8 path=\n").is_err());
    }

    #[test]
    fn only_the_users_own_attributes_are_kept() {
        let records = pax(&[
            ("SCHILY.xattr.user.overlay.opaque", "y"),
            ("SCHILY.xattr.security.capability", "x"),
            ("SCHILY.xattr.user.", "x"),
            ("LIBARCHIVE.xattr.user.b", "x"),
        ]);
        let pax = Pax::parse(&records).unwrap();
        assert!(pax.xattrs.is_empty());
        assert_eq!(pax.dropped_xattrs.len(), 4);
    }

    /// bsdtar writes each attribute twice, GNU tar ACLs and labels of SELinux under keys of their own.
    #[test]
    fn an_attribute_is_counted_once_and_only_if_it_is_lost() {
        for (records, lost) in [
            (&[("LIBARCHIVE.xattr.user.a", "MQ"), ("SCHILY.xattr.user.a", "1")][..], 0),
            (&[("SCHILY.xattr.user.a", "1"), ("LIBARCHIVE.xattr.user.a", "MQ")], 0),
            (&[("LIBARCHIVE.xattr.user.a%20b%25", "MQ"), ("SCHILY.xattr.user.a b%", "1")], 0),
            (&[("LIBARCHIVE.xattr.user.%2g%4", "MQ"), ("SCHILY.xattr.user.%2g%4", "1")], 0),
            (&[("LIBARCHIVE.xattr.user.a", "MQ"), ("SCHILY.xattr.user.b", "1")], 1),
            (&[("LIBARCHIVE.xattr.security.capability", "MQ"), ("SCHILY.xattr.security.capability", "1")], 1),
            (&[("SCHILY.acl.access", "user::rw-"), ("SCHILY.acl.default", "user::rw-")], 2),
            (&[("RHT.security.selinux", "a:b:c")], 1),
            (&[("RHT.security.selinux", "a:b:c"), ("SCHILY.xattr.security.selinux", "a:b:c")], 1),
        ] {
            assert_eq!(Pax::parse(&pax(records)).unwrap().dropped_xattrs.len(), lost, "{records:?}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"x"[..],
            b" ",
            b"0 ",
            b"5 a=b",
            b"6 a=b",
            b"99 a=b\n",
            b"6 abc\n",
            b"5 =b\n",
            b"+6 a=b\n",
            b"18446744073709551615 a=b\n",
            b"99999999999999999999999 a=b\n",
            b"10 size=-1\n",
            b"11 size=0x1\n",
            b"10 path=a\0\n",
            b"11 mtime=1x\n",
        ] {
            assert!(Pax::parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn times() {
        for (text, seconds, nanoseconds) in [
            (&b"12"[..], 12, 0),
            (b"12.5", 12, 500_000_000),
            (b"12.1234567899", 12, 123_456_789),
            (b"-1.25", -2, 750_000_000),
            (b"-3", -3, 0),
        ] {
            assert_eq!(time(text).unwrap(), Mtime { seconds, nanoseconds });
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b' '), Just(b'='), Just(b'\n'), b'0'..=b'9'], 0..64)) {
            if let Ok(pax) = Pax::parse(&bytes) {
                prop_assert!(pax.path.is_none_or(|p| !p.contains(&0)));
            }
        }
    }
}
