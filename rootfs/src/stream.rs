//! A layer blob as a verified stream of tar bytes: read → hash → inflate → hash.
//!
//! Memory is two fixed buffers and the decompressor's window, whatever the size of the layer. Invariant: every byte of
//! the blob and every unpacked byte is hashed, also those after the end of the archive.

use std::io::{self, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::bufread::MultiGzDecoder;

use crate::digest::{Digest, Hasher};
use crate::limits::{LimitError, Limits};

/// 64 KiB and 1 MiB buffers measured no better.
const BUFFER: usize = 128 << 10;

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
    /// A limit.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// Another layer of the image failed.
    #[error("stopped because another layer failed")]
    Cancelled,
}

/// The blob, hashed as it is read.
struct Blob<'a> {
    source: Box<dyn Read + 'a>,
    hasher: Hasher,
    read: u64,
    on_read: &'a (dyn Fn(u64) + Sync),
}

impl Read for Blob<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(buf)?;
        self.hasher.update(&buf[..n]);
        self.read += n as u64;
        (self.on_read)(self.read);
        Ok(n)
    }
}

enum Decoder<'a> {
    None(BufReader<Blob<'a>>),
    Gzip(Box<MultiGzDecoder<BufReader<Blob<'a>>>>),
    Zstd(zstd::stream::read::Decoder<'static, BufReader<Blob<'a>>>),
}

impl<'a> Decoder<'a> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::None(r) => r.read(buf),
            Decoder::Gzip(r) => r.read(buf),
            Decoder::Zstd(r) => r.read(buf),
        }
    }

    fn blob(&self) -> &Blob<'a> {
        match self {
            Decoder::None(r) => r.get_ref(),
            Decoder::Gzip(r) => r.get_ref().get_ref(),
            Decoder::Zstd(r) => r.get_ref().get_ref(),
        }
    }

    fn into_blob(self) -> Blob<'a> {
        match self {
            Decoder::None(r) => r.into_inner(),
            Decoder::Gzip(r) => r.into_inner().into_inner(),
            Decoder::Zstd(r) => r.finish().into_inner(),
        }
    }
}

/// What a [`LayerStream`] reads from and tells.
pub(crate) struct Source<'a> {
    /// The blob's bytes.
    pub(crate) blob: Box<dyn Read + 'a>,
    pub(crate) compression: Compression,
    /// The digest the blob should have; only its algorithm matters here.
    pub(crate) digest: &'a Digest,
    /// The digest the unpacked bytes should have; only its algorithm matters here.
    pub(crate) diff_id: &'a Digest,
    /// Told the bytes of the blob read so far.
    pub(crate) on_read: &'a (dyn Fn(u64) + Sync),
    /// Set when the work has become pointless.
    pub(crate) cancel: &'a AtomicBool,
}

/// The unpacked bytes of a layer.
pub(crate) struct LayerStream<'a> {
    decoder: Decoder<'a>,
    compression: Compression,
    hasher: Hasher,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    out: u64,
    limits: &'a Limits,
    cancel: &'a AtomicBool,
}

impl<'a> LayerStream<'a> {
    pub(crate) fn new(from: Source<'a>, limits: &'a Limits) -> Result<LayerStream<'a>, StreamError> {
        let blob = Blob { source: from.blob, hasher: from.digest.hasher(), read: 0, on_read: from.on_read };
        let blob = BufReader::with_capacity(BUFFER, blob);
        let decoder = match from.compression {
            Compression::None => Decoder::None(blob),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(blob))),
            Compression::Zstd => {
                Decoder::Zstd(zstd::stream::read::Decoder::with_buffer(blob).map_err(StreamError::Read)?)
            }
        };
        Ok(LayerStream {
            decoder,
            compression: from.compression,
            hasher: from.diff_id.hasher(),
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            out: 0,
            limits,
            cancel: from.cancel,
        })
    }

    /// The next bytes, without taking them; empty at the end.
    pub(crate) fn peek(&mut self) -> Result<&[u8], StreamError> {
        if self.start == self.end {
            self.fill()?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// Takes `n` of the bytes that [`LayerStream::peek`] returned.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start = self.end.min(self.start + n);
    }

    fn fill(&mut self) -> Result<(), StreamError> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(StreamError::Cancelled);
        }
        let n = loop {
            match self.decoder.read(&mut self.buffer) {
                Ok(n) => break n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error().is_some() => return Err(StreamError::Read(e)),
                Err(source) => return Err(StreamError::Decode { format: self.compression.name(), source }),
            }
        };
        self.start = 0;
        self.end = n;
        self.hasher.update(&self.buffer[..n]);
        self.out += n as u64;
        LimitError::check("unpacked bytes of a layer", self.out, self.limits.layer_bytes)?;
        if self.out > Limits::RATIO_FROM {
            let most = self.decoder.blob().read.saturating_mul(self.limits.ratio);
            if self.out > most {
                return Err(LimitError { name: "unpacked bytes per compressed byte", limit: self.limits.ratio }.into());
            }
        }
        Ok(())
    }

    /// Reads what is left, and returns the digests of the blob and of its unpacked bytes.
    pub(crate) fn finish(mut self) -> Result<(Digest, Digest), StreamError> {
        loop {
            let n = self.peek()?.len();
            if n == 0 {
                break;
            }
            self.consume(n);
        }
        let mut blob = self.decoder.into_blob();
        io::copy(&mut blob, &mut io::sink()).map_err(StreamError::Read)?;
        Ok((blob.hasher.finish(), self.hasher.finish()))
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

    pub(crate) fn with_stream<T>(
        blob: &[u8],
        compression: Compression,
        limits: &Limits,
        f: impl FnOnce(LayerStream<'_>) -> T,
    ) -> T {
        let any = sha256(b"");
        let source =
            Source { blob: Box::new(blob), compression, digest: &any, diff_id: &any, on_read: &|_| {}, cancel: &RUN };
        f(LayerStream::new(source, limits).unwrap())
    }

    fn digests(blob: &[u8], compression: Compression) -> Result<(Digest, Digest), StreamError> {
        with_stream(blob, compression, &Limits::default(), |stream| stream.finish())
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

    #[test]
    fn bombs_stop() {
        let zeros = vec![0u8; 80 << 20];
        let limits = Limits { layer_bytes: 1 << 20, ..Limits::default() };
        let error = with_stream(&gzip(&zeros), Compression::Gzip, &limits, |stream| stream.finish()).unwrap_err();
        assert_eq!(error.to_string(), "goes over the limit on unpacked bytes of a layer (1048576)");
        let bomb = zstd::encode_all(&zeros[..], 3).unwrap();
        let error = with_stream(&bomb, Compression::Zstd, &Limits::default(), |stream| stream.finish()).unwrap_err();
        assert_eq!(error.to_string(), "goes over the limit on unpacked bytes per compressed byte (2000)");
    }
}
