//! The words for keys, and that they do what they say.

use std::time::Duration;

use agentd_tests::tls::ok;
use agentd_tests::{Feature, Home, Started, require, run, wait_until};

use super::{ASK, KEY, Scene};

/// Answers come as they are sent, requests follow each other on one connection, and a body waits for its 100-continue.
#[test]
fn cli_secret_streams_and_keeps_the_connection() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|request| {
        if request.starts_with("GET /stream") {
            return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n".to_vec();
        }
        ok(&format!("{} bytes\n", request.len() - request.find("\r\n\r\n").unwrap() - 4))
    });
    let script = r"
import http.client, time
c = http.client.HTTPConnection('api.test', port)
for size in (10, 0, 100000):
    c.request('POST', '/', body=b'x' * size); r = c.getresponse(); print(r.status, r.read().decode(), end='')
s = socket.create_connection(('api.test', port))
s.sendall(f'POST / HTTP/1.1\r\nHost: api.test:{port}\r\nExpect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\n'.encode())
print(s.recv(25)); s.sendall(b'abc'); print(s.makefile().read().split()[-2:])
s = socket.create_connection(('api.test', port)); s.settimeout(30)
s.sendall(f'GET /stream HTTP/1.1\r\nHost: api.test:{port}\r\n\r\n'.encode())
back = b''
while b'first' not in back: back += s.recv(4096)
print('streamed')
";
    let ran = scene.python(&mut scene.boxed(), script).expect_success();
    let expected =
        "200 10 bytes\n200 0 bytes\n200 100000 bytes\nb'HTTP/1.1 100 Continue\\r\\n\\r\\n'\n['3', 'bytes']\nstreamed\n";
    assert_eq!(ran.stdout, expected);
}

#[test]
fn cli_secret_that_cannot_be_added_ends_the_start() {
    let home = Home::new();
    let not_pem = home.path().join("config/none.pem");
    std::fs::write(&not_pem, "nothing\n").unwrap();
    let not_pem = not_pem.display().to_string();
    for (flags, words) in [
        (&["--secret", "TOKEN@a.test", "--net", "host"][..], "--secret-file"),
        (&["--secret", "GH_TOKEN=env:TOKEN", "--secret", "GITHUB_TOKEN=env:TOKEN"], "the same header"),
        (&["--secret", "T@a.test=cmd:printf 'a b'"], "on one line"),
        (&["--tls-terminate"], "--secret NAME@HOST"),
        (&["--secret", "TOKEN@a.test", "--upstream-ca", &not_pem], "no certificate authorities"),
        (&["--add-host", "a.test:127.0.0.1"], "give --allow, too"),
        (&["--secret", "TOKEN@a.test:53"], "port 53"),
    ] {
        let mut command = home.run();
        command.env("TOKEN", KEY).arg("-q").args(flags).args(["--", "true"]);
        let ran = run(&mut command).expect_code(125);
        ran.expect_one_error_line(&[words]);
    }
    for (flags, words) in [
        (["--secret", "TOKEN@*.a.test"], "no host that a key can be for"),
        (["--secret", "TOKEN@a.test:header:Host"], "about the request itself"),
        (["--allow", "GET http://a.test/"], "is for https://"),
        (["--allow", "GET https://a.test/../x"], "climbs with dots"),
    ] {
        let ran = run(home.run().env("TOKEN", KEY).args(flags).args(["--", "true"])).expect_code(125);
        assert!(ran.stderr.contains(words), "{ran}");
    }
    assert!(home.jobs().is_empty());
}

/// A new key while the job runs: used from then on, and kept out of logs like the first.
#[test]
fn cli_secret_is_renewed_while_the_job_runs() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(ok);
    let script = format!(
        "{ASK}port = {}
for line in sys.stdin: print(get(port), flush=True)",
        scene.server.port()
    );
    let mut command = scene.boxed();
    command.args(["-i", "--name", "renewed", "--", "/usr/bin/python3", "-c", &script]);
    let mut started = Started::new(command.stdin(std::process::Stdio::piped()));
    let mut input = started.stdin().unwrap();
    let mut ask = |number: usize| {
        std::io::Write::write_all(&mut input, b"\n").unwrap();
        assert!(wait_until(Duration::from_secs(60), || scene.server.heard().len() == number));
        scene.server.heard()[number - 1].clone()
    };
    assert!(ask(1).contains(KEY));
    let new = "sk-that-came-later-9876543210";
    let renew = |words: &[&str]| run(scene.home.agentd().env("NEW", new).arg("secret").arg("renewed").args(words));
    let _ran = renew(&["TOKEN=env:NEW"]).expect_silent_success();
    let heard = ask(2);
    assert!(heard.contains(new) && !heard.contains(KEY), "{heard}");
    for (words, says) in [
        (["OTHER=env:NEW"], "OTHER is no secret that the broker adds"),
        (["TOKEN=cmd:printf 'a b'"], "on one line"),
        (["TOKEN"], "TOKEN is not set"),
    ] {
        let ran = renew(&words).expect_code(125);
        ran.expect_one_error_line(&[says]);
    }
    drop(input);
    let ran = started.finish().expect_success();
    assert!(ran.stdout.contains(KEY) && ran.stdout.contains(new), "{ran}");
    let logs = run(scene.home.agentd().args(["logs", "renewed"])).expect_success();
    assert!(!logs.stdout.contains(KEY) && !logs.stdout.contains(new) && logs.stdout.contains("[redacted]"), "{logs}");
}

