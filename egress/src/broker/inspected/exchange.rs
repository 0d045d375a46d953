//! One request and its answer.
//!
//! Invariant: a request is for the host that its connection was made for, whatever its target, its `Host` or the TLS around
//! it say; an answer is passed on as it comes, a redirect too: nobody follows it here, so no key goes where it leads.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use zeroize::Zeroizing;

use super::headers;
use super::upstream::Upstream;
use crate::broker::Shared;
use crate::broker::client::Client;
use crate::broker::connection::Stop;
use crate::broker::ledger::begun;
use crate::credential::{Credential, How};
use crate::inspected::Site;
use crate::name::Name;
use crate::policy::{Refusal, Target};
use crate::request::{self, is_for};
use crate::rule::DEFAULT_PORT;
use crate::told::{self, Verdict};

/// Characters of a path that are told.
const MOST_TOLD: usize = 200;

/// Where a connection of the box was meant to go.
pub(super) struct Asked {
    pub(super) name: Name,
    pub(super) site: Site,
    /// The port at which the box has asked.
    pub(super) port: u16,
}

/// The exchanges of one client's connection.
pub(super) struct Exchanges {
    shared: Rc<Shared>,
    asked: Asked,
    client: Rc<Client>,
    upstream: Upstream,
}

/// The body of an answer.
type Answer = Either<Passed, Full<Bytes>>;

impl Exchanges {
    pub(super) fn new(shared: Rc<Shared>, asked: Asked, client: Rc<Client>) -> Self {
        Exchanges { shared, asked, client, upstream: Upstream::default() }
    }

    /// Tells of something that was no request.
    pub(super) async fn refuse(&self, refusal: &Refusal) {
        let (whose, host) = ((&*self.client, &self.shared.clients), (self.asked.name.as_str(), Some(self.asked.port)));
        self.shared.ledger.refuse_to(whose, host, refusal).await;
    }

