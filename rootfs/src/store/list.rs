//! What is in the store, for people and programs.
//!
//! Invariant: text of an image is handed out as it is; who prints it escapes it.

use std::collections::HashSet;

use oci_spec::image::{ImageConfiguration, ImageManifest};
use serde::Serialize;

use super::names::Named;
use super::{ImageError, Layers, Store, StoreError};
use crate::printable::printable;

/// One name in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The reference it was pulled by, in its canonical form.
    pub reference: String,
    /// Digest of the manifest: the image's identity.
    pub digest: String,
    /// When it was made, as its config says (RFC 3339, unchecked).
    pub created: Option<String>,
    /// When it was pulled: seconds since 1970.
    pub pulled: u64,
    /// Bytes of the files of its layers; layers that are shared count in each image.
    pub size: u64,
    /// How many layers it has.
    pub layers: usize,
    /// Whether all that it needs is there.
    pub complete: bool,
    /// Whether it is in a store of others.
    pub read_only: bool,
}

/// Everything that is known of an image.
#[derive(Clone, Debug, Serialize)]
pub struct Details {
    /// Digest of the manifest.
    pub digest: String,
    /// Digest of the config.
    pub config_digest: String,
    /// References that lead to it.
    pub names: Vec<String>,
    /// When it was made, as its config says.
    pub created: Option<String>,
    /// In Go's words.
    pub architecture: String,
    /// In Go's words.
    pub os: String,
    /// Bytes of the files of its layers.
    pub size: u64,
    /// The config's own `config`: entry point, command, environment, user, directory, volumes, ports, labels, stop signal.
    /// agentd acts on none of the labels.
    pub config: serde_json::Value,
    /// Lowest first.
    pub layers: Vec<LayerDetails>,
}

/// A layer of an image.
#[derive(Clone, Debug, Serialize)]
pub struct LayerDetails {
    /// Of its blob, where the source had blobs.
    pub digest: Option<String>,
    /// Bytes of its blob.
    pub blob_size: Option<u64>,
    /// Of its unpacked archive.
    pub diff_id: String,
    /// Bytes of its files; null where the layer is not in the store any more.
    pub size: Option<u64>,
    /// Device nodes left out: a job has a /dev of its own.
    pub left_out_devices: Option<u64>,
    /// Extended attributes left out: all but the user's own.
    pub left_out_attributes: Option<u64>,
}

impl Store {
    /// Every name, sorted; in the own store first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn images(&self) -> Result<Vec<Listed>, StoreError> {
        let mut listed: Vec<Listed> = Vec::new();
        let mut seen = HashSet::new();
        for (number, root) in self.roots().enumerate() {
            for named in self.names(root)?.whole {
                if seen.insert(named.reference.clone()) {
                    listed.push(self.listed(named, number > 0)?);
                }
            }
        }
        listed.sort_by(|one, other| one.reference.cmp(&other.reference));
        Ok(listed)
    }

    fn listed(&self, named: Named, read_only: bool) -> Result<Listed, StoreError> {
        let config = self.configuration(&named)?;
        let layers = self.layers_of(&named)?;
        let (size, complete) = match &layers {
            Some(layers) => self.measure(layers)?,
            None => (0, false),
        };
        Ok(Listed {
            reference: named.reference,
            digest: named.digest.to_string(),
            created: config.and_then(|config| config.created().clone()),
            pulled: named.pulled,
            size,
            layers: layers.map_or(0, |layers| layers.0.len()),
            complete,
            read_only,
        })
    }

    /// Bytes of the files of all layers, equal ones counted once, and whether all are there.
    fn measure(&self, layers: &Layers) -> Result<(u64, bool), StoreError> {
        let (mut size, mut complete) = (0u64, true);
        for diff_id in layers.0.iter().collect::<HashSet<_>>() {
            match self.find(diff_id)? {
                Some((_, facts)) => size = size.saturating_add(facts.bytes),
                None => complete = false,
            }
        }
        Ok((size, complete))
    }

    fn configuration(&self, named: &Named) -> Result<Option<ImageConfiguration>, StoreError> {
        let bytes = self.document(&named.config)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Whether an image is called `reference`, in its canonical form.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn knows(&self, reference: &str) -> Result<bool, StoreError> {
        Ok(self.named(reference)?.is_some())
    }

    /// The references that `text` names: one, by itself (`reference` is its canonical form), or those of the image whose
    /// digest begins so.
    ///
    /// # Errors
    /// [`ImageError::Unknown`], [`ImageError::Ambiguous`].
    pub fn resolve(&self, text: &str, reference: Option<&str>) -> Result<Vec<Listed>, ImageError> {
        let images = self.images()?;
        let exact: Vec<Listed> =
            images.iter().filter(|image| Some(image.reference.as_str()) == reference).cloned().collect();
        if !exact.is_empty() {
            return Ok(exact);
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex = !hex.is_empty() && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let found: Vec<Listed> = images
            .into_iter()
            .filter(|image| is_hex && image.digest.split_once(':').is_some_and(|(_, digits)| digits.starts_with(hex)))
            .collect();
        let digests: HashSet<&str> = found.iter().map(|image| image.digest.as_str()).collect();
        match digests.len() {
            0 => Err(ImageError::Unknown(printable(text.as_bytes()))),
            1 => Ok(found),
            _ => Err(ImageError::Ambiguous(printable(text.as_bytes()))),
        }
    }

    /// Everything that is known of the image that [`Store::resolve`] found.
    ///
    /// # Errors
    /// [`ImageError`]; [`ImageError::NotHere`] where its config is damaged or gone.
    pub fn details(&self, found: &Listed) -> Result<Details, ImageError> {
        let not_here = || ImageError::NotHere(printable(found.reference.as_bytes()));
        let named = self.named(&found.reference)?.ok_or_else(not_here)?;
        let bytes = self.document(&named.config)?.ok_or_else(not_here)?;
        let configuration = self.configuration(&named)?.ok_or_else(not_here)?;
        let layers = self.layers_of(&named)?.ok_or_else(not_here)?;
        let manifest = self.document(&named.digest)?;
        let manifest: Option<ImageManifest> = manifest.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut whole: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let names = self.images()?.into_iter().filter(|image| image.digest == found.digest);
        Ok(Details {
            digest: named.digest.to_string(),
            config_digest: named.config.to_string(),
            names: names.map(|image| image.reference).collect(),
            created: configuration.created().clone(),
            architecture: configuration.architecture().to_string(),
            os: configuration.os().to_string(),
            size: self.measure(&layers)?.0,
            config: whole.get_mut("config").map(serde_json::Value::take).unwrap_or_default(),
            layers: self.layer_details(&layers, manifest.as_ref())?,
        })
    }

    fn layer_details(
        &self,
        layers: &Layers,
        manifest: Option<&ImageManifest>,
    ) -> Result<Vec<LayerDetails>, StoreError> {
        let blobs = manifest.map(ImageManifest::layers);
        let details = layers.0.iter().enumerate().map(|(number, diff_id)| {
            let blob = blobs.and_then(|blobs| blobs.get(number));
            let facts = self.find(diff_id)?.map(|(_, facts)| facts);
            Ok(LayerDetails {
                digest: blob.map(|blob| blob.digest().to_string()),
                blob_size: blob.map(oci_spec::image::Descriptor::size),
                diff_id: diff_id.to_string(),
                size: facts.map(|facts| facts.bytes),
                left_out_devices: facts.map(|facts| facts.skipped_devices),
                left_out_attributes: facts.map(|facts| facts.dropped_xattrs),
            })
        });
        details.collect()
    }
}
