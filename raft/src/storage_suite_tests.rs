//! openraft's own storage test suite on our log and state machine.

use std::io;

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use quorate_store::log::{LogEngine, LogError, LogOptions, OnFatal, RocksLog, SegmentLog};
use quorate_store::machine::Machine;
use quorate_store::rows::RowsOptions;
use std::sync::Arc;
use tempfile::TempDir;

use crate::apply::{ApplyHandle, StopsApply};
use crate::entry::LogEntry;
use crate::execution::Execution;
use crate::log_store::LogStore;
use crate::peer::AddressBook;
use crate::snapshots::{SnapshotData, Snapshots};
use crate::state_machine::{SnapshotBuilder, StateMachine};
use crate::types::{LogId, Snapshot, SnapshotMeta, StoredMembership, Types};

type StorageError = openraft::StorageError<Types>;

/// The suite applies entries that do not begin at index 0. Our machine refuses a gap, as it must, so the
/// entries before are filled in here.
struct Filled(StateMachine);

impl RaftStateMachine<Types> for Filled {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        self.0.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let entries: Vec<_> = entries.try_collect().await?;
        let next = self.0.applied_state().await?.0.map_or(0, |id| id.index + 1);
        let first = entries.first().map_or(next, |(entry, _)| entry.index());
        let blanks = (next..first).map(|index| (LogEntry::new_blank(LogId::new_term_index(0, index)), None));
        self.0.apply(stream::iter(blanks.chain(entries).map(Ok)).boxed()).await
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.0.get_snapshot_builder().await
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        self.0.install_snapshot(meta, snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.0.get_current_snapshot().await
    }
}

/// Opens a log of the engine `E`.
struct Builder<E>(fn(std::path::PathBuf, LogOptions, OnFatal) -> Result<E, LogError>);

/// In this order: the rows are closed before their folder goes.
type Guard = (StopsApply, TempDir);

impl<E: LogEngine> StoreBuilder<Types, LogStore<E>, Filled, Guard> for Builder<E> {
    async fn build(&self) -> Result<(Guard, LogStore<E>, Filled), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let small = LogOptions {
            write_buffer_bytes: 1 << 20,
            segment_bytes: 8 << 10,
            recycled_wals: 0,
            ..LogOptions::default()
        };
        let engine = (self.0)(dir.path().join("log"), small, Arc::new(|error| panic!("{error}"))).unwrap();
        let log = LogStore::new(engine).unwrap();
        let (snapshots, rows) = Snapshots::open(dir.path(), &RowsOptions::default()).unwrap();
        let apply =
            ApplyHandle::start(Machine::open(rows).unwrap(), AddressBook::default(), Execution::default()).unwrap();
        let guard = (StopsApply(apply.clone()), dir);
        Ok((guard, log, Filled(StateMachine::new(apply, snapshots, Execution::default()))))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_own_suite_passes_on_log_and_state_machine() {
    Suite::test_all(Builder(RocksLog::open)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_own_suite_passes_on_a_log_of_segments() {
    Suite::test_all(Builder(SegmentLog::open)).await.unwrap();
}
