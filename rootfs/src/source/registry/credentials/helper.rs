//! Credential helpers: `docker-credential-NAME get`, the registry on its standard input, JSON on its output.
//!
//! Invariant: a helper is given [`TIME`] and [`LONGEST`] bytes, and what it says is kept out of messages: secrets are
//! its business.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::error::RegistryError;
use super::super::files;
use super::Credential;
use crate::printable::printable;

/// Long enough for a person to unlock a key ring.
const TIME: Duration = Duration::from_secs(60);
const LONGEST: usize = 1 << 20;
/// What a helper says, with exit status 1, of a registry it does not know.
const UNKNOWN: &str = "credentials not found in native keychain";

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks the helper that `path` names.
pub(super) fn ask(helper: &str, registry: &str, path: &Path) -> Result<Option<Credential>, RegistryError> {
    let bad = |reason: String| RegistryError::Helper {
        helper: printable(helper.as_bytes()),
        path: files::shown(path),
        reason,
    };
    if !helper.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Err(bad("its name is not one of letters, digits, `-`, `_` and `.`".into()));
    }
    // The name under which docker keeps Docker Hub's.
    let server = if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry };
    let mut command = Command::new(format!("docker-credential-{helper}"));
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| bad(format!("it cannot be started: {error}")))?;
    let output = converse(&mut child, server, TIME);
    if output.is_err() {
        // It may have ended by itself; waiting tells.
        child.kill().ok();
    }
    let status = child.wait().map_err(|error| bad(error.to_string()))?;
    let by_hand = format!("echo {server} | docker-credential-{helper} get");
    output.and_then(|output| understood(status, &output, &by_hand)).map_err(bad)
}

/// What a helper that ended so and said so means; `by_hand` asks it the same.
fn understood(status: ExitStatus, output: &[u8], by_hand: &str) -> Result<Option<Credential>, String> {
    if !status.success() {
        let unknown = String::from_utf8_lossy(output).contains(UNKNOWN);
        return if unknown { Ok(None) } else { Err(format!("it failed ({status}); see `{by_hand}`")) };
    }
    let answer: Answer =
        serde_json::from_slice(output).map_err(|_may_quote_it| "its answer is not what docker expects".to_owned())?;
    Ok(match (answer.username.as_str(), answer.secret) {
        ("", secret) if secret.is_empty() => None,
        ("<token>", token) => Some(Credential::IdentityToken(token)),
        (user, password) => Some(Credential::Password { user: user.to_owned(), password }),
    })
}

/// Writes the question and reads the answer to its end.
fn converse(child: &mut Child, server: &str, time: Duration) -> Result<Vec<u8>, String> {
    let deadline = Instant::now() + time;
    let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("it has no pipes".into());
    };
    // Far less than a pipe holds. One that does not read its question may still know the answer.
    stdin.write_all(server.as_bytes()).ok();
    drop(stdin);
    let mut output = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_too_long| "it has too much time")?;
        match poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(format!("it did not answer within {} s", time.as_secs())),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.to_string()),
        }
        let read = stdout.read(&mut buffer).map_err(|error| error.to_string())?;
        if read == 0 {
            return Ok(output);
        }
        output.extend_from_slice(&buffer[..read]);
        if output.len() > LONGEST {
            return Err(format!("it says more than {LONGEST} bytes"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn shell(script: &str, time: Duration) -> Result<Vec<u8>, String> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = converse(&mut child, "r.example", time);
        child.kill().ok();
        child.wait().unwrap();
        output
    }

    #[test]
    fn a_helper_is_asked_and_bounded() {
        assert_eq!(shell("cat", TIME).unwrap(), b"r.example");
        assert_eq!(shell("exec <&-; echo yes", TIME).unwrap(), b"yes\n");
        let silent = shell("exec sleep 3600", Duration::from_millis(50)).unwrap_err();
        assert!(silent.starts_with("it did not answer"), "{silent}");
        let endless = shell("exec cat /dev/zero", TIME).unwrap_err();
        assert!(endless.contains("more than 1048576 bytes"), "{endless}");
    }

    #[test]
    fn what_a_helper_says_is_a_password_a_token_or_nothing() {
        let token = Some(Credential::IdentityToken("t".into()));
        let password = Some(Credential::Password { user: "u".into(), password: "p".into() });
        let not_found = format!("{UNKNOWN}\n");
        let not_found = not_found.as_str();
        for (code, said, want) in [
            (0, r#"{"ServerURL":"r.example","Username":"<token>","Secret":"t"}"#, Ok(token)),
            (0, r#"{"ServerURL":"r.example","Username":"u","Secret":"p"}"#, Ok(password)),
            (0, r#"{"Username":"","Secret":""}"#, Ok(None)),
            (1, not_found, Ok(None)),
            (0, not_found, Err("its answer is not what docker expects")),
            (0, r#"{"Username":"u","Secret":["secret"]}"#, Err("its answer is not what docker expects")),
            (1, "secret", Err("it failed (exit status: 1); see `by hand`")),
        ] {
            // As wait(2) has it: the code is the second byte.
            let got = understood(ExitStatus::from_raw(code << 8), said.as_bytes(), "by hand");
            assert_eq!(got, want.map_err(str::to_owned), "{said}");
        }
    }

    #[test]
    fn a_helper_is_named_safely_and_must_be_there() {
        for helper in ["../../tmp/x", "a b", "absent-helper-of-a-test"] {
            let error = ask(helper, "r.example", Path::new("/h/config.json")).unwrap_err().to_string();
            assert!(error.contains("which `/h/config.json` names, gives no credentials"), "{error}");
        }
    }
}
