//! The apply thread's end of the proposer: what this node's own log says about its commands.
//!
//! Runs on the apply thread. It collects the effects of a run, and once the run's rows are readable hands
//! them to the front end in log order, tells whoever waits for a direct command, opens the stream when this
//! node's `NodeStarted` is applied and throws it away when its incarnation is closed or a snapshot jumped
//! over what it owed. It never waits for anything and never answers from anything but an applied entry.

use std::sync::Arc;
use std::time::Instant;

use quorate_store::effect::{Effect, Outcome};
use quorate_store::ids::{Incarnation, Position};
use quorate_store::seeded_bug::{SeededBug, is_seeded};
use tokio::sync::oneshot;
use tracing::error;

use super::direct::DirectTable;
use super::stream::StreamBroken;
use super::{Proposer, Shared};
use crate::apply::ApplyObserver;
use crate::clock::ClusterClock;
use crate::consensus::AppliedView;
use crate::effects::{AppliedRun, NodeEffects, NodeEvent};
use crate::incarnation::StartTable;

/// What a run did to this node's life, in log order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Started(Incarnation),
    Closed(Incarnation),
}

/// See the module.
pub(crate) struct StreamObserver {
    shared: Arc<Shared>,
    directs: Arc<DirectTable>,
    starts: Arc<StartTable>,
    clock: Arc<ClusterClock>,
    front: Arc<dyn NodeEffects>,
    own: Option<Incarnation>,
    /// Of the present run.
    events: Vec<NodeEvent>,
    turns: Vec<Turn>,
    answers: Vec<(oneshot::Sender<Outcome>, Outcome)>,
}

impl StreamObserver {
    pub(crate) fn new(
        proposer: &Proposer,
        directs: Arc<DirectTable>,
        starts: Arc<StartTable>,
        clock: Arc<ClusterClock>,
        front: Arc<dyn NodeEffects>,
    ) -> Self {
        Self {
            shared: proposer.shared().clone(),
            directs,
            starts,
            clock,
            front,
            own: None,
            events: Vec::new(),
            turns: Vec::new(),
            answers: Vec::new(),
        }
    }

    fn is_own(&self, incarnation: Incarnation) -> bool {
        self.own == Some(incarnation)
    }

    /// From here on nothing of this incarnation is sent, answered or wanted.
    fn over(&mut self, incarnation: Incarnation) {
        self.own = None;
        // It may have started in this very run: then its stream is not open yet.
        if self.shared.incarnation.borrow().is_some_and(|i| i == incarnation) {
            self.shared.close(incarnation);
        }
        self.turns.push(Turn::Closed(incarnation));
    }

    /// The log says what cannot be: this node has missed something that it owed an answer for.
    fn broken(&mut self, incarnation: Incarnation, broken: StreamBroken) {
        error!(%incarnation, %broken, "this node's stream does not fit its log: it starts over as a new incarnation");
        self.over(incarnation);
    }

    /// For [`SeededBug::SnapshotReleasesAcknowledgements`]: takes all that is in flight for applied.
    fn release_all(&mut self, applied: AppliedView) {
        let tickets = self.shared.with_stream(|stream| stream.tickets()).unwrap_or_default();
        let outcome = Outcome::Published { position: Position::new(applied.index, 0), matched: true };
        let events =
            tickets.into_iter().map(|ticket| NodeEvent::Outcome { ticket, outcome: outcome.clone() }).collect();
        self.front.applied(AppliedRun { index: applied.index, time: applied.time, events });
    }

    fn direct_applied(&mut self, nonce: u128, mut outcomes: Vec<Outcome>) {
        if outcomes.len() != 1 {
            return;
        }
        let Some(outcome) = outcomes.pop() else { return };
        if let Some(answer) = self.directs.take(nonce) {
            self.answers.push((answer, outcome));
            return;
        }
        // A second application of the same start is no start.
        if !self.starts.take(nonce) {
            return;
        }
        match outcome {
            Outcome::NodeStarted(incarnation) => {
                self.starts.started(incarnation);
                if let Some(before) = self.own {
                    self.over(before);
                }
                self.own = Some(incarnation);
                self.turns.push(Turn::Started(incarnation));
            }
            Outcome::StartOutdated(latest) => self.starts.outdated(latest),
            _ => self.starts.refused(),
        }
    }
}

