//! Nothing is left in the workspace that runs code outside later: protected paths, existing and absent, and the ways
//! round. Every attack is shown to work with `--unprotect '*'`.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::process::Command;

use agentd_tests::attack::Outcomes;
use agentd_tests::{Feature, Home, git, require, run};

/// What the kernel says of a change that the mounts do not let through.
const REFUSED: [&str; 5] = ["EROFS", "EBUSY", "EXDEV", "EACCES", "EPERM"];
const OPEN: [&str; 2] = ["--unprotect", "*"];

fn file(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "x\n").unwrap();
}

/// Below the workspace: a repository with everything that is protected, one in it, and links.
fn fill(work: &Path) {
    git(work, &["init", "-q"]);
    for name in [".vscode/tasks.json", ".claude/settings.json", ".envrc", ".mcp.json", ".git/hooks/pre-commit", "file"]
    {
        file(&work.join(name));
    }
    let nested = work.join("vendor/lib");
    fs::create_dir_all(&nested).unwrap();
    git(&nested, &["init", "-q"]);
    file(&nested.join(".idea/workspace.xml"));
    file(&nested.join("file"));
    file(&work.join("deep/er/.envrc"));
    file(&work.join("dev/hooks/pre-commit"));
    symlink("dev/hooks", work.join(".husky")).unwrap();
    file(&work.join("tools/commit-msg"));
    symlink("../../tools/commit-msg", work.join(".git/hooks/commit-msg")).unwrap();
    file(&work.join("share/gitconfig"));
    git(work, &["config", "include.path", "../share/gitconfig"]);
    file(&work.join("hooks2/x"));
    git(work, &["config", "core.hooksPath", "hooks2"]);
    let bare = work.join("bare");
    fs::create_dir(&bare).unwrap();
    git(&bare, &["init", "-q", "--bare"]);
}

/// The same words in a box with the layer, all refused, and in one without, all working.
#[track_caller]
fn assert_held(home: &Home, words: &[String]) {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let work = home.workspace();
    let workspace = ["--workspace", work.to_str().unwrap()];
    let wrong = |outcomes: &Outcomes, allowed: &[&str]| -> Vec<String> {
        let wrong = outcomes.iter().filter(|(_, outcome)| !allowed.contains(&outcome.as_str()));
        wrong.map(|(word, outcome)| format!("{word}: {outcome}")).collect()
    };
    let held = wrong(&home.attack(&workspace, &words), &REFUSED);
    assert!(held.is_empty(), "in the box:\n{}", held.join("\n"));
    let open = wrong(&home.attack(&[&workspace[..], &OPEN].concat(), &words), &["ok"]);
    assert!(open.is_empty(), "without the layer:\n{}", open.join("\n"));
}

fn nothing_of_ours_is_left(work: &Path) {
    let found = run(Command::new("find").arg(work).args(["-type", "s", "-o", "-name", "commondir"])).expect_success();
    assert_eq!(found.stdout, "");
}

fn home() -> Option<Home> {
    require(Feature::Userns).then(Home::new)
}

