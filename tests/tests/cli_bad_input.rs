//! Bad input: one clear line, the right exit code, nothing left behind.
#![expect(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use agentd_tests::kernel::mounts_at;
use agentd_tests::oci::{Compression, Entry, Image, Layer, Written, sha256};
use agentd_tests::{Feature, Home, Ran, busybox, require, run};

/// `agentd run WORDS`, which must fail and leave nothing: no job, no file, no mount.
#[track_caller]
fn refused(home: &Home, words: &[&str]) -> Ran {
    refused_command(home, home.run().args(words))
}

#[track_caller]
fn refused_command(home: &Home, command: &mut Command) -> Ran {
    let before = home.paths();
    let ran = run(command).expect_code(125);
    assert_eq!(ran.stdout, "", "{ran}");
    assert!(!ran.stderr.contains('\u{1b}') && !ran.stderr.contains("panicked"), "{ran}");
    let after: Vec<_> = home.paths().into_iter().filter(|path| !before.contains(path) && !is_store(path)).collect();
    assert!(after.is_empty(), "left behind: {after:?}\n{ran}");
    assert_eq!(mounts_at(home.path()), Vec::<String>::new());
    ran
}

/// The store's own directories may be made by the first job that looks into it; a layer or a temporary file may not.
fn is_store(path: &Path) -> bool {
    let own = ["", "/layers", "/tmp", "/lock"].map(|name| format!("data/agentd/store{name}"));
    path == Path::new("data/agentd") || own.iter().any(|own| path == Path::new(own))
}

#[test]
fn an_unknown_flag_is_named() {
    let home = Home::new();
    for words in [
        &["--no-such-flag", "--", "true"][..],
        &["--timout", "5s", "--", "true"],
        &["-z", "true"],
        &["--net=none", "--privileged", "true"],
    ] {
        let flag =
            words.iter().find(|word| ["--no-such-flag", "--timout", "-z", "--privileged"].contains(word)).unwrap();
        refused(&home, words).expect_one_error_line(&[flag, "unexpected", "; see `agentd run --help`"]);
    }
    let suggested = "; a similar argument exists: '--timeout'";
    refused(&home, &["--timout", "5s", "--", "true"]).expect_one_error_line(&[suggested]);
    for (words, told) in [
        (&["ps", "--no-such"][..], &["--no-such", "`agentd ps --help`"][..]),
        (&["-v", "ps", "--no-such"], &["--no-such", "`agentd ps --help`"]),
        (&["no-such-verb"], &["no-such-verb", "`agentd --help`"]),
        (&["logs"], &["required", "`agentd logs --help`"]),
        (&["inspect"], &["required", "`agentd inspect --help`"]),
        (&["rm"], &["required", "`agentd rm --help`"]),
    ] {
        let ran = run(home.agentd().args(words)).expect_code(125);
        assert_eq!(ran.stdout, "", "{ran}");
        ran.expect_one_error_line(told);
    }
    // Without a verb there is nothing that is wrong: the help says what there is.
    let ran = run(&mut home.agentd()).expect_code(125);
    assert!(ran.stdout.is_empty() && ran.stderr.contains("Usage: agentd"), "{ran}");
    let ran = run(home.agentd().args(["run", "--help"])).expect_silent_success();
    assert!(ran.stdout.contains("Usage: agentd run"), "{ran}");
    // What comes after the command is the command's.
    if require(Feature::Userns) {
        let ran = run(home.run().args(["echo", "--no-such-flag", "-z"])).expect_success();
        assert_eq!(ran.stdout, "--no-such-flag -z\n");
    }
}

#[test]
fn values_that_a_flag_does_not_know_are_named_with_the_flag() {
    let home = Home::new();
    for (flag, values) in [
        ("--timeout", &["0", "-1s", "soon", "1fortnight", "", "99999999999999999999s"][..]),
        ("--stop-timeout", &["x", "1.5.2s"]),
        ("--storage", &["0", "-1", "much", "1q", "", "99999999999999999999g"]),
        ("--max-output", &["0", "nothing"]),
        ("--memory", &["0", "1x"]),
        ("--cpus", &["0", "-1", "one", "0.00001", "inf"]),
        ("--pids", &["0", "-5", "many", "1.5"]),
        ("--net", &["bridge", "HOST", ""]),
        ("--hostname", &["a b", "-x", "a.b", "", "a\u{1b}[2J"]),
        ("--name", &["a/b", "..", "-x", "", "0123456789ab", "é"]),
        ("--workdir", &["relative", "", "/a/../b"]),
        ("--mount", &["", "src=/etc", "dst=/x", "src=/etc,dst=x", "type=tmpfs,dst=/x", "src=/etc,dst=/x,shared"]),
        ("--image", &["", "dir:", "oci:", "oci:/x:", "./image", "oci:/x@sha256:abc"]),
        ("--image", &["Debian:12", "debian:", "docker://", "https://q.io/x", "docker-archive:-", "docker-daemon:x"]),
        ("--format", &["yaml"]),
    ] {
        for value in values {
            let shown = value.split('\u{1b}').next().unwrap();
            let ran = refused(&home, &[&format!("{flag}={value}"), "--dry-run", "--", "true"]);
            ran.expect_one_error_line(&[flag, shown]);
        }
    }
}

