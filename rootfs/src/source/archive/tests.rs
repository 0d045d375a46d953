//! Archives of every known writer's shape, and hostile ones.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::digest::Digest;
use crate::reference::{Name, Selector};
use crate::source::{Manifest, Source};
use crate::stream::Compression;
use crate::stream::tests::{gzip, sha256};
use crate::told::message;

const LAYER: &[u8] = b"the bytes of a layer";

/// One header, with whatever is in it.
fn header(name: &str, flag: u8, size: u64, link: &str) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.as_old_mut().linkflag = [flag];
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn member(name: &str, flag: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, flag, data.len() as u64, "");
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str, data: impl AsRef<[u8]>) -> Vec<u8> {
    member(name, b'0', data.as_ref())
}

fn link(name: &str, flag: u8, to: &str) -> Vec<u8> {
    header(name, flag, 0, to)
}

fn tar(members: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = members.concat();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// A file that goes away with the value.
struct Place(TempDir);

impl Place {
    fn new(bytes: &[u8]) -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        fs::write(place.path(), bytes).unwrap();
        place
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("x.tar")
    }

    fn oci(&self, select: &Selector) -> Result<(Manifest, Vec<u8>), SourceError> {
        let source = OciArchive::open(&self.path(), select)?;
        let manifest = source.manifest(&Limits::default())?;
        let first = first_layer(&source, &manifest);
        Ok((manifest, first))
    }

    fn docker(&self, name: Option<&str>) -> Result<(Manifest, Vec<u8>), SourceError> {
        let name = name.map(|name| name.parse::<Name>().unwrap());
        let source = DockerArchive::open(&self.path(), name.as_ref())?;
        let manifest = source.manifest(&Limits::default())?;
        let first = first_layer(&source, &manifest);
        Ok((manifest, first))
    }
}

