//! The background tasks of a node: started together, ended together.
//!
//! A task that panics would leave a node that looks alive and does half its work, so that is fatal.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use tokio::task::JoinHandle;

use crate::options::FatalHook;

/// See the module.
pub(crate) struct Tasks {
    on_fatal: FatalHook,
    running: Mutex<Vec<JoinHandle<()>>>,
}

impl Tasks {
    pub(crate) fn new(on_fatal: FatalHook) -> Self {
        Self { on_fatal, running: Mutex::default() }
    }

    /// Starts one.
    pub(crate) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let on_fatal = self.on_fatal.clone();
        let watched = async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                on_fatal.0(&format!("the task {name} panicked: {}", message(&*panic)));
            }
        };
        self.running.lock().unwrap_or_else(PoisonError::into_inner).push(tokio::spawn(watched));
    }

    /// Ends all of them; returns when they are gone.
    pub(crate) async fn end(&self) {
        let running = std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner));
        running.iter().for_each(JoinHandle::abort);
        for task in running {
            // An aborted task says so.
            let _ = task.await;
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.running.get_mut().unwrap_or_else(PoisonError::into_inner).iter().for_each(JoinHandle::abort);
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