#[test]
fn escape_what_runs_code_outside_cannot_be_changed() {
    let Some(home) = home() else { return };
    fill(&home.workspace());
    let before = git(&home.workspace(), &["config", "-l", "--show-origin"]);
    let mut words = Vec::new();
    for path in [
        ".git/config",
        ".git/hooks/pre-commit",
        ".claude/settings.json",
        ".vscode/tasks.json",
        ".envrc",
        ".mcp.json",
        "vendor/lib/.git/config",
        "vendor/lib/.idea/workspace.xml",
        "deep/er/.envrc",
        "bare/config",
        // Through what a link or the configuration names.
        "dev/hooks/pre-commit",
        "tools/commit-msg",
        "share/gitconfig",
        "hooks2/x",
    ] {
        let at = format!("/workspace/{path}");
        words.extend(["write", "reopen", "reopen-path", "chmod"].map(|verb| format!("{verb}={at}")));
        words.push(format!("rename={at},/workspace/moved"));
        words.push(format!("rename=/workspace/file,{at}"));
        words.push(format!("exchange={at},/workspace/file"));
        words.push(format!("hardlink={at},/workspace/second-name"));
    }
    for path in [".git/hooks", ".claude", ".vscode", "dev/hooks", "hooks2", "bare/hooks", "vendor/lib/.git/hooks"] {
        words.push(format!("create=/workspace/{path}/new"));
        words.push(format!("tmpfile=/workspace/{path}"));
    }
    // A rename over a name is not undone by the one back: these come where nothing is left to lose.
    let (over, rest): (Vec<String>, Vec<String>) =
        words.into_iter().partition(|word| word.starts_with("rename=/workspace/file,"));
    assert_held(&home, &rest);
    let over: Vec<&str> = over.iter().map(String::as_str).collect();
    let refused = home.attack(&["--workspace", home.workspace().to_str().unwrap()], &over);
    assert!(refused.values().all(|outcome| REFUSED.contains(&outcome.as_str())), "{refused:?}");
    assert_eq!(git(&home.workspace(), &["config", "-l", "--show-origin"]), before);
    nothing_of_ours_is_left(&home.workspace());
    // And one shown to work without the layer.
    let open = home.attack(
        &[&["--workspace", home.workspace().to_str().unwrap()][..], &OPEN].concat(),
        &["rename=/workspace/file,/workspace/.envrc"],
    );
    assert_eq!(open["rename=/workspace/file,/workspace/.envrc"], "ok");
}

#[test]
fn escape_what_does_not_exist_cannot_be_made() {
    let Some(home) = home() else { return };
    let work = home.workspace();
    git(&work, &["init", "-q"]);
    fs::remove_dir_all(work.join(".git/hooks")).unwrap();
    let sub = work.join("sub");
    fs::create_dir(&sub).unwrap();
    git(&sub, &["init", "-q"]);
    file(&work.join("file"));
    file(&work.join(".git/file"));
    file(&work.join("sub/.git/file"));
    fs::create_dir(work.join("directory")).unwrap();
    let mut words = Vec::new();
    for name in [".claude", ".mcp.json", ".vscode", ".idea", ".envrc", ".husky", ".cursor", "sub/.vscode", "sub/.envrc"]
    {
        words.push(format!("rename=/workspace/file,/workspace/{name}"));
        words.push(format!("rename=/workspace/directory,/workspace/{name}"));
        words.push(format!("hardlink=/workspace/file,/workspace/{name}"));
    }
    for name in ["hooks", "commondir", "config.worktree"] {
        words.push(format!("rename=/workspace/.git/file,/workspace/.git/{name}"));
    }
    words.push("rename=/workspace/sub/.git/file,/workspace/sub/.git/commondir".into());
    let refused = ["EEXIST", "ENOTDIR", "EISDIR"];
    let text: Vec<&str> = words.iter().map(String::as_str).collect();
    let held = home.attack(&["--workspace", work.to_str().unwrap()], &text);
    let named =
        |outcome: &str| REFUSED.contains(&outcome) || refused.contains(&outcome) || outcome.starts_with("errno ");
    assert!(held.values().all(|outcome| named(outcome)), "{held:?}");
    nothing_of_ours_is_left(&work);
    let open = home.attack(&[&["--workspace", work.to_str().unwrap()][..], &OPEN].concat(), &text);
    assert!(open.values().all(|outcome| outcome == "ok"), "{open:?}");
    // With a shell, as an agent would.
    let script = "for name in .envrc .claude .mcp.json; do (echo evil > $name) 2>/dev/null && exit 1; ln -sf /tmp/x $name && exit 2; \
                  mkdir -p $name/sub 2>/dev/null && exit 3; cp -f file $name 2>/dev/null && exit 4; rm -rf $name 2>/dev/null && exit 5; done; exit 0";
    assert_eq!(home.sh(&["--workspace", work.to_str().unwrap()], script).code(), 0);
    assert!(fs::symlink_metadata(work.join(".envrc")).is_err());
}

