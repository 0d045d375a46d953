//! `agentd images`.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, SystemTime};

use agentd_rootfs::{ImageError, ImageRef, Listed, Selector, Store};
use anyhow::Result;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::environment::Directories;
use super::ps::{age, shortened};
use super::template::Listing;
use super::wanted::{canonical, stored};
use super::{print_json, printable};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this one: a name, with or without its tag, or the beginning of a digest
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print digests only
    #[arg(short, long)]
    quiet: bool,
    /// Print digests and names in full
    #[arg(long)]
    no_trunc: bool,
    /// How to print them: table, json (an array), or a template with {{.Name}}, {{.Tag}}, {{.ID}}, {{.Digest}}, {{.Created}},
    /// {{.CreatedAt}} and {{.Size}}
    #[arg(long, value_name = "table|json|TEMPLATE", default_value = "table", value_parser = listing)]
    format: Listing,
}

/// Fields of a template, docker's other names for them included.
const FIELDS: &[&str] = &["Name", "Repository", "Tag", "ID", "Digest", "Created", "CreatedSince", "CreatedAt", "Size"];

fn listing(text: &str) -> Result<Listing> {
    Listing::new(text, FIELDS)
}

/// An image of the list, as programs get it.
#[derive(Debug, Serialize)]
struct Row<'l> {
    name: String,
    tag: Option<String>,
    #[serde(flatten)]
    listed: &'l Listed,
    pulled_at: String,
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let images = match Store::existing(&Directories::find()?.stores())? {
        None => Vec::new(),
        Some(store) => match &args.name {
            None => store.images()?,
            Some(text) => match stored(&store, text) {
                Ok(images) => images,
                Err(ImageError::Unknown(_)) => {
                    store.images()?.into_iter().filter(|image| parts(&image.reference).0 == name_of(text)).collect()
                }
                Err(error) => return Err(error.into()),
            },
        },
    };
    let mut out = std::io::stdout().lock();
    match (args.quiet, &args.format) {
        (true, _) => {
            let digests: BTreeSet<&str> = images.iter().map(|image| image.digest.as_str()).collect();
            for digest in digests {
                writeln!(out, "{}", if args.no_trunc { digest } else { short(digest) })?;
            }
        }
        (false, Listing::Json) => {
            drop(out);
            print_json(&images.iter().map(row).collect::<Vec<_>>())?;
        }
        (false, Listing::Template(template)) => {
            for image in &images {
                writeln!(out, "{}", template.fill(|field| value(field, image, args.no_trunc)))?;
            }
        }
        (false, Listing::Table) => writeln!(out, "{}", table(&images, args.no_trunc))?,
    }
    Ok(())
}

fn row(listed: &Listed) -> Row<'_> {
    let (name, tag) = parts(&listed.reference);
    Row { name, tag, listed, pulled_at: humantime::format_rfc3339_seconds(time(listed.pulled)).to_string() }
}

fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn table(images: &[Listed], whole: bool) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["NAME", "TAG", "ID", "CREATED", "SIZE"]);
    for image in images {
        let most = if whole { usize::MAX } else { LONGEST };
        let cell = |field| shortened(value(field, image, whole).unwrap_or_default().into(), most);
        let id = value("ID", image, whole).unwrap_or_default();
        table.add_row([cell("Name"), cell("Tag"), id.into(), cell("Created"), cell("Size")]);
    }
    table
}

/// A field of a template.
fn value(field: &str, image: &Listed, whole: bool) -> Option<String> {
    let (name, tag) = parts(&image.reference);
    // Before 2000 it is the zero that reproducible builds write.
    let created = image.created.as_deref().filter(|created| *created > "2000");
    Some(match field {
        "Name" | "Repository" => printable(&name).into_owned(),
        "Tag" => tag.as_deref().map_or("<none>".into(), printable).into_owned(),
        "ID" => if whole { image.digest.as_str() } else { short(&image.digest) }.to_owned(),
        "Digest" => image.digest.clone(),
        "Created" | "CreatedSince" => created.map_or_else(|| "-".into(), age),
        "CreatedAt" => created.map_or("-".into(), printable).into_owned(),
        "Size" if image.complete => size(image.size),
        "Size" => "incomplete".into(),
        _ => return None,
    })
}

/// Characters of a name in a table.
const LONGEST: usize = 48;

/// The digits of a digest that people are shown.
pub(super) fn short(digest: &str) -> &str {
    digest.split_once(':').and_then(|(_, hex)| hex.get(..12)).unwrap_or(digest)
}

/// Bytes as people read them, in decimal units as docker and podman have it.
pub(super) fn size(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string()
}

/// The name in the list that `text` means without its tag.
fn name_of(text: &str) -> String {
    canonical(text).map_or_else(|| text.to_owned(), |reference| parts(&reference).0)
}

/// Name and tag of a reference.
fn parts(reference: &str) -> (String, Option<String>) {
    let tag = |select: &Selector| match select {
        Selector::Default => None,
        Selector::Tag(tag) => Some(tag.clone()),
        Selector::Digest(_) => None,
    };
    match reference.parse() {
        Ok(ImageRef::Registry(name)) => {
            (format!("{}/{}", name.registry(), name.repository()), name.tag().map(str::to_owned))
        }
        Ok(ImageRef::Oci { layout, select }) => (format!("oci:{}", layout.display()), tag(&select)),
        Ok(ImageRef::OciArchive { file, select }) => (format!("oci-archive:{}", file.display()), tag(&select)),
        Ok(ImageRef::DockerArchive { file, name }) => {
            (format!("docker-archive:{}", file.display()), name.map(|name| name.familiar()))
        }
        _ => (reference.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_come_apart_as_people_wrote_them() {
        for (reference, name, tag) in [
            ("debian:12", "docker.io/library/debian", Some("12")),
            ("oci:/x:v1", "oci:/x", Some("v1")),
            ("oci:/x", "oci:/x", None),
            ("not a reference", "not a reference", None),
        ] {
            assert_eq!(parts(reference), (name.to_owned(), tag.map(str::to_owned)));
        }
    }

    #[test]
    fn only_digits_are_shown_of_a_digest() {
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("odd"), "odd");
    }
}
