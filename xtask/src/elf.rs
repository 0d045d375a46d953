//! The program headers of a program (elf(5), 64 bits, little-endian).

/// What one header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// `PT_LOAD`, `PT_INTERP`, …
    pub(crate) kind: u64,
    pub(crate) is_executed: bool,
    /// What to take from an address for its place in the file.
    pub(crate) above_file: u64,
}

pub(crate) const LOAD: u64 = 1;
pub(crate) const INTERP: u64 = 3;

/// Every segment of the program of which `number` reads at an offset, in that many bytes; `None` where it cannot.
pub(crate) fn segments(number: impl Fn(u64, usize) -> Option<u64>) -> Option<Vec<Segment>> {
    const EXECUTED: u64 = 1;
    let (headers, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    let segment = |index| {
        let header = headers.checked_add(index * size)?;
        Some(Segment {
            kind: number(header, 4)?,
            is_executed: number(header.checked_add(4)?, 4)? & EXECUTED != 0,
            above_file: number(header.checked_add(16)?, 8)?.wrapping_sub(number(header.checked_add(8)?, 8)?),
        })
    };
    (0..count).map(segment).collect()
}
