//! `agentd pull`.

use std::io::Write;

use agentd_rootfs::{Image, Pull, Store};
use anyhow::{Context, Result};
use serde::Serialize;

use super::environment::Directories;
use super::progress::{Follower, INTERRUPTED};
use super::wanted::{self, Asked, Wanted, located};
use super::{Format, print_json};
use crate::launch::write_back;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  agentd pull oci:./img
  agentd pull --image-limit layer-bytes=2GiB oci-archive:img.tar")]
pub(super) struct Args {
    /// [docker://]NAME[:TAG|@DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME:TAG]
    #[arg(required = true, value_name = "IMAGE", value_parser = Asked::parse)]
    images: Vec<Asked>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// How to print what was pulled; json is an array
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[arg(long, value_name = "NAME=VALUE", help = wanted::limits_help())]
    image_limit: Vec<String>,
}

/// What was pulled; the same fields in every version.
#[derive(Debug, Serialize)]
struct Pulled {
    reference: String,
    digest: String,
    layers: usize,
}

/// Runs the verb; gives the exit code.
pub(super) fn run(args: Args) -> Result<u8> {
    let directories = Directories::find()?;
    let mut how = Wanted::new(Pull::Always, directories.registries(), &args.image_limit)?;
    let store = Store::open(&directories.stores())?;
    let mut follower = Follower::new(args.quiet);
    let mut pulled = Vec::new();
    for asked in args.images {
        how.registries.short_name = asked.short_name();
        let reference = located(asked.into_reference()?, Pull::Always)?;
        let image = follower.follow(&how, |fetch| store.image(&reference, fetch));
        let Some(Image { manifest_digest: digest, layers, .. }) =
            image.with_context(|| format!("cannot pull {reference}"))?
        else {
            return Ok(INTERRUPTED);
        };
        if args.format == Format::Table {
            writeln!(std::io::stdout().lock(), "{digest}")?;
        }
        pulled.push(Pulled { reference: reference.to_string(), digest, layers: layers.len() });
    }
    if args.format == Format::Json {
        print_json(&pulled)?;
    }
    if let Some(write_back) = store.write_back()? {
        write_back::apart(write_back)?;
    }
    Ok(0)
}
