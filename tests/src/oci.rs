//! Makes OCI image layouts (image-spec 1.1, `image-layout.md`) out of lists of entries, directory trees or raw archives.
//!
//! It is a maker of test input, so it writes names, types and owners as they are given, hostile ones too; only digests,
//! DiffIDs and sizes are always right (break a layout by editing the files afterwards). Layers are streamed: neither a
//! layer nor a file of a tree is ever held in memory.

pub mod honest;
pub mod hostile;
mod layer;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use serde_json::{Value, json};

use layer::{Blob, Hashed};
pub use layer::{Compression, Entry, Layer};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// One image: its layers, lowest first, and the part of the configuration that a runtime reads.
#[derive(Debug, Default)]
pub struct Image {
    layers: Vec<(Layer, Compression)>,
    config: serde_json::Map<String, Value>,
    env: Vec<String>,
}

/// What [`Image::write`] wrote.
#[derive(Debug, Clone)]
pub struct Written {
    /// Digest of the manifest, `sha256:…`.
    pub manifest: String,
    /// Digest of the configuration.
    pub config: String,
    /// Digests of the layers as stored, lowest first.
    pub layers: Vec<String>,
    /// Digests of the layers' plain archives, lowest first.
    pub diff_ids: Vec<String>,
}

impl Written {
    /// Where the blob with this digest lies in the layout `dir`.
    #[must_use]
    pub fn blob(dir: &Path, digest: &str) -> PathBuf {
        dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }
}

impl Image {
    /// An image without layers and with an empty configuration.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer, compression: Compression) -> Self {
        self.layers.push((layer, compression));
        self
    }

    /// `Entrypoint`.
    #[must_use]
    pub fn entrypoint(self, words: &[&str]) -> Self {
        self.set("Entrypoint", json!(words))
    }

    /// `Cmd`.
    #[must_use]
    pub fn cmd(self, words: &[&str]) -> Self {
        self.set("Cmd", json!(words))
    }

    /// Adds to `Env`, as given: a word without `=` stays one.
    #[must_use]
    pub fn env(mut self, word: &str) -> Self {
        self.env.push(word.to_owned());
        self
    }

    /// `User`.
    #[must_use]
    pub fn user(self, user: &str) -> Self {
        self.set("User", json!(user))
    }

    /// `WorkingDir`.
    #[must_use]
    pub fn workdir(self, dir: &str) -> Self {
        self.set("WorkingDir", json!(dir))
    }

    /// `Volumes`.
    #[must_use]
    pub fn volumes(self, places: &[&str]) -> Self {
        let places: serde_json::Map<String, Value> = places.iter().map(|place| ((*place).into(), json!({}))).collect();
        self.set("Volumes", places.into())
    }

    /// `ExposedPorts`.
    #[must_use]
    pub fn ports(self, ports: &[&str]) -> Self {
        let ports: serde_json::Map<String, Value> = ports.iter().map(|port| ((*port).into(), json!({}))).collect();
        self.set("ExposedPorts", ports.into())
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.to_owned(), value);
        self
    }

    /// Writes the image as `tag` into the layout at `dir`, which is made when absent; a tag that exists is moved, other
    /// tags and blobs stay.
    ///
    /// # Errors
    /// Anything the file system says, and an `index.json` that is not one.
    pub fn write(mut self, dir: &Path, tag: &str) -> io::Result<Written> {
        fs::create_dir_all(dir.join("blobs/sha256"))?;
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for (layer, compression) in &self.layers {
            let (blob, diff_id) = layer.write(dir, *compression)?;
            layers.push(blob.descriptor(compression.media_type()));
            diff_ids.push(diff_id);
        }
        if !self.env.is_empty() {
            self.config.insert("Env".to_owned(), json!(self.env));
        }
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = write_json(dir, &config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": layers,
        });
        let manifest = write_json(dir, &manifest)?;
        write_index(dir, tag, &manifest)?;
        let digests = layers.iter().filter_map(|l| l["digest"].as_str().map(str::to_owned)).collect();
        Ok(Written { manifest: manifest.digest, config: config.digest, layers: digests, diff_ids })
    }
}

fn write_index(dir: &Path, tag: &str, manifest: &Blob) -> io::Result<()> {
    let path = dir.join("index.json");
    let mut entries = match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice::<Value>(&bytes)?["manifests"].take() {
            Value::Array(entries) => entries,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "index.json without a list of manifests")),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e),
    };
    entries.retain(|entry| entry["annotations"][REF_NAME] != tag);
    let mut entry = manifest.descriptor(MANIFEST);
    entry["annotations"] = json!({ REF_NAME: tag });
    entry["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    entries.push(entry);
    let index =
        json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries });
    fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    replace(&path, &serde_json::to_vec_pretty(&index)?)
}

/// A reader never sees half an index.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    file.write_all(bytes)?;
    layer::publish(file, path)
}

fn write_json(dir: &Path, value: &Value) -> io::Result<Blob> {
    let bytes = serde_json::to_vec(value)?;
    let mut out = Hashed::new(tempfile::NamedTempFile::new_in(dir)?);
    out.write_all(&bytes)?;
    out.into_blob(dir)
}

