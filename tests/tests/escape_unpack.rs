//! Layers made by an attacker, unpacked by the binary: nothing lands, changes or is opened outside the store.
//!
//! CVE-2025-47290, CVE-2021-29136, CVE-2024-9676, and the tar parsers' RUSTSEC-2026-0067 and -0068.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use agentd_tests::oci::{Compression, Entry, Layer, Written};
use agentd_tests::{Feature, Home, busybox, require, run};

/// A directory of the host that a layer knows of.
fn target(home: &Home) -> PathBuf {
    let dir = home.path().join("target");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("canary"), "of the host").unwrap();
    fs::write(dir.join("sub/canary"), "of the host").unwrap();
    dir
}

fn picture(dir: &Path) -> String {
    run(Command::new("find").arg(dir).args(["-printf", "%p %y %m %U %s %n %T@\n"])).expect_success().stdout
}

/// What each case is about, and its layers.
fn cases(host: &str) -> Vec<(&'static str, Vec<Vec<Entry>>)> {
    let far = format!("{}{host}", "../".repeat(30).trim_end_matches('/'));
    let link = || Entry::symlink("link", host);
    let pwned = |name: &str| Entry::file(name, "pwned");
    vec![
        ("a file through a link", vec![vec![link(), pwned("link/pwned")]]),
        ("a file through a relative link", vec![vec![Entry::symlink("link", &far), pwned("link/pwned")]]),
        ("a file through a link of the layer below", vec![vec![link()], vec![pwned("link/pwned")]]),
        ("a directory through a link", vec![vec![link(), Entry::dir("link/sub/deep").mode(0o777)]]),
        ("a mode through a link", vec![vec![link(), Entry::dir("link").mode(0o777)]]),
        ("a mode through a link below", vec![vec![link()], vec![Entry::dir("link/sub").mode(0o777)]]),
        ("a whiteout through a link", vec![vec![link()], vec![Entry::whiteout("link/canary")]]),
        ("a whiteout through a link of its own layer", vec![vec![link(), Entry::whiteout("link/canary")]]),
        ("an opaque directory through a link", vec![vec![link()], vec![Entry::opaque("link/sub")]]),
        ("a whiteout of the parent", vec![vec![Entry::whiteout(".."), pwned("x/.wh..")]]),
        (
            "a hard link through a link",
            vec![vec![link(), Entry::hardlink("hard", "link/canary"), Entry::file("hard", "pwned").mode(0o777)]],
        ),
        ("a hard link to the host", vec![vec![Entry::hardlink("hard", &format!("{host}/canary")), pwned("hard")]]),
        ("a hard link up", vec![vec![Entry::hardlink("hard", &format!("{far}/canary")), pwned("hard")]]),
        ("a hard link made below a link", vec![vec![link(), pwned("own"), Entry::hardlink("link/pwned", "own")]]),
        ("a link made below a link", vec![vec![link(), Entry::symlink("link/pwned", "/etc")]]),
        ("a name with ..", vec![vec![pwned(&format!("{far}/pwned"))]]),
        ("a name with .. inside", vec![vec![Entry::dir("a"), pwned(&format!("a/../../../../../../..{host}/pwned"))]]),
        ("an absolute name", vec![vec![pwned(&format!("{host}/pwned"))]]),
        ("a file over a link", vec![vec![Entry::symlink("link", &format!("{host}/canary")), pwned("link")]]),
        ("a FIFO, then a file", vec![vec![Entry::fifo("pipe"), pwned("pipe")]]),
        ("a FIFO as passwd", vec![vec![Entry::fifo("etc/passwd"), Entry::fifo("etc/group")]]),
        ("a device", vec![vec![Entry::char_device("node", 1, 1), Entry::char_device("dev/null", 0, 0)]]),
        (
            "a link as passwd",
            vec![vec![
                Entry::symlink("etc/passwd", &format!("{host}/canary")),
                Entry::symlink("etc/group", "/etc/shadow"),
            ]],
        ),
        (
            "an overlay's own attributes",
            vec![vec![
                Entry::dir("redirected").pax("SCHILY.xattr.user.overlay.redirect", host.as_bytes()),
                Entry::file("metacopy", "x")
                    .pax("SCHILY.xattr.user.overlay.metacopy", b"")
                    .pax("SCHILY.xattr.user.overlay.redirect", host.as_bytes()),
                Entry::file("trusted", "x").pax("SCHILY.xattr.trusted.overlay.redirect", host.as_bytes()),
            ]],
        ),
        (
            "a size that a later header contradicts",
            vec![vec![Entry::file("sized", "x").pax("size", b"1024"), link(), pwned("link/pwned")]],
        ),
        (
            "a path of its own in the PAX header",
            vec![vec![Entry::file("plain", "pwned").pax("path", format!("{far}/pwned").as_bytes())]],
        ),
        (
            "a link path of its own in the PAX header",
            vec![vec![Entry::hardlink("hard", "own").pax("linkpath", format!("{host}/canary").as_bytes())]],
        ),
    ]
}

#[test]
fn escape_layers_change_nothing_outside_the_store() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let host = target(&home);
    let before = picture(&host);
    for (number, (what, layers)) in cases(host.to_str().unwrap()).into_iter().enumerate() {
        let dir = home.path().join(format!("images/{number}"));
        fs::create_dir_all(&dir).unwrap();
        let image = layers
            .into_iter()
            .fold(busybox(), |image, entries| image.layer(Layer::Entries(entries), Compression::Gzip));
        image.write(&dir, "t").unwrap();
        let words = format!("oci:{}:t", dir.display());
        let script = "cat /link/canary /hard /redirected/canary /metacopy /etc/passwd 2>/dev/null; test -b /node -o -c /node && echo device; echo ran";
        let ran = home.sh(&["--image", &words], script);
        assert_eq!(picture(&host), before, "{what} changed the host\n{ran}");
        assert!(!ran.stdout.contains("of the host"), "{what} showed a file of the host\n{ran}");
        assert!(!ran.stdout.contains("device"), "{what}\n{ran}");
        assert!(ran.took < Duration::from_secs(10), "{what} opened a FIFO");
        match ran.code() {
            0 => assert!(ran.stdout.ends_with("ran\n"), "{what}\n{ran}"),
            125 => {
                assert_eq!(ran.stderr.lines().filter(|line| line.starts_with("agentd: ")).count(), 1, "{what}\n{ran}")
            }
            code => panic!("{what}: {code}\n{ran}"),
        }
    }
}

/// The same archives do harm with an archiver that trusts them.
#[test]
fn escape_control_a_trusting_archiver_writes_to_the_host() {
    if !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let host = target(&home);
    let mut harmful = Vec::new();
    for (number, (what, layers)) in cases(host.to_str().unwrap()).into_iter().enumerate() {
        let dir = home.path().join(format!("images/{number}"));
        let place = home.path().join(format!("unpacked/{number}"));
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir_all(&place).unwrap();
        let before = picture(&host);
        let image = layers
            .into_iter()
            .fold(busybox(), |image, entries| image.layer(Layer::Entries(entries), Compression::Plain));
        let written = image.write(&dir, "t").unwrap();
        for layer in &written.layers[1..] {
            let blob = Written::blob(&dir, layer);
            let mut tar = Command::new("tar");
            run(tar.args(["-x", "-P", "--keep-directory-symlink", "-f"]).arg(blob).arg("-C").arg(&place));
        }
        if picture(&host) != before {
            harmful.push(what);
        }
        fs::remove_dir_all(&host).unwrap();
        target(&home);
    }
    assert!(harmful.len() >= 5, "{harmful:?}");
}