impl ApplyObserver for StreamObserver {
    fn wants(&self, incarnation: Incarnation) -> bool {
        self.is_own(incarnation)
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Applied { incarnation, seq, outcomes } if self.is_own(incarnation) => {
                let before = self.events.len();
                let events = &mut self.events;
                let told = self.shared.with_stream(|stream| {
                    stream.applied(seq, &outcomes, Instant::now(), &mut |ticket, outcome| {
                        events.push(NodeEvent::Outcome { ticket, outcome });
                    })
                });
                let outcomes_told = (self.events.len() - before) as u64;
                self.shared.stats.batches_applied.inc();
                self.shared.stats.outcomes.add(outcomes_told);
                if let Some(Err(broken)) = told {
                    self.broken(incarnation, broken);
                }
            }
            Effect::Gap { incarnation, expected } if self.is_own(incarnation) => {
                match self.shared.with_stream(|stream| stream.gap(expected)) {
                    Some(Ok(true)) => {
                        self.shared.stats.gaps.inc();
                        self.shared.wake.notify_one();
                    }
                    Some(Ok(false)) | None => {}
                    Some(Err(broken)) => self.broken(incarnation, broken),
                }
            }
            Effect::DirectApplied { nonce, outcomes } => self.direct_applied(nonce, outcomes),
            Effect::Deliver { owner, delivery } if self.is_own(owner) => self.events.push(NodeEvent::Deliver(delivery)),
            Effect::Withdraw { owner, from, seq } if self.is_own(owner) => {
                self.events.push(NodeEvent::Withdraw { from, seq });
            }
            Effect::Kick { owner, from, reason } if self.is_own(owner) => {
                self.events.push(NodeEvent::Kick { from, reason });
            }
            Effect::IncarnationClosed { incarnation, .. } if self.is_own(incarnation) => self.over(incarnation),
            Effect::Applied { .. }
            | Effect::Gap { .. }
            | Effect::Deliver { .. }
            | Effect::Withdraw { .. }
            | Effect::Kick { .. }
            | Effect::IncarnationClosed { .. } => {}
        }
    }

    fn committed(&mut self, applied: AppliedView) {
        self.clock.observe(applied.time);
        if !self.events.is_empty() {
            // Everything here is of before the incarnation was closed, if it was: nothing is wanted after.
            let events = std::mem::take(&mut self.events);
            self.front.applied(AppliedRun { index: applied.index, time: applied.time, events });
            self.shared.slot_is_free();
        }
        for turn in std::mem::take(&mut self.turns) {
            match turn {
                Turn::Closed(incarnation) => {
                    self.front.incarnation_closed(incarnation);
                    self.starts.closed();
                }
                Turn::Started(incarnation) => {
                    self.front.incarnation_started(incarnation);
                    // Unless it was closed again in the same run.
                    if self.is_own(incarnation) {
                        self.shared.open(incarnation, Instant::now());
                    }
                }
            }
        }
        for (answer, outcome) in self.answers.drain(..) {
            // Whoever waited may have lost patience.
            let _ = answer.send(outcome);
        }
    }

    fn installed(&mut self, applied: AppliedView) {
        self.clock.observe(applied.time);
        // Nothing of a run that was not committed may be told any more.
        self.events.clear();
        self.answers.clear();
        if is_seeded(SeededBug::SnapshotReleasesAcknowledgements) {
            self.release_all(applied);
        }
        if let Some(incarnation) = self.own {
            self.over(incarnation);
        }
        for turn in std::mem::take(&mut self.turns) {
            if let Turn::Closed(incarnation) = turn {
                self.front.incarnation_closed(incarnation);
            }
        }
        // A start that is on its way may have been jumped over, and its incarnation closed since.
        self.starts.closed();
    }
}

#[cfg(test)]
#[path = "observer_tests.rs"]
mod tests;
