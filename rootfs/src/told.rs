//! What tests compare of errors.

use std::error::Error;

/// The message of an error with all its causes, as the program prints it.
pub(crate) fn message(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", message(source)),
        None => error.to_string(),
    }
}
