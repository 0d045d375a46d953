//! `WWW-Authenticate`: what a registry wants before it answers (RFC 9110, section 11.6.1).
//!
//! Invariant: whatever a registry sends, parsing ends, holds no more than the header, and never panics.

/// More than any registry sends; each may be answered only once anyway.
const CHALLENGES: usize = 16;

/// One challenge: `Bearer realm="…",service="…"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// In lower case.
    pub(super) scheme: String,
    params: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter, whose name is given in lower case; of repeated ones the first.
    pub(super) fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Text that is no list of challenges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChallengeError {
    #[error("a challenge has no scheme")]
    Scheme,
    #[error("a quoted string does not end")]
    Quote,
    #[error("a parameter has no value")]
    Value,
    #[error("something else than a comma stands between two challenges")]
    Comma,
    #[error("it holds more than {CHALLENGES} challenges")]
    Many,
}

/// The challenges of one header, in order.
pub(super) fn parse(untrusted_header: &str) -> Result<Vec<Challenge>, ChallengeError> {
    let mut text = Text(untrusted_header);
    let mut challenges = Vec::new();
    loop {
        text.skip_commas();
        if text.0.is_empty() {
            return Ok(challenges);
        }
        if challenges.len() == CHALLENGES {
            return Err(ChallengeError::Many);
        }
        let scheme = text.token().ok_or(ChallengeError::Scheme)?.to_ascii_lowercase();
        let params = if text.skip_spaces() { text.params()? } else { Vec::new() };
        if !text.0.is_empty() && !text.0.starts_with(',') {
            return Err(ChallengeError::Comma);
        }
        challenges.push(Challenge { scheme, params });
    }
}

/// What is left of the header.
struct Text<'t>(&'t str);

impl<'t> Text<'t> {
    fn skip_spaces(&mut self) -> bool {
        let rest = self.0.trim_start_matches([' ', '\t']);
        let skipped = rest.len() < self.0.len();
        self.0 = rest;
        skipped
    }

    fn skip_commas(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t', ',']);
    }

    fn token(&mut self) -> Option<&'t str> {
        let end = self.0.find(|c: char| !is_token(c)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        (!token.is_empty()).then_some(token)
    }

    /// Passes over a token68, which no scheme we speak has: `Negotiate YII…==`.
    fn skip_token68(&mut self) {
        let rest = self.0.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c));
        let rest = rest.trim_start_matches('=').trim_start_matches([' ', '\t']);
        if rest.is_empty() || rest.starts_with(',') {
            self.0 = rest;
        }
    }

    /// Parameters up to the next challenge.
    fn params(&mut self) -> Result<Vec<(String, String)>, ChallengeError> {
        self.skip_token68();
        let mut params = Vec::new();
        loop {
            let before = self.0;
            self.skip_commas();
            let name = self.token();
            self.skip_spaces();
            let (Some(name), Some(rest)) = (name, self.0.strip_prefix('=')) else {
                // A word without `=` is the scheme of the next challenge.
                self.0 = before;
                return Ok(params);
            };
            self.0 = rest;
            self.skip_spaces();
            let value = match self.0.strip_prefix('"') {
                Some(rest) => {
                    self.0 = rest;
                    self.quoted()?
                }
                None => self.token().ok_or(ChallengeError::Value)?.to_owned(),
            };
            params.push((name.to_ascii_lowercase(), value));
            self.skip_spaces();
            if !self.0.starts_with(',') {
                return Ok(params);
            }
        }
    }

    /// The rest of a quoted string, whose first quote is behind us.
    fn quoted(&mut self) -> Result<String, ChallengeError> {
        let mut value = String::new();
        let mut chars = self.0.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.0 = &self.0[at + 1..];
                    return Ok(value);
                }
                '\\' => value.push(chars.next().ok_or(ChallengeError::Quote)?.1),
                c => value.push(c),
            }
        }
        Err(ChallengeError::Quote)
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_registries_send() {
        let hub = "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",\
                   scope=\"repository:library/debian:pull\"";
        let [bearer] = &parse(hub).unwrap()[..] else { panic!("one challenge") };
        assert_eq!(bearer.scheme, "bearer");
        assert_eq!(bearer.param("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(bearer.param("service"), Some("registry.docker.io"));
        assert_eq!(bearer.param("scope"), Some("repository:library/debian:pull"));
        assert_eq!(bearer.param("error"), None);
        let [basic] = &parse("Basic realm=\"Registry Realm\"").unwrap()[..] else { panic!("one challenge") };
        assert_eq!((basic.scheme.as_str(), basic.param("realm")), ("basic", Some("Registry Realm")));
    }

    #[test]
    fn several_challenges_in_every_spelling() {
        for (header, want) in [
            ("", &[][..]),
            (" , ,", &[]),
            ("Basic", &[("basic", "")]),
            (
                "BASIC realm=x, bearer Realm = \"y\" , service=z",
                &[("basic", "realm=x"), ("bearer", "realm=y;service=z")],
            ),
            ("Negotiate, Basic realm=\"a, b=c\"", &[("negotiate", ""), ("basic", "realm=a, b=c")]),
            ("Negotiate YII+/a==, Basic a=b", &[("negotiate", ""), ("basic", "a=b")]),
            ("Basic realm=\"a\\\"b\\\\\"", &[("basic", "realm=a\"b\\")]),
            ("Basic realm=\"\", charset=UTF-8", &[("basic", "realm=;charset=UTF-8")]),
            ("Bearer , , realm=x", &[("bearer", "realm=x")]),
        ] {
            let shown = parse(header).unwrap().into_iter().map(|challenge| {
                let params: Vec<_> = challenge.params.iter().map(|(name, value)| format!("{name}={value}")).collect();
                (challenge.scheme, params.join(";"))
            });
            let want: Vec<_> = want.iter().map(|(scheme, params)| (scheme.to_string(), params.to_string())).collect();
            assert_eq!(shown.collect::<Vec<_>>(), want, "{header}");
        }
    }

    #[test]
    fn what_is_no_challenge() {
        for (header, want) in [
            ("\"x\"", ChallengeError::Scheme),
            ("Bearer realm=\"x", ChallengeError::Quote),
            ("Bearer realm=\"x\\", ChallengeError::Quote),
            ("Bearer realm==\"x\"", ChallengeError::Value),
            ("Bearer realm=\"x\" service=\"y\"", ChallengeError::Comma),
            ("Bearer (x)", ChallengeError::Comma),
            (&"a,".repeat(CHALLENGES + 1), ChallengeError::Many),
        ] {
            assert_eq!(parse(header), Err(want), "{header}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(header in "([A-Za-z]{1,3}|[ ,=\"\\\\]|\\PC){0,40}") {
            if let Ok(challenges) = parse(&header) {
                prop_assert!(challenges.len() <= CHALLENGES);
            }
        }

        #[test]
        fn what_is_written_is_read(
            written in proptest::collection::vec(("[a-z]{1,8}", proptest::collection::vec(("[a-z]{1,8}", "\\PC{0,12}"), 1..4)), 0..5),
        ) {
            let quote = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"");
            let header: Vec<_> = written.iter().map(|(scheme, params)| {
                let params: Vec<_> = params.iter().map(|(name, value)| format!("{name}=\"{}\"", quote(value))).collect();
                format!("{scheme} {}", params.join(", "))
            }).collect();
            let read = parse(&header.join(", ")).unwrap();
            let read: Vec<_> = read.into_iter().map(|challenge| (challenge.scheme, challenge.params)).collect();
            prop_assert_eq!(read, written);
        }
    }
}
