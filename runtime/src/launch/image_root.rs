//! Roots that are images: `oci:` layouts and `dir:` trees, and the user they are run as.

use agentd_init::plan::Source;
use agentd_rootfs::user::{Accounts, ResolvedUser};
use agentd_rootfs::{Fetch, Hold, Image, ImageConfig, ImageRef, Places, Store, WriteBack};

use super::PlanError;

/// An image as far as the plan needs it.
pub(super) struct ImageRoot {
    /// Unpacked layers, lowest first.
    pub(super) layers: Vec<Source>,
    /// Its users and groups. Untrusted.
    pub(super) accounts: Accounts,
    /// What the image says about itself. Untrusted.
    pub(super) config: ImageConfig,
    /// Digest of its manifest.
    pub(super) digest: Option<String>,
    /// Where its layers are in the store.
    pub(super) in_store: Option<InStore>,
}

/// What an image from the store still needs from it.
#[derive(Debug)]
pub struct InStore {
    /// Keeps the layers there.
    pub hold: Hold,
    /// What is to be written to the disk, for [`super::write_back`].
    pub write_back: Option<WriteBack>,
}

/// Finds the image, unpacking what the store does not have; `None` for the host's own root.
pub(super) fn find(image: &ImageRef, places: &Places, fetch: &mut Fetch<'_>) -> Result<Option<ImageRoot>, PlanError> {
    Ok(Some(match image {
        ImageRef::Host => return Ok(None),
        ImageRef::Dir(path) => ImageRoot {
            layers: vec![super::directory(path, "root directory")?],
            accounts: Accounts::read(std::slice::from_ref(path))?,
            config: ImageConfig::default(),
            digest: None,
            in_store: None,
        },
        image => {
            let store = Store::open(places)?;
            let image = store.image(image, fetch)?;
            let write_back = store.write_back()?;
            let accounts = store.accounts(&image)?;
            let Image { manifest_digest, layers, config, hold, .. } = image;
            ImageRoot {
                layers: layers.into_iter().map(super::layer).collect::<Result<_, _>>()?,
                accounts,
                config,
                digest: Some(manifest_digest),
                in_store: Some(InStore { hold, write_back }),
            }
        }
    }))
}

/// The ids and home that `asked` (or the image's own `User`) stands for; 1000:1000 when neither says.
pub(super) fn user(image: Option<&ImageRoot>, asked: Option<&str>) -> Result<ResolvedUser, PlanError> {
    let asked = asked.or_else(|| image.and_then(|image| image.config.user.as_deref())).filter(|user| !user.is_empty());
    let nobody_known = Accounts::default();
    let accounts = image.map_or(&nobody_known, |image| &image.accounts);
    match asked {
        None => Ok(accounts.resolve("1000:1000")?),
        Some("root") => Ok(ResolvedUser { uid: 0, gid: 0, home: Some("/root".into()) }),
        Some(asked) => Ok(accounts.resolve(asked)?),
    }
}
