//! `docs/seccomp.md` is the rules, rendered. `UPDATE_DOCS=1 cargo test -p agentd-profiles --test docs` writes it anew.

use std::{env, fs};

use agentd_profiles::{BuiltIn, Condition, SeccompRule, Test, rules};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/seccomp.md");

const HEAD: &str = "\
# System calls

What the filters let through and why. This page is the rules of `profiles/profiles/*.toml`, rendered; a test fails when the two differ, and
`UPDATE_DOCS=1 cargo test -p agentd-profiles --test docs` writes it anew.

- The first row that names a call and whose condition holds decides. A condition sees the low 32 bits of an argument (`arg 0` is the first),
  which is all the kernel looks at for those tested here.
- An errno means that the call is not carried out and reports this error.
- A call through another architecture's entry (`int 0x80`, i386, 32-bit Arm) kills the process: its numbers mean other calls.
- x32 numbers (bit 30 set) are numbers no row names.
";

#[test]
fn page_is_the_rules() {
    let mut page = HEAD.to_owned();
    profile(&mut page, "default", "The payload, and everything it starts.", BuiltIn::Default);
    profile(&mut page, "init", "PID 1, once it has forked the payload.", BuiltIn::Init);
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(FILE, page).unwrap();
    } else {
        assert_eq!(
            fs::read_to_string(FILE).unwrap(),
            page,
            "write it anew with UPDATE_DOCS=1 cargo test -p agentd-profiles --test docs"
        );
    }
}

fn profile(page: &mut String, name: &str, about: &str, profile: BuiltIn) {
    let list = rules(profile);
    *page += &format!("\n## Profile `{name}`\n\n{about}\n");
    let mut group = "";
    for rule in list.rules.iter() {
        if rule.group != group {
            group = &rule.group;
            *page += &format!("\n### {group}\n\n| system calls | when | verdict | reason |\n|---|---|---|---|\n");
        }
        row(page, rule);
    }
    let unlisted = agentd_profiles::Verdict::Refuse(list.unlisted);
    *page += &format!("\n### every other number\n\n`{unlisted}`: {}\n", list.unlisted_reason);
}

fn row(page: &mut String, rule: &SeccompRule) {
    let names: Vec<_> = rule.syscalls.iter().map(|syscall| format!("`{}`", syscall.name)).collect();
    let when: Vec<_> = rule.when.iter().map(condition).collect();
    *page += &format!("| {} | {} | {} | {} |\n", names.join(" "), when.join(" and "), rule.verdict, rule.reason);
}

fn condition(condition: &Condition) -> String {
    let word = match condition.test {
        Test::Is(_) => "is",
        Test::IsNot(_) => "is not",
    };
    let mask = if condition.mask == u32::MAX { String::new() } else { format!(" & {:#x}", condition.mask) };
    let values: Vec<_> = condition.test.values().iter().map(|value| number(*value)).collect();
    format!("arg {}{mask} {word} {}", condition.arg, values.join(" or "))
}

fn number(value: u32) -> String {
    if value < 100 { value.to_string() } else { format!("{value:#x}") }
}
