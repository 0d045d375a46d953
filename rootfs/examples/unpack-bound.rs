//! The bound of unpacking: hashing, inflating and creating files, each alone, on one thread, with nothing around it.
//!
//! `unpack-bound hash|inflate|create IMAGE [DIRECTORY]` does one of them for all layers of an OCI image layout and prints
//! its CPU time in seconds. `cargo xtask bench unpack` divides agentd's wall time by the sum of the three spread over
//! all cores. What a step gets from the one before it is made ready in memory first, and not counted.
//!
//! Invariant: a measuring instrument, never shipped. It believes every byte of the image, which the benchmark made.
#![expect(clippy::print_stdout, reason = "the time is this program's output")]

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::time::{ClockId, clock_gettime};
use tar::EntryType;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What agentd works in.
const BLOCK: usize = 256 << 10;

fn main() -> Outcome<()> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let [what, image, directory @ ..] = &words[..] else { return Err("usage: unpack-bound WHAT IMAGE [DIR]".into()) };
    // Modes come with the files, not after them.
    rustix::process::umask(Mode::empty());
    let mut seconds = 0.0;
    for blob in layers(Path::new(image))? {
        seconds += match (what.to_str(), directory) {
            (Some("hash"), []) => hash(&blob)?,
            (Some("inflate"), []) => inflate(&blob)?,
            (Some("create"), [directory]) => create(&entries(&unpacked(&blob)?)?, Path::new(directory))?,
            _ => return Err("usage: unpack-bound hash|inflate|create IMAGE [DIRECTORY]".into()),
        };
    }
    println!("{seconds}");
    Ok(())
}

/// The layers' blobs, lowest first.
fn layers(image: &Path) -> Outcome<Vec<PathBuf>> {
    let blob = |digest: &serde_json::Value| image.join("blobs").join(digest.as_str().unwrap_or("").replace(':', "/"));
    let json = |path: &Path| -> Outcome<serde_json::Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let index = json(&image.join("index.json"))?;
    let manifest = json(&blob(&index["manifests"][0]["digest"]))?;
    let layers = manifest["layers"].as_array().ok_or("the manifest has no layers")?;
    Ok(layers.iter().map(|layer| blob(&layer["digest"])).collect())
}

/// CPU seconds of this process.
fn cpu() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    std::time::Duration::try_from(now).unwrap_or_default().as_secs_f64()
}

fn decoder<'b>(blob: &'b [u8]) -> Outcome<Box<dyn Read + 'b>> {
    Ok(match blob {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
        _ => Box::new(zstd::stream::read::Decoder::with_buffer(blob)?),
    })
}

fn unpacked(blob: &Path) -> Outcome<Vec<u8>> {
    let mut archive = Vec::new();
    decoder(&std::fs::read(blob)?)?.read_to_end(&mut archive)?;
    Ok(archive)
}

/// Reading and hashing the blob, and hashing what it unpacks to.
fn hash(blob: &Path) -> Outcome<f64> {
    let archive = unpacked(blob)?;
    let start = cpu();
    let mut buffer = vec![0; BLOCK];
    let (mut digest, mut diff_id) = (Context::new(&SHA256), Context::new(&SHA256));
    let mut file = File::open(blob)?;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        digest.update(&buffer[..n]);
    }
    archive.chunks(BLOCK).for_each(|block| diff_id.update(block));
    std::hint::black_box((digest.finish(), diff_id.finish()));
    Ok(cpu() - start)
}

fn inflate(blob: &Path) -> Outcome<f64> {
    let blob = std::fs::read(blob)?;
    let mut buffer = vec![0; BLOCK];
    let start = cpu();
    let mut decoder = decoder(&blob)?;
    while decoder.read(&mut buffer)? > 0 {
        std::hint::black_box(&buffer);
    }
    Ok(cpu() - start)
}

/// An entry without its contents.
struct Entry {
    directory: PathBuf,
    name: Vec<u8>,
    link: Vec<u8>,
    kind: EntryType,
    mode: u32,
    mtime: i64,
    size: usize,
}

fn entries(archive: &[u8]) -> Outcome<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in tar::Archive::new(archive).entries()? {
        let entry = entry?;
        let header = entry.header();
        let path = entry.path()?.into_owned();
        // The root itself has no name.
        let Some(name) = path.file_name() else { continue };
        entries.push(Entry {
            directory: path.parent().unwrap_or(Path::new("")).to_owned(),
            name: name.as_bytes().to_vec(),
            link: entry.link_name_bytes().unwrap_or_default().into_owned(),
            kind: header.entry_type(),
            mode: header.mode()?,
            mtime: i64::try_from(header.mtime()?)?,
            size: usize::try_from(entry.size())?,
        });
    }
    Ok(entries)
}

/// The system calls that files with contents, modes and mtimes take, and no others. What is written comes from one block
/// in the cache, as it does when it was just inflated: from memory it takes half as long again.
fn create(entries: &[Entry], directory: &Path) -> Outcome<f64> {
    let contents = vec![b'x'; BLOCK];
    let place = tempfile::TempDir::new_in(directory)?.keep();
    let start = cpu();
    let root = open(CWD, &place)?;
    let mut parent: (&Path, OwnedFd) = (Path::new(""), root.try_clone()?);
    let mut directories = BTreeMap::new();
    for entry in entries {
        if parent.0 != entry.directory {
            parent = (&entry.directory, open(&root, &entry.directory)?);
        }
        let name = OsStr::from_bytes(&entry.name);
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: entry.mtime, tv_nsec: 0 },
        };
        let mode = Mode::from_raw_mode(entry.mode);
        match entry.kind {
            EntryType::Directory => {
                rustix::fs::mkdirat(&parent.1, name, Mode::RWXU)?;
                directories.insert(entry.directory.join(name), (mode, times));
            }
            EntryType::Symlink => {
                rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), &parent.1, name)?;
                rustix::fs::utimensat(&parent.1, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            EntryType::Link => {
                rustix::fs::linkat(&root, OsStr::from_bytes(&entry.link), &parent.1, name, AtFlags::empty())?;
            }
            _ => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&parent.1, name, flags, mode)?;
                let mut left = entry.size;
                while left > 0 {
                    left -= rustix::io::write(&file, &contents[..left.min(BLOCK)])?;
                }
                rustix::fs::futimens(&file, &times)?;
            }
        }
    }
    for (path, (mode, times)) in directories.iter().rev() {
        let directory = open(&root, path)?;
        rustix::fs::fchmod(&directory, *mode)?;
        rustix::fs::futimens(&directory, times)?;
    }
    Ok(cpu() - start)
}

fn open(at: impl std::os::fd::AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    rustix::fs::openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
