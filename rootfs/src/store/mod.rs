//! The image store: one unpacked directory a DiffID, shared by all jobs and images of one user, and what images are called.
//!
//! ```text
//! STORE/                        0700: layers hold real setuid files
//!   layers/KEY/fs               one layer as overlayfs wants it; KEY = ALGORITHM-DIFFID-IDMODE (see `facts`, `accounts`)
//!   images/, blobs/             names, manifests, configs (see `names`)
//!   lock                        between starts and removals (see `hold`)
//!   tmp/KEY, tmp/KEY.lock       a layer being unpacked (see `lock`)
//!   tmp/blob-….partial          a download that was broken off (see `partial`)
//! ```
//! Invariant: `layers/KEY` appears by one rename, after the blob's size and digest and the DiffID were verified and the
//! bytes are on the disk. Keyed by anything unverified, one image could poison another's layer. Every file is written here
//! from the archive's bytes, never linked or cloned from a file that somebody can still write.

mod accounts;
mod error;
mod extra;
mod facts;
mod hold;
mod list;
mod names;
pub(crate) mod partial;
mod place;
mod prune;
mod pull;
#[cfg(test)]
mod tests;
mod unsynced;

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use oci_spec::image::ImageConfiguration;
use rustix::io::Errno;

use crate::config::ImageConfig;
use crate::digest::{Digest, DigestError};
use crate::limits::{Limits, Taken};
use crate::printable::printable;
use crate::reference::ImageRef;
use crate::source::document::read_config;
use crate::source::{self, Layer, Machine, Manifest, RegistryConfig, Remote, Source};

pub use self::error::{ImageError, LayerError, StoreError};
use self::extra::Extra;
use self::facts::{FACTS, Facts, LONGEST};
pub use self::hold::Hold;
pub use self::list::{Details, LayerDetails, Listed};
use self::names::Named;
pub use self::place::Places;
pub use self::place::suitable;
use self::place::{Place, directory};
pub use self::prune::{Cleaning, InUse, Rubbish};
pub use self::unsynced::WriteBack;

/// Owners are squashed to the store's owner. Part of the key: another mode would need other layers. The number changes
/// with what [`Facts`] are kept.
const ID_MODE: &str = "squash1";

/// How often a pull whose layers were removed meanwhile begins again.
const ROUNDS: usize = 3;

/// Whether an image is looked for outside the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pull {
    /// When the store does not have it. What lies on this machine is looked at each time: it may have changed, and that
    /// costs a few small reads.
    #[default]
    Missing,
    /// Each time; layers the store has are not fetched again.
    Always,
    /// Not at all.
    Never,
}

/// How an image is to be had, and who follows it.
pub struct Fetch<'f> {
    /// Whether it is looked for outside the store.
    pub pull: Pull,
    /// What it may ask of this machine.
    pub limits: &'f Limits,
    /// How registries are spoken to.
    pub registries: &'f RegistryConfig,
    /// Told what happens.
    pub tell: &'f mut dyn FnMut(Event),
    /// Set by the caller to end the pull; set by the pull itself when a layer failed.
    pub stop: &'f AtomicBool,
}

impl std::fmt::Debug for Fetch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fetch { pull, limits, stop, .. } = self;
        f.debug_struct("Fetch").field("pull", pull).field("limits", limits).field("stop", stop).finish_non_exhaustive()
    }
}

/// Something that happens while an image is made ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The store was made just now, and not in the first place: where, and why, in words.
    Placed(String),
    /// From here on it may take long. Comes before the first thread is started.
    Begun,
    /// Another process unpacks this layer (named by its blob's digest) already.
    Waiting(String),
    /// One layer goes on.
    Layer(Progress),
}

/// How far one layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The layer's blob.
    pub digest: String,
    /// Bytes of the blob read.
    pub bytes_done: u64,
    /// Bytes of the blob.
    pub bytes_total: u64,
    /// Whether the layer is unpacked and verified.
    pub done: bool,
    /// Device nodes left out, once done: an ordinary user cannot make them, and a job has a /dev of its own.
    pub skipped_devices: u64,
    /// Extended attributes left out, once done: all but the user's own, such as file capabilities.
    pub dropped_xattrs: u64,
}

/// An image whose layers are all unpacked.
#[derive(Debug)]
pub struct Image {
    /// Digest of the image's manifest.
    pub manifest_digest: String,
    config_digest: Digest,
    /// Absolute host paths of the unpacked layers, lowest first. No path is there twice: overlayfs refuses that.
    pub layers: Vec<PathBuf>,
    /// What the image says about running it.
    pub config: ImageConfig,
    /// Keeps the layers in the store: to be dropped once the job that uses them is on record.
    pub hold: Hold,
}

/// DiffIDs of an image's layers, lowest first.
#[derive(Debug)]
struct Layers(Vec<Digest>);

