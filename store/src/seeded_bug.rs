//! Bugs that are put in on purpose, so that the simulator and the fault harness show that they catch them.
//!
//! Each stands where the real mistake would be made, as a line or two that ask [`is_seeded`]. Without the feature
//! `seeded-bugs`, which nothing in this workspace switches on, that is a constant `false`, and the compiler removes the
//! line. With it, a process has at most one bug: the one that the environment variable [`VARIABLE`] names, or that
//! `seed` was given. What was caught, and how, stands in `jepsen/seeded-bugs.json`.

use crate::ids::ClusterTime;

/// Names the bug that a process has. A build without the feature does not know it.
pub const VARIABLE: &str = "QUORATE_SEEDED_BUG";

/// What is wrong. The number in brackets is that of the guarantee in docs/GUARANTEES.md that it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeededBug {
    /// \[1\] The log's writes are not synced, as with RocksDB's default options: a power cut takes what was acknowledged.
    LogSyncOff,
    /// \[1\] A vote is reported before it is synced: after a power cut the node votes a second time in that term.
    VoteUnsynced,
    /// \[1\] PUBACK leaves when the message is proposed, not when its commit was applied.
    AckedBeforeCommit,
    /// \[1\] Entries are reported to Raft as on disk when they are queued for the disk.
    AppendReportedEarly,
    /// \[1\] The log is purged up to what is committed, not to what the flushed rows of a snapshot have.
    LogPurgedPastFlushedRows,
    /// \[13\] Rows that are ahead of the log after a power cut get no snapshot before Raft opens.
    RowsAheadOfLog,
    /// \[2\] After a snapshot was installed the front end goes on reading the rows before it.
    SnapshotInstalledHalf,
    /// \[1\] A snapshot that jumps over what a node owes answers for releases all its acknowledgements.
    SnapshotReleasesAcknowledgements,
    /// \[4\] A batch that is sent again, and was applied before, is applied again.
    BatchAppliedTwice,
    /// \[4\] Batches whose fate is unknown are proposed under new numbers when the link to the leader is a new one.
    RetryProposedAsNew,
    /// \[5\] On a new link a node goes on behind what it sent on the old one, and a batch is applied though one before it
    /// is missing.
    GapApplied,
    /// \[8\] What the proposer still held of a closed incarnation is applied.
    LateBatchOfLostNodeAccepted,
    /// \[8\] The deadline of a CONNECT is ignored: one that its client gave up long ago takes the session.
    GhostConnectApplied,
    /// \[8\] Commands of an older epoch, or of another node, are accepted.
    TakeoverWithoutFencing,
    /// \[8\] The connection that is taken over is not told, and goes on.
    TakeoverWithoutKick,
    /// \[8\] Session Present says what the client hopes for, not whether there is a session.
    SessionPresentGuessed,
    /// \[9\] CONNACK refuses a CONNECT that the log still has in its hands.
    ConnectRefusedButApplied,
    /// \[9\] A will that was published when it was due stays, and is published once more by the node that its client
    /// comes back to.
    WillByTwoNodes,
    /// \[9\] The wills of a lost node's clients are dropped.
    WillLostWithItsNode,
    /// \[3\] The identifiers of received QoS 2 messages are kept in memory only.
    InboundQos2NotPersisted,
    /// \[3\] That PUBREC came is kept in memory only.
    PubrelStateNotPersisted,
    /// \[3\] Packet identifiers are counted anew on each connection.
    PacketIdReused,
    /// \[4\] DUP is 0 also on what may have been sent before.
    DupNotSet,
    /// \[11\] A message that may have been sent is dropped when it has expired.
    SentRowDroppedByExpiry,
    /// \[4\] An idempotency key is looked up, but never recorded.
    IdempotencyKeyForgotten,
    /// \[6\] SUBACK leaves when the subscription is proposed.
    SubackBeforeCommit,
    /// \[6\] UNSUBACK leaves when the end of the subscription is proposed.
    UnsubackBeforeCommit,
    /// \[7\] The retained message for a new subscription is read from what this replica has written so far, which is
    /// behind what it has applied.
    RetainedFromStaleFollower,
    /// \[7\] An empty retained message does not remove the one before it.
    RetainedNotCleared,
    /// \[10\] What a member of a shared group had not settled is not given back when its connection ends.
    SharedMessageNotReturned,
    /// \[10\] A QoS 2 message that a member may have been sent is given back, too, and goes to another.
    SharedQos2Returned,
    /// \[12\] Apply takes the time from the wall clock of its node.
    WallClockInApply,
    /// \[12\] Apply takes a bound from the configuration of its node.
    ConfigValueReadInApply,
}

