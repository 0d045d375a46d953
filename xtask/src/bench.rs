//! `cargo xtask bench …`: what agentd costs, beside its peers, in one interleaved run.

mod document;
mod egress;
mod filters;
mod jobs;
mod lists;
mod prepare;
mod start;
mod statistics;
mod unpack;

pub(crate) use prepare::Scratch;
pub(crate) use start::Files;

use anyhow::Result;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Start to exit of `true`: agentd, the floor, bwrap, crun, runc, podman; then many at once, and idle memory
    Start(start::Args),
    /// A build, git and find under the system-call filter and Landlock, and without
    Filters(filters::Args),
    /// 200 jobs at once: started, listed, logged, stopped; what a start costs then, and what an idle job holds
    Jobs(jobs::Args),
    /// `agentd ps` over 10,000 records
    Lists(lists::Args),
    /// The network broker's throughput, latency and memory: agentd, direct loopback, pasta, slirp4netns
    Egress(egress::Args),
    /// A 3-layer image into an empty store: agentd, the bound, tar, umoci, skopeo, podman, charliecloud; then 1 to 40 layers
    Unpack(unpack::Args),
    /// The measuring half of `start`, already an ordinary user; prints JSON
    #[command(hide = true)]
    MeasureStart(start::measure::Args),
    /// The client of `egress`, at the far end of a way; prints JSON
    #[command(hide = true)]
    MeasureEgress(egress::client::Args),
}

pub(crate) fn run(verb: Verb) -> Result<bool> {
    match verb {
        Verb::Start(arguments) => start::run(&arguments),
        Verb::Filters(arguments) => filters::run(&arguments),
        Verb::Jobs(arguments) => jobs::run(&arguments),
        Verb::Lists(arguments) => lists::run(&arguments),
        Verb::Egress(arguments) => egress::run(&arguments),
        Verb::Unpack(arguments) => unpack::run(&arguments),
        Verb::MeasureStart(arguments) => start::measure::run(&arguments).map(|()| true),
        Verb::MeasureEgress(arguments) => egress::client::run(&arguments).map(|()| true),
    }
}
