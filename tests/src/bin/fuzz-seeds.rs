//! Writes the seeds that fuzzing starts from: every crafted layer of `agentd_tests::oci` as the targets `layer` and
//! `blob` of `fuzz/` take them, two archives for `archive`, refused calls for `lessons`. The text seeds of the other targets lie in `fuzz/seeds`.

use std::fs;
use std::path::{Path, PathBuf};

use agentd_tests::oci::{self, Compression, Entry, Image, Layer, honest, hostile};
use anyhow::{Context, Result};
use clap::Parser;

/// Larger ones are slow to mutate and say nothing that small ones do not.
const MOST: usize = 64 << 10;

/// Write the seeds of the fuzz targets that are no text
#[derive(Parser)]
struct Args {
    /// Directory that gets a directory for each target
    out: PathBuf,
}

fn main() -> Result<()> {
    let out = Args::parse().out;
    for target in ["layer", "blob", "archive", "lessons"] {
        fs::create_dir_all(out.join(target)).with_context(|| format!("make {}", out.join(target).display()))?;
    }
    let honest = honest::cases()?.into_iter().flat_map(|case| case.layers);
    let hostile = [hostile::escapes("/tmp/host"), hostile::desyncs("/tmp/host")?, hostile::bombs()?].concat();
    let layers = honest.chain(hostile.into_iter().flat_map(|attack| attack.layers));
    for (number, (layer, compression)) in layers.enumerate() {
        let archive = layer.to_bytes()?;
        if archive.len() > MOST {
            continue;
        }
        let (choice, blob) = match (&layer, compression) {
            (Layer::Stored { blob, .. }, Compression::Zstd) => (2, blob.clone()),
            (Layer::Stored { blob, .. }, _) => (1, blob.clone()),
            (_, Compression::Zstd) => (2, zstd::encode_all(&archive[..], 3)?),
            (_, Compression::Gzip) => {
                let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                std::io::Write::write_all(&mut writer, &archive)?;
                (1, writer.finish()?)
            }
            (_, Compression::Plain) => (0, archive.clone()),
        };
        fs::write(out.join(format!("layer/{number}")), &archive)?;
        fs::write(out.join(format!("blob/{number}")), [&[choice][..], &blob].concat())?;
    }
    fs::write(out.join("archive/oci"), oci_archive(&out.join("layout"))?)?;
    fs::write(out.join("archive/docker"), docker_archive()?)?;
    fs::write(out.join("lessons/calls"), refused_calls())?;
    Ok(())
}

/// Refused calls as `lessons` takes them: a byte of choices, then number, bits, value and name of each.
fn refused_calls() -> Vec<u8> {
    let call = |nr: u32, value: u32| [&nr.to_le_bytes()[..], &[0; 4], &value.to_le_bytes(), b"a\"\n\xff"].concat();
    // ptrace, personality, socket, unshare and name_to_handle_at of x86_64.
    let calls = [(101, 0), (135, 8), (41, 16), (272, 0x1000_0000), (303, 0), (135, 0x4_0000)];
    calls.into_iter().fold(vec![1], |seed, (nr, value)| [seed, call(nr, value)].concat())
}

fn small() -> Layer {
    Layer::Entries(vec![Entry::dir("d"), Entry::file("d/f", "1")])
}

/// A layout as `skopeo copy oci-archive:` packs it.
fn oci_archive(layout: &Path) -> Result<Vec<u8>> {
    let written = Image::new().layer(small(), Compression::Gzip).write(layout, "t")?;
    let mut names = vec!["oci-layout".to_owned(), "index.json".to_owned()];
    let digests = [written.manifest, written.config].into_iter().chain(written.layers);
    names.extend(digests.map(|digest| format!("blobs/{}", digest.replace(':', "/"))));
    let entries = names.iter().map(|name| Ok(Entry::file(name, fs::read(layout.join(name))?)));
    Ok(Layer::Entries(entries.collect::<Result<_>>()?).to_bytes()?)
}

/// An image as `docker save` packs it.
fn docker_archive() -> Result<Vec<u8>> {
    let layer = small().to_bytes()?;
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        oci::sha256(&layer)
    );
    let name = format!("{}.json", oci::sha256(config.as_bytes()).trim_start_matches("sha256:"));
    let manifest = format!(r#"[{{"Config":"{name}","RepoTags":["r.io/a:t"],"Layers":["1/layer.tar"]}}]"#);
    let entries =
        vec![Entry::file(&name, config), Entry::file("1/layer.tar", layer), Entry::file("manifest.json", manifest)];
    Ok(Layer::Entries(entries).to_bytes()?)
}
