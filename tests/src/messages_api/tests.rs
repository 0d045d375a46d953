//! The stand-in as a client sees it, over a socket.

use super::*;
use std::io::{Read, Seek};

fn script() -> Script {
    let bash = |command: &str| ToolUse { name: "Bash".to_owned(), input: json!({ "command": command }) };
    Script {
        turns: vec![
            Turn { text: "one".to_owned(), tools: vec![bash("a"), bash("b")] },
            Turn { text: String::new(), tools: vec![bash("c")] },
            Turn::text("end"),
        ],
    }
}

fn conversation(results: usize) -> Value {
    let result = json!({ "type": "tool_result", "tool_use_id": "x", "content": "ok" });
    json!({
        "model": "m",
        "tools": [{ "name": "Bash" }],
        "messages": [{ "role": "user", "content": "do it" }, { "role": "user", "content": vec![result; results] }],
    })
}

fn send(server: &Server, raw: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address).unwrap();
    // A server that refuses early may close while the client still writes.
    stream.write_all(raw).ok();
    stream.shutdown(std::net::Shutdown::Write).ok();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok();
    String::from_utf8(answer).unwrap()
}

fn post(server: &Server, path: &str, body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nX-Api-Key: very-secret\r\nContent-Length: {length}\r\n\r\n");
    send(server, (head + &body).as_bytes())
}

fn json_body(answer: &str) -> Value {
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[test]
fn the_turn_follows_from_the_tool_results() {
    let server = Server::start(script(), None).unwrap();
    for (results, text, commands) in
        [(0, "one", vec!["a", "b"]), (1, "one", vec!["a", "b"]), (2, "", vec!["c"]), (3, "end", vec![])]
    {
        let message = json_body(&post(&server, "/v1/messages?beta=true", &conversation(results)));
        let blocks = message["content"].as_array().unwrap();
        let texts: String = blocks.iter().filter_map(|b| b["text"].as_str()).collect();
        let used: Vec<_> = blocks.iter().filter_map(|b| b["input"]["command"].as_str()).collect();
        assert_eq!((texts.as_str(), used), (text, commands), "{results} results");
        assert_eq!(message["stop_reason"], if results < 3 { "tool_use" } else { "end_turn" });
    }
}

#[test]
fn a_stream_carries_the_same_message() {
    let server = Server::start(script(), None).unwrap();
    let mut request = conversation(0);
    request["stream"] = json!(true);
    let answer = post(&server, "/v1/messages", &request);
    assert!(answer.contains("content-type: text/event-stream"));
    let data: Vec<Value> =
        answer.lines().filter_map(|l| l.strip_prefix("data: ")).map(|d| serde_json::from_str(d).unwrap()).collect();
    let kinds: Vec<_> = data.iter().map(|d| d["type"].as_str().unwrap()).collect();
    let block = ["content_block_start", "content_block_delta", "content_block_stop"];
    let expected = [&["message_start"][..], &block, &block, &block, &["message_delta", "message_stop"]].concat();
    assert_eq!(kinds, expected);
    assert_eq!(data[5]["delta"]["partial_json"], r#"{"command":"a"}"#);
}

#[test]
fn side_requests_do_not_take_a_turn() {
    let server = Server::start(script(), None).unwrap();
    let title = json!({ "model": "small", "messages": [{ "role": "user", "content": "a title, please" }] });
    assert_eq!(json_body(&post(&server, "/v1/messages", &title))["content"][0]["text"], "(side request)");
    assert_eq!(json_body(&post(&server, "/v1/messages/count_tokens", &title))["input_tokens"], 1);
    assert_eq!(json_body(&post(&server, "/v1/messages", &conversation(0)))["content"][0]["text"], "one");
}

#[test]
fn what_it_does_not_know_it_refuses_and_says_what_it_is() {
    let server = Server::start(script(), None).unwrap();
    let answer = send(&server, b"GET /api/claude_code/settings HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("stand-in"), "{answer}");
    assert!(post(&server, "/v1/messages", &json!("text")).starts_with("HTTP/1.1 400"));
}

#[test]
fn giants_and_nonsense_are_refused() {
    let server = Server::start(script(), None).unwrap();
    let long = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; 70 << 10]].concat();
    let many = [b"GET / HTTP/1.1\r\n".to_vec(), b"A: b\r\n".repeat(20_000)].concat();
    for (raw, status) in [
        (&long[..], "431"),
        (&many, "431"),
        (b"POST /v1/messages HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", "413"),
        (b"POST /v1/messages HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "400"),
        (b"POST /v1/messages HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "400"),
        (b"POST /v1/messages HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "411"),
        (b"nonsense\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nHost: half", "400"),
    ] {
        let answer = send(&server, raw);
        // A client that is still writing when it is refused may see a reset instead of the status.
        let reset = raw.len() > 1024 && answer.is_empty();
        assert!(reset || answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
    }
}

#[test]
fn two_requests_share_a_connection() {
    let server = Server::start(script(), None).unwrap();
    let body = conversation(3).to_string();
    let request = format!("POST /v1/messages HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    assert_eq!(send(&server, request.repeat(2).as_bytes()).matches("HTTP/1.1 200").count(), 2);
}

#[test]
fn the_record_has_names_and_no_secret() {
    let mut file = tempfile::tempfile().unwrap();
    let server = Server::start(script(), Some(file.try_clone().unwrap())).unwrap();
    post(&server, "/v1/messages", &conversation(2));
    drop(server);
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    let line: Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(line["headers"], json!(["host", "x-api-key", "content-length"]));
    assert_eq!(
        (&line["path"], &line["model"], &line["tool_results"]),
        (&json!("/v1/messages"), &json!("m"), &json!(2))
    );
    assert!(!text.contains("very-secret"));
}
