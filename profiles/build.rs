//! Compiles the built-in profiles for the target and writes them as Rust statics, so that a start neither parses nor compiles.

#![expect(unreachable_pub, reason = "the modules are the library's own, where these items are its interface")]
#![expect(dead_code, reason = "the modules are the library's own, and it uses more of them")]

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use compile::compile;
use path::{MayMiss, PathRule, Place};
use profile::{Namespaces, Profile};
use rule::{Arch, SeccompRule, SeccompRules, Syscall, Test};

#[path = "src/assemble.rs"]
mod assemble;
#[path = "src/compile.rs"]
mod compile;
#[path = "src/digest.rs"]
mod digest;
#[path = "src/evaluate.rs"]
mod evaluate;
#[path = "src/path.rs"]
mod path;
#[path = "src/profile.rs"]
mod profile;
#[path = "src/rule.rs"]
mod rule;
#[path = "src/schema.rs"]
mod schema;
#[path = "src/walls.rs"]
mod walls;

/// In this order: a profile extends one before it.
const NAMES: [&str; 5] = ["default", "strict", "nested", "init", "broker"];

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arch = match env::var("CARGO_CFG_TARGET_ARCH")?.as_str() {
        "x86_64" => Arch::X86_64,
        "aarch64" => Arch::Aarch64,
        other => return Err(format!("no system-call policy for architecture {other}").into()),
    };
    let mut source = format!("pub(crate) const NATIVE: Arch = Arch::{arch:?};\n");
    let mut made: Vec<Profile> = Vec::new();
    for name in NAMES {
        let file = format!("profiles/{name}.toml");
        println!("cargo::rerun-if-changed={file}");
        let bases: Vec<&Profile> = made.iter().collect();
        let profile = schema::parse(&fs::read_to_string(&file)?, &bases).map_err(|error| format!("{file}: {error}"))?;
        if profile.name != name {
            return Err(format!("{file}: calls itself {:?}", profile.name).into());
        }
        let program = compile(&profile.seccomp, arch).map_err(|error| format!("{file}: {error}"))?;
        walls::check(&profile, arch).map_err(|error| format!("{file}: {error}"))?;
        write_statics(&mut source, &name.to_uppercase(), &profile, &program)?;
        made.push(profile);
    }
    let file = "profiles/fake-root.toml";
    println!("cargo::rerun-if-changed={file}");
    let rules = rules(&fs::read_to_string(file)?).map_err(|error| format!("{file}: {error}"))?;
    writeln!(source, "pub(crate) static FAKE_ROOT: [SeccompRule; {}] = [", rules.len())?;
    rules.iter().try_for_each(|rule| write_rule(&mut source, rule))?;
    writeln!(source, "];")?;
    for profile in made.iter().filter(|profile| !["init", "broker"].contains(&&*profile.name)) {
        let SeccompRules { unlisted, unlisted_reason, .. } = profile.seccomp.clone();
        let rules = schema::before(rules.clone(), &profile.seccomp.rules).into();
        let program = compile(&SeccompRules { rules, unlisted, unlisted_reason }, arch)
            .map_err(|error| format!("{file} before {}: {error}", profile.name))?;
        write_program(&mut source, &format!("{}_FAKE_ROOT", profile.name.to_uppercase()), &program)?;
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("built_in.rs"), source)?;
    Ok(())
}

/// A text that holds rules about system calls and nothing else.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    schema: u32,
    seccomp: Section,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    rule: Vec<toml::Spanned<schema::RuleEntry>>,
}

fn rules(text: &str) -> Result<Vec<SeccompRule>, schema::SchemaError> {
    let Rules { schema, seccomp } = schema::document(text)?;
    schema::version(schema)?;
    schema::each(text, seccomp.rule, "rules", schema::rule)
}

fn write_program(to: &mut String, name: &str, program: &[libc::sock_filter]) -> Result<(), Failure> {
    writeln!(to, "pub(crate) static {name}_PROGRAM: [libc::sock_filter; {}] = [", program.len())?;
    for libc::sock_filter { code, jt, jf, k } in program {
        writeln!(to, "libc::sock_filter {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},")?;
    }
    writeln!(to, "];")?;
    Ok(())
}

fn write_statics(to: &mut String, name: &str, profile: &Profile, program: &[libc::sock_filter]) -> Result<(), Failure> {
    write_program(to, name, program)?;
    let digest = digest::digest(profile, program.iter().copied());
    writeln!(to, "pub(crate) const {name}_DIGEST: &str = {digest:?};")?;
    writeln!(to, "pub(crate) static {name}: Profile = Profile {{")?;
    writeln!(to, "name: {}, about: {},", text(&profile.name), text(&profile.about))?;
    let Namespaces { allowed, reason } = &profile.namespaces;
    writeln!(to, "namespaces: Namespaces {{ allowed: {allowed}, reason: {} }},", text(reason))?;
    writeln!(to, "seccomp: SeccompRules {{ rules: Cow::Borrowed(&[")?;
    for rule in profile.seccomp.rules.iter() {
        write_rule(to, rule)?;
    }
    let (unlisted, reason) = (profile.seccomp.unlisted, text(&profile.seccomp.unlisted_reason));
    writeln!(to, "]), unlisted: Errno::{unlisted:?}, unlisted_reason: {reason} }},")?;
    writeln!(to, "paths: Cow::Borrowed(&[")?;
    for PathRule { place, access, reason } in profile.paths.iter() {
        let place = match place {
            Place::Path(path) => format!("Path({})", text(path)),
            class => format!("{class:?}"),
        };
        writeln!(to, "PathRule {{ place: Place::{place}, access: {access:?}, reason: {} }},", text(reason))?;
    }
    writeln!(to, "]), may_miss: Cow::Borrowed(&[")?;
    for MayMiss { right, reason } in profile.may_miss.iter() {
        writeln!(to, "MayMiss {{ right: LandlockRight::{right:?}, reason: {} }},", text(reason))?;
    }
    writeln!(to, "]) }};")?;
    Ok(())
}

fn text(text: &str) -> String {
    format!("Cow::Borrowed({text:?})")
}

fn write_rule(to: &mut String, rule: &SeccompRule) -> Result<(), Failure> {
    writeln!(to, "SeccompRule {{ group: Cow::Borrowed({:?}), syscalls: Cow::Borrowed(&[", rule.group)?;
    for Syscall { name, x86_64, aarch64 } in rule.syscalls.iter() {
        writeln!(to, "Syscall {{ name: Cow::Borrowed({name:?}), x86_64: {x86_64:?}, aarch64: {aarch64:?} }},")?;
    }
    writeln!(to, "]), when: Cow::Borrowed(&[")?;
    for condition in rule.when.iter() {
        let kind = match condition.test {
            Test::Is(_) => "Is",
            Test::IsNot(_) => "IsNot",
        };
        let (arg, mask, values) = (condition.arg, condition.mask, condition.test.values());
        writeln!(to, "Condition {{ arg: {arg}, mask: {mask}, test: Test::{kind}(Cow::Borrowed(&{values:?})) }},")?;
    }
    let verdict = match rule.verdict {
        rule::Verdict::Refuse(errno) => format!("Refuse(Errno::{errno:?})"),
        verdict => format!("{verdict:?}"),
    };
    writeln!(to, "]), verdict: Verdict::{verdict}, reason: Cow::Borrowed({:?}) }},", rule.reason)?;
    Ok(())
}
