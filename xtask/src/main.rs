//! The project's own commands: `cargo xtask VERB`. Each verb is a file; nothing here is ever shipped.
//!
//! Invariant: nothing of ours is a dependency. What is built and measured is the `agentd` binary, from outside.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a terminal is what these commands write for")]

mod account;
mod bench;
mod checks;
mod demo;
mod e2e;
mod elf;
mod fuzz;
mod order;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
///
/// `demo` shows agentd at work, `e2e` runs everything that decides whether a change is good (.ci/run calls it), `bench`
/// measures, `fuzz` searches for inputs that break a promise, `tidy` checks what the compiler cannot. Each one says what
/// it needs; as root, `e2e` and `bench` do their work as an ordinary user they create.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs a real coding agent in a box, from nothing, and shows what it did and could not do
    Demo(demo::Args),
    /// Runs all checks and all tests, as root and as an ordinary user
    E2e(e2e::Args),
    /// Measures agentd beside its peers
    #[command(subcommand)]
    Bench(bench::Verb),
    /// Feeds hostile input to everything that reads images, for some seconds each
    Fuzz(fuzz::Args),
    /// Finds in which order a start meets the functions of agentd, for the linker (runtime/startup.order); as root
    Order,
    /// Checks dependencies between crates, module docs, file sizes, decisions and links
    Tidy(tidy::Args),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::Demo(arguments) => demo::run(arguments).map(|()| true),
        Verb::E2e(arguments) => e2e::run(&arguments),
        Verb::Bench(verb) => bench::run(verb),
        Verb::Fuzz(arguments) => fuzz::run(&arguments),
        Verb::Order => order::run().map(|()| true),
        Verb::Tidy(arguments) => tidy::run(&arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
