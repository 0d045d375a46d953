//! A layer blob as a verified stream of tar bytes, in stages: read and hash | inflate | hash | whoever unpacks.
//!
//! Each stage of a layer of some size has a thread of its own ([`LayerStream::ahead`]), so that one large layer keeps
//! several cores busy. Memory is a fixed number of fixed buffers and the decompressor's window, whatever the size of
//! the layer. Invariant: every byte of the blob and every unpacked byte is hashed, also those after the end of the
//! archive.

mod inflate;
mod stage;

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;

use self::inflate::{Inflate, USUAL_WINDOW};
use self::stage::{AHEAD, Ahead, Block, Piece, Pool, Stage};
use crate::digest::{Digest, Hasher};
use crate::limits::{LimitError, Limits, Taken};

/// Bytes of a block read from the blob.
const READ: usize = 128 << 10;
/// Bytes of an unpacked block.
const INFLATED: usize = 256 << 10;

/// How a layer blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn name(self) -> &'static str {
        match self {
            Compression::None => "an uncompressed layer",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }
}

/// Bytes of memory that reading a layer takes at most, of whatever size it is. A zstd frame that asks for a window of more
/// than 8 MiB takes more.
pub(crate) const fn memory(compression: Compression) -> usize {
    // What is between two stages, and what each of them works on.
    let blocks = (AHEAD + 2) * READ + (2 * AHEAD + 3) * INFLATED;
    match compression {
        Compression::None => blocks,
        Compression::Gzip => blocks + (64 << 10),
        // The decoder holds two of its blocks (128 KiB) beside the window.
        Compression::Zstd => blocks + USUAL_WINDOW + (256 << 10),
    }
}

/// Why the bytes of a layer could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Reading the blob failed.
    #[error("cannot read the blob")]
    Read(#[source] io::Error),
    /// The blob is not what its media type says.
    #[error("its data cannot be read as {format}")]
    Decode {
        /// What the media type says it is.
        format: &'static str,
        /// What is wrong with it.
        source: io::Error,
    },
    /// A zstd frame that takes too much memory to read.
    #[error(
        "it takes a window of more than 128 MiB to inflate, and zstd's readers need not have one; compress it without `--long=28` or more"
    )]
    Window,
    /// A limit.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// Another layer of the image failed.
    #[error("stopped because another layer failed")]
    Cancelled,
}

/// The stage that reads the blob and hashes it.
struct Blob<'a> {
    source: Box<dyn Read + Send + 'a>,
    pool: Pool,
    hasher: Hasher,
    read: u64,
    on_read: &'a (dyn Fn(u64) + Sync),
}

impl Stage for Blob<'_> {
    type End = Digest;

    fn next(&mut self) -> Result<Piece<Digest>, StreamError> {
        let block = self.pool.fill(|buf| self.source.read(buf)).map_err(StreamError::Read)?;
        if block.is_empty() {
            return Ok(Piece::End(self.hasher.finish()));
        }
        self.hasher.update(&block);
        self.read += block.len() as u64;
        (self.on_read)(self.read);
        Ok(Piece::Bytes(block))
    }
}

/// The stage that hashes the unpacked bytes.
struct Diff<S> {
    stage: S,
    /// `None`: these are the bytes of the blob, which are hashed already.
    hasher: Option<Hasher>,
}

impl<S: Stage<End = Digest>> Stage for Diff<S> {
    type End = Digests;

    fn next(&mut self) -> Result<Piece<Digests>, StreamError> {
        Ok(match self.stage.next()? {
            Piece::Bytes(block) => {
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&block);
                }
                Piece::Bytes(block)
            }
            Piece::End(blob) => {
                let diff_id = self.hasher.as_ref().map_or_else(|| blob.clone(), Hasher::finish);
                Piece::End(Digests { blob, diff_id })
            }
        })
    }
}

/// What the bytes of a layer hash to.
struct Digests {
    blob: Digest,
    diff_id: Digest,
}

