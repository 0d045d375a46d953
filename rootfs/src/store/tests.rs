//! Whole image layouts, good and bad, through the store.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::Mode;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::reference::Selector;
use crate::lock::Lock;
use crate::stream::tests::{gzip, sha256};

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
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
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
    place.fails(&format!("not made for linux/{host}; it is made for windows/{host}, linux/s390x"),
    );
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
    assert!(error.to_string().ends_with("no` does not exist"), "{error}");
    let error = get(&place.layout().join("index.json"));
    assert!(error.to_string().contains("is not an OCI image layout"), "{error}");
    let error = get(place.dir.path());
    assert!(error.to_string().contains("it has no `oci-layout` file; make one with `skopeo copy"), "{error}");
    fs::remove_file(place.layout().join("index.json")).unwrap();
    place.fails("it has no `index.json` file");
    for (text, want) in [
        ("{", "malformed"),
        (r#"{"schemaVersion":2,"manifests":"\u001b"}"#, "malformed"),
        (&format!("[{}", " ".repeat(5 << 20)), "limit on bytes of a document (4194304)"),
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
    with(|m, _| m["layers"] = vec![m["layers"][0].clone(); 501].into()).fails("limit on layers (500)");
    with(|m, _| m["config"]["mediaType"] = "application/vnd.oci.empty.v1+json".into())
        .fails("an artifact");
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

#[test]
fn the_store_is_for_its_owner_only() {
    let place = Place::new();
    let path = place.dir.path().join("deep/er/store");
    Store::open(&only(&path)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
    Store::open(&only(&path)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let error = Store::open(&only(&path)).unwrap_err().to_string();
    assert!(error.contains("is open to other users") && error.contains("run `chmod 700 "), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        assert!(Store::open(&only(&path)).unwrap_err().to_string().contains("belongs to another user"));
    }
    let link = place.dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(Store::open(&only(&link)).unwrap_err().to_string().contains("is a symbolic link"));
}

#[test]
fn another_place_is_taken_only_for_a_new_store() {
    let place = Place::new();
    let at = |name: &str| place.dir.path().join(name);
    fs::write(at("file"), "").unwrap();
    let places = Places { own: vec![at("file"), at("spare")], extra: Vec::new() };
    assert!(Store::existing(&places).unwrap().is_none());
    let mut told = Vec::new();
    let store = Store::open(&places).unwrap();
    pulled(&store, &place.layout(), &Selector::Default, Pull::Never, &mut |event| told.push(event)).unwrap_err();
    assert!(matches!(&told[..], [Event::Placed(why)] if why.contains("spare") && why.contains("file")), "{told:?}");
    fs::remove_file(at("file")).unwrap();
    assert_eq!(Store::open(&places).unwrap().path(), at("spare"));
    assert_eq!(Store::existing(&places).unwrap().unwrap().path(), at("spare"));
    fs::write(at("other"), "").unwrap();
    let error = Store::open(&only(&at("other"))).unwrap_err().to_string();
    assert!(error.contains("there is no place") && error.ends_with("on a local disk"), "{error}");
    assert_eq!(fs::read_dir(at("spare/tmp")).unwrap().count(), 0);
}

#[test]
fn a_known_image_needs_its_source_no_more_when_it_is_not_to_be_pulled() {
    let a = layer(&[("a", "1")]);
    let place = Place::image(std::slice::from_ref(&a));
    let never = || place.pull(&Selector::Default, Pull::Never, &mut |_| panic!("nothing to do"));
    let error = never().unwrap_err().to_string();
    assert!(error.contains("is not in the store") && error.contains("`agentd pull oci:"), "{error}");
    let first = place.get(&Selector::Default).unwrap();
    fs::remove_dir_all(place.layout()).unwrap();
    let known = never().unwrap();
    assert_eq!((&known.layers, &known.config), (&first.layers, &first.config));
    assert_eq!(known.manifest_digest, first.manifest_digest);
    drop((first, known));
    // A damaged config is as good as none.
    let blobs = place.dir.path().join("data/store/blobs/sha256");
    for blob in fs::read_dir(blobs).unwrap() {
        fs::write(blob.unwrap().path(), "{}").unwrap();
    }
    never().unwrap_err();
    assert!(!place.store().images().unwrap()[0].complete);
}

#[test]
fn only_what_nothing_needs_is_removed() {
    let layers: Vec<_> = ["1", "2", "3", "4"].map(|text| layer(&[("a", text)])).into();
    let mut place = Place::new();
    for (tag, which) in [("x", [0, 1]), ("y", [0, 2]), ("z", [3, 3])] {
        let layers: Vec<_> = which.iter().map(|i| (LAYER, &layers[*i][..], sha256(&layers[*i]))).collect();
        let manifest = place.manifest(&layers, |_, _| {});
        place.add(manifest, Some(tag));
    }
    let tag = |tag: &str| Selector::Tag(tag.into());
    let reference = |tag: &str| format!("oci:{}:{tag}", place.layout().display());
    let z = place.get(&tag("z")).unwrap();
    let used = InUse { layers: z.layers.iter().cloned().collect(), images: [z.manifest_digest.clone()].into() };
    drop(z);
    drop((place.get(&tag("x")).unwrap(), place.get(&tag("y")).unwrap()));
    let store = place.store();
    let clean = || store.clean(&mut || panic!("nobody holds the store")).unwrap();
    let left = || fs::read_dir(place.dir.path().join("data/store/layers")).unwrap().count();
    assert!(clean().unneeded(&used, false).unwrap().is_empty());
    assert_eq!(left(), 4);
    // x's own layer goes, the one it shares with y stays.
    let cleaning = clean();
    let rubbish = cleaning.only_for(&[reference("x")], &used).unwrap();
    assert_eq!(rubbish.layers, [(sha256(&layers[1]).to_string(), 1)]);
    assert_eq!(rubbish.documents.len(), 2);
    cleaning.remove(&rubbish).unwrap();
    assert_eq!(left(), 3);
    // A name that leads elsewhere now leaves documents and layers behind.
    let cleaning = clean();
    let rubbish = cleaning.unneeded(&used, true).unwrap();
    assert_eq!(rubbish.names, [reference("y")]);
    cleaning.remove(&rubbish).unwrap();
    assert_eq!(store.images().unwrap().len(), 1);
    // A job keeps the layers of an image that has lost its name.
    let cleaning = clean();
    let rubbish = cleaning.only_for(&[reference("z")], &used).unwrap();
    assert!(rubbish.layers.is_empty());
    cleaning.remove(&rubbish).unwrap();
    assert_eq!(left(), 1);
    let cleaning = clean();
    let rubbish = cleaning.unneeded(&InUse::default(), false).unwrap();
    assert_eq!(rubbish.bytes(), 1);
    cleaning.remove(&rubbish).unwrap();
    assert_eq!(left(), 0);
    place.nothing_left();
}

#[test]
fn whoever_holds_an_image_is_waited_for() {
    let a = layer(&[("a", "1")]);
    let place = Place::image(std::slice::from_ref(&a));
    let image = place.get(&Selector::Default).unwrap();
    let store = place.store();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let cleaning = scope.spawn(|| {
            let cleaning = store.clean(&mut || sender.send(()).unwrap()).unwrap();
            let rubbish = cleaning.unneeded(&InUse::default(), true).unwrap();
            cleaning.remove(&rubbish).unwrap();
        });
        receiver.recv().unwrap();
        assert_eq!(text(&image, 0, "a"), "1");
        drop(image);
        cleaning.join().unwrap();
    });
    assert_eq!(fs::read_dir(place.dir.path().join("data/store/layers")).unwrap().count(), 0);
}

#[test]
fn a_layer_without_its_attributes_is_none() {
    let a = layer(&[("a", "1")]);
    let place = Place::image(std::slice::from_ref(&a));
    let image = place.get(&Selector::Default).unwrap();
    rustix::fs::removexattr(image.layers[0].parent().unwrap(), FACTS).unwrap();
    place.fails("has lost its attributes");
}

#[test]
fn stores_of_others_are_read_and_not_written() {
    let a = layer(&[("a", "1")]);
    let place = Place::image(&[a.clone(), layer(&[("b", "2")])]);
    drop(place.get(&Selector::Default).unwrap());
    let shared = place.dir.path().join("data/store");
    let places = Places { own: vec![place.dir.path().join("own")], extra: vec![shared.clone()] };
    let before = fs::read_dir(shared.join("layers")).unwrap().count();
    let store = Store::open(&places).unwrap();
    let image = pulled(&store, &place.layout(), &Selector::Default, Pull::Never, &mut |_| {}).unwrap();
    assert!(image.layers.iter().all(|path| path.starts_with(&shared)));
    assert!(store.images().unwrap()[0].read_only);
    drop(image);
    let cleaning = store.clean(&mut || {}).unwrap();
    let rubbish = cleaning.unneeded(&InUse::default(), true).unwrap();
    assert!(rubbish.is_empty(), "{rubbish:?}");
    cleaning.remove(&rubbish).unwrap();
    assert_eq!(fs::read_dir(shared.join("layers")).unwrap().count(), before);
    // A layer that is only there is found for another image too.
    let other = Place::image(std::slice::from_ref(&a));
    let image = pulled(&store, &other.layout(), &Selector::Default, Pull::Missing, &mut |_| panic!("nothing")).unwrap();
    assert!(image.layers[0].starts_with(&shared));
    drop(image);
    let refused = |want: &str| {
        let error = Store::open(&places).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    };
    for part in ["", "layers", "images"] {
        let path = shared.join(part);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o775)).unwrap();
        refused("others may write there (mode 775)");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let one = fs::read_dir(shared.join("layers")).unwrap().next().unwrap().unwrap().path();
    fs::set_permissions(&one, fs::Permissions::from_mode(0o777)).unwrap();
    let error = pulled(&store, &place.layout(), &Selector::Default, Pull::Missing, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("others may write there"), "{error}");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&shared, Some(65534), None).unwrap();
        refused("belongs to uid 65534, which is neither root nor you");
    }
    fs::remove_dir_all(&shared).unwrap();
    refused("does not exist");
}

