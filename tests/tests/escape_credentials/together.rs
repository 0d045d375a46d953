//! Keys beside what else a network has: a proxy, limits, changes while the job runs.

use agentd_tests::tls::ok;
use agentd_tests::{Feature, Started, require, run, wait_until};

use super::{KEY, Scene};

/// By way of the proxy, in each of its languages, a request gets its key outside, and the box sees none of it.
#[test]
fn escape_keys_stay_outside_by_way_of_a_proxy() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|_| ok("answered\n"));
    let port = scene.server.port();
    let script = format!(
        "ask() {{ curl -sS -H 'Authorization: Bearer theirs' \"$@\"; echo \"=$?\"; }}
ask http://api.test:{port}/by-itself
ask -p -x http://127.0.0.1:1080 --noproxy '' http://api.test:{port}/connect
ask -x socks5h://127.0.0.1:1080 --noproxy '' http://api.test:{port}/socks
ask -x http://127.0.0.1:1080 --noproxy '' http://api.test:{port}/request
ask -x socks5h://127.0.0.1:1080 --noproxy '' -H 'Host: evil.test' http://api.test:{port}/other
ask -k -x http://127.0.0.1:1080 --noproxy '' https://api.test:{port}/tls
echo $no_proxy; env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null"
    );
    let ran = run(scene.boxed().args(["--proxy", "--", "bash", "-c", &script])).expect_success();
    let answered = "answered\n=0\n";
    let text = ran.stdout.as_str();
    assert!(text.starts_with(&answered.repeat(3)), "{ran}");
    assert_eq!(text.matches("answered").count(), 3, "{ran}");
    assert!(text.contains("only without the proxy (no_proxy)") && text.contains("127.0.0.1,::1,api.test\n"), "{ran}");
    assert!(text.contains("its request asks for evil.test") && !text.contains(KEY), "{ran}");
    let heard = scene.server.heard();
    assert_eq!(heard.len(), 3, "{heard:?}");
    for (request, path) in heard.iter().zip(["/by-itself", "/connect", "/socks"]) {
        assert!(request.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{request}");
        assert!(request.matches(KEY).count() == 1 && !request.contains("theirs"), "{request}");
    }
    scene.assert_told("refused", &["no_proxy", "asks for evil.test", "--tls-terminate"]);
    // TLS behind CONNECT, too, where it ends at the broker.
    let script = format!("curl -sS -x http://127.0.0.1:1080 --noproxy '' https://api.test:{port}/terminated");
    let mut command = scene.boxed();
    let ran = run(command.args(["--proxy", "--tls-terminate", "--", "bash", "-c", &script])).expect_success();
    assert_eq!(ran.stdout, "answered\n", "{ran}");
    assert!(scene.server.heard()[3].contains(KEY));
    // The same search finds a key that is inside.
    let mut control = scene.home.run();
    control.args(["-q", "--secret-env", "TOKEN", "--", "bash", "-c", "cat /proc/*/environ"]).env("TOKEN", KEY);
    assert!(run(&mut control).stdout.contains(KEY));
}

/// What is read is counted like what passes unread, heads and bodies, both ways.
#[test]
fn cli_limits_hold_for_requests_that_are_read() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|request| ok(&request[request.find("\r\n\r\n").unwrap() + 4..]));
    let script = |size: u32, times: u32| {
        format!(
            "
import http.client, time
begun, back = time.monotonic(), 0
c = http.client.HTTPConnection('api.test', port)
try:
    for n in range({times}):
        c.request('POST', '/', body=b'x' * {size}); r = c.getresponse(); part = r.read(); back += len(part)
        if r.status != 200: print(r.status, part.decode()[:60])
except (OSError, http.client.HTTPException) as error: print('cut off', type(error).__name__)
print(back >= {size} * {times}, time.monotonic() - begun > 0.5)"
        )
    };
    let limited = |limit: &str| {
        let mut command = scene.boxed();
        command.args(["--net-limit", limit]);
        command
    };
    // With their heads, 20 KiB there and back are within 64 KiB once and not twice.
    let ran = scene.python(&mut limited("bytes=64k"), &script(20 << 10, 1)).expect_success();
    assert!(ran.stdout.starts_with("True"), "{ran}");
    let ran = scene.python(&mut limited("bytes=64k"), &script(20 << 10, 2)).expect_success();
    assert!(!ran.stdout.contains("True") && (ran.stdout.contains("cut off") || ran.stdout.contains("403")), "{ran}");
    scene.assert_told("refused", &["more than 65536 bytes in all (--net-limit bytes=65536)"]);
    let used = &scene.home.jobs()[0]["network"];
    let moved = used["up"].as_u64().unwrap() + used["down"].as_u64().unwrap();
    assert!((40 << 10..=64 << 10).contains(&moved), "{used}");
    // A head alone can be too much, and so can many of them.
    let heads = "
big = 'x' * 20000
print([get(port, 'X-Big: ' + big)[9:12] for _ in range(5)])";
    let ran = scene.python(&mut limited("bytes=64k"), heads).expect_success();
    assert!(ran.stdout.starts_with("['200', '200', '200', '403'"), "{ran}");
    // Twice 128 KiB at 256 KiB a second, of which a tenth of a second's may come at once.
    let ran = scene.python(&mut limited("rate=256k"), &script(128 << 10, 1)).expect_success();
    assert_eq!(ran.stdout, "True True\n", "{ran}");
    let ran = scene.python(&mut limited("total=1"), "print([get(port)[9:12] for _ in range(2)])").expect_success();
    assert_eq!(ran.stdout, "['200', '403']\n", "{ran}");
}

