//! The network words of `agentd run`: what is allowed, and what is said about it afterwards.

use std::path::PathBuf;

use agentd_egress::{
    Credential, HostEntry, Inspected, Limits, Request, Rule, RuleError, SetNames, UrlRule, UrlRuleError, set,
};
use agentd_init::plan::Network;
use anyhow::{Context, Result, bail};

use super::policy_file::Counts;
use super::run::absolute;
use crate::job::spec::parse_size;
use crate::launch::network::AskedNetwork;
use crate::launch::plan::Plan;
use crate::supervisor::Finished;

// Not a doc comment: clap would take it for what the verb does.
#[derive(Debug, clap::Args)]
pub(super) struct NetworkArgs {
    /// Network: none but what --allow names, or the host's with everything it reaches
    /// [default: none]
    #[arg(long, value_name = "none|host", value_parser = network)]
    net: Option<Network>,
    /// Let the command reach a host: a name, *.NAME, an address or a network; without a port that means 443. Or a set of
    /// rules: claude, github, pypi, npm, crates, debian, huggingface
    #[arg(long, value_name = "HOST[:PORT[-PORT]]", value_parser = allowance)]
    allow: Vec<Rules>,
    /// Refuse a host, some ports of it, or some requests to it, whatever --allow says
    #[arg(long, value_name = "HOST[:PORT[-PORT]]", value_parser = denial)]
    deny: Vec<Rules>,
    /// Say where an allowed name is, as this host reaches it; it may then be a private address, or one of this host
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<HostEntry>,
    /// Give the box a proxy as well, for programs that need one to be told of: HTTP and SOCKS5, with the same rules, at
    /// 127.0.0.1:1080; http_proxy, https_proxy and all_proxy say so
    #[arg(long)]
    proxy: bool,
    /// Bound what goes through: connections=N at once (1024 at most), total=N in all, bytes=SIZE in all, rate=SIZE a second
    #[arg(long, value_name = "NAME=VALUE")]
    net_limit: Vec<String>,
    /// Let everything of the internet through that is not denied, and say at the end which --allow would have let through
    /// exactly that; for a job that you trust this once
    #[arg(long)]
    net_learn: bool,
    /// End TLS to the hosts of secrets at the broker, too, for programs that cannot be told to use http:// inside: they are
    /// shown certificates of an authority that is made for this job and believed in its box only
    #[arg(long)]
    tls_terminate: bool,
    /// Believe the authorities of this file, instead of this host's, where the broker asks on behalf of the box (PEM)
    #[arg(long, value_name = "FILE")]
    upstream_ca: Option<PathBuf>,
    /// What of these a policy file has said.
    #[arg(skip)]
    pub(super) of_policy: Counts,
}

/// One rule, or those of a set.
#[derive(Debug, Clone)]
pub(super) enum Rules {
    Hosts(Vec<Rule>),
    Requests(UrlRule),
}

/// The set that a job whose command has this name gets.
const CLAUDE: &str = "claude";

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
        return Ok(Rules::Hosts(rules));
    }
    if UrlRule::is_meant(text) {
        return denial(text);
    }
    match text.parse::<Rule>() {
        Ok(rule) => Ok(Rules::Hosts(vec![rule])),
        Err(error @ RuleError::Host(_)) if !text.contains(['.', ':']) => Err(format!("{error}; sets are {SetNames}")),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) fn denial(text: &str) -> Result<Rules, String> {
    if UrlRule::is_meant(text) {
        return text.parse().map(Rules::Requests).map_err(|error: UrlRuleError| error.to_string());
    }
    text.parse().map(|rule| Rules::Hosts(vec![rule])).map_err(|error: RuleError| error.to_string())
}

impl NetworkArgs {
    /// The network alone.
    pub(super) fn network(&self) -> Network {
        self.net.unwrap_or(Network::None)
    }

    /// Allows what Claude Code needs where the command is Claude Code, unless the network was chosen or it reaches its model
    /// another way; gives what is to be said about it.
    pub(super) fn allow_for(&mut self, program: Option<&str>, has_own_way: bool) -> Option<String> {
        let name = program.and_then(|program| program.rsplit('/').next());
        // The sets are read for Claude Code alone: that takes as long as fifty system calls.
        let is_asked_for = name == Some(CLAUDE) && self.net.is_none() && !has_own_way;
        let rules = is_asked_for.then(|| set(CLAUDE)).flatten()?;
        let hosts: Vec<String> = rules.iter().map(ToString::to_string).collect();
        self.allow.push(Rules::Hosts(rules));
        Some(format!("the command is claude, so {} are allowed; --net none allows nothing", hosts.join(", ")))
    }

