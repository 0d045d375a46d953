//! Manifests and configs: every status, every lie about a document, redirects.

use super::*;

fn failure(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> (String, usize) {
    failure_within(quick(), script)
}

fn failure_within(patience: Patience, script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> (String, usize) {
    let server = Server::start(script);
    let error = manifest_within(patience, &server, &RegistryConfig::default()).unwrap_err();
    let message = message(&error).replace(&server.host(), "HOST");
    (message, server.asked().len())
}

#[test]
fn a_manifest_and_its_config_are_fetched_once_each() {
    let image = Image::new(10);
    let server = image.clone().serve();
    let found = manifest(&server, &RegistryConfig::default()).unwrap();
    assert_eq!(found.digest, sha256(image.manifest.as_bytes()));
    assert_eq!(found.layers.len(), 1);
    let asked = server.asked();
    assert_eq!(asked.len(), 2);
    let accept = asked[0].header("accept").unwrap();
    for kind in [
        MANIFEST,
        INDEX,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ] {
        assert!(accept.contains(kind), "{accept}");
    }
    assert!(asked.iter().all(|asked| asked.header("accept-encoding") == Some("identity")), "{asked:?}");
    assert!(asked.iter().all(|asked| asked.header("authorization").is_none()), "{asked:?}");
    assert_eq!(server.handshakes(), 1);
}

#[test]
fn an_index_leads_to_this_machines_manifest() {
    let image = Image::new(10);
    let entry = |architecture: &str, digest: &str| {
        json!({ "mediaType": MANIFEST, "digest": digest, "size": image.manifest.len(),
                "platform": { "architecture": architecture, "os": "linux" } })
    };
    let ours = sha256(image.manifest.as_bytes()).to_string();
    let other = sha256(b"other").to_string();
    let entries = match std::env::consts::ARCH {
        "x86_64" => [entry("s390x", &other), entry("amd64", &ours)],
        _ => [entry("s390x", &other), entry("arm64", &ours)],
    };
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }).to_string();
    // Some servers know no better type, or none; the document says it.
    for kind in [INDEX, "application/json", "text/plain; charset=utf-8"] {
        let (image, index) = (image.clone(), index.clone());
        let server = Server::start(move |asked| match asked.target.as_str() {
            "/v2/a/b/manifests/tag" => reply(200, &index).header("content-type", kind),
            _ => image.answer(asked),
        });
        let found = manifest(&server, &RegistryConfig::default()).unwrap();
        assert_eq!(found.digest.to_string(), ours);
        assert_eq!(server.targets()[1], format!("/v2/a/b/manifests/{ours}"));
    }
}

#[test]
fn a_digest_in_the_name_decides() {
    let image = Image::new(10);
    let server = image.clone().serve();
    let digest = sha256(image.manifest.as_bytes());
    let ask = |digest: &Digest| {
        let name = format!("{}/a/b:any@{digest}", server.host());
        with(&name, &RegistryConfig::default(), |registry| registry.manifest(&Limits::default())).unwrap()
    };
    assert_eq!(ask(&digest).unwrap().digest, digest);
    let other = Server::start(move |_| reply(200, "{}"));
    let name = format!("{}/a/b@{digest}", other.host());
    let error = with(&name, &RegistryConfig::default(), |registry| registry.manifest(&Limits::default())).unwrap();
    let message = message(&error.unwrap_err());
    assert!(message.contains("sends other content for image `a/b@sha256:"), "{message}");
}

#[test]
fn final_answers_are_told_at_once() {
    for (status, body, want) in [
        (404, "", "registry `HOST` has no image `a/b:tag`"),
        (
            400,
            r#"{"errors":[{"message":"bad \u001b[2J"}]}"#,
            "answers 400 to the request for image `a/b:tag`: bad \\u{1b}[2J",
        ),
        (405, "<html>", "answers 405 to the request for image `a/b:tag`"),
        (204, "", "answers 204"),
        (403, "", "registry `HOST` denies access to `a/b`; log in with `podman login HOST`"),
        (501, "", "answers 501"),
    ] {
        let (message, requests) = failure(move |_| reply(status, body));
        assert!(message.contains(want), "{message}");
        assert_eq!(requests, 1, "{status}");
    }
}

#[test]
fn passing_trouble_is_waited_out() {
    for trouble in [
        reply(429, "").header("retry-after", "0"),
        reply(500, ""),
        reply(502, "<html>"),
        reply(503, "").header("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"),
        reply(504, ""),
        reply(408, ""),
        reply(200, "{}{}{}{}").cut(3, Then::Close),
        reply(200, "{}{}{}{}").cut(0, Then::Close),
        reply(200, "{}{}{}{}").cut(3, Then::Stall),
    ] {
        let image = Image::new(10);
        let failures = std::sync::Mutex::new(2);
        let again = trouble.clone();
        let server = Server::start(move |asked| {
            let mut left = failures.lock().unwrap();
            if asked.target.contains("manifests") && *left > 0 {
                *left -= 1;
                return again.clone();
            }
            image.answer(asked)
        });
        let read = if trouble.then == Then::Stall { Duration::from_secs(1) } else { quick().read };
        let found = manifest_within(Patience { read, ..quick() }, &server, &RegistryConfig::default());
        found.unwrap_or_else(|error| panic!("{trouble:?}: {error}"));
        assert_eq!(server.asked().len(), 4, "{trouble:?}");
    }
}

