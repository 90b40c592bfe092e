//! The apply thread: the only owner of the state machine.
//!
//! One std thread applies committed entries run by run, decoded before they come here: `machine.apply`, one atomic
//! row write for the whole run, then the effects, and only then openraft's responders. Whatever else needs the machine
//! (QoS 0 routing, digests) queues for the same thread. It never does network I/O and never waits for
//! anything but its queue and the row store. When it cannot apply an entry it stops for good: the process
//! ends, because a replica must not guess or skip.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::thread;

use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use openraft::storage::{ApplyResponder, EntryResponder};
use quorate_store::access::Access;
use quorate_store::codec::{self, CodecError};
use quorate_store::command::{Batch, Command, Origin};
use quorate_store::effect::{Effect, EffectSink};
use quorate_store::ids::{ClusterTime, Incarnation, NodeId};
use quorate_store::machine::{EntryContext, Machine, MachineError};
use quorate_store::rows::{Rows, RowsReader};
use quorate_store::seeded_bug::{SeededBug, is_seeded};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::error;

use crate::consensus::AppliedView;
use crate::encoding::{self, EncodingError};
use crate::execution::Execution;
use crate::peer::AddressBook;
use crate::types::{LogId, Membership, StoredMembership, Types};

/// Takes the effects of this node on the apply thread. Implemented beside the proposer; must never block.
///
/// For each run: `wants`/`effect` as entries are applied (rows are not written yet: only collect), then
/// one `committed`, when the rows of the whole run are readable: hand over to [`crate::NodeEffects`] and
/// to the proposer there. `installed` replaces both when a snapshot was installed on the running node.
pub(crate) trait ApplyObserver: Send + 'static {
    /// Whether effects for this incarnation are wanted here.
    fn wants(&self, incarnation: Incarnation) -> bool;
    /// Takes one, in log order.
    fn effect(&mut self, effect: Effect);
    /// The run is written.
    fn committed(&mut self, applied: AppliedView);
    /// A snapshot was installed: the outcomes between are gone, the incarnation owes them, so it is over.
    fn installed(&mut self, applied: AppliedView);
}

/// The machine as this node runs it.
pub(crate) type NodeMachine = Machine<Rows>;

/// Something to do with the machine on the apply thread, between two runs. Must be short.
pub(crate) type MachineJob = Box<dyn FnOnce(&mut NodeMachine) + Send>;

/// Most jobs that wait for the apply thread beside the entries.
pub(crate) const JOBS_MAX: usize = 4096;

/// The queue of the apply thread is full.
#[derive(Clone, Copy, Debug, Error)]
#[error("the apply thread has {JOBS_MAX} jobs waiting")]
pub(crate) struct ApplyBusy;

