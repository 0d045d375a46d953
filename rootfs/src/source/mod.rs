//! Where an image comes from: each kind of source gives a verified manifest and the bytes of layers.
//!
//! Invariant: documents are verified here before they are parsed; the bytes of layers are verified by whoever unpacks them.

mod archive;
pub(crate) mod document;
mod error;
mod index;
mod layout;
mod platform;
mod registry;

use std::io::Read;

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::limits::Limits;
use crate::reference::ImageRef;
use crate::stream::Compression;

pub use archive::ArchiveError;
pub(crate) use archive::{DockerArchive, OciArchive};
pub use error::SourceError;
pub(crate) use layout::Layout;
pub use layout::LayoutError;
pub(crate) use platform::Machine;
#[cfg(feature = "fuzzing")]
pub(crate) use registry::count_challenges_and_credentials;
pub use registry::{Proxies, RegistryConfig, RegistryError};
pub(crate) use registry::{Registry, Remote, is_stopped};

/// One image at its source.
pub(crate) trait Source: Sync {
    /// The digest of the manifest, or of the index that leads to it, where that is known before it is read.
    fn digest(&self) -> Option<&Digest> {
        None
    }

    /// The image's manifest for this machine, with its config, both verified.
    fn manifest(&self, limits: &Limits) -> Result<Manifest, SourceError>;

    /// The blob of a layer from its first byte: its size is checked where it is known, its bytes are not.
    fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send + '_>, SourceError>;

    /// To be told that the bytes of a layer were others than its digest says. Whether another place may have the right ones:
    /// from then on [`Source::layer`] asks there.
    fn leave(&self, _layer: &Layer) -> bool {
        false
    }

    /// Whether layers come over the network, so that reading several at once is worth it on a single core too.
    fn is_remote(&self) -> bool {
        false
    }

    /// Ends every wait for bytes, from any thread; for sources that may have to wait.
    fn stop(&self) {}
}

/// Opens what `reference` names; `None` for what is no image of layers.
pub(crate) fn open<'r>(
    reference: &ImageRef,
    remote: &Remote<'r>,
    limits: &Limits,
) -> Result<Option<Box<dyn Source + 'r>>, SourceError> {
    match reference {
        ImageRef::Host | ImageRef::Dir(_) => Ok(None),
        ImageRef::Oci { layout, select } => Ok(Some(Box::new(Layout::open(layout, select, limits)?))),
        ImageRef::OciArchive { file, select } => Ok(Some(Box::new(OciArchive::open(file, select)?))),
        ImageRef::DockerArchive { file, name } => Ok(Some(Box::new(DockerArchive::open(file, name.as_ref())?))),
        ImageRef::Registry(name) => Ok(Some(Box::new(Registry::open(name, remote)?))),
    }
}

/// One layer, as the manifest and the config describe it.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// Of the blob as it is stored; `None` where the source knows only what it unpacks to (`docker-archive:`).
    pub(crate) digest: Option<Digest>,
    /// Bytes of the blob as it is stored.
    pub(crate) size: u64,
    pub(crate) compression: Compression,
    pub(crate) diff_id: Digest,
}

impl Layer {
    /// What to call it: its blob's digest, else its DiffID.
    pub(crate) fn name(&self) -> &Digest {
        self.digest.as_ref().unwrap_or(&self.diff_id)
    }
}

/// A manifest with its config, verified.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    /// The document itself.
    pub(crate) bytes: Vec<u8>,
    pub(crate) config_digest: Digest,
    /// The config itself.
    pub(crate) config_bytes: Vec<u8>,
    /// Lowest first.
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: ImageConfig,
}

/// An error unless the digests are the same.
pub(crate) fn check_digest(digest: &Digest, actual: Digest) -> Result<(), SourceError> {
    if *digest == actual { Ok(()) } else { Err(SourceError::Corrupt { digest: digest.clone(), actual }) }
}
