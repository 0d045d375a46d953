//! Images: references, OCI layouts on disk, the shared layer store, and the users an image names.
//!
//! Everything here works without privilege and treats the image as hostile: blobs are verified before they are
//! believed, unpacking never leaves its target directory, and every quantity an image controls has a limit.

pub mod commit;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod reference;
pub mod store;
pub mod user;

mod config;
mod digest;
mod limits;
mod lock;
mod printable;
mod removal;
mod source;
mod stream;
#[cfg(test)]
mod told;
mod unpack;

pub use config::ImageConfig;
pub use digest::{Digest, DigestError};
pub use limits::{Limit, LimitError, Limits, SetLimitError};
pub use printable::{is_unprintable, shown};
pub use reference::{ImageRef, Name, NameError, ReferenceError, Selector};
pub use source::{ArchiveError, LayoutError, Proxies, RegistryConfig, RegistryError, SourceError};
pub use store::{
    Cleaning, Details, Event, Fetch, Hold, Image, ImageError, InUse, LayerDetails, LayerError, Listed, Places,
    Progress, Pull, Rubbish, Store, StoreError, WriteBack,
};
pub use stream::StreamError;
pub use unpack::{TarError, TreeError, UnpackError};
