//! From a first descriptor to a manifest and its config, whatever the source: indexes in indexes, the choice of a
//! platform, media types, sizes and digests.
//!
//! Invariant: a document is parsed only after its size and digest were checked, and its size is bounded before it is asked for.

#[cfg(test)]
mod tests;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::limits::Limits;
use crate::printable::printable;
use crate::source::platform::Machine;
use crate::source::{Layer, Manifest, SourceError, check_digest};
use crate::stream::Compression;

/// An index in an index in an index is already more than any tool writes.
const NESTED: usize = 4;
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Which kind of document is asked for: a registry has manifests and configs at different addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A manifest or an index.
    Manifest,
    /// A config.
    Config,
}

/// Where a document is and what it should be.
#[derive(Clone, Debug)]
pub(crate) struct Pointer {
    /// Unknown: the document itself says.
    pub(crate) media_type: Option<String>,
    pub(crate) digest: Digest,
    /// Unknown for what a registry's tag leads to.
    pub(crate) size: Option<u64>,
    /// The document itself in base64, where the descriptor brings it along.
    data: Option<String>,
}

impl Pointer {
    /// To a document whose digest is known.
    pub(crate) fn new(digest: Digest, size: Option<u64>, media_type: Option<String>) -> Pointer {
        Pointer { media_type, digest, size, data: None }
    }

    /// What a descriptor in `object` says.
    pub(crate) fn from_descriptor(descriptor: &Descriptor, object: &str) -> Result<Pointer, SourceError> {
        Ok(Pointer {
            media_type: Some(descriptor.media_type().to_string()),
            digest: parse_digest(descriptor, object)?,
            size: Some(descriptor.size()),
            data: descriptor.data().clone(),
        })
    }
}

/// Brings the bytes of a document, no more than [`Limits::document_bytes`] of them; they are verified here.
pub(crate) type Fetch<'f> = &'f dyn Fn(Kind, &Digest, Option<u64>) -> Result<Vec<u8>, SourceError>;

/// Follows `first` to the manifest for this machine and its config.
pub(crate) fn resolve(first: Pointer, fetch: Fetch<'_>, limits: &Limits) -> Result<Manifest, SourceError> {
    let machine = Machine::this();
    let mut pointer = first;
    for _ in 0..NESTED {
        let object = format!("manifest {}", pointer.digest);
        if let Some(media_type) = &pointer.media_type {
            // Before it is fetched: it may be an artifact of any size.
            shape_of(media_type, &object)?;
        }
        let bytes = verified(&pointer, Kind::Manifest, fetch, limits)?;
        match Shape::sniff(&bytes, pointer.media_type.as_deref(), &object)? {
            Shape::Manifest => return read_manifest(pointer.digest, bytes, fetch, &machine, limits),
            Shape::Index => {
                let index: ImageIndex = parse(&object, &bytes)?;
                let chosen = machine.choose(&index.manifests().iter().collect::<Vec<_>>())?;
                pointer = Pointer::from_descriptor(chosen, &object)?;
            }
        }
    }
    Err(SourceError::Unsupported {
        object: "the image index".into(),
        reason: format!("is nested more than {NESTED} times"),
    })
}

/// Reads a document as `T`.
pub(crate) fn parse<T: DeserializeOwned>(object: &str, bytes: &[u8]) -> Result<T, SourceError> {
    serde_json::from_slice(bytes)
        .map_err(|e| SourceError::Malformed { object: object.to_owned(), reason: printable(e.to_string().as_bytes()) })
}

/// The digest of a descriptor in `object`.
pub(crate) fn parse_digest(descriptor: &Descriptor, object: &str) -> Result<Digest, SourceError> {
    let digest = descriptor.digest().as_ref().parse();
    digest.map_err(|source| SourceError::Digest { object: object.to_owned(), source })
}

fn verified(pointer: &Pointer, kind: Kind, fetch: Fetch<'_>, limits: &Limits) -> Result<Vec<u8>, SourceError> {
    let Pointer { digest, size, data, .. } = pointer;
    let bounded = |size| SourceError::limit("document-bytes", size, limits.document_bytes, || format!("blob {digest}"));
    if let Some(size) = size {
        bounded(*size)?;
    }
    let bytes = match data {
        Some(data) => STANDARD.decode(data).map_err(|e| SourceError::Malformed {
            object: format!("`data` of the descriptor of {digest}"),
            reason: e.to_string(),
        })?,
        None => fetch(kind, digest, *size)?,
    };
    let actual = bytes.len() as u64;
    bounded(actual)?;
    // Before the digest: a truncated download is the common case, and costs no hashing to see.
    if let Some(expected) = *size
        && actual != expected
    {
        return Err(SourceError::Size { digest: digest.clone(), actual, expected });
    }
    let mut hasher = digest.hasher();
    hasher.update(&bytes);
    check_digest(digest, hasher.finish())?;
    Ok(bytes)
}

/// The two kinds of document that lead to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Index,
    Manifest,
}

