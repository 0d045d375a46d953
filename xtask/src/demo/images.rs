//! The demo's two images, made without root, registry or daemon: `debian` (base system, tools, Claude Code: a layer
//! each) and `minimal` (a static shell and nothing else).
//!
//! An image is made again only when what it is made of changed: its recipe is written beside the layout once it is whole.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::report::step;
use super::site::Site;
use super::{claude, debian};

/// Makes what is missing; gives the time that downloads took.
pub(super) fn make(site: &Site) -> Result<Duration> {
    let start = Instant::now();
    let recipe = recipe()?;
    let written = site.images().join("recipe");
    if fs::read_to_string(&written).is_ok_and(|known| known == recipe) {
        step(start, "the images are there");
        return Ok(Duration::ZERO);
    }
    let agent = site.cache().join("layer-claude");
    let of_claude = claude::unpack(&site.cache(), &agent)?;
    let start = Instant::now();
    let trees = debian::unpack(&site.cache())?;
    step(start, "Debian packages are downloaded and unpacked");
    let start = Instant::now();
    remove(&site.images())?;
    image(site, "minimal", &[&trees.minimal], "gzip")?;
    image(site, "debian", &[&trees.base, &trees.tools, &agent], "zstd")?;
    for tree in [&trees.base, &trees.tools, &trees.minimal, &agent] {
        remove(tree)?;
    }
    fs::write(written, recipe).context("cannot note how the images were made")?;
    step(start, "OCI images are made: debian (3 layers, zstd), minimal (1 layer, gzip)");
    Ok(of_claude + trees.downloading)
}

fn image(site: &Site, tag: &str, layers: &[&Path], compression: &str) -> Result<()> {
    let mut make = Command::new(site.tool("oci-image"));
    make.arg(format!("{}:{tag}", site.images().display())).args(["--compression", compression]);
    make.args(["--env", "PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin", "--env", "LANG=C.UTF-8", "--cmd", "sh"]);
    for layer in layers {
        make.arg("--layer").arg(layer);
    }
    quiet(&mut make)
}

/// Everything that decides what is in the images: the release, the versions, and the source that puts them together.
fn recipe() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let mut source = DefaultHasher::new();
    (include_str!("images.rs"), include_str!("debian.rs"), include_str!("claude.rs")).hash(&mut source);
    Ok(format!("{release}source {:x}\n", source.finish()))
}

/// Runs `command`; what it says is shown only when it fails.
pub(crate) fn quiet(command: &mut Command) -> Result<()> {
    said(command).map(drop)
}

/// Runs `command` and returns its standard output; what it says otherwise is shown only when it fails.
pub(crate) fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Removes a tree, if there is one.
pub(crate) fn remove(tree: &Path) -> Result<()> {
    match fs::remove_dir_all(tree) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", tree.display()))
        }
        _ => Ok(()),
    }
}
