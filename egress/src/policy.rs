//! What a box may reach: rules, and decisions on names, addresses and ports. No I/O but one question to the kernel.
//!
//! Invariant: a denial is asked before any allowance, and what no rule allows is refused, with the flag that would allow it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::address;
use crate::inspected::Inspected;
use crate::limits::Limits;
use crate::name::Name;
use crate::rule::{DEFAULT_PORT, HostEntry, Hosts, Rule};

/// Ports at which a box is always listened to once it has a broker, so that what is refused there is told.
const TOLD_PORTS: [u16; 3] = [22, 80, 443];

/// Ports at which a box that learns is listened to as well: what programs are known to ask for. At others nobody would hear.
const LEARNED_PORTS: [u16; 12] = [21, 465, 587, 873, 3306, 5432, 6379, 8000, 8080, 8443, 9418, 11371];

/// Where the box finds its name service.
pub const NAME_SERVICE: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 53);

/// Ports that the rules of a job may name; each is a socket in the box.
const MOST_PORTS: usize = 256;

/// Why TLS to a host is refused that only a key allows.
const HIDDEN: &str = "keys are added to requests for this host, and TLS hides them: ask for it by http://, or start the job with --tls-terminate";

/// Rules, and entries of `--add-host`, of a job.
const MOST_RULES: usize = 1000;

/// Rules that make no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Too many ports.
    #[error("the rules name {0} ports, and a box is listened to at {MOST_PORTS} at most; name fewer")]
    Ports(usize),
    /// The port of the box's own name service.
    #[error("port 53 of a box is its own name service; it cannot be allowed")]
    NameService,
    /// The port of the proxy, in a box that has one.
    #[error("port {port} of a box with --proxy is the proxy; a program in the box can reach that port of a host through it", port = crate::PROXY.1)]
    Proxy,
    /// A rule for requests, said of a running job in which nobody could keep it.
    #[error(
        "`{0}` is about single requests, and since its start the job has no such rule for that host: it believes no certificate with which they could be read; start it with such a rule"
    )]
    NoRequests(String),
    /// Too many rules.
    #[error("there are {0} rules; a job has {MOST_RULES} at most")]
    Rules(usize),
}

/// Where a connection is meant to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A name that was issued.
    Name(Name),
    /// An address that is its own meaning.
    Address(IpAddr),
}

/// Why something is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Why.
    pub(crate) why: String,
    /// The rule that decided, where it is one that denies.
    pub(crate) rule: Option<String>,
    /// The flag that would allow it, where one would.
    pub(crate) allow: Option<String>,
}

impl Refusal {
    pub(crate) fn because(why: impl Into<String>) -> Self {
        Refusal { why: why.into(), rule: None, allow: None }
    }

    pub(crate) fn unless(self, rule: impl std::fmt::Display) -> Self {
        Refusal { allow: Some(format!("--allow {rule}")), ..self }
    }
}

/// The network policy of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub(crate) allow: Vec<Rule>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) deny: Vec<Rule>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    hosts: Vec<HostEntry>,
    #[serde(skip_serializing_if = "Inspected::is_empty", default)]
    pub(crate) inspected: Inspected,
    #[serde(skip_serializing_if = "Limits::is_none", default)]
    pub(crate) limits: Limits,
    /// Whether what no rule allows and no rule denies is let through, to learn what rules a job needs.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    learns: bool,
}

impl Policy {
    /// Of rules; nothing is allowed that no rule of `allow` allows.
    ///
    /// # Errors
    /// Too many rules or ports.
    pub fn new(allow: Vec<Rule>, deny: Vec<Rule>, hosts: Vec<HostEntry>) -> Result<Self, PolicyError> {
        Policy { allow, deny, hosts, inspected: Inspected::default(), limits: Limits::default(), learns: false }
            .checked()
    }

    /// The same within limits.
    #[must_use]
    pub fn within(self, limits: Limits) -> Self {
        Policy { limits, ..self }
    }

    /// The same, but everything of the internet is let through that is not denied.
    #[must_use]
    pub fn learning(self, learns: bool) -> Self {
        Policy { learns, ..self }
    }

    /// Whether it does.
    #[must_use]
    pub fn learns(&self) -> bool {
        self.learns
    }

    /// The rules that would have allowed a connection that was let through only to learn of it.
    #[must_use]
    pub fn lesson(&self, host: &str, port: u16) -> Option<Rule> {
        let target = target_of(host)?;
        let rules = Policy { learns: false, ..self.clone() };
        let rule = match &target {
            Target::Address(address @ IpAddr::V6(_)) => format!("[{address}]:{port}"),
            _ if port == DEFAULT_PORT => host.to_owned(),
            _ => format!("{host}:{port}"),
        };
        if self.learns && rules.decide(&target, port).is_err() { rule.parse().ok() } else { None }
    }