/// Why applying stopped for good.
#[derive(Debug, Error)]
pub(crate) enum ApplyError {
    /// A batch does not decode, for example because it was written by a newer version.
    #[error("log entry {index} does not decode: {error}; if the other nodes run a newer version, upgrade this one")]
    Batch {
        /// Which entry.
        index: u64,
        /// What is wrong.
        error: CodecError,
    },
    /// The machine refuses to go on.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A membership cannot be kept.
    #[error("the membership cannot be encoded: {0}")]
    Membership(#[from] CodecError),
    /// What the rows say of Raft is damaged.
    #[error("the membership in the rows is damaged: {0}; wipe this node and join it again as a new one")]
    RaftState(#[from] EncodingError),
    /// The apply thread has stopped.
    #[error("the apply thread has stopped")]
    Stopped,
}

/// What openraft asks of a state machine: where it is, and the last applied membership.
#[derive(Clone, Debug, Default)]
pub(crate) struct AppliedState {
    pub(crate) log_id: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

/// An entry, decoded, and who is told that it is applied.
struct Decoded {
    log_id: LogId,
    what: What,
    responder: Option<ApplyResponder<Types>>,
}

enum What {
    Batch { stamp: ClusterTime, batch: Batch },
    Blank,
    Membership(Membership),
}

enum Work {
    Run {
        entries: Vec<Decoded>,
        done: oneshot::Sender<Result<(), ApplyError>>,
    },
    Job(MachineJob),
    Observe(Box<dyn ApplyObserver>),
    /// Goes on with another machine, from an installed snapshot.
    Replace {
        machine: Box<NodeMachine>,
        done: oneshot::Sender<Result<(), ApplyError>>,
    },
    Stop {
        flush: bool,
        done: oneshot::Sender<Result<(), MachineError>>,
    },
}

struct Shared {
    jobs: AtomicUsize,
    state: Mutex<AppliedState>,
    reader: RwLock<RowsReader>,
    view: watch::Sender<AppliedView>,
    needs: watch::Sender<Needs>,
    access: watch::Sender<Arc<Access>>,
}

/// What the machine needs ticks for. Replaced only when it changes: who looks at it is not woken by each run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// It has deadlines: a tick each second.
    pub(crate) time: bool,
    /// It has continuations: a tick at once.
    pub(crate) work: bool,
}

impl Shared {
    fn set_view(&self, view: AppliedView) {
        let needs = Needs { time: view.has_deadlines, work: view.has_continuations };
        // First, so that who has seen the view sees these, too.
        self.needs.send_if_modified(|now| std::mem::replace(now, needs) != needs);
        self.view.send_replace(view);
    }

    /// Replaced only when something in it changed.
    fn set_access(&self, access: &Arc<Access>) {
        self.access.send_if_modified(|now| {
            let is_other = !Arc::ptr_eq(now, access);
            if is_other {
                *now = access.clone();
            }
            is_other
        });
    }
}

/// Hands work to the apply thread. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ApplyHandle {
    queue: mpsc::UnboundedSender<Work>,
    shared: Arc<Shared>,
}

impl ApplyHandle {
    /// Starts the thread. `addresses` is told where nodes say they are.
    pub(crate) fn start(
        machine: NodeMachine,
        addresses: AddressBook,
        execution: Execution,
    ) -> Result<Self, ApplyError> {
        let state = state_of(&machine)?;
        let shared = Arc::new(Shared {
            jobs: AtomicUsize::new(0),
            state: Mutex::new(state),
            reader: RwLock::new(machine.store().reader()),
            view: watch::Sender::new(AppliedView::default()),
            needs: watch::Sender::new(Needs::default()),
            access: watch::Sender::new(machine.access().clone()),
        });
        shared.set_view(view_of(&machine));
        // What waits is bounded by openraft (`state_machine_channel_size`) and by JOBS_MAX.
        let (queue, mut work) = mpsc::unbounded_channel();
        let thread = Box::new(ApplyThread { machine, observer: None, shared: shared.clone(), addresses });
        thread.tell_addresses();
        match execution {
            Execution::Threads => drop(
                thread::Builder::new()
                    .name("quorate-apply".into())
                    .spawn(move || {
                        let mut thread = thread;
                        while let Some(work) = work.blocking_recv() {
                            let Some(goes_on) = thread.after(work) else { return };
                            thread = goes_on;
                        }
                    })
                    .map_err(|_| ApplyError::Stopped)?,
            ),
            Execution::InPlace => drop(tokio::spawn(async move {
                let mut thread = thread;
                while let Some(work) = work.recv().await {
                    let Some(goes_on) = thread.after(work) else { return };
                    thread = goes_on;
                }
            })),
        }
        Ok(Self { queue, shared })
    }

    /// From now on `observer` is told; effects of earlier entries are lost.
    pub(crate) fn observe(&self, observer: Box<dyn ApplyObserver>) {
        let _ = self.queue.send(Work::Observe(observer));
    }

    /// Runs `job` on the apply thread, after what is queued. Never blocks.
    pub(crate) fn submit(&self, job: MachineJob) -> Result<(), ApplyBusy> {
        if self.shared.jobs.fetch_add(1, Ordering::Relaxed) >= JOBS_MAX {
            self.shared.jobs.fetch_sub(1, Ordering::Relaxed);
            return Err(ApplyBusy);
        }
        self.queue.send(Work::Job(job)).map_err(|_| ApplyBusy)
    }

