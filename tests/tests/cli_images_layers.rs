//! What a pull makes of layers: how much of them it takes, what it leaves out and says so, and what holes become.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use agentd_tests::oci::{Compression, Entry, Image, Layer, Written};
use agentd_tests::{Home, Ran, run};
use serde_json::{Value, json};

fn agentd(home: &Home, words: &[&str]) -> Ran {
    run(home.agentd().args(words))
}

fn parsed(ran: Ran) -> Value {
    serde_json::from_str(&ran.expect_success().stdout).unwrap()
}

fn write(home: &Home, name: &str, image: Image) -> (String, Written) {
    let dir = home.path().join(name);
    let written = image.write(&dir, "t").unwrap();
    (format!("oci:{}:t", dir.display()), written)
}

/// Where the store has a layer.
fn unpacked(home: &Home, diff_id: &str) -> PathBuf {
    home.path().join("data/agentd/store/layers").join(format!("{}-squash1/fs", diff_id.replace(':', "-")))
}

#[test]
fn limits_are_lowered_and_raised_by_the_flag_that_the_error_names() {
    let files = |name: &str| Layer::Entries(vec![Entry::file(name, vec![b'x'; 100_000]), Entry::file("f", "")]);
    let image = || Image::new().layer(files("one"), Compression::Gzip).layer(files("two"), Compression::Zstd);
    for (limit, words) in [
        ("layer-bytes=50k", "unpacked bytes of a layer (51200)"),
        ("entries=1", "entries of a layer (1)"),
        // Each of the layers is within its own limit; one of the two goes over what they have together.
        ("image-bytes=200000", "unpacked bytes of all layers of an image (200000)"),
        ("image-entries=3", "entries of all layers of an image (3)"),
    ] {
        let home = Home::new();
        let (two, _) = write(&home, "two", image());
        let name = limit.split('=').next().unwrap();
        let words = ["goes over the limit on", words, &format!("--image-limit {name}=VALUE sets it")];
        agentd(&home, &["pull", "-q", "--image-limit", limit, &two]).expect_code(125).expect_one_error_line(&words);
        let layers = fs::read_dir(home.path().join("data/agentd/store/layers")).unwrap().count();
        assert!(layers <= 1, "{layers} of two layers are there, of which at most one was within {limit}");
        if name != "image-entries" {
            // The one that is there counts.
            let image = format!("--image={two}");
            let ran = agentd(&home, &["run", "-q", "--image-limit", limit, &image, "--", "true"]).expect_code(125);
            ran.expect_one_error_line(&words);
        }
    }
    let home = Home::new();
    let (two, _) = write(&home, "two", image());
    let enough = ["pull", "-q", "--image-limit", "image-bytes=210000", "--image-limit", "image-entries=4", &two];
    drop(agentd(&home, &enough).expect_silent_success());

    let deep = format!("{}leaf", "d/".repeat(300));
    let (deep, _) =
        write(&home, "deep", Image::new().layer(Layer::Entries(vec![Entry::file(&deep, "")]), Compression::Gzip));
    let ran = agentd(&home, &["pull", "-q", &deep]).expect_code(125);
    ran.expect_one_error_line(&["components of a path (256); --image-limit depth=VALUE sets it"]);
    drop(agentd(&home, &["pull", "-q", "--image-limit", "depth=301", &deep]).expect_silent_success());
    let unknown = agentd(&home, &["pull", "-q", "--image-limit", "size=1", &deep]).expect_code(125);
    unknown.expect_one_error_line(&["there is no limit `size`", "image-bytes"]);
}