#[test]
fn escape_ancestors_of_protected_paths_stay_where_they_are() {
    let Some(home) = home() else { return };
    fill(&home.workspace());
    let paths = [
        ".git",
        "vendor",
        "vendor/lib",
        "vendor/lib/.git",
        "deep",
        "deep/er",
        "dev",
        "dev/hooks",
        "share",
        "bare",
        ".husky",
    ];
    let mut words: Vec<String> =
        paths.iter().map(|path| format!("rename=/workspace/{path},/workspace/moved")).collect();
    words.extend(paths.iter().map(|path| format!("exchange=/workspace/{path},/workspace/file")));
    assert_held(&home, &words);
    // The link cannot be led elsewhere.
    let script = "ln -sfn /tmp .husky 2>/dev/null; rm -f .husky 2>/dev/null; readlink .husky";
    let work = home.workspace();
    let work = work.to_str().unwrap();
    assert_eq!(home.said(&["--workspace", work], script), "dev/hooks\n");
    let open = [&["--workspace", work][..], &OPEN].concat();
    assert_eq!(home.said(&open, "ln -sfn /tmp .husky; readlink .husky"), "/tmp\n");
}

/// A file with a second name could be changed through that one: no start, with words on what to do.
#[test]
fn escape_a_protected_file_with_a_second_name_is_refused() {
    let Some(home) = home() else { return };
    let work = home.workspace();
    git(&work, &["init", "-q"]);
    for (protected, pattern) in [(".git/config", ".git/config"), (".claude/settings.json", ".claude")] {
        let (protected, second) = (work.join(protected), work.join("second"));
        if fs::symlink_metadata(&protected).is_err() {
            file(&protected);
        }
        fs::hard_link(&protected, &second).unwrap();
        let flags = ["--workspace", work.to_str().unwrap()];
        let refused = home.sh(&flags, "echo evil >> second").expect_code(125);
        refused.expect_one_error_line(&["second name", "--unprotect"]);
        let open = home.sh(&[&flags[..], &["--unprotect", pattern]].concat(), "echo evil >> second").expect_success();
        assert!(open.stderr.is_empty(), "{open}");
        assert!(fs::read_to_string(&protected).unwrap().contains("evil"));
        fs::remove_file(second).unwrap();
        fs::remove_file(protected).unwrap();
    }
}

/// What nobody could know in advance is said when the job ends, and kept in its record.
#[test]
fn escape_a_new_repository_is_reported() {
    let Some(home) = home() else { return };
    let work = home.workspace();
    git(&work, &["init", "-q"]);
    let script = "git init -q made && git init -q --bare deep/bare 2>/dev/null; mkdir -p a/b && echo x > a/b/.envrc && mkdir c && \
                  mkdir -p .git/modules && git init -q --bare .git/modules/sub && echo gitdir: made/.git > c/.git";
    let mut command = home.agentd();
    let ran =
        run(command.args(["run", "--workspace", work.to_str().unwrap(), "--", "sh", "-c", script])).expect_success();
    let record = &home.jobs()[0]["left"];
    let left: Vec<&str> = record.as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    for path in ["made/.git:", "deep/bare:", "a/b/.envrc:", ".git/modules/sub:", "c/.git:"] {
        let path = work.join(path).display().to_string();
        assert!(ran.stderr.contains(&path), "{path} is not said\n{ran}");
        assert!(left.iter().any(|line| line.contains(&path)), "{path} is not recorded: {left:?}");
    }
    // What looks like a git directory does not hide what is in it.
    let hide = "mkdir objects refs hidden; echo ref: refs/heads/x > HEAD; cp -r made hidden/made";
    let hidden = home.sh(&["--workspace", work.to_str().unwrap()], hide).expect_success();
    assert_eq!(hidden.stderr, "", "-q");
    let record = home.jobs()[0]["left"].to_string();
    assert!(record.contains("hidden/made/.git") && record.contains(&format!("{}/:", work.display())), "{record}");
    // The next job knows them, and protects them.
    let again = run(home.agentd().args([
        "run",
        "--workspace",
        work.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        "echo x > made/.git/config",
    ]));
    assert!(!again.stderr.contains("new "), "{again}");
    assert_ne!(again.code(), 0);
}

