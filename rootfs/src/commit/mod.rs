//! Images made of what jobs wrote: the upper directory of a job's root as a layer, and the image that has it on top.
//!
//! ```text
//! the job starts   Upper::new     what agentd itself has put there is noted
//! the job ends     Upper::keep    what is new since then becomes a tar archive, zstd
//! agentd commit    Store::commit  the archive is unpacked and verified like any other layer; documents, then the name
//! ```
//! Invariant: what a job wrote is as untrusted as an image: nothing of it is followed, opened for its kind's sake or
//! believed, and what it can hold is bounded.

mod change;
mod image;
mod lower;
#[cfg(test)]
mod tests;
mod upper;
mod writer;

pub use change::{Change, ChangeError};
pub use image::Commit;
pub use upper::{KeepError, KeptLayer, LeftOut, Upper};
