//! The one task that sends a node's stream: finds the leader, keeps a link to it, and does what the
//! [`super::stream`] says.
//!
//! It decides nothing about order or numbers, and it never tells an outcome. A link is given up when the
//! leader or its term changes, when either end breaks it or refuses, when the incarnation changes, and, unless this
//! node leads, when nothing was applied for too long; after each of these the stream starts again at its oldest batch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_store::ids::{Incarnation, NodeId};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{debug, info};

use super::link::{Backoff, Link, LinkEnd, LinkFactory};
use super::{Shared, Step};
use crate::consensus::LeaderView;

/// A link to another node that blocks for longer is given up.
const SEND_PATIENCE: Duration = Duration::from_millis(3000);

/// Sends the stream for as long as it runs. Aborting it at any point is safe: what has a number is kept.
pub(crate) async fn run_stream(shared: Arc<Shared>, links: Arc<dyn LinkFactory>, leader: watch::Receiver<LeaderView>) {
    let incarnation = shared.incarnation.subscribe();
    Driver { shared, links, leader, incarnation, backoff: Backoff::default(), hint: None }.run().await;
}

struct Driver {
    shared: Arc<Shared>,
    links: Arc<dyn LinkFactory>,
    leader: watch::Receiver<LeaderView>,
    incarnation: watch::Receiver<Option<Incarnation>>,
    backoff: Backoff,
    /// Whom the last one that did not lead named.
    hint: Option<NodeId>,
}

impl Driver {
    async fn run(mut self) {
        loop {
            let Some((view, incarnation, target)) = self.ready().await else { return };
            let end = self.one_link(view, incarnation, target).await;
            self.shared.with_stream(super::stream::ProposalStream::disconnected);
            match &end {
                LinkEnd::Superseded => {
                    self.backoff.reset();
                    debug!(leader = %target, term = view.term, "the stream leaves this leader");
                    continue;
                }
                LinkEnd::Stalled => {
                    self.shared.stats.stalls.inc();
                    info!(leader = %target, "nothing of the stream was applied for too long: all of it is sent again");
                    continue;
                }
                LinkEnd::NotLeader { leader } => self.hint = leader.filter(|l| *l != target),
                LinkEnd::Busy | LinkEnd::Broken(_) => {}
            }
            self.shared.stats.links_lost.inc();
            debug!(leader = %target, ?end, "the stream has no link to the leader");
            let pause = self.backoff.next();
            tokio::select! {
                () = sleep(pause) => {}
                // Not for each batch that was dropped: they are dropped one by one.
                changed = self.leader.wait_for(|now| (now.leader, now.term) != (view.leader, view.term)) => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Waits for an incarnation and a leader. `None` when this node shuts down.
    async fn ready(&mut self) -> Option<(LeaderView, Incarnation, NodeId)> {
        loop {
            let view = *self.leader.borrow_and_update();
            let incarnation = *self.incarnation.borrow_and_update();
            let target = self.hint.take().or(view.leader);
            if let (Some(incarnation), Some(target)) = (incarnation, target) {
                return Some((view, incarnation, target));
            }
            tokio::select! {
                changed = self.leader.changed() => changed.ok()?,
                changed = self.incarnation.changed() => changed.ok()?,
            }
        }
    }

    /// Opens a link and sends until it ends.
    async fn one_link(&mut self, view: LeaderView, incarnation: Incarnation, target: NodeId) -> LinkEnd {
        let (mut leader, mut own) = (self.leader.clone(), self.incarnation.clone());
        let superseded = async {
            tokio::select! {
                _ = leader.wait_for(|now| (now.leader, now.term) != (view.leader, view.term)) => {}
                _ = own.wait_for(|now| *now != Some(incarnation)) => {}
            }
        };
        let (links, shared, backoff) = (self.links.clone(), self.shared.clone(), &mut self.backoff);
        let send = async {
            let Link { mut sender, mut ended, is_local } = match links.open(target).await {
                Ok(link) => link,
                Err(end) => return end,
            };
            shared.with_stream(|s| s.connected(Instant::now()));
            let applied_before = shared.stats.batches_applied.get();
            let end = loop {
                let waits = loop {
                    match shared.step(Instant::now()) {
                        Step::Send(batch) => {
                            let sending = sender.send(batch);
                            let sent = if is_local { sending.await } else { patiently(sending).await };
                            if let Err(end) = sent {
                                break Err(end);
                            }
                        }
                        Step::Again => {}
                        Step::Wait { stalls, patient_until } => {
                            break Ok((stalls.filter(|_| !is_local), patient_until));
                        }
                    }
                };
                let (stalls, patient_until) = match waits {
                    Ok(waits) => waits,
                    Err(end) => break end,
                };
                if let Err(end) = patiently(sender.flush()).await {
                    break end;
                }
                tokio::select! {
                    biased;
                    end = &mut ended => break end.unwrap_or_else(|_| LinkEnd::Broken("its reader is gone".into())),
                    () = shared.wake.notified() => {}
                    () = at(patient_until) => {}
                    () = at(stalls) => {
                        if shared.with_stream(|s| s.stalled(Instant::now())).unwrap_or(false) {
                            break LinkEnd::Stalled;
                        }
                    }
                }
            };
            if shared.stats.batches_applied.get() != applied_before {
                backoff.reset();
            }
            end
        };
        tokio::select! {
            biased;
            () = superseded => LinkEnd::Superseded,
            end = send => end,
        }
    }
}

/// A leader that takes nothing for so long is as good as gone.
async fn patiently(sent: impl Future<Output = Result<(), LinkEnd>>) -> Result<(), LinkEnd> {
    timeout(SEND_PATIENCE, sent).await.unwrap_or(Err(LinkEnd::Stalled))
}

/// Resolves at `deadline`; never without one.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
