//! Which names are protected, and what `--unprotect` opens.
//!
//! The line: what runs code outside without anybody choosing to run the project's code, by entering a directory, opening an
//! editor, starting an agent or any git command. A Makefile, a package.json or a build script is the project's code.

use agentd_init::plan::Stub;

/// Names protected at the root of a workspace and of every repository, and, where they exist, anywhere.
pub(super) const NAMES: &[(&str, &str)] = &[
    (".agentd", "agentd's own files of a project"),
    (".claude", "Claude Code: hooks, permissions, helpers, skills that run commands"),
    (".mcp.json", "servers that agents start"),
    (".cursor", "Cursor: servers that it starts, hooks, rules"),
    (".vscode", "VS Code: tasks that run when the folder is opened, programs in settings"),
    (".idea", "JetBrains: run configurations, programs in settings"),
    (".devcontainer", "commands that editors run on the host"),
    (".envrc", "direnv: a script run on entering the directory"),
    (".husky", "git hooks"),
];

/// What in a git directory leads to programs; the stub is what git takes for its absence.
pub(super) const OF_GIT: &[(&str, Stub)] = &[
    ("config", Stub::Empty),
    ("config.worktree", Stub::Empty),
    ("hooks", Stub::Directory),
    // Where git looks for all of the above, if it is there (GHSA-q5hj-mxqh-vv77).
    ("commondir", Stub::Here),
];

/// The same in what git keeps of a linked worktree (`worktrees/NAME`), where the rest is not read.
pub(super) const OF_WORKTREE: &[(&str, Stub)] = &[
    ("commondir", Stub::Here),
    ("config.worktree", Stub::Empty),
    ("gitdir", Stub::Empty),
    // Inside, worktrees that lie elsewhere look as if they were gone: `git worktree prune` spares those that are locked.
    ("locked", Stub::Empty),
];

/// The patterns of `--unprotect`.
#[derive(Debug, Clone, Default)]
pub(super) struct Unprotect<'a> {
    patterns: &'a [String],
}

impl<'a> Unprotect<'a> {
    pub(super) fn new(patterns: &'a [String]) -> Self {
        Unprotect { patterns }
    }

    /// The pattern that opens `path`: one that matches it, a directory above it, or the last names of either.
    pub(super) fn opens(&self, path: &[String]) -> Option<&'a str> {
        let opens = |pattern: &&String| {
            let pattern = pattern.trim_start_matches("./").trim_end_matches('/').as_bytes();
            (1..=path.len()).any(|end| {
                (0..end).any(|begin| {
                    let names = path.get(begin..end).unwrap_or_default().join("/");
                    matches(pattern, names.as_bytes())
                })
            })
        };
        self.patterns.iter().find(opens).map(String::as_str)
    }
}

/// Whether `text` is `pattern`, in which `*` stands for any characters.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on when the rest does not fit: behind the last star, one character further each time.
    let (mut at, mut from, mut retry) = (0, 0, None);
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                at += 1;
                retry = Some((at, from));
            }
            Some(byte) if text.get(from) == Some(byte) => {
                at += 1;
                from += 1;
            }
            _ => match retry {
                Some((behind, last)) => {
                    at = behind;
                    from = last + 1;
                    retry = Some((behind, from));
                }
                None => return false,
            },
        }
    }
    pattern.get(at..).is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentd_init::plan::{SERVERS, SETTINGS};
    use proptest::prelude::*;

    /// Else a tree with one of them stops who walks it.
    #[test]
    fn every_name_shows_up_as_something() {
        let shown = |name: &str| SETTINGS.contains(&name) || name == SERVERS;
        assert!(NAMES.iter().all(|(name, _)| shown(name)) && shown(".git"));
        assert_eq!(SETTINGS.len(), NAMES.len(), "and nothing else does");
    }

    #[test]
    fn a_pattern_opens_a_path_and_what_is_below_it() {
        for (pattern, path, opens) in [
            (".vscode", ".vscode", true),
            (".vscode", "sub/.vscode", true),
            ("./.vscode/", ".vscode", true),
            (".vs*", ".vscode", true),
            (".git", ".git/hooks", true),
            (".git/hooks", ".git/hooks", true),
            (".git/hooks", "sub/.git/hooks", true),
            ("sub/*", "sub/.git/hooks", true),
            ("*", ".git/config", true),
            (".git/hooks", ".git/config", false),
            (".vscod", ".vscode", false),
            ("vscode", ".vscode", false),
            ("", ".vscode", false),
            ("sub", "subs/.git", false),
        ] {
            let patterns = [pattern.to_owned()];
            let path: Vec<String> = path.split('/').map(str::to_owned).collect();
            assert_eq!(Unprotect::new(&patterns).opens(&path).is_some(), opens, "{pattern} {path:?}");
        }
    }

    /// The plain definition.
    fn matches_slowly(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|from| matches_slowly(rest, &text[from..])),
            Some((byte, rest)) => {
                text.split_first().is_some_and(|(first, text)| first == byte && matches_slowly(rest, text))
            }
        }
    }

    proptest! {
        #[test]
        fn stars_stand_for_any_characters(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), matches_slowly(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
