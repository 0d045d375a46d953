//! The image of a base's layers and one that was kept: its config and manifest, and its way into the store.
//!
//! The layer goes the way of every other one: [`Source`] gives the file, and the store locks, unpacks, verifies and
//! publishes. Invariant: what is written is made of the base's documents, which were verified, and of words of the user.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::change::{Change, apply};
use super::upper::KeptLayer;
use crate::digest::{Digest, Hasher};
use crate::limits::Limits;
use crate::printable::printable;
use crate::reference::Name;
use crate::source::document::{OCI_MANIFEST, parse, parse_digest, read_config};
use crate::source::{Layer, Machine, Manifest, Source, SourceError};
use crate::store::{Fetch, ImageError, Store};
use crate::stream::Compression;

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// An image to be made.
#[derive(Debug)]
pub struct Commit<'c> {
    /// Digest of the manifest of the image that the job ran.
    pub base: &'c str,
    /// What the job wrote.
    pub layer: &'c KeptLayer,
    /// The file it is in.
    pub file: &'c Path,
    /// What the image is to be called.
    pub name: &'c Name,
    /// RFC 3339.
    pub created: &'c str,
    /// The job's command.
    pub created_by: &'c str,
    /// For the history.
    pub message: Option<&'c str>,
    /// For config and history.
    pub author: Option<&'c str>,
    /// What differs from the base.
    pub changes: &'c [Change],
}

impl Store {
    /// Makes an image of what a job wrote on top of the image it ran; gives its digest.
    ///
    /// # Errors
    /// [`ImageError`]; nothing has the name then, or what had it before.
    pub fn commit(&self, commit: &Commit<'_>, fetch: &mut Fetch<'_>) -> Result<String, ImageError> {
        // How far it expands says nothing: agentd itself compressed it, and a file of zeros compresses well.
        let limits = Limits { ratio: u64::MAX, ..*fetch.limits };
        let mut fetch = Fetch {
            pull: fetch.pull,
            limits: &limits,
            registries: fetch.registries,
            tell: &mut *fetch.tell,
            stop: fetch.stop,
        };
        let base = Base::read(self, commit.base)?;
        let diff_id = digest("the kept layer", &commit.layer.diff_id)?;
        let source = Committed { base, commit, diff_id };
        let manifest = source.manifest(&limits)?;
        let image = self.provide(&commit.name.to_string(), &source, manifest, &mut fetch)?;
        Ok(image.manifest_digest)
    }
}

fn digest(object: &str, text: &str) -> Result<Digest, SourceError> {
    text.parse().map_err(|source| SourceError::Digest { object: object.to_owned(), source })
}

fn digest_of(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    hasher.finish()
}

/// The documents of the image that the job ran.
#[derive(Debug)]
struct Base {
    /// `None`: its source had none (`docker-archive:`).
    manifest: Option<oci_spec::image::ImageManifest>,
    config: Vec<u8>,
}

impl Base {
    fn read(store: &Store, text: &str) -> Result<Base, ImageError> {
        let first = digest("the job's plan", text)?;
        let gone = || ImageError::NotHere(printable(text.as_bytes()));
        let bytes = store.document(&first)?.ok_or_else(gone)?;
        let document: Value = parse("the base image", &bytes)?;
        if document.get("rootfs").is_some() {
            return Ok(Base { manifest: None, config: bytes });
        }
        let manifest: oci_spec::image::ImageManifest = parse("the base image's manifest", &bytes)?;
        let config_digest = parse_digest(manifest.config(), "the base image's manifest")?;
        let config = store.document(&config_digest)?.ok_or_else(gone)?;
        Ok(Base { manifest: Some(manifest), config })
    }
}

struct Committed<'c> {
    base: Base,
    commit: &'c Commit<'c>,
    diff_id: Digest,
}