/// Where a job has rules for the requests to a host, there are more of them, and fewer, while it runs.
#[test]
fn cli_requests_are_allowed_and_denied_while_it_runs() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|_| ok("answered\n"));
    let port = scene.server.port();
    let at = |method: &str, path: &str| format!("{method} https://api.test:{port}{path}");
    let script = format!(
        "
import http.client, sys
for line in sys.stdin:
    word, method, path = line.split()
    asked = http.client.HTTPConnection('api.test', {port})
    asked.request(method, path); answer = asked.getresponse(); answer.read()
    print(word, answer.status, flush=True)"
    );
    let mut command = scene.boxed();
    command.args(["-i", "--name", "job", "--allow", &at("GET", "/x/*"), "--", "/usr/bin/python3", "-c", &script]);
    let mut started = Started::new(command.stdin(std::process::Stdio::piped()));
    let mut input = started.stdin().unwrap();
    let mut ask = |started: &mut Started, word: &str, request: &str, answer: &str| {
        std::io::Write::write_all(&mut input, format!("{word} {request}\n").as_bytes()).unwrap();
        started.wait_for(&format!("{word} {answer}\n"));
    };
    let say = |verb: &str, rule: &str| scene.home.say(&[verb, "job", rule]);
    ask(&mut started, "first", "GET /x/a", "200");
    ask(&mut started, "other", "POST /y", "403");
    let _allowed = say("allow", &at("POST", "/y")).expect_silent_success();
    ask(&mut started, "allowed", "POST /y", "200");
    ask(&mut started, "no-more", "POST /z", "403");
    let _denied = say("deny", &at("GET", "/x/*")).expect_silent_success();
    ask(&mut started, "denied", "GET /x/a", "403");
    let still = say("allow", &at("GET", "/x/a")).expect_code(125);
    still.expect_one_error_line(&["stays denied, by GET https://api.test", "/x/*"]);
    let _back = say("allow", &at("GET", "/x/*")).expect_silent_success();
    ask(&mut started, "back", "GET /x/a", "200");
    drop(input);
    let ran = started.finish().expect_success();
    assert!(!ran.stdout.contains(KEY));
    assert!(wait_until(std::time::Duration::from_secs(60), || scene.server.heard().len() == 3));
    let record = &scene.home.jobs()[0];
    let changes = record["network"]["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 3, "{record}");
    assert_eq!(changes[0]["allow"][0], at("POST", "/y").as_str());
}

/// A host with a key can be denied while the job runs, and allowed again, and so can some of its requests; a first allowance
/// of them, which would bound the key, is for the start.
#[test]
fn cli_a_host_with_a_key_is_denied_while_it_runs() {
    if !require(Feature::Userns) {
        return;
    }
    let scene = Scene::new(|_| ok("answered\n"));
    let port = scene.server.port();
    // One connection, as long as it is answered.
    let script = format!(
        "
import http.client, sys
kept = None
for line in sys.stdin:
    kept = kept or http.client.HTTPConnection('api.test', {port})
    kept.request('GET', '/'); answer = kept.getresponse(); answer.read()
    print(line.strip(), answer.status, flush=True)
    if answer.status != 200: kept = None"
    );
    let mut command = scene.boxed();
    command.args(["-i", "--name", "job", "--", "/usr/bin/python3", "-c", &script]);
    let mut started = Started::new(command.stdin(std::process::Stdio::piped()));
    let mut input = started.stdin().unwrap();
    let mut ask = |started: &mut Started, word: &str, answer: &str| {
        std::io::Write::write_all(&mut input, format!("{word}\n").as_bytes()).unwrap();
        started.wait_for(&format!("{word} {answer}\n"));
    };
    ask(&mut started, "first", "200");
    let _denied = scene.home.say(&["deny", "job", "api.test"]).expect_silent_success();
    ask(&mut started, "denied", "403");
    let _allowed = scene.home.say(&["allow", "job", "api.test"]).expect_silent_success();
    ask(&mut started, "again", "200");
    let rule = format!("GET https://api.test:{port}/*");
    let refused = scene.home.say(&["allow", "job", &rule]).expect_code(125);
    refused.expect_one_error_line(&[&rule, "is about single requests", "start it with such a rule"]);
    let _denied = scene.home.say(&["deny", "job", &rule]).expect_silent_success();
    ask(&mut started, "less", "403");
    let _allowed = scene.home.say(&["allow", "job", &rule]).expect_silent_success();
    ask(&mut started, "last", "200");
    drop(input);
    let ran = started.finish().expect_success();
    assert!(!ran.stdout.contains(KEY));
    assert!(wait_until(std::time::Duration::from_secs(60), || scene.server.heard().len() == 3));
    assert_eq!(scene.home.jobs()[0]["network"]["changes"].as_array().map(Vec::len), Some(4));
    scene.assert_told("refused", &[&format!("denied by --deny '{rule}'")]);
}
