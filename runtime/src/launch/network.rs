//! From rules to a box with a broker: which sockets and addresses it has, what its resolver is told.
//!
//! Invariant: without a rule that allows something there is nothing of this: no socket, no address, no process.

use agentd_egress::{HostEntry, NAME_SERVICE, OWN_V4, OWN_V6, Policy, PolicyError, Rule};
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
}

/// The policy, where something is allowed.
///
/// # Errors
/// [`PolicyError`].
pub fn policy(asked: AskedNetwork) -> Result<Option<Policy>, PolicyError> {
    let AskedNetwork { allow, deny, hosts } = asked;
    if allow.is_empty() { Ok(None) } else { Policy::new(allow, deny, hosts).map(Some) }
}

/// What leads from the box to the broker.
#[must_use]
pub fn doors(policy: &Policy) -> Doors {
    let net = |net: agentd_egress::IpNet| Net { address: net.addr(), prefix: net.prefix_len() };
    Doors {
        addresses: vec![
            Net { address: OWN_V4.0.into(), prefix: OWN_V4.1 },
            // Alone in its network: the kernel would make no more of it local.
            Net { address: OWN_V6.into(), prefix: 128 },
        ],
        local: policy.local().into_iter().map(net).collect(),
        ports: policy.ports().into_iter().collect(),
        names: NAME_SERVICE,
    }
}

/// The box's /etc/resolv.conf.
pub(super) fn resolv_conf() -> String {
    let server = NAME_SERVICE.0;
    format!("# names that no rule of agentd run --allow names do not exist here\nnameserver {server}\n")
}
