//! What fuzz targets call: one function a kind of hostile input, which panics where an invariant does not hold.
//!
//! Built with the feature `fuzzing` only; no shipped program has it. Invariant: an input either is refused by an error
//! or keeps every promise of the module it goes into; a place beside the target directory never changes.

#![expect(clippy::unwrap_used, reason = "a fuzz target ends by a panic")]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use tempfile::TempDir;

use crate::digest::Digest;
use crate::limits::{Limits, Taken};
use crate::reference::{ImageRef, Selector};
use crate::source::document::{self, Kind, Pointer};
use crate::source::{
    DockerArchive, Layout, Manifest, OciArchive, Source, SourceError, count_challenges_and_credentials,
};
use crate::stream::{Compression, LayerStream, Source as Blob};
use crate::unpack::unpack;
use crate::user::Accounts;

/// Small, so that every limit is reached by small inputs, and an input never costs more than some milliseconds.
const LIMITS: Limits = Limits {
    document_bytes: 64 << 10,
    layers: 8,
    layer_bytes: 4 << 20,
    image_bytes: 4 << 20,
    entries: 200,
    image_entries: 200,
    path_bytes: 512,
    depth: 16,
    record_bytes: 8 << 10,
    ratio: 1000,
    directory_bytes: 16 << 10,
};

static GO_ON: AtomicBool = AtomicBool::new(false);

/// An uncompressed layer: nothing outside the root changes, and a tree that was believed has the hash of the input.
pub fn layer(untrusted: &[u8]) {
    let tar = with_checksums(untrusted);
    let place = Place::new();
    let root = fs::File::open(place.root()).unwrap();
    let (any, taken) = (sha256(b""), Taken::default());
    let stream = LayerStream::new(source(&tar, Compression::None, &any, &taken), &LIMITS).unwrap();
    let result = unpack(stream, root.into(), &LIMITS);
    place.assert_outside_untouched();
    if let Ok(unpacked) = result {
        assert_eq!(unpacked.diff_id, sha256(&tar));
        // What is done with a layer next: never opens a FIFO, never leaves the root.
        if let Ok(accounts) = Accounts::read(&[place.root()]) {
            assert!(!accounts.passwd.contains(SENTINEL));
        }
    }
}

/// The bytes after the first as a blob, in one thread and in one a stage; the first chooses the compression.
pub fn blob(untrusted: &[u8]) {
    let Some((choice, bytes)) = untrusted.split_first() else { return };
    let compression = [Compression::None, Compression::Gzip, Compression::Zstd][usize::from(choice % 3)];
    let (any, taken, taken_ahead) = (sha256(b""), Taken::default(), Taken::default());
    let digests = LayerStream::new(source(bytes, compression, &any, &taken), &LIMITS).unwrap().finish();
    let ahead = std::thread::scope(|scope| {
        LayerStream::ahead(scope, source(bytes, compression, &any, &taken_ahead), &LIMITS).unwrap().finish()
    });
    assert_eq!(digests.as_ref().ok(), ahead.as_ref().ok());
    if let Ok((digest, diff_id)) = digests {
        assert_eq!(digest, sha256(bytes));
        let plain = match compression {
            Compression::None => bytes.to_vec(),
            Compression::Gzip => {
                let mut plain = Vec::new();
                flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
                plain
            }
            Compression::Zstd => zstd::decode_all(bytes).unwrap(),
        };
        assert_eq!(diff_id, sha256(&plain));
    }
}

/// `index.json` of a layout that holds one image.
pub fn index(untrusted: &[u8]) {
    let place = TempDir::new().unwrap();
    let dir = place.path().join("blobs/sha256");
    fs::create_dir_all(&dir).unwrap();
    for blob in [CONFIG, &plain_manifest(CONFIG)] {
        fs::write(dir.join(sha256(blob).hex()), blob).unwrap();
    }
    fs::write(place.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    fs::write(place.path().join("index.json"), untrusted).unwrap();
    check(Layout::open(place.path(), &Selector::Default, &LIMITS).and_then(|layout| layout.manifest(&LIMITS)));
}

/// A manifest or an index that a registry sends, the digests in it leading to [`CONFIG`] or to itself.
pub fn manifest(untrusted: &[u8]) {
    check(resolve(untrusted, &[untrusted, CONFIG]));
}

/// An image's config.
pub fn config(untrusted: &[u8]) {
    let manifest = plain_manifest(untrusted);
    check(resolve(&manifest, &[&manifest, untrusted]));
}

/// An `oci-archive:` and a `docker-archive:`.
pub fn archive(untrusted: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&with_checksums(untrusted)).unwrap();
    let oci: Result<Box<dyn Source>, _> =
        OciArchive::open(file.path(), &Selector::Default).map(|archive| Box::new(archive) as _);
    let docker = DockerArchive::open(file.path(), None).map(|archive| Box::new(archive) as _);
    for source in [oci, docker] {
        check(source.and_then(|source| {
            let manifest = source.manifest(&LIMITS)?;
            for layer in &manifest.layers {
                if let Ok(mut blob) = source.layer(layer) {
                    let read = std::io::copy(&mut blob, &mut std::io::sink());
                    assert!(read.is_err() || read.is_ok_and(|read| read == layer.size));
                }
            }
            Ok(manifest)
        }));
    }
}