    /// Answers one request.
    pub(super) async fn exchange(&self, request: Request<Incoming>) -> Response<Answer> {
        let entry = Rc::new(Entry::new(self, &request));
        let stop = match self.pass(&entry, request).await {
            Ok(response) => return response,
            Err(stop) => stop,
        };
        let (status, text) = match stop {
            Stop::Refused(Refusal { why, rule, allow }) => {
                let text = request::forbidden_text(&why, allow.as_deref());
                entry.stopped(Verdict::Refused, why, rule, allow);
                (StatusCode::FORBIDDEN, text)
            }
            Stop::Failed(why) => {
                let text = request::bad_gateway_text(&why);
                entry.stopped(Verdict::Failed, why, None, None);
                (StatusCode::BAD_GATEWAY, text)
            }
        };
        if status == StatusCode::FORBIDDEN && !self.shared.ledger.knows(&entry.told.borrow()) {
            self.client.find(&self.shared.clients, &self.shared.ledger).await;
        }
        // Told before the client is: what it does next may be its end.
        drop(entry);
        let mut response = Response::new(Either::Right(Full::new(Bytes::from(text))));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        // As with other refusals: whatever else the client had to say, it is over.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    }

    async fn pass(&self, entry: &Rc<Entry>, request: Request<Incoming>) -> Result<Response<Answer>, Stop> {
        let Asked { name, site, port } = &self.asked;
        let refused = |why: &'static str| Stop::Refused(Refusal::because(why));
        {
            let policy = self.shared.policy.borrow();
            if let Some(denied) = policy.denial(name, *port).or_else(|| policy.denial(name, site.port)) {
                return Err(Stop::Refused(denied));
            }
            self.check_host(&request)?;
            let by_host = policy.decide(&Target::Name(name.clone()), site.port).ok();
            let asked = (request.method().as_str(), request.uri().path());
            let rule = policy.inspected().decide((name, site.port), asked, by_host.as_deref());
            entry.told.borrow_mut().rule = Some(rule.map_err(Stop::Refused)?);
        }
        let upgrades = request.headers().get_all(header::UPGRADE).iter();
        // Other protocols are asked for by way of asking, and the answer in HTTP/1.1 is as good.
        if upgrades.into_iter().any(|to| to.to_str().is_ok_and(|to| to.to_ascii_lowercase().contains("websocket"))) {
            return Err(refused("requests to this host are read, and a websocket cannot be"));
        }
        let meter = &self.shared.meter;
        let line = request.method().as_str().len() + request.uri().to_string().len();
        meter.pay(line + headers::length(request.headers())).await.map_err(Stop::Refused)?;
        let request = self.rewritten(entry, request)?;
        let told = |address| entry.told.borrow_mut().address = Some(address);
        let response = self.upstream.send(&self.shared, &self.asked, request, told).await;
        if let Some(refusal) = entry.exhausted.take() {
            // Whatever became of a request that was cut off.
            return Err(Stop::Refused(refusal));
        }
        let response = response?;
        meter.pay(headers::length(response.headers())).await.map_err(Stop::Refused)?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Stop::Failed("the server switched to another protocol, which nobody asked for".into()));
        }
        let (mut head, body) = response.into_parts();
        headers::forget_connection(&mut head.headers);
        head.version = Version::HTTP_11;
        entry.answered.set(true);
        let body = Passed::new(body, entry, Direction::Down);
        Ok(Response::from_parts(head, Either::Left(body)))
    }

    /// Refuses a request that names another host.
    fn check_host(&self, request: &Request<Incoming>) -> Result<(), Stop> {
        let Asked { name, site, port } = &self.asked;
        let refused = |why: String| Stop::Refused(Refusal::because(why));
        let is_ours = |host: &str| is_for(host, name, *port) || is_for(host, name, site.port);
        let other = |host: &str| {
            let shown: String = host.escape_debug().take(100).collect();
            refused(format!("it was connected for {name}, and its request asks for {shown}"))
        };
        if request.method() == Method::CONNECT {
            return Err(refused("it takes this host for a proxy (CONNECT)".into()));
        }
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(refused("its request names no host, or more than one".into()));
        };
        let host = String::from_utf8_lossy(host.as_bytes());
        if !is_ours(&host) {
            return Err(other(&host));
        }
        match request.uri().authority() {
            Some(authority) if !is_ours(authority.as_str()) => Err(other(authority.as_str())),
            _ => Ok(()),
        }
    }

    /// The request as it is asked of the host.
    fn rewritten(&self, entry: &Rc<Entry>, request: Request<Incoming>) -> Result<Request<Passed>, Stop> {
        let failed = |error: hyper::http::Error| Stop::Failed(error.to_string());
        let Asked { name, site, .. } = &self.asked;
        let (mut head, body) = request.into_parts();
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        head.uri = target.parse::<Uri>().map_err(|error| failed(error.into()))?;
        head.version = Version::HTTP_11;
        headers::forget_connection(&mut head.headers);
        headers::forget_methods(&mut head.headers);
        headers::add_keys(&mut head.headers, self.keys()?);
        let host = if site.port == DEFAULT_PORT { name.to_string() } else { format!("{name}:{}", site.port) };
        let host = HeaderValue::try_from(host).map_err(|error| failed(error.into()))?;
        first(&mut head.headers, header::HOST, host);
        let body = Passed::new(body, entry, Direction::Up);
        Ok(Request::from_parts(head, body))
    }

    fn keys(&self) -> Result<Vec<(HeaderName, HeaderValue)>, Stop> {
        let Asked { name, site, .. } = &self.asked;
        let key = |credential: &Credential| {
            let prepared = self.shared.prepared.as_ref();
            let value =
                prepared.and_then(|prepared| prepared.with_key(&credential.secret, |key| value(credential, key)));
            let header = HeaderName::try_from(credential.how.header()).ok();
            header.zip(value.flatten()).ok_or_else(|| Stop::Failed(format!("key {} is not there", credential.secret)))
        };
        self.shared.policy.borrow().inspected().keys(name, site.port).map(key).collect()
    }
}

/// A key as its header has it.
fn value(credential: &Credential, key: &[u8]) -> Option<HeaderValue> {
    let whole = match &credential.how {
        How::Bearer => Zeroizing::new([b"Bearer ", key].concat()),
        How::Basic { user } => {
            let pair = Zeroizing::new([user.as_bytes(), b":", key].concat());
            let coded = Zeroizing::new(STANDARD.encode(&*pair));
            Zeroizing::new([b"Basic ", coded.as_bytes()].concat())
        }
        How::Header { .. } => Zeroizing::new(key.to_vec()),
    };
    HeaderValue::from_bytes(&whole).ok()
}

/// Some servers want it to be the first.
fn first(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    headers.remove(&name);
    let rest = std::mem::take(headers);
    headers.insert(name, value);
    headers.extend(rest);
}

