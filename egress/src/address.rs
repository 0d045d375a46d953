//! Addresses that no name leads to unless a rule names them: the host's own network, and whatever is not the internet.
//!
//! The answer of a name server is the network's word, not the user's: a name that is allowed may point at 127.0.0.1, at the
//! metadata service of a cloud or at a printer (DNS rebinding). Invariant: an address is refused unless it is known to be
//! one of the internet.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::io::Errno;

/// IPv4 networks that are not the internet (IANA's special-purpose registry), and what they are.
const SPECIAL_V4: &[(Ipv4Addr, u8, &str)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8, "this network"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "a private network"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "a provider's own network"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "the host itself"),
    // Azure's WireServer: not in the registry, and answers only its own guests.
    (Ipv4Addr::new(168, 63, 129, 16), 32, "a cloud's metadata service"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local (a cloud's metadata service)"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "a private network"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "for protocols"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "for documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "a private network"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "for benchmarks, and the box's own"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "for documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "for documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved, or broadcast"),
];

/// The same for IPv6, within and beside 2000::/3, the only part of it that is the internet.
const SPECIAL_V6: &[(Ipv6Addr, u8, &str)] = &[
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 1), 128, "the host itself"),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, "IPv4 in IPv6"),
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 32, "NAT64"),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "for protocols (Teredo among them)"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "for documentation"),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "6to4"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "for documentation"),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "a private network"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "link-local"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "multicast"),
];

/// Why an address is not of the internet, and the network to which that applies; `None` for one that is.
pub(crate) fn special(address: IpAddr) -> Option<(IpNet, &'static str)> {
    match address {
        IpAddr::V4(v4) => SPECIAL_V4.iter().find_map(|(network, length, what)| {
            let network = Ipv4Net::new(*network, *length).ok()?;
            network.contains(&v4).then_some((IpNet::V4(network), *what))
        }),
        IpAddr::V6(v6) => {
            let known = SPECIAL_V6.iter().find_map(|(network, length, what)| {
                let network = Ipv6Net::new(*network, *length).ok()?;
                network.contains(&v6).then_some((IpNet::V6(network), *what))
            });
            let is_internet = v6.segments()[0] & 0xe000 == 0x2000;
            known.or_else(|| (!is_internet).then(|| (IpNet::from(address), "no address of the internet")))
        }
    }
}

/// Whether a rule's network names `address`: a wide one (0.0.0.0/0) does not name what is special within it.
pub(crate) fn names(net: IpNet, address: IpAddr) -> bool {
    net.contains(&address) && special(address).is_none_or(|(special, _)| special.contains(&net))
}

/// Whether `address` is this host's own: the kernel binds sockets to no other, and says so. Where it does not, for want of
/// descriptors or of rights, it may be.
pub(crate) fn is_own(address: IpAddr) -> bool {
    !UdpSocket::bind((address, 0)).is_err_and(|error| is_elsewhere(&error))
}

/// Whether a socket could not be bound because the host has no such address, or none of its family at all.
fn is_elsewhere(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_internet_is_known() {
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.254",
            "168.63.129.16",
            "169.254.169.254",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.19.255.255",
            "224.0.0.251",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:8.8.8.8",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
            "100::1",
        ] {
            assert!(special(text.parse().unwrap()).is_some(), "{text}");
        }
        for text in
            ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1", "2001:4860::8888"]
        {
            assert_eq!(special(text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn a_wide_rule_names_nothing_special() {
        let names = |net: &str, address: &str| names(net.parse().unwrap(), address.parse().unwrap());
        assert!(names("0.0.0.0/0", "8.8.8.8") && names("10.0.0.0/8", "10.1.1.1") && names("10.1.0.0/16", "10.1.1.1"));
        assert!(names("127.0.0.1/32", "127.0.0.1") && names("::1/128", "::1") && names("fd00::/8", "fd00::1"));
        for address in ["127.0.0.1", "10.0.0.1", "169.254.169.254"] {
            assert!(!names("0.0.0.0/0", address), "{address}");
        }
        assert!(!names("::/0", "::1") && !names("fe00::/7", "fe80::1") && !names("8.0.0.0/5", "10.0.0.1"));
    }

    #[test]
    fn own_addresses_are_own() {
        assert!(is_own("127.0.0.1".parse().unwrap()) && !is_own("1.1.1.1".parse().unwrap()));
    }

    #[test]
    fn an_address_that_nobody_says_is_elsewhere_counts_as_own() {
        for unclear in [Errno::MFILE, Errno::NOBUFS, Errno::PERM, Errno::ACCESS, Errno::ADDRINUSE, Errno::INVAL] {
            assert!(!is_elsewhere(&unclear.into()), "{unclear:?}");
        }
        assert!(is_elsewhere(&Errno::ADDRNOTAVAIL.into()) && is_elsewhere(&Errno::AFNOSUPPORT.into()));
    }
}
