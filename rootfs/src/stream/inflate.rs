//! The stage that inflates, and counts what comes out: everything after it is bounded by what it lets through.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

use super::stage::{Block, Piece, Pool, Stage};
use super::{Compression, StreamError};
use crate::digest::Digest;
use crate::limits::{LimitError, Limits, Taken};

/// A window of 128 MiB is the most that zstd itself promises to every reader; what a frame asks for is allocated.
const WINDOW_LOG_MAX: u32 = 27;

/// The window of zstd's usual levels and of Go's writers of images at their usual ones; a larger one takes that much more.
pub(super) const USUAL_WINDOW: usize = 8 << 20;

/// What zstd answers to a larger one: `ZSTD_error_frameParameter_windowTooLarge` (zstd_errors.h), negative.
const WINDOW_TOO_LARGE: usize = 0_usize.wrapping_sub(16);

/// The blob's blocks as a reader for the decoders.
struct Input<S> {
    stage: S,
    block: Option<Block>,
    taken: usize,
    /// Bytes of the blob the decoder took.
    read: u64,
    /// Why the blob ended early: a decoder's error could only say that something did.
    failed: Option<StreamError>,
    digest: Option<Digest>,
}

impl<S: Stage<End = Digest>> Read for Input<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

impl<S: Stage<End = Digest>> BufRead for Input<S> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.digest.is_none() && self.block.as_ref().is_none_or(|block| self.taken >= block.len()) {
            self.taken = 0;
            self.block = None;
            match self.stage.next() {
                Ok(Piece::Bytes(block)) => self.block = Some(block),
                Ok(Piece::End(digest)) => self.digest = Some(digest),
                Err(error) => {
                    self.failed = Some(error);
                    return Err(io::ErrorKind::Other.into());
                }
            }
        }
        Ok(self.block.as_ref().and_then(|block| block.get(self.taken..)).unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        self.taken += n;
        self.read += n as u64;
    }
}

enum Decoder<S: Stage<End = Digest>> {
    None(Input<S>),
    Gzip(Box<MultiGzDecoder<Input<S>>>),
    Zstd(zstd::stream::read::Decoder<'static, Input<S>>),
}

impl<S: Stage<End = Digest>> Decoder<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::None(r) => r.read(buf),
            Decoder::Gzip(r) => r.read(buf),
            Decoder::Zstd(r) => r.read(buf),
        }
    }

    fn input(&mut self) -> &mut Input<S> {
        match self {
            Decoder::None(r) => r,
            Decoder::Gzip(r) => r.get_mut(),
            Decoder::Zstd(r) => r.get_mut(),
        }
    }
}

/// The unpacked bytes, not yet hashed.
pub(super) struct Inflate<'l, S: Stage<End = Digest>> {
    decoder: Decoder<S>,
    compression: Compression,
    pool: Pool,
    out: u64,
    limits: &'l Limits,
    taken: &'l Taken,
}

impl<'l, S: Stage<End = Digest>> Inflate<'l, S> {
    pub(super) fn new(
        stage: S,
        compression: Compression,
        pool: Pool,
        limits: &'l Limits,
        taken: &'l Taken,
    ) -> Result<Inflate<'l, S>, StreamError> {
        let input = Input { stage, block: None, taken: 0, read: 0, failed: None, digest: None };
        let decoder = match compression {
            Compression::None => Decoder::None(input),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(input))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(StreamError::Read)?;
                decoder.window_log_max(WINDOW_LOG_MAX).map_err(StreamError::Read)?;
                Decoder::Zstd(decoder)
            }
        };
        Ok(Inflate { decoder, compression, pool, out: 0, limits, taken })
    }

    fn check(&self, read: u64) -> Result<(), LimitError> {
        LimitError::check("layer-bytes", self.out, self.limits.layer_bytes)?;
        if self.out > Limits::RATIO_FROM && self.out > read.saturating_mul(self.limits.ratio) {
            return Err(LimitError { name: "ratio", limit: self.limits.ratio });
        }
        Ok(())
    }
}

impl<S: Stage<End = Digest>> Stage for Inflate<'_, S> {
    type End = Digest;

    fn next(&mut self) -> Result<Piece<Digest>, StreamError> {
        let block = self.pool.fill(|buf| self.decoder.read(buf));
        let input = self.decoder.input();
        let block = block.map_err(|source| {
            let format = self.compression.name();
            // The library's errors are words.
            let is_window = source.to_string() == zstd::zstd_safe::get_error_name(WINDOW_TOO_LARGE);
            let decode = if is_window { StreamError::Window } else { StreamError::Decode { format, source } };
            input.failed.take().unwrap_or(decode)
        })?;
        if !block.is_empty() {
            let read = input.read;
            self.out += block.len() as u64;
            self.check(read)?;
            self.taken.bytes(block.len() as u64, self.limits)?;
            return Ok(Piece::Bytes(block));
        }
        // Decoders read to the end of the blob, but none of them promises it.
        io::copy(input, &mut io::sink()).map_err(|source| input.failed.take().unwrap_or(StreamError::Read(source)))?;
        let ended = input.digest.take();
        ended.map(Piece::End).ok_or_else(|| StreamError::Read(io::ErrorKind::UnexpectedEof.into()))
    }
}
