//! The network of a box: which names and addresses it may reach, and the broker, the only way it reaches them.
//!
//! ```text
//! name, rule, sets, policy,
//! limits                     what is allowed: words of the user, decided on without any I/O
//! names, dns                 the name service of the box: an allowed name gets an address that means it
//! hello, request             what a client says first: does it ask for the name it was connected for?
//! proxy                      what a client says to the proxy that a box may have
//! address                    where no name may lead
//! credential, url, inspected hosts whose requests are read: keys that are added, rules for methods and paths
//! told, order                what the broker tells the supervisor about it, and what it is told
//! broker                     the process: accepts, decides, dials, passes on
//! ```
//!
//! Invariant: what is not allowed is refused: an empty policy allows nothing, a name that is no name is no name of a rule,
//! and nothing leaves the host on behalf of a box, a question to a name server included, before a rule has allowed it.

mod address;
mod broker;
mod credential;
mod dns;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod hello;
mod inspected;
mod limits;
mod name;
mod names;
mod order;
mod policy;
mod proxy;
mod request;
mod rule;
mod sets;
mod told;
mod url;

pub use broker::{Key, run};
pub use credential::{Credential, CredentialError, How, MAX_KEY, key};
pub use inspected::Inspected;
pub use limits::{LimitError, Limits};
pub use name::Name;
pub use names::{OWN_V4, OWN_V6};
pub use order::{Change, Order, Program, Ruling};
pub use policy::{NAME_SERVICE, Policy, PolicyError};
pub use proxy::PROXY;
pub use rule::{HostEntry, Rule, RuleError};
pub use sets::{SetNames, set};
pub use told::{Request, Told, Totals, Verdict};
pub use url::{UrlRule, UrlRuleError};