#[test]
fn trouble_that_does_not_pass_is_told() {
    let (message, requests) = failure(|_| reply(503, r#"{"errors":[{"code":"UNAVAILABLE"}]}"#));
    assert!(message.contains("answers 503 to the request for image `a/b:tag`: UNAVAILABLE"), "{message}");
    assert_eq!(requests, 6);
    let (message, requests) = failure(|_| reply(429, "").header("retry-after", "3600"));
    assert!(message.contains("answers 429") && message.contains("left alone for 3600 s"), "{message}");
    assert_eq!(requests, 1);
}

#[test]
fn documents_are_bounded() {
    for (answer, want) in [
        (reply(200, "").cut(0, Then::Flood), ""),
        (reply(200, "").unbounded(Then::Flood), "sends more than 4194304 bytes for image `a/b:tag`"),
        (
            Reply { promised: Some(5 << 20), ..reply(200, "") },
            "bytes for image `a/b:tag`; --image-limit document-bytes=VALUE sets it",
        ),
    ] {
        let (message, _) = failure(move |_| answer.clone());
        assert!(message.contains(want), "{message}");
    }
    let impatient = Patience { document: Duration::from_millis(300), ..quick() };
    let (message, _) = failure_within(impatient, |_| reply(200, "").unbounded(Then::Drip));
    assert!(message.contains("has all but stopped sending"), "{message}");
    let (message, _) = failure(|_| reply(200, "{}").header("x", "y".repeat(1 << 17)));
    assert!(message.contains("cannot reach registry"), "{message}");
}

#[test]
fn a_document_is_what_its_digests_say() {
    let lie = sha256(b"something else").to_string();
    for (header, want) in [
        (lie.as_str(), "sends other content for image `a/b:tag`"),
        ("sha256:abc", "a digest that is none"),
        ("md5:d41d8cd98f00b204e9800998ecf8427e", "a digest that is none"),
    ] {
        let (image, header) = (Image::new(10), header.to_owned());
        let (message, requests) =
            failure(move |_| reply(200, &image.manifest).header("docker-content-digest", &header));
        assert!(message.contains(want), "{message}");
        assert_eq!(requests, 1);
    }
    // Without the header the digest is computed; sha512 is checked as well.
    let image = Image::new(10);
    let mut hasher = format!("sha512:{}", "0".repeat(128)).parse::<Digest>().unwrap().hasher();
    hasher.update(image.manifest.as_bytes());
    let long = hasher.finish();
    for header in [None, Some(long)] {
        let image = image.clone();
        let server = Server::start(move |asked| match (asked.target.as_str(), &header) {
            ("/v2/a/b/manifests/tag", Some(header)) => {
                reply(200, &image.manifest).header("docker-content-digest", header)
            }
            ("/v2/a/b/manifests/tag", None) => reply(200, &image.manifest),
            _ => image.answer(asked),
        });
        manifest(&server, &RegistryConfig::default()).unwrap();
    }
    let image = Image::new(10);
    let (message, _) = failure(move |asked| match asked.target.contains("blobs") {
        true => reply(200, image.config.replace("true", "evil")),
        false => image.answer(asked),
    });
    assert!(message.contains("sends other content for blob sha256:"), "{message}");
}

#[test]
fn redirects_are_followed_but_not_for_ever() {
    let image = Image::new(10);
    let elsewhere = Server::start({
        let image = image.clone();
        move |asked| image.answer(&Asked { target: asked.target.replace("/cdn/", "/"), ..asked.clone() })
    });
    let to = format!("http://{}/cdn", elsewhere.host());
    for status in [301, 302, 303, 307, 308] {
        let (image, to) = (image.clone(), to.clone());
        let server = Server::start(move |asked| match asked.target.strip_prefix("/here") {
            Some(target) => image.answer(&Asked { target: target.into(), ..asked.clone() }),
            None if asked.target.contains("manifests") => {
                reply(status, "").header("location", format!("/here{}", asked.target))
            }
            None => reply(status, "moved").header("location", format!("{to}{}", asked.target)),
        });
        manifest(&server, &RegistryConfig::default()).unwrap();
    }
    for (location, want) in [
        (Some("/v2/a/b/manifests/tag"), "redirects the request for image `a/b:tag` more than 10 times"),
        (Some("ftp://127.0.0.1/x"), "to an address that is not https://HOST/…"),
        (Some("\u{e9}"), "to an address that is none"),
        (None, "nowhere"),
    ] {
        let (message, requests) = failure(move |_| match location {
            Some(location) => reply(302, "").header("location", location),
            None => reply(302, ""),
        });
        assert!(message.contains(want), "{message}");
        // The first question, which only finds out how it is spoken to, is redirected too.
        assert!(requests <= 10 + 11, "{requests}");
    }
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let server = Server::start(|_| reply(200, ""));
    let port = server.port;
    drop(server);
    let name = format!("127.0.0.1:{port}/a/b");
    let error = with(&name, &RegistryConfig::default(), |registry| registry.manifest(&Limits::default())).unwrap();
    let message = message(&error.unwrap_err());
    assert!(message.starts_with(&format!("cannot reach registry `127.0.0.1:{port}`: ")), "{message}");
    assert!(message.contains("refused"), "{message}");
}

#[test]
fn a_silent_server_is_given_up_and_a_pull_can_be_stopped() {
    let impatient = Patience { read: Duration::from_millis(300), ..quick() };
    let (message, _) = failure_within(impatient, |_| reply(200, "{}").cut(0, Then::Stall));
    assert!(message.contains("cannot reach registry `HOST`") && message.contains("timeout"), "{message}");

    let server = Server::start(|_| reply(200, "{}{}").cut(1, Then::Stall));
    let (config, stop) = (RegistryConfig::default(), AtomicBool::new(false));
    let remote = Remote { config: &config, partial: &kept_nowhere, stop: &stop };
    let name = format!("{}/a/b:tag", server.host()).parse().unwrap();
    let patient = Patience { read: Duration::from_secs(3600), document: Duration::from_secs(3600), ..quick() };
    let registry = Registry::with_patience(&name, &remote, patient).unwrap();
    thread::scope(|scope| {
        let pull = scope.spawn(|| registry.manifest(&Limits::default()));
        while server.asked().is_empty() {
            thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(matches!(pull.join().unwrap(), Err(SourceError::Registry(RegistryError::Stopped))));
    });
}

/// Whose name is not this machine's is spoken to in HTTP only where the user says so; the proxy stands in for the network.
#[test]
fn http_is_not_good_enough_for_a_registry_elsewhere() {
    for (settings, is_good_enough) in [("insecure = true", true), ("insecure = false", false), ("", false)] {
        let elsewhere = Image::new(10).serve();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.conf");
        std::fs::write(&path, format!("[[registry]]\nlocation = 'registry.invalid:5000'\n{settings}")).unwrap();
        let address = format!("http://{}", elsewhere.host());
        let proxies = Proxies { http: Some(address.clone()), https: Some(address), none: String::new() };
        let config = RegistryConfig { registries: vec![path], proxies, ..RegistryConfig::default() };
        let found = with("registry.invalid:5000/a/b:tag", &config, |registry| registry.manifest(&Limits::default()));
        assert_eq!(found.unwrap().is_ok(), is_good_enough, "{settings}");
        // Nothing of the request is seen by who does not speak TLS.
        assert!(elsewhere.handshakes() == 0 && elsewhere.asked()[0].method == "CONNECT", "{settings}");
        assert_eq!(elsewhere.asked().iter().any(|asked| asked.method == "GET"), is_good_enough, "{settings}");
    }
}

#[test]
fn a_registry_behind_a_proxy_is_asked_of_the_proxy() {
    let image = Image::new(10);
    let proxy = image.serve();
    let dir = tempfile::tempdir().unwrap();
    let registries = dir.path().join("registries.conf");
    std::fs::write(&registries, "[[registry]]\nlocation = 'registry.invalid:5000'\ninsecure = true").unwrap();
    let address = format!("http://user:word@{}", proxy.host());
    let proxies = Proxies { http: Some(address.clone()), https: Some(address), none: "other.invalid".into() };
    let config = RegistryConfig { registries: vec![registries], proxies, ..RegistryConfig::default() };
    let found = with("registry.invalid:5000/a/b:tag", &config, |registry| registry.manifest(&Limits::default()));
    found.unwrap().unwrap();
    let asked = proxy.asked();
    assert_eq!((asked[0].method.as_str(), asked[0].target.as_str()), ("CONNECT", "registry.invalid:5000"));
    assert_eq!(asked[0].header("proxy-authorization"), Some("Basic dXNlcjp3b3Jk"));
    assert!(
        asked.iter().filter(|asked| asked.method == "GET").all(|asked| asked.header("proxy-authorization").is_none())
    );

    let proxies = Proxies { https: Some("http://user:secret@ bad".into()), ..Proxies::default() };
    let config = RegistryConfig { proxies, ..RegistryConfig::default() };
    let error = with("registry.invalid/a/b", &config, |registry| registry.manifest(&Limits::default())).unwrap();
    let message = message(&error.unwrap_err());
    assert!(message.contains("the proxy for `registry.invalid` cannot be used") && !message.contains("secret"));
}
