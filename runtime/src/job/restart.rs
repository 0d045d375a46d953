//! Whether a job is started again when its command ends.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
}
