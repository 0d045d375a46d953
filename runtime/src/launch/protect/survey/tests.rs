//! What is found and held in trees that were made up, and in ones that change meanwhile.

use std::fs;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds { directories: 100, repositories: 10, steps: 5_000, ends: None };

fn survey(host: &Path, patterns: &[String], and: impl FnOnce(&Survey<'_>)) {
    let unprotect = Unprotect::new(patterns);
    let mut survey = Survey::new(
        host,
        &unprotect,
        User { home: Some(Path::new("/nowhere")), git: &[], profile: None, on_exit: &[] },
        BOUNDS,
    )
    .unwrap();
    survey.workspace().unwrap();
    // What PID 1 relies on: each path's parents come before it, and are directories that stay.
    let mut seen: BTreeSet<Names> = BTreeSet::new();
    for (at, hold) in survey.outermost() {
        assert!(!at.is_empty() && at.iter().all(|name| !matches!(name.as_str(), "" | "." | "..")), "{at:?}");
        assert!(at.len() == 1 || seen.contains(&at[..at.len() - 1]), "{at:?} before its parent");
        if matches!(hold, Hold::Pinned { .. }) {
            assert!(fs::symlink_metadata(host.join(at.join("/"))).unwrap().is_dir());
            seen.insert(at.clone());
        }
    }
    and(&survey);
}

fn held(survey: &Survey<'_>) -> Vec<String> {
    let existing = survey.outermost().into_iter().filter(|(_, hold)| matches!(hold, Hold::ReadOnly { .. }));
    existing.map(|(at, _)| at.join("/")).collect()
}

#[test]
fn links_are_held_and_what_they_lead_to_inside() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path();
    fs::create_dir_all(top.join("a/b")).unwrap();
    fs::write(top.join("a/b/real"), "").unwrap();
    symlink("a/hop", top.join(".envrc")).unwrap();
    symlink(top.join("a/b/../b/real"), top.join("a/hop")).unwrap();
    symlink("/etc", top.join(".vscode")).unwrap();
    symlink("../../../../etc/passwd", top.join(".mcp.json")).unwrap();
    symlink(".idea", top.join(".idea")).unwrap();
    symlink("a/none/x", top.join(".husky")).unwrap();
    survey(top, &[], |survey| {
        assert_eq!(held(survey), [".envrc", ".husky", ".idea", ".mcp.json", ".vscode", "a/b/real", "a/hop"]);
        let none: Names = ["a", "none"].map(str::to_owned).into();
        assert_eq!(survey.holds.get(&none), Some(&Hold::Absent { stub: Stub::Socket }));
    });
    survey(top, &["*".into()], |survey| assert!(survey.outermost().is_empty()));
}

/// Jobs below a repository keep `.git` absent by a directory, which the last of them removes at any moment.
#[test]
fn a_stub_that_comes_and_goes_is_never_taken_for_a_repository() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().join("work");
    fs::create_dir_all(directory.path().join(".git")).unwrap();
    fs::create_dir_all(top.join("nested")).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for stub in [top.join(".git"), top.join("nested/.git")] {
                    fs::create_dir(&stub).unwrap();
                    fs::remove_dir(&stub).unwrap();
                }
            }
        });
        let surveyed = catch_unwind(AssertUnwindSafe(|| {
            let held = |name: &[&str]| name.iter().map(|name| (*name).to_owned()).collect::<Names>();
            for _ in 0..2_000 {
                survey(&top, &[], |survey| {
                    let absent = Hold::Absent { stub: Stub::Directory };
                    assert_eq!(survey.holds.get(&held(&[".git"])), Some(&absent));
                    let nested = survey.holds.get(&held(&["nested", ".git"]));
                    assert!(nested.is_none_or(|hold| *hold == absent), "{nested:?}");
                    assert!(survey.unseen.is_empty(), "{:?}", survey.unseen);
                });
            }
        }));
        over.store(true, Ordering::Relaxed);
        surveyed.unwrap_or_else(|panic| resume_unwind(panic));
    });
}

