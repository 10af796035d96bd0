//! Single keys from the terminal while `up` follows: `d`. Only where stdin is a terminal and this process is in its foreground;
//! signals keep their meaning, and the terminal gets its modes back.

use std::io::{IsTerminal, Read};

use rustix::termios::{LocalModes, OptionalActions, Termios};
use tokio::sync::mpsc;

/// Keys pressed and not read yet; more is noise.
const KEYS_MAX: usize = 16;

/// Keys of the terminal, until dropped.
#[derive(Debug)]
pub(crate) struct Keys {
    pressed: mpsc::Receiver<u8>,
    saved: Termios,
}

impl Keys {
    /// Begins to listen; `None` where there is nobody to press a key.
    pub(crate) fn listen() -> Option<Self> {
        let stdin = std::io::stdin();
        let foreground = rustix::termios::tcgetpgrp(&stdin).is_ok_and(|group| group == rustix::process::getpgrp());
        if !stdin.is_terminal() || !foreground {
            return None;
        }
        let saved = rustix::termios::tcgetattr(&stdin).ok()?;
        let mut modes = saved.clone();
        modes.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &modes).ok()?;
        let (sender, pressed) = mpsc::channel(KEYS_MAX);
        // A thread of its own, not one of the runtime's: a read that never ends holds nobody.
        std::thread::spawn(move || {
            let mut byte = [0];
            while std::io::stdin().lock().read(&mut byte).is_ok_and(|n| n == 1) {
                let [key] = byte;
                if sender.blocking_send(key).is_err() {
                    break;
                }
            }
        });
        Some(Self { pressed, saved })
    }

    /// The next key. Cancel-safe; never comes once the terminal is gone.
    pub(crate) async fn next(&mut self) -> u8 {
        match self.pressed.recv().await {
            Some(key) => key,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // A terminal that is gone needs no modes.
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.saved);
    }
}
