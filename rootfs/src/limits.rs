//! What an image may ask of this machine before it is refused.
//!
//! Invariant: every quantity an image controls (bytes, entries, lengths, ratios) is compared with one of these.

use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Unpacked bytes of all layers of an image: of their tar streams, and of the files of those that are in the store.
    pub image_bytes: u64,
    /// Entries of one layer, counting extension records and directories that are only implied.
    pub entries: u64,
    /// Entries of all layers that one pull unpacks, counted in the same way.
    pub image_entries: u64,
    /// Bytes of a path or link target, with the terminating NUL (`PATH_MAX`).
    pub path_bytes: u64,
    /// Components of a path.
    pub depth: u64,
    /// Bytes of one PAX record block, GNU long name or sparse map: all are held in memory.
    pub record_bytes: u64,
    /// Unpacked bytes per compressed byte, looked at once [`Limits::RATIO_FROM`] bytes are out.
    pub ratio: u64,
    /// Bytes of memory for the directories of one layer, which are held until their final modes are set: their paths, and
    /// [`Limits::DIRECTORY`] for each.
    pub directory_bytes: u64,
}

impl Limits {
    /// Below this many unpacked bytes the ratio is not looked at: small layers of zeros are honest.
    pub const RATIO_FROM: u64 = 64 << 20;
    /// What holding a directory takes beside its path: measured, with names of a few bytes.
    pub const DIRECTORY: u64 = 144;
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            document_bytes: 4 << 20,
            layers: 500,
            layer_bytes: 64 << 30,
            image_bytes: 256 << 30,
            entries: 2_000_000,
            image_entries: 10_000_000,
            path_bytes: 4096,
            depth: 256,
            record_bytes: 1 << 20,
            ratio: 2000,
            // Half of the 64 MiB that a pull may take: 150,000 directories with paths of 80 bytes.
            directory_bytes: 32 << 20,
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

const LIMITS: [Limit; 11] = [
    limit("layers", "layers of an image", 500, |limits| &mut limits.layers),
    limit("layer-bytes", "unpacked bytes of a layer", u64::MAX, |limits| &mut limits.layer_bytes),
    limit("image-bytes", "unpacked bytes of all layers of an image", u64::MAX, |limits| &mut limits.image_bytes),
    limit("entries", "entries of a layer", u64::MAX, |limits| &mut limits.entries),
    limit("image-entries", "entries of all layers of an image", u64::MAX, |limits| &mut limits.image_entries),
    limit("ratio", "unpacked bytes per compressed byte", u64::MAX, |limits| &mut limits.ratio),
    limit("path-bytes", "bytes of a path", 4096, |limits| &mut limits.path_bytes),
    limit("depth", "components of a path", 2048, |limits| &mut limits.depth),
    limit("record-bytes", "bytes of a PAX record, long name or sparse map", u64::MAX, |limits| {
        &mut limits.record_bytes
    }),
    limit("directory-bytes", "bytes of memory for a layer's directories", u64::MAX, |limits| {
        &mut limits.directory_bytes
    }),
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
#[error("{}", self.said())]
pub struct LimitError {
    /// Which limit: the name of a [`Limit`], or words for one that nobody can set.
    pub name: &'static str,
    /// Its value.
    pub limit: u64,
}

impl LimitError {
    /// An error when `value` is above `limit`.
    pub(crate) fn check(name: &'static str, value: u64, limit: u64) -> Result<(), LimitError> {
        if value > limit { Err(LimitError { name, limit }) } else { Ok(()) }
    }

    fn said(&self) -> String {
        let LimitError { name, limit } = self;
        let Some(known) = LIMITS.iter().find(|known| known.name == *name) else {
            return format!("goes over the limit on {name} ({limit})");
        };
        let more = format!("; --image-limit {name}=VALUE sets it");
        let more = if *limit < known.most { &more } else { "" };
        format!("goes over the limit on {} ({limit}){more}", known.meaning)
    }
}

/// What the layers that are unpacked together have taken so far: many layers within their limits can still be too much.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    bytes: AtomicU64,
    entries: AtomicU64,
}

impl Taken {
    /// With what the store has of the image already: who asks again is refused again.
    pub(crate) fn with(bytes: u64) -> Taken {
        Taken { bytes: AtomicU64::new(bytes), entries: AtomicU64::new(0) }
    }

    /// Counts unpacked bytes.
    pub(crate) fn bytes(&self, more: u64, limits: &Limits) -> Result<(), LimitError> {
        let all = self.bytes.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        LimitError::check("image-bytes", all, limits.image_bytes)
    }

    /// Counts entries.
    pub(crate) fn entries(&self, more: u64, limits: &Limits) -> Result<(), LimitError> {
        let all = self.entries.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        LimitError::check("image-entries", all, limits.image_entries)
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
    fn what_goes_over_a_limit_says_which_and_how_it_is_set() {
        let said = |name, limit| LimitError { name, limit }.to_string();
        assert_eq!(
            said("entries", 5),
            "goes over the limit on entries of a layer (5); --image-limit entries=VALUE sets it"
        );
        // More than the kernel takes, or a limit that has no name: there is nothing to set.
        assert_eq!(said("path-bytes", 4096), "goes over the limit on bytes of a path (4096)");
        assert_eq!(said("members of an image archive", 5), "goes over the limit on members of an image archive (5)");
    }

    #[test]
    fn layers_share_the_limits_on_an_image() {
        let (taken, limits) = (Taken::default(), Limits { image_bytes: 10, image_entries: 2, ..Limits::default() });
        std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(|| taken.bytes(5, &limits).unwrap()))));
        assert_eq!(taken.bytes(1, &limits), Err(LimitError { name: "image-bytes", limit: 10 }));
        taken.entries(2, &limits).unwrap();
        assert_eq!(taken.entries(1, &limits), Err(LimitError { name: "image-entries", limit: 2 }));
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