/// An exchange in the ledger; it gets there however it ends.
pub(super) struct Entry {
    shared: Rc<Shared>,
    begun: Instant,
    up: Cell<u64>,
    down: Cell<u64>,
    answered: Cell<bool>,
    /// That a limit cut it off.
    exhausted: Cell<Option<Refusal>>,
    client: Rc<Client>,
    told: RefCell<told::Request>,
}

impl Entry {
    fn new(of: &Exchanges, request: &Request<Incoming>) -> Self {
        let Exchanges { shared, asked, client, .. } = of;
        let path: String = request.uri().path().escape_debug().take(MOST_TOLD).collect();
        let method: String = request.method().as_str().chars().take(32).collect();
        let told = told::Request {
            untrusted_request: Some(format!("{method} {path}")),
            ..begun(asked.name.to_string(), Some(asked.port))
        };
        Entry {
            shared: Rc::clone(shared),
            begun: Instant::now(),
            up: Cell::new(0),
            down: Cell::new(0),
            answered: Cell::new(false),
            exhausted: Cell::new(None),
            client: Rc::clone(client),
            told: RefCell::new(told),
        }
    }

    fn stopped(&self, verdict: Verdict, why: String, rule: Option<String>, allow: Option<String>) {
        let mut told = self.told.borrow_mut();
        (told.verdict, told.why, told.allow) = (verdict, Some(why), allow);
        told.rule = rule.or_else(|| told.rule.take());
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut told = self.told.borrow().clone().by(self.client.known());
        told.duration_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        (told.up, told.down) = (self.up.get(), self.down.get());
        if let Some(Refusal { why, .. }) = self.exhausted.take() {
            (told.verdict, told.why) = (Verdict::Refused, Some(why));
        }
        if told.verdict == Verdict::Allowed && !self.answered.get() {
            (told.verdict, told.why) = (Verdict::Failed, Some("it ended before it was answered".into()));
        }
        self.shared.ledger.record(told);
    }
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    Up,
    Down,
}

/// A body on its way, counted and not kept.
pub(super) struct Passed {
    body: Incoming,
    entry: Rc<Entry>,
    direction: Direction,
    /// A part that waits until the limits of the job let it move.
    held: Option<Held>,
}

struct Held {
    part: Frame<Bytes>,
    paid: Pin<Box<dyn Future<Output = Result<(), Refusal>>>>,
}

/// What ends a body: its sender, or a limit.
type Broken = Box<dyn std::error::Error + Send + Sync>;

impl Passed {
    fn new(body: Incoming, entry: &Rc<Entry>, direction: Direction) -> Self {
        Passed { body, entry: Rc::clone(entry), direction, held: None }
    }

    fn count(&self, bytes: usize) {
        let count = match self.direction {
            Direction::Up => &self.entry.up,
            Direction::Down => &self.entry.down,
        };
        count.set(count.get().saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX)));
    }
}

impl Body for Passed {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.held.is_none() {
            let part = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(part)) => part,
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(None),
            };
            let bytes = part.data_ref().map_or(0, Bytes::len);
            if !self.entry.shared.meter.bounds_bytes() {
                self.entry.shared.meter.moved(bytes);
                self.count(bytes);
                return Poll::Ready(Some(Ok(part)));
            }
            let entry = Rc::clone(&self.entry);
            let paid = Box::pin(async move { entry.shared.meter.pay(bytes).await });
            self.held = Some(Held { part, paid });
        }
        let Some(mut held) = self.held.take() else { return Poll::Ready(None) };
        match held.paid.as_mut().poll(cx) {
            Poll::Pending => {
                self.held = Some(held);
                Poll::Pending
            }
            Poll::Ready(Ok(())) => {
                self.count(held.part.data_ref().map_or(0, Bytes::len));
                Poll::Ready(Some(Ok(held.part)))
            }
            Poll::Ready(Err(refusal)) => {
                let why = refusal.why.clone();
                self.entry.exhausted.set(Some(refusal));
                Poll::Ready(Some(Err(why.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Of what is still in the body; what is held comes on top.
        let held = self.held.as_ref().and_then(|held| held.part.data_ref()).map_or(0, Bytes::len);
        let held = u64::try_from(held).unwrap_or(u64::MAX);
        let of_body = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower().saturating_add(held));
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}