impl Layers {
    fn of(manifest: &Manifest) -> Layers {
        Layers(manifest.layers.iter().map(|layer| layer.diff_id.clone()).collect())
    }

    fn keys(&self) -> HashSet<String> {
        self.0.iter().map(key_of).collect()
    }

    /// The DiffID in a key, for people; the key itself where it is none of ours.
    fn shown(key: &str) -> String {
        match key.splitn(3, '-').collect::<Vec<_>>()[..] {
            [algorithm, hex, _] => printable(format!("{algorithm}:{hex}").as_bytes()),
            _ => printable(key.as_bytes()),
        }
    }
}

fn key_of(diff_id: &Digest) -> String {
    format!("{}-{}-{ID_MODE}", diff_id.algorithm(), diff_id.hex())
}

/// An opened store.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    root: OwnedFd,
    layers: OwnedFd,
    tmp: OwnedFd,
    extra: Vec<Extra>,
    note: Option<String>,
}

impl Store {
    /// Opens the store, making it (0700) where there is none: in the first of `places` whose file system can carry it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(places: &Places) -> Result<Store, StoreError> {
        Store::at(places.find_or_make()?, places)
    }

    /// Opens the store if there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn existing(places: &Places) -> Result<Option<Store>, StoreError> {
        match places.find()? {
            Some(place) => Store::at(place, places).map(Some),
            // Somebody else's alone can be used too, and then there has to be an own one to lock.
            None if !places.extra.is_empty() => Store::open(places).map(Some),
            None => Ok(None),
        }
    }

    fn at(place: Place, places: &Places) -> Result<Store, StoreError> {
        let Place { path, root, layers, note } = place;
        let tmp = directory(&root, c"tmp").map_err(StoreError::io("open", &path))?;
        let extra = places.extra.iter().map(|path| Extra::open(path)).collect::<Result<_, _>>()?;
        let store = Store { path, root, layers, tmp, extra, note };
        store.look_at_notes()?;
        Ok(store)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The image that `reference` names, its missing layers unpacked in parallel.
    ///
    /// When all layers are here this reads four small documents at most and looks at each layer once.
    ///
    /// # Errors
    /// [`ImageError`]. Layers that were finished stay in the store.
    pub fn image(&self, reference: &ImageRef, fetch: &mut Fetch<'_>) -> Result<Image, ImageError> {
        if let Some(note) = &self.note {
            (fetch.tell)(Event::Placed(note.clone()));
        }
        let name = reference.to_string();
        let local = is_local(reference);
        if fetch.pull == Pull::Never || (fetch.pull == Pull::Missing && !local) {
            if let Some(named) = self.named(&name)?
                && let Some(image) = self.known(&named)?
            {
                return Ok(image);
            }
            if fetch.pull == Pull::Never {
                return Err(ImageError::NotHere(printable(name.as_bytes())));
            }
        }
        if !local {
            (fetch.tell)(Event::Begun);
        }
        let partial = |digest: &Digest| partial::open(&self.tmp, digest).ok().flatten();
        let remote = Remote { config: fetch.registries, partial: &partial, stop: fetch.stop };
        let source = source::open(reference, &remote, fetch.limits)?;
        let source = source.ok_or_else(|| ImageError::NothingToPull(printable(name.as_bytes())))?;
        // What has the digest was verified when it was pulled.
        if fetch.pull == Pull::Missing
            && let Some(digest) = source.digest()
            && let Some(named) = self.named(&name)?.filter(|named| named.digest == *digest)
            && let Some(image) = self.known(&named)?
        {
            return Ok(image);
        }
        let manifest = source.manifest(fetch.limits)?;
        self.provide(&name, &*source, manifest, fetch)
    }

    /// The image of `manifest`, its missing layers unpacked, by the name `name`.
    pub(crate) fn provide(
        &self,
        name: &str,
        source: &dyn Source,
        manifest: Manifest,
        fetch: &mut Fetch<'_>,
    ) -> Result<Image, ImageError> {
        let layers = Layers::of(&manifest);
        let mut hold = self.hold()?;
        for _ in 0..ROUNDS {
            let found = self.look(&layers)?;
            let missing = missing(&manifest, &found);
            if missing.is_empty() {
                let named = self.named(name)?;
                if named.is_none_or(|named| named.digest != manifest.digest || named.config != manifest.config_digest) {
                    self.remember(name, &manifest)?;
                }
                let digests = (&manifest.digest, &manifest.config_digest);
                return Ok(assemble(&layers, &found, digests, manifest.config, hold));
            }
            drop(hold);
            (fetch.tell)(Event::Begun);
            let there = found.iter().flatten().fold(0u64, |sum, (_, facts)| sum.saturating_add(facts.bytes));
            hold = self.pull(source, missing, &Taken::with(there), fetch)?;
        }
        Err(ImageError::Contended(printable(name.as_bytes())))
    }

    /// A known image, if everything it needs is here.
    fn known(&self, named: &Named) -> Result<Option<Image>, ImageError> {
        let Some(bytes) = self.document(&named.config)? else { return Ok(None) };
        let (config, diff_ids) = read_config(&named.config, &bytes, &Machine::this())?;
        let hold = self.hold()?;
        let layers = Layers(diff_ids);
        let found = self.look(&layers)?;
        let is_whole = found.iter().all(Option::is_some);
        Ok(is_whole.then(|| assemble(&layers, &found, (&named.digest, &named.config), config, hold)))
    }

    /// The layers of a named image; `None` where its config is not here any more.
    fn layers_of(&self, named: &Named) -> Result<Option<Layers>, StoreError> {
        let Some(bytes) = self.document(&named.config)? else { return Ok(None) };
        // An image for another machine, in a store that machines of several kinds share, is an image all the same.
        let config = serde_json::from_slice::<ImageConfiguration>(&bytes).ok();
        let diff_ids = config.map(|config| config.rootfs().diff_ids().iter().map(|text| text.parse()).collect());
        Ok(diff_ids.and_then(|diff_ids: Result<_, DigestError>| diff_ids.ok()).map(Layers))
    }

    /// Looks at each layer once.
    fn look(&self, layers: &Layers) -> Result<Vec<Option<Found<'_>>>, StoreError> {
        layers.0.iter().map(|diff_id| self.find(diff_id)).collect()
    }

    /// The store that has a layer, and what is known of it.
    fn find(&self, diff_id: &Digest) -> Result<Option<Found<'_>>, StoreError> {
        let key = key_of(diff_id);
        if let Some(facts) = self.facts(&self.path, &key)? {
            return Ok(Some((&self.path, facts)));
        }
        for extra in &self.extra {
            if let Some(facts) = self.facts(&extra.path, &key)? {
                extra.check_layer(&key)?;
                return Ok(Some((&extra.path, facts)));
            }
        }
        Ok(None)
    }

    /// Looks at one layer, with one system call.
    fn facts(&self, store: &Path, key: &str) -> Result<Option<Facts>, StoreError> {
        let mut value = [0u8; LONGEST];
        let lost = || StoreError::Layer {
            layer: printable(key.as_bytes()),
            path: printable(store.as_os_str().as_encoded_bytes()),
        };
        match rustix::fs::lgetxattr(store.join("layers").join(key), FACTS, &mut value) {
            Ok(length) => {
                let text = value.get(..length).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
                text.parse().map(Some).map_err(|_malformed| lost())
            }
            Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Err(lost()),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(StoreError::io("look into", store)(errno)),
        }
    }

    /// Whether this very store has a layer.
    fn has(&self, layer: &Layer) -> Result<bool, StoreError> {
        Ok(self.facts(&self.path, &Store::key(layer))?.is_some())
    }

    fn key(layer: &Layer) -> String {
        key_of(&layer.diff_id)
    }

    /// The own store, then the others.
    fn roots(&self) -> impl Iterator<Item = &OwnedFd> {
        std::iter::once(&self.root).chain(self.extra.iter().map(|extra| &extra.root))
    }

    fn shown(&self) -> String {
        printable(self.path.as_os_str().as_encoded_bytes())
    }
}