    /// Runs `f` on the apply thread and waits for what it returns.
    pub(crate) async fn with_machine<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut NodeMachine) -> T + Send + 'static,
    ) -> Result<T, ApplyBusy> {
        let (answer, answered) = oneshot::channel();
        self.submit(Box::new(move |machine| {
            let _ = answer.send(f(machine));
        }))?;
        answered.await.map_err(|_| ApplyBusy)
    }

    /// Decodes a run of entries here and queues it, so that the apply thread, which all else waits for, does not
    /// decode and may apply another run meanwhile.
    pub(crate) fn begin(&self, entries: Vec<EntryResponder<Types>>) -> Result<Run, ApplyError> {
        let decode = |(entry, responder): EntryResponder<Types>| {
            let log_id = entry.log_id();
            let what = match entry.payload() {
                EntryPayload::Normal(proposal) => {
                    let batch = codec::decode(&proposal.bytes)
                        .map_err(|error| ApplyError::Batch { index: log_id.index, error })?;
                    What::Batch { stamp: proposal.stamp, batch }
                }
                EntryPayload::Blank => What::Blank,
                EntryPayload::Membership(membership) => What::Membership(membership.clone()),
            };
            Ok::<_, ApplyError>(Decoded { log_id, what, responder })
        };
        let entries = entries.into_iter().map(decode).collect::<Result<_, _>>()?;
        let (done, is_done) = oneshot::channel();
        self.queue.send(Work::Run { entries, done }).map_err(|_| ApplyError::Stopped)?;
        Ok(Run(is_done))
    }

    /// Applies a run of entries; returns when their rows are readable.
    #[cfg(test)]
    pub(crate) async fn run(&self, entries: Vec<EntryResponder<Types>>) -> Result<(), ApplyError> {
        self.begin(entries)?.applied().await
    }

    /// Goes on with `machine`.
    pub(crate) async fn replace(&self, machine: NodeMachine) -> Result<(), ApplyError> {
        self.ask(|done| Work::Replace { machine: Box::new(machine), done }).await
    }

    async fn ask<E>(&self, work: impl FnOnce(oneshot::Sender<Result<(), E>>) -> Work) -> Result<(), E>
    where
        E: From<Stopped>,
    {
        let (done, is_done) = oneshot::channel();
        self.queue.send(work(done)).map_err(|_| Stopped)?;
        is_done.await.map_err(|_| Stopped)?
    }

    /// Flushes the rows and ends the thread.
    pub(crate) async fn stop(&self) -> Result<(), ApplyError> {
        self.end(true).await
    }

    /// Ends the thread, and flushes nothing.
    pub(crate) async fn crash(&self) -> Result<(), ApplyError> {
        self.end(false).await
    }

    async fn end(&self, flush: bool) -> Result<(), ApplyError> {
        let (done, is_done) = oneshot::channel();
        self.queue.send(Work::Stop { flush, done }).map_err(|_| ApplyError::Stopped)?;
        Ok(is_done.await.map_err(|_| ApplyError::Stopped)??)
    }

    /// Where the machine is.
    pub(crate) fn state(&self) -> AppliedState {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is applied; replaced after each run.
    pub(crate) fn view(&self) -> watch::Receiver<AppliedView> {
        self.shared.view.subscribe()
    }

    /// What it needs ticks for.
    pub(crate) fn needs(&self) -> watch::Receiver<Needs> {
        self.shared.needs.subscribe()
    }

    /// Users and rules, and each change; told before the outcomes of the commands that made it.
    pub(crate) fn access(&self) -> watch::Receiver<Arc<Access>> {
        self.shared.access.subscribe()
    }

    /// For who outlives this node.
    pub(crate) fn weak_reader(&self) -> WeakReader {
        WeakReader(Arc::downgrade(&self.shared))
    }

    /// Reads applied rows. Ask again each time: an installed snapshot comes with other rows.
    pub(crate) fn reader(&self) -> RowsReader {
        self.shared.reader.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Stops the apply thread when a test is over, and waits for it: a database that is closed while the process exits ends
/// it with SIGABRT ("pthread lock: Invalid argument").
#[cfg(test)]
pub(crate) struct StopsApply(pub(crate) ApplyHandle);

#[cfg(test)]
impl Drop for StopsApply {
    fn drop(&mut self) {
        let apply = self.0.clone();
        let stopped = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime.is_ok_and(|runtime| runtime.block_on(apply.stop()).is_ok())
        });
        // One that a test has stopped, or that refused an entry, has ended already.
        let _ = stopped.join();
    }
}

/// Finds the rows of a node that has not stopped, and keeps nothing of it open.
#[derive(Clone)]
pub(crate) struct WeakReader(Weak<Shared>);

impl WeakReader {
    pub(crate) fn reader(&self) -> Option<RowsReader> {
        let shared = self.0.upgrade()?;
        let reader = shared.reader.read().unwrap_or_else(PoisonError::into_inner).clone();
        Some(reader)
    }
}

/// A run that is queued.
pub(crate) struct Run(oneshot::Receiver<Result<(), ApplyError>>);

impl Run {
    /// Waits until its rows are readable.
    pub(crate) async fn applied(self) -> Result<(), ApplyError> {
        self.0.await.map_err(|_| ApplyError::Stopped)?
    }
}

/// The thread is gone.
struct Stopped;

impl From<Stopped> for ApplyError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

struct ApplyThread {
    machine: NodeMachine,
    observer: Option<Box<dyn ApplyObserver>>,
    shared: Arc<Shared>,
    addresses: AddressBook,
}

/// Passes effects on to the observer, if there is one.
struct Sink<'a>(Option<&'a mut Box<dyn ApplyObserver>>);

impl EffectSink for Sink<'_> {
    fn wants(&self, incarnation: Incarnation) -> bool {
        self.0.as_ref().is_some_and(|o| o.wants(incarnation))
    }

    fn push(&mut self, effect: Effect) {
        if let Some(observer) = &mut self.0 {
            observer.effect(effect);
        }
    }
}