impl Committed<'_> {
    fn config(&self) -> Result<Vec<u8>, SourceError> {
        let Commit { created, created_by, message, author, changes, .. } = self.commit;
        let mut whole: Map<String, Value> = parse("the base image's config", &self.base.config)?;
        // Of the base's own build, as docker wrote them.
        for old in ["container", "container_config", "id", "parent"] {
            whole.remove(old);
        }
        let mut entry = json!({ "created": created, "created_by": created_by });
        whole.insert("created".into(), json!(created));
        if let Some(author) = author {
            whole.insert("author".into(), json!(author));
            entry["author"] = json!(author);
        }
        if let Some(message) = message {
            entry["comment"] = json!(message);
        }
        push(&mut whole, "history", entry);
        let rootfs = whole.entry("rootfs").or_insert_with(|| json!({}));
        if let Some(rootfs) = rootfs.as_object_mut() {
            push(rootfs, "diff_ids", json!(self.diff_id.to_string()));
        }
        let config = whole.entry("config").or_insert_with(|| json!({}));
        if config.is_null() {
            *config = json!({});
        }
        if let Some(config) = config.as_object_mut() {
            apply(changes, config);
        }
        serde_json::to_vec(&whole).map_err(|error| written(&error))
    }

    fn layer_of_base(&self, number: usize, diff_id: Digest) -> Result<Layer, SourceError> {
        let descriptor = self.base.manifest.as_ref().and_then(|manifest| manifest.layers().get(number));
        // It is there, or the commit fails: how it was stored does not matter.
        let digest = descriptor.map(|layer| parse_digest(layer, "the base image's manifest")).transpose()?;
        let size = descriptor.map_or(0, oci_spec::image::Descriptor::size);
        Ok(Layer { digest, size, compression: Compression::None, diff_id })
    }
}

/// Adds to the array at `key`, which is made where there is none.
fn push(object: &mut Map<String, Value>, key: &str, value: Value) {
    match object.get_mut(key).and_then(Value::as_array_mut) {
        Some(list) => list.push(value),
        None => _ = object.insert(key.to_owned(), json!([value])),
    }
}

fn written(error: &serde_json::Error) -> SourceError {
    SourceError::Malformed { object: "the image's config".into(), reason: error.to_string() }
}

impl Source for Committed<'_> {
    fn manifest(&self, limits: &Limits) -> Result<Manifest, SourceError> {
        let KeptLayer { digest: blob, size, .. } = self.commit.layer;
        let config_bytes = self.config()?;
        let object = || "the committed image's config".to_owned();
        SourceError::limit("document-bytes", config_bytes.len() as u64, limits.document_bytes, object)?;
        let config_digest = digest_of(&config_bytes);
        let (config, mut diff_ids) = read_config(&config_digest, &config_bytes, &Machine::this())?;
        SourceError::limit("layers", diff_ids.len() as u64, limits.layers, object)?;
        // The last one is ours.
        let own = diff_ids.pop().map(|diff_id| {
            let digest = Some(digest("the kept layer", blob)?);
            Ok(Layer { digest, size: *size, compression: Compression::Zstd, diff_id })
        });
        let below = diff_ids.into_iter().enumerate().map(|(number, diff_id)| self.layer_of_base(number, diff_id));
        let layers = below.chain(own).collect::<Result<_, SourceError>>()?;
        let bytes = match &self.base.manifest {
            None => Vec::new(),
            Some(base) => {
                let mut layers: Vec<Value> = base.layers().iter().map(in_oci_words).collect();
                layers.push(json!({ "mediaType": format!("{OCI_LAYER}+zstd"), "digest": blob, "size": size }));
                let manifest = json!({
                    "schemaVersion": 2,
                    "mediaType": OCI_MANIFEST,
                    "config": {
                        "mediaType": OCI_CONFIG,
                        "digest": config_digest.to_string(),
                        "size": config_bytes.len(),
                    },
                    "layers": layers,
                });
                serde_json::to_vec(&manifest).map_err(|error| written(&error))?
            }
        };
        let digest = if bytes.is_empty() { config_digest.clone() } else { digest_of(&bytes) };
        Ok(Manifest { digest, bytes, config_digest, config_bytes, layers, config })
    }

    fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        if layer.diff_id != self.diff_id {
            return Err(SourceError::NoBlob { digest: layer.name().clone(), place: "store any more".into() });
        }
        let path: PathBuf = self.commit.file.to_owned();
        let open = || -> io::Result<(File, u64)> {
            let file = File::open(&path)?;
            let size = file.metadata()?.len();
            Ok((file, size))
        };
        let failed = |source| SourceError::Io { object: printable(path.as_os_str().as_encoded_bytes()), source };
        let (file, actual) = open().map_err(failed)?;
        if actual != layer.size {
            return Err(SourceError::Size { digest: layer.name().clone(), actual, expected: layer.size });
        }
        Ok(Box::new(file))
    }
}

/// A layer's descriptor in an OCI manifest: docker's media types do not belong there.
fn in_oci_words(layer: &oci_spec::image::Descriptor) -> Value {
    let media_type = layer.media_type().to_string();
    let media_type = match media_type.strip_prefix(DOCKER_LAYER) {
        Some(".gzip") => format!("{OCI_LAYER}+gzip"),
        Some(".zstd") => format!("{OCI_LAYER}+zstd"),
        Some("") => OCI_LAYER.to_owned(),
        _ => media_type,
    };
    json!({ "mediaType": media_type, "digest": layer.digest().to_string(), "size": layer.size() })
}
