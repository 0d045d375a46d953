//! The users and groups of an image, kept beside its topmost layer.
//!
//! ```text
//! layers/KEY/accounts-1-HEX   JSON: passwd and group; KEY is the topmost layer's, HEX is of the config's digest
//! ```
//! Every start needs both, and to find two files through a stack takes six system calls a layer. A config's layers show the
//! same files for ever, so nothing here grows old, and it goes with the layer. Invariant: images' files lie below `fs`, so
//! only agentd writes here; what cannot be read whole is as good as missing.

use std::path::Path;

use rustix::fs::{CWD, Mode, openat};
use serde::{Deserialize, Serialize};

use super::place::DIRECTORY;
use super::{Image, Store};
use crate::digest::Digest;
use crate::user::{Accounts, FILE_BYTES, UserError};

/// Bytes of the file: of both tables, each byte six as JSON writes a control character.
const LONGEST: u64 = 12 * FILE_BYTES + 64;

/// What is kept; the number in the file's name changes with it.
#[derive(Serialize, Deserialize)]
struct File {
    passwd: String,
    group: String,
}

impl Store {
    /// The users and groups of an image of this store. Untrusted.
    ///
    /// # Errors
    /// As [`Accounts::read`].
    pub fn accounts(&self, image: &Image) -> Result<Accounts, UserError> {
        let name = file_name(&image.config_digest);
        let directory = image.layers.last().and_then(|topmost| topmost.parent());
        if let Some(File { passwd, group }) = directory.and_then(|directory| self.kept(directory, &name)) {
            return Ok(Accounts { passwd, group });
        }
        let accounts = Accounts::read(&image.layers)?;
        if let Some(directory) = directory.filter(|directory| directory.starts_with(&self.path)) {
            self.keep(directory, &name, &accounts);
        }
        Ok(accounts)
    }

    fn kept(&self, directory: &Path, name: &str) -> Option<File> {
        let bytes = self.read(CWD, directory.join(name), LONGEST).ok()??;
        serde_json::from_slice(&bytes).ok()
    }

    /// Where it cannot be kept, the next start looks through the layers again.
    fn keep(&self, directory: &Path, name: &str, Accounts { passwd, group }: &Accounts) {
        let file = File { passwd: passwd.clone(), group: group.clone() };
        let directory = openat(CWD, directory, DIRECTORY, Mode::empty());
        if let (Ok(directory), Ok(bytes)) = (directory, serde_json::to_vec(&file)) {
            self.put(&directory, name, &bytes).ok();
        }
    }
}

fn file_name(config: &Digest) -> String {
    format!("accounts-1-{}", config.hex())
}
