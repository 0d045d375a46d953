//! What the stages of a [`super::LayerStream`] are made of: blocks of bytes that return to where they came from, and a
//! way to let a stage run ahead on a thread of its own.
//!
//! Invariant: the blocks alive between two stages are at most [`AHEAD`] and the one each of them works on, so memory
//! does not depend on the layer; and whatever ends a stage (its end, an error, a panic, nobody reading) ends the others.

use std::io;
use std::ops::Deref;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::{self, Scope};

use super::StreamError;

/// Blocks a stage may be ahead of its reader: enough to bridge a writer that waits for the file system.
pub(super) const AHEAD: usize = 6;

/// What a stage hands on.
pub(super) enum Piece<End> {
    Bytes(Block),
    /// Nothing follows.
    End(End),
}

/// One step from blob to tar bytes. After the end or an error it is not asked again.
pub(super) trait Stage {
    /// What it knows once everything went through it.
    type End;

    fn next(&mut self) -> Result<Piece<Self::End>, StreamError>;
}

/// Bytes in a buffer that goes back to its [`Pool`] when it is dropped, on whatever thread.
pub(super) struct Block {
    buffer: Box<[u8]>,
    filled: usize,
    home: Sender<Box<[u8]>>,
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // Without its pool the buffer is simply freed.
        self.home.send(std::mem::take(&mut self.buffer)).ok();
    }
}

/// Buffers of one size, made when none came back yet.
pub(super) struct Pool {
    size: usize,
    home: Sender<Box<[u8]>>,
    back: Receiver<Box<[u8]>>,
}

impl Pool {
    pub(super) fn new(size: usize) -> Pool {
        let (home, back) = mpsc::channel();
        Pool { size, home, back }
    }

    /// A block as full as `read` makes it; empty when there is nothing more.
    pub(super) fn fill(&self, mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<Block> {
        let buffer = self.back.try_recv().unwrap_or_else(|_none| vec![0; self.size].into_boxed_slice());
        let mut block = Block { buffer, filled: 0, home: self.home.clone() };
        while block.filled < block.buffer.len() {
            match read(&mut block.buffer[block.filled..]) {
                Ok(0) => break,
                Ok(n) => block.filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(block)
    }
}

/// A stage that runs on another thread.
pub(super) struct Ahead<End>(Receiver<Result<Piece<End>, StreamError>>);

impl<End: Send> Ahead<End> {
    /// Lets `stage` run on a thread of `scope`. It stops when the value is dropped.
    pub(super) fn start<'scope, S>(scope: &'scope Scope<'scope, '_>, stage: S) -> Result<Ahead<End>, StreamError>
    where
        S: Stage<End = End> + Send + 'scope,
        End: 'scope,
    {
        let (sender, receiver) = mpsc::sync_channel(AHEAD);
        thread::Builder::new()
            .name("unpack".into())
            .spawn_scoped(scope, move || run(stage, &sender))
            .map_err(|e| StreamError::Read(io::Error::new(e.kind(), format!("cannot start a thread: {e}"))))?;
        Ok(Ahead(receiver))
    }
}

fn run<S: Stage>(mut stage: S, sender: &SyncSender<Result<Piece<S::End>, StreamError>>) {
    loop {
        let piece = stage.next();
        let last = !matches!(piece, Ok(Piece::Bytes(_)));
        if sender.send(piece).is_err() || last {
            return;
        }
    }
}

impl<End> Stage for Ahead<End> {
    type End = End;

    fn next(&mut self) -> Result<Piece<End>, StreamError> {
        // It says how it ends, unless it panics; the scope then panics too, and nobody sees this error.
        self.0.recv().unwrap_or(Err(StreamError::Cancelled))
    }
}
