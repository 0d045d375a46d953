//! CVE-2024-21626: the working directory of whoever starts a job must not be a way out of its box.
//!
//! The job is always started from a host directory with a canary in it; the image and the workspace lead the box's working
//! directory to `/proc/self/cwd`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use agentd_tests::oci::{Compression, Entry, Layer};
use agentd_tests::{Feature, Home, Ran, busybox, require, run};

const LOOK: &str = "pwd; readlink /proc/self/cwd; ls -la . /proc/self/cwd/ 2>&1; cat canary ./canary /proc/self/cwd/canary; \
                    chmod 666 /proc/self/cwd/canary; ls /proc/self/cwd/.. /proc/1/cwd/; true";

/// A host directory of this test's own, somewhere below the home, with a private file in it.
fn outside(home: &Home) -> PathBuf {
    let outside = home.path().join("where-the-user-is");
    let made = fs::create_dir(&outside).and_then(|()| {
        fs::write(outside.join("canary"), "of the host")?;
        fs::set_permissions(outside.join("canary"), fs::Permissions::from_mode(0o600))
    });
    assert!(made.is_ok(), "{made:?}");
    outside
}

fn from(directory: &Path, command: &mut Command, flags: &[&str]) -> Ran {
    run(command.current_dir(directory).args(flags).args(["--", "sh", "-c", LOOK]))
}

fn assert_untouched(outside: &Path, ran: &Ran, what: &str) {
    assert!(!ran.stdout.contains("canary") && !ran.stdout.contains("of the host"), "{what}: {ran}");
    assert!(!ran.stdout.contains("where-the-user-is"), "{what}: {ran}");
    let mode = fs::metadata(outside.join("canary")).map(|canary| canary.mode() & 0o777);
    assert_eq!(mode.ok(), Some(0o600), "{what}: a mode of the host was changed");
}

#[test]
fn escape_cve_2024_21626_the_users_directory_is_not_open_inside() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let outside = outside(&home);

    // Without a box the link leads there.
    let natively = run(Command::new("cat").arg("/proc/self/cwd/canary").current_dir(&outside));
    assert_eq!(natively.expect_success().stdout, "of the host");

    let plain = from(&outside, &mut home.run(), &[]);
    assert_untouched(&outside, &plain, "a plain job");

    let image = home.path().join("image");
    let link = |name: &str| Entry::symlink(name, "/proc/self/cwd");
    for (tag, place) in [("workspace", "/workspace"), ("other", "/other"), ("below", "/other/..")] {
        let layer = Layer::Entries(vec![link(place.trim_start_matches('/').trim_end_matches("/.."))]);
        busybox().layer(layer, Compression::Plain).workdir(place).write(&image, tag).unwrap();
        let image = format!("oci:{}:{tag}", image.display());
        let ran = from(&outside, &mut home.run(), &["--image", &image]);
        assert_untouched(&outside, &ran, &format!("WorkingDir {place}"));
    }

    let work = home.workspace();
    for (name, to) in [("sub", "/proc/self/cwd"), ("up", "/proc/self/cwd/.."), ("one", "/proc/1/cwd")] {
        symlink(to, work.join(name)).unwrap();
        let inside = format!("/workspace/{name}");
        let ran = from(&outside, &mut home.run(), &["--workspace", work.to_str().unwrap(), "-w", &inside]);
        assert_untouched(&outside, &ran, &format!("{inside} -> {to}"));
        assert_eq!(ran.code(), 125, "{ran}");
    }
}
