//! Checks that the compiler and clippy cannot make: what holds the workspace's shape.
//!
//! Invariant: [`RULES`] is the only list. Every rule is a function from a [`Tree`] in memory to its findings, so each
//! has a test that shows it failing.

mod crates;
mod documents;
mod sources;
#[cfg(test)]
mod tests;
mod tree;

use anyhow::Result;

use crate::checks::{self, Outcome};
use crate::workspace;
use tree::Tree;

struct Rule {
    name: &'static str,
    holds: &'static str,
    check: fn(&Tree) -> Vec<Finding>,
}

const RULES: &[Rule] = &[
    Rule { name: "edges", holds: "crates use only what the table of crates.rs allows", check: crates::edges },
    Rule { name: "lints", holds: "every member takes the workspace's lints, each on", check: crates::lints },
    Rule {
        name: "dependencies",
        holds: "docs/dependencies.md has a row, with users and a reason, for each dependency and no other",
        check: crates::dependencies,
    },
    Rule { name: "module docs", holds: "every .rs file opens with //!", check: sources::module_docs },
    Rule { name: "size", holds: "no .rs file over 1,000 lines; a warning above 600", check: sources::size },
    Rule {
        name: "unsafe",
        holds: "unsafe only in sys, attacks/src/raw.rs and tests/floor",
        check: sources::unsafe_code,
    },
    Rule { name: "names", holds: "no module is called after nothing (utils, common, …)", check: sources::names },
    Rule {
        name: "decisions",
        holds: "docs/adr/NNNN-title.md counts up without gaps, each named in another document",
        check: documents::decisions,
    },
    Rule { name: "links", holds: "relative links in *.md lead somewhere", check: documents::links },
    Rule { name: "ledger", holds: "each row of docs/cve-ledger.md names a test that exists", check: documents::ledger },
];

/// Something a rule found; a warning does not fail.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    place: String,
    what: String,
    warning: bool,
}

impl Finding {
    fn error(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into(), warning: false }
    }

    fn warning(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { warning: true, ..Self::error(place, what) }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also rustfmt, clippy and cargo-deny, as `e2e` does
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(arguments: &Args) -> Result<bool> {
    let mut passed = check()?;
    if arguments.all {
        for (name, outcome) in checks::run(&workspace::metadata()?.target_directory)? {
            println!("{name}: {outcome:?}");
            passed &= outcome != Outcome::Failed;
        }
    }
    Ok(passed)
}

/// Applies every rule to the workspace, prints the findings, and says whether none was an error.
pub(crate) fn check() -> Result<bool> {
    let tree = Tree::read()?;
    let mut passed = true;
    for rule in RULES {
        for finding in (rule.check)(&tree) {
            let severity = if finding.warning { "warning" } else { "error" };
            println!("{severity}: {}: {} [{}: {}]", finding.place, finding.what, rule.name, rule.holds);
            passed &= finding.warning;
        }
    }
    println!("tidy: {} rules over {} files: {}", RULES.len(), tree.files.len(), if passed { "ok" } else { "failed" });
    Ok(passed)
}
