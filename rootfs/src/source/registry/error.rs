//! Why a registry does not give an image.
//!
//! Invariant: no message holds a credential, a token or the query of an address (which may be signed), and what a
//! server sent stands in one only escaped and cut.

use std::time::Duration;

use crate::digest::Digest;

/// Why an image cannot be had from its registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or one that broke.
    #[error("cannot reach registry `{host}`")]
    Unreachable {
        /// Which.
        host: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A name that nobody knows.
    #[error("registry `{host}` is not known to the name service; check the image's name")]
    UnknownHost {
        /// Which.
        host: String,
    },
    /// This machine cannot look up names.
    #[error("cannot set up the look-up of host names")]
    Names(#[source] std::io::Error),
    /// A certificate nobody vouches for.
    #[error(
        "the certificate of registry `{host}` is not trusted; put the certificate of its authority into \
         /etc/containers/certs.d/{host}/ca.crt or ~/.config/containers/certs.d/{host}/ca.crt"
    )]
    Certificate {
        /// Which.
        host: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No certificate authority at all.
    #[error(
        "no certificate authority is known here, so registry `{host}` cannot be believed; install ca-certificates or \
         set SSL_CERT_FILE"
    )]
    NoAuthorities {
        /// Which registry.
        host: String,
    },
    /// It sends nothing, or next to nothing.
    #[error("registry `{host}` has all but stopped sending: {bytes} bytes in {} s", .time.as_secs())]
    Stalled {
        /// Which.
        host: String,
        /// Bytes that came.
        bytes: u64,
        /// In this time.
        time: Duration,
    },
    /// Less than was promised.
    #[error("registry `{host}` ended the transfer of {object} after {bytes} bytes")]
    CutShort {
        /// Which.
        host: String,
        /// Of what.
        object: String,
        /// Bytes that came.
        bytes: u64,
    },
    /// An answer that is not what was asked for.
    #[error("registry `{host}` answers {status} to the request for {object}{said}")]
    Status {
        /// Which.
        host: String,
        /// HTTP's number.
        status: u16,
        /// What was asked for.
        object: String,
        /// What it says about it, escaped, with what separates it.
        said: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// Not there.
    #[error("registry `{host}` has no {object}")]
    NotFound {
        /// Which.
        host: String,
        /// What.
        object: String,
    },
    /// Not for this user.
    #[error("registry `{host}` denies access to `{repository}`{hint}")]
    Denied {
        /// Which.
        host: String,
        /// To what.
        repository: String,
        /// What to do about it.
        hint: String,
    },
    /// A way of authentication this does not speak, or should not.
    #[error("registry `{host}` asks for authentication in a way that cannot be followed: {reason}")]
    Challenge {
        /// Which.
        host: String,
        /// Why not.
        reason: String,
    },
    /// The token service.
    #[error("no token for registry `{host}` from `{service}`: {reason}")]
    Token {
        /// Which registry.
        host: String,
        /// Host of the token service.
        service: String,
        /// Why.
        reason: String,
    },
    /// A redirect that is not followed.
    #[error("registry `{host}` redirects the request for {object} {reason}")]
    Redirect {
        /// Which.
        host: String,
        /// What was asked for.
        object: String,
        /// Where to, and why that is refused.
        reason: String,
    },
    /// More than a document may have.
    #[error("registry `{host}` sends more than {limit} bytes for {object}{hint}")]
    TooLong {
        /// Which.
        host: String,
        /// For what.
        object: String,
        /// Bytes that are allowed.
        limit: u64,
        /// How more can be allowed, with what separates it.
        hint: &'static str,
    },
    /// Other bytes than were asked for.
    #[error("registry `{host}` sends other content for {object}: it hashes to {actual}")]
    Content {
        /// Which.
        host: String,
        /// What was asked for.
        object: String,
        /// What the bytes hash to.
        actual: Digest,
    },
    /// Another size than the manifest says.
    #[error("registry `{host}` has {actual} bytes for {object} instead of {expected}")]
    Size {
        /// Which.
        host: String,
        /// What was asked for.
        object: String,
        /// Bytes it has.
        actual: u64,
        /// Bytes it should have.
        expected: u64,
    },
    /// An answer that breaks the protocol.
    #[error("registry `{host}` answers the request for {object} with {reason}")]
    Protocol {
        /// Which.
        host: String,
        /// What was asked for.
        object: String,
        /// What is wrong.
        reason: String,
    },
    /// A file of the user's that cannot be used.
    #[error("`{path}` cannot be used: {reason}")]
    File {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
    /// A credential helper.
    #[error("docker-credential-{helper}, which `{path}` names, gives no credentials: {reason}")]
    Helper {
        /// Its name.
        helper: String,
        /// The file that names it.
        path: String,
        /// Why.
        reason: String,
    },
    /// Blocked by the machine's configuration.
    #[error("`{name}` is blocked by `{path}`")]
    Blocked {
        /// The image.
        name: String,
        /// The file that says so.
        path: String,
    },
    /// A name that means different images to different tools.
    #[error(
        "`{short}` is `{here}` to agentd and docker, and `{leads}` to podman, by an alias in `{path}`; write the one that is meant"
    )]
    Alias {
        /// As typed.
        short: String,
        /// What it is here.
        here: String,
        /// What the alias says.
        leads: String,
        /// Where the alias is.
        path: String,
    },
    /// A proxy that is none.
    #[error(
        "the proxy for `{host}` cannot be used; http_proxy, https_proxy and all_proxy hold addresses such as http://proxy:3128"
    )]
    Proxy {
        /// For whom.
        host: String,
    },
    /// The pull was told to stop.
    #[error("stopped")]
    Stopped,
}

impl RegistryError {
    /// Whether the same request may succeed a little later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            RegistryError::Unreachable { .. } | RegistryError::Stalled { .. } | RegistryError::CutShort { .. } => true,
            RegistryError::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502..=504),
            _ => false,
        }
    }

    /// What the server itself asked for.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            RegistryError::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
