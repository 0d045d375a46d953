//! Taking things out of the store: names, and what no name and no job needs any more.
//!
//! Under the exclusive lock things are only renamed into one directory of `tmp/`; it is emptied when the lock is free again.
//! Invariant: a layer that an image with a name or a job needs is never moved, and a crash leaves only what the next
//! sweep removes.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::path::PathBuf;

use oci_spec::image::ImageManifest;
use rustix::fs::{Mode, RenameFlags, mkdirat, renameat_with};
use rustix::io::Errno;

use super::hold::Hold;
use super::names::Named;
use super::{Layers, Store, StoreError};
use crate::digest::Digest;
use crate::lock::{Lock, sweep};
use crate::removal::remove_all;

/// What jobs use. Asked for under the lock, so that no job can begin meanwhile.
#[derive(Clone, Debug, Default)]
pub struct InUse {
    /// Host paths of unpacked layers (`…/layers/KEY/fs`).
    pub layers: BTreeSet<PathBuf>,
    /// Manifest digests.
    pub images: BTreeSet<String>,
}

/// What [`Cleaning::unneeded`] found, or an image's own part of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rubbish {
    /// References of images whose names go.
    pub names: Vec<String>,
    /// DiffIDs and bytes of unpacked layers.
    pub layers: Vec<(String, u64)>,
    /// Digests and bytes of manifests and configs.
    pub documents: Vec<(String, u64)>,
    /// Broken-off downloads, and their bytes.
    pub partials: Vec<(String, u64)>,
    /// Files that are no names any more.
    damaged: Vec<String>,
    keys: Vec<String>,
}

impl Rubbish {
    /// Bytes that removing it frees.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let all = self.layers.iter().chain(&self.documents).chain(&self.partials);
        all.fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Rubbish::default()
    }
}

/// The store, with nobody else looking for layers in it.
#[derive(Debug)]
pub struct Cleaning<'s> {
    store: &'s Store,
    hold: Hold,
}

impl Store {
    /// Takes the lock of those who remove; `busy` is called before a wait.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn clean(&self, busy: &mut dyn FnMut()) -> Result<Cleaning<'_>, StoreError> {
        Ok(Cleaning { store: self, hold: self.alone(busy)? })
    }
}

impl Cleaning<'_> {
    /// What neither a name nor a job needs; with `all` also the images that no job uses.
    ///
    /// # Errors
    /// [`StoreError`]: nothing was removed.
    pub fn unneeded(&self, in_use: &InUse, all: bool) -> Result<Rubbish, StoreError> {
        let names = self.store.names(&self.store.root)?;
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for named in names.whole {
            let used = !all || in_use.images.contains(&named.digest.to_string());
            // Without its config an image cannot be run and its layers are not known: it has to be pulled again anyway.
            let layers = self.store.layers_of(&named)?;
            match layers.filter(|_| used) {
                Some(layers) => kept.push((named, layers)),
                None => gone.push(named),
            }
        }
        let mut rubbish = self.beyond(&kept, in_use, |_| true)?;
        rubbish.names = gone.into_iter().map(|named| named.reference).collect();
        rubbish.damaged = names.damaged;
        rubbish.partials = self.store.old_partials(std::time::Duration::ZERO)?;
        Ok(rubbish)
    }

    /// The names in `references`, and what only their images need.
    ///
    /// # Errors
    /// [`StoreError`]: nothing was removed.
    pub fn only_for(&self, references: &[String], in_use: &InUse) -> Result<Rubbish, StoreError> {
        let (mut kept, mut own) = (Vec::new(), BTreeSet::new());
        for named in self.store.names(&self.store.root)?.whole {
            let layers = self.store.layers_of(&named)?;
            if references.contains(&named.reference) {
                own.extend([named.digest.to_string(), named.config.to_string()]);
                own.extend(layers.iter().flat_map(Layers::keys));
            } else if let Some(layers) = layers {
                kept.push((named, layers));
            }
        }
        let mut rubbish = self.beyond(&kept, in_use, |name| own.contains(name))?;
        rubbish.names = references.to_vec();
        Ok(rubbish)
    }

    /// Layers and documents that no image of `kept` and no job needs, as far as `wanted`.
    fn beyond(
        &self,
        kept: &[(Named, Layers)],
        in_use: &InUse,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Rubbish, StoreError> {
        let store = self.store;
        let mut keys: BTreeSet<String> = kept.iter().flat_map(|(_, layers)| layers.keys()).collect();
        keys.extend(in_use.layers.iter().filter_map(|path| {
            let key = path.strip_prefix(store.path.join("layers")).ok()?.components().next()?;
            Some(key.as_os_str().to_str()?.to_owned())
        }));
        let mut documents: BTreeSet<Digest> =
            kept.iter().flat_map(|(named, _)| [named.digest.clone(), named.config.clone()]).collect();
        for digest in in_use.images.iter().filter_map(|text| text.parse::<Digest>().ok()) {
            documents.extend(self.config_of(&digest)?);
            documents.insert(digest);
        }
        let mut rubbish = Rubbish::default();
        for key in store.list(&store.root, "layers")? {
            if !keys.contains(&key) && wanted(&key) {
                let bytes = store.facts(&store.path, &key)?.map_or(0, |facts| facts.bytes);
                rubbish.layers.push((Layers::shown(&key), bytes));
                rubbish.keys.push(key);
            }
        }
        for (digest, bytes) in store.documents()? {
            if !documents.contains(&digest) && wanted(&digest.to_string()) {
                rubbish.documents.push((digest.to_string(), bytes));
            }
        }
        Ok(rubbish)
    }

    /// The config that a manifest leads to. A job's image may have lost its name; what the job wrote can be committed all
    /// the same.
    fn config_of(&self, manifest: &Digest) -> Result<Option<Digest>, StoreError> {
        let bytes = self.store.document(manifest)?;
        let manifest = bytes.and_then(|bytes| serde_json::from_slice::<ImageManifest>(&bytes).ok());
        Ok(manifest.and_then(|manifest| manifest.config().digest().to_string().parse().ok()))
    }

    /// Removes it. Names go first: whoever looks an image up afterwards does not find half of one.
    ///
    /// # Errors
    /// [`StoreError`]; what was not removed is found again by the next call.
    pub fn remove(self, rubbish: &Rubbish) -> Result<(), StoreError> {
        let Cleaning { store, hold } = self;
        for reference in &rubbish.names {
            store.forget(&super::names::file_name(reference))?;
        }
        for file in &rubbish.damaged {
            store.forget(file)?;
        }
        for (digest, _) in &rubbish.documents {
            if let Ok(digest) = digest.parse() {
                store.forget_document(&digest)?;
            }
        }
        store.remove_partials(&rubbish.partials)?;
        let trash = format!("removed-{}", std::process::id());
        let io = |action| StoreError::io(action, &store.path);
        let _lock = Lock::acquire(store.tmp.as_fd(), &trash, &mut || {}).map_err(io("lock"))?;
        let name = CString::new(trash.as_str()).unwrap_or_default();
        remove_all(store.tmp.as_fd(), &name).map_err(io("clean up"))?;
        mkdirat(&store.tmp, &name, Mode::RWXU).map_err(io("make a directory in"))?;
        for key in &rubbish.keys {
            match renameat_with(&store.layers, key, &store.tmp, format!("{trash}/{key}"), RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(io("take a layer out of")(errno)),
            }
        }
        drop(hold);
        remove_all(store.tmp.as_fd(), &name).map_err(io("remove from"))?;
        sweep(&store.tmp).map_err(io("clean up"))
    }
}