    /// The same policy, if it is within its bounds.
    pub(crate) fn checked(self) -> Result<Self, PolicyError> {
        let policy = self;
        let inspected = policy.inspected.hosts().count();
        let rules = policy.allow.len() + policy.deny.len() + policy.hosts.len() + inspected;
        if rules > MOST_RULES {
            return Err(PolicyError::Rules(rules));
        }
        if policy.allow.iter().any(|rule| rule.allows_port(NAME_SERVICE.1)) {
            return Err(PolicyError::NameService);
        }
        // Counted before any list of them is made: a range may have 65,535.
        let mut ranges: Vec<(u16, u16)> = policy.allow.iter().map(Rule::allowed_ports).collect();
        ranges.sort_unstable();
        let (mut ports, mut counted) = (0, 0);
        for (first, last) in ranges {
            let first = usize::from(first).max(counted + 1);
            ports += (usize::from(last) + 1).saturating_sub(first);
            counted = counted.max(usize::from(last));
        }
        if ports > MOST_PORTS { Err(PolicyError::Ports(ports)) } else { Ok(policy) }
    }

    /// The same with hosts whose requests are read.
    ///
    /// # Errors
    /// Too many rules or ports.
    pub fn inspecting(self, inspected: Inspected) -> Result<Self, PolicyError> {
        let rules = self.allow.len() + self.deny.len() + self.hosts.len() + inspected.hosts().count();
        if rules > MOST_RULES {
            return Err(PolicyError::Rules(rules));
        }
        let policy = Policy { inspected, ..self };
        let ports = policy.ports();
        if ports.contains(&NAME_SERVICE.1) {
            return Err(PolicyError::NameService);
        }
        if ports.len() > MOST_PORTS + TOLD_PORTS.len() {
            return Err(PolicyError::Ports(ports.len()));
        }
        Ok(policy)
    }

    /// The hosts whose requests are read.
    #[must_use]
    pub fn inspected(&self) -> &Inspected {
        &self.inspected
    }

    /// The rules that allow.
    #[must_use]
    pub fn allowed(&self) -> &[Rule] {
        &self.allow
    }

    /// The rules that deny.
    #[must_use]
    pub fn denied(&self) -> &[Rule] {
        &self.deny
    }

    /// The ports at which the box has to be listened to.
    #[must_use]
    pub fn ports(&self) -> BTreeSet<u16> {
        let ranges = self.allow.iter().map(Rule::allowed_ports);
        let inspected = self.inspected.hosts().map(|(_, port)| port);
        let learned = self.learns.then_some(LEARNED_PORTS).into_iter().flatten();
        ranges.flat_map(|(first, last)| first..=last).chain(TOLD_PORTS).chain(inspected).chain(learned).collect()
    }

    /// Whether `name` exists as far as the box may know.
    pub(crate) fn knows(&self, name: &Name) -> Result<(), Refusal> {
        if let Some(rule) = self.deny.iter().find(|rule| rule.ports.is_none() && rule.matches_name(name)) {
            return Err(denied(rule));
        }
        let mut known = self.inspected.hosts();
        let is_allowed =
            self.learns || self.allow.iter().any(|rule| rule.matches_name(name)) || known.any(|(own, _)| own == name);
        is_allowed.then_some(()).ok_or_else(|| Refusal::because("no rule allows this name").unless(name))
    }

    /// What denies a name at `port`, whatever is asked of it.
    pub(crate) fn denial(&self, name: &Name, port: u16) -> Option<Refusal> {
        self.deny.iter().find(|rule| rule.matches_name(name) && rule.denies_port(port)).map(denied)
    }