fn first_layer(source: &dyn Source, manifest: &Manifest) -> Vec<u8> {
    let mut bytes = Vec::new();
    source.layer(&manifest.layers[0]).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// The whole message with its causes.
#[track_caller]
fn fails<T>(result: Result<T, SourceError>, want: &str) {
    let error = result.map(drop).unwrap_err();
    let text = message(&error);
    assert!(text.contains(want), "{text}");
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let diff_ids: Vec<String> = layers.iter().map(|layer| sha256(layer).to_string()).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    config.to_string().into_bytes()
}

fn blob(bytes: &[u8]) -> Vec<u8> {
    file(&format!("blobs/sha256/{}", sha256(bytes).hex()), bytes)
}

/// The members of an OCI layout of one image, tagged `v1`.
fn oci_members() -> Vec<Vec<u8>> {
    let config = config(&[LAYER]);
    let describe = |media_type: &str, bytes: &[u8]| -> Value {
        json!({"mediaType": media_type, "digest": sha256(bytes).to_string(), "size": bytes.len()})
    };
    let manifest = json!({
        "schemaVersion": 2, "config": describe("application/vnd.oci.image.config.v1+json", &config),
        "layers": [describe("application/vnd.oci.image.layer.v1.tar", LAYER)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut first = describe("application/vnd.oci.image.manifest.v1+json", &manifest);
    first["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    let index = json!({"schemaVersion": 2, "manifests": [first]}).to_string();
    vec![
        header("blobs/", b'5', 0, ""),
        blob(LAYER),
        blob(&config),
        blob(&manifest),
        file("index.json", index),
        file("oci-layout", r#"{"imageLayoutVersion": "1.0.0"}"#),
    ]
}

/// `manifest.json` of images, each with its config's name, tags and layers' names.
fn manifest_json(images: &[(&str, &[&str], &[&str])]) -> Vec<u8> {
    let entry = |(config, tags, layers): &(&str, &[&str], &[&str])| json!({"Config": config, "RepoTags": tags, "Layers": layers});
    file("manifest.json", Value::from(images.iter().map(entry).collect::<Vec<_>>()).to_string())
}

#[test]
fn a_layout_in_a_tar_file_is_read_in_place() {
    let place = Place::new(&tar(&oci_members()));
    for select in [Selector::Default, Selector::Tag("v1".into())] {
        let (manifest, first) = place.oci(&select).unwrap();
        assert_eq!(first, LAYER);
        assert_eq!(manifest.config.cmd, ["sh"]);
    }
    fails(place.oci(&Selector::Tag("v2".into())), "x.tar` has no image tagged `v2`; it has v1");
    // No trailer, and names as `tar -C layout .` writes them.
    let members = oci_members();
    assert_eq!(Place::new(&members.concat()).oci(&Selector::Default).unwrap().1, LAYER);
    let dotted: Vec<Vec<u8>> = members
        .iter()
        .map(|member| {
            let name = String::from_utf8(until_nul(&member[..100]).to_vec()).unwrap();
            let size = unsigned(&member[124..136], "size").unwrap();
            let mut bytes = header(&format!("./{name}"), member[156], size, "");
            bytes.extend_from_slice(&member[512..]);
            bytes
        })
        .collect();
    assert_eq!(Place::new(&tar(&dotted)).oci(&Selector::Default).unwrap().1, LAYER);
}

#[test]
fn blobs_of_a_layout_are_there_whole_or_not_at_all() {
    let without = |which: usize| {
        let mut members = oci_members();
        members.remove(which);
        Place::new(&tar(&members)).oci(&Selector::Default)
    };
    fails(without(2), "is not in the image archive");
    fails(without(4), "has no `index.json`; make one with");
    fails(without(5), "has no `oci-layout`; make one with");
    let with = |which: usize, member: Vec<u8>| {
        let mut members = oci_members();
        members[which] = member;
        Place::new(&tar(&members)).oci(&Selector::Default)
    };
    let other = config(&[b"another layer"]);
    let own = config(&[LAYER]);
    fails(with(2, file(&format!("blobs/sha256/{}", sha256(&own).hex()), &other[1..])), "bytes instead of");
    let mut flipped = own.clone();
    flipped[20] ^= 1;
    fails(with(2, file(&format!("blobs/sha256/{}", sha256(&own).hex()), &flipped)), "its bytes hash to");
    fails(with(5, file("oci-layout", r#"{"imageLayoutVersion": "2"}"#)), "has the version `2`");
    let docker = Place::new(&tar(&[manifest_json(&[])]));
    fails(docker.oci(&Selector::Default), "use docker-archive:FILE");
    fails(Place::new(&tar(&oci_members())).docker(None), "use oci-archive:FILE");
}

#[test]
fn what_docker_and_podman_save_is_read() {
    let (upper, plain) = (gzip(b"upper"), config(&[LAYER, b"upper", LAYER]));
    let hex = sha256(&plain).hex().to_owned();
    let json = format!("{hex}.json");
    // Docker before 25: a directory a layer, equal ones as symlinks; Go's writer adds PAX records. podman 4 the other way round.
    let old = tar(&[
        member("PaxHeaders/x", b'x', b"30 mtime=1700000000.123456789\n"),
        file("aaa/layer.tar", LAYER),
        file("aaa/VERSION", "1.0"),
        link("ccc/layer.tar", b'2', "../aaa/layer.tar"),
        link("ddd.tar", b'1', "aaa/layer.tar"),
        file("bbb/layer.tar", &upper),
        file(&json, &plain),
        manifest_json(&[(&json, &["debian:12"], &["aaa/layer.tar", "bbb/layer.tar", "ccc/layer.tar"])]),
        file("repositories", "{}"),
    ]);
    let place = Place::new(&old);
    for name in [None, Some("debian:12"), Some("docker.io/library/debian:12")] {
        let (manifest, first) = place.docker(name).unwrap();
        assert_eq!(first, LAYER);
        assert_eq!(manifest.config_digest, sha256(&plain));
        let layers = &manifest.layers;
        assert_eq!(layers[1].compression, Compression::Gzip);
        // Nothing in the archive tells the digest of a compressed layer.
        assert_eq!((&layers[0].digest, &layers[1].digest), (&Some(sha256(LAYER)), &None));
        assert_eq!(layers.iter().map(|l| l.size).collect::<Vec<_>>(), [20, upper.len() as u64, 20]);
        // The manifest that is made up is one, and always the same.
        assert_eq!(manifest.digest, sha256(&manifest.bytes));
        assert_eq!(manifest.bytes, place.docker(None).unwrap().0.bytes);
        let fetch = |_, digest: &Digest, _| match *digest == manifest.digest {
            true => Ok(manifest.bytes.clone()),
            false => Ok(manifest.config_bytes.clone()),
        };
        let first = crate::source::document::Pointer::new(manifest.digest.clone(), None, None);
        let again = crate::source::document::resolve(first, &fetch, &Limits::default()).unwrap();
        assert_eq!(
            again.layers.iter().map(|l| &l.diff_id).collect::<Vec<_>>(),
            layers.iter().map(|l| &l.diff_id).collect::<Vec<_>>()
        );
    }
    fails(place.docker(Some("debian")), "has no image named `debian:latest`; it has debian:12");

    // Docker since 25: a layout as well, where names of blobs are digests.
    let digest = format!("blobs/sha256/{}", sha256(&upper).hex());
    let name = format!("blobs/sha256/{hex}");
    let new = |upper: &[u8]| {
        let layer = format!("blobs/sha256/{}", sha256(LAYER).hex());
        let list = manifest_json(&[(&name, &["x:1"], &[&layer, &digest, &layer])]);
        Place::new(&tar(&[blob(LAYER), file(&digest, upper), blob(&plain), list])).docker(None).unwrap().0
    };
    assert_eq!(new(&upper).layers[1].digest, Some(sha256(&upper)));
    assert!(new(&upper).bytes.windows(10).any(|w| w == b".v1.tar+gz"));

    // Google's tools (crane, ko, kaniko).
    let config_name = format!("sha256:{hex}");
    let list = manifest_json(&[(&config_name, &[], &["l", "u.tar.gz", "l"])]);
    let place = Place::new(&tar(&[file(&config_name, &plain), file("l", LAYER), file("u.tar.gz", &upper), list]));
    assert_eq!(place.docker(None).unwrap().1, LAYER);
}

#[test]
fn one_of_several_images_is_named() {
    let (one, two) = (config(&[LAYER]), config(&[b"two"]));
    let names = [format!("{}.json", sha256(&one).hex()), format!("{}.json", sha256(&two).hex())];
    let list =
        |tags: &[&str]| manifest_json(&[(&names[0], tags, &["one"]), (&names[1], &["b:1", "c\u{1b}:1"], &["two"])]);
    let files = [file(&names[0], &one), file(&names[1], &two), file("one", LAYER), file("two", "two")].concat();
    let place = |tags: &[&str]| Place::new(&tar(&[files.clone(), list(tags)]));
    assert_eq!(place(&["a:1"]).docker(Some("a:1")).unwrap().1, LAYER);
    assert_eq!(place(&["a:1"]).docker(Some("b:1")).unwrap().1, b"two");
    fails(place(&["a:1"]).docker(None), "holds several images; name one as docker-archive:");
    fails(place(&["a:1"]).docker(None), "it has a:1, b:1, c\\u{1b}:1");
    fails(place(&["b:1"]).docker(Some("b:1")), "has two images named `b:1`");
    fails(Place::new(&tar(&[manifest_json(&[])])).docker(None), "has no image at all");
    let null = file("manifest.json", json!([{"Config": names[0], "RepoTags": null, "Layers": ["one"]}]).to_string());
    assert_eq!(Place::new(&tar(&[files, null])).docker(None).unwrap().1, LAYER);
}

#[test]
fn a_docker_archive_that_does_not_add_up_is_refused() {
    let own = config(&[LAYER]);
    let name = format!("{}.json", sha256(&own).hex());
    let with = |config_name: &str, config: &[u8], layers: &[&str], rest: Vec<u8>| {
        let list = manifest_json(&[(config_name, &[], layers)]);
        Place::new(&tar(&[file(config_name, config), list, rest])).docker(None)
    };
    let layer = || file("l", LAYER);
    assert!(with(&name, &own, &["l"], layer()).is_ok());
    let mut flipped = own.clone();
    flipped[20] ^= 1;
    fails(with(&name, &flipped, &["l"], layer()), "its bytes hash to");
    fails(with("config.json", &own, &["l"], layer()), "is a config that is not named by its digest");
    fails(with(&name, &own, &["l", "l"], layer()), "has 1 diff_ids for 2 layers");
    fails(with(&name, &own, &[], layer()), "has 1 diff_ids for 0 layers");
    fails(with(&name, &own, &["no"], layer()), "has no `no`; the archive is not complete");
    fails(with(&name, &own, &["../../etc/passwd"], layer()), "has no `../../etc/passwd`");
    fails(with(&name, &own, &["/etc/passwd"], layer()), "has no `/etc/passwd`");
    fails(with(&name, &own, &["l"; 501], layer()), "limit on layers of an image (500)");
    fails(with(&name, &own, &["l\u{1b}"], layer()), "has no `l\\u{1b}`");
    // Links lead to members of the archive, and nowhere else.
    for (flag, to, want) in [
        (b'2', "/etc/passwd", "is not a plain file"),
        (b'2', "../../../etc/passwd", "is not a plain file"),
        (b'1', "../etc/passwd", "is not a plain file"),
        (b'2', "l", "is a link to a link to a link"),
        (b'2', "nothing", "has no `l`"),
        (b'3', "", "is not a plain file"),
        (b'6', "", "is not a plain file"),
        (b'S', "", "is not a plain file"),
    ] {
        fails(with(&name, &own, &["l"], link("l", flag, to)), want);
    }
    for text in ["", "{}", "[{}]", "[1]", r#"[{"Config": 1}]"#] {
        fails(Place::new(&tar(&[file("manifest.json", text)])).docker(None), "is malformed");
    }
    let long = file("manifest.json", " ".repeat(5 << 20));
    fails(Place::new(&tar(&[long])).docker(None), "limit on bytes of an index, manifest or config");
}

#[test]
fn only_regular_plain_tar_files_are_archives() {
    let place = Place::new(b"");
    let get = || OciArchive::open(&place.path(), &Selector::Default);
    fails(get().and_then(|source| source.manifest(&Limits::default())), "has no `oci-layout`");
    fs::remove_file(place.path()).unwrap();
    fails(get(), "x.tar` does not exist");
    fs::create_dir(place.path()).unwrap();
    fails(get(), "x.tar` is a directory; it is read in many places");
    fs::remove_dir(place.path()).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, place.path(), FileType::Fifo, Mode::RWXU, 0).unwrap();
    fails(get(), "x.tar` is a pipe");
    fs::remove_file(place.path()).unwrap();
    std::os::unix::fs::symlink("/dev/null", place.path()).unwrap();
    fails(get(), "x.tar` is a device");
    let good = tar(&oci_members());
    for (bytes, want) in [
        (gzip(&good), "run `gunzip` on it first"),
        (zstd::encode_all(&good[..], 1).unwrap(), "run `unzstd` on it first"),
        (b"\xfd7zXZ\0".to_vec(), "run `unxz` on it first"),
        (vec![b'x'; 2048], "at byte 0: header number 1 has a wrong checksum"),
        (good[..700].to_vec(), "breaks off inside"),
        (good[..512 * 3 + 100].to_vec(), "breaks off inside a header"),
    ] {
        fails(Place::new(&bytes).oci(&Selector::Default), want);
    }
}

#[test]
fn headers_that_programs_read_differently_are_refused() {
    let pax = |text: &str| member("x", b'x', text.as_bytes());
    let record = |key: &str, value: &str| {
        let rest = format!(" {key}={value}\n");
        let length = (rest.len() + 1..).find(|n| n.to_string().len() + rest.len() == *n).unwrap();
        format!("{length}{rest}")
    };
    let open = |members: &[Vec<u8>]| Archive::open(&Place::new(&tar(members)).path());
    let long = "n/".repeat(600);
    for (members, want) in [
        (vec![file("a", "1"), file("./a", "2")], "two members of one name"),
        (vec![file("a", "1"), link("a", b'2', "b")], "two members of one name"),
        (vec![pax(""), pax(""), file("a", "1")], "two records of one kind"),
        (vec![member("x", b'L', b"a"), member("x", b'L', b"b"), file("c", "1")], "two records of one kind"),
        (vec![member("x", b'g', record("path", "b").as_bytes()), file("a", "1")], "a global PAX record"),
        (vec![pax("nonsense"), file("a", "1")], "the PAX record is malformed"),
        (vec![pax(&record("size", "99999999")), file("a", "1")], "breaks off inside a member's data"),
        (vec![header("a", b'0', u64::MAX >> 1, "")], "breaks off inside a member's data"),
        (vec![member("x", b'L', long.as_bytes()), file("a", "1")], "limit on bytes of a member's name"),
        (vec![member("x", b'L', &vec![b'a'; 100_000]), file("a", "1")], "limit on bytes of a PAX record or long name"),
        (vec![header("a", b'5', 0, ""); (16 << 10) + 1], "limit on members of an image archive (16384)"),
    ] {
        fails(open(&members), want);
    }
    // The same where programs agree: the record's size counts, and a long name is the next member's.
    let record = record("size", "4");
    let mut longer = header("a", b'0', 0, "");
    longer.extend(b"data");
    longer.resize(1024, 0);
    let archive = open(&[pax(&record), longer, member("x", b'L', b"long\0"), file("short", "1")]).unwrap();
    assert_eq!(archive.find("a").unwrap().unwrap().size, 4);
    assert!(archive.find("long").unwrap().is_some());
    assert!(archive.find("short").unwrap().is_none());
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let place = Place::new(&tar(&oci_members()));
    let source = OciArchive::open(&place.path(), &Selector::Default).unwrap();
    let manifest = source.manifest(&Limits::default()).unwrap();
    let mut layer = source.layer(&manifest.layers[0]).unwrap();
    fs::OpenOptions::new().write(true).open(place.path()).unwrap().set_len(600).unwrap();
    let error = layer.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("became shorter"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// However an archive is damaged: no panic, and no member outside the file.
    #[test]
    fn members_lie_inside_the_file(
        edits in prop::collection::vec((0..4096usize, any::<u8>()), 0..6),
        fix in any::<bool>(),
        cut in 0..5000usize,
    ) {
        let mut bytes = tar(&oci_members());
        for (at, byte) in edits {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if fix {
            for block in bytes.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
                let mut header = Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        bytes.truncate(cut.max(1));
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        if let Ok(archive) = Archive::open(file.path()) {
            for member in archive.members.values() {
                if let Member::File(span) = member {
                    prop_assert!(span.offset + span.size <= bytes.len() as u64);
                }
            }
            for select in [Selector::Default, Selector::Tag("v1".into())] {
                if let Ok(source) = OciArchive::open(file.path(), &select)
                    && let Ok(manifest) = source.manifest(&Limits::default())
                {
                    prop_assert_eq!(manifest.digest, sha256(&manifest.bytes));
                }
            }
        }
    }
}
