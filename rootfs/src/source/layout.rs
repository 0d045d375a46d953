//! OCI image layouts on disk: index → manifest → config (image-spec, "Image Layout Specification").
//!
//! Invariant: a blob is believed only after its size and digest were checked, and no document is read beyond its limit.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use serde::de::DeserializeOwned;

use crate::config::ImageConfig;
use crate::digest::{Digest, DigestError};
use crate::limits::{LimitError, Limits};
use crate::printable::printable;
use crate::reference::Selector;
use crate::source::{Layer, Manifest, Source, check_digest};
use crate::stream::Compression;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// An index in an index in an index is already more than any tool writes.
const NESTED: usize = 4;

/// Why a layout does not lead to an image.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// No such directory.
    #[error("image layout `{layout}` does not exist")]
    Missing {
        /// The directory.
        layout: String,
    },
    /// Not a layout.
    #[error(
        "`{layout}` is not an OCI image layout: it has no `{file}` file; make one with `skopeo copy docker://IMAGE oci:{layout}`"
    )]
    NotALayout {
        /// The directory.
        layout: String,
        /// What is not there.
        file: &'static str,
    },
    /// A layout version this does not know.
    #[error("image layout `{layout}` has the version `{version}`; only 1.0.0 is known")]
    Version {
        /// The directory.
        layout: String,
        /// Its version.
        version: String,
    },
    /// The operating system's refusal.
    #[error("cannot open or read {object}")]
    Io {
        /// What.
        object: String,
        /// Why.
        source: std::io::Error,
    },
    /// A limit.
    #[error("{object}")]
    Limit {
        /// What.
        object: String,
        /// Which.
        source: LimitError,
    },
    /// Not the JSON it should be.
    #[error("{object} is malformed: {reason}")]
    Malformed {
        /// What.
        object: String,
        /// Why, escaped.
        reason: String,
    },
    /// A digest that is none.
    #[error("{object} names a blob wrongly")]
    Digest {
        /// Where.
        object: String,
        /// Why.
        source: DigestError,
    },
    /// A blob that is not there.
    #[error("blob {digest} is not in the image layout `{layout}`; fetch the image again")]
    NoBlob {
        /// Which.
        digest: Digest,
        /// Where.
        layout: String,
    },
    /// A blob of another size than its descriptor says.
    #[error("blob {digest} is corrupt: it has {actual} bytes instead of {expected}; fetch the image again")]
    Size {
        /// Which.
        digest: Digest,
        /// Bytes it has.
        actual: u64,
        /// Bytes it should have.
        expected: u64,
    },
    /// A blob with other bytes than its digest says.
    #[error("blob {digest} is corrupt: its bytes hash to {actual}; fetch the image again")]
    Corrupt {
        /// Which.
        digest: Digest,
        /// What they hash to.
        actual: Digest,
    },
    /// Nothing selected.
    #[error("image layout `{layout}` has no image {wanted}; it has {available}")]
    NoImage {
        /// The directory.
        layout: String,
        /// What was looked for.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// Several images, none of them named.
    #[error("image layout `{layout}` holds several images; name one as oci:{layout}:TAG; it has {available}")]
    SeveralImages {
        /// The directory.
        layout: String,
        /// What there is.
        available: String,
    },
    /// Not for this machine.
    #[error("the image is not made for {wanted}; it is made for {available}")]
    Platform {
        /// This machine.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// Something that is not an image, or not one that can be used.
    #[error("{object} {reason}")]
    Unsupported {
        /// What.
        object: String,
        /// Why, escaped.
        reason: String,
    },
}

/// An opened layout, and which of its images is meant.
pub(crate) struct Layout {
    dir: OwnedFd,
    path: PathBuf,
    select: Selector,
}

impl Layout {
    pub(crate) fn open(path: &Path, select: &Selector) -> Result<Layout, LayoutError> {
        let shown = printable(path.as_os_str().as_encoded_bytes());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Err(LayoutError::Missing { layout: shown }),
            Err(Errno::NOTDIR) => return Err(LayoutError::NotALayout { layout: shown, file: "oci-layout" }),
            Err(e) => return Err(LayoutError::Io { object: format!("image layout `{shown}`"), source: e.into() }),
        };
        Ok(Layout { dir, path: path.to_owned(), select: select.clone() })
    }

    fn shown(&self) -> String {
        printable(self.path.as_os_str().as_encoded_bytes())
    }

    fn check_version(&self, limits: &Limits) -> Result<(), LayoutError> {
        #[derive(serde::Deserialize)]
        struct Header {
            #[serde(rename = "imageLayoutVersion")]
            version: String,
        }
        let header: Header = self.document("oci-layout", &self.file("oci-layout", limits)?)?;
        if header.version == "1.0.0" {
            return Ok(());
        }
        Err(LayoutError::Version { layout: self.shown(), version: printable(header.version.as_bytes()) })
    }

    fn chosen<'i>(&self, index: &'i ImageIndex) -> Result<&'i Descriptor, LayoutError> {
        let tagged = |tag: &str| -> Vec<&'i Descriptor> {
            index.manifests().iter().filter(|d| tag_of(d) == Some(tag)).collect()
        };
        let none = |wanted: String| LayoutError::NoImage { layout: self.shown(), wanted, available: available(index) };
        match &self.select {
            Selector::Digest(digest) => {
                let digest = digest.to_string();
                let mut manifests = index.manifests().iter();
                manifests.find(|d| d.digest().as_ref() == digest).ok_or_else(|| none(digest))
            }
            Selector::Tag(tag) => match &tagged(tag)[..] {
                [] => Err(none(format!("tagged `{}`", printable(tag.as_bytes())))),
                [one] => Ok(one),
                several => for_this_machine(several.iter().copied()),
            },
            Selector::Default => match index.manifests().as_slice() {
                [] => Err(none("at all".into())),
                [one] => Ok(one),
                several => match &tagged("latest")[..] {
                    // One image for several machines, listed without an index of its own.
                    [] if several.iter().all(|d| tag_of(d).is_none()) => for_this_machine(several.iter()),
                    [] => Err(LayoutError::SeveralImages { layout: self.shown(), available: available(index) }),
                    [one] => Ok(one),
                    latest => for_this_machine(latest.iter().copied()),
                },
            },
        }
    }

    fn read_manifest(
        &self,
        digest: Digest,
        descriptor: &Descriptor,
        object: &str,
        bytes: &[u8],
        limits: &Limits,
    ) -> Result<Manifest, LayoutError> {
        let manifest: ImageManifest = self.document(object, bytes)?;
        same_media_type(manifest.media_type().as_ref(), descriptor, object)?;
        match manifest.config().media_type().as_ref() {
            "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" => {}
            other => return Err(unsupported(object, "has a config of type", other, "an artifact, not an image")),
        }
        LimitError::check("layers", manifest.layers().len() as u64, limits.layers as u64)
            .map_err(|source| LayoutError::Limit { object: object.to_owned(), source })?;
        let config_digest = parse_digest(manifest.config(), object)?;
        let config_object = format!("config {config_digest}");
        let bytes = self.blob(&config_digest, manifest.config().size(), limits)?;
        let config: ImageConfiguration = self.document(&config_object, &bytes)?;
        let refuse = |reason: String| LayoutError::Unsupported { object: config_object.clone(), reason };
        if config.rootfs().typ() != "layers" {
            return Err(unsupported(
                &config_object,
                "has a rootfs of type",
                config.rootfs().typ(),
                "only `layers` is known",
            ));
        }
        if config.os().to_string() != "linux" {
            let os = config.os().to_string();
            return Err(unsupported(&config_object, "is made for", &os, "not for linux"));
        }
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != manifest.layers().len() {
            let (ids, layers) = (diff_ids.len(), manifest.layers().len());
            return Err(refuse(format!("has {ids} diff_ids for {layers} layers")));
        }
        if diff_ids.is_empty() {
            return Err(refuse("has no layers".into()));
        }
        let layers = manifest.layers().iter().zip(diff_ids).map(|(layer, diff_id)| {
            let digest = parse_digest(layer, object)?;
            let compression = compression(layer, &digest)?;
            let diff_id =
                diff_id.parse().map_err(|source| LayoutError::Digest { object: config_object.clone(), source })?;
            Ok(Layer { size: layer.size(), digest, compression, diff_id })
        });
        let layers = layers.collect::<Result<_, LayoutError>>()?;
        let config = ImageConfig::from_oci(&config).map_err(|field| refuse(format!("has a NUL in {field}")))?;
        Ok(Manifest { digest, layers, config })
    }

    fn document<T: DeserializeOwned>(&self, object: &str, bytes: &[u8]) -> Result<T, LayoutError> {
        serde_json::from_slice(bytes).map_err(|e| LayoutError::Malformed {
            object: object.to_owned(),
            reason: printable(e.to_string().as_bytes()),
        })
    }

    /// A top-level file, bounded.
    fn file(&self, name: &'static str, limits: &Limits) -> Result<Vec<u8>, LayoutError> {
        let object = || format!("`{}/{name}`", self.shown());
        let io = |source: std::io::Error| LayoutError::Io { object: object(), source };
        let (file, size) = match self.regular(name) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(LayoutError::NotALayout { layout: self.shown(), file: name });
            }
            other => other.map_err(io)?,
        };
        LimitError::check("bytes of a document", size, limits.document_bytes)
            .map_err(|source| LayoutError::Limit { object: object(), source })?;
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        file.take(size).read_to_end(&mut bytes).map_err(io)?;
        Ok(bytes)
    }

    /// A document blob, bounded and verified.
    fn blob(&self, digest: &Digest, size: u64, limits: &Limits) -> Result<Vec<u8>, LayoutError> {
        LimitError::check("bytes of a document", size, limits.document_bytes)
            .map_err(|source| LayoutError::Limit { object: format!("blob {digest}"), source })?;
        let file = self.open_blob(digest, size)?;
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        file.take(size)
            .read_to_end(&mut bytes)
            .map_err(|source| LayoutError::Io { object: format!("blob {digest}"), source })?;
        let mut hasher = digest.hasher();
        hasher.update(&bytes);
        check_digest(digest, hasher.finish())?;
        Ok(bytes)
    }

    /// A blob, its size checked but not its bytes.
    fn open_blob(&self, digest: &Digest, expected: u64) -> Result<File, LayoutError> {
        let path = format!("blobs/{}/{}", digest.algorithm(), digest.hex());
        let (file, actual) = match self.regular(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(LayoutError::NoBlob { digest: digest.clone(), layout: self.shown() });
            }
            other => other.map_err(|source| LayoutError::Io { object: format!("blob {digest}"), source })?,
        };
        // Before the digest: a truncated download is the common case, and costs no hashing to see.
        if actual != expected {
            return Err(LayoutError::Size { digest: digest.clone(), actual, expected });
        }
        Ok(file)
    }

    /// A regular file and its size. Symlinks are followed: some build tools link blobs, and the digest is checked.
    fn regular(&self, path: &str) -> std::io::Result<(File, u64)> {
        // NONBLOCK, so that a FIFO in its place does not hang us.
        let file = openat(&self.dir, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        Ok((File::from(file), u64::try_from(stat.st_size).unwrap_or(0)))
    }
}

