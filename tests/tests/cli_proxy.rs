//! `agentd run --proxy`: programs that insist on a proxy reach what is allowed, in the words of HTTP and of SOCKS5.

use std::process::Command;

use agentd_tests::server::{OK, Server};
use agentd_tests::{Feature, Home, Ran, require, run};

fn reaching(home: &Home, server: &Server) -> Command {
    let mut command = home.run();
    command.arg("--allow").arg(format!("web.test:{}", server.port())).args(["--add-host", "web.test:127.0.0.1"]);
    command
}

fn shell(command: &mut Command, script: &str) -> Ran {
    run(command.args(["--", "bash", "-c", script]))
}

#[test]
fn cli_a_proxy_speaks_http_and_socks() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let url = format!("http://web.test:{}", server.port());
    let script = format!(
        "curl -sS {url}/one; curl -sS -p {url}/two; curl -sS -x socks5h://127.0.0.1:1080 {url}/three; \
         curl -sS -x socks5://127.0.0.1:1080 {url}/four; curl -sS --noproxy '*' {url}/five"
    );
    let ran = shell(reaching(&home, &server).arg("--proxy"), &script).expect_silent_success();
    assert_eq!(ran.stdout, "ok\n".repeat(5), "{ran}");
    let heard = server.heard();
    for path in ["one", "two", "three", "four", "five"] {
        assert!(heard.contains(&format!("GET /{path} HTTP/1.1\r\nHost: web.test:")), "{heard}");
    }
    let used = &home.jobs()[0]["network"]["names"][0];
    assert_eq!((&used["name"], &used["connections"]), (&"web.test".into(), &5.into()));
}

#[test]
fn cli_a_proxy_refuses_in_its_protocols_words() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let script = "curl -sS http://other.test/; curl -sS -p http://other.test/; echo =$?; \
         curl -sS -x socks5h://127.0.0.1:1080 http://other.test/; echo =$?; \
         curl -sS https://web.test/; echo =$?; curl -s http://127.0.0.1:1080/";
    let ran = shell(reaching(&home, &server).arg("--proxy"), script);
    assert_eq!(ran.stdout.matches("blocked by policy, do not retry").count(), 2, "{ran}");
    assert!(ran.stdout.contains("=56\n=97\n=56\n"), "{ran}");
    for words in ["response 403", "5 network requests refused", "--allow other.test", "--allow web.test:443"] {
        assert!(ran.stderr.contains(words), "{words}\n{ran}");
    }
    assert_eq!(server.connections(), 0);
}

#[test]
fn cli_a_box_has_a_proxy_only_when_it_is_asked_for() {
    if !require(Feature::Userns) {
        return;
    }
    let (home, server) = (Home::new(), Server::at("127.0.0.1", OK));
    let ran = shell(
        &mut reaching(&home, &server),
        "env | grep -i proxy; (: < /dev/tcp/127.0.0.1/1080) 2>/dev/null || echo closed",
    );
    assert_eq!(ran.stdout, "closed\n", "{ran}");
    let mut command = reaching(&home, &server);
    let ran = shell(command.args(["--proxy", "-e", "http_proxy=http://mine"]), "echo $http_proxy $HTTPS_PROXY");
    assert_eq!(ran.stdout, "http://mine http://127.0.0.1:1080\n", "{ran}");
    let refused = run(home.run().args(["--allow", "a.test:1080", "--proxy", "--", "true"])).expect_code(125);
    assert!(refused.stderr.contains("port 1080 of a box with --proxy is the proxy"), "{refused}");
    let _refused = run(home.run().args(["--proxy", "--", "true"])).expect_code(125);
}
