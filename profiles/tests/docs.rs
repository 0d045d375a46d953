//! `docs/seccomp.md` is the rules, rendered. `UPDATE_DOCS=1 cargo test -p agentd-profiles --test docs` writes it anew.

use std::{env, fs};

use agentd_profiles::{BuiltIn, FAKE_ROOT, SeccompRule, profile as built_in};

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
- How profiles are chosen, written and tightened: [profiles.md](profiles.md).
";

#[test]
fn page_is_the_rules() {
    let mut page = HEAD.to_owned();
    profile(
        &mut page,
        "The payload, and everything it starts; every rule, for the other profiles are read against it.",
        BuiltIn::Default,
    );
    for other in [BuiltIn::Strict, BuiltIn::Nested] {
        differences(&mut page, other);
    }
    page += "\n## `--fake-root`\n\nThese rules, and then those of the job's profile. `success` reports 0 and does nothing.\n";
    tables(&mut page, FAKE_ROOT.iter());
    profile(&mut page, "PID 1, once it has forked the payload.", BuiltIn::Init);
    profile(
        &mut page,
        "The network broker, a process beside the supervisor on the host, before it reads a byte of the box.",
        BuiltIn::Broker,
    );
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

fn profile(page: &mut String, about: &str, which: BuiltIn) {
    *page += &format!("\n## Profile `{which}`\n\n{about}\n");
    let list = &built_in(which).seccomp;
    tables(page, list.rules.iter());
    let unlisted = agentd_profiles::Verdict::Refuse(list.unlisted);
    *page += &format!("\n### every other number\n\n`{unlisted}`: {}\n", list.unlisted_reason);
}

/// A profile that extends `default`: its own rules, which are asked first.
fn differences(page: &mut String, which: BuiltIn) {
    let profile = built_in(which);
    *page += &format!("\n## Profile `{which}`\n\nFor {}. These rules, and then those of `default`.\n", profile.about);
    // What `default` has too differs at most in its calls: those that are decided above are left out.
    let inherited =
        |rule: &SeccompRule| built_in(BuiltIn::Default).seccomp.rules.iter().any(|known| known.reason == rule.reason);
    tables(page, profile.seccomp.rules.iter().filter(|rule| !inherited(rule)));
}

fn tables<'a>(page: &mut String, rules: impl Iterator<Item = &'a SeccompRule>) {
    let mut group = "";
    for rule in rules {
        if rule.group != group {
            group = &rule.group;
            *page += &format!("\n### {group}\n\n| system calls | when | verdict | reason |\n|---|---|---|---|\n");
        }
        row(page, rule);
    }
}

fn row(page: &mut String, rule: &SeccompRule) {
    let names: Vec<_> = rule.syscalls.iter().map(|syscall| format!("`{}`", syscall.name)).collect();
    let when: Vec<_> = rule.when.iter().map(ToString::to_string).collect();
    *page += &format!("| {} | {} | {} | {} |\n", names.join(" "), when.join(" and "), rule.verdict, rule.reason);
}