impl Source for Layout {
    fn manifest(&self, limits: &Limits) -> Result<Manifest, LayoutError> {
        self.check_version(limits)?;
        let index: ImageIndex = self.document("index.json", &self.file("index.json", limits)?)?;
        let mut chosen = self.chosen(&index)?.clone();
        for _ in 0..NESTED {
            let digest = parse_digest(&chosen, "index.json")?;
            let object = format!("manifest {digest}");
            match chosen.media_type().as_ref() {
                "application/vnd.oci.image.manifest.v1+json"
                | "application/vnd.docker.distribution.manifest.v2+json" => {
                    let bytes = self.blob(&digest, chosen.size(), limits)?;
                    return self.read_manifest(digest, &chosen, &object, &bytes, limits);
                }
                "application/vnd.oci.image.index.v1+json"
                | "application/vnd.docker.distribution.manifest.list.v2+json" => {
                    let bytes = self.blob(&digest, chosen.size(), limits)?;
                    let index: ImageIndex = self.document(&object, &bytes)?;
                    same_media_type(index.media_type().as_ref(), &chosen, &object)?;
                    chosen = for_this_machine(index.manifests().iter())?.clone();
                }
                other => return Err(unsupported(&object, "has the media type", other, "not an image manifest")),
            }
        }
        Err(LayoutError::Unsupported {
            object: "the image index".into(),
            reason: format!("is nested more than {NESTED} times"),
        })
    }

    fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send + '_>, LayoutError> {
        Ok(Box::new(self.open_blob(&layer.digest, layer.size)?))
    }
}

fn parse_digest(descriptor: &Descriptor, object: &str) -> Result<Digest, LayoutError> {
    let digest = descriptor.digest().as_ref().parse();
    digest.map_err(|source| LayoutError::Digest { object: object.to_owned(), source })
}

fn unsupported(object: &str, what: &str, value: &str, why: &str) -> LayoutError {
    LayoutError::Unsupported {
        object: object.to_owned(),
        reason: format!("{what} `{}`: {why}", printable(value.as_bytes())),
    }
}

/// A document that says it is another kind than its descriptor says is read differently by different programs
/// (CVE-2021-41190).
fn same_media_type(
    says: Option<&oci_spec::image::MediaType>,
    descriptor: &Descriptor,
    object: &str,
) -> Result<(), LayoutError> {
    match says {
        Some(says) if says != descriptor.media_type() => {
            Err(unsupported(object, "says that it is", says.as_ref(), "its descriptor says otherwise"))
        }
        _ => Ok(()),
    }
}

fn compression(layer: &Descriptor, digest: &Digest) -> Result<Compression, LayoutError> {
    match layer.media_type().as_ref() {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Ok(Compression::None)
        }
        "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            Ok(Compression::Gzip)
        }
        "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            Ok(Compression::Zstd)
        }
        other => {
            let why = if other.contains("nondistributable") || other.contains("foreign") {
                "its bytes are not part of the image"
            } else if other.contains("encrypted") {
                "encrypted layers cannot be read"
            } else {
                "not a layer that can be unpacked"
            };
            Err(unsupported(&format!("layer {digest}"), "has the media type", other, why))
        }
    }
}

