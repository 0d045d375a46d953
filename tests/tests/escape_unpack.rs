//! Layers made by an attacker, unpacked by the binary: nothing lands, changes or is opened outside the store, what is
//! refused is refused with words, and what is accepted is read as every other archiver reads it.
//!
//! CVE-2025-47290, CVE-2021-29136, CVE-2024-9676, CVE-2025-62518, and the tar parsers' RUSTSEC-2026-0067, -0068, -0112
//! and -0145. The archives are those of `agentd_tests::oci::hostile`.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use agentd_tests::listing::Listing;
use agentd_tests::oci::hostile::{self, Attack};
use agentd_tests::oci::{Compression, Entry, Image, Layer, Written};
use agentd_tests::unpackers::{self, OWN, Place};
use agentd_tests::{Feature, Home, Ran, busybox, require, run};

/// A directory of the host that a layer knows of.
fn target(home: &Home) -> PathBuf {
    let dir = home.path().join("target");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("canary"), "of the host").unwrap();
    fs::write(dir.join("sub/canary"), "of the host").unwrap();
    dir
}

/// Everything of the home but what agentd keeps there, and the tree that it keeps beside the layers.
fn picture(home: &Home) -> String {
    let mut find = Command::new("find");
    find.arg(home.path());
    for kept in ["data/agentd/store/layers", "data/agentd/store/tmp", "state", "run", "images"] {
        find.args(["-path"]).arg(home.path().join(kept)).args(["-prune", "-o"]);
    }
    // What cannot be looked into is told on the other stream.
    let ran = run(find.args(["-mindepth", "1", "-not", "-path", "*/data*", "-printf", "%p %y %m %U %s %n %T@\n"]));
    ran.stdout + &ran.stderr
}

/// A pull that ended leaves no tree, no file and no lock of its own in the store.
#[track_caller]
fn assert_nothing_half_unpacked(home: &Home, what: &str) {
    let tmp = home.path().join("data/agentd/store/tmp");
    let left = fs::read_dir(tmp).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), [""; 0], "{what} was left in the store");
}

fn write(home: &Home, name: &str, base: Image, layers: Vec<(Layer, Compression)>) -> (PathBuf, Written) {
    let dir = home.path().join("images").join(name);
    fs::create_dir_all(&dir).unwrap();
    let image = layers.into_iter().fold(base, |image, (layer, compression)| image.layer(layer, compression));
    let written = image.write(&dir, "t").unwrap();
    (dir, written)
}

/// A refusal has the attack's words, in one line without control characters.
fn verdict(attack: &Attack, ran: &Ran) -> Option<String> {
    let lines = ran.stderr.lines().filter(|line| line.starts_with("agentd: ")).count();
    match (attack.refused, ran.code()) {
        (Some(words), 125) if ran.stderr.contains(words) && lines == 1 => {}
        (None, 0) => {}
        (expected, _) => return Some(format!("{}: expected {expected:?}\n{ran}", attack.what)),
    }
    let control = ran.stderr.chars().any(|c| c.is_control() && c != '\n');
    control.then(|| format!("{}: control characters: {:?}", attack.what, ran.stderr))
}