/// Go's name of this machine, as image-spec wants it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `sha256:…` of some bytes, for tests that build a layout's JSON by hand.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    layer::digest_text(context)
}

/// The same of a file, however large.
///
/// # Errors
/// Whatever reading it says.
pub fn sha256_of_file(path: &Path) -> io::Result<String> {
    let mut hashed = Hashed::new(io::sink());
    io::copy(&mut fs::File::open(path)?, &mut hashed)?;
    Ok(hashed.digest())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn archive(dir: &Path, digest: &str, compression: Compression) -> Vec<u8> {
        let stored = fs::read(Written::blob(dir, digest)).unwrap();
        let mut plain = Vec::new();
        match compression {
            Compression::Plain => plain = stored,
            Compression::Gzip => {
                flate2::read::GzDecoder::new(&stored[..]).read_to_end(&mut plain).map(drop).unwrap();
            }
            Compression::Zstd => plain = zstd::decode_all(&stored[..]).unwrap(),
        }
        plain
    }

    #[test]
    fn digests_and_diff_ids_are_right_for_every_compression() {
        let dir = tempfile::tempdir().unwrap();
        for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
            let layer = Layer::Entries(vec![Entry::dir("etc"), Entry::file("etc/motd", "hello\n")]);
            let image = Image::new().layer(layer, compression).write(dir.path(), "t").unwrap();
            let stored = fs::read(Written::blob(dir.path(), &image.layers[0])).unwrap();
            assert_eq!(sha256(&stored), image.layers[0]);
            assert_eq!(sha256(&archive(dir.path(), &image.layers[0], compression)), image.diff_ids[0]);
        }
    }

    #[test]
    fn hostile_names_and_long_names_are_written_as_given() {
        let dir = tempfile::tempdir().unwrap();
        let long = "d/".repeat(90) + "leaf";
        let layer = Layer::Entries(vec![
            Entry::file("../../escape", "x"),
            Entry::file("/absolute", "x"),
            Entry::file(&long, "x"),
            Entry::symlink("link", &("../".repeat(60) + "etc/passwd")),
            Entry::hardlink("hard", "/absolute"),
            Entry::whiteout("etc/gone"),
            Entry::opaque("etc"),
            Entry::char_device("dev/null", 1, 3),
            Entry::fifo("pipe"),
            Entry::file("x", "y").pax("SCHILY.xattr.user.a", b"b"),
        ]);
        let image = Image::new().layer(layer, Compression::Plain).write(dir.path(), "t").unwrap();
        let bytes = archive(dir.path(), &image.layers[0], Compression::Plain);
        let mut seen = Vec::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let entry = entry.unwrap();
            seen.push(String::from_utf8(entry.path_bytes().to_vec()).unwrap());
        }
        let whiteouts = ["etc/.wh.gone", "etc/.wh..wh..opq"];
        assert_eq!(seen[..3], ["../../escape".to_owned(), "/absolute".to_owned(), long]);
        assert_eq!(seen[5..7], whiteouts);
        assert_eq!(seen.len(), 10);
    }

    #[test]
    fn a_tree_keeps_modes_and_links_and_loses_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::write(tree.join("bin/tool"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(tree.join("bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
        std::os::unix::fs::symlink("tool", tree.join("bin/alias")).unwrap();
        fs::hard_link(tree.join("bin/tool"), tree.join("bin/ztool")).unwrap();
        let layout = dir.path().join("layout");
        let image = Image::new().layer(Layer::Tree(tree), Compression::Gzip).write(&layout, "t").unwrap();
        let bytes = archive(&layout, &image.layers[0], Compression::Gzip);
        let mut seen = Vec::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            seen.push((entry.path().unwrap().to_str().unwrap().to_owned(), header.mode().unwrap()));
        }
        assert_eq!(seen[1].0, "bin/alias");
        assert_eq!(seen[2], ("bin/tool".to_owned(), 0o4755));
        assert_eq!(seen.len(), 4);
    }

    #[test]
    fn a_second_tag_joins_and_a_repeated_tag_moves() {
        let dir = tempfile::tempdir().unwrap();
        let layer = || Layer::Entries(vec![Entry::file("a", "1")]);
        let first = Image::new().layer(layer(), Compression::Plain).write(dir.path(), "one").unwrap();
        Image::new().layer(layer(), Compression::Plain).user("5").write(dir.path(), "two").unwrap();
        let moved = Image::new().layer(layer(), Compression::Plain).user("6").write(dir.path(), "one").unwrap();
        let index: Value = serde_json::from_slice(&fs::read(dir.path().join("index.json")).unwrap()).unwrap();
        let entries = index["manifests"].as_array().unwrap();
        assert_eq!(entries.len(), 2);
        assert_ne!(first.manifest, moved.manifest);
        assert!(entries.iter().any(|e| e["digest"] == *moved.manifest && e["annotations"][REF_NAME] == "one"));
    }
}
