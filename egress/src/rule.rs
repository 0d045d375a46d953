//! One rule: `HOST[:PORT[-PORT]]`, where HOST is a name, `*.NAME`, an address or a network.
//!
//! Invariant: a rule that exists means what it says; what could be read in two ways is refused when it is written.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::name::Name;

/// Words that are no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Not a host.
    #[error("`{}` is no host: write a name (github.com), *.NAME, an address, a network (10.0.0.0/8) or [IPv6]", .0.escape_debug())]
    Host(String),
    /// A URL.
    #[error("`{}` is a URL: write its host alone", .0.escape_debug())]
    Url(String),
    /// A name in Unicode.
    #[error("`{}` has letters outside of ASCII: write the name as the name service has it (xn--…)", .0.escape_debug())]
    Unicode(String),
    /// Everything.
    #[error("`{}` would allow every name; give names, or --net host to go without the broker", .0.escape_debug())]
    Everything(String),
    /// Ports.
    #[error("`{}` is no port: write 443, or 8000-8010", .0.escape_debug())]
    Ports(String),
    /// A network with bits after its prefix.
    #[error("`{written}` is no network: did you mean {meant}?")]
    Bits {
        /// What was written.
        written: String,
        /// The network it lies in.
        meant: IpNet,
    },
    /// `--add-host`.
    #[error("`{}` is no NAME:ADDRESS", .0.escape_debug())]
    Entry(String),
}

/// Which hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hosts {
    /// One name.
    Name(Name),
    /// Every name below one.
    Below(Name),
    /// Addresses.
    Net(IpNet),
}

/// Which hosts at which ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    pub(crate) hosts: Hosts,
    /// First and last port; `None` where none was written.
    pub(crate) ports: Option<(u16, u16)>,
}

/// The port of an allowance that names none.
pub(crate) const DEFAULT_PORT: u16 = 443;

impl Rule {
    pub(crate) fn matches_name(&self, name: &Name) -> bool {
        match &self.hosts {
            Hosts::Name(own) => own == name,
            Hosts::Below(own) => name.is_below(own),
            Hosts::Net(_) => false,
        }
    }

    pub(crate) fn matches_address(&self, address: IpAddr) -> bool {
        matches!(&self.hosts, Hosts::Net(net) if net.contains(&address))
    }

    /// The ports that it allows.
    pub(crate) fn allowed_ports(&self) -> (u16, u16) {
        self.ports.unwrap_or((DEFAULT_PORT, DEFAULT_PORT))
    }

    pub(crate) fn allows_port(&self, port: u16) -> bool {
        let (first, last) = self.allowed_ports();
        (first..=last).contains(&port)
    }

    /// Whether, as a denial, it leaves nothing of what `other` allows.
    pub(crate) fn covers(&self, other: &Rule) -> bool {
        let hosts = match (&self.hosts, &other.hosts) {
            (Hosts::Name(own), Hosts::Name(name)) => own == name,
            (Hosts::Below(own), Hosts::Name(name)) => name.is_below(own),
            (Hosts::Below(own), Hosts::Below(name)) => name == own || name.is_below(own),
            (Hosts::Net(own), Hosts::Net(net)) => own.contains(net),
            _ => false,
        };
        let (first, last) = other.allowed_ports();
        hosts && self.ports.is_none_or(|(from, to)| from <= first && last <= to)
    }

    /// Whether it denies the port: without ports, it denies all.
    pub(crate) fn denies_port(&self, port: u16) -> bool {
        self.ports.is_none_or(|(first, last)| (first..=last).contains(&port))
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if text.contains("://") {
            return Err(RuleError::Url(text.to_owned()));
        }
        let (host, ports) = split(text)?;
        Ok(Rule { hosts: hosts(host, text)?, ports: ports.map(parse_ports).transpose()? })
    }
}

/// Host and ports. An IPv6 address without brackets has no ports.
fn split(text: &str) -> Result<(&str, Option<&str>), RuleError> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(|| RuleError::Host(text.to_owned()))?;
        return match rest.strip_prefix(':') {
            Some(ports) => Ok((host, Some(ports))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(RuleError::Host(text.to_owned())),
        };
    }
    match text.split_once(':') {
        Some((host, ports)) if !ports.contains(':') => Ok((host, Some(ports))),
        _ => Ok((text, None)),
    }
}

