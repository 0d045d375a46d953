//! `docker-archive:`: what `docker save` and `podman save` write: `manifest.json`, a config an image, and layers.
//!
//! Such an archive has no manifest of an image and, but for those of Docker 25 and later, no digests of its layers:
//! what proves a layer is its DiffID. Invariant: a config is believed only when it hashes to the name that it has.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Archive, ArchiveError, Span};
use crate::digest::Digest;
use crate::limits::Limits;
use crate::printable::printable;
use crate::reference::Name;
use crate::source::document::{self, OCI_MANIFEST};
use crate::source::platform::Machine;
use crate::source::{Layer, Manifest, Source, SourceError, check_digest};
use crate::stream::Compression;

/// An opened archive, and which of its images is meant.
pub(crate) struct DockerArchive {
    archive: Archive,
    name: Option<Name>,
    /// Where the layers are, by DiffID; known once the manifest was read.
    layers: OnceLock<BTreeMap<Digest, Span>>,
}

/// One image in `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

impl DockerArchive {
    pub(crate) fn open(file: &Path, name: Option<&Name>) -> Result<DockerArchive, SourceError> {
        Ok(DockerArchive { archive: Archive::open(file)?, name: name.cloned(), layers: OnceLock::new() })
    }

    fn chosen<'e>(&self, entries: &'e [Entry]) -> Result<&'e Entry, SourceError> {
        let available = || {
            let tags = entries.iter().flat_map(|entry| entry.repo_tags.iter().flatten()).take(20);
            let tags: Vec<String> = tags.map(|tag| printable(tag.as_bytes())).collect();
            if tags.is_empty() { "none with a name".into() } else { tags.join(", ") }
        };
        let place = || self.archive.place();
        match (&self.name, entries) {
            (None, [one]) => Ok(one),
            (None, []) => Err(SourceError::NoImage { place: place(), wanted: "at all".into(), available: available() }),
            (None, _) => {
                let how = format!("docker-archive:{}:NAME:TAG", self.archive.shown);
                Err(SourceError::SeveralImages { place: place(), how, available: available() })
            }
            (Some(name), entries) => {
                // docker writes `debian:12`, podman `docker.io/library/debian:12`.
                let is_it = |tag: &String| tag.parse::<Name>().is_ok_and(|tag| tag == *name);
                let mut found = entries.iter().filter(|entry| entry.repo_tags.iter().flatten().any(is_it));
                let wanted = || format!("named `{}`", name.familiar());
                let one = found.next().ok_or_else(|| SourceError::NoImage {
                    place: place(),
                    wanted: wanted(),
                    available: available(),
                })?;
                match found.next() {
                    None => Ok(one),
                    Some(_) => Err(SourceError::Unsupported {
                        object: place(),
                        reason: format!("has two images {}", wanted()),
                    }),
                }
            }
        }
    }

    /// A layer's place, and how it is stored, which nothing in the archive says.
    fn stored(&self, name: &str) -> Result<(Span, Compression), SourceError> {
        let span = self.archive.need(name, "; the archive is not complete")?;
        let mut magic = Vec::new();
        self.archive.reader(span).take(4).read_to_end(&mut magic).map_err(|source| self.archive.io(name, source))?;
        let compression = match magic[..] {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Compression::Zstd,
            _ => Compression::None,
        };
        Ok((span, compression))
    }
}

impl Source for DockerArchive {
    fn manifest(&self, limits: &Limits) -> Result<Manifest, SourceError> {
        let hint = match self.archive.find("index.json") {
            Ok(Some(_)) => "; it is an OCI image layout: use oci-archive:FILE",
            _ => "; make one with `docker save` or `podman save`",
        };
        let span = self.archive.need("manifest.json", hint)?;
        let object = format!("`manifest.json` in the {}", self.archive.place());
        let entries: Vec<Entry> = document::parse(&object, &self.archive.document("manifest.json", span, limits)?)?;
        let entry = self.chosen(&entries)?;
        let names = entry.layers.as_deref().unwrap_or_default();
        SourceError::limit("layers", names.len() as u64, limits.layers, || object)?;

        let config_digest = config_digest(&entry.config).ok_or_else(|| ArchiveError::Member {
            file: self.archive.shown.clone(),
            member: printable(entry.config.as_bytes()),
            reason: "is a config that is not named by its digest",
        })?;
        let span = self.archive.need(&entry.config, "; the archive is not complete")?;
        let config_bytes = self.archive.document(&entry.config, span, limits)?;
        let mut hasher = config_digest.hasher();
        hasher.update(&config_bytes);
        check_digest(&config_digest, hasher.finish())?;
        let (config, diff_ids) = document::read_config(&config_digest, &config_bytes, &Machine::this())?;
        document::same_count(&config_digest, diff_ids.len(), names.len())?;

        let mut layers = Vec::new();
        let mut places = BTreeMap::new();
        for (name, diff_id) in names.iter().zip(diff_ids) {
            let (span, compression) = self.stored(name)?;
            let digest = match compression {
                Compression::None => Some(diff_id.clone()),
                Compression::Gzip | Compression::Zstd => blob_digest(name),
            };
            places.insert(diff_id.clone(), span);
            layers.push(Layer { digest, size: span.size, compression, diff_id });
        }
        let bytes = manifest_of(&config_digest, config_bytes.len(), &layers).to_string().into_bytes();
        let mut hasher = config_digest.hasher();
        hasher.update(&bytes);
        let digest = hasher.finish();
        // The same archive, so the same places.
        self.layers.get_or_init(|| places);
        Ok(Manifest { digest, bytes, config_digest, config_bytes, layers, config })
    }

    fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        match self.layers.get().and_then(|places| places.get(&layer.diff_id)) {
            Some(span) => Ok(Box::new(self.archive.reader(*span))),
            None => Err(SourceError::NoBlob { digest: layer.diff_id.clone(), place: self.archive.place() }),
        }
    }
}

/// The digest that a config has as its name: `HEX.json` of docker and podman, `sha256:HEX` of Google's tools, and
/// `blobs/sha256/HEX` since Docker 25.
fn config_digest(name: &str) -> Option<Digest> {
    let hex = name.strip_suffix(".json").or(name.strip_prefix("sha256:"));
    match hex {
        Some(hex) => format!("sha256:{hex}").parse().ok(),
        None => blob_digest(name),
    }
}

/// The digest that a member has as its name in an image layout.
fn blob_digest(name: &str) -> Option<Digest> {
    let (algorithm, hex) = name.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// The manifest that the image would have in an image layout. A compressed layer whose blob has no known digest is
/// described as what it unpacks to, by its DiffID; only its size is then that of what is stored.
fn manifest_of(config: &Digest, config_bytes: usize, layers: &[Layer]) -> Value {
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| {
            let suffix = match (&layer.digest, layer.compression) {
                (None, _) | (_, Compression::None) => "",
                (Some(_), Compression::Gzip) => "+gzip",
                (Some(_), Compression::Zstd) => "+zstd",
            };
            let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
            json!({"mediaType": media_type, "digest": layer.name().to_string(), "size": layer.size})
        })
        .collect();
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.to_string(),
            "size": config_bytes,
        },
        "layers": layers,
    })
}
