//! Whether the program is what is promised of it: static, and no larger than [`MOST_BYTES`].

use std::path::Path;

use anyhow::{Context, Result};

use crate::elf;

/// DESIGN.md, 14.
const MOST_BYTES: usize = 12_000_000;

/// Says what is not so.
pub(super) fn is_as_promised(program: &Path) -> Result<bool> {
    let bytes = std::fs::read(program).with_context(|| format!("read {}", program.display()))?;
    let names_loader = names_loader(&bytes).with_context(|| format!("{} is no ELF program", program.display()))?;
    if names_loader {
        println!("{} is not static: it names a loader", program.display());
    }
    if bytes.len() > MOST_BYTES {
        println!("{} has {} bytes, more than {MOST_BYTES}", program.display(), bytes.len());
    }
    Ok(!names_loader && bytes.len() <= MOST_BYTES)
}

/// Whether one of the segments is `PT_INTERP`; `None` where there are none.
fn names_loader(program: &[u8]) -> Option<bool> {
    let segments = elf::segments(|at, length| {
        let bytes = program.get(usize::try_from(at).ok()?..)?.get(..length)?;
        Some(bytes.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    })?;
    let is_program = program.starts_with(b"\x7fELF\x02\x01") && !segments.is_empty();
    is_program.then(|| segments.iter().any(|segment| segment.kind == elf::INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of headers of these kinds, and nothing else.
    fn program(kinds: &[u8]) -> Vec<u8> {
        let mut program = b"\x7fELF\x02\x01".to_vec();
        program.resize(0x40, 0);
        (program[0x20], program[0x36], program[0x38]) = (0x40, 56, u8::try_from(kinds.len()).unwrap());
        for kind in kinds {
            program.push(*kind);
            program.resize(program.len() + 55, 0);
        }
        program
    }

    #[test]
    fn a_program_with_a_loader_is_not_static() {
        assert_eq!(names_loader(&program(&[6, 1, 1, 7])), Some(false));
        assert_eq!(names_loader(&program(&[6, 3, 1, 2])), Some(true));
        assert_eq!(names_loader(&program(&[1, 1, 3])), Some(true));
        for none in [&program(&[])[..], &program(&[6, 1])[..0x78], b"#!/bin/sh\n", b""] {
            assert_eq!(names_loader(none), None);
        }
    }

    #[test]
    fn a_program_that_has_grown_too_large_is_told() {
        let file = std::env::temp_dir().join(format!("agentd-program-{}", std::process::id()));
        for (kind, length, is_good) in [(1, MOST_BYTES, true), (1, MOST_BYTES + 1, false), (3, 200, false)] {
            let mut bytes = program(&[1, kind]);
            bytes.resize(length, 0);
            std::fs::write(&file, bytes).unwrap();
            assert_eq!(is_as_promised(&file).unwrap(), is_good, "{kind} {length}");
        }
        std::fs::remove_file(file).unwrap();
    }
}
