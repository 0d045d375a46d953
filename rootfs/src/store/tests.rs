//! Whole image layouts, good and bad, through the store.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::Mode;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::lock::Lock;
use crate::reference::Selector;
use crate::stream::tests::{gzip, sha256};
use crate::told::message;

mod keeping;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A layer as a tar of files.
fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A layout being written, and a store beside it.
struct Place {
    dir: TempDir,
    manifests: Vec<Value>,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("oci/blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let place = Place { dir, manifests: Vec::new() };
        place.write_index();
        place
    }

    fn write_index(&self) {
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        fs::write(self.layout().join("index.json"), index.to_string()).unwrap();
    }

    fn layout(&self) -> PathBuf {
        self.dir.path().join("oci")
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        self.layout().join("blobs").join(digest.replace(':', "/"))
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = sha256(bytes).to_string();
        fs::write(self.blob_path(&digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Manifest and config for layers, uncompressed ones as given by `(media type, blob, diff id)`.
    fn manifest(&self, layers: &[(&str, &[u8], Digest)], edit: impl FnOnce(&mut Value, &mut Value)) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|l| l.2.to_string()).collect();
        let mut config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let layers: Vec<Value> = layers.iter().map(|(media_type, blob, _)| self.blob(media_type, blob)).collect();
        let mut manifest = json!({"schemaVersion": 2, "layers": layers, "config": {"mediaType": CONFIG}});
        edit(&mut manifest, &mut config);
        let config_type = manifest["config"]["mediaType"].as_str().unwrap().to_owned();
        manifest["config"] = self.blob(&config_type, config.to_string().as_bytes());
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    fn add(&mut self, mut descriptor: Value, tag: Option<&str>) {
        if let Some(tag) = tag {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        }
        self.manifests.push(descriptor);
        self.write_index();
    }

    /// One image of plain layers.
    fn image(layers: &[Vec<u8>]) -> Place {
        let mut place = Place::new();
        let layers: Vec<_> = layers.iter().map(|l| (LAYER, &l[..], sha256(l))).collect();
        let manifest = place.manifest(&layers, |_, _| {});
        place.add(manifest, None);
        place
    }

    fn store(&self) -> Store {
        Store::open(&only(&self.dir.path().join("data/store"))).unwrap()
    }

    fn get(&self, select: &Selector) -> Result<Image, ImageError> {
        self.pull(select, Pull::Missing, &mut |_| {})
    }

    fn pull(&self, select: &Selector, pull: Pull, tell: &mut dyn FnMut(Event)) -> Result<Image, ImageError> {
        pulled(&self.store(), &self.layout(), select, pull, tell)
    }

    #[track_caller]
    fn fails(&self, want: &str) {
        let error = self.get(&Selector::Default).unwrap_err();
        let text = message(&error);
        assert!(text.contains(want), "{text}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
        self.nothing_left();
    }

    fn nothing_left(&self) {
        let tmp = self.dir.path().join("data/store/tmp");
        assert_eq!(fs::read_dir(tmp).unwrap().count(), 0);
    }
}

fn only(store: &Path) -> Places {
    Places { own: vec![store.to_owned()], extra: Vec::new() }
}

fn pulled(
    store: &Store,
    layout: &Path,
    select: &Selector,
    pull: Pull,
    tell: &mut dyn FnMut(Event),
) -> Result<Image, ImageError> {
    let reference = ImageRef::Oci { layout: layout.to_owned(), select: select.clone() };
    let (limits, registries, stop) = (Limits::default(), RegistryConfig::default(), AtomicBool::new(false));
    store.image(&reference, &mut Fetch { pull, limits: &limits, registries: &registries, tell, stop: &stop })
}

fn text(image: &Image, layer: usize, path: &str) -> String {
    fs::read_to_string(image.layers[layer].join(path)).unwrap()
}

#[test]
fn layers_are_unpacked_once_and_shared() {
    let (a, b, c) = (layer(&[("a", "1")]), layer(&[("b", "2"), (".wh.a", "")]), layer(&[("c", "3")]));
    let mut place = Place::new();
    let zstd = zstd::encode_all(&c[..], 3).unwrap();
    let layers: [(&str, &[u8], Digest); 3] =
        [(LAYER, &a, sha256(&a)), (GZIP, &gzip(&b), sha256(&b)), (ZSTD, &zstd, sha256(&c))];
    let manifest = place.manifest(&layers, |_, _| {});
    place.add(manifest.clone(), None);
    let mut events = Vec::new();
    let image = place.pull(&Selector::Default, Pull::Missing, &mut |event| events.push(event)).unwrap();
    assert_eq!(image.manifest_digest, manifest["digest"].as_str().unwrap());
    assert_eq!(image.config.cmd, ["sh"]);
    assert_eq!(
        (text(&image, 0, "a"), text(&image, 1, "b"), text(&image, 2, "c")),
        ("1".into(), "2".into(), "3".into())
    );
    assert!(fs::symlink_metadata(image.layers[1].join("a")).unwrap().file_type().is_char_device());
    assert!(image.layers.iter().all(|path| path.is_absolute()));
    let done = |event: &&Event| matches!(event, Event::Layer(p) if p.done && p.bytes_done == p.bytes_total);
    assert_eq!(events.iter().filter(done).count(), 3);
    assert_eq!(events[0], Event::Begun);
    place.nothing_left();

    // Warm: not even the layer blobs are needed. Another image with the same layer shares it.
    for (_, blob, _) in &layers {
        fs::remove_file(place.blob_path(&sha256(blob).to_string())).unwrap();
    }
    let again = place.pull(&Selector::Default, Pull::Missing, &mut |_| panic!("nothing to do")).unwrap();
    assert_eq!(again.layers, image.layers);

    // Nor what leads to them, when the index names what is known; `always` looks again, and so does who lost it.
    fs::remove_file(place.blob_path(manifest["digest"].as_str().unwrap())).unwrap();
    let again = place.pull(&Selector::Default, Pull::Missing, &mut |_| panic!("nothing to do")).unwrap();
    assert_eq!((again.layers, again.manifest_digest), (image.layers, image.manifest_digest));
    assert_eq!(again.config.cmd, ["sh"]);
    let is_looked_for =
        |found: Result<Image, ImageError>| message(&found.unwrap_err()).contains("is not in the image layout");
    assert!(is_looked_for(place.pull(&Selector::Default, Pull::Always, &mut |_| {})));
    fs::remove_dir_all(place.dir.path().join("data/store/blobs")).unwrap();
    assert!(is_looked_for(place.get(&Selector::Default)));
}

#[test]
fn docker_schema_2_is_read_as_well() {
    let a = layer(&[("a", "1")]);
    let mut place = Place::new();
    let blob = gzip(&a);
    let layers = [("application/vnd.docker.image.rootfs.diff.tar.gzip", &blob[..], sha256(&a))];
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let mut manifest = place.manifest(&layers, |manifest, _| {
        manifest["mediaType"] = docker.into();
        manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
    });
    manifest["mediaType"] = docker.into();
    manifest["platform"] =
        json!({"os": "linux", "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }});
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let list = place
        .blob(list, json!({"schemaVersion": 2, "mediaType": list, "manifests": [manifest]}).to_string().as_bytes());
    place.add(list, None);
    assert_eq!(text(&place.get(&Selector::Default).unwrap(), 0, "a"), "1");
}

#[test]
fn tags_digests_and_the_default() {
    let mut place = Place::new();
    let mut digests = Vec::new();
    for (tag, content) in [("v1", "1"), ("latest", "2"), ("v\u{1b}3", "3")] {
        let l = layer(&[("a", content)]);
        let manifest = place.manifest(&[(LAYER, &l, sha256(&l))], |_, _| {});
        digests.push(manifest["digest"].as_str().unwrap().to_owned());
        place.add(manifest, Some(tag));
    }
    let content = |select: Selector| text(&place.get(&select).unwrap(), 0, "a");
    assert_eq!(content(Selector::Default), "2");
    assert_eq!(content(Selector::Tag("v1".into())), "1");
    assert_eq!(content(Selector::Digest(digests[2].parse().unwrap())), "3");
    for select in [Selector::Tag("no".into()), Selector::Digest(sha256(b"no"))] {
        let error = place.get(&select).unwrap_err();
        assert!(error.to_string().contains("it has v1, latest, v\\u{1b}3"), "{error}");
    }
    place.manifests.remove(1);
    place.write_index();
    place.fails("holds several images; name one as oci:");
    place.manifests.clear();
    place.write_index();
    place.fails("has no image at all; it has none");
}

#[test]
fn the_platform_of_this_machine_is_chosen() {
    let host = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let mut place = Place::new();
    let mut list = Vec::new();
    for (os, architecture, variant) in [
        ("windows", host, None),
        ("linux", "s390x", None),
        ("linux", host, Some("v9")),
        ("linux", host, None),
        ("unknown", "unknown", None),
    ] {
        let l = layer(&[("a", &format!("{os} {architecture} {variant:?}"))]);
        let mut manifest = place.manifest(&[(LAYER, &l, sha256(&l))], |_, _| {});
        manifest["platform"] = json!({"os": os, "architecture": architecture});
        if let Some(variant) = variant {
            manifest["platform"]["variant"] = variant.into();
        }
        list.push(manifest);
    }
    let index =
        |manifests: &[Value]| json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).to_string();
    // Two indexes deep, as some builders nest them.
    let mut inner = place.blob(INDEX, index(&list).as_bytes());
    inner["platform"] = json!({"os": "linux", "architecture": host});
    let outer = place.blob(INDEX, index(&[inner]).as_bytes());
    place.add(outer, Some("x"));
    assert_eq!(text(&place.get(&Selector::Default).unwrap(), 0, "a"), format!("linux {host} None"));
    // The same, listed directly.
    place.manifests = list.clone();
    place.write_index();
    assert_eq!(text(&place.get(&Selector::Default).unwrap(), 0, "a"), format!("linux {host} None"));
    let others = place.blob(INDEX, index(&list[..2]).as_bytes());
    place.manifests = vec![others];
    place.write_index();
    place.fails(&format!("not made for linux/{host}; it is made for windows/{host}, linux/s390x"));
    let mut nested = place.blob(INDEX, index(&list).as_bytes());
    for _ in 0..5 {
        nested["platform"] = json!({"os": "linux", "architecture": host});
        nested = place.blob(INDEX, index(&[nested]).as_bytes());
    }
    place.manifests = vec![nested];
    place.write_index();
    place.fails("nested more than 4 times");
}

#[test]
fn equal_layers_and_an_opaque_root() {
    let (a, b, empty) = (layer(&[("a", "1")]), layer(&[("a", "2")]), layer(&[]));
    let place = Place::image(&[empty.clone(), a.clone(), empty.clone(), b.clone(), empty, a.clone()]);
    let image = place.get(&Selector::Default).unwrap();
    // b, empty, a: overlayfs refuses one directory twice, and the topmost decides.
    assert_eq!(image.layers.len(), 3);
    assert_eq!((text(&image, 0, "a"), text(&image, 2, "a")), ("2".into(), "1".into()));
    let place = Place::image(&[a, layer(&[(".wh..wh..opq", ""), ("b", "2")]), layer(&[("c", "3")])]);
    let image = place.get(&Selector::Default).unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_eq!((text(&image, 0, "b"), text(&image, 1, "c")), ("2".into(), "3".into()));
    assert_eq!(place.get(&Selector::Default).unwrap().layers, image.layers);
}

#[test]
fn what_is_no_layout_says_so() {
    let place = Place::new();
    let store = place.store();
    let get = |path: &Path| pulled(&store, path, &Selector::Default, Pull::Missing, &mut |_| {}).unwrap_err();
    let error = get(&place.dir.path().join("no"));
    assert!(error.to_string().contains("no` does not exist; make one with `skopeo copy"), "{error}");
    let error = get(&place.layout().join("index.json"));
    assert!(error.to_string().contains("is not an OCI image layout"), "{error}");
    let error = get(place.dir.path());
    assert!(error.to_string().contains("it has no `oci-layout` file; make one with `skopeo copy"), "{error}");
    fs::remove_file(place.layout().join("index.json")).unwrap();
    place.fails("it has no `index.json` file");
    for (text, want) in [
        ("{", "malformed"),
        (r#"{"schemaVersion":2,"manifests":"\u001b"}"#, "malformed"),
        (
            &format!("[{}", " ".repeat(5 << 20)),
            "limit on bytes of an index, manifest or config (4194304); --image-limit document-bytes=VALUE",
        ),
    ] {
        fs::write(place.layout().join("index.json"), text).unwrap();
        place.fails(want);
    }
    fs::write(place.layout().join("oci-layout"), r#"{"imageLayoutVersion":"9"}"#).unwrap();
    place.fails("has the version `9`");
    fs::remove_file(place.layout().join("oci-layout")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, place.layout().join("oci-layout"), rustix::fs::FileType::Fifo, Mode::RWXU, 0)
        .unwrap();
    place.fails("oci-layout`: it is not a regular file");
}

#[test]
fn documents_that_do_not_add_up_are_refused() {
    let a = layer(&[("a", "1")]);
    let with = |edit: fn(&mut Value, &mut Value)| {
        let mut place = Place::new();
        let manifest = place.manifest(&[(LAYER, &a, sha256(&a))], edit);
        place.add(manifest, None);
        place
    };
    with(|_, c| c["rootfs"]["type"] = "trees".into()).fails("has a rootfs of type `trees`");
    with(|_, c| c["os"] = "windows".into()).fails("is made for windows/amd64");
    with(|_, c| c["rootfs"]["diff_ids"] = json!([])).fails("has 0 diff_ids for 1 layers");
    with(|_, c| c["rootfs"]["diff_ids"][0] = "md5:1".into()).fails("`md5:1` is not a digest");
    with(|m, c| {
        m["layers"] = json!([]);
        c["rootfs"]["diff_ids"] = json!([]);
    })
    .fails("has no layers");
    with(|m, _| m["layers"] = vec![m["layers"][0].clone(); 501].into()).fails("limit on layers of an image (500)");
    with(|m, _| m["config"]["mediaType"] = "application/vnd.oci.empty.v1+json".into()).fails("an artifact");
    with(|m, _| m["mediaType"] = INDEX.into()).fails("its descriptor says otherwise");
    with(|m, _| m["layers"][0]["digest"] = "sha256:../../../etc/passwd".into()).fails("malformed");
    with(|_, c| c["config"]["User"] = "\0".into()).fails("has a NUL in User");
    for (media_type, why) in [
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "not part of the image"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "not part of the image"),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted layers cannot be read"),
        ("application/x\u{1b}", "`application/x\\u{1b}`: not a layer"),
    ] {
        let mut place = Place::new();
        let manifest = place.manifest(&[(media_type, &a, sha256(&a))], |_, _| {});
        place.add(manifest, None);
        place.fails(why);
    }
    let mut place = Place::new();
    let blob = place.blob("application/vnd.docker.distribution.manifest.v1+prettyjws", b"{}");
    place.add(blob, None);
    place.fails("is Docker's schema 1");
}

#[test]
fn damaged_blobs_are_never_published() {
    let a = layer(&[("a", "1"), ("b", &"2".repeat(3000))]);
    let flip = |bytes: &mut Vec<u8>| bytes[700] ^= 1;
    let change = |which: usize, media_type: &'static str, blob: &[u8], change: fn(&mut Vec<u8>)| {
        let mut place = Place::new();
        let manifest = place.manifest(&[(media_type, blob, sha256(&a))], |_, _| {});
        place.add(manifest.clone(), None);
        let digest = match which {
            0 => sha256(blob).to_string(),
            _ => manifest["digest"].as_str().unwrap().to_owned(),
        };
        let path = place.blob_path(&digest);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        place
    };
    let corrupt = "is corrupt: its bytes hash to sha256:";
    change(0, LAYER, &a, |b| b[700] ^= 1).fails(corrupt);
    // Damage that the archive reader sees first is still called damage.
    change(0, LAYER, &a, |b| b[0] ^= 1).fails(corrupt);
    change(0, GZIP, &gzip(&a), |b| b[12] ^= 1).fails(corrupt);
    change(1, LAYER, &a, |b| b[10] ^= 1).fails(corrupt);
    change(0, LAYER, &a, |b| b.truncate(600)).fails("it has 600 bytes instead of");
    change(1, LAYER, &a, |b| b.push(b' ')).fails("bytes instead of");
    // A right blob with content that the config does not promise.
    let mut other = a.clone();
    flip(&mut other);
    change(0, LAYER, &other, |_| {}).fails("is not what the image's config says");
    change(0, GZIP, &a, |_| {}).fails("cannot be read as gzip");
    let place = change(0, LAYER, &a, |_| {});
    fs::remove_file(place.blob_path(&sha256(&a).to_string())).unwrap();
    place.fails("is not in the image layout");
    // One bad layer leaves nothing of itself, whatever the good ones did.
    let hostile = layer(&[("x", "1"), (".wh.", "")]);
    let place = Place::image(&[a.clone(), hostile]);
    place.fails("cannot unpack `.wh.`: the whiteout names nothing");
    for layer in fs::read_dir(place.dir.path().join("data/store/layers")).unwrap() {
        assert!(layer.unwrap().file_name().to_str().unwrap().contains(sha256(&a).hex()));
    }
}

#[test]
fn leftovers_of_the_dead_are_swept_and_the_living_are_left_alone() {
    let a = layer(&[("a", "1")]);
    let place = Place::image(std::slice::from_ref(&a));
    let store = place.store();
    let tmp = place.dir.path().join("data/store/tmp");
    let dead = tmp.join("sha256-dead-squash");
    fs::create_dir_all(dead.join("fs/closed/x")).unwrap();
    fs::set_permissions(dead.join("fs/closed"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::write(tmp.join("sha256-dead-squash.lock"), "").unwrap();
    // Also of this very layer.
    let own = tmp.join(key_of(&sha256(&a)));
    fs::create_dir_all(own.join("fs/half")).unwrap();
    fs::create_dir_all(tmp.join("sha256-alive-squash/fs")).unwrap();
    let alive = Lock::acquire(store.tmp.as_fd(), "sha256-alive-squash", &mut || {}).unwrap();
    let image = place.get(&Selector::Default).unwrap();
    assert_eq!(fs::read_dir(&image.layers[0]).unwrap().count(), 1);
    let mut left: Vec<_> = fs::read_dir(&tmp).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["sha256-alive-squash", "sha256-alive-squash.lock"]);
    drop(alive);
}

#[test]
fn many_at_once_do_the_work_once() {
    let layers: Vec<_> = (0..6).map(|i| layer(&[("a", &format!("{i}").repeat(50_000))])).collect();
    let mut place = Place::new();
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [5, 3, 4, 0]] {
        let layers: Vec<_> = order.iter().map(|i| (LAYER, &layers[*i][..], sha256(&layers[*i]))).collect();
        let manifest = place.manifest(&layers, |_, _| {});
        place.add(manifest, Some(&format!("{}", order[0])));
    }
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for i in 0..12 {
            let (place, done) = (&place, &done);
            scope.spawn(move || {
                let tag = Selector::Tag(["0", "3", "5"][i % 3].into());
                let mut count = |event: Event| {
                    done.fetch_add(usize::from(matches!(event, Event::Layer(p) if p.done)), Ordering::Relaxed);
                };
                let image = place.pull(&tag, Pull::Missing, &mut count).unwrap();
                assert_eq!(image.layers.len(), 4);
                assert!(image.layers.iter().all(|l| fs::read(l.join("a")).unwrap().len() == 50_000));
            });
        }
    });
    assert_eq!(done.load(Ordering::Relaxed), 6);
    place.nothing_left();
}
