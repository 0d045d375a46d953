//! Reading a configuration file as git does (config.c): which paths in it decide what git runs.
//!
//! Invariant: any text is read to its end. Where git would give up, reading goes on in the next line.

use std::iter::Peekable;
use std::str::Chars;

/// A path of a configuration, and what it is relative to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Configured {
    /// `core.hooksPath`: relative to the top of the working tree.
    Hooks(String),
    /// `include.path`: relative to the file's own directory.
    Include(String),
    /// `core.worktree`: relative to the git directory.
    Worktree(String),
}

/// The paths in a configuration file (git-config(1)) that decide what git runs.
pub(super) fn configured(untrusted: &str) -> Vec<Configured> {
    let found = entries(untrusted).into_iter().filter(|entry| !entry.value.is_empty() && !entry.value.contains('\0'));
    let named = |entry: Entry| match (entry.section.as_str(), entry.is_sub, entry.key.as_str()) {
        ("core", false, "hookspath") => Some(Configured::Hooks(entry.value)),
        ("core", false, "worktree") => Some(Configured::Worktree(entry.value)),
        ("include", false, "path") | ("includeif", true, "path") => Some(Configured::Include(entry.value)),
        _ => None,
    };
    found.filter_map(named).collect()
}

/// A key with a value.
struct Entry {
    /// In lower case, up to its first dot.
    section: String,
    /// Whether the section has a name of its own: `[section "name"]` or `[section.name]`.
    is_sub: bool,
    /// In lower case.
    key: String,
    value: String,
}

/// The text, as lines that end in `\n`.
type Text<'t> = Peekable<Chars<'t>>;

fn entries(untrusted: &str) -> Vec<Entry> {
    let text = untrusted.strip_prefix('\u{feff}').unwrap_or(untrusted).replace("\r\n", "\n");
    let mut text = text.chars().peekable();
    let (mut section, mut is_sub) = (String::new(), false);
    let mut entries = Vec::new();
    while let Some(c) = text.next() {
        match c {
            '[' => (section, is_sub) = header(&mut text),
            '#' | ';' => rest(&mut text),
            c if c.is_ascii_alphabetic() => {
                let mut key = String::from(c.to_ascii_lowercase());
                while let Some(c) = text.next_if(|c| c.is_ascii_alphanumeric() || *c == '-') {
                    key.push(c.to_ascii_lowercase());
                }
                while text.next_if(|c| matches!(c, ' ' | '\t')).is_some() {}
                if text.next_if_eq(&'=').is_some() {
                    entries.push(Entry { section: section.clone(), is_sub, key, value: value(&mut text) });
                } else {
                    rest(&mut text);
                }
            }
            _ => {}
        }
    }
    entries
}

/// What follows up to the end of the line means nothing.
fn rest(text: &mut Text<'_>) {
    while text.next_if(|c| *c != '\n').is_some() {}
}

/// The name of a section, behind its `[`.
fn header(text: &mut Text<'_>) -> (String, bool) {
    let mut name = String::new();
    while let Some(c) = text.next_if(|c| !matches!(c, ']' | '"' | '\n')) {
        name.push(c.to_ascii_lowercase());
    }
    let mut is_sub = false;
    if text.next_if_eq(&'"').is_some() {
        is_sub = true;
        while let Some(c) = text.next_if(|c| !matches!(c, '"' | '\n')) {
            if c == '\\' {
                text.next_if(|c| *c != '\n');
            }
        }
        text.next_if_eq(&'"');
    }
    text.next_if_eq(&']');
    let name = name.trim();
    name.split_once('.').map_or((name.to_owned(), is_sub), |(name, _)| (name.to_owned(), true))
}

/// A value, behind its `=`; the line's end is left.
fn value(text: &mut Text<'_>) -> String {
    let (mut value, mut is_quoted) = (String::new(), false);
    // Spaces at the end count only in quotes.
    let mut end = 0;
    while let Some(c) = text.next_if(|c| *c != '\n') {
        match c {
            '#' | ';' if !is_quoted => {
                rest(text);
                break;
            }
            '"' => {
                is_quoted = !is_quoted;
                end = value.len();
            }
            '\\' => {
                match text.next() {
                    // The line goes on in the next one.
                    Some('\n') | None => {}
                    Some('t') => value.push('\t'),
                    Some('n') => value.push('\n'),
                    Some('b') => value.push('\u{8}'),
                    Some(other) => value.push(other),
                }
                end = value.len();
            }
            c if is_space(c) && !is_quoted => {
                if !value.is_empty() {
                    value.push(c);
                }
            }
            c => {
                value.push(c);
                end = value.len();
            }
        }
    }
    value.truncate(end);
    value
}

/// What git takes for a space.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r')
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_in_a_configuration_are_found_however_they_are_written() {
        let text = "\u{feff}[core]\n\tbare = false\n\tHooksPath = .githooks ; comment\n[Core] worktree=\"../a b\"\n\
                    [include]\npath = ../.gitconfig\n[includeIf \"gitdir:/x]/\\\"\"]\n\tpath = x\\\\y\n[alias]\n\tpath = no\n\
                    [core]\r\n# hooksPath = no \\\r\nhooksPath = on\\\r\ne\\ttwo\r\n[core \"x\"]\nhooksPath = no\n[core]hooksPath=last";
        assert_eq!(
            configured(text),
            [
                Configured::Hooks(".githooks".into()),
                Configured::Worktree("../a b".into()),
                Configured::Include("../.gitconfig".into()),
                Configured::Include("x\\y".into()),
                Configured::Hooks("one\ttwo".into()),
                Configured::Hooks("last".into()),
            ]
        );
    }

    /// The values of `core.hookspath` as git lists them; none if git does not take the file.
    fn by_git(text: &str) -> Option<Vec<String>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut git = Command::new("git");
        git.args(["config", "--no-includes", "--list", "-z", "--file"]).arg(file.path()).stderr(Stdio::null());
        let listed = git.output().ok().filter(|ran| ran.status.success())?;
        let listed = String::from_utf8(listed.stdout).unwrap();
        let values = listed.split('\0').filter_map(|entry| entry.split_once('\n'));
        let values = values.filter(|(key, value)| *key == "core.hookspath" && !value.is_empty());
        Some(values.map(|(_, value)| value.to_owned()).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn git_reads_the_same(parts in proptest::collection::vec(
            proptest::sample::select(vec![
                "[core]", "[core \"a]\\\"b\"]", "[core.x]", "[CORE]", "\n", "\n", "\r\n", "hooksPath = ", "hookspath=", "a", "b c",
                "\\\n", "\\\\", "\\t", "\\n", "\\\"", "\"", "\"", " ", "\t", "#", ";", "]", "\\b", "x = y\n", "flag\n", "\r",
            ]), 0..16)) {
            let text = format!("[core]\n{}", parts.concat());
            if let Some(listed) = by_git(&text) {
                let found = configured(&text).into_iter().filter_map(|found| match found {
                    Configured::Hooks(path) => Some(path),
                    _ => None,
                });
                prop_assert_eq!(found.collect::<Vec<_>>(), listed, "{:?}", text);
            }
        }

        #[test]
        fn any_text_is_read(text in any::<String>(), line in "\\[(core|include)\\] ?(path|hooksPath) ?= ?.{0,20}") {
            configured(&text);
            configured(&line);
        }
    }
}