/// What the payload closes to the user is not looked into: that is said, by this job and by the next.
#[test]
fn escape_a_repository_behind_a_closed_directory_is_reported() {
    let Some(home) = home() else { return };
    let work = home.workspace();
    let script = "git init -q hid/made && chmod 0311 hid";
    let ran = run(home.agentd().args(["run", "--workspace", work.to_str().unwrap(), "--", "sh", "-c", script]));
    let next = run(home.agentd().args(["run", "--workspace", work.to_str().unwrap(), "--", "true"]));
    fs::set_permissions(work.join("hid"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // Root sees into it.
    let said = if rustix::process::geteuid().is_root() { "hid/made/.git:" } else { "hid cannot be listed" };
    assert!(ran.expect_success().stderr.contains(said));
    assert!(rustix::process::geteuid().is_root() || next.expect_success().stderr.contains(said));
}

/// The host removes mount points of a box that it renames over: nothing can stop that, so it is said.
#[test]
fn escape_a_protected_path_that_changes_from_outside_is_reported() {
    let Some(home) = home() else { return };
    let work = home.workspace();
    git(&work, &["init", "-q"]);
    let mut command = home.agentd();
    command.args(["run", "-i", "--workspace", work.to_str().unwrap(), "--", "sh", "-c", "echo ready; read x; true"]);
    let mut job = agentd_tests::Started::new(command.stdin(std::process::Stdio::piped()));
    job.wait_for("ready");
    git(&work, &["config", "a.b", "c"]);
    drop(job.stdin());
    let ran = job.finish().expect_success();
    assert!(ran.stderr.contains(".git/config is not what it was"), "{ran}");
}

#[test]
fn escape_stubs_of_a_killed_job_are_removed_by_the_next_command() {
    let Some(home) = home() else { return };
    let work = home.workspace();
    git(&work, &["init", "-q"]);
    let mut command = home.agentd();
    command.args([
        "run",
        "-q",
        "--workspace",
        work.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        "git init -q new; echo ready; sleep 60",
    ]);
    let mut job = agentd_tests::Started::new(&mut command);
    job.wait_for("ready");
    assert!(fs::symlink_metadata(work.join(".envrc")).unwrap().file_type().is_socket());
    assert_eq!(git(&work, &["status", "--porcelain", "--", "."]), "?? new/\n");
    job.signal(rustix::process::Signal::KILL);
    assert_ne!(job.finish().code(), 0);
    assert!(fs::symlink_metadata(work.join(".envrc")).is_ok(), "nobody was there to remove it");
    let jobs = home.jobs();
    nothing_of_ours_is_left(&work);
    assert!(fs::read(home.state().join("stubs")).unwrap().iter().all(|byte| *byte == 0), "the list is empty");
    assert_eq!(jobs[0]["state"], "lost");
    assert!(jobs[0]["left"].to_string().contains("new/.git"), "{jobs:?}");
}

/// The first of two to end must not remove what protects the other's paths.
#[test]
fn escape_two_jobs_on_one_workspace_share_their_stubs() {
    let Some(home) = home() else { return };
    let work = home.workspace();
    git(&work, &["init", "-q"]);
    let script = "echo ready; read x; (echo evil > .envrc) 2>/dev/null && exit 1; (echo evil > .git/commondir) 2>/dev/null && exit 2; exit 0";
    let start = |more: &[&str]| {
        let mut command = home.agentd();
        command.args(["run", "-q", "-i", "--workspace", work.to_str().unwrap()]).args(more);
        command.args(["--", "sh", "-c", script]);
        let mut job = agentd_tests::Started::new(command.stdin(std::process::Stdio::piped()));
        job.wait_for("ready");
        job
    };
    // The second wants fewer: what only the first wanted goes with the last, for they are names of one socket.
    let (mut first, mut second) = (start(&[]), start(&["--unprotect", ".husky"]));
    drop(first.stdin());
    assert_eq!(first.finish().expect_success().stderr, "");
    assert!(fs::symlink_metadata(work.join(".envrc")).is_ok(), "the second job needs it");
    assert_eq!(run(home.agentd().arg("ps")).code(), 0);
    assert!(fs::symlink_metadata(work.join(".envrc")).is_ok(), "the second job needs it still");
    drop(second.stdin());
    assert_eq!(second.finish().expect_success().stderr, "");
    nothing_of_ours_is_left(&work);
    assert!(fs::symlink_metadata(work.join(".envrc")).is_err());
}

#[test]
fn escape_a_users_own_files_are_not_taken_for_stubs() {
    let Some(home) = home() else { return };
    let work = home.workspace();
    git(&work, &["init", "-q"]);
    fs::write(work.join(".git/config.worktree"), "").unwrap();
    fs::create_dir(work.join(".vscode")).unwrap();
    fs::write(work.join(".envrc"), "").unwrap();
    assert_eq!(home.sh(&["--workspace", work.to_str().unwrap()], "true").code(), 0);
    for name in [".git/config.worktree", ".vscode", ".envrc"] {
        assert!(fs::symlink_metadata(work.join(name)).is_ok(), "{name}");
    }
}

/// Side by side in a workspace that is no repository itself, each is one.
#[test]
fn escape_sibling_repositories_are_each_protected() {
    let Some(home) = home() else { return };
    let work = home.workspace();
    let mut words = Vec::new();
    for name in ["a", "b"] {
        let repository = work.join(name);
        fs::create_dir(&repository).unwrap();
        git(&repository, &["init", "-q"]);
        file(&repository.join(".vscode/tasks.json"));
        file(&repository.join("file"));
        for path in [".git/config", ".vscode/tasks.json"] {
            words.push(format!("write=/workspace/{name}/{path}"));
            words.push(format!("rename=/workspace/{name}/{path},/workspace/{name}/moved"));
        }
        words.push(format!("create=/workspace/{name}/.git/hooks/new"));
        words.push(format!("rename=/workspace/{name}/.git,/workspace/moved"));
        words.push(format!("rename=/workspace/{name},/workspace/moved"));
    }
    assert_held(&home, &words);
    // git works in both, and what is not there is made in neither.
    let script = "git config --global user.name a; git config --global user.email a@b; \
                  for name in a b; do git -C $name commit -q --allow-empty -m x && echo committed; done; \
                  for name in a b; do git -C $name config c.d e 2>/dev/null && echo configured; done; \
                  for name in a/.envrc b/.envrc a/.git/commondir b/.git/commondir; do \
                  (echo evil > $name) 2>/dev/null && echo $name; done; true";
    let flags = ["--workspace", work.to_str().unwrap()];
    assert_eq!(home.said(&flags, script), "committed\ncommitted\n");
    nothing_of_ours_is_left(&work);
    let open = home.said(&[&flags[..], &OPEN].concat(), script);
    let made = "configured\nconfigured\na/.envrc\nb/.envrc\na/.git/commondir\nb/.git/commondir\n";
    assert_eq!(open, format!("committed\ncommitted\n{made}"));
}

/// Given as a writable mount, a repository is a repository too; read-only there is nothing to protect.
#[test]
fn escape_a_repository_in_a_writable_mount_is_protected() {
    let Some(home) = home() else { return };
    let other = home.path().join("other");
    fs::create_dir_all(other.join("repo")).unwrap();
    git(&other.join("repo"), &["init", "-q"]);
    let mount = format!("type=bind,src={},dst=/other,rw", other.display());
    let words = ["write=/other/repo/.git/config", "rename=/other/repo/.git,/other/x", "create=/other/repo/.envrc"];
    let held = home.attack(&["--mount", &mount], &words);
    assert!(held.values().all(|outcome| outcome != "ok"), "{held:?}");
    let open = home.attack(&[&["--mount", &mount][..], &OPEN].concat(), &words);
    assert!(open.values().all(|outcome| outcome == "ok"), "{open:?}");
    assert!(fs::symlink_metadata(other.join(".envrc")).is_err());
    let read_only = format!("{}:ro", other.join("repo").display());
    assert_eq!(home.sh(&["--workspace", &read_only], "ls -A").stdout, ".git\n");
}

/// A repository made below another would be found first.
#[test]
fn escape_a_directory_of_a_repository_does_not_become_one() {
    let Some(home) = home() else { return };
    git(&home.workspace(), &["init", "-q"]);
    let sub = home.workspace().join("sub");
    fs::create_dir(&sub).unwrap();
    let flags = ["--workspace", sub.to_str().unwrap()];
    assert_ne!(home.sh(&flags, "git init").code(), 0);
    assert!(fs::symlink_metadata(sub.join(".git")).is_err());
    assert_eq!(home.sh(&[&flags[..], &OPEN].concat(), "git init -q").code(), 0);
}
