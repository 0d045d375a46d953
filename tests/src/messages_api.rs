//! A scripted stand-in for api.anthropic.com: it speaks the Messages API (plain and streamed) and has no model behind
//! it. The real `claude` runs against it, so an agent's run can be shown and tested without a key or a network.
//!
//! Invariant: what it answers depends on the request alone. The turn is found by counting the tool results in the
//! conversation, so retries, side requests (titles, token counts) and parallel sessions cannot derail a script.
//!
//! Why not an HTTP library: one method on two paths, no TLS, bounded; `tiny_http` would be four more crates to trust
//! and streams with chunk sizes of its own. `http.rs` is the whole need.

mod http;

use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::ServerConfig;
use serde::Deserialize;
use serde_json::{Value, json};

use http::{Connection, Request};

/// What it says about itself, wherever it says something.
pub const SAID_OPENLY: &str = "a scripted stand-in for api.anthropic.com, no model behind it";

/// More connections than an agent with its side requests opens.
const MAX_CONNECTIONS: usize = 32;

/// The turns, in order.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// At least one; the conversation ends with the first turn that uses no tool.
    pub turns: Vec<Turn>,
}

/// One answer of the assistant.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// Said before the tools are used.
    #[serde(default)]
    pub text: String,
    /// Tools to use, all at once.
    #[serde(default)]
    pub tools: Vec<ToolUse>,
}

/// One use of a tool.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolUse {
    /// `Bash`, `Edit`, `Write`, `Read`, … as the client names it.
    pub name: String,
    /// Its input, as the client's schema wants it.
    pub input: Value,
}

impl Turn {
    fn text(text: &str) -> Self {
        Self { text: text.to_owned(), tools: Vec::new() }
    }
}

impl Script {
    /// Looks around, says so, ends: for a look at the program by hand.
    #[must_use]
    pub fn builtin() -> Self {
        let look = ToolUse { name: "Bash".to_owned(), input: json!({ "command": "id; pwd; ls -la" }) };
        let first = Turn { text: "I look around.".to_owned(), tools: vec![look] };
        Self { turns: vec![first, Turn::text("Done: this was a scripted conversation.")] }
    }

    /// The turn that answers this conversation.
    fn turn(&self, request: &Value) -> Turn {
        let mut answered = tool_results(request);
        for turn in &self.turns {
            if answered < turn.tools.len() || turn.tools.is_empty() {
                let known = |tool: &ToolUse| offers(request, &tool.name);
                // A side request offers other tools than the agent's own, or none.
                return if turn.tools.iter().all(known) { turn.clone() } else { Turn::text("(side request)") };
            }
            answered -= turn.tools.len();
        }
        Turn::text("The script has ended.")
    }
}

