//! `agentd rmi`.

use std::collections::BTreeSet;
use std::io::Write;

use agentd_rootfs::{ImageError, Listed, Store};
use anyhow::Result;
use serde::Serialize;

use super::environment::Directories;
use super::images::short;
use super::wanted::stored;
use super::{Format, NOT_FOUND, print_json, printable, say};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Names, or beginnings of digests
    #[arg(required = true, value_name = "NAME|ID")]
    images: Vec<String>,
    /// Also what jobs use or several names lead to; layers stay as long as a job uses them
    #[arg(short, long)]
    force: bool,
    /// How to print what was removed
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// What was removed; the same fields in every version.
#[derive(Debug, Serialize)]
struct Report {
    untagged: Vec<String>,
    /// Digests of images without a name left.
    deleted: Vec<String>,
}

/// Runs the verb; gives the exit code: 1 when an image is not there or is in use.
pub(super) fn run(args: &Args) -> Result<u8> {
    let directories = Directories::find()?;
    let jobs = directories.swept_jobs();
    let Some(store) = Store::existing(&directories.stores())? else {
        for text in &args.images {
            say(&ImageError::Unknown(text.clone()).to_string());
        }
        return Ok(NOT_FOUND);
    };
    let cleaning = store.clean(&mut || say("waiting for a job that starts or an image that is published"))?;
    let in_use = jobs.in_use()?;
    // All are looked up before the first is removed: a mistyped name changes nothing.
    let (mut names, mut refused): (Vec<Listed>, bool) = (Vec::new(), false);
    for text in &args.images {
        let found = stored(&store, text);
        let trouble = match found {
            Ok(found) => match refusal(text, &found, &store.images()?, &in_use.images) {
                Some(why) if !args.force => why,
                _ => {
                    names.extend(found);
                    continue;
                }
            },
            Err(error @ (ImageError::Unknown(_) | ImageError::Ambiguous(_))) => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        say(&trouble);
        refused = true;
    }
    if refused {
        return Ok(NOT_FOUND);
    }
    let references: Vec<String> = names.iter().map(|name| name.reference.clone()).collect();
    let rubbish = cleaning.only_for(&references, &in_use)?;
    cleaning.remove(&rubbish)?;
    let left: BTreeSet<String> = store.images()?.into_iter().map(|image| image.digest).collect();
    let gone: BTreeSet<String> = names.into_iter().map(|name| name.digest).collect();
    let report = Report { untagged: references, deleted: gone.difference(&left).cloned().collect() };
    match args.format {
        Format::Json => print_json(&report)?,
        Format::Table => print(&report)?,
    }
    Ok(0)
}

fn print(report: &Report) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for name in &report.untagged {
        writeln!(out, "Untagged: {}", printable(name))?;
    }
    for digest in &report.deleted {
        writeln!(out, "Deleted: {digest}")?;
    }
    Ok(())
}

/// Why the names that `text` found are not removed without `--force`.
fn refusal(text: &str, found: &[Listed], all: &[Listed], in_use: &BTreeSet<String>) -> Option<String> {
    let first = found.first()?;
    let id = short(&first.digest);
    if found.iter().any(|name| name.read_only) {
        return Some(format!("{} is in a store of others, which is only read", printable(&first.reference)));
    }
    if found.len() > 1 {
        let names: Vec<String> = found.iter().map(|name| printable(&name.reference).into_owned()).collect();
        return Some(format!(
            "{} is called {}; name the one to remove, or add --force for all",
            printable(text),
            names.join(" and ")
        ));
    }
    let is_last = all.iter().filter(|image| image.digest == first.digest).count() == 1;
    (is_last && in_use.contains(&first.digest)).then(|| {
        format!("{} ({id}) is used by a job; `agentd rm` that first, or add --force", printable(&first.reference))
    })
}