impl Shape {
    /// What a document is by its fields. Its descriptor's and its own media type must agree with them and with each
    /// other, or different programs would read different images from it (CVE-2021-41190).
    fn sniff(bytes: &[u8], descriptor: Option<&str>, object: &str) -> Result<Shape, SourceError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Fields {
            schema_version: u32,
            media_type: Option<String>,
            manifests: Option<IgnoredAny>,
            config: Option<IgnoredAny>,
            layers: Option<IgnoredAny>,
            fs_layers: Option<IgnoredAny>,
        }
        let fields: Fields = parse(object, bytes)?;
        if fields.schema_version == 1 || fields.fs_layers.is_some() {
            return Err(schema_1(object));
        }
        let own = fields.media_type.as_deref();
        if let (Some(own), Some(descriptor)) = (own, descriptor)
            && own != descriptor
        {
            return Err(SourceError::unsupported(object, "says that it is", own, "its descriptor says otherwise"));
        }
        let refuse = |reason: &str| SourceError::Unsupported { object: object.to_owned(), reason: reason.to_owned() };
        let shape = match (fields.manifests.is_some(), fields.config.is_some() || fields.layers.is_some()) {
            (true, false) => Shape::Index,
            (false, true) => Shape::Manifest,
            (true, true) => return Err(refuse("is an index and a manifest at once")),
            (false, false) => return Err(refuse("is neither an index nor a manifest")),
        };
        match own.or(descriptor).map(|media_type| shape_of(media_type, object)).transpose()? {
            Some(said) if said != shape => Err(refuse("is not what its media type says")),
            _ => Ok(shape),
        }
    }
}

/// What a media type promises.
fn shape_of(media_type: &str, object: &str) -> Result<Shape, SourceError> {
    match media_type {
        OCI_MANIFEST | "application/vnd.docker.distribution.manifest.v2+json" => Ok(Shape::Manifest),
        OCI_INDEX | "application/vnd.docker.distribution.manifest.list.v2+json" => Ok(Shape::Index),
        "application/vnd.docker.distribution.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v1+prettyjws" => Err(schema_1(object)),
        other => Err(SourceError::unsupported(object, "has the media type", other, "not an image manifest")),
    }
}

fn schema_1(object: &str) -> SourceError {
    SourceError::Unsupported {
        object: object.to_owned(),
        reason: "is Docker's schema 1, which names layers by no digest of their content; \
                 have the image built again by a tool of this decade"
            .into(),
    }
}

fn read_manifest(
    digest: Digest,
    bytes: Vec<u8>,
    fetch: Fetch<'_>,
    machine: &Machine,
    limits: &Limits,
) -> Result<Manifest, SourceError> {
    let object = format!("manifest {digest}");
    let manifest: ImageManifest = parse(&object, &bytes)?;
    match manifest.config().media_type().as_ref() {
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" => {}
        other => {
            return Err(SourceError::unsupported(&object, "has a config of type", other, "an artifact, not an image"));
        }
    }
    let count = manifest.layers().len() as u64;
    SourceError::limit("layers", count, limits.layers, || object.clone())?;
    let pointer = Pointer::from_descriptor(manifest.config(), &object)?;
    let config_bytes = verified(&pointer, Kind::Config, fetch, limits)?;
    let config_digest = pointer.digest;
    let (config, diff_ids) = read_config(&config_digest, &config_bytes, machine)?;
    same_count(&config_digest, diff_ids.len(), manifest.layers().len())?;
    let layers = manifest.layers().iter().zip(diff_ids).map(|(layer, diff_id)| {
        let digest = parse_digest(layer, &object)?;
        let compression = compression(layer.media_type(), &digest)?;
        Ok(Layer { size: layer.size(), digest: Some(digest), compression, diff_id })
    });
    let layers = layers.collect::<Result<_, SourceError>>()?;
    Ok(Manifest { digest, bytes, config_digest, config_bytes, layers, config })
}

/// Refuses a config that is of other layers, or of none.
pub(crate) fn same_count(config: &Digest, diff_ids: usize, layers: usize) -> Result<(), SourceError> {
    let reason = match (diff_ids, layers) {
        (0, 0) => "has no layers".into(),
        (ids, layers) if ids == layers => return Ok(()),
        (ids, layers) => format!("has {ids} diff_ids for {layers} layers"),
    };
    Err(SourceError::Unsupported { object: format!("config {config}"), reason })
}

/// What a config says about running the image, and the DiffIDs of its layers, lowest first.
pub(crate) fn read_config(
    digest: &Digest,
    bytes: &[u8],
    machine: &Machine,
) -> Result<(ImageConfig, Vec<Digest>), SourceError> {
    let object = format!("config {digest}");
    let config: ImageConfiguration = parse(&object, bytes)?;
    let refuse = |reason: String| SourceError::Unsupported { object: object.clone(), reason };
    if config.rootfs().typ() != "layers" {
        let known = "only `layers` is known";
        return Err(SourceError::unsupported(&object, "has a rootfs of type", config.rootfs().typ(), known));
    }
    machine.check(&config.os().to_string(), &config.architecture().to_string(), config.variant().as_deref())?;
    let parse =
        |diff_id: &String| diff_id.parse().map_err(|source| SourceError::Digest { object: object.clone(), source });
    let diff_ids = config.rootfs().diff_ids().iter().map(parse).collect::<Result<_, _>>()?;
    let config = ImageConfig::from_oci(&config).map_err(|field| refuse(format!("has a NUL in {field}")))?;
    Ok((config, diff_ids))
}

fn compression(media_type: &MediaType, digest: &Digest) -> Result<Compression, SourceError> {
    match media_type.as_ref() {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Ok(Compression::None)
        }
        "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            Ok(Compression::Gzip)
        }
        "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            Ok(Compression::Zstd)
        }
        other => {
            let why = if other.contains("nondistributable") || other.contains("foreign") {
                "its bytes are not part of the image"
            } else if other.contains("encrypted") {
                "encrypted layers cannot be read"
            } else {
                "not a layer that can be unpacked"
            };
            Err(SourceError::unsupported(&format!("layer {digest}"), "has the media type", other, why))
        }
    }
}