#[test]
fn what_an_ordinary_user_cannot_make_is_left_out_counted_and_said() {
    let home = Home::new();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let entries = vec![
        Entry::file("ping", "x").mode(0o755).pax("SCHILY.xattr.security.capability", capability),
        Entry::file("kept", "x").pax("SCHILY.xattr.user.mine", b"y"),
        Entry::char_device("tty0", 4, 0),
        Entry::new("sda", tar::EntryType::Block),
    ];
    let plain = Layer::Entries(vec![Entry::file("plain", "x")]);
    let image = Image::new().layer(Layer::Entries(entries), Compression::Gzip).layer(plain, Compression::Gzip);
    let (reference, written) = write(&home, "img", image.ports(&["8080/tcp", "53/udp"]));
    let pulled = agentd(&home, &["pull", "--format", "json", &reference]);
    let layer = &written.layers[0][..19];
    for what in ["2 device nodes", "1 extended attributes"] {
        let said = format!("agentd: layer {layer}: {what} left out, which an ordinary user cannot make");
        assert_eq!(pulled.stderr.lines().filter(|line| *line == said).count(), 1, "{said}\n{pulled}");
    }
    assert_eq!(pulled.stderr.matches(" left out").count(), 2, "nothing of the other layer\n{pulled}");
    let expected = json!([{ "reference": reference, "digest": written.manifest, "layers": 2 }]);
    assert_eq!(parsed(pulled), expected);

    let inspected = &parsed(agentd(&home, &["image", "inspect", &reference]))[0];
    let left_out = |number: usize| {
        let layer = &inspected["layers"][number];
        (layer["left_out_devices"].clone(), layer["left_out_attributes"].clone())
    };
    assert_eq!((left_out(0), left_out(1)), ((json!(2), json!(1)), (json!(0), json!(0))), "{inspected}");
    assert_eq!(inspected["config"]["ExposedPorts"], json!({ "8080/tcp": {}, "53/udp": {} }));

    // As the disk has it.
    let fs = unpacked(&home, &written.diff_ids[0]);
    let attributes = |name: &str| {
        let mut names = vec![0; 1000];
        let length = rustix::fs::listxattr(fs.join(name), &mut names).unwrap();
        String::from_utf8_lossy(&names[..length]).split_terminator('\0').map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(attributes("kept"), ["user.mine"]);
    assert!(!attributes("ping").contains(&"security.capability".to_owned()));
    assert!(fs.join("tty0").symlink_metadata().is_err() && fs.join("sda").symlink_metadata().is_err());
}

/// Whether files have holes there.
fn has_holes(dir: &Path) -> bool {
    let probe = File::create(dir.join("probe")).unwrap();
    probe.set_len(1 << 30).unwrap();
    let blocks = probe.metadata().unwrap().blocks();
    fs::remove_file(dir.join("probe")).unwrap();
    blocks * 512 < 1 << 20
}

#[test]
fn holes_of_sparse_files_stay_holes() {
    const SIZE: u64 = 1 << 30;
    let home = Home::new();
    if !has_holes(home.path()) {
        eprintln!("skipped: the file system of the tests has no holes");
        return;
    }
    // GNU's format 1.0: the map comes first, then the two segments: at the beginning, and just before the end.
    let map = format!("2\n0\n512\n{}\n512\n", SIZE - 512);
    let sparse = Entry::file("GNUSparseFile.0/s", format!("{map:\0<512}{:\0<512}{:\0>512}", "begin", "end"))
        .pax("GNU.sparse.major", b"1")
        .pax("GNU.sparse.minor", b"0")
        .pax("GNU.sparse.name", b"sparse")
        .pax("GNU.sparse.realsize", SIZE.to_string().as_bytes());
    let (reference, written) = write(&home, "img", Image::new().layer(Layer::Entries(vec![sparse]), Compression::Gzip));
    drop(agentd(&home, &["pull", "-q", &reference]).expect_silent_success());
    let file = File::open(unpacked(&home, &written.diff_ids[0]).join("sparse")).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), SIZE);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    let (mut first, mut last) = ([0; 6], [0; 6]);
    file.read_exact_at(&mut first, 0).unwrap();
    file.read_exact_at(&mut last, SIZE - 6).unwrap();
    assert_eq!((&first, &last), (b"begin\0", b"\0\0\0end"));
}
