//! Leads all actors through the phases, each in a thread of its own.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Actor, Part};
use crate::client::{Client, Directory, Identity};
use crate::history::record::Recorder;

/// Longest time for all clients to be set up, without any fault.
const SETUP_MAX: Duration = Duration::from_secs(60);
/// Longest time, once all faults are healed, until everything outstanding is finished.
const DRAIN_MAX: Duration = Duration::from_secs(90);
/// Longest time until everything that is left is read.
const READ_MAX: Duration = Duration::from_secs(90);
/// A subscriber for whom nothing has come for so long has read everything. More than the longest delay of a will.
const QUIET: Duration = Duration::from_secs(6);
const LOOK: Duration = Duration::from_millis(50);

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Phase {
    Setup,
    Load,
    Drain,
    Read,
    /// Nothing matters any more: everybody goes home.
    Over,
}

#[derive(Debug, Default)]
struct Shared {
    phase: AtomicU8,
    /// Actors that have finished the phase.
    finished: AtomicUsize,
    /// What did not finish in time.
    stuck: Mutex<Vec<String>>,
}

impl Shared {
    fn is_in(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::SeqCst) == phase as u8
    }

    fn finish(&self) {
        self.finished.fetch_add(1, Ordering::SeqCst);
    }

    fn stuck(&self, what: String) {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }
}

/// The running actors.
pub(crate) struct Stage {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Stage {
    /// Starts them, and waits until all are set up.
    ///
    /// # Errors
    /// Says who was not, without any fault.
    pub(crate) fn start(
        parts: Vec<Part>,
        seed: u64,
        recorder: &Recorder,
        nodes: &Directory,
        identity: &Identity,
    ) -> Result<Self, String> {
        let shared = Arc::new(Shared::default());
        let threads = (0..).zip(parts).map(|(id, part)| {
            let client = Client::new(id, seed, part.manner, recorder.clone(), nodes.clone(), identity.clone());
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || act(&shared, client, part.actor))
        });
        let stage = Self { threads: threads.collect(), shared };
        stage.wait(Phase::Setup, SETUP_MAX + Duration::from_secs(10));
        let stuck = stage.stuck();
        if stuck.is_empty() {
            return Ok(stage);
        }
        stage.enter(Phase::Over);
        for thread in stage.threads {
            // What it says is that it is over.
            drop(thread.join());
        }
        Err(stuck.join("; "))
    }

    /// The load begins.
    pub(crate) fn load(&self) {
        self.enter(Phase::Load);
    }

    /// All faults are healed: everything is finished and read. What was not, in words.
    pub(crate) fn drain(mut self) -> Vec<String> {
        self.enter(Phase::Drain);
        self.wait(Phase::Drain, DRAIN_MAX * 2);
        self.enter(Phase::Read);
        for thread in std::mem::take(&mut self.threads) {
            if thread.join().is_err() {
                self.shared.stuck("a client panicked".to_owned());
            }
        }
        self.stuck()
    }

    fn enter(&self, phase: Phase) {
        self.shared.finished.store(0, Ordering::SeqCst);
        self.shared.phase.store(phase as u8, Ordering::SeqCst);
    }

    fn wait(&self, phase: Phase, bound: Duration) {
        let end = Instant::now() + bound;
        while self.shared.finished.load(Ordering::SeqCst) < self.threads.len() {
            if Instant::now() >= end {
                return self.shared.stuck(format!("not all clients finished the phase {phase:?} within {bound:?}"));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn stuck(&self) -> Vec<String> {
        self.shared.stuck.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn act(shared: &Shared, mut client: Client, mut actor: Box<dyn Actor>) {
    let id = client.id.0;
    let end = Instant::now() + SETUP_MAX;
    while !(client.ensure_connected(end) && actor.setup(&mut client)) {
        if Instant::now() >= end {
            shared.stuck(format!("client {id} was not set up"));
            break;
        }
    }
    shared.finish();
    while shared.is_in(Phase::Setup) {
        client.pump(LOOK);
    }
    while shared.is_in(Phase::Load) {
        actor.turn(&mut client);
    }
    let end = Instant::now() + DRAIN_MAX;
    while !(shared.is_in(Phase::Over) || client.ensure_connected(end) && client.open() == 0) {
        if Instant::now() >= end {
            let open = client.open();
            shared.stuck(match client.is_connected() {
                true => format!("client {id}: {open} publishes were not finished after all faults were healed"),
                false => format!("client {id} got no connection after all faults were healed"),
            });
            break;
        }
        client.pump(LOOK);
    }
    if shared.is_in(Phase::Over) {
        return client.give_up();
    }
    actor.last(&mut client);
    shared.finish();
    // Subscribers go on reading: who is silent now would break the connection of nobody but itself.
    while shared.is_in(Phase::Drain) {
        client.pump(LOOK);
        if client.manner.expiry_s > 0 {
            client.ensure_connected(Instant::now());
        }
    }
    read_all(shared, &mut client);
    client.give_up();
}

/// Reads until nothing has come for a while.
fn read_all(shared: &Shared, client: &mut Client) {
    // A session that ends with its connection has nothing left to read.
    if client.manner.expiry_s == 0 {
        return;
    }
    let (begin, end) = (Instant::now(), Instant::now() + READ_MAX);
    client.manner.hold_percent = 0;
    while Instant::now() < end {
        let last = client.delivered_at.map_or(begin, |at| at.max(begin));
        if client.is_connected() && client.unreleased() == 0 && last.elapsed() >= QUIET {
            return;
        }
        client.ensure_connected(end);
        client.pump(LOOK);
    }
    let (id, open) = (client.id.0, client.unreleased());
    shared.stuck(format!("client {id} was not quiet after all faults were healed; {open} deliveries not released"));
}