/// What a [`LayerStream`] reads from and tells.
pub(crate) struct Source<'a> {
    /// The blob's bytes.
    pub(crate) blob: Box<dyn Read + Send + 'a>,
    pub(crate) compression: Compression,
    /// The digest the blob should have; only its algorithm matters here.
    pub(crate) digest: &'a Digest,
    /// The digest the unpacked bytes should have; only its algorithm matters here.
    pub(crate) diff_id: &'a Digest,
    /// Told the bytes of the blob read so far.
    pub(crate) on_read: &'a (dyn Fn(u64) + Sync),
    /// Set when the work has become pointless.
    pub(crate) cancel: &'a AtomicBool,
    /// What the layers of this image have taken together.
    pub(crate) taken: &'a Taken,
}

impl<'a> Source<'a> {
    /// The hashers of the blob and of its unpacked bytes.
    fn hashers(&self) -> (Hasher, Option<Hasher>) {
        let same = self.compression == Compression::None && self.digest.algorithm() == self.diff_id.algorithm();
        (self.digest.hasher(), (!same).then(|| self.diff_id.hasher()))
    }

    fn blob(self, hasher: Hasher) -> Blob<'a> {
        Blob { source: self.blob, pool: Pool::new(READ), hasher, read: 0, on_read: self.on_read }
    }
}

/// The unpacked bytes of a layer.
pub(crate) struct LayerStream<'a> {
    stage: Box<dyn Stage<End = Digests> + 'a>,
    block: Option<Block>,
    /// Bytes of it that were consumed.
    used: usize,
    digests: Option<Digests>,
    cancel: &'a AtomicBool,
    taken: &'a Taken,
}