fn tool_results(request: &Value) -> usize {
    let messages = request["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let blocks = messages.iter().filter_map(|message| message["content"].as_array()).flatten();
    blocks.filter(|block| block["type"] == "tool_result").count()
}

fn offers(request: &Value, tool: &str) -> bool {
    request["tools"].as_array().is_some_and(|tools| tools.iter().any(|offered| offered["name"] == tool))
}

/// The running server; it ends with the value.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    ending: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

/// What the connections share.
struct Shared {
    script: Script,
    record: Option<Mutex<File>>,
    connections: AtomicUsize,
    lock: Option<Lock>,
}

/// What a stand-in has that is not open to everybody.
#[derive(Debug)]
pub struct Lock {
    /// TLS, with the certificate that it shows.
    pub tls: Arc<ServerConfig>,
    /// The key that every request must have.
    pub key: String,
}

impl Server {
    /// Listens on a free port of 127.0.0.1. `record` gets one JSON line a request: method, path, the names (never the
    /// values) of its headers, model, whether streamed, and the number of tool results it carried.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(script: Script, record: Option<File>) -> io::Result<Self> {
        Self::start_with(script, record, None)
    }

    /// The same behind TLS, and for who has the key; the record then says of each request whether it had it.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn locked(script: Script, record: Option<File>, lock: Lock) -> io::Result<Self> {
        Self::start_with(script, record, Some(lock))
    }

    fn start_with(script: Script, record: Option<File>, lock: Option<Lock>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let ending = Arc::new(AtomicBool::new(false));
        let record = record.map(Mutex::new);
        let shared = Arc::new(Shared { script, record, connections: AtomicUsize::new(0), lock });
        let stop = Arc::clone(&ending);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                match stream {
                    Ok(stream) => shared.take(stream),
                    // Out of descriptors, say: others may go away meanwhile.
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        });
        Ok(Self { address, ending, accepting: Some(accepting) })
    }

    /// What to put into `ANTHROPIC_BASE_URL`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        // Wakes the accepting thread; when it cannot be reached it has ended already.
        drop(TcpStream::connect(self.address));
        self.accepting.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn take(self: &Arc<Self>, stream: TcpStream) {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let shared = Arc::clone(self);
        std::thread::spawn(move || {
            // A client that hangs up ends its own connection and nothing else.
            shared.serve(stream).ok();
            shared.connections.fetch_sub(1, Ordering::Relaxed);
        });
    }

    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let mut connection = Connection::new(stream, self.lock.as_ref().map(|lock| &lock.tls))?;
        loop {
            let request = match connection.request() {
                Ok(Some(request)) => request,
                Ok(None) => return Ok(()),
                Err(http::Refused::Io(error)) => return Err(error),
                Err(http::Refused::Status(status)) => {
                    let body = error(&format!("{status}: {SAID_OPENLY}"));
                    return connection.respond(status, "application/json", &body.to_string(), false);
                }
            };
            let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            self.note(&request, &body)?;
            let (status, content_type, answer) = self.answer(&request, &body);
            let headers_only = request.method == "HEAD";
            connection.respond(status, content_type, &answer, headers_only)?;
        }
    }

    fn note(&self, request: &Request, body: &Value) -> io::Result<()> {
        let Some(record) = &self.record else { return Ok(()) };
        let line = json!({
            "method": request.method,
            "path": request.path,
            "headers": request.header_names,
            "model": body["model"],
            "stream": body["stream"] == true,
            "tool_results": tool_results(body),
            "has_key": self.has_key(request),
        });
        let mut file = record.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(format!("{line}\n").as_bytes())
    }

    fn has_key(&self, request: &Request) -> bool {
        self.lock.as_ref().is_none_or(|lock| request.key.as_ref() == Some(&lock.key))
    }

    fn answer(&self, request: &Request, body: &Value) -> (u16, &'static str, String) {
        if !self.has_key(request) {
            return (401, "application/json", error("invalid x-api-key").to_string());
        }
        let path = request.path.split('?').next().unwrap_or_default();
        match (request.method.as_str(), path) {
            ("POST", "/v1/messages") if body["messages"].is_array() => {
                let message =
                    Message { turn: self.script.turn(body), number: tool_results(body), model: &body["model"] };
                if body["stream"] == true {
                    (200, "text/event-stream", message.events())
                } else {
                    (200, "application/json", message.whole().to_string())
                }
            }
            ("POST", "/v1/messages") => (400, "application/json", error("no messages in the request").to_string()),
            ("POST", "/v1/messages/count_tokens") => {
                (200, "application/json", json!({ "input_tokens": 1 }).to_string())
            }
            _ => (404, "application/json", error(&format!("not here: {SAID_OPENLY}")).to_string()),
        }
    }
}

fn error(message: &str) -> Value {
    json!({ "type": "error", "error": { "type": "invalid_request_error", "message": message } })
}

/// One answer, on its way into the API's words.
struct Message<'a> {
    turn: Turn,
    number: usize,
    model: &'a Value,
}

impl Message<'_> {
    fn stop_reason(&self) -> &'static str {
        if self.turn.tools.is_empty() { "end_turn" } else { "tool_use" }
    }

    fn content(&self) -> Vec<Value> {
        let text = (!self.turn.text.is_empty()).then(|| json!({ "type": "text", "text": self.turn.text }));
        let tools = self.turn.tools.iter().enumerate().map(|(i, tool)| {
            let id = format!("toolu_standin_{}_{i}", self.number);
            json!({ "type": "tool_use", "id": id, "name": tool.name, "input": tool.input })
        });
        text.into_iter().chain(tools).collect()
    }

    fn whole(&self) -> Value {
        json!({
            "id": format!("msg_standin_{}", self.number),
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": self.content(),
            "stop_reason": self.stop_reason(),
            "stop_sequence": null,
            "usage": { "input_tokens": 1, "output_tokens": 1 },
        })
    }

    /// The same as server-sent events, a block in one delta.
    fn events(&self) -> String {
        let mut start = self.whole();
        start["content"] = json!([]);
        start["stop_reason"] = Value::Null;
        let mut events = vec![json!({ "type": "message_start", "message": start })];
        for (index, mut block) in self.content().into_iter().enumerate() {
            let delta = if block["type"] == "text" {
                json!({ "type": "text_delta", "text": std::mem::replace(&mut block["text"], json!("")) })
            } else {
                let input = std::mem::replace(&mut block["input"], json!({}));
                json!({ "type": "input_json_delta", "partial_json": input.to_string() })
            };
            events.push(json!({ "type": "content_block_start", "index": index, "content_block": block }));
            events.push(json!({ "type": "content_block_delta", "index": index, "delta": delta }));
            events.push(json!({ "type": "content_block_stop", "index": index }));
        }
        let stop = json!({ "stop_reason": self.stop_reason(), "stop_sequence": null });
        events.push(json!({ "type": "message_delta", "delta": stop, "usage": { "output_tokens": 1 } }));
        events.push(json!({ "type": "message_stop" }));
        let text = |event: &Value| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default());
        events.iter().map(text).collect()
    }
}

#[cfg(test)]
mod tests;
