//! The client against a server that does everything a registry should and should not do.

mod auth;
mod blobs;
mod documents;
mod mirrors;
mod server;

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::reference::ImageRef;
use crate::store::{Fetch, ImageError, Places, Pull, Store};
use crate::stream::Compression;
use crate::stream::tests::{gzip, sha256};
use crate::told::message;
use server::{Asked, Reply, Server, Then, reply};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image as a registry holds it.
#[derive(Clone, Debug)]
struct Image {
    layer: Arc<Vec<u8>>,
    config: String,
    manifest: String,
}

impl Image {
    /// With one layer of at least `bytes` bytes.
    fn new(bytes: usize) -> Image {
        // Does not get smaller: every byte counts where a transfer is cut.
        let mut state = 1u32;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        });
        let layer = gzip(&noise.take(bytes).collect::<Vec<_>>());
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": { "Cmd": ["true"] },
            "rootfs": { "type": "layers", "diff_ids": [sha256(b"not looked at here").to_string()] },
        });
        let config = config.to_string();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": sha256(config.as_bytes()).to_string(), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": sha256(&layer).to_string(), "size": layer.len(),
            }],
        });
        Image { layer: Arc::new(layer), config, manifest: manifest.to_string() }
    }

    /// With these uncompressed layers instead.
    fn with_layers(mut self, archives: &[Vec<u8>]) -> Image {
        let digests: Vec<String> = archives.iter().map(|archive| sha256(archive).to_string()).collect();
        let mut config: serde_json::Value = serde_json::from_str(&self.config).unwrap();
        config["rootfs"]["diff_ids"] = json!(digests);
        self.config = config.to_string();
        let layers = std::iter::zip(archives, &digests).map(|(archive, digest)| {
            json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": archive.len() })
        });
        let mut manifest: serde_json::Value = serde_json::from_str(&self.manifest).unwrap();
        manifest["layers"] = json!(layers.collect::<Vec<_>>());
        manifest["config"]["digest"] = json!(sha256(self.config.as_bytes()).to_string());
        manifest["config"]["size"] = json!(self.config.len());
        self.manifest = manifest.to_string();
        self
    }

    /// The answer of a registry that is as it should be, to a request for `a/b`.
    fn answer(&self, asked: &Asked) -> Reply {
        let digest = |bytes: &[u8]| sha256(bytes).to_string();
        let is = |kind: &str, name: &str| asked.target == format!("/v2/a/b/{kind}/{name}");
        let manifest = &self.manifest;
        if is("manifests", "tag") || is("manifests", &digest(manifest.as_bytes())) {
            let answer = reply(200, manifest).header("content-type", format!("{MANIFEST}; charset=utf-8"));
            return answer.header("docker-content-digest", digest(manifest.as_bytes()));
        }
        if is("blobs", &digest(self.config.as_bytes())) {
            return reply(200, &self.config);
        }
        if is("blobs", &digest(&self.layer)) {
            return self.part(asked.from());
        }
        reply(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#)
    }

    fn part(&self, from: usize) -> Reply {
        let length = self.layer.len();
        match from {
            0 => reply(200, &*self.layer),
            from if from < length => {
                reply(206, &self.layer[from..]).header("content-range", format!("bytes {from}-{}/{length}", length - 1))
            }
            _ => reply(416, ""),
        }
    }

    fn is_layer(&self, asked: &Asked) -> bool {
        asked.target.ends_with(&sha256(&self.layer).to_string())
    }

    fn serve(self) -> Server {
        Server::start(move |asked| self.answer(asked))
    }
}

/// Nothing is waited for before the next try. The other times are the usual ones: a machine that is busy is no server that
/// is silent, and a test of one sets the time that it waits for.
fn quick() -> Patience {
    Patience { first: Duration::from_millis(1), ..Patience::default() }
}

fn kept_nowhere(_digest: &Digest) -> Option<File> {
    None
}

static GO_ON: AtomicBool = AtomicBool::new(false);

/// Opens `name` and does `work` with it.
fn with<T>(name: &str, config: &RegistryConfig, work: impl FnOnce(&Registry<'_>) -> T) -> Result<T, RegistryError> {
    with_patience(quick(), name, config, work)
}

fn with_patience<T>(
    patience: Patience,
    name: &str,
    config: &RegistryConfig,
    work: impl FnOnce(&Registry<'_>) -> T,
) -> Result<T, RegistryError> {
    let remote = Remote { config, partial: &kept_nowhere, stop: &GO_ON };
    Registry::with_patience(&name.parse().unwrap(), &remote, patience).map(|registry| work(&registry))
}

/// The manifest of `a/b:tag` at `server`.
fn manifest(server: &Server, config: &RegistryConfig) -> Result<Manifest, SourceError> {
    manifest_within(quick(), server, config)
}

fn manifest_within(patience: Patience, server: &Server, config: &RegistryConfig) -> Result<Manifest, SourceError> {
    let name = format!("{}/a/b:tag", server.host());
    with_patience(patience, &name, config, |registry| registry.manifest(&Limits::default()))?
}

/// Pulls `a/b:tag` from `server` into a fresh store: how many layers are there then.
fn pull(server: &Server, config: &RegistryConfig) -> Result<usize, ImageError> {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Places { own: vec![dir.path().join("store")], extra: Vec::new() }).unwrap();
    let reference: ImageRef = format!("docker://{}/a/b:tag", server.host()).parse().unwrap();
    let (limits, stop, tell) = (Limits::default(), AtomicBool::new(false), &mut |_| {});
    let mut fetch = Fetch { pull: Pull::Always, limits: &limits, registries: config, tell, stop: &stop };
    Ok(store.image(&reference, &mut fetch)?.layers.len())
}

/// All bytes of the image's layer, read as the pull reads them.
fn layer(registry: &Registry<'_>, image: &Image) -> std::io::Result<Vec<u8>> {
    let layer = Layer {
        digest: Some(sha256(&image.layer)),
        size: image.layer.len() as u64,
        compression: Compression::Gzip,
        diff_id: sha256(b""),
    };
    let mut bytes = Vec::new();
    registry.layer(&layer).unwrap().read_to_end(&mut bytes)?;
    Ok(bytes)
}
