//! `cargo xtask bench …`: what agentd costs, beside its peers, in one interleaved run.

mod document;
mod filters;
mod lists;
mod prepare;
mod start;
mod statistics;
mod unpack;
mod verdicts;

use anyhow::Result;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Start to exit of `true`: agentd, the floor, bwrap, crun, runc, podman; then many at once, and idle memory
    Start(start::Args),
    /// A build, git and find under the system-call filter and Landlock, and without
    Filters(filters::Args),
    /// `agentd ps` over 10,000 records
    Lists(lists::Args),
    /// A 3-layer image into an empty store: agentd, the bound, tar, umoci, skopeo, podman, charliecloud; then 1 to 40 layers
    Unpack(unpack::Args),
    /// The measuring half of `start`, already an ordinary user; prints JSON
    #[command(hide = true)]
    MeasureStart(start::measure::Args),
}

pub(crate) fn run(verb: Verb) -> Result<bool> {
    match verb {
        Verb::Start(arguments) => start::run(&arguments),
        Verb::Filters(arguments) => filters::run(&arguments),
        Verb::Lists(arguments) => lists::run(&arguments),
        Verb::Unpack(arguments) => unpack::run(&arguments),
        Verb::MeasureStart(arguments) => start::measure::run(&arguments).map(|()| true),
    }
}