impl<'a> LayerStream<'a> {
    /// All stages on the caller's thread: for a small layer, threads cost more than they gain.
    pub(crate) fn new(from: Source<'a>, limits: &'a Limits) -> Result<LayerStream<'a>, StreamError> {
        let (cancel, taken, compression, (blob, hasher)) = (from.cancel, from.taken, from.compression, from.hashers());
        let inflate = Inflate::new(from.blob(blob), compression, Pool::new(INFLATED), limits, taken)?;
        Ok(LayerStream::over(Box::new(Diff { stage: inflate, hasher }), cancel, taken))
    }

    /// A thread of `scope` for each stage. They end when the stream is dropped.
    pub(crate) fn ahead(
        scope: &'a Scope<'a, '_>,
        from: Source<'a>,
        limits: &'a Limits,
    ) -> Result<LayerStream<'a>, StreamError> {
        let (cancel, taken, compression, (blob, hasher)) = (from.cancel, from.taken, from.compression, from.hashers());
        let blob = Ahead::start(scope, from.blob(blob))?;
        let inflate = Inflate::new(blob, compression, Pool::new(INFLATED), limits, taken)?;
        let diff = Diff { stage: Ahead::start(scope, inflate)?, hasher };
        Ok(LayerStream::over(Box::new(Ahead::start(scope, diff)?), cancel, taken))
    }

    fn over(stage: Box<dyn Stage<End = Digests> + 'a>, cancel: &'a AtomicBool, taken: &'a Taken) -> LayerStream<'a> {
        LayerStream { stage, block: None, used: 0, digests: None, cancel, taken }
    }

    /// What the layers of this image have taken together.
    pub(crate) fn taken(&self) -> &'a Taken {
        self.taken
    }

    /// The next bytes, without taking them; empty at the end.
    pub(crate) fn peek(&mut self) -> Result<&[u8], StreamError> {
        while self.digests.is_none() && self.block.as_ref().is_none_or(|block| self.used >= block.len()) {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(StreamError::Cancelled);
            }
            (self.block, self.used) = (None, 0);
            match self.stage.next()? {
                Piece::Bytes(block) => self.block = Some(block),
                Piece::End(digests) => self.digests = Some(digests),
            }
        }
        Ok(self.block.as_ref().and_then(|block| block.get(self.used..)).unwrap_or_default())
    }

    /// Takes `n` of the bytes that [`LayerStream::peek`] returned.
    pub(crate) fn consume(&mut self, n: usize) {
        self.used += n;
    }

    /// Reads what is left, and returns the digests of the blob and of its unpacked bytes.
    pub(crate) fn finish(mut self) -> Result<(Digest, Digest), StreamError> {
        loop {
            let n = self.peek()?.len();
            self.consume(n);
            if let Some(Digests { blob, diff_id }) = self.digests.take() {
                return Ok((blob, diff_id));
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;

    pub(crate) fn sha256(bytes: &[u8]) -> Digest {
        let mut hasher = format!("sha256:{}", "0".repeat(64)).parse::<Digest>().unwrap().hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    static RUN: AtomicBool = AtomicBool::new(false);

    /// Nothing yet; leaked, which a test may.
    pub(crate) fn nothing() -> &'static Taken {
        Box::leak(Box::default())
    }

    fn source<'a>(blob: &'a [u8], compression: Compression, any: &'a Digest) -> Source<'a> {
        let taken = nothing();
        Source { blob: Box::new(blob), compression, digest: any, diff_id: any, on_read: &|_| {}, cancel: &RUN, taken }
    }

    pub(crate) fn with_stream<T>(
        blob: &[u8],
        compression: Compression,
        limits: &Limits,
        f: impl FnOnce(LayerStream<'_>) -> T,
    ) -> T {
        let any = sha256(b"");
        f(LayerStream::new(source(blob, compression, &any), limits).unwrap())
    }

    /// With threads and without, which have to agree.
    fn digests(blob: &[u8], compression: Compression) -> Result<(Digest, Digest), StreamError> {
        let any = sha256(b"");
        let source = || source(blob, compression, &any);
        let limits = Limits::default();
        let alone = LayerStream::new(source(), &limits).and_then(LayerStream::finish);
        let ahead = std::thread::scope(|scope| LayerStream::ahead(scope, source(), &limits)?.finish());
        assert_eq!(format!("{alone:?}"), format!("{ahead:?}"));
        ahead
    }

    #[test]
    fn every_compression_hashes_all_of_it() {
        let plain: Vec<u8> = (0..400_000u32).flat_map(u32::to_le_bytes).collect();
        let (one, two) = plain.split_at(700_000);
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let zstd = |data: &[u8]| zstd::encode_all(data, 3).unwrap();
        for (blob, compression) in [
            (plain.clone(), Compression::None),
            (gzip(&plain), Compression::Gzip),
            ([gzip(one), gzip(b""), gzip(two)].concat(), Compression::Gzip),
            (zstd(&plain), Compression::Zstd),
            ([skippable.clone(), zstd(one), skippable.clone(), zstd(two), skippable].concat(), Compression::Zstd),
        ] {
            let (digest, diff_id) = digests(&blob, compression).unwrap();
            assert_eq!(digest, sha256(&blob));
            assert_eq!(diff_id, sha256(&plain), "{compression:?}");
        }
        assert_eq!(digests(b"", Compression::None).unwrap().1, sha256(b""));
    }

    #[test]
    fn damage_is_an_error() {
        let gz = gzip(&[7; 100_000]);
        let zst = zstd::encode_all(&[7; 100_000][..], 3).unwrap();
        for (blob, compression) in [
            (gz[..gz.len() - 1].to_vec(), Compression::Gzip),
            ([&gz[..], b"garbage that is no gzip member"].concat(), Compression::Gzip),
            // gzip(1) ignores them, Go's reader and so every image tool does not.
            ([&gz[..], &[0; 512]].concat(), Compression::Gzip),
            (vec![], Compression::Gzip),
            (b"plain".to_vec(), Compression::Gzip),
            (zst[..zst.len() - 1].to_vec(), Compression::Zstd),
            ([&zst[..], b"garbage"].concat(), Compression::Zstd),
            (gz, Compression::Zstd),
        ] {
            let error = digests(&blob, compression).unwrap_err();
            assert!(matches!(error, StreamError::Decode { .. }), "{error:?}");
        }
    }

    /// Gives bytes until it fails, and says when it is gone.
    struct Failing<'t> {
        left: usize,
        error: io::ErrorKind,
        gone: &'t AtomicBool,
    }

    impl Read for Failing<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = buf.len().min(self.left);
            if n == 0 {
                return Err(self.error.into());
            }
            buf[..n].fill(7);
            self.left -= n;
            Ok(n)
        }
    }

    impl Drop for Failing<'_> {
        fn drop(&mut self) {
            self.gone.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_first_cause_is_told_and_every_stage_ends() {
        let any = sha256(b"");
        let limits = Limits::default();
        for (compression, left) in [(Compression::None, 9 << 20), (Compression::Gzip, 0), (Compression::Zstd, 0)] {
            let gone = AtomicBool::new(false);
            let blob = Failing { left, error: io::ErrorKind::ConnectionReset, gone: &gone };
            let cancel = AtomicBool::new(false);
            let from = Source {
                blob: Box::new(blob),
                compression,
                digest: &any,
                diff_id: &any,
                on_read: &|_| {},
                cancel: &cancel,
                taken: nothing(),
            };
            let error = std::thread::scope(|scope| LayerStream::ahead(scope, from, &limits)?.finish()).unwrap_err();
            let StreamError::Read(source) = &error else { panic!("{compression:?}: {error:?}") };
            assert_eq!(source.kind(), io::ErrorKind::ConnectionReset);
            assert!(gone.load(Ordering::SeqCst));
        }
        // Whoever unpacks fails or is told to stop: the stages wait for room, and end all the same.
        for stop in [false, true] {
            let gone = AtomicBool::new(false);
            let blob = Failing { left: usize::MAX, error: io::ErrorKind::Other, gone: &gone };
            let cancel = AtomicBool::new(stop);
            let (compression, on_read, taken) = (Compression::None, &|_| {}, nothing());
            let (blob, cancel) = (Box::new(blob), &cancel);
            let from = Source { blob, compression, digest: &any, diff_id: &any, on_read, cancel, taken };
            std::thread::scope(|scope| {
                let mut stream = LayerStream::ahead(scope, from, &limits).unwrap();
                assert_eq!(matches!(stream.peek(), Err(StreamError::Cancelled)), stop);
            });
            assert!(gone.load(Ordering::SeqCst));
        }
    }

    #[test]
    fn windows_beyond_128_mib_are_refused_with_words() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.window_log(28).unwrap();
        encoder.write_all(b"x").unwrap();
        let error = digests(&encoder.finish().unwrap(), Compression::Zstd).unwrap_err();
        assert!(matches!(error, StreamError::Window), "{error:?}");
        // The largest that is read.
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(b"x").unwrap();
        assert_eq!(digests(&encoder.finish().unwrap(), Compression::Zstd).unwrap().1, sha256(b"x"));
    }

    #[test]
    fn bombs_stop() {
        let zeros = vec![0u8; 80 << 20];
        let limits = Limits { layer_bytes: 1 << 20, ..Limits::default() };
        let error = with_stream(&gzip(&zeros), Compression::Gzip, &limits, |stream| stream.finish()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "goes over the limit on unpacked bytes of a layer (1048576); --image-limit layer-bytes=VALUE sets it"
        );
        let bomb = zstd::encode_all(&zeros[..], 3).unwrap();
        let error = with_stream(&bomb, Compression::Zstd, &Limits::default(), |stream| stream.finish()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "goes over the limit on unpacked bytes per compressed byte (2000); --image-limit ratio=VALUE sets it"
        );
    }
}
