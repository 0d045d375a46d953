//! The network words of `agentd run`: what is allowed, and what is said about it afterwards.

use agentd_egress::{HostEntry, Request, Rule, RuleError, SetNames, set};
use agentd_init::plan::Network;
use anyhow::{Result, bail};

use crate::launch::network::AskedNetwork;
use crate::supervisor::Finished;

// Not a doc comment: clap would take it for what the verb does.
#[derive(Debug, clap::Args)]
pub(super) struct NetworkArgs {
    /// Network: none but what --allow names, or the host's with everything it reaches
    #[arg(long, value_name = "none|host", default_value = "none", value_parser = network)]
    net: Network,
    /// Let the command reach a host: a name, *.NAME, an address or a network; without a port that means 443. Or a set of
    /// rules: claude, github, pypi, npm, crates, debian, huggingface
    #[arg(long, value_name = "HOST[:PORT[-PORT]]", value_parser = allowance)]
    allow: Vec<Rules>,
    /// Refuse a host, or some ports of it, whatever --allow says
    #[arg(long, value_name = "HOST[:PORT[-PORT]]", requires = "allow")]
    deny: Vec<Rule>,
    /// Say where an allowed name is, as this host reaches it; it may then be a private address, or one of this host
    #[arg(long, value_name = "NAME:ADDRESS", requires = "allow")]
    add_host: Vec<HostEntry>,
}

/// One rule, or those of a set.
#[derive(Debug, Clone)]
pub(super) struct Rules(pub(super) Vec<Rule>);

fn network(text: &str) -> Result<Network, String> {
    match text {
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        _ => Err("networks are none and host; --allow HOST lets a job reach single hosts".into()),
    }
}

/// Reads a rule, or the name of a set.
pub(super) fn allowance(text: &str) -> Result<Rules, String> {
    if let Some(rules) = set(text) {
        return Ok(Rules(rules));
    }
    match text.parse::<Rule>() {
        Ok(rule) => Ok(Rules(vec![rule])),
        Err(error @ RuleError::Host(_)) if !text.contains(['.', ':']) => Err(format!("{error}; sets are {SetNames}")),
        Err(error) => Err(error.to_string()),
    }
}

impl NetworkArgs {
    /// The network, and what it may reach.
    pub(super) fn asked(self) -> Result<(Network, AskedNetwork)> {
        let NetworkArgs { net, allow, deny, add_host } = self;
        if net == Network::Host && !allow.is_empty() {
            bail!("--net host reaches everything, and --allow less: give one of them");
        }
        let allow = allow.into_iter().flat_map(|rules| rules.0).collect();
        Ok((net, AskedNetwork { allow, deny, hosts: add_host }))
    }
}

/// The line about refused requests, at the end of a run.
pub(super) fn refused(finished: &Finished, id: &str, is_removed: bool) -> Option<String> {
    let number = finished.record.network.as_ref()?.refused;
    if number == 0 {
        return None;
    }
    let of = |request: &Request| {
        let port = request.port.map(|port| format!(":{port}")).unwrap_or_default();
        let why = request.why.as_deref().unwrap_or_default();
        let flag = request.allow.as_ref().map(|flag| format!("; {flag} would allow it")).unwrap_or_default();
        format!("{}{port} ({why}{flag})", request.untrusted_host)
    };
    let shown: Vec<String> = finished.refusals.iter().take(3).map(of).collect();
    let more = if finished.refusals.len() > shown.len() { ", …" } else { "" };
    let requests = if number == 1 { "request" } else { "requests" };
    let hint = if is_removed { String::new() } else { format!("; `agentd logs --net {id}` has all") };
    Some(format!("{number} network {requests} refused: {}{more}{hint}", shown.join(", ")))
}