/// What a registry wants before it answers, and a file of credentials.
pub fn login(untrusted: &[u8]) {
    let (challenges, _) = count_challenges_and_credentials(untrusted);
    assert!(challenges <= untrusted.len());
}

/// An image reference: what is accepted is printed as it was written.
pub fn reference(untrusted: &[u8]) {
    let Ok(text) = std::str::from_utf8(untrusted) else { return };
    match text.parse::<ImageRef>() {
        Ok(reference) => {
            let printed = reference.to_string();
            // Short names are completed, so the words may differ; the meaning may not.
            assert_eq!(printed.parse::<ImageRef>().unwrap(), reference, "{text:?} is printed as {printed:?}");
        }
        Err(error) => assert!(!error.to_string().chars().any(char::is_control), "{error:?}"),
    }
}

/// `USER`, a NUL, an `etc/passwd`, a NUL, an `etc/group`.
pub fn accounts(untrusted: &[u8]) {
    let mut parts = untrusted.splitn(3, |byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned());
    let mut next = || parts.next().unwrap_or_default();
    let (spec, passwd, group) = (next(), next(), next());
    match (Accounts { passwd, group }).resolve(&spec) {
        Ok(user) => {
            assert!(user.uid <= 0x7fff_ffff && user.gid <= 0x7fff_ffff);
            assert!(user.home.is_none_or(|home| home.starts_with('/') && !home.chars().any(char::is_control)));
        }
        Err(error) => assert!(!error.to_string().chars().any(char::is_control), "{error:?}"),
    }
}

/// Refers to no layer that is there: reading the documents is all that is done with them.
const CONFIG: &[u8] = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}"#;

fn plain_manifest(config: &[u8]) -> Vec<u8> {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:{}","size":1}}]}}"#,
        sha256(config),
        config.len(),
        "0".repeat(64),
    )
    .into_bytes()
}

/// What a registry's tag leads to, where it has only `documents`.
fn resolve(first: &[u8], documents: &[&[u8]]) -> Result<Manifest, SourceError> {
    let fetch = |_: Kind, digest: &Digest, _: Option<u64>| {
        let found = documents.iter().find(|document| sha256(document) == *digest);
        found
            .map(|document| document.to_vec())
            .ok_or_else(|| SourceError::Corrupt { digest: digest.clone(), actual: digest.clone() })
    };
    document::resolve(Pointer::new(sha256(first), None, None), &fetch, &LIMITS)
}

fn check(read: Result<Manifest, SourceError>) {
    match read {
        Ok(manifest) => {
            assert!(!manifest.layers.is_empty() && manifest.layers.len() as u64 <= LIMITS.layers);
            assert!(manifest.config.env.iter().all(|(name, value)| !name.contains('\0') && !value.contains('\0')));
        }
        Err(error) => assert!(!error.to_string().chars().any(char::is_control), "{error:?}"),
    }
}

/// The checksum of every block that looks like a header set right: nearly every change would end there.
fn with_checksums(untrusted: &[u8]) -> Vec<u8> {
    let mut tar = untrusted.to_vec();
    for block in tar.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    tar
}

fn source<'a>(blob: &'a [u8], compression: Compression, any: &'a Digest, taken: &'a Taken) -> Blob<'a> {
    Blob { blob: Box::new(blob), compression, digest: any, diff_id: any, on_read: &|_| {}, cancel: &GO_ON, taken }
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut hasher = format!("sha256:{}", "0".repeat(64)).parse::<Digest>().unwrap().hasher();
    hasher.update(bytes);
    hasher.finish()
}

const SENTINEL: &str = "untouched";

/// `fs` to unpack into, and beside it what must stay as it is.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("fs")).unwrap();
        fs::write(Place::sentinel(dir.path()), SENTINEL).unwrap();
        Place { dir }
    }

    fn sentinel(dir: &Path) -> PathBuf {
        dir.join("sentinel")
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("fs")
    }

    fn assert_outside_untouched(&self) {
        let sentinel = Place::sentinel(self.dir.path());
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 2);
        assert_eq!(fs::read_to_string(&sentinel).unwrap(), SENTINEL);
        assert_eq!(fs::metadata(&sentinel).unwrap().nlink(), 1);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // An image's 0000 directory is more than the removal of a `TempDir` can do.
        let dir = fs::File::open(self.dir.path()).unwrap();
        crate::removal::remove_all(dir.as_fd(), c"fs").unwrap();
    }
}