    /// The rule that allows `target` at `port`.
    pub(crate) fn decide(&self, target: &Target, port: u16) -> Result<Cow<'_, Rule>, Refusal> {
        let matches = |rule: &Rule| match target {
            Target::Name(name) => rule.matches_name(name),
            Target::Address(address) => rule.matches_address(*address),
        };
        if let Some(rule) = self.deny.iter().find(|rule| matches(rule) && rule.denies_port(port)) {
            return Err(denied(rule));
        }
        let means = |rule: &&Rule| match (&rule.hosts, target) {
            (Hosts::Net(net), Target::Address(address)) => names(*net, *address),
            _ => true,
        };
        let allowing = self.allow.iter().filter(|rule| matches(rule) && rule.allows_port(port)).find(means);
        let learned = || {
            let hosts = match target {
                Target::Name(name) => Hosts::Name(name.clone()),
                Target::Address(address) if address::special(*address).is_some() || address::is_own(*address) => {
                    return None;
                }
                Target::Address(address) => Hosts::Net(IpNet::from(*address)),
            };
            self.learns.then_some(Cow::Owned(Rule { hosts, ports: Some((port, port)) }))
        };
        allowing.map(Cow::Borrowed).or_else(learned).ok_or_else(|| {
            let (host, why) = match target {
                Target::Name(name) if self.inspected.site(name, port).is_some() => (name.to_string(), HIDDEN),
                Target::Name(name) => (name.to_string(), "no rule allows this port of the name"),
                Target::Address(address @ IpAddr::V6(_)) => (format!("[{address}]"), "no rule names this address"),
                Target::Address(address) => (address.to_string(), "no rule names this address"),
            };
            Refusal::because(why).unless(format_args!("{host}:{port}"))
        })
    }

    /// Whether a name that is allowed at `port` may lead to `address`: one of the internet, or one that the user has named.
    pub(crate) fn judge(&self, name: &Name, address: IpAddr, port: u16) -> Result<(), Refusal> {
        if let Some(rule) = self.deny.iter().find(|rule| rule.matches_address(address) && rule.denies_port(port)) {
            return Err(denied(rule));
        }
        let where_it_is = match address::special(address) {
            Some((_, what)) => what,
            None if address::is_own(address) => "this host's own address",
            None => return Ok(()),
        };
        let is_named = self.allow.iter().any(|rule| match rule.hosts {
            Hosts::Net(net) => names(net, address) && rule.allows_port(port),
            Hosts::Name(_) | Hosts::Below(_) => false,
        });
        let is_pinned = self.hosts.iter().any(|entry| entry.name == *name && entry.address == address);
        if is_pinned || is_named {
            return Ok(());
        }
        let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
        let why = format!("the name leads to {address}, which is {where_it_is}");
        Err(Refusal::because(why).unless(format_args!("{host}:{port}")))
    }

    /// The addresses that `--add-host` gives a name; none where the name service decides.
    pub(crate) fn pinned(&self, name: &Name) -> Vec<IpAddr> {
        self.hosts.iter().filter(|entry| entry.name == *name).map(|entry| entry.address).collect()
    }
}

/// Whether a rule's network names `address`. This host's own addresses it names only one by one: whatever listens for the
/// local network would be reached there, by whoever only meant the others in it.
fn names(net: IpNet, address: IpAddr) -> bool {
    address::names(net, address) && (net == IpNet::from(address) || address.is_loopback() || !address::is_own(address))
}

fn target_of(host: &str) -> Option<Target> {
    match host.parse::<IpAddr>() {
        Ok(address) => Some(Target::Address(address)),
        Err(_) => Name::new(host).map(Target::Name),
    }
}

