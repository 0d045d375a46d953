//! What the user's manager is asked on its private socket: a transient scope for this process, and whether the service that
//! this process is in has its cgroup to divide.
//!
//! Of D-Bus these are two method calls, their answers and one signal (docs/adr/0014); no message bus is between.
//!
//! Invariant: nothing the manager says is longer than [`MAX_MESSAGE`] or waited for longer than [`PATIENCE`], and a message
//! that is not as the D-Bus specification has it is an error, never a panic.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Position, position};

/// Far above what any of the messages is.
const MAX_MESSAGE: usize = 64 * 1024;

/// A manager that is alive answers in milliseconds; one that starts many units at once, in seconds.
const PATIENCE: Duration = Duration::from_secs(20);

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Header fields, by the codes of the D-Bus specification.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// Why there is no scope.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// The socket.
    #[error("cannot ask systemd at {} for a scope", manager.display())]
    Socket {
        /// The socket.
        manager: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It said no.
    #[error("systemd gives no scope: {}", .0.escape_debug())]
    Refused(String),
    /// It said yes, and this process is not in the scope.
    #[error("systemd made a scope, but this process is not in it")]
    NotMoved,
}

/// Asks the manager at the socket `manager` for the scope `name` with this process in it; gives its cgroup below
/// `hierarchy`.
pub(super) fn enter(manager: &Path, hierarchy: &Path, name: &str) -> Result<PathBuf, ScopeError> {
    let socket = |source| ScopeError::Socket { manager: manager.to_owned(), source };
    // A job that is started again is in it still.
    if let Some(directory) = held(hierarchy, name).map_err(socket)? {
        return Ok(directory);
    }
    let mut connection = Connection::open(manager).map_err(socket)?;
    connection.stream.write_all(&start_transient_unit(name, std::process::id())).map_err(socket)?;
    loop {
        let message = connection.message().map_err(socket)?;
        match untrusted_outcome(&message, name) {
            Some(Ok(())) => break,
            Some(Err(why)) => return Err(ScopeError::Refused(why)),
            None => {}
        }
    }
    held(hierarchy, name).map_err(socket)?.ok_or(ScopeError::NotMoved)
}

/// The cgroup of the scope `name`, where this process is in it, or in the part of it that a supervisor steps aside to.
fn held(hierarchy: &Path, name: &str) -> io::Result<Option<PathBuf>> {
    let cgroups = std::fs::read_to_string("/proc/self/cgroup")?;
    let Position::At(own) = position(hierarchy.to_str().map(|point| ("/", point)), &cgroups) else { return Ok(None) };
    Ok(own.ancestors().take(2).find(|directory| directory.ends_with(name)).map(Path::to_owned))
}