/// git asks for https and is led to the broker, which adds the password; a name that says what it is for needs no more words.
#[test]
fn cli_secret_reaches_git_and_known_names() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|_| b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec());
    let port = scene.server.port();
    let key = format!("GH_TOKEN@api.test:{port}:basic:x-access-token");
    let mut command = scene.home.run();
    command.args(["-q", "--secret", &key]).args(&scene.flags[2..]).env("GH_TOKEN", KEY);
    let ran =
        run(command.args(["--", "git", "ls-remote", &format!("https://api.test:{port}/me/x.git")])).expect_code(128);
    assert!(ran.stderr.contains("not found"), "{ran}");
    let heard = scene.server.heard().join("");
    let coded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("x-access-token:{KEY}"));
    assert!(heard.starts_with("GET /me/x.git/info/refs?service=git-upload-pack HTTP/1.1\r\n"), "{heard}");
    assert!(heard.contains(&format!("authorization: Basic {coded}\r\n")), "{heard}");
    // Names that are known: the host is allowed by them, that is said, and the box is led there.
    let mut command = scene.home.run();
    command.args(["--secret", "ANTHROPIC_API_KEY", "--secret", "GITHUB_TOKEN=env:ANTHROPIC_API_KEY", "--", "env"]);
    let ran = run(command.env("ANTHROPIC_API_KEY", KEY)).expect_success();
    for line in [
        "ANTHROPIC_API_KEY=agentd-adds-the-key-outside",
        "ANTHROPIC_BASE_URL=http://api.anthropic.com",
        "GITHUB_TOKEN=agentd-adds-the-key-outside",
        "GIT_CONFIG_COUNT=1",
        "GIT_CONFIG_KEY_0=url.http://github.com/.insteadOf",
        "GIT_CONFIG_VALUE_0=https://github.com/",
    ] {
        assert!(ran.stdout.lines().any(|known| known == line), "{line}: {ran}");
    }
    assert!(
        !ran.stdout.contains(KEY)
            && ran
                .stderr
                .contains("secret GITHUB_TOKEN stays outside: requests to github.com and api.github.com get it"),
        "{ran}"
    );
}

/// Tokens of OAuth and of GitHub's REST API, and what says nothing else: `Authorization: Bearer`, and no other header.
#[test]
fn cli_secret_is_a_bearer_token_by_its_name_or_its_words() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|_| ok("answered\n"));
    let port = scene.server.port();
    for (name, how) in
        [("TOKEN", ""), ("ANTHROPIC_AUTH_TOKEN", ""), ("CLAUDE_CODE_OAUTH_TOKEN", ""), ("GH_TOKEN", ":bearer")]
    {
        let key = format!("{name}@api.test:{port}{how}");
        let mut command = scene.home.run();
        command.args(["-q", "--secret", &key]).args(&scene.flags[2..]).env(name, KEY);
        let script = "print(get(port, 'Authorization: Bearer theirs')[-9:], end='')";
        let ran = scene.python(&mut command, script).expect_success();
        assert_eq!(ran.stdout, "answered\n", "{name}");
        let heard = scene.server.heard().pop().unwrap();
        assert!(heard.contains(&format!("\r\nauthorization: Bearer {KEY}\r\n")), "{name}: {heard}");
        assert_eq!((heard.matches(KEY).count(), heard.matches("authorization").count()), (1, 1), "{name}: {heard}");
    }
    assert_eq!(scene.server.heard().len(), 4);
}

/// A command called claude reaches what Claude Code needs, which is said; whoever chooses the network is not overruled.
#[test]
fn cli_claude_is_allowed_what_it_needs() {
    let home = Home::new();
    let shown = |flags: &[&str]| run(home.run().args(["--dry-run"]).args(flags).env("TOKEN", KEY)).expect_success();
    let ran = shown(&["--", "/usr/local/bin/claude", "-p", "x"]);
    assert!(ran.stdout.contains("through the broker: api.anthropic.com, platform.claude.com, claude.ai"), "{ran}");
    assert!(ran.stderr.contains("the command is claude") && ran.stderr.contains("--net none"), "{ran}");
    let with_key = shown(&["--secret", "ANTHROPIC_API_KEY=env:TOKEN", "--", "claude"]);
    assert!(with_key.stdout.contains("through the broker: api.anthropic.com with ANTHROPIC_API_KEY\n"), "{with_key}");
    for flags in [&["--net", "none", "--", "claude"][..], &["--", "sh", "-c", "claude"], &["--", "claudette"]] {
        let ran = shown(flags);
        assert!(ran.stdout.contains("network    none") && ran.stderr.is_empty(), "{ran}");
    }
    let denied = shown(&["--deny", "claude.ai", "--", "claude"]);
    assert!(denied.stdout.contains("not claude.ai"), "{denied}");
}
