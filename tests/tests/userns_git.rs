//! git keeps working in a workspace whose configuration and hooks are protected, in a linked worktree and in a submodule.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use agentd_tests::{Feature, Home, Ran, git, require, run};

fn repository(at: &Path) {
    fs::create_dir_all(at).unwrap();
    git(at, &["init", "-q", "-b", "main"]);
    fs::write(at.join("file"), "one\n").unwrap();
    git(at, &["add", "file"]);
    git(at, &["commit", "-q", "-m", "one"]);
}

fn boxed(home: &Home, workspace: &Path, script: &str) -> Ran {
    let script = format!("set -e; git config --global user.name a; git config --global user.email a@b; {script}");
    let mut command = home.agentd();
    run(command.args(["run", "--workspace", workspace.to_str().unwrap(), "--", "sh", "-c", &script]))
}

fn home() -> Option<Home> {
    require(Feature::Userns).then(Home::new)
}

#[test]
fn userns_git_works_in_a_protected_workspace() {
    let Some(home) = home() else { return };
    let origin = home.path().join("origin");
    repository(&origin);
    let work = home.workspace();
    git(&work, &["clone", "-q", origin.to_str().unwrap(), "."]);
    // A hook whose script is on another branch is none.
    symlink("../../check", work.join(".git/hooks/pre-commit")).unwrap();
    for script in [
        "test -z \"$(git status --porcelain --ignored)\"; test \"$(git rev-parse --show-toplevel)\" = /workspace",
        "echo two >> file; git add -A; git commit -q -m two; test $(git ls-files | wc -l) = 1",
        "git checkout -q -b topic; git commit -q --allow-empty -m three; git branch other main; git branch -D other",
        "echo x > new; echo y >> file; git stash -q -u; test ! -e new; git stash pop -q; test -e new; git checkout -q file; rm new",
        "echo x > new; mkdir dir; echo y > dir/z; git clean -q -f -d -x; test ! -e new; test ! -e dir",
        "git checkout -q main; echo four > four; git add four; git commit -q -m four; git rebase -q main topic; git merge -q main",
        "git rebase -q --exec true HEAD~1; git cherry-pick --allow-empty main~1 >/dev/null 2>&1 || git cherry-pick --skip",
        "git tag v1; git tag -d v1 >/dev/null; git gc -q --prune=now; git fsck --strict; git reflog >/dev/null; git log --oneline >/dev/null",
        "git worktree add -q tree; cd tree; git commit -q --allow-empty -m five; cd ..; git worktree remove tree; git branch -q -D tree",
        "git clone -q . copy; cd copy; git config a.b c; git remote add x .; git commit -q --allow-empty -m six; cd ..; rm -rf copy",
        // Tracking is configuration: said as an error, and the branch is there.
        "git checkout -q -b tracking origin/main; git symbolic-ref HEAD; git checkout -q main",
        "git bisect start HEAD HEAD~1 >/dev/null; git bisect reset >/dev/null 2>&1; git notes add -m x; git apply /dev/null 2>/dev/null || true",
        "git mv file moved; git commit -q -m moved; git revert --no-edit HEAD >/dev/null; git reset -q --hard HEAD~1",
        "test -z \"$(git status --porcelain)\"",
    ] {
        let ran = boxed(&home, &work, script);
        assert_eq!(ran.code(), 0, "{script}\n{ran}");
    }
    // What a box did is what the host's git sees.
    assert_eq!(git(&work, &["status", "--porcelain"]), "");
    git(&work, &["fsck", "--strict"]);
    // What writes the configuration fails, and leaves nothing half done.
    for script in ["git config a.b c", "git remote add x .", "git config user.name b"] {
        let ran = boxed(&home, &work, &format!("{script} || exit 3"));
        assert_eq!(ran.code(), 3, "{ran}");
    }
    assert!(fs::metadata(work.join(".git/config.lock")).is_err());
}

/// A workspace with a linked worktree: `main` is the repository, the workspace its worktree.
fn worktree(home: &Home) -> (PathBuf, PathBuf) {
    let main = home.path().join("main");
    repository(&main);
    fs::remove_dir(home.workspace()).unwrap();
    git(&main, &["worktree", "add", "-q", "-b", "topic", home.workspace().to_str().unwrap()]);
    git(&main, &["worktree", "add", "-q", "-b", "another", home.path().join("another").to_str().unwrap()]);
    (main, home.workspace())
}

