//! Why a source does not lead to an image: one enum for what all sources share, and one a kind of source for the rest.
//!
//! Invariant: no text of an image stands in a message unescaped.

use crate::digest::{Digest, DigestError};
use crate::limits::LimitError;
use crate::printable::printable;
use crate::source::{ArchiveError, LayoutError, RegistryError};

/// Why an image cannot be had from its source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// An OCI image layout, or an archive that should hold one.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// An archive file.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The operating system's refusal.
    #[error("cannot open or read {object}")]
    Io {
        /// What.
        object: String,
        /// Why.
        source: std::io::Error,
    },
    /// A limit.
    #[error("{object}")]
    Limit {
        /// What.
        object: String,
        /// Which.
        source: LimitError,
    },
    /// Not the JSON it should be.
    #[error("{object} is malformed: {reason}; fetch the image again, or tell who made it")]
    Malformed {
        /// What.
        object: String,
        /// Why, escaped.
        reason: String,
    },
    /// A digest that is none.
    #[error("{object} names a blob wrongly")]
    Digest {
        /// Where.
        object: String,
        /// Why.
        source: DigestError,
    },
    /// A blob that is not there.
    #[error("blob {digest} is not in the {place}; fetch the image again")]
    NoBlob {
        /// Which.
        digest: Digest,
        /// Where.
        place: String,
    },
    /// A blob of another size than its descriptor says.
    #[error("blob {digest} is corrupt: it has {actual} bytes instead of {expected}; fetch the image again")]
    Size {
        /// Which.
        digest: Digest,
        /// Bytes it has.
        actual: u64,
        /// Bytes it should have.
        expected: u64,
    },
    /// A blob with other bytes than its digest says.
    #[error("blob {digest} is corrupt: its bytes hash to {actual}; fetch the image again")]
    Corrupt {
        /// Which.
        digest: Digest,
        /// What they hash to.
        actual: Digest,
    },
    /// Nothing selected.
    #[error("{place} has no image {wanted}; it has {available}")]
    NoImage {
        /// The layout or archive.
        place: String,
        /// What was looked for.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// Several images, none of them named.
    #[error("{place} holds several images; name one as {how}; it has {available}")]
    SeveralImages {
        /// The layout or archive.
        place: String,
        /// How to name one.
        how: String,
        /// What there is.
        available: String,
    },
    /// Not for this machine.
    #[error("the image is not made for {wanted}; it is made for {available}")]
    Platform {
        /// This machine.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// Something that is not an image, or not one that can be used.
    #[error("{object} {reason}")]
    Unsupported {
        /// What.
        object: String,
        /// Why, escaped.
        reason: String,
    },
}

impl SourceError {
    /// `object` says `value` of itself where something else is needed.
    pub(crate) fn unsupported(object: &str, what: &str, value: &str, why: &str) -> SourceError {
        SourceError::Unsupported {
            object: object.to_owned(),
            reason: format!("{what} `{}`: {why}", printable(value.as_bytes())),
        }
    }

    /// An error when `value` is above `limit`; `object` is only asked for then.
    pub(crate) fn limit(
        name: &'static str,
        value: u64,
        limit: u64,
        object: impl FnOnce() -> String,
    ) -> Result<(), SourceError> {
        LimitError::check(name, value, limit).map_err(|source| SourceError::Limit { object: object(), source })
    }
}
