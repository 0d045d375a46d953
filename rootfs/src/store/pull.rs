//! Pulling: the layers a store does not have, locked, unpacked in parallel, verified, and published together.
//!
//! Invariant: nothing is renamed into `layers/` before its blob's size and digest and its DiffID were verified.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};

use rustix::fs::{Mode, OFlags, XattrFlags, fsetxattr, mkdirat, openat, renameat, syncfs};
use rustix::io::Errno;

use super::{ImageError, LayerError, OPAQUE_ROOT, Presence, Progress, Store, StoreError};
use crate::limits::Limits;
use crate::lock::{Lock, sweep};
use crate::removal::remove_all;
use crate::source::{Layer, LayoutError, Source, check_digest};
use crate::stream::{self, LayerStream, StreamError};
use crate::unpack::{Report, TarError, UnpackError, unpack};

/// A progress event for so many bytes.
const PROGRESS_STEP: u64 = 1 << 20;

impl Store {
    pub(super) fn pull(
        &self,
        source: &dyn Source,
        mut missing: Vec<&Layer>,
        limits: &Limits,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), ImageError> {
        sweep(&self.tmp).map_err(self.io("clean up"))?;
        // All locks before any work, in one order everywhere: two pulls that share layers cannot wait for each other.
        missing.sort_by_key(|layer| Store::key(layer));
        let mut held = Vec::new();
        for layer in missing {
            let lock = Lock::acquire(self.tmp.as_fd(), &Store::key(layer)).map_err(self.io("lock a layer in"))?;
            if self.presence(layer)? == Presence::Missing {
                held.push((layer, lock));
            }
        }
        // The largest first: it decides how long the whole takes.
        held.sort_by_key(|(layer, _)| std::cmp::Reverse(layer.size));
        let jobs: Vec<&Layer> = held.iter().map(|(layer, _)| *layer).collect();
        let (unpacked, failed) = self.unpack_all(source, &jobs, limits, progress);
        let published = self.publish(&unpacked);
        for layer in jobs {
            let name = Store::key(layer);
            if let Ok(name) = std::ffi::CString::new(name) {
                // Published ones are no longer here. What cannot be removed now is swept by the next pull.
                remove_all(self.tmp.as_fd(), &name).ok();
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(published?),
        }
    }

    /// Unpacks `jobs` in order on as many threads as there are cores. Returns what is complete, and the first failure.
    fn unpack_all<'l>(
        &self,
        source: &dyn Source,
        jobs: &[&'l Layer],
        limits: &Limits,
        progress: &mut dyn FnMut(Progress),
    ) -> (Vec<&'l Layer>, Option<ImageError>) {
        let next = Mutex::new(jobs.iter());
        let cancel = AtomicBool::new(false);
        let outcome = Mutex::new((Vec::new(), None));
        let (sender, receiver) = mpsc::channel::<Progress>();
        let work = |sender: Sender<Progress>| {
            loop {
                let job = next.lock().ok().and_then(|mut jobs| jobs.next().copied());
                let Some(layer) = job.filter(|_| !cancel.load(Ordering::Relaxed)) else { return };
                let result = self.unpack_one(source, layer, limits, &cancel, &sender);
                let Ok(mut outcome) = outcome.lock() else { return };
                match result {
                    Ok(()) => outcome.0.push(layer),
                    // The first failure is the cause; later ones may only be the others being told to stop.
                    Err(source) if outcome.1.is_none() => {
                        cancel.store(true, Ordering::Relaxed);
                        outcome.1 = Some(ImageError::Layer { digest: layer.digest.clone(), source });
                    }
                    Err(_) => {}
                }
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..cores.min(jobs.len()) {
                let sender = sender.clone();
                scope.spawn(|| work(sender));
            }
            drop(sender);
            for event in receiver {
                progress(event);
            }
        });
        // Nothing panics while holding the lock; a poisoned one would only mean fewer layers.
        outcome.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Unpacks and verifies one layer into `tmp/KEY`.
    fn unpack_one(
        &self,
        source: &dyn Source,
        layer: &Layer,
        limits: &Limits,
        cancel: &AtomicBool,
        sender: &Sender<Progress>,
    ) -> Result<(), LayerError> {
        let blob = source.layer(layer)?;
        let (dir, root) = self.make_tmp(&Store::key(layer)).map_err(self.io("make a directory in"))?;
        let tell = |bytes_done: u64, done: Option<Report>| {
            let Report { skipped_devices, dropped_xattrs } = done.unwrap_or_default();
            let (digest, bytes_total) = (layer.digest.to_string(), layer.size);
            let done = done.is_some();
            // Nobody listening is no reason to stop.
            sender.send(Progress { digest, bytes_done, bytes_total, done, skipped_devices, dropped_xattrs }).ok();
        };
        tell(0, None);
        let told = AtomicU64::new(0);
        let on_read = |read: u64| {
            if read >= told.load(Ordering::Relaxed) + PROGRESS_STEP {
                told.store(read, Ordering::Relaxed);
                tell(read, None);
            }
        };
        let from = stream::Source {
            blob,
            compression: layer.compression,
            digest: &layer.digest,
            diff_id: &layer.diff_id,
            on_read: &on_read,
            cancel,
        };
        let result = LayerStream::new(from, limits)
            .map_err(|e| UnpackError::Archive(e.into()))
            .and_then(|stream| unpack(stream, root, limits));
        let unpacked = match result {
            Ok(unpacked) => unpacked,
            Err(error) => {
                // Damaged bytes fail in many ways; that they are damaged is the better answer.
                let content = !matches!(&error, UnpackError::Archive(TarError::Stream(StreamError::Cancelled)));
                if content {
                    verify_blob(source, layer)?;
                }
                return Err(error.into());
            }
        };
        check_digest(&layer.digest, unpacked.digest)?;
        if unpacked.diff_id != layer.diff_id {
            return Err(LayerError::DiffId { expected: layer.diff_id.clone(), actual: unpacked.diff_id });
        }
        if unpacked.opaque_root {
            fsetxattr(&dir, OPAQUE_ROOT, b"y", XattrFlags::empty()).map_err(self.io("set an attribute in"))?;
        }
        tell(layer.size, Some(unpacked.report));
        Ok(())
    }

    /// A fresh `tmp/KEY` with `fs` in it; what a dead process left there goes.
    fn make_tmp(&self, key: &str) -> rustix::io::Result<(OwnedFd, OwnedFd)> {
        let name = std::ffi::CString::new(key).map_err(|_nul| Errno::INVAL)?;
        remove_all(self.tmp.as_fd(), &name)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        mkdirat(&self.tmp, &name, Mode::RWXU)?;
        let dir = openat(&self.tmp, &name, flags, Mode::empty())?;
        mkdirat(&dir, c"fs", Mode::RWXU)?;
        let root = openat(&dir, c"fs", flags, Mode::empty())?;
        Ok((dir, root))
    }

    fn publish(&self, unpacked: &[&Layer]) -> Result<(), StoreError> {
        if unpacked.is_empty() {
            return Ok(());
        }
        // Once a pull, before any rename: else a host crash could leave a published layer of empty files.
        syncfs(&self.tmp).map_err(self.io("write back"))?;
        for layer in unpacked {
            let key = Store::key(layer);
            renameat(&self.tmp, &key, &self.layers, &key).map_err(self.io("publish a layer in"))?;
        }
        Ok(())
    }
}

fn verify_blob(source: &dyn Source, layer: &Layer) -> Result<(), LayoutError> {
    let mut blob = source.layer(layer)?;
    let mut hasher = layer.digest.hasher();
    let mut buffer = vec![0; 128 << 10];
    loop {
        let n = std::io::Read::read(&mut blob, &mut buffer)
            .map_err(|source| LayoutError::Io { object: format!("blob {}", layer.digest), source })?;
        if n == 0 {
            return check_digest(&layer.digest, hasher.finish());
        }
        hasher.update(&buffer[..n]);
    }
}
