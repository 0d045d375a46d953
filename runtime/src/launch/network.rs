//! From rules to a box with a broker: which sockets and addresses it has, what its resolver is told.
//!
//! Invariant: without a rule that allows something there is nothing of this: no socket, no address, no process.

use std::net::{Ipv4Addr, Ipv6Addr};

use agentd_egress::{HostEntry, Inspected, NAME_SERVICE, OWN_V4, OWN_V6, Policy, PolicyError, Rule};
use agentd_init::plan::{Doors, Net};

/// What `--allow`, `--deny` and `--add-host` say.
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
}

/// The policy, where something is allowed.
///
/// # Errors
/// [`PolicyError`].
pub fn policy(asked: AskedNetwork) -> Result<Option<Policy>, PolicyError> {
    let AskedNetwork { allow, deny, hosts, inspected } = asked;
    if allow.is_empty() && inspected.is_empty() {
        return Ok(None);
    }
    Policy::new(allow, deny, hosts)?.inspecting(inspected).map(Some)
}

/// What leads from the box to the broker.
#[must_use]
pub fn doors(policy: &Policy) -> Doors {
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
    }
}

/// The box's /etc/resolv.conf.
pub(super) fn resolv_conf() -> String {
    let server = NAME_SERVICE.0;
    format!("# names that no rule of agentd run --allow names do not exist here\nnameserver {server}\n")
}
