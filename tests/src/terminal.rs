//! A terminal that the test is the user of: a pty, what was shown on it, keys, size, modes, and hanging up.
//!
//! Invariant: nothing but this value holds the controlling side, so dropping it is the terminal going away.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::{Ran, Started, ran::LIMIT, wait_until};

/// The terminal.
#[derive(Debug)]
pub struct Terminal {
    controller: OwnedFd,
    user: OwnedFd,
    shown: Vec<u8>,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Terminal {
    /// A terminal of 24 rows and 80 columns.
    #[must_use]
    pub fn new() -> Self {
        let make = || {
            let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            unlockpt(&controller)?;
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let user = ioctl_tiocgptpeer(&controller, flags)?;
            io::Result::Ok(Self { controller, user, shown: Vec::new() })
        };
        let terminal = make().unwrap_or_else(|e| panic!("pty: {e}"));
        terminal.resize(24, 80);
        terminal
    }

    /// The other side, as a stream of a command.
    #[must_use]
    pub fn stream(&self) -> Stdio {
        self.user.try_clone().unwrap_or_else(|e| panic!("pty: {e}")).into()
    }

    /// Starts `command` with all its streams on the terminal, in a session of its own that the terminal
    /// controls.
    #[must_use]
    pub fn start(&self, command: &Command) -> Started {
        // setsid(1) becomes the command. Doing the same in the child by hand would need unsafe code.
        let mut on_terminal = Command::new("setsid");
        on_terminal.arg("--ctty");
        let mut on_terminal = crate::behind(on_terminal, command);
        on_terminal.stdin(self.stream()).stdout(self.stream()).stderr(self.stream());
        Started::with_streams(&mut on_terminal)
    }

    /// Presses keys.
    pub fn press(&self, keys: &[u8]) {
        let written = rustix::io::write(&self.controller, keys);
        assert_eq!(written, Ok(keys.len()), "keys");
    }

    /// Changes the size; the kernel tells the foreground process group by SIGWINCH.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.controller, size).unwrap_or_else(|e| panic!("TIOCSWINSZ: {e}"));
    }

    /// Its modes, in words.
    #[must_use]
    pub fn modes(&self) -> String {
        let Termios { input_modes, output_modes, control_modes, local_modes, .. } =
            tcgetattr(&self.user).unwrap_or_else(|e| panic!("TCGETS: {e}"));
        format!("{input_modes:?} {output_modes:?} {control_modes:?} {local_modes:?}")
    }

    /// Everything shown so far.
    #[must_use]
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    /// Waits until `text` was shown.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let found = wait_until(LIMIT, || {
            self.look();
            self.shown().contains(text)
        });
        assert!(found, "no {text:?} was shown\n--- terminal\n{}", self.shown());
    }

    /// Waits for the end of what was started on it; what it showed is the `stdout` of the answer.
    #[track_caller]
    #[must_use]
    pub fn finish(&mut self, mut started: Started) -> Ran {
        let ended = wait_until(LIMIT, || {
            let ended = started.has_ended();
            self.look();
            ended
        });
        assert!(ended, "still runs\n--- terminal\n{}", self.shown());
        let Ran { status, took, .. } = started.finish();
        Ran::new(status, std::mem::take(&mut self.shown), Vec::new(), took)
    }

    fn look(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            let mut fds = [PollFd::new(&self.controller, PollFlags::IN)];
            let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
            if ready != Ok(1) {
                return;
            }
            match rustix::io::read(&self.controller, &mut buffer) {
                Ok(read @ 1..) => self.shown.extend_from_slice(&buffer[..read]),
                _ => return,
            }
        }
    }
}
