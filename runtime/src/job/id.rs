//! Names of jobs: ids that agentd makes, names that the user gives.

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

/// Twelve lower-case hexadecimal digits, random.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

/// A name given with `--name`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobName(String);

/// Text that is not an id or a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a job id.
    #[error("`{}` is not a job id: 12 hexadecimal digits", .0.escape_debug())]
    Id(String),
    /// Not a job name.
    #[error(
        "`{}` cannot be a job's name: use up to 63 letters, digits, `_`, `.` and `-`, beginning with a letter or digit",
        .0.escape_debug()
    )]
    Name(String),
    /// A name that could be taken for an id.
    #[error("`{0}` cannot be a job's name: it looks like a job id")]
    LooksLikeId(String),
}

const ID_DIGITS: usize = 12;
const MAX_NAME: usize = 63;

impl JobId {
    /// A new id.
    ///
    /// # Errors
    /// The errno of `getrandom(2)`.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; ID_DIGITS / 2];
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        Ok(JobId(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl JobName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `text` could begin a job id.
#[must_use]
pub fn is_id_prefix(text: &str) -> bool {
    (1..=ID_DIGITS).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl FromStr for JobId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() == ID_DIGITS && is_id_prefix(text) {
            Ok(JobId(text.to_owned()))
        } else {
            Err(NameError::Id(text.to_owned()))
        }
    }
}

impl FromStr for JobName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let starts_well = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !starts_well || text.len() > MAX_NAME || !text.bytes().all(plain) {
            return Err(NameError::Name(text.to_owned()));
        }
        if text.len() == ID_DIGITS && is_id_prefix(text) {
            return Err(NameError::LooksLikeId(text.to_owned()));
        }
        Ok(JobName(text.to_owned()))
    }
}

impl TryFrom<String> for JobId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl TryFrom<String> for JobName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> String {
        id.0
    }
}

impl From<JobName> for String {
    fn from(name: JobName) -> String {
        name.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_random_and_read_back() {
        let (one, other) = (JobId::random().unwrap(), JobId::random().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.as_str().parse::<JobId>().unwrap(), one);
    }

    #[test]
    fn names_cannot_be_paths_options_or_ids() {
        for bad in ["", ".", "..", "a/b", "-x", "a b", "a\x1b[2J", "é", "0123456789ab", &"a".repeat(64)] {
            assert!(bad.parse::<JobName>().is_err(), "{bad:?}");
        }
        for good in ["a", "fix-42", "A_b.c", "0123456789a", "0123456789abc"] {
            assert!(good.parse::<JobName>().is_ok(), "{good:?}");
        }
    }
}
