//! Whether a job is started again when its command ends, and how often it was.
//!
//! A record is only ever appended to, and a job may be started again for years: while it runs the number stands in a file
//! of its own, always as long; the record gets it at the end.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Name of the file in a job's directory.
const RESTARTS: &str = "restarts";
const DIGITS: usize = 10;

/// When a job is started again, in podman's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// When its exit code is not 0.
    OnFailure {
        /// So often at most.
        most: Option<u32>,
    },
    /// Whenever it ends.
    Always,
}

/// Words that are no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no restart policy: write no, on-failure, on-failure:N (N starts more at most) or always", .0.escape_debug())]
pub struct RestartError(String);

impl Restart {
    /// Whether a job that ended so, and was started again so often, is started again.
    #[must_use]
    pub fn wants(self, exit_code: u8, count: u32) -> bool {
        match self {
            Restart::No => false,
            Restart::OnFailure { most } => exit_code != 0 && most.is_none_or(|most| count < most),
            Restart::Always => true,
        }
    }

    /// For documents that say only what is unusual.
    #[must_use]
    pub fn is_no(&self) -> bool {
        *self == Restart::No
    }
}

impl FromStr for Restart {
    type Err = RestartError;

    fn from_str(text: &str) -> Result<Self, RestartError> {
        let error = || RestartError(text.to_owned());
        match text.split_once(':').map_or((text, None), |(word, most)| (word, Some(most))) {
            ("no", None) => Ok(Restart::No),
            ("always", None) => Ok(Restart::Always),
            ("on-failure", None) => Ok(Restart::OnFailure { most: None }),
            ("on-failure", Some(most)) if most.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok(Restart::OnFailure { most: Some(most.parse().map_err(|_too_long| error())?) })
            }
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Restart::No => f.write_str("no"),
            Restart::OnFailure { most: None } => f.write_str("on-failure"),
            Restart::OnFailure { most: Some(most) } => write!(f, "on-failure:{most}"),
            Restart::Always => f.write_str("always"),
        }
    }
}

impl TryFrom<String> for Restart {
    type Error = RestartError;

    fn try_from(text: String) -> Result<Self, RestartError> {
        text.parse()
    }
}

impl From<Restart> for String {
    fn from(restart: Restart) -> String {
        restart.to_string()
    }
}

/// Notes how often the job with this directory was started again.
pub(crate) fn note(directory: &Path, count: u32) {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(directory.join(RESTARTS));
    // A disk that takes no more costs the number while it runs; at the end the record has it.
    file.and_then(|file| file.write_all_at(format!("{count:0DIGITS$}\n").as_bytes(), 0)).unwrap_or_default();
}

/// The number that was noted; 0 where there is none.
pub(crate) fn noted(directory: &Path) -> u32 {
    let mut text = String::new();
    let read = File::open(directory.join(RESTARTS)).and_then(|file| file.take(DIGITS as u64).read_to_string(&mut text));
    read.ok().and_then(|_| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_podmans_words() {
        for text in ["no", "always", "on-failure", "on-failure:0", "on-failure:3"] {
            assert_eq!(text.parse::<Restart>().unwrap().to_string(), text);
        }
        for bad in
            ["", "yes", "no:1", "always:3", "on-failure:", "on-failure:-1", "on-failure:+1", "on-failure:99999999999"]
        {
            assert!(bad.parse::<Restart>().is_err(), "{bad}");
        }
        let three = Restart::OnFailure { most: Some(3) };
        assert!(three.wants(1, 2) && !three.wants(1, 3) && !three.wants(0, 0));
        assert!(
            Restart::OnFailure { most: None }.wants(137, u32::MAX)
                && Restart::Always.wants(0, 9)
                && !Restart::No.wants(1, 0)
        );
    }

    #[test]
    fn the_number_is_read_back_whatever_stands_there() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(noted(directory.path()), 0);
        for count in [1, u32::MAX, 7] {
            note(directory.path(), count);
            assert_eq!(noted(directory.path()), count);
        }
        std::fs::write(directory.path().join(RESTARTS), [255; 40]).unwrap();
        assert_eq!(noted(directory.path()), 0);
    }
}
