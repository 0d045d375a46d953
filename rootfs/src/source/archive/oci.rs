//! `oci-archive:`: an OCI image layout in a tar file, as skopeo, podman, buildah and buildkit write it.

use std::io::Read;
use std::path::Path;

use oci_spec::image::ImageIndex;

use super::Archive;
use crate::digest::Digest;
use crate::limits::Limits;
use crate::reference::Selector;
use crate::source::document::{self, Pointer};
use crate::source::layout::check_version;
use crate::source::{Layer, Manifest, Source, SourceError, index};

/// An opened archive, and which of its images is meant.
pub(crate) struct OciArchive {
    archive: Archive,
    select: Selector,
}

impl OciArchive {
    pub(crate) fn open(file: &Path, select: &Selector) -> Result<OciArchive, SourceError> {
        Ok(OciArchive { archive: Archive::open(file)?, select: select.clone() })
    }

    fn top_level(&self, name: &str, limits: &Limits) -> Result<Vec<u8>, SourceError> {
        let hint = match self.archive.find("manifest.json") {
            Ok(Some(_)) => "; it was written by `docker save`: use docker-archive:FILE",
            _ => "; make one with `skopeo copy docker://IMAGE oci-archive:FILE`",
        };
        let span = self.archive.need(name, hint)?;
        self.archive.document(name, span, limits)
    }

    fn blob(&self, digest: &Digest, size: Option<u64>) -> Result<(String, super::Span), SourceError> {
        let name = format!("blobs/{}/{}", digest.algorithm(), digest.hex());
        let Some(span) = self.archive.find(&name)? else {
            return Err(SourceError::NoBlob { digest: digest.clone(), place: self.archive.place() });
        };
        // Before the digest: a truncated download is the common case, and costs no hashing to see.
        match size {
            Some(expected) if span.size != expected => {
                Err(SourceError::Size { digest: digest.clone(), actual: span.size, expected })
            }
            _ => Ok((name, span)),
        }
    }
}

impl Source for OciArchive {
    fn manifest(&self, limits: &Limits) -> Result<Manifest, SourceError> {
        let place = self.archive.place();
        check_version(&place, &self.top_level("oci-layout", limits)?)?;
        let index: ImageIndex =
            document::parse(&format!("index.json of {place}"), &self.top_level("index.json", limits)?)?;
        let how = || format!("oci-archive:{}:TAG", self.archive.shown);
        let first = index::choose(&index, &self.select, &place, how)?;
        let fetch = |_, digest: &Digest, size: Option<u64>| {
            let (name, span) = self.blob(digest, size)?;
            self.archive.document(&name, span, limits)
        };
        document::resolve(Pointer::from_descriptor(first, "index.json")?, &fetch, limits)
    }

    fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        let (_, span) = self.blob(layer.name(), Some(layer.size))?;
        Ok(Box::new(self.archive.reader(span)))
    }
}