#[test]
fn a_value_that_is_not_an_absolute_path_and_the_root_are_told_apart() {
    let home = Home::new();
    let ran = refused(&home, &["--mount", "src=/etc,dst=/", "--", "true"]);
    assert!(!ran.stderr.contains("must be an absolute path"), "`/` is one\n{ran}");
}

#[test]
fn words_that_are_checked_after_parsing_give_one_line() {
    let home = Home::new();
    for (words, told) in [
        (&["--env", "=x"][..], &["=x", "NAME=VALUE"][..]),
        (&["--env", "A B=x"], &["A B=x", "NAME=VALUE"]),
        (&["--workspace", ".:cow"], &["cow", "bind"]),
        (&["--env-file", "/no/such/file"], &["--env-file", "/no/such/file", "No such file"]),
        (&["--env-file", "/"], &["--env-file", "/", "directory"]),
        (&["--mount", "src=/no/such/file,dst=/x"], &["mount", "/no/such/file", "No such file", "give one that exists"]),
    ] {
        refused(&home, &[words, &["--", "true"]].concat()).expect_one_error_line(told);
    }
    refused(&home, &[]).expect_one_error_line(&["no command", "--"]);
    let bad = home.path().join("config/env");
    fs::write(&bad, "GOOD=1\n=bad\n").unwrap();
    refused(&home, &["--env-file", bad.to_str().unwrap(), "--", "true"]).expect_one_error_line(&["=bad"]);
    fs::write(&bad, b"A=\xff\xfe\n").unwrap();
    refused(&home, &["--env-file", bad.to_str().unwrap(), "--", "true"]).expect_one_error_line(&["config/env"]);
}

#[test]
fn a_workspace_must_be_a_directory_that_can_be_entered() {
    let home = Home::new();
    let with = |path: &Path, told: &[&str]| {
        let path = path.to_str().unwrap();
        for words in [["--workspace", path], ["--workspace", &format!("{path}:ro")]] {
            refused(&home, &[&words[..], &["--", "true"]].concat()).expect_one_error_line(told);
        }
    };
    let file = home.path().join("config/file");
    fs::write(&file, "").unwrap();
    with(&home.path().join("missing"), &["workspace", "missing", "No such file", "give one that exists"]);
    with(&file, &["workspace", "config/file", "not a directory", "give a directory"]);
    with(&file.join("below"), &["workspace", "config/file/below", "give one that exists"]);
    std::os::unix::fs::symlink("dangling", home.path().join("config/link")).unwrap();
    with(&home.path().join("config/link"), &["workspace", "config/link", "give one that exists"]);
}

/// Lets the home be removed, however the test ends.
struct Reopen<'a>(&'a Path);

impl Drop for Reopen<'_> {
    fn drop(&mut self) {
        // The test is over; a directory that stays is all that could come of it.
        fs::set_permissions(self.0, fs::Permissions::from_mode(0o700)).ok();
    }
}

#[test]
fn a_workspace_that_its_user_may_not_enter_is_refused() {
    if !(require(Feature::OrdinaryUser) && require(Feature::Userns)) {
        return;
    }
    let home = Home::new();
    let closed = home.path().join("config/closed");
    fs::create_dir_all(closed.join("below")).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let _reopen = Reopen(&closed);
    let below = closed.join("below");
    refused(&home, &["--workspace", below.to_str().unwrap(), "--", "true"])
        .expect_one_error_line(&["denied", "give one that you may reach"]);
    // Its owner could bind it, but the payload could not use it.
    refused(&home, &["--workspace", closed.to_str().unwrap(), "--", "true"])
        .expect_one_error_line(&["workspace", "denied"]);
}

