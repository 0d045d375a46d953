//! The map that lld makes of a program: which function lies where.
//!
//! Invariant: only functions with a size count, and only those of `.text`.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Where lld's columns begin: the address, the size, and the names of output sections and of symbols.
const SIZE: usize = 34;
const OUT: usize = 49;
const SYMBOL: usize = 65;

/// The functions of a program by their addresses.
#[derive(Debug, Default)]
pub(super) struct Functions {
    by_address: BTreeMap<u64, String>,
    names: HashSet<String>,
}

impl Functions {
    pub(super) fn read(map: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(map).with_context(|| format!("read {}", map.display()))?;
        let functions = Self::parse(&text);
        ensure!(!functions.by_address.is_empty(), "{} names no function", map.display());
        Ok(functions)
    }

    fn parse(text: &str) -> Self {
        let mut functions = Self::default();
        let mut is_code = false;
        for line in text.lines() {
            let hex = |from: usize, to: usize| u64::from_str_radix(line.get(from..to)?.trim(), 16).ok();
            let (Some(address), Some(size)) = (hex(0, 16), hex(SIZE, SIZE + 8)) else { continue };
            let Some(name) = line.get(OUT..) else { continue };
            match line.get(SYMBOL..) {
                // An output section; those of the input begin further right.
                _ if !name.starts_with(' ') => is_code = name == ".text",
                Some(symbol) if is_code && size > 0 && !symbol.starts_with(' ') && name.trim_start() == symbol => {
                    functions.names.insert(symbol.to_owned());
                    functions.by_address.entry(address).or_insert_with(|| symbol.to_owned());
                }
                _ => {}
            }
        }
        functions
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = u64> {
        self.by_address.keys().copied()
    }

    pub(super) fn is_start(&self, address: u64) -> bool {
        self.by_address.contains_key(&address)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    pub(super) fn count(&self) -> usize {
        self.by_address.len()
    }

    /// The names of what begins at `addresses`, each once.
    pub(super) fn names(&self, addresses: &[u64]) -> Vec<&str> {
        let mut seen = HashSet::new();
        let names = addresses.iter().filter_map(|address| self.by_address.get(address));
        names.map(String::as_str).filter(|name| seen.insert(*name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "\
             VMA              LMA     Size Align Out     In      Symbol
          200270           200270       20     4 .note.ABI-tag
          200270           200270       20     1                 __abi_tag
          3adb40           3adb40   6c43f8    64 .text
          3adb40           3adb40       26    16         /usr/lib/crt1.o:(.text)
          3adb40           3adb40       22     1                 _start
          3adb40           3adb40        0     1                 .Ltmp
          3adb70           3adb70        5     1                 alias
          3adb70           3adb70        5     1                 _ZN6agentd4main17h0
          a74280           a74280       d0     8 .tdata
          a74280           a74280        8     1                 _ZN6agentd5CLOCK17h1
";

    #[test]
    fn functions_are_what_has_a_size_in_text() {
        let functions = Functions::parse(MAP);
        assert_eq!(functions.addresses().collect::<Vec<_>>(), [0x3a_db40, 0x3a_db70]);
        assert_eq!(functions.names(&[0x3a_db70, 1, 0x3a_db40, 0x3a_db70]), ["alias", "_start"]);
        assert!(functions.has("_ZN6agentd4main17h0") && !functions.has("__abi_tag") && !functions.has(".Ltmp"));
        assert!(functions.is_start(0x3a_db40) && !functions.is_start(0x20_0270));
    }
}
