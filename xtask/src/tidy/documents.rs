//! Rules about what is written for people: decisions and links.

use super::Finding;
use super::tree::Tree;

const DECISIONS: &str = "docs/adr/";

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