#[test]
fn an_image_that_is_not_there_or_is_none_is_named() {
    let home = Home::new();
    let empty = home.path().join("config/empty");
    fs::create_dir(&empty).unwrap();
    let file = home.path().join("config/file");
    fs::write(&file, "").unwrap();
    let with = |image: &str, told: &[&str]| {
        refused(&home, &["--image", image, "--", "true"]).expect_one_error_line(told);
    };
    for kind in ["oci", "dir"] {
        with(&format!("{kind}:/no/such/image"), &["/no/such/image", "image", "give one that exists"]);
        with(&format!("{kind}:{}", file.display()), &["config/file"]);
    }
    with("oci:/no/such/image", &["skopeo copy docker://… oci:/no/such/image"]);
    with("oci-archive:/no/such/image", &["/no/such/image", "give one that exists"]);
    with(&format!("oci:{}", empty.display()), &["config/empty", "oci-layout", "skopeo copy"]);
    fs::write(empty.join("oci-layout"), r#"{"imageLayoutVersion":"9.0.0"}"#).unwrap();
    with(&format!("oci:{}", empty.display()), &["config/empty", "9.0.0", "skopeo copy"]);
    fs::write(empty.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    with(&format!("oci:{}", empty.display()), &["index.json"]);
    fs::write(empty.join("index.json"), "{").unwrap();
    with(&format!("oci:{}", empty.display()), &["index.json", "malformed", "fetch the image again"]);
    fs::write(empty.join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
    with(&format!("oci:{}", empty.display()), &["config/empty", "image"]);
}

/// A layout with a small image whose one layer is stored as `compression`, to be spoiled.
fn image(home: &Home, compression: Compression) -> (PathBuf, Written) {
    let layout = home.path().join("config/image");
    let entries = vec![Entry::dir("etc"), Entry::file("etc/motd", "hello\n".repeat(100_000)), Entry::file("z", "z")];
    let written =
        Image::new().layer(Layer::Entries(entries), compression).cmd(&["/x"]).write(&layout, "latest").unwrap();
    (layout, written)
}

#[track_caller]
fn refuses_image(home: &Home, layout: &Path, told: &[&str]) {
    // Without `-q` there may be words on progress before the failure.
    refused(home, &["-q", "--image", &format!("oci:{}", layout.display())]).expect_one_error_line(told);
}

fn short(digest: &str) -> &str {
    &digest[..19]
}

#[test]
fn an_unknown_tag_or_digest_lists_what_there_is() {
    let home = Home::new();
    let (layout, _) = image(&home, Compression::Gzip);
    let tagged = format!("oci:{}:v9", layout.display());
    refused(&home, &["--image", &tagged]).expect_one_error_line(&["v9", "latest"]);
    let digest = format!("oci:{}@{}", layout.display(), sha256(b"other"));
    refused(&home, &["--image", &digest]).expect_one_error_line(&[&sha256(b"other")]);
}

#[test]
fn a_blob_that_is_not_what_its_digest_says_is_refused() {
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let home = Home::new();
        let (layout, written) = image(&home, compression);
        for digest in [&written.manifest, &written.config, &written.layers[0]] {
            let blob = Written::blob(&layout, digest);
            let good = fs::read(&blob).unwrap();
            // Same length, one byte flipped near the end; and longer; and gone.
            let mut flipped = good.clone();
            let last = flipped.len() - 3;
            flipped[last] ^= 1;
            fs::write(&blob, &flipped).unwrap();
            refuses_image(&home, &layout, &[short(digest), "fetch the image again"]);
            fs::write(&blob, [&good[..], b"\0more"].concat()).unwrap();
            refuses_image(&home, &layout, &[short(digest), "fetch the image again"]);
            fs::remove_file(&blob).unwrap();
            refuses_image(&home, &layout, &[short(digest), "fetch the image again"]);
            fs::write(&blob, &good).unwrap();
        }
    }
}

#[test]
fn a_layer_that_breaks_off_is_refused() {
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let home = Home::new();
        let (layout, written) = image(&home, compression);
        let blob = Written::blob(&layout, &written.layers[0]);
        let good = fs::read(&blob).unwrap();
        for kept in [0, 1, good.len() / 2, good.len() - 1] {
            fs::write(&blob, &good[..kept]).unwrap();
            refuses_image(&home, &layout, &[short(&written.layers[0])]);
        }
    }
}

/// Writes another manifest of the image: config and layer descriptors changed by `change`, digests made right again.
fn with_manifest(
    layout: &Path,
    written: &Written,
    change: impl FnOnce(&mut serde_json::Value, &mut serde_json::Value),
) {
    let read = |digest: &str| serde_json::from_slice(&fs::read(Written::blob(layout, digest)).unwrap()).unwrap();
    let (mut manifest, mut config): (serde_json::Value, serde_json::Value) =
        (read(&written.manifest), read(&written.config));
    change(&mut manifest, &mut config);
    let store = |value: &serde_json::Value| {
        let bytes = serde_json::to_vec(value).unwrap();
        let digest = sha256(&bytes);
        fs::write(Written::blob(layout, &digest), &bytes).unwrap();
        (digest, bytes.len())
    };
    let (digest, size) = store(&config);
    manifest["config"]["digest"] = digest.into();
    manifest["config"]["size"] = size.into();
    let (digest, size) = store(&manifest);
    let index = layout.join("index.json");
    let mut document: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    document["manifests"][0]["digest"] = digest.into();
    document["manifests"][0]["size"] = size.into();
    fs::write(index, serde_json::to_vec(&document).unwrap()).unwrap();
}

#[test]
fn a_layer_that_is_not_what_the_config_says_is_refused() {
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let home = Home::new();
        let (layout, written) = image(&home, compression);
        let wrong = sha256(b"something else");
        with_manifest(&layout, &written, |_, config| config["rootfs"]["diff_ids"][0] = wrong.clone().into());
        let told = [short(&written.layers[0]), short(&written.diff_ids[0]), short(&wrong), "fetch the image again"];
        refuses_image(&home, &layout, &told);
    }
}

