//! Documents of every kind, good and bad, without a place they come from.

use std::cell::RefCell;
use std::collections::HashMap;

use serde_json::{Value, json};

use super::*;
use crate::stream::tests::sha256;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Blobs by digest, and what was asked for.
#[derive(Default)]
struct Blobs {
    blobs: HashMap<Digest, Vec<u8>>,
    asked: RefCell<Vec<(Kind, Digest)>>,
}

fn sha512(bytes: &[u8]) -> Digest {
    let mut hasher = format!("sha512:{}", "0".repeat(128)).parse::<Digest>().unwrap().hasher();
    hasher.update(bytes);
    hasher.finish()
}

fn this_machine() -> String {
    if cfg!(target_arch = "x86_64") { "amd64".into() } else { "arm64".into() }
}

impl Blobs {
    fn add(&mut self, media_type: &str, document: &Value) -> Value {
        self.add_as(sha256, media_type, document)
    }

    fn add_as(&mut self, hash: fn(&[u8]) -> Digest, media_type: &str, document: &Value) -> Value {
        let bytes = document.to_string().into_bytes();
        let digest = hash(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()});
        self.blobs.insert(digest, bytes);
        descriptor
    }

    fn config(&mut self, edit: impl FnOnce(&mut Value)) -> Value {
        let mut config = json!({
            "architecture": this_machine(), "os": "linux", "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(b"tar").to_string()]},
        });
        edit(&mut config);
        self.add(CONFIG, &config)
    }

    /// A manifest of one layer.
    fn image(&mut self, config: Value, edit: impl FnOnce(&mut Value)) -> Value {
        let layer = json!({"mediaType": LAYER, "digest": sha256(b"tar").to_string(), "size": 3});
        let mut manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]});
        edit(&mut manifest);
        self.add(OCI_MANIFEST, &manifest)
    }

    fn resolve(&self, descriptor: &Value) -> Result<Manifest, SourceError> {
        let descriptor: Descriptor = serde_json::from_value(descriptor.clone()).unwrap();
        self.follow(Pointer::from_descriptor(&descriptor, "index.json")?)
    }

    fn follow(&self, first: Pointer) -> Result<Manifest, SourceError> {
        let fetch = |kind: Kind, digest: &Digest, _: Option<u64>| {
            self.asked.borrow_mut().push((kind, digest.clone()));
            let place = "place".to_owned();
            self.blobs.get(digest).cloned().ok_or_else(|| SourceError::NoBlob { digest: digest.clone(), place })
        };
        resolve(first, &fetch, &Limits { document_bytes: 4096, ..Limits::default() })
    }

    #[track_caller]
    fn refuses(&self, descriptor: &Value, want: &str) {
        let text = self.resolve(descriptor).map(|m| m.digest).unwrap_err().to_string();
        assert!(text.contains(want), "{text}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}

#[test]
fn a_first_pointer_without_a_type_or_size_is_enough() {
    let mut blobs = Blobs::default();
    let config = blobs.config(|_| {});
    for (media_type, document_type) in [
        (None, Some(OCI_MANIFEST)),
        (None, Some(DOCKER)),
        (None, None),
        (Some(DOCKER), None),
        (Some(OCI_MANIFEST), Some(OCI_MANIFEST)),
    ] {
        let manifest = blobs.image(config.clone(), |m| m["mediaType"] = json!(document_type));
        let digest: Digest = manifest["digest"].as_str().unwrap().parse().unwrap();
        let found = blobs.follow(Pointer::new(digest.clone(), None, media_type.map(str::to_owned))).unwrap();
        assert_eq!(found.digest, digest);
        assert_eq!(found.bytes, blobs.blobs[&digest]);
        assert_eq!(found.config_digest.to_string(), config["digest"]);
        assert_eq!(found.config_bytes, blobs.blobs[&found.config_digest]);
        assert_eq!(found.config.cmd, ["sh"]);
        assert_eq!(found.layers[0].digest, Some(sha256(b"tar")));
        let asked = blobs.asked.take();
        assert_eq!(asked, [(Kind::Manifest, digest), (Kind::Config, found.config_digest)]);
    }
}

#[test]
fn indexes_lead_to_this_machines_image_and_its_config_has_the_last_word() {
    let mut blobs = Blobs::default();
    let config = blobs.config(|_| {});
    let other = blobs.config(|c| c["architecture"] = "s390x".into());
    let newer = blobs.config(|c| c["variant"] = "v99".into());
    let image = blobs.image(config, |_| {});
    let other = blobs.image(other, |_| {});
    let newer = blobs.image(newer, |_| {});
    let with = |image: &Value, os: &str, architecture: &str| {
        let mut image = image.clone();
        image["platform"] = json!({"os": os, "architecture": architecture});
        image
    };
    let here = this_machine();
    let attestation = with(&other, "unknown", "unknown");
    let inner = json!({"schemaVersion": 2, "manifests": [attestation, with(&image, "linux", &here)]});
    let inner = blobs.add(OCI_INDEX, &inner);
    let inner = with(&inner, "linux", &here);
    let list =
        json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [with(&other, "linux", "s390x"), inner]});
    let list = blobs.add(DOCKER_LIST, &list);
    assert_eq!(blobs.resolve(&list).unwrap().digest.to_string(), image["digest"]);
    // One manifest of no named platform is this machine's when its config is.
    let index = blobs.add(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": [image]}));
    assert_eq!(blobs.resolve(&index).unwrap().digest.to_string(), image["digest"]);
    let index = blobs.add(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": [other]}));
    blobs.refuses(&index, &format!("not made for linux/{here}; it is made for linux/s390x"));
    // An index that says what the config denies.
    let index = blobs.add(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": [with(&other, "linux", &here)]}));
    blobs.refuses(&index, "it is made for linux/s390x");
    blobs.refuses(&newer, &format!("it is made for linux/{here}/v99"));
    let empty = blobs.add(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": []}));
    blobs.refuses(&empty, "it is made for no platform that is named");
}

#[test]
fn what_is_no_image_is_refused_in_words() {
    let mut blobs = Blobs::default();
    let config = blobs.config(|_| {});
    let mut edited = |edit: fn(&mut Value)| blobs.image(config.clone(), edit);
    let both = edited(|m| m["manifests"] = json!([]));
    let neither = edited(|m| *m = json!({"schemaVersion": 2}));
    let schema_1 = edited(|m| *m = json!({"schemaVersion": 1, "fsLayers": [], "history": [], "signatures": []}));
    let text = edited(|m| *m = json!("text"));
    let old_field = edited(|m| m["fsLayers"] = json!([]));
    let artifact = edited(|m| {
        m["artifactType"] = "application/x".into();
        m["config"]["mediaType"] = "application/vnd.oci.empty.v1+json".into();
    });
    let own_type = edited(|m| m["mediaType"] = OCI_INDEX.into());
    let two_layers = edited(|m| m["layers"] = json!([m["layers"][0], m["layers"][0]]));
    let negative = edited(|m| m["layers"][0]["size"] = json!(-1));
    let foreign = edited(|m| {
        m["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
        m["layers"][0]["urls"] = json!(["https://example.com/layer"]);
    });
    for (descriptor, want) in [
        (both, "is an index and a manifest at once"),
        (neither, "is neither an index nor a manifest"),
        (schema_1, "is Docker's schema 1"),
        (old_field, "is Docker's schema 1"),
        (text, "is malformed"),
        (artifact, "an artifact, not an image"),
        (own_type, "its descriptor says otherwise"),
        (two_layers, "has 1 diff_ids for 2 layers"),
        (negative, "is malformed"),
        (foreign, "its bytes are not part of the image"),
    ] {
        blobs.refuses(&descriptor, want);
    }
    // A document whose shape is not that of its media type, which only the descriptor tells.
    let mut manifest = blobs.image(config.clone(), |m| m["mediaType"] = Value::Null);
    manifest["mediaType"] = OCI_INDEX.into();
    blobs.refuses(&manifest, "is not what its media type says");
    // What cannot be an image is not even fetched.
    blobs.asked.take();
    for media_type in [
        "application/vnd.oci.artifact.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.oci.image.layer.v1.tar",
    ] {
        manifest["mediaType"] = media_type.into();
        assert!(blobs.resolve(&manifest).is_err());
    }
    assert_eq!(blobs.asked.take(), []);
    let mut nested = manifest;
    nested["mediaType"] = OCI_MANIFEST.into();
    for _ in 0..5 {
        nested = blobs.add(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": [nested]}));
    }
    blobs.refuses(&nested, "is nested more than 4 times");
}

#[test]
fn configs_are_of_layers_only() {
    let mut blobs = Blobs::default();
    for (edit, want) in [
        ((|c| c["rootfs"]["type"] = "trees".into()) as fn(&mut Value), "only `layers` is known"),
        (|c| c["rootfs"] = Value::Null, "is malformed"),
        (|c| c["rootfs"]["diff_ids"] = json!(["sha256:x"]), "names a blob wrongly"),
        (|c| c["rootfs"]["diff_ids"] = json!([]), "has 0 diff_ids for 1 layers"),
        (|c| c["os"] = "windows".into(), "made for windows/"),
        (|c| c["architecture"] = "".into(), "made for linux/"),
    ] {
        let config = blobs.config(edit);
        let image = blobs.image(config, |_| {});
        blobs.refuses(&image, want);
    }
}

#[test]
fn sizes_are_checked_before_digests_and_before_anything_is_fetched() {
    let mut blobs = Blobs::default();
    let config = blobs.config(|_| {});
    let image = blobs.image(config.clone(), |_| {});
    let digest: Digest = image["digest"].as_str().unwrap().parse().unwrap();
    let good = blobs.blobs[&digest].clone();
    for (change, want) in [
        ((|b| b.push(b' ')) as fn(&mut Vec<u8>), "bytes instead of"),
        (|b| b.truncate(10), "it has 10 bytes instead of"),
        (|b| b[0] = b' ', "its bytes hash to sha256:"),
    ] {
        change(blobs.blobs.get_mut(&digest).unwrap());
        blobs.refuses(&image, want);
        blobs.blobs.insert(digest.clone(), good.clone());
    }
    assert!(blobs.resolve(&image).is_ok());
    // A bomb by its own words, and one that does not say so.
    let mut huge = image.clone();
    huge["size"] = json!(1u64 << 40);
    blobs.asked.take();
    blobs.refuses(&huge, &format!("blob {digest}"));
    assert_eq!(blobs.asked.take(), []);
    let long = [b' '; 5000];
    blobs.blobs.insert(sha256(&long), long.to_vec());
    let error = blobs.follow(Pointer::new(sha256(&long), None, None)).unwrap_err();
    assert!(matches!(error, SourceError::Limit { .. }), "{error}");
    // The config is bounded as well.
    let image = blobs.image(config, |m| m["config"]["size"] = json!(4097));
    assert!(matches!(blobs.resolve(&image), Err(SourceError::Limit { .. })));
}

#[test]
fn sha512_is_a_digest_like_any_other() {
    let mut blobs = Blobs::default();
    let config = json!({
        "architecture": this_machine(), "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [sha512(b"tar").to_string()]},
    });
    let config = blobs.add_as(sha512, CONFIG, &config);
    let layer = json!({"mediaType": LAYER, "digest": sha512(b"tar").to_string(), "size": 3});
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = blobs.add_as(sha512, OCI_MANIFEST, &manifest);
    let found = blobs.resolve(&manifest).unwrap();
    assert_eq!(found.layers[0].diff_id, sha512(b"tar"));
    assert_eq!(found.digest.to_string(), manifest["digest"]);
    let digest = found.config_digest;
    blobs.blobs.get_mut(&digest).unwrap()[5] ^= 1;
    blobs.refuses(&manifest, "its bytes hash to sha512:");
}

#[test]
fn a_document_in_its_descriptor_is_verified_like_any_other() {
    let mut blobs = Blobs::default();
    let config = blobs.config(|_| {});
    let digest: Digest = config["digest"].as_str().unwrap().parse().unwrap();
    let bytes = blobs.blobs.remove(&digest).unwrap();
    let image = |blobs: &mut Blobs, data: &str| blobs.image(config.clone(), |m| m["config"]["data"] = data.into());
    let good = image(&mut blobs, &STANDARD.encode(&bytes));
    assert_eq!(blobs.resolve(&good).unwrap().config_bytes, bytes);
    assert_eq!(blobs.asked.take().len(), 1);
    let mut other = bytes.clone();
    other[3] ^= 1;
    for (data, want) in [
        (STANDARD.encode(&other), "its bytes hash to"),
        (STANDARD.encode(&bytes[1..]), "bytes instead of"),
        (String::new(), "it has 0 bytes instead of"),
        ("%".into(), "`data` of the descriptor of sha256:"),
    ] {
        let bad = image(&mut blobs, &data);
        blobs.refuses(&bad, want);
    }
}