fn tag_of(descriptor: &Descriptor) -> Option<&str> {
    descriptor.annotations().as_ref()?.get(REF_NAME).map(String::as_str)
}

fn available(index: &ImageIndex) -> String {
    const SHOWN: usize = 20;
    let mut names: Vec<String> = Vec::new();
    for descriptor in index.manifests().iter().take(SHOWN) {
        names.push(match tag_of(descriptor) {
            Some(tag) => printable(tag.as_bytes()),
            None => format!("@{}", printable(descriptor.digest().as_ref().as_bytes())),
        });
    }
    match index.manifests().len() {
        0 => "none".into(),
        n if n > SHOWN => format!("{} and {} more", names.join(", "), n - SHOWN),
        _ => names.join(", "),
    }
}

/// The host's architecture in Go's words.
fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// The manifest for linux on this machine; among variants, the one every machine of the architecture runs.
fn for_this_machine<'d>(among: impl Iterator<Item = &'d Descriptor>) -> Result<&'d Descriptor, LayoutError> {
    let mut best: Option<&Descriptor> = None;
    let mut seen = Vec::new();
    for descriptor in among {
        let Some(platform) = descriptor.platform() else { continue };
        let (os, architecture) = (platform.os().to_string(), platform.architecture().to_string());
        let variant = platform.variant().as_deref();
        if os == "linux" && architecture == host_architecture() {
            if matches!(variant, None | Some("" | "v1" | "v8")) {
                return Ok(descriptor);
            }
            best = best.or(Some(descriptor));
        }
        if seen.len() < 20 {
            seen.push(printable(format!("{os}/{architecture}").as_bytes()));
        }
    }
    best.ok_or_else(|| LayoutError::Platform {
        wanted: format!("linux/{}", host_architecture()),
        available: if seen.is_empty() { "no platform that is named".into() } else { seen.join(", ") },
    })
}