impl ApplyThread {
    /// Does one piece of work, and goes on unless it was the last.
    fn after(mut self: Box<Self>, work: Work) -> Option<Box<Self>> {
        match work {
            Work::Run { entries, done } => {
                let result = self.apply_run(entries);
                let goes_on = result.is_ok();
                if let Err(error) = &result {
                    error!(%error, "applying stopped");
                }
                let _ = done.send(result);
                return goes_on.then_some(self);
            }
            Work::Job(job) => {
                self.shared.jobs.fetch_sub(1, Ordering::Relaxed);
                job(&mut self.machine);
            }
            Work::Observe(observer) => self.observer = Some(observer),
            Work::Replace { machine, done } => {
                let _ = done.send(self.replace(*machine));
            }
            Work::Stop { flush, done } => {
                let flushed = match flush {
                    true => self.machine.store().flush().map_err(MachineError::from),
                    false => Ok(()),
                };
                // Before anyone hears of it: they may start over in the same folder.
                drop(self);
                let _ = done.send(flushed);
                return None;
            }
        }
        Some(self)
    }

    fn apply_run(&mut self, entries: Vec<Decoded>) -> Result<(), ApplyError> {
        let mut responders = Vec::new();
        let mut last = None;
        let mut membership = None;
        let mut addresses_changed = false;
        for Decoded { log_id, what, responder } in entries {
            let context = |stamp| EntryContext { index: log_id.index, term: *log_id.leader_id, stamp };
            match what {
                What::Batch { stamp, batch } => {
                    addresses_changed |= changes_addresses(&batch);
                    self.machine.apply(context(stamp), &batch, &mut Sink(self.observer.as_mut()))?;
                }
                What::Blank => self.machine.note(context(ClusterTime(0)), None)?,
                What::Membership(m) => {
                    let stored = StoredMembership::new(Some(log_id), m);
                    let encoded = encoding::encode_stored_membership(&stored)?;
                    self.machine.note(context(ClusterTime(0)), Some(&encoded))?;
                    membership = Some(stored);
                }
            }
            last = Some(log_id);
            responders.extend(responder);
        }
        let Some(last) = last else { return Ok(()) };
        self.machine.commit_run()?;
        {
            let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.log_id = Some(last);
            if let Some(membership) = membership {
                state.membership = membership;
            }
        }
        if addresses_changed {
            self.tell_addresses();
        }
        // Before the outcomes: who hears that a rule was changed is judged by it.
        self.shared.set_access(self.machine.access());
        let view = view_of(&self.machine);
        if let Some(observer) = &mut self.observer {
            observer.committed(view);
        }
        self.shared.set_view(view);
        for responder in responders {
            responder.send(());
        }
        Ok(())
    }

    fn replace(&mut self, machine: NodeMachine) -> Result<(), ApplyError> {
        let state = state_of(&machine)?;
        self.machine = machine;
        *self.shared.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        if !is_seeded(SeededBug::SnapshotInstalledHalf) {
            *self.shared.reader.write().unwrap_or_else(PoisonError::into_inner) = self.machine.store().reader();
        }
        self.tell_addresses();
        self.shared.set_access(self.machine.access());
        let view = view_of(&self.machine);
        if let Some(observer) = &mut self.observer {
            observer.installed(view);
        }
        self.shared.set_view(view);
        Ok(())
    }

    fn tell_addresses(&self) {
        let known = |n: &quorate_store::machine::NodeSummary| !n.info.peer.is_empty();
        let nodes: BTreeMap<NodeId, String> =
            self.machine.nodes().into_iter().filter(known).map(|n| (n.id, n.info.peer)).collect();
        self.addresses.set_nodes(nodes);
    }
}

/// Only direct commands do.
fn changes_addresses(batch: &Batch) -> bool {
    matches!(batch.origin, Origin::Direct { .. })
        && batch.commands.iter().any(|command| {
            matches!(command, Command::NodeStarted(_) | Command::AllocateNode { .. } | Command::RemoveNode { .. })
        })
}

fn view_of(machine: &NodeMachine) -> AppliedView {
    let applied = machine.applied();
    AppliedView {
        index: applied.index,
        term: applied.term,
        time: applied.time,
        has_deadlines: machine.has_deadlines(),
        has_continuations: machine.has_continuations(),
    }
}

/// The first entry of any log is a membership, at index 0 of term 0, where the rows begin too: before it,
/// nothing is applied.
fn state_of(machine: &NodeMachine) -> Result<AppliedState, ApplyError> {
    let applied = machine.applied();
    let raft_state = machine.raft_state();
    if raft_state.is_none() && (applied.term, applied.index) == (0, 0) {
        return Ok(AppliedState::default());
    }
    let membership = raft_state.as_ref().map(encoding::decode_stored_membership).transpose()?.unwrap_or_default();
    Ok(AppliedState { log_id: Some(LogId::new_term_index(applied.term, applied.index)), membership })
}
