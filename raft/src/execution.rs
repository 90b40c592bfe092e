//! Where a node does what must not hold up a runtime thread.

use tokio::task::{JoinError, spawn_blocking};

/// On which threads a node's blocking work runs. It changes no outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Execution {
    /// On threads of their own: the apply thread, and the runtime's for blocking work.
    #[default]
    Threads,
    /// All of it on the runtime's only thread, for simulations: one thread, one order.
    InPlace,
}

impl Execution {
    /// Runs what waits for the disk.
    ///
    /// # Errors
    /// When it panics, or the runtime is shutting down.
    pub(crate) async fn blocking<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        match self {
            Self::Threads => spawn_blocking(work).await,
            Self::InPlace => Ok(work()),
        }
    }
}
