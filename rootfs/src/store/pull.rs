//! Pulling: the layers a store does not have, locked, unpacked in parallel, verified, and published together.
//!
//! Invariant: nothing is renamed into `layers/` before its blob's size and digest and its DiffID were verified.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, XattrFlags, fsetxattr, mkdirat, openat, renameat};
use rustix::io::Errno;

use super::{Event, FACTS, Facts, Fetch, Hold, ImageError, LayerError, Progress, Store, StoreError, partial};
use crate::limits::Limits;
use crate::lock::{Lock, sweep};
use crate::removal::remove_all;
use crate::source::{Layer, Source, SourceError, check_digest, is_stopped};
use crate::stream::{self, LayerStream, StreamError};
use crate::unpack::{Report, TarError, UnpackError, unpack};

/// A progress event for so many bytes.
const PROGRESS_STEP: u64 = 1 << 20;
/// How soon waiting for bytes ends when it has become pointless.
const STOPPED_WITHIN: Duration = Duration::from_millis(100);
/// Blobs of fewer bytes are unpacked by one thread: starting more takes longer than they would save.
const THREADS_FROM: u64 = 256 << 10;

impl Store {
    pub(super) fn pull(
        &self,
        source: &dyn Source,
        mut missing: Vec<&Layer>,
        fetch: &mut Fetch<'_>,
    ) -> Result<Hold, ImageError> {
        sweep(&self.tmp).map_err(self.io("clean up"))?;
        self.remove_partials(&self.old_partials(partial::KEPT)?)?;
        // All locks before any work, in one order everywhere: two pulls that share layers cannot wait for each other.
        missing.sort_by_key(|layer| Store::key(layer));
        let mut held = Vec::new();
        for layer in missing {
            let mut busy = || (fetch.tell)(Event::Waiting(layer.name().to_string()));
            let lock = Lock::acquire(self.tmp.as_fd(), &Store::key(layer), &mut busy);
            let lock = lock.map_err(self.io("lock a layer in"))?;
            if !self.has(layer)? {
                held.push((layer, lock));
            }
        }
        // The largest first: it decides how long the whole takes.
        held.sort_by_key(|(layer, _)| std::cmp::Reverse(layer.size));
        let jobs: Vec<&Layer> = held.iter().map(|(layer, _)| *layer).collect();
        let (unpacked, failed) = self.unpack_all(source, &jobs, fetch);
        let published = self.publish(&unpacked);
        for layer in jobs {
            let name = Store::key(layer);
            if let Ok(name) = std::ffi::CString::new(name) {
                // Published ones are no longer here. What cannot be removed now is swept by the next pull.
                remove_all(self.tmp.as_fd(), &name).ok();
            }
        }
        match failed {
            Some(error) if !is_stop(&error) => Err(error),
            // A layer that was not begun is no failure, but not there either.
            _ if fetch.stop.load(Ordering::Relaxed) => Err(ImageError::Interrupted),
            _ => Ok(published?),
        }
    }

