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
use crate::limits::{Limits, Taken};
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
/// Layers that are downloaded at once even on a single core, as docker does: while one waits for the network, others come.
const DOWNLOADS: usize = 3;
/// Bytes of memory for all layers that are read at once. A pull takes 64 MiB at most; the rest of it is the program and
/// its connections. So on a machine of many cores no more than 4 layers of zstd are unpacked at once, 11 of gzip, each by
/// up to four threads.
const MEMORY: usize = 54 << 20;

impl Store {
    pub(super) fn pull(
        &self,
        source: &dyn Source,
        mut missing: Vec<&Layer>,
        taken: &Taken,
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
        let (unpacked, failed) = self.unpack_all(source, &jobs, taken, fetch);
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

    /// Unpacks `jobs` in order, [`at_once`] of them at a time. Returns what is complete, and the first failure.
    fn unpack_all<'l>(
        &self,
        source: &dyn Source,
        jobs: &[&'l Layer],
        taken: &Taken,
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
                let result = loop {
                    let result = self.unpack_one(source, layer, (limits, taken), cancel, &sender);
                    let is_corrupt = matches!(result, Err(LayerError::Blob(SourceError::Corrupt { .. })));
                    if !is_corrupt || !source.leave(layer) {
                        break result;
                    }
                    // The next place begins anew. What was unpacked in vain counts on: limits are held all the same.
                    partial::remove(&self.tmp, layer.name());
                };
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
            for _ in 0..at_once(cores, source.is_remote(), jobs) {
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
        (limits, taken): (&Limits, &Taken),
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
            taken,
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

/// How many of `jobs` are worked on at once.
fn at_once(cores: usize, remote: bool, jobs: &[&Layer]) -> usize {
    let wanted = if remote { cores.max(DOWNLOADS) } else { cores };
    let each = jobs.iter().map(|layer| stream::memory(layer.compression)).max().unwrap_or(MEMORY);
    wanted.min((MEMORY / each).max(1)).min(jobs.len())
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Condvar;

    use super::super::{Places, Pull};
    use super::*;
    use crate::source::{Manifest, RegistryConfig};
    use crate::stream::Compression;
    use crate::stream::tests::sha256;

    /// Layers of which none can be read before so many of them are.
    struct Together {
        wanted: usize,
        begun: Mutex<usize>,
        changed: Condvar,
    }

    impl Source for Together {
        fn manifest(&self, _: &Limits) -> Result<Manifest, SourceError> {
            panic!("nobody asks for it here")
        }

        fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send + '_>, SourceError> {
            let mut begun = self.begun.lock().unwrap();
            *begun += 1;
            self.changed.notify_all();
            let enough = self.changed.wait_timeout_while(begun, Duration::from_secs(60), |begun| *begun < self.wanted);
            assert!(!enough.unwrap().1.timed_out(), "one after another");
            Ok(Box::new(std::io::repeat(0).take(layer.size)))
        }
    }

    #[test]
    fn local_layers_are_unpacked_at_once_where_there_are_cores() {
        let cores = thread::available_parallelism().unwrap().get();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Places { own: vec![dir.path().join("store")], extra: Vec::new() }).unwrap();
        let (begun, changed) = (Mutex::new(0), Condvar::new());
        let source = Together { wanted: cores.min(2), begun, changed };
        // Archives without entries, of as many zeros as make each another.
        let layer = |blocks: u64| {
            let (size, diff_id) = (blocks * 512, sha256(&vec![0; usize::try_from(blocks * 512).unwrap()]));
            Layer { digest: None, size, compression: Compression::None, diff_id }
        };
        let layers = [layer(2), layer(4)];
        let (limits, registries, stop) = (Limits::default(), RegistryConfig::default(), AtomicBool::new(false));
        let tell = &mut |_| {};
        let mut fetch = Fetch { pull: Pull::Always, limits: &limits, registries: &registries, tell, stop: &stop };
        drop(store.pull(&source, layers.iter().collect(), &Taken::default(), &mut fetch).unwrap());
        assert!(layers.iter().all(|layer| store.has(layer).unwrap()));
    }

    /// The 64 MiB hold on a machine of any size; what a connection takes, and the program itself, is in the other 10.
    #[test]
    fn layers_are_read_at_once_as_far_as_cores_and_memory_go() {
        let layer = |compression| Layer { digest: None, size: 1 << 30, compression, diff_id: sha256(b"") };
        for (cores, remote, compression, layers, want) in [
            (1, false, Compression::Gzip, 10, 1),
            (2, false, Compression::Gzip, 10, 2),
            (2, false, Compression::Gzip, 1, 1),
            (1, true, Compression::Gzip, 10, DOWNLOADS),
            (1, true, Compression::Zstd, 10, DOWNLOADS),
            (1, true, Compression::Gzip, 2, 2),
            (64, true, Compression::Gzip, 100, 11),
            (64, false, Compression::None, 100, 11),
            (64, false, Compression::Zstd, 100, 4),
        ] {
            let layers = vec![layer(compression); layers];
            let jobs: Vec<&Layer> = layers.iter().collect();
            let got = at_once(cores, remote, &jobs);
            assert_eq!(got, want, "{cores} cores, {compression:?}");
            assert!(got * stream::memory(compression) <= MEMORY);
        }
        // One layer of zstd among others counts as if all were.
        let mixed = [layer(Compression::Zstd), layer(Compression::None)];
        assert_eq!(at_once(64, false, &mixed.iter().cycle().take(50).collect::<Vec<_>>()), 4);
    }
}
