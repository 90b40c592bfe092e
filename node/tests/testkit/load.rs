//! Load over all nodes: publishers and subscribers that write down what they see while a test breaks things.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_jepsen::history::{History, MessageName};

use super::System;
use super::publisher::{Publisher, PublisherPlan};
use super::subscriber::Subscriber;

/// Publishers on each node.
const PUBLISHERS: usize = 2;

/// Running load.
pub(crate) struct Load {
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
}

impl Load {
    /// One subscriber and two publishers on each node, all of one QoS; returns when every publisher has had some
    /// acknowledgements.
    pub(crate) async fn start(system: &System, qos: u8, window: usize) -> Self {
        let nodes = system.cluster.nodes.len();
        let mut subscribers = Vec::new();
        for node in 0..nodes {
            subscribers.push(Subscriber::start(system, node as u32, "load/#", qos, node).await);
        }
        let plan = |number: usize| PublisherPlan {
            number: number as u32,
            qos,
            window,
            first_node: number % nodes,
            keep_alive: Duration::from_secs(2),
        };
        let start = |number: usize| Publisher::start(system, &format!("load/{number}"), plan(number));
        let mut load = Self { publishers: (0..nodes * PUBLISHERS).map(start).collect(), subscribers };
        load.wait_acknowledged(100).await;
        load
    }

    /// One more publisher.
    pub(crate) fn add_publisher(&mut self, system: &System, plan: PublisherPlan) {
        self.publishers.push(Publisher::start(system, &format!("load/{}", plan.number), plan));
    }

    /// Waits until every publisher has had so many acknowledgements more.
    pub(crate) async fn wait_acknowledged(&mut self, more: usize) {
        for publisher in &mut self.publishers {
            publisher.wait_acknowledged(more).await;
        }
    }

    /// Waits until publisher `number` has had so many more.
    pub(crate) async fn wait_acknowledged_of(&mut self, number: usize, more: usize) {
        self.publishers[number].wait_acknowledged(more).await;
    }

    /// Publishes that wait for their acknowledgement now.
    pub(crate) fn waiting(&self) -> usize {
        self.publishers.iter().map(|p| p.progress().waiting).sum()
    }

    /// Lets all publishers finish, waits until every subscriber has everything, and returns what all of them saw.
    pub(crate) async fn finish(self) -> History {
        let mut history = History::default();
        for publisher in self.publishers {
            history.sent.extend(publisher.finish().await);
        }
        let wanted: BTreeSet<MessageName> =
            history.sent.iter().filter(|sent| sent.acknowledged).map(|sent| sent.message).collect();
        for (number, subscriber) in self.subscribers.into_iter().enumerate() {
            history.subscribers.push(number as u32);
            history.delivered.extend(subscriber.finish(&wanted).await);
        }
        history
    }
}
