//! Rules about .rs files, by their text.

use super::Finding;
use super::tree::Tree;

const WARN_ABOVE: usize = 600;
const FAIL_ABOVE: usize = 1000;

/// Where unsafe code may stand: the system-call crate; the measuring instrument, which is never shipped; attacks, which are
/// calls that no safe wrapper offers (docs/adr/0009).
const UNSAFE_IN: [&str; 3] = ["sys/", "tests/floor/", "attacks/src/raw.rs"];

/// Names that say nothing about what is inside.
const NOTHING_NAMES: [&str; 4] = ["utils", "helpers", "common", "manager"];

pub(super) fn module_docs(tree: &Tree) -> Vec<Finding> {
    let without = tree.with_ending(".rs").filter(|file| !file.text.starts_with("//! "));
    without.map(|file| Finding::error(&file.path, "does not open with //!")).collect()
}

pub(super) fn size(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.with_ending(".rs") {
        let lines = file.text.lines().count();
        if lines > FAIL_ABOVE {
            findings.push(Finding::error(&file.path, format!("{lines} lines")));
        } else if lines > WARN_ABOVE {
            findings.push(Finding::warning(&file.path, format!("{lines} lines")));
        }
    }
    findings
}

pub(super) fn unsafe_code(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.with_ending(".rs").filter(|file| !UNSAFE_IN.iter().any(|room| file.path.starts_with(room))) {
        for (number, line) in file.text.lines().enumerate() {
            if words(&code(line)).any(|word| word == "unsafe") {
                findings.push(Finding::error(format!("{}:{}", file.path, number + 1), "unsafe code"));
            }
        }
    }
    findings
}

pub(super) fn names(tree: &Tree) -> Vec<Finding> {
    let says_nothing = |name: &str| NOTHING_NAMES.contains(&name) || name.ends_with("_impl");
    let mut findings = Vec::new();
    for file in tree.with_ending(".rs") {
        if let Some(name) = file.path.trim_end_matches(".rs").split('/').find(|part| says_nothing(part)) {
            findings.push(Finding::error(&file.path, format!("`{name}` says nothing about what is inside")));
        }
        for line in file.text.lines().map(code) {
            let mut words = words(&line);
            if words.any(|word| word == "mod")
                && let Some(name) = words.next().filter(|name| says_nothing(name))
            {
                findings.push(Finding::error(&file.path, format!("`mod {name}` says nothing about what is inside")));
            }
        }
    }
    findings
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// `line` without its comment and without what is between quotes. A string over several lines is not seen as one.
fn code(line: &str) -> String {
    let mut code = String::new();
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' if quoted => drop(characters.next()),
            // A character literal of a quote is no string.
            '\'' if !quoted && characters.peek() == Some(&'"') => drop(characters.next()),
            '"' => quoted = !quoted,
            '/' if !quoted && characters.peek() == Some(&'/') => break,
            _ if quoted => {}
            _ => code.push(character),
        }
    }
    code
}
