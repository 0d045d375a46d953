//! Makes an OCI image out of directory trees, without root, registry or daemon: the command-line face of
//! `agentd_tests::oci`, used by `cargo xtask demo` and by hand.

use std::path::PathBuf;

use agentd_tests::oci::{Compression, Image, Layer};
use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

/// Make an OCI image layout from directory trees
#[derive(Parser)]
struct Args {
    /// Layout to write, `DIR` or `DIR:TAG` (tag `latest`); made when absent, other tags in it stay
    out: String,
    /// Directory tree that becomes one layer; lowest first
    #[arg(long = "layer", value_name = "DIR")]
    layers: Vec<PathBuf>,
    /// How layers are stored
    #[arg(long, value_enum, default_value_t = Stored::Gzip)]
    compression: Stored,
    /// Environment of the image
    #[arg(long, value_name = "K=V")]
    env: Vec<String>,
    /// Command of the image, one word each time it is given
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// User of the image
    #[arg(long)]
    user: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Stored {
    Plain,
    Gzip,
    Zstd,
}

#[expect(clippy::print_stdout, reason = "the digest is this program's output")]
fn main() -> Result<()> {
    let args = Args::parse();
    let compression = match args.compression {
        Stored::Plain => Compression::Plain,
        Stored::Gzip => Compression::Gzip,
        Stored::Zstd => Compression::Zstd,
    };
    let (dir, tag) = args.out.rsplit_once(':').unwrap_or((&args.out, "latest"));
    let mut image = Image::new();
    for layer in args.layers {
        image = image.layer(Layer::Tree(layer), compression);
    }
    for word in &args.env {
        image = image.env(word);
    }
    if !args.cmd.is_empty() {
        image = image.cmd(&args.cmd.iter().map(String::as_str).collect::<Vec<_>>());
    }
    if let Some(user) = &args.user {
        image = image.user(user);
    }
    let written = image.write(dir.as_ref(), tag).with_context(|| format!("cannot write the image {dir}:{tag}"))?;
    println!("{}", written.manifest);
    Ok(())
}