use SeededBug::{
    AckedBeforeCommit, AppendReportedEarly, BatchAppliedTwice, ConfigValueReadInApply, ConnectRefusedButApplied,
    DupNotSet, GapApplied, GhostConnectApplied, IdempotencyKeyForgotten, InboundQos2NotPersisted,
    LateBatchOfLostNodeAccepted, LogPurgedPastFlushedRows, LogSyncOff, PacketIdReused, PubrelStateNotPersisted,
    RetainedFromStaleFollower, RetainedNotCleared, RetryProposedAsNew, RowsAheadOfLog, SentRowDroppedByExpiry,
    SessionPresentGuessed, SharedMessageNotReturned, SharedQos2Returned, SnapshotInstalledHalf,
    SnapshotReleasesAcknowledgements, SubackBeforeCommit, TakeoverWithoutFencing, TakeoverWithoutKick,
    UnsubackBeforeCommit, VoteUnsynced, WallClockInApply, WillByTwoNodes, WillLostWithItsNode,
};

/// All of them, by name.
pub const ALL: [(&str, SeededBug); 33] = [
    ("acked-before-commit", AckedBeforeCommit),
    ("append-reported-early", AppendReportedEarly),
    ("batch-applied-twice", BatchAppliedTwice),
    ("config-value-read-in-apply", ConfigValueReadInApply),
    ("connect-refused-but-applied", ConnectRefusedButApplied),
    ("dup-not-set", DupNotSet),
    ("gap-applied", GapApplied),
    ("ghost-connect-applied", GhostConnectApplied),
    ("idempotency-key-forgotten", IdempotencyKeyForgotten),
    ("inbound-qos2-not-persisted", InboundQos2NotPersisted),
    ("late-batch-of-lost-node-accepted", LateBatchOfLostNodeAccepted),
    ("log-purged-past-flushed-rows", LogPurgedPastFlushedRows),
    ("log-sync-off", LogSyncOff),
    ("packet-id-reused", PacketIdReused),
    ("pubrel-state-not-persisted", PubrelStateNotPersisted),
    ("retained-from-stale-follower", RetainedFromStaleFollower),
    ("retained-not-cleared", RetainedNotCleared),
    ("retry-proposed-as-new", RetryProposedAsNew),
    ("rows-ahead-of-log", RowsAheadOfLog),
    ("sent-row-dropped-by-expiry", SentRowDroppedByExpiry),
    ("session-present-guessed", SessionPresentGuessed),
    ("shared-message-not-returned", SharedMessageNotReturned),
    ("shared-qos2-returned", SharedQos2Returned),
    ("snapshot-installed-half", SnapshotInstalledHalf),
    ("snapshot-releases-acknowledgements", SnapshotReleasesAcknowledgements),
    ("suback-before-commit", SubackBeforeCommit),
    ("takeover-without-fencing", TakeoverWithoutFencing),
    ("takeover-without-kick", TakeoverWithoutKick),
    ("unsuback-before-commit", UnsubackBeforeCommit),
    ("vote-unsynced", VoteUnsynced),
    ("wall-clock-in-apply", WallClockInApply),
    ("will-by-two-nodes", WillByTwoNodes),
    ("will-lost-with-its-node", WillLostWithItsNode),
];

impl SeededBug {
    /// Its name, for people and scripts.
    #[must_use]
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(_, bug)| *bug == self).map_or("unnamed", |(name, _)| *name)
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        ALL.iter().find(|(its, _)| *its == name).map(|(_, bug)| *bug)
    }
}

