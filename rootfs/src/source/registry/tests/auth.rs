//! Authentication: who gets which credentials, and who does not.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;

pub(super) const BASIC: &str = "Basic dXNlcjpzZWNyZXQ="; // user:secret

/// Settings with `entry` as what is stored for `registry`.
pub(super) fn stored(dir: &tempfile::TempDir, registry: &str, entry: &serde_json::Value) -> RegistryConfig {
    let path = dir.path().join("auth.json");
    std::fs::write(&path, json!({ "auths": { registry: entry } }).to_string()).unwrap();
    RegistryConfig { auth_files: vec![path], ..RegistryConfig::default() }
}

pub(super) fn password() -> serde_json::Value {
    json!({ "auth": STANDARD.encode("user:secret") })
}

/// A registry that wants `Bearer TOKEN` of its own token service, and the token service.
fn bearer(image: Image, tokens: &'static [&'static str]) -> Server {
    let issued = AtomicUsize::new(0);
    Server::start(move |asked| {
        let issued_so_far = issued.load(Ordering::SeqCst);
        if asked.target.starts_with("/token") {
            let token = tokens[issued_so_far.min(tokens.len() - 1)];
            issued.store(issued_so_far + 1, Ordering::SeqCst);
            return reply(200, json!({ "token": token, "expires_in": 300 }).to_string());
        }
        // A token is good for two requests.
        let good = tokens[(issued_so_far.max(1) - 1).min(tokens.len() - 1)];
        if asked.header("authorization") != Some(&format!("Bearer {good}")) {
            let host = asked.header("host").unwrap();
            let challenge =
                format!("Bearer realm=\"http://{host}/token?x=y\",service=\"the service\",scope=\"any:all:push\"");
            return reply(401, r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#).header("www-authenticate", challenge);
        }
        image.answer(asked)
    })
}

#[test]
fn an_anonymous_token_is_fetched_once_for_pulling_this_repository() {
    let server = bearer(Image::new(10), &["t1"]);
    manifest(&server, &RegistryConfig::default()).unwrap();
    let asked = server.asked();
    let targets = server.targets();
    assert_eq!(targets[1], "/token?x=y&scope=repository:a/b:pull&service=the%20service");
    assert_eq!(asked.len(), 4, "{targets:?}");
    assert_eq!(asked[1].header("authorization"), None);
    assert_eq!(asked[3].header("authorization"), Some("Bearer t1"));
}

#[test]
fn a_password_goes_to_the_token_service_and_not_to_the_registry() {
    let server = bearer(Image::new(10), &["t1"]);
    let dir = tempfile::tempdir().unwrap();
    manifest(&server, &stored(&dir, &server.host(), &password())).unwrap();
    let asked = server.asked();
    assert_eq!(asked[1].target, "/token?x=y&scope=repository:a/b:pull&service=the%20service&account=user");
    let with_password: Vec<_> = asked.iter().filter(|asked| asked.header("authorization") == Some(BASIC)).collect();
    assert_eq!(with_password.len(), 1);
    assert!(with_password[0].target.starts_with("/token"));
}

#[test]
fn an_identity_token_is_exchanged() {
    let server = bearer(Image::new(10), &["t1"]);
    let dir = tempfile::tempdir().unwrap();
    manifest(&server, &stored(&dir, &server.host(), &json!({ "identitytoken": "id&1", "auth": "Og==" }))).unwrap();
    let asked = &server.asked()[1];
    assert_eq!(asked.method, "POST");
    for word in ["grant_type=refresh_token", "refresh_token=id%261", "client_id=agentd", "service=the"] {
        assert!(asked.body.contains(word), "{}", asked.body);
    }
}

#[test]
fn a_token_that_is_refused_half_way_is_renewed_once_for_all_layers() {
    let image = Image::new(3 << 20);
    let serves = image.clone();
    let issued = AtomicUsize::new(0);
    let cuts = AtomicUsize::new(0);
    let server = Server::start(move |asked| {
        if asked.target.starts_with("/token") {
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return reply(200, json!({ "access_token": format!("t{number}") }).to_string());
        }
        // After the first bytes of the layer the first token has run out.
        let good = if cuts.load(Ordering::SeqCst) == 0 { "Bearer t1" } else { "Bearer t2" };
        if asked.header("authorization") != Some(good) {
            let challenge = format!("Bearer realm=\"http://{}/token\"", asked.header("host").unwrap());
            return reply(401, "").header("www-authenticate", challenge);
        }
        let answer = serves.answer(asked);
        if serves.is_layer(asked) && cuts.fetch_add(1, Ordering::SeqCst) == 0 {
            return answer.cut(1 << 20, Then::Close);
        }
        answer
    });
    let name = format!("{}/a/b:tag", server.host());
    let bytes = with(&name, &RegistryConfig::default(), |registry| {
        registry.manifest(&Limits::default()).unwrap();
        layer(registry, &image).unwrap()
    });
    assert_eq!(bytes.unwrap(), *image.layer);
    let tokens = server.targets().iter().filter(|target| target.starts_with("/token")).count();
    assert_eq!(tokens, 2);
}

#[test]
fn basic_is_answered_once_and_only_when_asked() {
    let image = Image::new(10);
    let server = Server::start(move |asked| match asked.header("authorization") {
        Some(BASIC) => image.answer(asked),
        _ => reply(401, "").header("www-authenticate", "Negotiate").header("www-authenticate", "Basic realm=\"r\""),
    });
    let dir = tempfile::tempdir().unwrap();
    manifest(&server, &stored(&dir, &server.host(), &password())).unwrap();
    let sent: Vec<_> = server.asked().iter().map(|asked| asked.header("authorization").map(str::to_owned)).collect();
    assert_eq!(sent, [None, Some(BASIC.to_owned()), Some(BASIC.to_owned())]);

    let before = server.asked().len();
    let wrong = stored(&dir, &server.host(), &json!({ "username": "user", "password": "wrong-secret" }));
    let message = message(&manifest(&server, &wrong).unwrap_err());
    assert!(message.contains("denies access to `a/b` with the credentials stored for it"), "{message}");
    assert!(!message.contains("wrong-secret"));
    assert_eq!(server.asked().len() - before, 2);
}

#[test]
fn without_credentials_it_says_how_to_get_some() {
    let server = Server::start(|_| reply(401, "").header("www-authenticate", "Basic realm=\"r\""));
    let message = message(&manifest(&server, &RegistryConfig::default()).unwrap_err());
    assert!(message.contains("; log in with `podman login 127.0.0.1:"), "{message}");
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn credentials_of_another_registry_stay_at_home() {
    let server = Server::start(|_| reply(401, "").header("www-authenticate", "Basic realm=\"r\""));
    let dir = tempfile::tempdir().unwrap();
    for other in ["127.0.0.1", "localhost", "127.0.0.1:1", "registry.example"] {
        manifest(&server, &stored(&dir, other, &password())).unwrap_err();
    }
    assert!(server.asked().iter().all(|asked| asked.header("authorization").is_none()));
}

#[test]
fn challenges_that_cannot_be_followed_are_told() {
    for (challenge, want) in [
        (None, "it offers neither Bearer nor Basic"),
        (Some("Digest realm=\"x\""), "it offers neither Bearer nor Basic"),
        (Some("Bearer"), "the challenge names no token service"),
        (Some("Bearer realm=\"not an address\""), "the address of its token service is none"),
        (Some("Bearer realm=\"/token\""), "is not https://HOST/…"),
        (Some("Bearer realm=\"ftp://h/token\""), "is not https://HOST/…"),
        (Some("Bearer realm=\"https://user:pw@h/token\""), "is not https://HOST/…"),
        (Some("Bearer realm=\"x"), "a quoted string does not end"),
    ] {
        let server = Server::start(move |_| match challenge {
            Some(challenge) => reply(401, "").header("www-authenticate", challenge),
            None => reply(401, ""),
        });
        let message = message(&manifest(&server, &RegistryConfig::default()).unwrap_err());
        assert!(message.contains(want), "{message}");
        assert_eq!(server.asked().len(), 1);
    }
}

#[test]
fn bad_answers_of_a_token_service_are_told_without_what_they_say() {
    for (answer, want) in [
        (reply(200, "secret-token"), "its answer is not a token's"),
        (reply(200, r#"{"token":["secret-token"]}"#), "its answer is not a token's"),
        (reply(200, "{}"), "its answer holds no token"),
        (reply(200, r#"{"token":"secret-token\n"}"#), "hold control characters"),
        (reply(200, "").unbounded(Then::Flood), "sends more than 1048576 bytes for a token"),
        (reply(403, r#"{"details":"no"}"#), "denies access to `a/b`"),
        (reply(400, r#"{"details":"no such service"}"#), "answers 400 to the request for a token: no such service"),
    ] {
        let server = Server::start(move |asked| match asked.target.starts_with("/token") {
            true => answer.clone(),
            false => {
                let challenge = format!("Bearer realm=\"http://{}/token\"", asked.header("host").unwrap());
                reply(401, "").header("www-authenticate", challenge)
            }
        });
        let message = message(&manifest(&server, &RegistryConfig::default()).unwrap_err());
        assert!(message.contains(want), "{message}");
        assert!(!message.contains("secret-token"), "{message}");
    }
}

#[test]
fn a_token_that_does_not_help_is_not_fetched_again_and_again() {
    let server = Server::start(|asked| match asked.target.starts_with("/token") {
        true => reply(200, r#"{"token":"t"}"#),
        false => {
            let challenge = format!("Bearer realm=\"http://{}/token\"", asked.header("host").unwrap());
            reply(401, "").header("www-authenticate", challenge)
        }
    });
    let message = message(&manifest(&server, &RegistryConfig::default()).unwrap_err());
    assert!(message.contains("denies access"), "{message}");
    assert_eq!(server.asked().len(), 3);
}

#[test]
fn a_redirect_elsewhere_loses_the_credentials_for_good() {
    let image = Image::new(10);
    // A third server sends back to the first: what it asks for then is no longer ours to vouch for.
    let elsewhere = Server::start({
        let image = image.clone();
        move |asked| match asked.target.strip_prefix("/back") {
            Some(rest) => {
                let (to, target) = rest[1..].split_once('/').unwrap();
                reply(302, "").header("location", format!("http://{to}/{target}"))
            }
            None => image.answer(asked),
        }
    });
    let to = elsewhere.host();
    let server = Server::start({
        let to = to.clone();
        move |asked| match asked.header("authorization") {
            _ if asked.target.starts_with("/open") => {
                image.answer(&Asked { target: asked.target.replace("/open", ""), ..asked.clone() })
            }
            Some(BASIC) if asked.target.contains("manifests") => {
                let host = asked.header("host").unwrap();
                reply(307, "").header("location", format!("http://{to}/back/{host}/open{}", asked.target))
            }
            Some(BASIC) => reply(307, "").header("location", format!("http://{to}{}", asked.target)),
            _ => reply(401, "").header("www-authenticate", "Basic realm=\"r\""),
        }
    });
    let dir = tempfile::tempdir().unwrap();
    manifest(&server, &stored(&dir, &server.host(), &password())).unwrap();
    assert_eq!(elsewhere.asked().len(), 2);
    assert!(elsewhere.asked().iter().all(|asked| asked.header("authorization").is_none()));
    let open: Vec<_> = server.asked().into_iter().filter(|asked| asked.target.starts_with("/open")).collect();
    assert_eq!(open.len(), 1);
    assert_eq!(open[0].header("authorization"), None);
}
