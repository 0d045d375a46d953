//! A failing example for each rule, and for the whole table that a clean tree passes.

use super::crates::LINTS;
use super::tree::{File, Tree};
use super::{Finding, RULES};
use crate::workspace::{Dependency, Package};

fn file(path: &str, text: &str) -> File {
    File { path: path.into(), text: text.into() }
}

fn package(name: &str, directory: &str, uses: &[(&str, bool)]) -> Package {
    let dependencies = uses
        .iter()
        .map(|(name, ours)| Dependency { name: (*name).to_owned(), path: ours.then(|| format!("/src/{name}").into()) });
    Package {
        name: name.into(),
        manifest_path: format!("/src/{directory}/Cargo.toml").into(),
        dependencies: dependencies.collect(),
    }
}

fn clean() -> Tree {
    let mut tree = Tree::default();
    tree.metadata.workspace_root = "/src".into();
    tree.files
        .push(file("init/src/lib.rs", "//! What runs inside.\nfn unsafe_not() {}\n// unsafe is told, not done\n"));
    tree.files.push(file("sys/src/lib.rs", "//! Calls.\nunsafe fn call() {}\n"));
    tree.files.push(file("init/Cargo.toml", "[lints]\nworkspace = true\n"));
    tree.files.push(file(
        "docs/dependencies.md",
        "| dependency | used by | why |\n|---|---|---|\n| `caps` | agentd-init | sets |\n",
    ));
    tree.files
        .push(file("README.md", "[why](docs/adr/0001-direct.md#top) [`code`](docs) [out](https://x.y/z) `[a](b)`\n"));
    tree.files.push(file(
        "docs/cve-ledger.md",
        "| id | test |\n|---|---|\n| A | `escape_a`, `cargo xtask fuzz` |\n| B | the same |\n\n| id | comes with |\n|---|---|\n| C | `later` |\n",
    ));
    tree.files
        .push(file("tests/tests/escape.rs", "//! A.\n#[test]\n#[cfg(x)]\nfn escape_a() {}\nfn escape_not() {}\n"));
    let lints: String = LINTS.split(' ').map(|lint| format!("{lint} = \"deny\"\n")).collect();
    tree.files.push(file("Cargo.toml", &format!("[workspace.lints.clippy]\n{lints}")));
    tree.paths.extend(["docs", "docs/adr/0001-direct.md"].map(String::from));
    tree.metadata.packages.push(package("agentd-init", "init", &[("agentd-sys", true), ("caps", false)]));
    tree
}

fn found(rule: &str, tree: &Tree) -> Vec<Finding> {
    let rule = RULES.iter().find(|candidate| candidate.name == rule).unwrap();
    (rule.check)(tree)
}

fn errors(rule: &str, spoil: impl FnOnce(&mut Tree)) -> Vec<String> {
    let mut tree = clean();
    spoil(&mut tree);
    let errors = found(rule, &tree).into_iter().filter(|finding| !finding.warning);
    errors.map(|finding| format!("{}: {}", finding.place, finding.what)).collect()
}

#[test]
fn a_clean_tree_passes_every_rule() {
    for rule in RULES {
        assert_eq!(found(rule.name, &clean()), [], "{}", rule.name);
    }
}

#[test]
fn edges_fails_on_an_edge_upwards_and_on_an_unknown_package() {
    let spoil = |tree: &mut Tree| {
        tree.metadata.packages.push(package("agentd-sys", "sys", &[("agentd-init", true)]));
        tree.metadata.packages.push(package("agentd-new", "new", &[]));
    };
    assert_eq!(
        errors("edges", spoil),
        ["agentd-sys: may not use agentd-init", "agentd-new: not in the table of crates"]
    );
}

#[test]
fn lints_fails_on_a_member_with_lints_of_its_own_and_on_one_that_is_off() {
    let spoil = |tree: &mut Tree| tree.files[2].text = "[lints.rust]\nunsafe_code = \"allow\"\n".into();
    assert_eq!(errors("lints", spoil).len(), 1);
    for off in ["", "exit = \"allow\"\n"] {
        let spoil = |tree: &mut Tree| {
            let manifest = tree.files.iter_mut().find(|file| file.path == "Cargo.toml").unwrap();
            manifest.text = manifest.text.replace("exit = \"deny\"\n", off);
        };
        assert_eq!(errors("lints", spoil), ["Cargo.toml: the workspace's lints have exit off"]);
    }
}

