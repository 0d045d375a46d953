//! Rules about what is written for people: decisions, links, and the tests that the ledger promises.

use std::collections::BTreeSet;

use super::Finding;
use super::tree::Tree;

const DECISIONS: &str = "docs/adr/";
const LEDGER: &str = "docs/cve-ledger.md";

pub(super) fn decisions(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut expected = 1;
    for path in tree.paths.iter().filter(|path| path.starts_with(DECISIONS)) {
        let name = path.trim_start_matches(DECISIONS);
        let number = name.split_once('-').filter(|(number, title)| number.len() == 4 && title.ends_with(".md"));
        let Some(number) = number.and_then(|(number, _)| number.parse::<u32>().ok()) else {
            findings.push(Finding::error(path, "a decision is called NNNN-title.md"));
            continue;
        };
        if number != expected {
            findings.push(Finding::error(path, format!("decision {expected:04} should stand here")));
        }
        expected = number + 1;
        let elsewhere = tree.with_ending(".md").filter(|file| !file.path.starts_with(DECISIONS));
        if !elsewhere.into_iter().any(|file| file.text.contains(name)) {
            findings.push(Finding::error(path, "no document outside docs/adr names it"));
        }
    }
    findings
}

pub(super) fn links(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.with_ending(".md") {
        let directory = file.path.rsplit_once('/').map_or("", |(directory, _)| directory);
        for target in targets(&file.text) {
            let path = target.split_once('#').map_or(target, |(path, _)| path);
            if path.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let resolved = resolve(directory, path);
            if !resolved.as_ref().is_some_and(|path| path.is_empty() || tree.paths.contains(path)) {
                findings.push(Finding::error(&file.path, format!("the link to {target} leads nowhere")));
            }
        }
    }
    findings
}

/// The targets of `[text](target)`, code blocks and code spans left out.
fn targets(text: &str) -> Vec<&str> {
    let mut targets = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for prose in line.split('`').step_by(2) {
            targets.extend(prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target));
        }
    }
    targets
}

/// `path` as seen from `directory`, relative to the root; `None` when it leaves the root.
fn resolve(directory: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// The cells of the ledger's columns `test`: code spans there that could be a function's name are one's, of a test.
pub(super) fn ledger(tree: &Tree) -> Vec<Finding> {
    let Some(text) = tree.text(LEDGER) else { return Vec::new() };
    let tests: BTreeSet<&str> = tree.with_ending(".rs").flat_map(|file| tests_of(&file.text)).collect();
    let mut findings = Vec::new();
    let mut column = None;
    for line in text.lines() {
        // Cells have no `|` of their own in this document; the first and the last part are what is outside of the table.
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if cells.len() < 3 {
            column = None;
        } else if column.is_none() {
            column = cells.iter().position(|cell| *cell == "test");
        } else if let Some(cell) = column.and_then(|at| cells.get(at)).filter(|cell| !cell.starts_with('-')) {
            let code: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
            if code.is_empty() && *cell != "the same" {
                findings.push(Finding::error(LEDGER, format!("no test is named in {line:.60}…")));
            }
            let is_name =
                |code: &&str| code.contains('_') && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            for name in code.into_iter().filter(is_name).filter(|name| !tests.contains(name)) {
                findings.push(Finding::error(LEDGER, format!("there is no test {name}")));
            }
        }
    }
    findings
}

/// Names of the functions of a source file that are tests: `#[test]`, and perhaps further attributes, stands before them.
fn tests_of(text: &str) -> Vec<&str> {
    let mut is_test = false;
    let mut names = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("fn ").and_then(|rest| rest.split_once('(')).map(|(name, _)| name) {
            if is_test {
                names.push(name);
            }
            is_test = false;
        } else if line.starts_with("#[test]") {
            is_test = true;
        }
    }
    names
}