#[test]
fn media_types_and_counts_that_do_not_fit_are_refused() {
    type Change = fn(&mut serde_json::Value, &mut serde_json::Value);
    let spoiled: [(Change, &[&str]); 5] = [
        (
            |m, _| m["layers"][0]["mediaType"] = "application/vnd.example.layer.v1+xz".into(),
            &["vnd.example.layer.v1+xz"],
        ),
        (|m, _| m["mediaType"] = "application/vnd.example+json".into(), &["application/vnd.example+json"]),
        (|m, _| m["config"]["mediaType"] = "text/plain".into(), &["text/plain"]),
        (|_, c| c["rootfs"]["diff_ids"] = serde_json::json!([]), &["layer"]),
        (|_, c| c["os"] = "plan9".into(), &["plan9"]),
    ];
    for (change, told) in spoiled {
        let home = Home::new();
        let (layout, written) = image(&home, Compression::Gzip);
        with_manifest(&layout, &written, change);
        refuses_image(&home, &layout, told);
    }
}

#[test]
fn an_image_with_nothing_to_run_says_so() {
    let home = Home::new();
    let layout = home.path().join("config/image");
    let layer = Layer::Entries(vec![Entry::dir("etc")]);
    Image::new().layer(layer, Compression::Plain).write(&layout, "latest").unwrap();
    let ran = run(home.run().args(["-q", "--image", &format!("oci:{}", layout.display())])).expect_code(125);
    ran.expect_one_error_line(&["no command"]);
}

/// These get as far as a job: there is a record, and nothing else.
#[test]
fn a_payload_that_cannot_run_leaves_a_record_and_nothing_else() {
    if !(require(Feature::Userns) && require(Feature::Busybox)) {
        return;
    }
    let home = Home::new();
    let layout = home.path().join("config/image");
    let more = Layer::Entries(vec![
        Entry::file("bin/no-mode", "#!/bin/sh\n"),
        Entry::file("bin/garbage", "\x7fELF").mode(0o755),
    ]);
    busybox().layer(more, Compression::Gzip).write(&layout, "latest").unwrap();
    let image = format!("oci:{}", layout.display());
    for (program, code) in [("no-mode", 126), ("/bin/garbage", 126), ("missing", 127), ("/bin/missing", 127)] {
        let ran = run(home.run().args(["-q", "--image", &image, "--", program])).expect_code(code);
        ran.expect_one_error_line(&[program]);
        let record = &home.jobs()[0];
        assert_eq!((record["state"].as_str(), record["exit_code"].as_i64()), (Some("failed"), Some(code.into())));
        assert!(record["reason"].as_str().unwrap().contains(program), "{record}");
    }
    assert_eq!(mounts_at(home.path()), Vec::<String>::new());
    let _ran = run(home.agentd().args(["rm", "-a"])).expect_success();
    let left: Vec<_> =
        home.paths().into_iter().filter(|path| path.starts_with("state") && path.components().count() > 3).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_store_that_others_may_enter_is_refused() {
    let home = Home::new();
    let (layout, _) = image(&home, Compression::Gzip);
    let store = home.path().join("data/agentd/store");
    fs::create_dir_all(&store).unwrap();
    fs::set_permissions(&store, fs::Permissions::from_mode(0o777)).unwrap();
    refuses_image(&home, &layout, &["data/agentd/store", "chmod 700"]);
}