    /// Unpacks `jobs` in order on as many threads as there are cores. Returns what is complete, and the first failure.
    fn unpack_all<'l>(
        &self,
        source: &dyn Source,
        jobs: &[&'l Layer],
        fetch: &mut Fetch<'_>,
    ) -> (Vec<&'l Layer>, Option<ImageError>) {
        let Fetch { limits, tell, stop: cancel, .. } = fetch;
        let (limits, cancel) = (*limits, *cancel);
        let next = Mutex::new(jobs.iter());
        let outcome = Mutex::new((Vec::new(), None));
        let (sender, receiver) = mpsc::channel::<Progress>();
        let work = |sender: Sender<Progress>| {
            loop {
                let job = next.lock().ok().and_then(|mut jobs| jobs.next().copied());
                let Some(layer) = job.filter(|_| !cancel.load(Ordering::Relaxed)) else { return };
                let result = self.unpack_one(source, layer, limits, cancel, &sender);
                let Ok(mut outcome) = outcome.lock() else { return };
                match result {
                    Ok(()) => outcome.0.push(layer),
                    // The first failure is the cause; later ones may only be the others being told to stop.
                    Err(source) if outcome.1.is_none() => {
                        cancel.store(true, Ordering::Relaxed);
                        if !may_go_on(&source) {
                            partial::remove(&self.tmp, layer.name());
                        }
                        let (digest, source) = (layer.name().clone(), Box::new(source));
                        outcome.1 = Some(ImageError::Layer { digest, source });
                    }
                    Err(_) => {}
                }
            }
        };
        let cores = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..cores.min(jobs.len()) {
                let sender = sender.clone();
                scope.spawn(|| work(sender));
            }
            drop(sender);
            let mut stopped = false;
            loop {
                match receiver.recv_timeout(STOPPED_WITHIN) {
                    Ok(event) => tell(Event::Layer(event)),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                // Threads that wait for the network look at nothing else.
                if !stopped && cancel.load(Ordering::Relaxed) {
                    source.stop();
                    stopped = true;
                }
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
            let (digest, bytes_total) = (layer.name().to_string(), layer.size);
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
            digest: layer.name(),
            diff_id: &layer.diff_id,
            on_read: &on_read,
            cancel,
        };
        let unpack = |stream: Result<LayerStream<'_>, StreamError>| {
            stream.map_err(|e| UnpackError::Archive(e.into())).and_then(|stream| unpack(stream, root, limits))
        };
        let result = if layer.size < THREADS_FROM {
            unpack(LayerStream::new(from, limits))
        } else {
            thread::scope(|scope| unpack(LayerStream::ahead(scope, from, limits)))
        };
        let unpacked = match result {
            Ok(unpacked) => unpacked,
            Err(error) => {
                // Damaged bytes fail in many ways; that they are damaged is the better answer. Bytes that never came do not.
                if !is_cancelled(&error) && !is_read(&error) {
                    verify_blob(source, layer)?;
                }
                return Err(error.into());
            }
        };
        if let Some(digest) = &layer.digest {
            check_digest(digest, unpacked.digest)?;
        }
        if unpacked.diff_id != layer.diff_id {
            return Err(LayerError::DiffId { expected: layer.diff_id.clone(), actual: unpacked.diff_id });
        }
        let Report { skipped_devices, dropped_xattrs } = unpacked.report;
        let facts = Facts { opaque_root: unpacked.opaque_root, bytes: unpacked.bytes, skipped_devices, dropped_xattrs };
        fsetxattr(&dir, FACTS, facts.to_string().as_bytes(), XattrFlags::empty())
            .map_err(self.io("set an attribute in"))?;
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

    /// From here on the layers are kept from those who remove what no image needs, until the image has its name.
    fn publish(&self, unpacked: &[&Layer]) -> Result<Hold, StoreError> {
        if !unpacked.is_empty() {
            // Before any rename: a crash of the host could leave a published layer of empty files.
            self.note_or_sync(&unpacked.iter().map(|layer| Store::key(layer)).collect::<Vec<_>>())?;
        }
        let hold = self.hold()?;
        for layer in unpacked {
            let key = Store::key(layer);
            renameat(&self.tmp, &key, &self.layers, &key).map_err(self.io("publish a layer in"))?;
            partial::remove(&self.tmp, layer.name());
        }
        Ok(hold)
    }

    fn io(&self, action: &'static str) -> impl Fn(Errno) -> StoreError + use<> {
        StoreError::io(action, &self.path)
    }
}

fn is_stop(error: &ImageError) -> bool {
    let ImageError::Layer { source, .. } = error else { return false };
    matches!(&**source, LayerError::Unpack(error) if is_cancelled(error))
}

fn is_cancelled(error: &UnpackError) -> bool {
    let (UnpackError::Archive(error) | UnpackError::Data { source: error, .. }) = error else { return false };
    match error {
        TarError::Stream(StreamError::Cancelled) => true,
        TarError::Stream(StreamError::Read(error)) => is_stopped(error),
        _ => false,
    }
}

fn is_read(error: &UnpackError) -> bool {
    let (UnpackError::Archive(error) | UnpackError::Data { source: error, .. }) = error else { return false };
    matches!(error, TarError::Stream(StreamError::Read(_)))
}

/// Whether the bytes that were downloaded may be good: the download or this machine failed, not what they say.
fn may_go_on(error: &LayerError) -> bool {
    match error {
        LayerError::Blob(SourceError::Io { .. }) | LayerError::Store(_) => true,
        LayerError::Unpack(UnpackError::Archive(error) | UnpackError::Data { source: error, .. }) => {
            matches!(error, TarError::Stream(StreamError::Cancelled | StreamError::Read(_)))
        }
        _ => false,
    }
}

fn verify_blob(source: &dyn Source, layer: &Layer) -> Result<(), SourceError> {
    let Some(digest) = &layer.digest else { return Ok(()) };
    let mut blob = source.layer(layer)?;
    let mut hasher = digest.hasher();
    let mut buffer = vec![0; 128 << 10];
    loop {
        let n = std::io::Read::read(&mut blob, &mut buffer)
            .map_err(|source| SourceError::Io { object: format!("blob {digest}"), source })?;
        if n == 0 {
            return check_digest(digest, hasher.finish());
        }
        hasher.update(&buffer[..n]);
    }
}
