//! `agentd commit`.

use std::io::Write;

use agentd_rootfs::commit::{Change, Commit};
use agentd_rootfs::{ImageRef, Name, Pull, Store};
use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::environment::Directories;
use super::progress::{Follower, INTERRUPTED};
use super::wanted::{Wanted, local};
use super::{Format, print_json};
use crate::job::record::{Kept, Record, State};
use crate::job::store::{LAYER, now};
use crate::launch::write_back;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  agentd run --writable --fake-root --keep --name x --image debian:12 --net host -- sh -c 'apt-get update && apt-get install -y jq'
  agentd commit x debian-jq
  agentd run --image debian-jq -- jq --version")]
pub(super) struct Args {
    /// Name, id or beginning of an id
    job: String,
    /// What to call the image; without a registry it is localhost/NAME
    #[arg(value_name = "NAME[:TAG]", value_parser = name)]
    name: Name,
    /// A word on it, for the image's history
    #[arg(short, long)]
    message: Option<String>,
    /// Who made it
    #[arg(short, long)]
    author: Option<String>,
    /// Change what the image says of itself: CMD, ENTRYPOINT, ENV NAME=VALUE, WORKDIR or USER, as in a Dockerfile
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<Change>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// How to print what was made
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// What was made; the same fields in every version.
#[derive(Debug, Serialize)]
struct Made {
    reference: String,
    digest: String,
}

fn name(text: &str) -> Result<Name, String> {
    let ImageRef::Registry(name) = super::wanted::reference(text)? else {
        return Err("it means something else where an image is wanted; call it NAME[:TAG]".into());
    };
    if name.digest().is_some() {
        return Err("a name with a digest is of an image that is there already".into());
    }
    Ok(local(text).unwrap_or(name))
}

/// Runs the verb; gives the exit code.
pub(super) fn run(args: Args) -> Result<u8> {
    let directories = Directories::find()?;
    let jobs = directories.swept_jobs();
    let id = jobs.find(&args.job)?;
    let record = jobs.read(&id)?;
    let layer = match &record.root {
        Some(Kept::Layer(layer)) => layer,
        Some(Kept::Nothing { reason }) => bail!("nothing of what job {id} wrote to its root is kept: {reason}"),
        None => bail!("job {id} {}", nothing_kept(&record)),
    };
    let base = record.image_digest.as_deref().with_context(|| format!("job {id} did not run an image"))?;
    let store = Store::open(&directories.stores())?;
    let wanted = Wanted::new(Pull::Never, directories.registries(), &[])?;
    let commit = Commit {
        base,
        layer,
        file: &jobs.directory_of(&id).join(LAYER),
        name: &args.name,
        created: &now(),
        created_by: &record.command.join(" "),
        message: args.message.as_deref(),
        author: args.author.as_deref(),
        changes: &args.change,
    };
    let mut follower = Follower::new(args.quiet);
    let made = follower.follow(&wanted, |fetch| store.commit(&commit, fetch));
    let Some(digest) = made.with_context(|| format!("cannot commit job {id}"))? else { return Ok(INTERRUPTED) };
    if let Some(write_back) = store.write_back()? {
        write_back::apart(write_back)?;
    }
    match args.format {
        Format::Json => print_json(&Made { reference: args.name.to_string(), digest })?,
        Format::Table => writeln!(std::io::stdout().lock(), "{digest}")?,
    }
    Ok(0)
}

/// Why a record has nothing of the root.
fn nothing_kept(record: &Record) -> &'static str {
    match record.state {
        State::Running => "is running; it can be committed when it has ended",
        State::Failed { .. } => "wrote nothing: its command never ran",
        State::Lost { .. } => "kept nothing of its root: its supervisor was gone before it could",
        State::Exited { .. } => "kept nothing of its root; run it with --writable --keep",
    }
}