/// Whether the manager at the socket `manager` has given the cgroup of its service `unit` away (`Delegate=`).
pub(super) fn is_delegated(manager: &Path, unit: &str) -> io::Result<bool> {
    let mut connection = Connection::open(manager)?;
    connection.stream.write_all(&get_delegate(unit))?;
    loop {
        let message = connection.message()?;
        match untrusted_answer(&message) {
            Some(answer) => return Ok(answer),
            // The manager tells everybody of this and that.
            None if message.get(1) == Some(&SIGNAL) => {}
            None => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

struct Connection {
    stream: UnixStream,
    deadline: Instant,
}

impl Connection {
    /// Connects, and says by the socket's credentials who this is.
    fn open(manager: &Path) -> io::Result<Self> {
        let mut connection = Self { stream: UnixStream::connect(manager)?, deadline: Instant::now() + PATIENCE };
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        connection.stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") {
            if answer.len() > 1024 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut byte = [0];
            connection.read(&mut byte)?;
            answer.extend(byte);
        }
        if !answer.starts_with(b"OK ") {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        connection.stream.write_all(b"BEGIN\r\n")?;
        Ok(connection)
    }

    fn read(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => buffer = buffer.get_mut(read..).unwrap_or_default(),
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn message(&mut self) -> io::Result<Vec<u8>> {
        let mut message = vec![0; 16];
        self.read(&mut message)?;
        let length = untrusted_length(&message).ok_or(io::ErrorKind::InvalidData)?;
        message.resize(length, 0);
        self.read(message.get_mut(16..).unwrap_or_default())?;
        Ok(message)
    }
}

/// The length of the message that begins with these 16 bytes.
fn untrusted_length(head: &[u8]) -> Option<usize> {
    // Big-endian managers are on big-endian machines, where this program would have to be one too.
    let (b'l', 1) = (*head.first()?, *head.get(3)?) else { return None };
    let body = usize::try_from(u32_at(head, 4)?).ok()?;
    let fields = usize::try_from(u32_at(head, 12)?).ok()?;
    let length = 16_usize.checked_add(fields)?.checked_next_multiple_of(8)?.checked_add(body)?;
    (length <= MAX_MESSAGE).then_some(length)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The string (or object path) at `at`, and where it ends.
fn untrusted_string(bytes: &[u8], at: usize) -> Option<(&str, usize)> {
    let at = at.checked_next_multiple_of(4)?;
    let from = at.checked_add(4)?;
    let to = from.checked_add(usize::try_from(u32_at(bytes, at)?).ok()?)?;
    Some((std::str::from_utf8(bytes.get(from..to)?).ok()?, to.checked_add(1)?))
}

/// What is looked at of a message's head.
#[derive(Debug, Default, PartialEq, Eq)]
struct Head<'a> {
    member: &'a str,
    error: &'a str,
    /// Whether it answers a call; only one is ever made.
    replies: bool,
    /// Where the body begins.
    body: usize,
}

fn untrusted_head(message: &[u8]) -> Option<Head<'_>> {
    let fields_end = 16_usize.checked_add(usize::try_from(u32_at(message, 12)?).ok()?)?;
    let mut head = Head { body: fields_end.checked_next_multiple_of(8)?, ..Head::default() };
    let mut at = 16;
    while at < fields_end {
        at = at.checked_next_multiple_of(8)?;
        let code = *message.get(at)?;
        // The signature of the value: its length, its one letter, a NUL.
        let (1, letter) = (*message.get(at.checked_add(1)?)?, *message.get(at.checked_add(2)?)?) else { return None };
        let value = at.checked_add(4)?;
        at = match letter {
            b's' | b'o' => {
                let (text, end) = untrusted_string(message, value)?;
                match code {
                    MEMBER => head.member = text,
                    ERROR_NAME => head.error = text,
                    _ => {}
                }
                end
            }
            b'u' => {
                head.replies |= code == REPLY_SERIAL;
                value.checked_add(4)?
            }
            b'g' => value.checked_add(usize::from(*message.get(value)?))?.checked_add(2)?,
            _ => return None,
        };
    }
    Some(head)
}

/// What a message of the manager's means for the request for `unit`: done, refused, or nothing.
fn untrusted_outcome(message: &[u8], unit: &str) -> Option<Result<(), String>> {
    let Head { member, error, replies, body } = untrusted_head(message)?;
    match *message.get(1)? {
        ERROR if replies => {
            let text = untrusted_string(message, body).map_or("", |(text, _)| text);
            Some(Err(format!("{error}: {text}")))
        }
        // `JobRemoved(u id, o job, s unit, s result)` tells the end of the job that the answer only announces.
        SIGNAL if member == "JobRemoved" => {
            let (_, next) = untrusted_string(message, body.checked_add(4)?)?;
            let (of, next) = untrusted_string(message, next)?;
            let (result, _) = untrusted_string(message, next)?;
            (of == unit).then(|| if result == "done" { Ok(()) } else { Err(format!("its job ended with {result}")) })
        }
        METHOD_RETURN | SIGNAL | METHOD_CALL | ERROR => None,
        _ => None,
    }
}

/// The answer to [`get_delegate`]: a variant of a boolean, which is a number of four bytes.
fn untrusted_answer(message: &[u8]) -> Option<bool> {
    let head = untrusted_head(message)?;
    let is_boolean = message.get(head.body..head.body.checked_add(3)?)? == b"\x01b\0";
    let is_answer = *message.get(1)? == METHOD_RETURN && head.replies && is_boolean;
    if is_answer { Some(u32_at(message, head.body.checked_add(4)?)? == 1) } else { None }
}

/// D-Bus's wire format: little-endian, each value aligned to its size.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) -> &mut Self {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.align(4).0.extend(value.to_le_bytes());
        self
    }

    fn string(&mut self, text: &str) -> &mut Self {
        self.u32(u32::try_from(text.len()).unwrap_or(0)).0.extend(text.bytes().chain([0]));
        self
    }

    fn signature(&mut self, text: &str) -> &mut Self {
        self.0.push(u8::try_from(text.len()).unwrap_or(0));
        self.0.extend(text.bytes().chain([0]));
        self
    }

    /// An array whose elements are aligned to 8 bytes.
    fn array(&mut self, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.u32(0);
        let length_at = self.0.len() - 4;
        let from = self.align(8).0.len();
        fill(self);
        let length = u32::try_from(self.0.len() - from).unwrap_or(0);
        if let Some(place) = self.0.get_mut(length_at..length_at + 4) {
            place.copy_from_slice(&length.to_le_bytes());
        }
        self
    }

    /// A struct of a name and a variant.
    fn property(&mut self, name: &str, signature: &str) -> &mut Self {
        self.align(8).string(name).signature(signature)
    }
}

/// `StartTransientUnit(s name, s mode, a(sv) properties, a(sa(sv)) auxiliary)`.
fn start_transient_unit(name: &str, pid: u32) -> Vec<u8> {
    let mut body = Writer::default();
    body.string(name).string("fail").array(|properties| {
        properties.property("Description", "s").string("agentd job");
        // This process, which may then divide the scope's cgroup as it likes.
        properties.property("PIDs", "au").u32(4).u32(pid);
        properties.property("Delegate", "b").u32(1);
        // Else a scope whose process was killed would stay in the list of failed units.
        properties.property("CollectMode", "s").string("inactive-or-failed");
    });
    body.array(|_none| ());
    call(
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
        "StartTransientUnit",
        "ssa(sv)a(sa(sv))",
        &body,
    )
}

/// `Get(s interface, s property)` of the service `unit`.
fn get_delegate(unit: &str) -> Vec<u8> {
    // A name in an object's path has letters and digits; systemd writes every other byte in hexadecimal.
    let mut path = "/org/freedesktop/systemd1/unit/".to_owned();
    for (at, byte) in unit.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => path.push(char::from(byte)),
            b'0'..=b'9' if at > 0 => path.push(char::from(byte)),
            byte => path.push_str(&format!("_{byte:02x}")),
        }
    }
    let mut body = Writer::default();
    body.string("org.freedesktop.systemd1.Service").string("Delegate");
    call(&path, "org.freedesktop.DBus.Properties", "Get", "ss", &body)
}

