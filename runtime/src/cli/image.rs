//! `agentd image`: verbs on one image.

use agentd_rootfs::{ImageError, Store};
use anyhow::Result;

use super::environment::Directories;
use super::wanted::stored;
use super::{NOT_FOUND, print_json, say};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Print everything that is known of images, as a JSON array
    Inspect {
        /// Names, or beginnings of digests
        #[arg(required = true, value_name = "NAME|ID")]
        images: Vec<String>,
    },
}

/// Runs the verb; gives the exit code: 1 when there is no such image.
pub(super) fn run(args: &Args) -> Result<u8> {
    let Verb::Inspect { images } = &args.verb;
    let store = Store::existing(&Directories::find()?.stores())?;
    let (mut found, mut code) = (Vec::new(), 0);
    for text in images {
        let details = match &store {
            None => Err(ImageError::Unknown(text.clone())),
            Some(store) => stored(store, text).and_then(|names| match &names[..] {
                [first, ..] => store.details(first),
                [] => Err(ImageError::Unknown(text.clone())),
            }),
        };
        match details {
            Ok(details) => found.push(details),
            Err(error @ (ImageError::Unknown(_) | ImageError::Ambiguous(_))) => {
                say(&error.to_string());
                code = NOT_FOUND;
            }
            Err(error) => return Err(error.into()),
        }
    }
    print_json(&found)?;
    Ok(code)
}