/// Whether this process has `bug`.
#[cfg(not(feature = "seeded-bugs"))]
#[must_use]
pub const fn is_seeded(_bug: SeededBug) -> bool {
    false
}

/// Whether this process has `bug`.
#[cfg(feature = "seeded-bugs")]
#[must_use]
pub fn is_seeded(bug: SeededBug) -> bool {
    choice::chosen() == Some(bug)
}

/// Whether an environment variable of this name is read here.
#[must_use]
pub fn is_variable(name: &str) -> bool {
    cfg!(feature = "seeded-bugs") && name == VARIABLE
}

#[cfg(feature = "seeded-bugs")]
pub use choice::{chosen, seed, unknown};

#[cfg(feature = "seeded-bugs")]
mod choice {
    use std::sync::OnceLock;

    use super::{SeededBug, VARIABLE};

    static CHOSEN: OnceLock<Option<SeededBug>> = OnceLock::new();

    #[expect(clippy::disallowed_methods, reason = "a bug is of a process, whatever its replicas agree on")]
    fn asked_for() -> Option<String> {
        std::env::var(VARIABLE).ok()
    }

    /// The bug that this process has.
    #[must_use]
    pub fn chosen() -> Option<SeededBug> {
        *CHOSEN.get_or_init(|| asked_for().and_then(|name| SeededBug::named(&name)))
    }

    /// Gives this process a bug. False: it has another, or was asked for it before.
    #[must_use]
    pub fn seed(bug: SeededBug) -> bool {
        *CHOSEN.get_or_init(|| Some(bug)) == Some(bug)
    }

    /// What the environment variable says, when that is no bug's name.
    #[must_use]
    pub fn unknown() -> Option<String> {
        asked_for().filter(|name| SeededBug::named(name).is_none())
    }
}

/// The time of an entry: its own, unless [`SeededBug::WallClockInApply`] puts the wall clock in its place.
#[cfg(not(feature = "seeded-bugs"))]
pub(crate) const fn apply_time(entry: ClusterTime) -> ClusterTime {
    entry
}

/// The bound on the expiry of sessions: the replicated one, unless [`SeededBug::ConfigValueReadInApply`] puts one in its
/// place that is another wherever it is asked for.
#[cfg(not(feature = "seeded-bugs"))]
pub(crate) const fn expiry_s_max(replicated: u32) -> u32 {
    replicated
}

#[cfg(feature = "seeded-bugs")]
#[expect(clippy::disallowed_methods, reason = "that is the bug")]
pub(crate) fn apply_time(entry: ClusterTime) -> ClusterTime {
    if !is_seeded(SeededBug::WallClockInApply) {
        return entry;
    }
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    ClusterTime(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(feature = "seeded-bugs")]
pub(crate) fn expiry_s_max(replicated: u32) -> u32 {
    static ASKED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    if !is_seeded(SeededBug::ConfigValueReadInApply) {
        return replicated;
    }
    let asked = ASKED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    3_500 - std::process::id().wrapping_add(asked) % 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_name_of_its_own() {
        for pair in ALL.windows(2) {
            assert!(pair[0].0 < pair[1].0, "{} and {} are not in order", pair[0].0, pair[1].0);
        }
        for (name, bug) in ALL {
            assert_eq!((bug.name(), SeededBug::named(name)), (name, Some(bug)));
        }
    }

    #[test]
    fn the_page_of_what_was_caught_speaks_of_each() {
        let page = include_str!("../../jepsen/seeded-bugs.json");
        let spoken_of = |name: &str| page.matches(&format!("\"name\": \"{name}\"")).count();
        assert_eq!(page.matches("\"name\": ").count(), ALL.len());
        assert!(ALL.iter().all(|(name, _)| spoken_of(name) == 1));
    }

    #[cfg(not(feature = "seeded-bugs"))]
    #[test]
    fn an_ordinary_build_has_none() {
        const { assert!(!is_seeded(AckedBeforeCommit)) };
        assert!(ALL.iter().all(|(_, bug)| !is_seeded(*bug)) && !is_variable(VARIABLE));
    }
}