#[test]
fn what_is_too_much_to_look_at_is_said() {
    let directory = tempfile::tempdir().unwrap();
    for name in 0..BOUNDS.directories {
        fs::create_dir(directory.path().join(name.to_string())).unwrap();
    }
    survey(directory.path(), &[], |survey| {
        assert!(survey.unseen[0].contains("100 directories"), "{:?}", survey.unseen)
    });
}

#[test]
fn links_that_go_a_long_way_are_not_followed_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path();
    fs::create_dir_all(top.join("d")).unwrap();
    fs::create_dir_all(top.join("x/.vscode")).unwrap();
    for link in 0..38 {
        symlink(format!("{}m{}", "d/../".repeat(700), link + 1), top.join(format!("m{link}"))).unwrap();
    }
    for link in 0..1000 {
        symlink("../../m0", top.join(format!("x/.vscode/{link}"))).unwrap();
    }
    survey(top, &[], |survey| {
        assert!(survey.unseen.iter().any(|why| why.contains("further than is followed")), "{:?}", survey.unseen);
        assert_eq!(survey.bounds.steps, 0);
    });
}

#[test]
fn a_configuration_names_what_it_names_for_git() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().join("work");
    fs::create_dir_all(top.join(".git/objects")).unwrap();
    symlink(&top, directory.path().join("other")).unwrap();
    let other = directory.path().join("other/absolute");
    let config = format!(
        "[core]\nhooksPath = ~/a\nhooksPath = ~b/c\nhooksPath = %(prefix)/d\nhooksPath = ../work/e\nhooksPath = {}\n\
         [include]\npath = none/f\n[core]\nhooksPath = g\n",
        other.display()
    );
    fs::write(top.join(".git/config"), config).unwrap();
    let held = |name: &[&str]| name.iter().map(|name| (*name).to_owned()).collect::<Names>();
    survey(&top, &[], |survey| {
        for name in ["e", "absolute", "g"] {
            assert_eq!(survey.holds.get(&held(&[name])), Some(&Hold::Absent { stub: Stub::Socket }), "{name}");
        }
        assert!(!survey.holds.keys().flatten().any(|name| name.starts_with(['~', '%'])), "{:?}", survey.holds);
        assert_eq!(survey.unseen.len(), 2, "{:?}", survey.unseen);
    });
    fs::write(top.join(".git/config"), " ".repeat((1 << 20) + 1)).unwrap();
    survey(&top, &[], |survey| assert!(survey.unseen[0].contains("cannot be read"), "{:?}", survey.unseen));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_tree_is_surveyed(
        entries in proptest::collection::vec(
            ("((\\.git|\\.envrc|modules|worktrees|config|hooks|commondir|gitdir|HEAD|a|b)/){0,4}(\\.git|\\.envrc|config|commondir|gitdir|HEAD|a)",
             0..3_u8,
             "(gitdir: )?(/|\\.\\./|\\./){0,3}(a|b|\\.git|\\.envrc)?(/a|/b|/\\.\\.|/modules){0,2}\n?"),
            0..24),
        pattern in "[.*a/git]{0,5}",
    ) {
        let directory = tempfile::tempdir().unwrap();
        for (path, kind, text) in entries {
            let path = directory.path().join(path);
            // What stands in another's way is left out; links lead to the whole machine.
            let inside = path.strip_prefix(directory.path()).unwrap().ancestors();
            let leads_away = inside.into_iter().any(|part| directory.path().join(part).is_symlink());
            if !leads_away && fs::create_dir_all(path.parent().unwrap()).is_ok() {
                match kind {
                    0 => fs::create_dir(&path).ok(),
                    1 => fs::write(&path, &text).ok(),
                    _ => symlink(text.trim_end(), &path).ok(),
                };
            }
        }
        survey(directory.path(), &[], |_| {});
        survey(directory.path(), &[pattern], |_| {});
    }
}
