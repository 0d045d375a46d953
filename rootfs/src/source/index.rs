//! Which image of an `index.json` is meant: by tag, by digest, or the only one there is.

use oci_spec::image::{Descriptor, ImageIndex};

use crate::printable::printable;
use crate::reference::Selector;
use crate::source::SourceError;
use crate::source::platform::Machine;

const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The descriptor that `select` names; `place` and `how` (to name another) are for messages.
pub(crate) fn choose<'i>(
    index: &'i ImageIndex,
    select: &Selector,
    place: &str,
    how: impl Fn() -> String,
) -> Result<&'i Descriptor, SourceError> {
    let tagged =
        |tag: &str| -> Vec<&'i Descriptor> { index.manifests().iter().filter(|d| tag_of(d) == Some(tag)).collect() };
    let none = |wanted: String| SourceError::NoImage { place: place.to_owned(), wanted, available: available(index) };
    match select {
        Selector::Digest(digest) => {
            let digest = digest.to_string();
            let mut manifests = index.manifests().iter();
            manifests.find(|d| d.digest().as_ref() == digest).ok_or_else(|| none(digest))
        }
        Selector::Tag(tag) => match &tagged(tag)[..] {
            [] => Err(none(format!("tagged `{}`", printable(tag.as_bytes())))),
            [one] => Ok(one),
            several => Machine::this().choose(several),
        },
        Selector::Default => match index.manifests().as_slice() {
            [] => Err(none("at all".into())),
            [one] => Ok(one),
            several => match &tagged("latest")[..] {
                // One image for several machines, listed without an index of its own.
                [] if several.iter().all(|d| tag_of(d).is_none()) => {
                    Machine::this().choose(&several.iter().collect::<Vec<_>>())
                }
                [] => {
                    let (place, available) = (place.to_owned(), available(index));
                    Err(SourceError::SeveralImages { place, how: how(), available })
                }
                [one] => Ok(one),
                latest => Machine::this().choose(latest),
            },
        },
    }
}

fn tag_of(descriptor: &Descriptor) -> Option<&str> {
    descriptor.annotations().as_ref()?.get(REF_NAME).map(String::as_str)
}

fn available(index: &ImageIndex) -> String {
    const SHOWN: usize = 20;
    let mut names: Vec<String> = Vec::new();
    for descriptor in index.manifests().iter().take(SHOWN) {
        names.push(match tag_of(descriptor) {
            Some(tag) => printable(tag.as_bytes()),
            None => format!("@{}", printable(descriptor.digest().as_ref().as_bytes())),
        });
    }
    match index.manifests().len() {
        0 => "none".into(),
        n if n > SHOWN => format!("{} and {} more", names.join(", "), n - SHOWN),
        _ => names.join(", "),
    }
}
