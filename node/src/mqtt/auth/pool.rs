//! Threads for what costs time: argon2id takes tens of milliseconds and 19 MiB, on purpose, and a signature takes a
//! fraction of one.
//!
//! How much runs at a time and how much waits is bounded; a client beyond that is told to come back later. What its
//! client gave up on is not computed.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// See the module.
pub struct Pool {
    jobs: SyncSender<Job>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

/// As much waits as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

impl Pool {
    /// Starts `threads` of them; `waiting_max` jobs may wait.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(threads: usize, waiting_max: usize) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(waiting_max);
        let queue = Arc::new(Mutex::new(queue));
        for n in 0..threads.max(1) {
            let queue = queue.clone();
            std::thread::Builder::new().name(format!("auth-{n}")).spawn(move || work(&queue))?;
        }
        Ok(Self { jobs })
    }

    /// Runs `job` on one of the threads, unless nobody waits for the answer any more by then.
    ///
    /// # Errors
    /// [`Busy`].
    pub fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, Busy> {
        let (answer, result) = oneshot::channel();
        let job = Box::new(move || {
            if !answer.is_closed() {
                let _ = answer.send(job());
            }
        });
        match self.jobs.try_send(job) {
            Ok(()) => Ok(result),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Busy),
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        // One thread waits for a job, the others for the lock; the pool is gone when there is none.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // A job that panics has dropped its answer, so its client is told that the server is at fault; the thread is
        // there for the others.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("an authentication panicked: its client is refused");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    #[allow(clippy::panic)]
    fn a_job_that_panics_takes_no_thread_with_it() {
        let pool = Pool::start(1, 2).unwrap();
        let lost = pool.run(|| -> u32 { panic!("on purpose") }).unwrap();
        assert!(lost.blocking_recv().is_err(), "nobody answers");
        assert_eq!(pool.run(|| 7).unwrap().blocking_recv(), Ok(7));
    }

    #[test]
    fn what_is_above_the_bound_is_told_so_and_what_nobody_waits_for_is_not_computed() {
        let pool = Pool::start(1, 2).unwrap();
        let (go, wait) = channel::<()>();
        let (begun, begins) = channel();
        let first = pool.run(move || {
            begun.send(()).unwrap();
            wait.recv().unwrap();
            1
        });
        begins.recv().unwrap();
        let computed = Arc::new(AtomicUsize::new(0));
        let count = |computed: &Arc<AtomicUsize>| {
            let computed = computed.clone();
            pool.run(move || computed.fetch_add(1, Ordering::SeqCst))
        };
        let waiting = [count(&computed).unwrap(), count(&computed).unwrap()];
        assert!(count(&computed).is_err(), "two wait");
        drop(waiting);
        go.send(()).unwrap();
        assert_eq!(first.unwrap().blocking_recv(), Ok(1));
        let last = loop {
            if let Ok(last) = count(&computed) {
                break last;
            }
            std::thread::yield_now();
        };
        assert_eq!(last.blocking_recv(), Ok(0), "those that nobody waited for were not computed");
    }
}