#[test]
fn escape_layers_change_nothing_outside_the_store() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let host = target(&home);
    let mut wrong = Vec::new();
    let before = picture(&home);
    assert!(before.contains("target/sub/canary"));
    for (number, attack) in hostile::escapes(host.to_str().unwrap()).into_iter().enumerate() {
        let (dir, _) = write(&home, &number.to_string(), busybox(), attack.layers.clone());
        let words = format!("oci:{}:t", dir.display());
        let script = "cat /link/canary /hard /redirected/canary /escaped/canary /metacopy /etc/passwd 2>/dev/null; \
                      test -b /node -o -c /node && echo device; echo ran";
        let ran = home.sh(&["--image", &words], script);
        let what = attack.what;
        assert_eq!(picture(&home), before, "{what} changed the host\n{ran}");
        assert!(!ran.stdout.contains("of the host"), "{what} showed a file of the host\n{ran}");
        assert!(!ran.stdout.contains("device"), "{what}\n{ran}");
        assert_nothing_half_unpacked(&home, what);
        wrong.extend(verdict(&attack, &ran));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same archives do harm with archivers that trust them: each attack that is a way out leads out somewhere.
#[test]
fn escape_control_a_trusting_archiver_writes_to_the_host() {
    let home = Home::new();
    let host = target(&home);
    let trusting: [(&str, &[&str]); 3] = [
        ("tar", &["-x", "-P", "--keep-directory-symlink", "-f"]),
        ("bsdtar", &["-x", "-P", "-k", "-f"]),
        (
            "python3",
            &[
                "-c",
                "import tarfile, sys\n\
                 how = {'filter': 'fully_trusted'} if hasattr(tarfile, 'fully_trusted_filter') else {}\n\
                 for m in (t := tarfile.open(sys.argv[1])):\n try: t.extract(m, **how)\n except Exception: pass",
            ],
        ),
    ];
    let mut harmful = std::collections::BTreeSet::new();
    for (number, attack) in hostile::escapes(host.to_str().unwrap()).into_iter().enumerate() {
        let (dir, written) = write(&home, &number.to_string(), Image::new(), attack.layers.clone());
        for (program, arguments) in trusting {
            let place = Place::new();
            let before = picture(&home);
            for layer in &written.layers {
                let mut archiver = Command::new("timeout");
                archiver.args(["5", program]).args(arguments).arg(Written::blob(&dir, layer)).current_dir(place.path());
                run(archiver.stdin(std::process::Stdio::null()));
            }
            if picture(&home) != before {
                harmful.insert(attack.what);
            }
            run(Command::new("chmod").args(["-R", "u+rwX"]).arg(&host));
            fs::remove_dir_all(&host).unwrap();
            target(&home);
        }
    }
    let works = |program: &[&str]| run(Command::new("timeout").arg("5").args(program)).code() == 0;
    let python = works(&["python3", "-c", ""]);
    // docs/cve-ledger.md says 33 of all three; versions of them differ.
    let least = if python && works(&["bsdtar", "--version"]) { 28 } else { 20 };
    assert!(harmful.len() >= least, "only {}: {harmful:?}", harmful.len());
    let of_tar =
        ["a file through a link", "a hard link through a link", "a FIFO made below a link", "an absolute name"];
    for what in of_tar.into_iter().chain(python.then_some("a mode through a link")) {
        assert!(harmful.contains(what), "{what} does no harm: {harmful:?}");
    }
}

/// Kind, size and content by path: what archives disagree about. The root is the place's own.
fn read_as(mut listing: Listing) -> Vec<(String, String, u64, String)> {
    listing.remove(".");
    listing.into_iter().map(|(path, item)| (path, item.kind, item.size, item.content)).collect()
}

/// CVE-2025-62518, RUSTSEC-2026-0068, -0112, -0145: where another archiver sees other entries, there is a refusal.
#[test]
fn escape_cve_2025_62518_archives_are_read_as_others_read_them() {
    if !require(Feature::Userns) || !unpackers::installed(&["bsdtar", "tar"]) {
        return;
    }
    let home = Home::new();
    let host = target(&home);
    let before = picture(&home);
    let mut wrong = Vec::new();
    for (number, attack) in hostile::desyncs(host.to_str().unwrap()).unwrap().into_iter().enumerate() {
        let (dir, written) = write(&home, &number.to_string(), Image::new(), attack.layers.clone());
        let (ran, listed) = home.listed(&format!("oci:{}:t", dir.display()));
        assert_eq!(picture(&home), before, "{} changed the host", attack.what);
        wrong.extend(verdict(&attack, &ran));
        let Some((_, listing)) = listed else { continue };
        let ours = read_as(listing.into_iter().filter(|(path, _)| !OWN.contains(&path.as_str())).collect());
        for (name, unpack) in [("GNU tar", Place::gnu_tar as fn(&Place, &Path) -> Ran), ("bsdtar", Place::bsdtar)] {
            let place = Place::new();
            let theirs = unpack(&place, &Written::blob(&dir, &written.layers[0]));
            let listing = read_as(place.listing());
            if theirs.code() != 0 || listing != ours {
                wrong.push(format!("{}: {name} reads it differently\n{ours:#?}\n{listing:#?}\n{theirs}", attack.what));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn escape_bombs_and_damage_are_refused_with_words() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let mut wrong = Vec::new();
    for (number, attack) in hostile::bombs().unwrap().into_iter().enumerate() {
        let (dir, _) = write(&home, &number.to_string(), busybox(), attack.layers.clone());
        let ran = home.sh(&["--image", &format!("oci:{}:t", dir.display())], "echo ran");
        assert_nothing_half_unpacked(&home, attack.what);
        wrong.extend(verdict(&attack, &ran));
        fs::remove_dir_all(&dir).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A set-user-ID file of an image lies in a store that nobody else can enter.
#[test]
fn escape_programs_for_root_lie_where_nobody_else_can_go() {
    use std::os::unix::fs::PermissionsExt;
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let suid = vec![(Layer::Entries(vec![Entry::file("suid", "x").mode(0o6755)]), Compression::Gzip)];
    let (dir, _) = write(&home, "suid", busybox(), suid);
    let words = format!("oci:{}:t", dir.display());
    assert_eq!(home.said(&["--image", &words], "stat -c %a /suid"), "6755\n");
    let store = home.path().join("data/agentd/store");
    assert_eq!(fs::metadata(&store).unwrap().permissions().mode() & 0o7777, 0o700);
    // A store that others can enter is not used.
    fs::set_permissions(&store, fs::Permissions::from_mode(0o711)).unwrap();
    home.sh(&["--image", &words], "true").expect_code(125).expect_one_error_line(&["chmod 700"]);
}
