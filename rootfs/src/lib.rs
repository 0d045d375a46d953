//! Images: references, OCI layouts on disk, the shared layer store, and the users an image names.
//!
//! Everything here works without privilege and treats the image as hostile: blobs are verified before they are
//! believed, unpacking never leaves its target directory, and every quantity an image controls has a limit.

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
mod unpack;

pub use config::ImageConfig;
pub use digest::{Digest, DigestError};
pub use limits::{LimitError, Limits};
pub use reference::{ImageRef, ReferenceError, Selector};
pub use source::LayoutError;
pub use store::{ErrorKind, Image, ImageError, LayerError, Progress, Store, StoreError};
pub use stream::StreamError;
pub use unpack::{TarError, TreeError, UnpackError};
