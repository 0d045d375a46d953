//! What the filter and the ruleset of a plan cost, with nothing else around them.
//!
//! `confined none|seccomp|landlock|both PLAN PROGRAM ARGUMENT…` puts PROGRAM under one, the other, both or neither of what
//! the plan in the file PLAN has, and under no other layer. `cargo xtask bench filters` divides the times. A box has no way
//! to leave a layer out (docs/adr/0009), and namespaces and mounts cost the same with and without.
//!
//! Invariant: a measuring instrument, never shipped and never a sandbox to rely on.

use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;

use agentd_init::landlock;
use agentd_init::plan::{BoxPlan, Filter, Instruction};
use agentd_profiles::{notifying, seccomp};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let [what, plan, program, arguments @ ..] = &words[..] else {
        return Err("usage: confined none|seccomp|landlock|both PLAN PROGRAM ARGUMENT…".into());
    };
    let (filtered, ruled) = match what.to_str() {
        Some("none") => (false, false),
        Some("seccomp") => (true, false),
        Some("landlock") => (false, true),
        Some("both") => (true, true),
        _ => return Err("the first word is none, seccomp, landlock or both".into()),
    };
    let plan: BoxPlan = serde_json::from_slice(&std::fs::read(plan)?)?;
    rustix::thread::set_no_new_privs(true)?;
    if ruled {
        landlock::restrict(&plan.landlock, landlock::Links::Followed)?;
    }
    let mut listener = None;
    if filtered {
        // As a job's, with its denials left to a listener; nobody listens, and none is expected.
        listener = Some(agentd_sys::notify::load(&match &plan.seccomp.filter {
            Filter::BuiltIn(profile) => notifying(seccomp(*profile)),
            Filter::Compiled(program) => {
                let instruction = |&Instruction(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k };
                notifying(&program.iter().map(instruction).collect::<Vec<_>>())
            }
        })?);
    }
    let error = Command::new(program).args(arguments).exec();
    drop(listener);
    Err(error.into())
}
