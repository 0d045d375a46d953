//! Users of crafted roots and stacks of layers.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use super::*;

const PASSWD_FILE: &str = "\
# a comment
root:x:0:0:root:/root:/bin/sh

broken line
short:x
app:x:1000:1001:,,,:/home/app:/bin/sh
nohome:x:1002:1002
relative:x:1003:1003::home:/bin/sh
huge:x:4294967296:0::/:/bin/sh
wrap:x:4294967295:0::/:/bin/sh
text:x:abc:0::/:/bin/sh
badgid:x:1004:99999999999::/:/bin/sh
app:x:5:5::/second:/bin/sh
";
const GROUP_FILE: &str = "root:x:0:\nstaff:x:50:app,root\nhuge:x:2147483648:\ntext:x:abc:\n";

fn root(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn stack(layers: &[&TempDir]) -> Vec<PathBuf> {
    layers.iter().map(|dir| dir.path().to_owned()).collect()
}

fn of(layers: &[&TempDir], spec: &str) -> Result<(u32, u32, Option<String>), String> {
    match Accounts::read(&stack(layers)).and_then(|accounts| accounts.resolve(spec)) {
        Ok(user) => Ok((user.uid, user.gid, user.home)),
        Err(error) => Err(crate::told::message(&error)),
    }
}

#[test]
fn specs() {
    let dir = root(&[("etc/passwd", PASSWD_FILE), ("etc/group", GROUP_FILE)]);
    let home = |home: &str| Some(home.to_owned());
    for (spec, want) in [
        ("", (0, 0, home("/root"))),
        ("0", (0, 0, home("/root"))),
        ("root", (0, 0, home("/root"))),
        ("app", (1000, 1001, home("/home/app"))),
        ("1000", (1000, 1001, home("/home/app"))),
        ("1000:7", (1000, 7, home("/home/app"))),
        ("app:staff", (1000, 50, home("/home/app"))),
        ("app:7", (1000, 7, home("/home/app"))),
        ("77", (77, 0, None)),
        ("77:staff", (77, 50, None)),
        ("nohome", (1002, 1002, None)),
        ("relative", (1003, 1003, None)),
        ("2147483647:2147483647", (0x7fff_ffff, 0x7fff_ffff, None)),
        ("007", (7, 0, None)),
    ] {
        assert_eq!(of(&[&dir], spec), Ok(want), "{spec}");
    }
    for (spec, want) in [
        (":", "empty part"),
        ("app:", "empty part"),
        (":staff", "empty part"),
        ("nobody", "no `nobody` in the image's /etc/passwd"),
        ("app:nobody", "no `nobody` in the image's /etc/group"),
        ("-1", "no `-1` in"),
        ("+1", "no `+1` in"),
        ("1 ", "no `1 ` in"),
        ("2147483648", "not between 0 and 2147483647"),
        ("4294967295", "not between"),
        ("4294967296", "not between"),
        ("99999999999999999999999999", "not between"),
        ("1:4294967296", "not between"),
        ("huge", "4294967296 is not between"),
        ("wrap", "4294967295 is not between"),
        ("app:huge", "2147483648 is not between"),
        ("badgid", "99999999999 is not between"),
        ("text", "no `text` in"),
        ("app:text", "no `text` in"),
        ("#", "no `#` in"),
        ("a:b:c", "no `a` in"),
        ("\u{1b}[2J", "no `\\u{1b}[2J` in"),
    ] {
        let error = of(&[&dir], spec).unwrap_err();
        assert!(error.contains(want), "{spec}: {error}");
        assert!(!error.chars().any(char::is_control));
    }
}

#[test]
fn without_files_only_numbers_work() {
    let dir = root(&[]);
    assert_eq!(of(&[&dir], "5:6"), Ok((5, 6, None)));
    assert_eq!(of(&[&dir], ""), Ok((0, 0, None)));
    assert!(of(&[&dir], "root").is_err());
    assert!(Accounts::read(&["/no/such/layer".into()]).is_err());
}

#[test]
fn the_topmost_file_counts() {
    let low = root(&[("etc/passwd", "app:x:1:1::/low:\n"), ("etc/group", "g:x:1:\n")]);
    let high = root(&[("etc/passwd", "app:x:2:2::/high:\n")]);
    assert_eq!(of(&[&low, &high], "app:g"), Ok((2, 1, Some("/high".into()))));
    assert_eq!(of(&[&high, &low], "app"), Ok((1, 1, Some("/low".into()))));
}

#[test]
fn whiteouts_and_opaque_directories_hide_lower_files() {
    let low = || root(&[("etc/passwd", "app:x:1:1::/low:\n")]);
    let whiteout = |dir: &TempDir, name: &str| {
        mknodat(CWD, dir.path().join(name), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    };
    let file = root(&[("etc/x", "")]);
    whiteout(&file, "etc/passwd");
    assert!(of(&[&low(), &file], "app").is_err());
    let directory = root(&[]);
    whiteout(&directory, "etc");
    assert!(of(&[&low(), &directory], "app").is_err());
    let opaque = root(&[("etc/x", "")]);
    assert!(of(&[&low(), &opaque], "app").is_ok());
    rustix::fs::setxattr(opaque.path().join("etc"), "user.overlay.opaque", b"y", rustix::fs::XattrFlags::empty())
        .unwrap();
    assert!(of(&[&low(), &opaque], "app").is_err());
    // A file in place of the directory hides it as well.
    let plain = root(&[("etc", "")]);
    assert!(of(&[&low(), &plain], "app").is_err());
}

#[test]
fn symlinks_stay_in_the_image() {
    let outside = root(&[("passwd", "app:x:666:666::/:\n")]);
    let low = root(&[("real/passwd", "app:x:1:1::/low:\n")]);
    for target in ["/real", "real", "../../../../real", "/../real/."] {
        let high = root(&[]);
        symlink(target, high.path().join("etc")).unwrap();
        assert_eq!(of(&[&low, &high], "app"), Ok((1, 1, Some("/low".into()))), "{target}");
    }
    for target in [outside.path().join("passwd"), PathBuf::from("../../../../../../../../etc/passwd")] {
        let high = root(&[("etc/x", "")]);
        symlink(target, high.path().join("etc/passwd")).unwrap();
        assert!(of(&[&high], "root").is_err());
        assert!(of(&[&high], "app").is_err());
    }
    let high = root(&[("etc/x", "")]);
    symlink("passwd", high.path().join("etc/passwd")).unwrap();
    assert!(of(&[&high], "app").unwrap_err().contains("cannot read /etc/passwd of the image"));
}

#[test]
fn only_regular_files_of_bounded_size_are_read() {
    let fifo = root(&[("etc/x", "")]);
    mknodat(CWD, fifo.path().join("etc/passwd"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    // Opening it would block for ever.
    assert!(of(&[&fifo], "app").unwrap_err().contains("not a regular file"));
    let directory = root(&[("etc/passwd/x", "")]);
    assert!(of(&[&directory], "app").unwrap_err().contains("is a directory"));
    let large = root(&[("etc/passwd", "")]);
    fs::File::options().write(true).open(large.path().join("etc/passwd")).unwrap().set_len(FILE_BYTES + 1).unwrap();
    assert!(of(&[&large], "app").unwrap_err().contains("larger than"));
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(
        passwd in "([a-z:0-9#\n]{0,10}|app|:x:|\n|4294967296|\\PC){0,20}",
        spec in "app|[a-z0-9:+-]{0,8}|[0-9]{1,25}",
    ) {
        let dir = root(&[("etc/passwd", &passwd), ("etc/group", &passwd)]);
        if let Ok(user) = Accounts::read(&stack(&[&dir])).and_then(|accounts| accounts.resolve(&spec)) {
            prop_assert!(u64::from(user.uid) <= LARGEST_ID && u64::from(user.gid) <= LARGEST_ID);
        }
    }
}
