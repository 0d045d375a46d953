//! A key that changes while its job runs: for the broker, which adds the new one from then on, and for what is kept of the
//! job, which is cleaned of both.
//!
//! Invariant: the new value is looked for in the output before the broker has it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use agentd_egress::{Key, MAX_KEY};
use zeroize::Zeroizing;

use super::control;
use super::redact::Redactor;
use super::{SuperviseError, Supervisor, To};

impl Supervisor<'_> {
    /// Puts what comes through the pipe in the place of a key; the inner error is for whoever has asked.
    pub(super) fn renew(&mut self, secret: &str, pipe: Option<OwnedFd>) -> Result<Result<(), String>, SuperviseError> {
        let known = self.plan.reach.iter().flat_map(|policy| &policy.inspected().credentials);
        let Some(known) = known.into_iter().find(|credential| credential.secret == secret) else {
            return Ok(Err(format!(
                "{} is no secret that the broker adds to requests (--secret NAME@HOST)",
                secret.escape_debug()
            )));
        };
        let name = known.secret.clone();
        let value = match control::pipe(pipe).and_then(read) {
            Ok(value) => value,
            Err(why) => return Ok(Err(why.into())),
        };
        let redactor = match &self.redactor {
            Some(redactor) => redactor.and(&value).map(Some),
            None => Redactor::new([&value[..]]),
        };
        self.redactor = redactor.map_err(io::Error::other).to("look for a secret")?;
        if let Some(redactor) = &self.redactor {
            self.streams.redact(redactor);
            self.denials.redact(redactor);
        }
        let told = self.network.as_mut().is_some_and(|broker| broker.renew(&Key { name, value }));
        Ok(told.then_some(()).ok_or_else(|| "its network broker has ended".into()))
    }
}

/// A whole value. Whoever asks has written it before.
fn read(pipe: OwnedFd) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let mut value = Zeroizing::new(Vec::with_capacity(MAX_KEY + 64));
    let most = u64::try_from(MAX_KEY + 1).unwrap_or(u64::MAX);
    File::from(pipe).take(most).read_to_end(&mut value).map_err(|_error| "its value did not come with it")?;
    let length = agentd_egress::key(&value).map_err(|_problem| "its value is no key")?.len();
    value.truncate(length);
    Ok(value)
}
