//! The bytes of a blob from its first to its last, however often the connection breaks on the way.
//!
//! What a pull before this one left in the partial file comes first, the rest from the network, written behind it as it
//! is read. Invariant: the partial file is at every moment a prefix of what was read; no more than the blob's size is
//! read from anywhere. Whether the bytes are the right ones is for the reader of them to verify.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::endpoint::{Endpoint, Object};
use super::error::RegistryError;
use super::http::Http;
use super::patience::{Patience, Tries};
use crate::digest::Digest;

/// A smaller blob is quicker fetched again than kept.
pub(super) const KEPT_FROM: u64 = 1 << 20;

/// A blob being read.
pub(super) struct Blob<'r> {
    http: &'r Http,
    /// To be asked in this order; the last failure of the last one is the failure.
    endpoints: Vec<&'r Endpoint>,
    digest: Digest,
    size: u64,
    partial: Option<Partial>,
    /// Bytes given to the reader.
    offset: u64,
    body: Option<Body>,
    tries: Option<Tries<'r>>,
}

/// The file, which nobody else writes meanwhile.
struct Partial {
    file: File,
    /// Bytes of the blob in it.
    length: u64,
}

struct Body {
    reader: Box<dyn Read + Send>,
    host: String,
    pace: Pace,
}

impl<'r> Blob<'r> {
    /// A reader of the blob. `partial` is a file to keep it in, ours alone, open for reading and for appending.
    pub(super) fn new(
        http: &'r Http,
        endpoints: Vec<&'r Endpoint>,
        digest: Digest,
        size: u64,
        partial: Option<File>,
    ) -> Blob<'r> {
        let partial = partial.and_then(|file| Partial::of(file, size).ok());
        Blob { http, endpoints, digest, size, partial, offset: 0, body: None, tries: None }
    }

    /// Asks the first place for what is still to come.
    fn connect(&self, endpoint: &Endpoint) -> Result<Body, RegistryError> {
        let object = Object::Blob(&self.digest);
        let answer = endpoint.get(self.http, object, self.offset)?;
        let host = answer.host.clone();
        let shown = || endpoint.object(object);
        let wrong_size =
            |actual| RegistryError::Size { host: host.clone(), object: shown(), actual, expected: self.size };
        let mut skip = 0;
        match answer.status() {
            200 => {
                // All of it, whatever was asked for: some servers know no ranges.
                if let Some(actual) = answer.length().filter(|length| *length != self.size) {
                    return Err(wrong_size(actual));
                }
                skip = self.offset;
            }
            206 if self.offset > 0 => {
                let range = answer.header("content-range").and_then(parse_content_range);
                match range {
                    Some((first, _)) if first != self.offset => {
                        let reason = format!("bytes from {first} on instead of {}", self.offset);
                        return Err(RegistryError::Protocol { host, object: shown(), reason });
                    }
                    Some((_, Some(total))) if total != self.size => return Err(wrong_size(total)),
                    Some(_) => {}
                    None => {
                        let reason = "a part that does not say which (no Content-Range)".to_owned();
                        return Err(RegistryError::Protocol { host, object: shown(), reason });
                    }
                }
            }
            // Fewer bytes there than we have: not this blob.
            416 => return Err(wrong_size(0)),
            _ => return Err(self.http.refused(answer, &shown())),
        }
        let pace = Pace::new(&self.http.patience);
        let mut body = Body { reader: Box::new(answer.into_reader()), host, pace };
        let mut scrap = vec![0; 64 << 10];
        while skip > 0 {
            let most = usize::try_from(skip).unwrap_or(usize::MAX).min(scrap.len());
            skip -= self.receive(&mut body, &mut scrap[..most])? as u64;
        }
        Ok(body)
    }

    /// At least one byte of `body`.
    fn receive(&self, body: &mut Body, buffer: &mut [u8]) -> Result<usize, RegistryError> {
        let begin = Instant::now();
        let read = loop {
            match body.reader.read(buffer) {
                Ok(0) => {
                    let (object, bytes) = (format!("blob {}", self.digest), self.offset);
                    return Err(RegistryError::CutShort { host: body.host.clone(), object, bytes });
                }
                Ok(read) => break read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.http.stop.wait(Duration::ZERO)?;
                    return Err(RegistryError::Unreachable { host: body.host.clone(), source: error.into() });
                }
            }
        };
        match body.pace.count(read as u64, begin.elapsed()) {
            Ok(()) => Ok(read),
            Err((bytes, time)) => Err(RegistryError::Stalled { host: body.host.clone(), bytes, time }),
        }
    }

    fn fetch(&mut self, buffer: &mut [u8]) -> Result<usize, RegistryError> {
        loop {
            let Some(endpoint) = self.endpoints.first().copied() else { return Err(RegistryError::Stopped) };
            let body = self.body.take().map_or_else(|| self.connect(endpoint), Ok);
            let received = body.and_then(|mut body| Ok((self.receive(&mut body, buffer)?, body)));
            let http = self.http;
            let tries = self.tries.get_or_insert_with(|| Tries::new(&http.patience, &http.stop, endpoint.tries));
            let failed = match received {
                Ok((read, body)) => {
                    tries.progress(read as u64);
                    self.body = Some(body);
                    return Ok(read);
                }
                Err(error) => error,
            };
            match tries.again(failed) {
                Ok(()) => {}
                Err(RegistryError::Stopped) => return Err(RegistryError::Stopped),
                Err(_) if self.endpoints.len() > 1 => {
                    // Another place has the same bytes: it goes on where this one ended.
                    self.endpoints.remove(0);
                    self.tries = None;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn next(&mut self, buffer: &mut [u8]) -> Result<usize, RegistryError> {
        let left = usize::try_from(self.size - self.offset).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let buffer = &mut buffer[..most];
        if buffer.is_empty() {
            return Ok(0);
        }
        if let Some(partial) = &self.partial
            && self.offset < partial.length
        {
            let kept = usize::try_from(partial.length - self.offset).unwrap_or(usize::MAX);
            let most = buffer.len().min(kept);
            match partial.file.read_at(&mut buffer[..most], self.offset) {
                Ok(read @ 1..) => {
                    self.offset += read as u64;
                    return Ok(read);
                }
                // Shorter than it was, or unreadable: the network has it too.
                Ok(0) | Err(_) => self.partial = None,
            }
        }
        let read = self.fetch(buffer)?;
        if let Some(partial) = &mut self.partial {
            // A full disk costs the resuming, not the pull; unpacking will say what is wrong.
            match partial.file.write_all(&buffer[..read]) {
                Ok(()) => partial.length += read as u64,
                Err(_) => self.partial = None,
            }
        }
        self.offset += read as u64;
        Ok(read)
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.next(buffer).map_err(io::Error::other)
    }
}

impl Partial {
    /// What is longer than the blob cannot be part of it.
    fn of(file: File, size: u64) -> io::Result<Partial> {
        let mut length = file.metadata()?.len();
        if length > size {
            file.set_len(0)?;
            length = 0;
        }
        Ok(Partial { file, length })
    }
}

/// Whether bytes come fast enough, looked at over windows of time spent waiting for them: what the reader itself takes
/// between two reads is not the server's fault.
struct Pace {
    window: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn new(patience: &Patience) -> Pace {
        Pace { window: patience.window, waited: Duration::ZERO, bytes: 0 }
    }

    fn count(&mut self, bytes: u64, waited: Duration) -> Result<(), (u64, Duration)> {
        self.bytes += bytes;
        self.waited += waited;
        if self.waited < self.window {
            return Ok(());
        }
        let (bytes, waited) = (self.bytes, self.waited);
        (self.bytes, self.waited) = (0, Duration::ZERO);
        let slow = u128::from(bytes) * 1000 < u128::from(Patience::SLOWEST) * waited.as_millis();
        if slow { Err((bytes, waited)) } else { Ok(()) }
    }
}

/// `bytes FIRST-LAST/TOTAL` or `bytes FIRST-LAST/*`: the first byte and the total.
fn parse_content_range(untrusted: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = untrusted.strip_prefix("bytes")?.trim().split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    let (first, _last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((first, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        for (text, want) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes */10", None),
            ("bytes 5-/10", None),
            ("lines 5-9/10", None),
            ("bytes 5-9/x", None),
            ("bytes -5-9/10", None),
            ("", None),
        ] {
            assert_eq!(parse_content_range(text), want, "{text}");
        }
    }

    #[test]
    fn pace_is_measured_in_windows_of_waiting() {
        let patience = Patience { window: Duration::from_secs(10), ..Patience::default() };
        let mut pace = Pace::new(&patience);
        let second = Duration::from_secs(1);
        for _ in 0..9 {
            assert_eq!(pace.count(1, second), Ok(()));
        }
        assert_eq!(pace.count(1, second), Err((10, 10 * second)));
        for _ in 0..100 {
            assert_eq!(pace.count(1000, second), Ok(()));
        }
        assert_eq!(pace.count(u64::MAX / 2, second), Ok(()));
    }
}
