//! When a node is told to stop, and how it stops.

use std::io::Read;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::Failure;

/// SIGTERM, SIGINT or, when asked for, the end of standard input.
#[derive(Debug)]
pub(crate) struct StopSignal {
    terminate: Signal,
    interrupt: Signal,
    parent_gone: mpsc::Receiver<()>,
    /// Keeps the channel open where no parent is watched.
    _watched: mpsc::Sender<()>,
}

impl StopSignal {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub(crate) fn listen(exit_with_parent: bool) -> Result<Self, Failure> {
        let handler = |kind| signal(kind).map_err(|error| Failure::new(format!("cannot listen for signals: {error}")));
        let (sender, parent_gone) = mpsc::channel(1);
        if exit_with_parent {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut bytes = [0; 64];
                while std::io::stdin().read(&mut bytes).is_ok_and(|read| read > 0) {}
                let _ = sender.blocking_send(());
            });
        }
        Ok(Self {
            terminate: handler(SignalKind::terminate())?,
            interrupt: handler(SignalKind::interrupt())?,
            parent_gone,
            _watched: sender,
        })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.parent_gone.recv() => "the end of the process that started it",
        }
    }
}
