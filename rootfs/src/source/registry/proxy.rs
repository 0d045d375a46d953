//! Which proxy a host is reached through, as curl decides it, but that loopback is never asked of a proxy: a registry
//! there is this machine's.

use std::fmt;
use std::net::IpAddr;

/// Proxies by what is fetched through them, as `http_proxy` and its like give them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `http:`.
    pub http: Option<String>,
    /// For `https:`.
    pub https: Option<String>,
    /// Hosts, domains and networks that are reached without one.
    pub none: String,
}

/// An address may hold a password.
impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |proxy: &Option<String>| proxy.as_ref().map(|_| "…");
        let mut shown = f.debug_struct("Proxies");
        shown.field("http", &set(&self.http)).field("https", &set(&self.https)).field("none", &self.none).finish()
    }
}

impl Proxies {
    /// The address of the proxy for `host` (no port, IPv6 in brackets).
    pub(super) fn of(&self, https: bool, host: &str) -> Option<&str> {
        let proxy = if https { &self.https } else { &self.http };
        let proxy = proxy.as_deref().filter(|proxy| !proxy.is_empty())?;
        (!is_loopback(host) && !self.is_excepted(host)).then_some(proxy)
    }

    fn is_excepted(&self, host: &str) -> bool {
        let host = bare(host).trim_end_matches('.').to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        let entries = self.none.split([',', ' ', '\t']).filter(|entry| !entry.is_empty());
        entries.map(str::to_ascii_lowercase).any(|entry| match address {
            _ if entry == "*" => true,
            Some(address) => in_network(address, &entry),
            None => {
                let domain = entry.trim_start_matches('.').trim_end_matches('.');
                let before = host.strip_suffix(domain).filter(|_| !domain.is_empty());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }
        })
    }
}

/// Whether `host` (no port) is this machine, by its name alone: nobody's name service is believed about that.
pub(super) fn is_loopback(host: &str) -> bool {
    let host = bare(host);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// `ADDRESS` or `ADDRESS/BITS`.
fn in_network(address: IpAddr, network: &str) -> bool {
    let (base, bits) = network.split_once('/').map_or((network, None), |(base, bits)| (base, Some(bits)));
    let Ok(base) = bare(base).parse::<IpAddr>() else { return false };
    let (base, address, width) = match (base, address) {
        // Both to the left of 128 bits.
        (IpAddr::V4(base), IpAddr::V4(address)) => {
            (u128::from(base.to_bits()) << 96, u128::from(address.to_bits()) << 96, 32)
        }
        (IpAddr::V6(base), IpAddr::V6(address)) => (base.to_bits(), address.to_bits(), 128),
        _ => return false,
    };
    match bits.map_or(Ok(width), str::parse::<u32>) {
        Ok(0) => true,
        Ok(bits) if bits <= width => (base ^ address) >> (128 - bits) == 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_excepted_as_curl_does_it() {
        for (none, host, excepted) in [
            ("", "a.example", false),
            ("*", "a.example", true),
            ("example", "a.example", true),
            (".example", "a.example", true),
            (".a.example", "a.example", true),
            ("b.example, A.Example", "a.example.", true),
            ("a.example", "aa.example", false),
            (".", "a.example", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8 192.168.0.1", "11.1.2.3", false),
            ("192.168.0.1", "192.168.0.1", true),
            ("0.0.0.0/0", "192.168.0.1", true),
            ("0.0.0.0/33", "192.168.0.1", false),
            ("fd00::/16", "[fd00::1]", true),
            ("fd00::/16", "[fd01::1]", false),
            ("1.2.3", "0.1.2.3", false),
        ] {
            let proxies = Proxies { http: None, https: Some("http://proxy:3128".into()), none: none.into() };
            assert_eq!(proxies.of(true, host).is_none(), excepted, "{none} {host}");
            assert_eq!(proxies.of(false, host), None);
        }
    }

    #[test]
    fn loopback_is_never_asked_of_a_proxy() {
        let proxies = Proxies { http: Some("http://p".into()), https: Some("http://p".into()), none: String::new() };
        for (host, direct) in [
            ("localhost", true),
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("[::1]", true),
            ("localhost.example", false),
            ("128.0.0.1", false),
        ] {
            assert_eq!(proxies.of(false, host).is_none(), direct, "{host}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let proxies = Proxies { https: Some("http://u:secret@p".into()), ..Proxies::default() };
        assert!(!format!("{proxies:?}").contains("secret"));
    }
}
