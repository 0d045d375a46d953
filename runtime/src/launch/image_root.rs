//! Roots that are images: `oci:` layouts and `dir:` trees, and the user they are run as.

use std::path::{Path, PathBuf};

use agentd_init::plan::Source;
use agentd_rootfs::{Image, ImageConfig, ImageRef, Limits, Progress, Store, user};

use super::PlanError;

/// An image as far as the plan needs it.
pub(super) struct ImageRoot {
    /// Unpacked layers, lowest first.
    pub(super) layers: Vec<Source>,
    /// The same as paths.
    pub(super) paths: Vec<PathBuf>,
    /// What the image says about itself. Untrusted.
    pub(super) config: ImageConfig,
    /// Digest of its manifest.
    pub(super) digest: Option<String>,
}

/// Finds the image, unpacking what the store does not have; `None` for the host's own root.
pub(super) fn find(
    image: &ImageRef,
    store: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Option<ImageRoot>, PlanError> {
    let (paths, config, digest) = match image {
        ImageRef::Host => return Ok(None),
        ImageRef::Dir(path) => (vec![path.clone()], ImageConfig::default(), None),
        ImageRef::Oci { layout, select } => {
            let Image { manifest_digest, layers, config } =
                Store::open(store)?.image(layout, select, &Limits::default(), progress)?;
            (layers, config, Some(manifest_digest.to_string()))
        }
    };
    let what = if digest.is_some() { "layer" } else { "root directory" };
    let layers = paths.iter().map(|path| super::directory(path, what)).collect::<Result<_, _>>()?;
    Ok(Some(ImageRoot { layers, paths, config, digest }))
}

/// The ids and home that `asked` (or the image's own `User`) stands for; 1000:1000 when neither says.
pub(super) fn user(image: Option<&ImageRoot>, asked: Option<&str>) -> Result<user::ResolvedUser, PlanError> {
    let asked = asked.or_else(|| image.and_then(|image| image.config.user.as_deref())).filter(|user| !user.is_empty());
    let paths = image.map_or(&[][..], |image| image.paths.as_slice());
    match asked {
        None if paths.is_empty() => Ok(user::ResolvedUser { uid: 1000, gid: 1000, home: None }),
        None => Ok(user::resolve(paths, "1000:1000")?),
        Some("root") => Ok(user::ResolvedUser { uid: 0, gid: 0, home: Some("/root".into()) }),
        Some(asked) => Ok(user::resolve(paths, asked)?),
    }
}
