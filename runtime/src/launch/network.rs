//! From rules to a box with a broker: which sockets and addresses it has, what its resolver is told.
//!
//! Invariant: without a rule that allows something there is nothing of this: no socket, no address, no process.

use std::net::{Ipv4Addr, Ipv6Addr};

use agentd_egress::{HostEntry, Inspected, Limits, NAME_SERVICE, OWN_V4, OWN_V6, PROXY, Policy, PolicyError, Rule};
use agentd_init::plan::{Doors, Net};

/// What `--allow`, `--deny`, `--add-host`, `--proxy` and `--net-limit` say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AskedNetwork {
    /// What is allowed.
    pub allow: Vec<Rule>,
    /// What is denied before that.
    pub deny: Vec<Rule>,
    /// Where names are.
    pub hosts: Vec<HostEntry>,
    /// Hosts whose requests are read, to add keys or to allow only some.
    pub inspected: Inspected,
    /// Whether the box gets a proxy too.
    pub proxy: bool,
    /// How much of it.
    pub limits: Limits,
    /// Whether everything is let through, to learn what is asked for.
    pub learn: bool,
}

/// The policy, where something is allowed.
///
/// # Errors
/// [`PolicyError`].
pub fn policy(asked: AskedNetwork) -> Result<Option<Policy>, PolicyError> {
    let AskedNetwork { allow, deny, hosts, inspected, proxy, limits, learn } = asked;
    if allow.is_empty() && inspected.is_empty() && !learn {
        return Ok(None);
    }
    let policy = Policy::new(allow, deny, hosts)?.inspecting(inspected)?.within(limits).learning(learn);
    if proxy && policy.ports().contains(&PROXY.1) { Err(PolicyError::Proxy) } else { Ok(Some(policy)) }
}

/// What leads from the box to the broker.
#[must_use]
pub fn doors(policy: &Policy, proxy: bool) -> Doors {
    Doors {
        // Without an address beside 127.0.0.1 and ::1, programs that ask for names believe that there is no network (AI_ADDRCONFIG).
        addresses: vec![Net { address: OWN_V4.into(), prefix: 32 }, Net { address: OWN_V6.into(), prefix: 128 }],
        // Every address there is: those that stand for names, those that rules name, and those that are refused, which is
        // then answered and told.
        local: vec![
            Net { address: Ipv4Addr::UNSPECIFIED.into(), prefix: 0 },
            Net { address: Ipv6Addr::UNSPECIFIED.into(), prefix: 0 },
        ],
        ports: policy.ports().into_iter().collect(),
        names: NAME_SERVICE,
        proxy: proxy.then_some(PROXY),
    }
}

/// What tells programs of the proxy. HTTP's own for all: some that are told of SOCKS and cannot speak it do not start.
pub(super) fn proxy_variables(asked: &AskedNetwork) -> impl Iterator<Item = (String, String)> {
    let (host, port) = PROXY;
    let proxy = format!("http://{host}:{port}");
    // Hosts that get keys are asked by http:// inside, and by way of the proxy that would be asking the proxy to read along.
    let read = asked.inspected.hosts().map(|(name, _)| format!(",{name}"));
    let direct: String = ["localhost,127.0.0.1,::1".to_owned()].into_iter().chain(read).collect();
    let none = ["no_proxy", "NO_PROXY"].map(|name| (name.to_owned(), direct.clone()));
    let names = ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    names.map(|name| (name.to_owned(), proxy.clone())).into_iter().chain(none)
}

/// The box's /etc/resolv.conf.
pub(super) fn resolv_conf() -> String {
    let server = NAME_SERVICE.0;
    format!("# names that no rule of agentd run --allow names do not exist here\nnameserver {server}\n")
}