fn denied(rule: &Rule) -> Refusal {
    Refusal { why: format!("denied by --deny {rule}"), rule: Some(rule.to_string()), allow: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &[&str], deny: &[&str], hosts: &[&str]) -> Policy {
        let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Policy::new(rules(allow), rules(deny), hosts.iter().map(|text| text.parse().unwrap()).collect()).unwrap()
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn allows(policy: &Policy, host: &str, port: u16) -> bool {
        let target = host.parse().map_or_else(|_no_address| Target::Name(name(host)), Target::Address);
        policy.decide(&target, port).is_ok()
    }

    #[test]
    fn an_empty_list_allows_nothing() {
        let none = policy(&[], &[], &["a.org:127.0.0.1"]);
        assert!(none.knows(&name("a.org")).is_err() && !allows(&none, "a.org", 443) && !allows(&none, "1.1.1.1", 443));
        assert!(none.judge(&name("a.org"), "10.0.0.1".parse().unwrap(), 443).is_err());
    }

    #[test]
    fn a_rule_allows_what_it_says_and_a_denial_comes_first() {
        let some = policy(
            &["a.org", "a.org:8000-8001", "*.b.org:80", "10.0.0.0/8:22", "c.org"],
            &["x.b.org", "a.org:8001", "10.0.0.9"],
            &[],
        );
        for (host, port) in
            [("a.org", 443), ("a.org", 8000), ("y.b.org", 80), ("z.y.b.org", 80), ("10.0.0.1", 22), ("c.org", 443)]
        {
            assert!(allows(&some, host, port), "{host}:{port}");
        }
        for (host, port) in [
            ("a.org", 80),
            ("a.org", 8001),
            ("b.org", 80),
            ("x.b.org", 80),
            ("y.b.org", 443),
            ("10.0.0.9", 22),
            ("10.0.0.1", 443),
            ("11.0.0.1", 22),
            ("evil-a.org", 443),
        ] {
            assert!(!allows(&some, host, port), "{host}:{port}");
        }
        assert!(some.knows(&name("a.org")).is_ok() && some.knows(&name("q.b.org")).is_ok());
        assert_eq!(some.knows(&name("x.b.org")).unwrap_err().why, "denied by --deny x.b.org");
        assert_eq!(some.knows(&name("d.org")).unwrap_err().allow.as_deref(), Some("--allow d.org"));
        let refusal = some.decide(&Target::Name(name("a.org")), 80).unwrap_err();
        assert_eq!(refusal.allow.as_deref(), Some("--allow a.org:80"));
    }

    #[test]
    fn a_name_leads_to_the_internet_or_to_what_is_named() {
        let plain = policy(&["a.org"], &[], &[]);
        let judge =
            |policy: &Policy, address: &str| policy.judge(&name("a.org"), address.parse().unwrap(), 443).is_ok();
        assert!(judge(&plain, "1.1.1.1"));
        for address in
            ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:1.1.1.1", "fd00:a9e::5", "198.18.1.1"]
        {
            assert!(!judge(&plain, address), "{address}");
        }
        let pinned = policy(&["a.org"], &[], &["a.org:127.0.0.1", "b.org:127.0.0.2"]);
        assert!(judge(&pinned, "127.0.0.1") && !judge(&pinned, "127.0.0.2"));
        let named = policy(&["a.org", "10.0.0.0/8", "0.0.0.0/0"], &["10.0.0.9"], &[]);
        assert!(judge(&named, "10.0.0.1") && !judge(&named, "10.0.0.9") && !judge(&named, "127.0.0.1"));
        assert!(!judge(&policy(&["a.org", "10.0.0.0/8:80"], &[], &[]), "10.0.0.1"));
    }

    #[test]
    fn what_a_job_learns_is_the_internet_and_a_denial_still_comes_first() {
        let learning = policy(&["a.org"], &["b.org"], &[]).learning(true);
        for (host, port, lesson) in [
            ("a.org", 443, None),
            ("c.org", 443, Some("c.org")),
            ("a.org", 80, Some("a.org:80")),
            ("9.9.9.9", 22, Some("9.9.9.9:22")),
        ] {
            assert!(allows(&learning, host, port), "{host}");
            let learned = learning.lesson(host, port).map(|rule| rule.to_string());
            assert_eq!(learned.as_deref(), lesson, "{host}");
        }
        for host in ["b.org", "127.0.0.1", "10.0.0.1", "169.254.169.254"] {
            assert!(!allows(&learning, host, 443), "{host}");
        }
        assert!(learning.judge(&name("c.org"), "10.0.0.1".parse().unwrap(), 443).is_err());
        assert!(learning.knows(&name("d.org")).is_ok() && learning.knows(&name("b.org")).is_err());
        assert!(learning.ports().contains(&8080));
    }

    #[test]
    fn a_network_does_not_name_the_hosts_own_addresses() {
        // The address that this host would use to reach others; it may have none.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let Ok(own) = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr()) else { return };
        let own = own.ip();
        let around = format!("{}", IpNet::new(own, 24).unwrap().trunc());
        for (rule, is_named) in [(around, false), (own.to_string(), true)] {
            let rules = policy(&["a.org", &rule], &[], &[]);
            assert_eq!(allows(&rules, &own.to_string(), 443), is_named, "{rule}");
            assert_eq!(rules.judge(&name("a.org"), own, 443).is_ok(), is_named, "{rule}");
        }
    }

    #[test]
    fn ports_have_a_bound_however_they_are_written() {
        let new = |texts: &[&str]| {
            Policy::new(texts.iter().map(|text| text.parse().unwrap()).collect(), Vec::new(), Vec::new())
        };
        assert_eq!(new(&["a.org:54-65535"]).unwrap_err(), PolicyError::Ports(65482));
        assert_eq!(new(&["a.org:101-300", "b.org:200-357", "c.org:107"]).unwrap_err(), PolicyError::Ports(257));
        let most = new(&["a.org:101-300", "b.org:200-356", "c.org:107"]).unwrap();
        assert_eq!(most.ports().len(), 259);
        assert_eq!(new(&["a.org:50-60"]).unwrap_err(), PolicyError::NameService);
        assert_eq!(new(&[]).unwrap().ports().into_iter().collect::<Vec<_>>(), [22, 80, 443]);
        let many = vec!["a.org".parse().unwrap(); MOST_RULES + 1];
        assert!(Policy::new(many, Vec::new(), Vec::new()).is_err());
    }
}
