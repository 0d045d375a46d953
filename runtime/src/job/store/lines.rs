//! The lines of a record: every one is a whole record or a new name.
//!
//! Invariant: what a crash cut short is passed over, and never joined to the line that follows.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

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

/// The last line that is a whole record.
pub(super) fn last_record<E: Entry>(text: &[u8], path: &Path) -> Result<E> {
    #[derive(serde::Deserialize)]
    struct Version {
        schema: u32,
    }
    let whole_lines = text.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n")).rev();
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
                return Err(JobStoreError::NewerRecord { path: path.to_owned(), found });
            }
        }
    }
    let mut record = found.ok_or_else(|| JobStoreError::BadRecord { path: path.to_owned() })?;
    if let Some(name) = name {
        record.rename(name);
    }
    Ok(record)
}

pub(in crate::job) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    read_into(&File::open(path)?, &mut text)?;
    Ok(text)
}

/// Replaces `text` by what the file holds. A short read of a file is its end: most records take one call, into memory that
/// the last one has left.
pub(super) fn read_into(mut file: &File, text: &mut Vec<u8>) -> io::Result<()> {
    const BLOCK: usize = 16 * 1024;
    text.resize(text.len().max(BLOCK), 0);
    let mut end = 0;
    loop {
        let read = match file.read(&mut text[end..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        end += read;
        if end < text.len() || end >= MAX_RECORD {
            text.truncate(end);
            return Ok(());
        }
        text.resize((end * 4).min(MAX_RECORD), 0);
    }
}