fn hosts(host: &str, text: &str) -> Result<Hosts, RuleError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return plain(IpNet::from(address), text);
    }
    if let Ok(net) = host.parse::<IpNet>() {
        if net.trunc() != net {
            return Err(RuleError::Bits { written: host.to_owned(), meant: net.trunc() });
        }
        return plain(net, text);
    }
    if text.starts_with('[') {
        return Err(RuleError::Host(text.to_owned()));
    }
    if matches!(host, "*" | "*." | "**") {
        return Err(RuleError::Everything(host.to_owned()));
    }
    if !host.is_ascii() {
        return Err(RuleError::Unicode(host.to_owned()));
    }
    let (is_below, name) = match host.strip_prefix("*.") {
        Some(name) => (true, name),
        None => (false, host),
    };
    let name = Name::new(name).ok_or_else(|| RuleError::Host(host.to_owned()))?;
    Ok(if is_below { Hosts::Below(name) } else { Hosts::Name(name) })
}

/// IPv4 in IPv6 clothes is another way to write an address that a rule could miss.
fn plain(net: IpNet, text: &str) -> Result<Hosts, RuleError> {
    match net {
        IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() => Err(RuleError::Host(text.to_owned())),
        net => Ok(Hosts::Net(net)),
    }
}

fn parse_ports(text: &str) -> Result<(u16, u16), RuleError> {
    let error = || RuleError::Ports(text.to_owned());
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| digits && *port > 0).ok_or_else(error)
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last { Err(error()) } else { Ok((first, last)) }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::Name(name) => write!(f, "{name}")?,
            Hosts::Below(name) => write!(f, "*.{name}")?,
            Hosts::Net(net) => {
                let is_single = net.prefix_len() == net.max_prefix_len();
                let text = if is_single { net.addr().to_string() } else { net.to_string() };
                if net.addr().is_ipv6() { write!(f, "[{text}]")? } else { f.write_str(&text)? }
            }
        }
        match self.ports {
            None => Ok(()),
            Some((first, last)) if first == last => write!(f, ":{first}"),
            Some((first, last)) => write!(f, ":{first}-{last}"),
        }
    }
}

impl TryFrom<String> for Rule {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> String {
        rule.to_string()
    }
}

/// `--add-host NAME:ADDRESS`: where a name is, as the host reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// The name.
    pub name: Name,
    /// Its address; named by the user, so it may be private.
    pub address: IpAddr,
}

impl FromStr for HostEntry {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let error = || RuleError::Entry(text.to_owned());
        let (name, address) = text.split_once(':').ok_or_else(error)?;
        let address = address.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(address);
        let address = address.parse::<IpAddr>().map_err(|_no_address| error())?;
        Ok(HostEntry { name: Name::new(name).ok_or_else(error)?, address: address.to_canonical() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rules_are_read_as_they_are_written() {
        for (text, shown, ports) in [
            ("GitHub.com", "github.com", (443, 443)),
            ("github.com.:22", "github.com:22", (22, 22)),
            ("*.example.org:8000-8010", "*.example.org:8000-8010", (8000, 8010)),
            ("10.0.0.5:5432", "10.0.0.5:5432", (5432, 5432)),
            ("10.0.0.0/8", "10.0.0.0/8", (443, 443)),
            ("fd00::1", "[fd00::1]", (443, 443)),
            ("[fd00::]:80", "[fd00::]:80", (80, 80)),
            ("[fd00::/8]:1-65535", "[fd00::/8]:1-65535", (1, 65535)),
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!((rule.to_string().as_str(), rule.allowed_ports()), (shown, ports));
            assert_eq!(shown.parse::<Rule>().unwrap(), rule);
        }
    }

    #[test]
    fn what_could_mean_something_else_is_refused() {
        let what = |text: &str| text.parse::<Rule>().unwrap_err();
        assert!(matches!(what("https://github.com/x"), RuleError::Url(_)));
        assert!(matches!(what("*"), RuleError::Everything(_)));
        assert!(matches!(what("bücher.example"), RuleError::Unicode(_)));
        assert!(matches!(what("10.1.0.0/8"), RuleError::Bits { .. }));
        for bad in
            ["", ":443", "a b", "a\0b", "*.*.org", "a.*.org", "*org", "::ffff:10.0.0.1", "[::1", "[a]:1", "127.1"]
        {
            assert!(matches!(what(bad), RuleError::Host(_)), "{bad}");
        }
        for bad in ["a:", "a:0", "a:65536", "a:9-8", "a:-1", "a:+1", "a:1-", "a:https"] {
            assert!(matches!(what(bad), RuleError::Ports(_)), "{bad}");
        }
        assert!(matches!("db".parse::<HostEntry>().unwrap_err(), RuleError::Entry(_)));
        assert_eq!("db:[::1]".parse::<HostEntry>().unwrap().address, "db:::1".parse::<HostEntry>().unwrap().address);
    }

    proptest! {
        #[test]
        fn a_rule_that_is_printed_is_the_same_rule(text in "[*.a-c0-9:/\\[\\]-]{0,24}") {
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
            }
        }
    }
}
