//! Where an image comes from: each kind of source gives a verified manifest and the bytes of layers.
//!
//! Invariant: documents are verified here before they are parsed; the bytes of layers are verified by whoever unpacks them.

mod layout;

use std::io::Read;

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::limits::Limits;
use crate::stream::Compression;

pub(crate) use layout::Layout;
pub use layout::LayoutError;

/// One image at its source.
pub(crate) trait Source: Sync {
    /// The image's manifest for this machine, with its config, both verified.
    fn manifest(&self, limits: &Limits) -> Result<Manifest, LayoutError>;

    /// The blob of a layer from its first byte: its size is checked where it is known, its bytes are not.
    fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send + '_>, LayoutError>;
}

/// One layer, as the manifest and the config describe it.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) compression: Compression,
    pub(crate) diff_id: Digest,
}

/// A manifest with its config, verified.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    /// Lowest first.
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: ImageConfig,
}

/// An error unless the digests are the same.
pub(crate) fn check_digest(digest: &Digest, actual: Digest) -> Result<(), LayoutError> {
    if *digest == actual { Ok(()) } else { Err(LayoutError::Corrupt { digest: digest.clone(), actual }) }
}
