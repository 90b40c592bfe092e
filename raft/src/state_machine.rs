//! openraft's state machine over the apply thread and the snapshot folders.
//!
//! Nothing is applied here: runs of entries are decoded, handed to the apply thread and awaited, so openraft's
//! worker never blocks a runtime thread. Snapshots are built beside the apply thread, from the row files
//! themselves, and say what they contain; installing one swaps the rows under the machine.

use std::io;

use futures_util::{Stream, TryStreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, Snapshot as RaftSnapshot};
use quorate_store::machine::Machine;
use tracing::{info, warn};

use crate::apply::{ApplyHandle, Run, WeakReader};
use crate::execution::Execution;
use crate::snapshots::{SnapshotData, Snapshots};
use crate::types::{LogId, Snapshot, SnapshotMeta, StoredMembership, Types};

/// Entries of one run: what is written as one batch of rows.
const RUN_ENTRIES_MAX: usize = 256;
/// Bytes of batches of one run (one entry may be longer).
const RUN_BYTES_MAX: usize = 1 << 20;

/// See the module.
#[derive(Clone)]
pub(crate) struct StateMachine {
    apply: ApplyHandle,
    snapshots: Snapshots,
    execution: Execution,
}

impl StateMachine {
    pub(crate) fn new(apply: ApplyHandle, snapshots: Snapshots, execution: Execution) -> Self {
        Self { apply, snapshots, execution }
    }
}

/// Builds snapshots of what is applied, beside the apply thread.
pub(crate) struct SnapshotBuilder {
    /// openraft does not wait for a builder when it shuts down: it must not keep the rows open until it is done.
    rows: WeakReader,
    snapshots: Snapshots,
    execution: Execution,
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (snapshots, rows) = (self.snapshots.clone(), self.rows.clone());
        let built = self.execution.blocking(move || snapshots.build(move || rows.reader()));
        let (meta, snapshot) = built.await.map_err(io::Error::other)??;
        info!(snapshot = %meta, "snapshot built");
        Ok(RaftSnapshot { meta, snapshot })
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.apply.state();
        Ok((state.log_id, state.membership))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut entries_of_run = Vec::new();
        let mut bytes = 0;
        // The run before the one that is gathered: it is applied while the next is read and decoded.
        let mut before: Option<Run> = None;
        while let Some((entry, responder)) = entries.try_next().await? {
            if let EntryPayload::Normal(proposal) = entry.payload() {
                bytes += proposal.bytes.len();
            }
            entries_of_run.push((entry, responder));
            if entries_of_run.len() >= RUN_ENTRIES_MAX || bytes >= RUN_BYTES_MAX {
                bytes = 0;
                let run = self.apply.begin(std::mem::take(&mut entries_of_run)).map_err(io::Error::other)?;
                if let Some(before) = before.replace(run) {
                    before.applied().await.map_err(io::Error::other)?;
                }
            }
        }
        if !entries_of_run.is_empty() {
            let run = self.apply.begin(entries_of_run).map_err(io::Error::other)?;
            if let Some(before) = before.replace(run) {
                before.applied().await.map_err(io::Error::other)?;
            }
        }
        match before {
            Some(last) => last.applied().await.map_err(io::Error::other),
            None => Ok(()),
        }
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { rows: self.apply.weak_reader(), snapshots: self.snapshots.clone(), execution: self.execution }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        info!(snapshot = %meta, "installing a snapshot");
        let snapshots = self.snapshots.clone();
        let meta = meta.clone();
        let open = move || {
            let rows = snapshots.install(&meta, &snapshot)?;
            Machine::open(rows).map_err(io::Error::other)
        };
        let machine = self.execution.blocking(open).await.map_err(io::Error::other)??;
        self.apply.replace(machine).await.map_err(io::Error::other)?;
        // The rows before it have no user any more, but for readers that are in the middle of a page.
        let snapshots = self.snapshots.clone();
        let cleaned = self.execution.blocking(move || snapshots.clean_up()).await;
        if let Err(error) = cleaned.map_err(io::Error::other)? {
            warn!(%error, "old rows could not be removed; the next start tries again");
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let snapshots = self.snapshots.clone();
        let current = self.execution.blocking(move || snapshots.current()).await.map_err(io::Error::other)??;
        Ok(current.map(|(meta, snapshot)| RaftSnapshot { meta, snapshot }))
    }
}
