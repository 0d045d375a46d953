//! The table of steps in `docs/architecture.md` is the list in the code.
//!
//! `UPDATE_DOCS=1 cargo test -p agentd-init` writes it anew.

use std::fmt::Write;
use std::fs;

use agentd_init::step::Step;

#[test]
fn the_steps_in_the_docs_are_the_steps_in_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/architecture.md");
    let page = fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once("<!-- steps -->\n").unwrap();
    let (table, after) = rest.split_once("<!-- /steps -->").unwrap();
    let mut wanted = String::from("| step | what it does |\n|---|---|\n");
    for step in Step::ALL {
        let name = serde_json::to_value(step).unwrap();
        writeln!(wanted, "| `{}` | {} |", name.as_str().unwrap(), step.meaning()).unwrap();
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path, format!("{before}<!-- steps -->\n{wanted}<!-- /steps -->{after}")).unwrap();
        return;
    }
    assert_eq!(table, wanted, "run UPDATE_DOCS=1 cargo test -p agentd-init");
}
