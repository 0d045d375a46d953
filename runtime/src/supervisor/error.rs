//! What can keep a supervisor from its work on the host.

use std::io;

use crate::job::store::JobStoreError;
use crate::launch::protect::stubs::StubError;

/// A job that could not be supervised. What fails inside the box is an [`Ending`], not an error.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The state directory.
    #[error(transparent)]
    Store(#[from] JobStoreError),
    /// Protected paths.
    #[error(transparent)]
    Stubs(#[from] StubError),
    /// `clone3`.
    #[error("cannot create namespaces for the box; `agentd doctor` says what this host allows")]
    Clone(#[source] io::Error),
    /// Any other call on the host.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Names what a system call on the host was for.
pub(super) trait To<T> {
    fn to(self, what: &'static str) -> Result<T, SuperviseError>;
}

impl<T, E: Into<io::Error>> To<T> for Result<T, E> {
    fn to(self, what: &'static str) -> Result<T, SuperviseError> {
        self.map_err(|source| SuperviseError::Host { what, source: source.into() })
    }
}
