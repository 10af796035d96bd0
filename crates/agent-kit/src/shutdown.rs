//! The request to end, by SIGTERM or SIGINT: heard once, seen by everyone who waits.

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Whether the process is asked to end. Clones share it.
#[derive(Debug, Clone)]
pub struct Shutdown {
    asked: watch::Receiver<bool>,
    ask: std::sync::Arc<watch::Sender<bool>>,
}

impl Shutdown {
    /// Nobody asks yet, and no signal is listened to.
    #[must_use]
    pub fn quiet() -> Self {
        let (ask, asked) = watch::channel(false);
        Self { asked, ask: std::sync::Arc::new(ask) }
    }

    /// Listens to SIGTERM and SIGINT from now on. Needs a runtime.
    ///
    /// # Errors
    /// When the system refuses the handlers.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::quiet();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let asking = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            asking.ask();
        });
        Ok(shutdown)
    }

    /// Asks.
    pub fn ask(&self) {
        self.ask.send_replace(true);
    }

    /// Whether it was asked.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        *self.asked.borrow()
    }

    /// Waits until it is asked. Cancel-safe.
    pub async fn asked(&mut self) {
        if self.asked.wait_for(|asked| *asked).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
