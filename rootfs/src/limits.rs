//! What an image may ask of this machine before it is refused.
//!
//! Invariant: every quantity an image controls (bytes, entries, lengths, ratios) is compared with one of these.

use crate::printable::printable;

/// Limits on reading and unpacking one image. The defaults are far above real images and far below harm.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of `index.json`, of a manifest and of a config, each.
    pub document_bytes: u64,
    /// Layers in one image: the kernel stacks no more than 500 (`OVL_MAX_STACK`).
    pub layers: u64,
    /// Unpacked bytes of one layer: of its tar stream, and of its files without their holes.
    pub layer_bytes: u64,
    /// Entries of one layer, counting extension records and directories that are only implied.
    pub entries: u64,
    /// Bytes of a path or link target, with the terminating NUL (`PATH_MAX`).
    pub path_bytes: u64,
    /// Components of a path.
    pub depth: u64,
    /// Bytes of one PAX record block, GNU long name or sparse map: all are held in memory.
    pub record_bytes: u64,
    /// Unpacked bytes per compressed byte, looked at once [`Limits::RATIO_FROM`] bytes are out.
    pub ratio: u64,
    /// Bytes of directory paths of one layer held in memory until their final modes are set.
    pub directory_bytes: u64,
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

/// One of the [`Limits`], as a command line names it.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Its name, such as `layer-bytes`.
    pub name: &'static str,
    /// What it is a limit on.
    pub meaning: &'static str,
    /// More means nothing: the kernel takes no more.
    most: u64,
    field: fn(&mut Limits) -> &mut u64,
}

const LIMITS: [Limit; 9] = [
    limit("layers", "layers of an image", 500, |limits| &mut limits.layers),
    limit("layer-bytes", "unpacked bytes of a layer", u64::MAX, |limits| &mut limits.layer_bytes),
    limit("entries", "files, directories and records of a layer", u64::MAX, |limits| &mut limits.entries),
    limit("ratio", "unpacked bytes per compressed byte of a layer", u64::MAX, |limits| &mut limits.ratio),
    limit("path-bytes", "bytes of a path", 4096, |limits| &mut limits.path_bytes),
    limit("depth", "directories of a path", 2048, |limits| &mut limits.depth),
    limit("record-bytes", "bytes of a PAX record, long name or sparse map", u64::MAX, |limits| {
        &mut limits.record_bytes
    }),
    limit("directory-bytes", "bytes of a layer's directory names", u64::MAX, |limits| &mut limits.directory_bytes),
    limit("document-bytes", "bytes of an index, manifest or config", u64::MAX, |limits| &mut limits.document_bytes),
];

const fn limit(name: &'static str, meaning: &'static str, most: u64, field: fn(&mut Limits) -> &mut u64) -> Limit {
    Limit { name, meaning, most, field }
}

impl Limit {
    /// All there are.
    pub fn all() -> &'static [Limit] {
        &LIMITS
    }

    /// Its value unless it is set.
    pub fn default(&self) -> u64 {
        *(self.field)(&mut Limits::default())
    }
}

impl Limits {
    /// Sets the limit `name` to `value`: a number, or a size such as `10GiB`.
    ///
    /// # Errors
    /// There is no such limit, or the value is none that it can have.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SetLimitError> {
        let limit = LIMITS.iter().find(|limit| limit.name == name);
        let limit = limit.ok_or_else(|| SetLimitError::Name(printable(name.as_bytes())))?;
        let parsed = parse_size::Config::new().with_binary().parse_size(value);
        let bad = |_error| SetLimitError::Value { name: limit.name, value: printable(value.as_bytes()) };
        match parsed.map_err(bad)? {
            0 => Err(SetLimitError::Zero(limit.name)),
            value if value > limit.most => Err(SetLimitError::Most { name: limit.name, most: limit.most }),
            value => {
                *(limit.field)(self) = value;
                Ok(())
            }
        }
    }
}

/// Why a limit cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetLimitError {
    /// No such limit.
    #[error("there is no limit `{0}`; there are {names}", names = LIMITS.map(|limit| limit.name).join(", "))]
    Name(String),
    /// Not a number.
    #[error("the limit {name} cannot be `{value}`; give a number, or a size such as 10GiB")]
    Value {
        /// Which limit.
        name: &'static str,
        /// What was given, escaped.
        value: String,
    },
    /// Some programs mean "no limit" by it.
    #[error("the limit {0} cannot be 0: nothing would be within it")]
    Zero(&'static str),
    /// More than the kernel takes.
    #[error("the limit {name} cannot be more than {most}: the kernel takes no more")]
    Most {
        /// Which limit.
        name: &'static str,
        /// The most it can be.
        most: u64,
    },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_can_be_set_by_its_name_and_by_no_other() {
        for limit in Limit::all() {
            let mut limits = Limits::default();
            assert_eq!(*(limit.field)(&mut limits), limit.default());
            limits.set(limit.name, "77").unwrap();
            assert_eq!(*(limit.field)(&mut limits), 77);
            let others = Limit::all().iter().filter(|other| other.name != limit.name);
            assert!(others.into_iter().all(|other| *(other.field)(&mut limits) == other.default()), "{}", limit.name);
        }
    }

    #[test]
    fn values_are_sizes_or_refused_with_words() {
        let mut limits = Limits::default();
        limits.set("layer-bytes", "10GiB").unwrap();
        limits.set("entries", "3k").unwrap();
        assert_eq!((limits.layer_bytes, limits.entries), (10 << 30, 3 << 10));
        for (name, value, want) in [
            ("layer-bytes", "much", "the limit layer-bytes cannot be `much`; give a number, or a size such as 10GiB"),
            ("layers", "501", "the limit layers cannot be more than 500: the kernel takes no more"),
            ("ratio", "0", "the limit ratio cannot be 0: nothing would be within it"),
            ("entries", "-1", "the limit entries cannot be `-1`; give a number, or a size such as 10GiB"),
        ] {
            assert_eq!(limits.set(name, value).unwrap_err().to_string(), want);
        }
        let unknown = limits.set("bytes\n", "1").unwrap_err().to_string();
        assert!(unknown.starts_with("there is no limit `bytes\\n`; there are layers, layer-bytes"), "{unknown}");
    }
}