    /// The network, and what it may reach; `credentials` are those of secrets that the broker adds.
    pub(super) fn asked(self, credentials: Vec<Credential>) -> Result<(Network, AskedNetwork)> {
        let net = self.network();
        let is_chosen = self.net.is_some();
        let NetworkArgs { allow, deny, add_host, proxy, net_limit, net_learn, tls_terminate, upstream_ca, .. } = self;
        let Counts { allow: allowed_by_policy, .. } = self.of_policy;
        // Who chooses the network of a job does not choose what files allow as well.
        let allow: Vec<Rules> = allow.into_iter().skip(if is_chosen { allowed_by_policy } else { 0 }).collect();
        if net == Network::Host && self.of_policy.deny > 0 {
            bail!(
                "--net host reaches everything, and the policy file denies some of it; --policy none goes without that"
            );
        }
        if net == Network::Host && (net_learn || !allow.is_empty()) {
            bail!(
                "--net host reaches everything, with nobody between who could allow or learn: leave it or the other out"
            );
        }
        if allow.is_empty() && credentials.is_empty() && !net_learn {
            let alone = [
                ("--deny", deny.len() > self.of_policy.deny),
                ("--add-host", add_host.len() > self.of_policy.add_host),
                ("--proxy", proxy),
                ("--net-limit", net_limit.len() > self.of_policy.net_limit),
            ];
            if let Some((flag, _)) = alone.into_iter().find(|(_, is_given)| *is_given) {
                bail!("{flag} is about what --allow allows, and that is nothing: give --allow, too");
            }
            // So is what a policy file says beside.
            if !tls_terminate && upstream_ca.is_none() {
                return Ok((net, AskedNetwork::default()));
            }
        }
        let (allow, of_requests) = apart(allow);
        let (deny, not_of_requests) = apart(deny);
        let authorities = upstream_ca.map(|path| absolute(&path, "--upstream-ca")).transpose()?;
        let inspected = Inspected {
            credentials,
            allow: of_requests,
            deny: not_of_requests,
            late: Vec::new(),
            terminate: tls_terminate,
            authorities,
        };
        if inspected.is_empty() && (inspected.terminate || inspected.authorities.is_some()) {
            let flag = if inspected.terminate { "--tls-terminate" } else { "--upstream-ca" };
            bail!(
                "{flag} is about hosts whose requests are read, and there is none: give --secret NAME@HOST, or --allow with a URL"
            );
        }
        let mut limits = Limits::default();
        for text in &net_limit {
            limits.set(text, |size| parse_size(size).ok()).context("--net-limit")?;
        }
        if !inspected.is_empty() && net_learn {
            bail!("--net-learn is about hosts, and requests to some hosts are read here: learn without keys and URLs");
        }
        Ok((net, AskedNetwork { allow, deny, hosts: add_host, inspected, proxy, limits, learn: net_learn }))
    }
}

fn apart(rules: Vec<Rules>) -> (Vec<Rule>, Vec<UrlRule>) {
    let (mut hosts, mut requests) = (Vec::new(), Vec::new());
    for rule in rules {
        match rule {
            Rules::Hosts(rules) => hosts.extend(rules),
            Rules::Requests(rule) => requests.push(rule),
        }
    }
    (hosts, requests)
}

/// Hosts whose requests are read, in a line.
pub(super) fn inspected(inspected: &Inspected) -> String {
    let keys = inspected.credentials.iter().map(|credential| format!("{credential} with {}", credential.secret));
    let rules = inspected.allow.iter().map(ToString::to_string);
    let denied = inspected.deny.iter().map(|rule| format!("not {rule}"));
    keys.chain(rules).chain(denied).collect::<Vec<_>>().join(", ")
}

/// The line about what a job that learns was let reach.
pub(super) fn learned(finished: &Finished, plan: &Plan) -> Option<String> {
    let (policy, used) = (plan.reach.as_ref()?, finished.record.network.as_ref()?);
    if !policy.learns() {
        return None;
    }
    let rules = used.names.iter().filter_map(|used| policy.lesson(&used.name, used.port));
    let flags: Vec<String> = rules.map(|rule| format!(" --allow {rule}")).collect();
    if flags.is_empty() {
        return Some("learned: it reached nothing that needs a further --allow".into());
    }
    Some(format!("learned: exactly what it reached is allowed by{}", flags.concat()))
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
        let asked = request.untrusted_request.as_ref().map(|asked| format!(" {asked}")).unwrap_or_default();
        format!("{}{port}{asked} ({why}{flag})", request.untrusted_host)
    };
    let shown: Vec<String> = finished.refusals.iter().take(3).map(of).collect();
    let more = if finished.refusals.len() > shown.len() { ", …" } else { "" };
    let requests = if number == 1 { "request" } else { "requests" };
    let hint = if is_removed { String::new() } else { format!("; `agentd logs --net {id}` has all") };
    Some(format!("{number} network {requests} refused: {}{more}{hint}", shown.join(", ")))
}
