//! Which headers of a client reach the host, and which of the host's reach the client.
//!
//! Invariant: nothing that is about one connection is passed on to another, and of what says who sends a request only the
//! broker's own is left.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

/// About the connection, not the request (RFC 9110, 7.6.1), or about a proxy, which the broker is none of.
const OF_THE_CONNECTION: [&str; 10] = [
    "connection",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Who sends a request: with a key of its own a box could write to somebody else's account at the same host.
const OF_THE_SENDER: [&str; 3] = ["authorization", "cookie", "x-api-key"];

/// Ways to say another method than the one that was decided on.
const OF_THE_METHOD: [&str; 3] = ["x-http-method", "x-http-method-override", "x-method-override"];

/// Takes out what is about a connection, with what the connection itself names as such.
pub(super) fn forget_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // The length is read by then, and is what the body is sent with.
        .filter(|name| name != header::CONTENT_LENGTH)
        .collect();
    for name in named {
        headers.remove(name);
    }
    OF_THE_CONNECTION.iter().for_each(|name| drop(headers.remove(*name)));
}

/// About how many bytes these are on the wire.
pub(super) fn length(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum()
}

/// Takes out other ways to say the method.
pub(super) fn forget_methods(headers: &mut HeaderMap) {
    OF_THE_METHOD.iter().for_each(|name| drop(headers.remove(*name)));
}

/// Puts keys in the place of everything that says who sends the request.
pub(super) fn add_keys(headers: &mut HeaderMap, keys: Vec<(HeaderName, HeaderValue)>) {
    if !keys.is_empty() {
        OF_THE_SENDER.iter().for_each(|name| drop(headers.remove(*name)));
    }
    for (name, mut value) in keys {
        value.set_sensitive(true);
        // In the place of all of that name.
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let pair =
            |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap());
        let mut map = HeaderMap::new();
        lines.iter().map(pair).for_each(|(name, value)| {
            map.append(name, value);
        });
        map
    }

    #[test]
    fn what_is_about_the_connection_goes_no_further() {
        let mut map = headers(&[
            ("Connection", "keep-alive, X-Private, content-length"),
            ("connection", "x-other"),
            ("X-Private", "1"),
            ("X-Other", "2"),
            ("Upgrade", "h2c"),
            ("TE", "trailers"),
            ("Expect", "100-continue"),
            ("Content-Length", "3"),
            ("Accept", "*/*"),
        ]);
        forget_connection(&mut map);
        let left: Vec<&str> = map.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["content-length", "accept"]);
    }

    #[test]
    fn only_the_brokers_keys_are_left() {
        let sent = [
            ("X-Api-Key", "theirs"),
            ("x-api-key", "again"),
            ("Authorization", "Bearer theirs"),
            ("Cookie", "session=theirs"),
            ("Accept", "*/*"),
        ];
        let mut map = headers(&sent);
        add_keys(&mut map, vec![("x-api-key".parse().unwrap(), "ours".parse().unwrap())]);
        let mut left: Vec<String> =
            map.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(left, ["accept: */*", "x-api-key: ours"]);
        let mut map = headers(&sent);
        add_keys(&mut map, Vec::new());
        assert_eq!(map.len(), sent.len());
    }
}