#[test]
fn userns_git_works_in_a_linked_worktree() {
    let Some(home) = home() else { return };
    let (main, work) = worktree(&home);
    let ran = boxed(&home, &work, "git status; echo two >> file; git commit -q -a -m two; git log --oneline | wc -l; git gc -q; git worktree prune").expect_success();
    assert!(ran.stdout.ends_with("2\n"), "{ran}");
    assert!(ran.stderr.contains("git directory of this workspace"), "{ran}");
    assert_eq!(git(&main, &["log", "--oneline", "topic"]).lines().count(), 2);
    assert_eq!(git(&main, &["worktree", "list"]).lines().count(), 3, "worktrees that a box cannot see are not gone");
    assert_eq!(git(&home.path().join("another"), &["status", "--porcelain"]), "");
    nothing_is_writable(&home, &work, &main);
}

#[track_caller]
fn nothing_is_writable(home: &Home, work: &Path, main: &Path) {
    let dot_git = main.join(".git").display().to_string();
    let words: Vec<String> = [
        "write=GIT/config",
        "create=GIT/hooks/pre-commit",
        "write=GIT/worktrees/work/gitdir",
        "write=GIT/worktrees/work/commondir",
        "write=GIT/worktrees/another/gitdir",
        "rename=GIT/worktrees/another,GIT/x",
        "rename=GIT/worktrees/work,GIT/x",
        "rename=GIT/worktrees,GIT/x",
        "write=/workspace/.git",
        "rename=/workspace/.git,/workspace/x",
    ]
    .iter()
    .map(|word| word.replace("GIT", &dot_git))
    .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let flags = ["--workspace", work.to_str().unwrap()];
    let held = home.attack(&flags, &words);
    assert!(held.values().all(|outcome| ["EROFS", "EBUSY", "EXDEV"].contains(&outcome.as_str())), "{held:?}");
    let open = home.attack(&[&flags[..], &["--unprotect", "*"]].concat(), &words);
    assert!(open.values().all(|outcome| outcome == "ok"), "{open:?}");
}

/// CVE-2026-55607: what a workspace's own files say gives it no directory of the host.
#[test]
fn userns_git_directories_that_do_not_know_the_workspace_are_not_given() {
    let Some(home) = home() else { return };
    let (main, work) = worktree(&home);
    let secret = home.path().join("secret");
    repository(&secret);
    let hostile = home.path().join("hostile");
    fs::create_dir(&hostile).unwrap();
    let (main, secret) = (main.display().to_string(), secret.display().to_string());
    let forged = home.path().join("forged");
    for path in ["objects", "refs"] {
        fs::create_dir_all(forged.join(path)).unwrap();
    }
    fs::write(forged.join("HEAD"), "ref: refs/heads/main\n").unwrap();
    fs::write(forged.join("commondir"), format!("{secret}/.git\n")).unwrap();
    fs::write(forged.join("gitdir"), format!("{}/.git\n", hostile.display())).unwrap();
    let targets = [
        format!("{main}/.git/worktrees/work"),
        format!("{main}/.git"),
        format!("{secret}/.git"),
        forged.display().to_string(),
        home.path().display().to_string(),
        "/".into(),
        "/etc".into(),
        "../../../../../../../..".into(),
    ];
    for target in targets {
        fs::write(hostile.join(".git"), format!("gitdir: {target}\n")).unwrap();
        let mut command = home.agentd();
        let script = format!("cat /proc/self/mountinfo; ls {main} {secret} 2>/dev/null; true");
        command.args(["run", "--workspace", hostile.to_str().unwrap(), "--", "sh", "-c", &script]);
        let ran = run(&mut command).expect_success();
        for place in [&main, &secret] {
            assert!(!ran.stdout.contains(place.as_str()), "{target} gave {place}\n{ran}");
        }
        assert!(ran.stderr.contains("git does not work in this workspace"), "{ran}");
    }
    // The real one is given.
    assert_eq!(boxed(&home, &work, &format!("test -d {main}/.git")).code(), 0);
}