/// The notes of a store, and its one layer's directory.
fn notes(place: &Place) -> (PathBuf, Vec<String>, PathBuf) {
    let store = place.dir.path().join("data/store");
    let names = |path: &Path| fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let layers: Vec<String> = names(&store.join("layers"));
    let notes = store.join("unsynced");
    let found = names(&notes);
    (notes, found, store.join("layers").join(layers.first().map_or("", String::as_str)))
}

#[test]
fn a_layer_noted_before_the_machine_started_is_unpacked_again() {
    let place = Place::image(&[layer(&[("f", "whole")])]);
    place.get(&Selector::Default).unwrap();
    let (directory, names, layer) = notes(&place);
    assert_eq!(names.len(), 1);
    assert!(names[0].starts_with(layer.file_name().unwrap().to_str().unwrap()), "{names:?}");
    // As after a crash that emptied the file: without the note it is believed, with an earlier start's it is not.
    fs::write(layer.join("fs/f"), "").unwrap();
    place.get(&Selector::Default).unwrap();
    assert_eq!(fs::read(layer.join("fs/f")).unwrap(), b"");
    let (before, _boot) = names[0].rsplit_once('.').unwrap();
    fs::rename(directory.join(&names[0]), directory.join(format!("{before}.an-earlier-start"))).unwrap();
    place.get(&Selector::Default).unwrap();
    assert_eq!(fs::read(layer.join("fs/f")).unwrap(), b"whole");
    assert_eq!(notes(&place).1, names);
}

#[test]
fn notes_go_when_they_are_old_and_stay_when_they_are_of_another_machine() {
    let place = Place::image(&[layer(&[("f", "1")])]);
    place.get(&Selector::Default).unwrap();
    let (directory, names, layer) = notes(&place);
    let [key, pid, _machine, boot] = names[0].split('.').collect::<Vec<_>>()[..] else { panic!("{names:?}") };
    let foreign = format!("{key}.{pid}.another-machine.{boot}x");
    fs::write(directory.join(&foreign), "").unwrap();
    place.store();
    assert_eq!(notes(&place).1.len(), 2);
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(90);
    fs::File::options().write(true).open(directory.join(&names[0])).unwrap().set_modified(old).unwrap();
    place.store();
    assert_eq!(notes(&place).1, [foreign]);
    assert!(layer.join("fs/f").metadata().is_ok());
}
