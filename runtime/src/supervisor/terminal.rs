//! The user's terminal while a box has one of its own: raw, so that every key reaches the box, and put back afterwards.
//!
//! Invariant: whatever way the supervisor returns, the terminal has its old modes again. Signals cannot get between:
//! all that would end the program arrive through a descriptor.

use std::io;
use std::os::fd::OwnedFd;

use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, Winsize, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

/// The box's terminal and the state that agentd's own is to return to.
#[derive(Debug)]
pub(super) struct Terminal {
    /// None where somebody else has it.
    controller: Option<OwnedFd>,
    before: Option<Termios>,
}

impl Terminal {
    /// Takes over the box's terminal; puts agentd's own into raw mode when input is passed on.
    pub(super) fn new(controller: OwnedFd, interactive: bool) -> io::Result<Self> {
        let mut terminal = Self::of_another(interactive)?;
        terminal.controller = Some(controller);
        Ok(terminal)
    }

    /// Puts agentd's own into raw mode for a terminal that another process has.
    pub(super) fn of_another(raw: bool) -> io::Result<Self> {
        let mut before = None;
        if raw && isatty(stdin()) {
            let modes = tcgetattr(stdin())?;
            let mut raw = modes.clone();
            raw.make_raw();
            tcsetattr(stdin(), OptionalActions::Now, &raw)?;
            before = Some(modes);
        }
        Ok(Terminal { controller: None, before })
    }

    /// Gives the box's terminal the size of agentd's own. One without a size (a pipe) leaves it as it is.
    pub(super) fn resize(&self) {
        let own = if isatty(stdout()) { stdout() } else { stdin() };
        if let (Ok(size), Some(controller)) = (tcgetwinsize(own), &self.controller) {
            tcsetwinsize(controller, size).unwrap_or_default();
        }
    }

    /// Gives the box's terminal this size.
    pub(super) fn resize_to(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        if let Some(controller) = &self.controller {
            // One that is gone needs none.
            tcsetwinsize(controller, size).unwrap_or_default();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // A terminal that is gone has no modes to restore.
            // What was typed and not read is dropped: it may be the terminal's answer to a question of the payload's.
            tcsetattr(stdin(), OptionalActions::Flush, before).unwrap_or_default();
        }
    }
}
