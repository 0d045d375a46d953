//! How much of its network a box may use: `--net-limit NAME=VALUE`.
//!
//! Invariant: a limit that was asked for is one that the broker can hold; none is zero by mistake.

use serde::{Deserialize, Serialize};

/// The limits of a job; what is absent has none but the broker's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Connections at once.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub connections: Option<u64>,
    /// Connections in all.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub total: Option<u64>,
    /// Bytes in all, both ways together.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes: Option<u64>,
    /// Bytes a second, of all connections and both ways together.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rate: Option<u64>,
}

/// Words that are no limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Of another name, or without a value.
    #[error("`{}` is no limit: write connections=N, total=N, bytes=SIZE or rate=SIZE (a second)", .0.escape_debug())]
    Name(String),
    /// A value.
    #[error("`{}` is no number above 0", .0.escape_debug())]
    Value(String),
}

impl Limits {
    /// Sets the limit that `text` names; `size` reads what is in bytes.
    ///
    /// # Errors
    /// [`LimitError`].
    pub fn set(&mut self, text: &str, size: impl Fn(&str) -> Option<u64>) -> Result<(), LimitError> {
        let (name, value) = text.split_once('=').ok_or_else(|| LimitError::Name(text.to_owned()))?;
        let (limit, number) = match name {
            "connections" => (&mut self.connections, value.parse().ok()),
            "total" => (&mut self.total, value.parse().ok()),
            "bytes" => (&mut self.bytes, size(value)),
            "rate" => (&mut self.rate, size(value)),
            _ => return Err(LimitError::Name(text.to_owned())),
        };
        let number = number.filter(|number| *number > 0).ok_or_else(|| LimitError::Value(value.to_owned()))?;
        *limit = Some(number);
        Ok(())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Limits::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_they_are_written() {
        let mut limits = Limits::default();
        let size = |text: &str| text.strip_suffix('k').and_then(|text| Some(text.parse::<u64>().ok()? << 10));
        for text in ["connections=3", "total=4", "bytes=5k", "rate=6k"] {
            limits.set(text, size).unwrap();
        }
        let all = Limits { connections: Some(3), total: Some(4), bytes: Some(5 << 10), rate: Some(6 << 10) };
        assert_eq!(limits, all);
        for bad in ["", "connections", "packets=1"] {
            assert!(matches!(limits.set(bad, size), Err(LimitError::Name(_))), "{bad}");
        }
        for bad in ["connections=0", "total=-1", "bytes=x", "rate=", "rate=0k"] {
            assert!(matches!(limits.set(bad, size), Err(LimitError::Value(_))), "{bad}");
        }
        assert_eq!(limits, all);
    }
}