fn call(path: &str, interface: &str, member: &str, signature: &str, body: &Writer) -> Vec<u8> {
    let mut message = Writer::default();
    message.0.extend([b'l', METHOD_CALL, 0, 1]);
    message.u32(u32::try_from(body.0.len()).unwrap_or(0)).u32(1).array(|fields| {
        for (code, letter, value) in [
            (PATH, "o", path),
            (INTERFACE, "s", interface),
            (MEMBER, "s", member),
            (DESTINATION, "s", "org.freedesktop.systemd1"),
        ] {
            fields.align(8).0.push(code);
            fields.signature(letter).string(value);
        }
        fields.align(8).0.push(SIGNATURE);
        fields.signature("g").signature(signature);
    });
    message.align(8).0.extend(&body.0);
    message.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u8, fields: &[(u8, &str, &str)], serial: Option<u32>, body: &[u8]) -> Vec<u8> {
        let mut message = Writer::default();
        message.0.extend([b'l', kind, 0, 1]);
        message.u32(u32::try_from(body.len()).unwrap()).u32(7).array(|writer| {
            for (code, letter, value) in fields {
                writer.align(8).0.push(*code);
                writer.signature(letter).string(value);
            }
            if let Some(serial) = serial {
                writer.align(8).0.push(REPLY_SERIAL);
                writer.signature("u").u32(serial);
            }
        });
        message.align(8).0.extend(body);
        message.0
    }

    fn removed(unit: &str, result: &str) -> Vec<u8> {
        let mut body = Writer::default();
        body.u32(5).string("/org/freedesktop/systemd1/job/5").string(unit).string(result);
        message(SIGNAL, &[(PATH, "o", "/org/freedesktop/systemd1"), (MEMBER, "s", "JobRemoved")], None, &body.0)
    }

    #[test]
    fn the_end_of_the_units_job_is_the_outcome() {
        assert_eq!(untrusted_outcome(&removed("a.scope", "done"), "a.scope"), Some(Ok(())));
        assert!(untrusted_outcome(&removed("a.scope", "failed"), "a.scope").unwrap().unwrap_err().contains("failed"));
        assert_eq!(untrusted_outcome(&removed("b.scope", "done"), "a.scope"), None);
        assert_eq!(untrusted_outcome(&message(METHOD_RETURN, &[], Some(1), &[]), "a.scope"), None);
        let mut text = Writer::default();
        text.string("no such thing");
        let error = message(ERROR, &[(ERROR_NAME, "s", "org.example.No")], Some(1), &text.0);
        assert_eq!(untrusted_outcome(&error, "a.scope"), Some(Err("org.example.No: no such thing".into())));
    }

    #[test]
    fn a_request_has_the_length_its_head_says() {
        let request = start_transient_unit("agentd-0123456789ab.scope", 4_000_000);
        assert_eq!(untrusted_length(&request), Some(request.len()));
        let request = get_delegate("agentd@a.service");
        assert_eq!(untrusted_length(&request), Some(request.len()));
        let path = b"/org/freedesktop/systemd1/unit/agentd_40a_2eservice\0";
        assert!(request.windows(path.len()).any(|window| window == path));
    }

    #[test]
    fn a_property_is_a_boolean_or_no_answer() {
        let mut yes = Writer::default();
        yes.signature("b").u32(1);
        assert_eq!(untrusted_answer(&message(METHOD_RETURN, &[], Some(1), &yes.0)), Some(true));
        let mut no = Writer::default();
        no.signature("b").u32(0);
        assert_eq!(untrusted_answer(&message(METHOD_RETURN, &[], Some(1), &no.0)), Some(false));
        let mut text = Writer::default();
        text.signature("s").string("yes");
        assert_eq!(untrusted_answer(&message(METHOD_RETURN, &[], Some(1), &text.0)), None);
        let error = message(ERROR, &[(ERROR_NAME, "s", "org.example.No")], Some(1), &yes.0);
        assert_eq!((untrusted_answer(&error), untrusted_answer(&removed("a", "done"))), (None, None));
    }

    #[test]
    fn a_message_that_is_too_long_is_refused() {
        let mut head = removed("a", "done");
        head.splice(4..8, u32::MAX.to_le_bytes());
        assert_eq!(untrusted_length(&head), None);
        head.splice(4..8, 70_000_u32.to_le_bytes());
        assert_eq!(untrusted_length(&head), None);
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_taken_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..300), sound: bool) {
            if sound && bytes.len() > 3 {
                (bytes[0], bytes[3]) = (b'l', 1);
            }
            prop_assert!(untrusted_length(&bytes).is_none_or(|length| (16..=MAX_MESSAGE).contains(&length)));
            // That it returns at all.
            drop(untrusted_outcome(&bytes, "a.scope"));
            let _answer = untrusted_answer(&bytes);
        }

        #[test]
        fn a_sound_message_that_was_damaged_is_taken_or_refused(at in 0_usize..200, byte: u8) {
            let mut bytes = removed("a.scope", "done");
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            drop(untrusted_outcome(&bytes, "a.scope"));
        }
    }
}