#[test]
fn userns_git_works_with_and_in_a_submodule() {
    let Some(home) = home() else { return };
    let (library, work) = (home.path().join("library"), home.workspace());
    repository(&library);
    repository(&work);
    git(&work, &["submodule", "add", "-q", library.to_str().unwrap(), "part"]);
    git(&work, &["commit", "-q", "-m", "part"]);
    let script = "cd part; git checkout -q -b topic; echo two >> file; git commit -q -a -m two; cd ..; git add part; git commit -q -m lib; \
                  test -z \"$(git status --porcelain)\"; git submodule status >/dev/null";
    assert_eq!(boxed(&home, &work, script).code(), 0);
    let flags = ["--workspace", work.to_str().unwrap()];
    let words = [
        "write=/workspace/.git/modules/part/config",
        "create=/workspace/.git/modules/part/hooks/pre-commit",
        "write=/workspace/part/.git",
        "rename=/workspace/.git/modules,/workspace/x",
    ];
    let held = home.attack(&flags, &words);
    assert!(held.values().all(|outcome| ["EROFS", "EBUSY", "EXDEV"].contains(&outcome.as_str())), "{held:?}");
    let open = home.attack(&[&flags[..], &["--unprotect", "*"]].concat(), &words);
    assert!(open.values().all(|outcome| outcome == "ok"), "{open:?}");
    // As the workspace itself.
    let ran = boxed(
        &home,
        &work.join("part"),
        "echo three >> file; git commit -q -a -m three; git rev-parse --show-toplevel",
    )
    .expect_success();
    assert_eq!(ran.stdout, "/workspace\n");
    assert!(git(&work.join("part"), &["log", "-1", "--format=%s"]).contains("three"));
}

/// `core.hooksPath` is relative to each working tree that the configuration is for.
#[test]
fn userns_git_hooks_of_the_configuration_are_held_in_every_working_tree() {
    let Some(home) = home() else { return };
    let (main, work) = worktree(&home);
    git(&main, &["config", "core.hooksPath", ".githooks"]);
    let library = home.path().join("library");
    repository(&library);
    let all = home.path().join("all");
    repository(&all);
    git(&all, &["config", "core.hooksPath", "sub/hooks"]);
    git(&all, &["worktree", "add", "-q", "tree"]);
    git(&all, &["submodule", "add", "-q", library.to_str().unwrap(), "part"]);
    git(&all.join("part"), &["config", "core.hooksPath", "own"]);
    fs::create_dir_all(all.join("sub")).unwrap();
    // A worktree whose repository is elsewhere, one in its repository, a submodule, a directory of a repository.
    for (workspace, hooks, tree) in [
        (&work, ".githooks", ""),
        (&all, "sub/hooks", "tree"),
        (&all, "own", "part"),
        (&all.join("sub"), "hooks", ""),
        (&main, ".githooks", ""),
    ] {
        let below = Path::new(tree).join(hooks);
        let at = workspace.join(&below);
        for is_there in [false, true] {
            if is_there {
                fs::create_dir_all(&at).unwrap();
            }
            let script = format!("mkdir -p {0} 2>/dev/null; (echo x > {0}/pre-commit) 2>/dev/null", below.display());
            let flags = ["--workspace", workspace.to_str().unwrap()];
            assert_ne!(home.sh(&flags, &script).code(), 0, "{} {is_there}", at.display());
            assert!(fs::symlink_metadata(at.join("pre-commit")).is_err(), "{}", at.display());
            assert_eq!(home.sh(&[&flags[..], &["--unprotect", "*"]].concat(), &script).code(), 0, "{}", at.display());
            fs::remove_dir_all(&at).unwrap();
        }
    }
}

/// What the user's own configuration of git names holds in every repository: hooks, and files that it includes.
#[test]
fn userns_git_hooks_of_the_users_own_configuration_are_held() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let work = home.workspace();
    repository(&work);
    let plain = home.path().join("plain");
    fs::create_dir(&plain).unwrap();
    let xdg = home.path().join("config/git");
    fs::create_dir(&xdg).unwrap();
    let there = |workspace: &Path, path: &str| format!("{}/{path}", workspace.display());
    for (file, text, workspace, word) in [
        // Relative to each working tree; by its whole path, also where there is no repository; included.
        (home.path().join(".gitconfig"), "[core]\nhooksPath = .githooks\n".into(), &work, "mkdir -p .githooks/x"),
        (xdg.join("config"), format!("[core]\nhooksPath = {}\n", there(&plain, "hooks")), &plain, "mkdir hooks"),
        (home.path().join(".gitconfig"), "[core]\nhooksPath = ~/work/h\n".into(), &work, "mkdir h"),
        (
            home.path().join(".gitconfig"),
            format!("[include]\npath = {}\n", there(&work, "shared.conf")),
            &work,
            "echo > shared.conf",
        ),
    ] {
        let flags = ["--workspace", workspace.to_str().unwrap()];
        let opened = [&flags[..], &["--unprotect", "*"]].concat();
        let script = format!("{word} 2>/dev/null && echo made; rm -rf .githooks hooks h shared.conf 2>/dev/null; true");
        // Nothing names it yet.
        assert_eq!(home.said(&flags, &script), "made\n", "{word}");
        fs::write(&file, text).unwrap();
        assert_eq!(home.said(&flags, &script), "", "{word}");
        assert_eq!(home.said(&opened, &script), "made\n", "{word}");
        fs::remove_file(&file).unwrap();
    }
}
