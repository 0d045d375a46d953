//! Which address of the box means which name.
//!
//! Invariant: an address means one name for as long as the job runs, and only names that a rule allows are issued one; how
//! many there can be has a bound, for `*.example.org` allows more than there is memory for.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::name::Name;

/// The box's own IPv4 address.
pub const OWN_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// The box's own IPv6 address.
pub const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xa9e, 0, 0, 0, 0, 0, 1);

/// The networks whose addresses stand for names: one for benchmarks (RFC 2544), and one of nobody's.
const NETWORK_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 15);
const NETWORK_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd00, 0xa9e, 0, 0, 0, 0, 0, 0), 64);

/// The first issued number; those below are the box's own and room for other services.
const FIRST: u32 = 256;

/// Names that a job can be issued.
const MOST: u32 = 4096;

/// The names that were issued.
#[derive(Debug, Default)]
pub(crate) struct Issued {
    numbers: HashMap<Name, u32>,
    names: Vec<Name>,
}

/// The addresses of a name inside the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Issued {
    /// The addresses of a name; `None` when there are too many names.
    pub(crate) fn issue(&mut self, name: &Name) -> Option<Addresses> {
        let number = match self.numbers.get(name) {
            Some(number) => *number,
            None => {
                let number = u32::try_from(self.names.len()).ok().filter(|number| *number < MOST)?;
                self.numbers.insert(name.clone(), number);
                self.names.push(name.clone());
                number
            }
        };
        let number = number + FIRST;
        let v4 = Ipv4Addr::from(u32::from(NETWORK_V4.0) + number);
        let v6 = Ipv6Addr::from(u128::from(NETWORK_V6.0) + u128::from(number));
        Some(Addresses { v4, v6 })
    }

    /// The name that an address means.
    pub(crate) fn meaning(&self, address: IpAddr) -> Option<&Name> {
        let number = match address {
            IpAddr::V4(v4) => u32::from(v4).checked_sub(u32::from(NETWORK_V4.0))?,
            IpAddr::V6(v6) => u32::try_from(u128::from(v6).checked_sub(u128::from(NETWORK_V6.0))?).ok()?,
        };
        self.names.get(usize::try_from(number.checked_sub(FIRST)?).ok()?)
    }
}

/// Whether an address is one of those that stand for names.
pub(crate) fn stands_for_a_name(address: IpAddr) -> bool {
    let (v4, v6) = (Ipv4Net::new(NETWORK_V4.0, NETWORK_V4.1), Ipv6Net::new(NETWORK_V6.0, NETWORK_V6.1));
    v4.is_ok_and(|net| IpNet::V4(net).contains(&address)) || v6.is_ok_and(|net| IpNet::V6(net).contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_addresses_and_they_mean_it() {
        let mut issued = Issued::default();
        let name = |number: u32| Name::new(&format!("n{number}.example.org")).unwrap();
        for number in 0..MOST {
            let addresses = issued.issue(&name(number)).unwrap();
            assert_eq!(issued.issue(&name(number)), Some(addresses));
            for address in [IpAddr::V4(addresses.v4), IpAddr::V6(addresses.v6)] {
                assert!(stands_for_a_name(address));
                assert_eq!(issued.meaning(address), Some(&name(number)));
            }
        }
        assert_eq!(issued.issue(&name(MOST)), None);
        assert_eq!(issued.issue(&name(0)).unwrap().v4, Ipv4Addr::new(198, 18, 1, 0));
        for strange in [
            "127.0.0.1",
            "198.18.0.1",
            "198.18.0.255",
            "198.18.17.0",
            "255.255.255.255",
            "::",
            "fd00:a9e::1",
            "fd00:a9e:0:1::100",
            "ffff::",
        ] {
            assert_eq!(issued.meaning(strange.parse().unwrap()), None, "{strange}");
        }
    }
}
