//! What an image may ask of this machine before it is refused.
//!
//! Invariant: every quantity an image controls (bytes, entries, lengths, ratios) is compared with one of these.

/// Limits on reading and unpacking one image. The defaults are far above real images and far below harm.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of `index.json`, of a manifest and of a config, each.
    pub document_bytes: u64,
    /// Layers in one image: the kernel stacks no more than 500 (`OVL_MAX_STACK`).
    pub layers: usize,
    /// Unpacked bytes of one layer: of its tar stream, and of its files with their holes.
    pub layer_bytes: u64,
    /// Entries of one layer, counting extension records and directories that are only implied.
    pub entries: u64,
    /// Bytes of a path or link target, with the terminating NUL (`PATH_MAX`).
    pub path_bytes: usize,
    /// Components of a path.
    pub depth: usize,
    /// Bytes of one PAX record block, GNU long name or sparse map: all are held in memory.
    pub record_bytes: u64,
    /// Unpacked bytes per compressed byte, looked at once [`Limits::RATIO_FROM`] bytes are out.
    pub ratio: u64,
    /// Bytes of directory paths of one layer held in memory until their final modes are set.
    pub directory_bytes: usize,
}

impl Limits {
    /// Below this many unpacked bytes the ratio is not looked at: small layers of zeros are honest.
    pub const RATIO_FROM: u64 = 64 << 20;
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            document_bytes: 4 << 20,
            layers: 500,
            layer_bytes: 64 << 30,
            entries: 2_000_000,
            path_bytes: 4096,
            depth: 256,
            record_bytes: 1 << 20,
            ratio: 2000,
            directory_bytes: 256 << 20,
        }
    }
}

/// A limit an image went over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("goes over the limit on {name} ({limit})")]
pub struct LimitError {
    /// Which limit, in words.
    pub name: &'static str,
    /// Its value.
    pub limit: u64,
}

impl LimitError {
    /// An error when `value` is above `limit`.
    pub(crate) fn check(name: &'static str, value: u64, limit: u64) -> Result<(), LimitError> {
        if value > limit { Err(LimitError { name, limit }) } else { Ok(()) }
    }
}