/// The store that has a layer, and what is known of it.
type Found<'s> = (&'s Path, Facts);

/// The image of `layers`, which were all found; `manifest` and `config_digest` are its documents'.
fn assemble(
    layers: &Layers,
    found: &[Option<Found<'_>>],
    (manifest, config_digest): (&Digest, &Digest),
    config: ImageConfig,
    hold: Hold,
) -> Image {
    let mut paths: Vec<PathBuf> = Vec::with_capacity(found.len());
    let mut seen = HashSet::with_capacity(found.len());
    let found = layers.0.iter().zip(found).filter_map(|(diff_id, found)| Some((diff_id, found.as_ref()?)));
    for (diff_id, (store, facts)) in found.rev() {
        // Of equal layers the topmost decides: it repeats whatever the lower one did.
        if seen.insert(diff_id) {
            paths.push(store.join("layers").join(key_of(diff_id)).join("fs"));
        }
        if facts.opaque_root {
            break;
        }
    }
    paths.reverse();
    let (manifest_digest, config_digest) = (manifest.to_string(), config_digest.clone());
    Image { manifest_digest, config_digest, layers: paths, config, hold }
}

/// The layers that were not found, each once.
fn missing<'m>(manifest: &'m Manifest, found: &[Option<Found<'_>>]) -> Vec<&'m Layer> {
    let mut missing: Vec<&Layer> = Vec::new();
    for (layer, found) in manifest.layers.iter().zip(found) {
        if found.is_none() && !missing.iter().any(|known| known.diff_id == layer.diff_id) {
            missing.push(layer);
        }
    }
    missing
}

/// Whether the reference leads to files of this machine, which may change under the same name.
fn is_local(reference: &ImageRef) -> bool {
    !matches!(reference, ImageRef::Registry(_))
}