#[test]
fn dependencies_fails_on_a_missing_row_a_row_too_many_a_wrong_user_and_a_missing_reason() {
    let row = |row: &'static str| move |tree: &mut Tree| tree.files[3].text.push_str(row);
    let unnamed = |tree: &mut Tree| tree.metadata.packages.push(package("xtask", "xtask", &[("toml", false)]));
    assert_eq!(errors("dependencies", unnamed), ["docs/dependencies.md: no row for toml, used by xtask"]);
    assert_eq!(
        errors("dependencies", row("| `tokio` | agentd | fast |\n")),
        ["docs/dependencies.md: tokio is no dependency"]
    );
    assert_eq!(
        errors("dependencies", row("| `caps` | agentd-init | again |\n")),
        ["docs/dependencies.md: caps has two rows"]
    );
    let wrong_user = |tree: &mut Tree| tree.files[3].text = "| `caps` | agentd | sets |\n".into();
    assert_eq!(errors("dependencies", wrong_user), ["docs/dependencies.md: caps is used by agentd-init"]);
    let no_reason = |tree: &mut Tree| tree.files[3].text = "| `caps` | agentd-init | |\n".into();
    assert_eq!(errors("dependencies", no_reason), ["docs/dependencies.md: caps has no reason"]);
}

#[test]
fn module_docs_fails_on_a_file_that_does_not_say_what_it_is_for() {
    let spoil = |tree: &mut Tree| tree.files.push(file("init/src/a.rs", "use std::io;\n//! Late.\n"));
    assert_eq!(errors("module docs", spoil), ["init/src/a.rs: does not open with //!"]);
}

#[test]
fn size_warns_above_600_lines_and_fails_above_1000() {
    let long = |lines: usize| move |tree: &mut Tree| tree.files.push(file("a.rs", &"//! x\n".repeat(lines)));
    assert_eq!(errors("size", long(1001)), ["a.rs: 1001 lines"]);
    let mut tree = clean();
    long(601)(&mut tree);
    assert_eq!(found("size", &tree), [Finding::warning("a.rs", "601 lines")]);
    assert_eq!(errors("size", long(600)).len(), 0);
}

#[test]
fn unsafe_fails_outside_its_rooms_and_reads_neither_comments_nor_strings() {
    let spoil = |tree: &mut Tree| {
        tree.files.push(file(
            "init/src/a.rs",
            "//! x\nlet a = \"unsafe \\\" unsafe\"; // unsafe\nlet b = '\"'; unsafe { call() }\n",
        ));
    };
    assert_eq!(errors("unsafe", spoil), ["init/src/a.rs:3: unsafe code"]);
}

#[test]
fn names_fails_on_files_directories_and_modules_that_say_nothing() {
    let spoil = |tree: &mut Tree| {
        for path in ["init/src/utils.rs", "init/src/common/a.rs", "init/src/mount_impl.rs"] {
            tree.files.push(file(path, "//! x\n"));
        }
        tree.files.push(file("init/src/b.rs", "//! x\npub(crate) mod helpers {\n"));
    };
    assert_eq!(errors("names", spoil).len(), 4);
}

#[test]
fn decisions_fails_on_a_gap_on_an_odd_name_and_on_one_that_nobody_names() {
    let decision = |name: &'static str| move |tree: &mut Tree| tree.paths.extend([format!("docs/adr/{name}")]);
    assert_eq!(errors("decisions", decision("0003-late.md")).len(), 2);
    assert_eq!(errors("decisions", decision("draft.md")), ["docs/adr/draft.md: a decision is called NNNN-title.md"]);
    let unnamed = "docs/adr/0002-next.md: no document outside docs/adr names it";
    assert_eq!(errors("decisions", decision("0002-next.md")), [unnamed]);
}

#[test]
fn links_fails_on_a_target_that_is_not_there_or_outside() {
    let link = |text: &'static str| move |tree: &mut Tree| tree.files.push(file("docs/a.md", text));
    assert_eq!(errors("links", link("[x](missing.md)\n")).len(), 1);
    assert_eq!(errors("links", link("[`x`](missing.md)\n")).len(), 1);
    assert_eq!(errors("links", link("[x](../../etc/passwd)\n")).len(), 1);
    assert_eq!(errors("links", link("[x](../docs/adr/0001-direct.md) [y](#here)\n```\n[x](no)\n```\n")).len(), 0);
}

#[test]
fn ledger_fails_on_a_row_without_a_test_and_on_a_test_that_is_not_there() {
    let rows = |rows: &'static str| {
        move |tree: &mut Tree| {
            tree.files.retain(|file| file.path != "docs/cve-ledger.md");
            tree.files.push(file("docs/cve-ledger.md", rows));
        }
    };
    let missing = rows("| id | test |\n|---|---|\n| A | `escape_gone` |\n");
    assert_eq!(errors("ledger", missing), ["docs/cve-ledger.md: there is no test escape_gone"]);
    let not_a_test = rows("| id | test |\n|---|---|\n| A | `escape_not` |\n");
    assert_eq!(errors("ledger", not_a_test), ["docs/cve-ledger.md: there is no test escape_not"]);
    let none = rows("| id | test |\n|---|---|\n| A | by looking |\n");
    assert_eq!(errors("ledger", none), ["docs/cve-ledger.md: no test is named in | A | by looking |…"]);
}
