//! The lines of a record: every one is a whole record or a new name.
//!
//! Invariant: what a crash cut short is passed over, and never joined to the line that follows.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use memchr::arch::all::memchr::One;
use serde::Serialize;

use super::error::{JobStoreError, Result};
use crate::job::brief::Entry;
use crate::job::id::JobName;
use crate::job::record::SCHEMA;

/// Longest record that is read, in bytes.
const MAX_RECORD: usize = 16 << 20;

/// Appends a line. It begins a line of its own even after one that a crash cut short.
pub(super) fn append(mut file: &File, record: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(record)?;
    line.insert(0, b'\n');
    line.push(b'\n');
    file.write_all(&line)
}

/// A line that says a job's new name, and how it begins.
#[derive(Serialize, serde::Deserialize)]
pub(super) struct Renamed {
    pub(super) renamed: JobName,
}
const RENAMED: &[u8] = b"{\"renamed\":";

/// The last line that is a whole record; `path` is asked for when there is none.
pub(super) fn last_record<E: Entry>(text: &[u8], path: impl Fn() -> PathBuf) -> Result<E> {
    #[derive(serde::Deserialize)]
    struct Version {
        schema: u32,
    }
    // Not the fastest of these: that one asks the processor what it can do, which takes 0.1 ms in a virtual machine.
    let line_end = One::new(b'\n');
    let mut rest = text;
    let whole_lines = std::iter::from_fn(|| {
        let end = line_end.rfind(rest)?;
        let begin = line_end.rfind(&rest[..end]).map_or(0, |before| before + 1);
        let line = &rest[begin..end];
        rest = &rest[..begin];
        Some(line)
    });
    let mut name = None;
    let mut found = None;
    for line in whole_lines {
        if line.starts_with(RENAMED) {
            let said = || serde_json::from_slice::<Renamed>(line).ok().map(|line| line.renamed);
            name = name.or_else(said);
        } else if found.is_none() {
            // A later agentd's may read as one of ours, or as none at all.
            found = serde_json::from_slice::<E>(line).ok();
            let schema = match &found {
                Some(record) => Some(record.schema()),
                None => serde_json::from_slice::<Version>(line).ok().map(|version| version.schema),
            };
            if let Some(found) = schema.filter(|schema| *schema > SCHEMA) {
                return Err(JobStoreError::NewerRecord { path: path(), found });
            }
        }
    }
    let mut record = found.ok_or_else(|| JobStoreError::BadRecord { path: path() })?;
    if let Some(name) = name {
        record.rename(name);
    }
    Ok(record)
}

pub(in crate::job) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    read_open(&File::open(path)?)
}

/// The same of a file that is open, whatever has become of its name.
pub(super) fn read_open(file: &File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let length = read_into(file, &mut text)?.len();
    text.truncate(length);
    Ok(text)
}

/// What the file holds, in `memory` that the last one has left. A short read of a file is its end: most records take one
/// call.
pub(super) fn read_into<'m>(mut file: &File, memory: &'m mut Vec<u8>) -> io::Result<&'m [u8]> {
    const BLOCK: usize = 16 * 1024;
    if memory.len() < BLOCK {
        memory.resize(BLOCK, 0);
    }
    let mut end = 0;
    loop {
        let read = match file.read(&mut memory[end..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        end += read;
        if end < memory.len() || end >= MAX_RECORD {
            return Ok(&memory[..end]);
        }
        memory.resize((end * 4).min(MAX_RECORD), 0);
    }
}
