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
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::apply::{ApplyHandle, Run};
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
}

impl StateMachine {
    pub(crate) fn new(apply: ApplyHandle, snapshots: Snapshots) -> Self {
        Self { apply, snapshots }
    }
}

/// Builds snapshots of what is applied, beside the apply thread.
pub(crate) struct SnapshotBuilder {
    apply: ApplyHandle,
    snapshots: Snapshots,
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (snapshots, apply) = (self.snapshots.clone(), self.apply.clone());
        let built = spawn_blocking(move || snapshots.build(move || apply.reader()));
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
        SnapshotBuilder { apply: self.apply.clone(), snapshots: self.snapshots.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        info!(snapshot = %meta, "installing a snapshot");
        let snapshots = self.snapshots.clone();
        let meta = meta.clone();
        let machine = spawn_blocking(move || {
            let rows = snapshots.install(&meta, &snapshot)?;
            Machine::open(rows).map_err(io::Error::other)
        })
        .await
        .map_err(io::Error::other)??;
        self.apply.replace(machine).await.map_err(io::Error::other)?;
        // The rows before it have no user any more, but for readers that are in the middle of a page.
        let snapshots = self.snapshots.clone();
        if let Err(error) = spawn_blocking(move || snapshots.clean_up()).await.map_err(io::Error::other)? {
            warn!(%error, "old rows could not be removed; the next start tries again");
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let snapshots = self.snapshots.clone();
        let current = spawn_blocking(move || snapshots.current()).await.map_err(io::Error::other)??;
        Ok(current.map(|(meta, snapshot)| RaftSnapshot { meta, snapshot }))
    }
}
