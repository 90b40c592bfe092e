//! Guarantee 5, first half: for each publisher, topic and QoS, in the order of publishing.
//!
//! To each client the first deliveries of one publisher's messages on one topic of one QoS (that of the PUBLISH) come
//! in the order in which they were invoked, where their publisher kept it: wherever the later one went out, the earlier one
//! had been acknowledged, or had gone out on the same connection before. A repeat may come later than its first delivery.
//! Not held: QoS 0, what comes by a shared subscription, retained messages at SUBSCRIBE, and a message that was published
//! twice to a client that may have missed the first, or may have got the second because the first had expired.

use std::collections::HashMap;

use crate::history::index::DeliveryAt;

use super::run::{Run, Stream};
use super::verdict::{Found, Guarantee, Kind};

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    for client in 0..run.index.clients.len() {
        let mut latest: HashMap<Stream, (usize, DeliveryAt)> = HashMap::new();
        for (message, at) in run.firsts(client) {
            let Some(stream) = run.stream_of(message).filter(|_| run.is_of_the_first_time(client, message)) else {
                continue;
            };
            match latest.get(&stream) {
                Some(&(before, other)) if message < before => {
                    if !run.is_before(message, before) {
                        continue;
                    }
                    let what = format!("came first after {} of the same publisher", run.name(before));
                    let mut bad = run.violation(Guarantee::Order, Kind::Reordered, Some(client), Some(message), what);
                    bad.lines.extend([run.index.arrivals[other].line, run.index.arrivals[at].line]);
                    found.violations.push(bad);
                }
                _ => drop(latest.insert(stream, (message, at))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::{History, broken};
    use crate::check::verdict::Guarantee::Order;

    /// A message of 2 s goes out twice, and another between: the first of them expires while its receiver is away.
    #[test]
    fn the_second_of_two_that_expire_may_come_alone() {
        let outcome = |expires: bool| {
            let mut h = History::new();
            h.connect(1, 1).connect(2, 1).subscribe(2, 1, "a", 1);
            let first = h.publish_open(1, 1, 0, "a", 1);
            if expires {
                h.expires_after(2);
            }
            let second = h.publish_open(1, 1, 1, "a", 1);
            h.lost(1, 1).resume(1, 2).resent(1, first, 2).resent(1, second, 2).puback(1, first).puback(1, second);
            h.deliver(2, 1, (1, 1), "a", 1, 2).settle(2, 1, 2).deliver(2, 1, (1, 0), "a", 1, 3).settle(2, 1, 3);
            broken(h.drain())
        };
        assert_eq!(outcome(true), []);
        assert_eq!(outcome(false), [(Order, Some(0))]);
    }

    fn two(qos: [u8; 2], topics: [&str; 2]) -> History {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).subscribe(2, 1, "#", 2);
        h.publish(1, 1, 0, topics[0], qos[0]).publish(1, 1, 1, topics[1], qos[1]);
        h.deliver(2, 1, (1, 1), topics[1], qos[1], 1).answer(2, 1, 1, qos[1]);
        h.deliver(2, 1, (1, 0), topics[0], qos[0], 2).answer(2, 1, 2, qos[0]);
        h.drain();
        h
    }

    #[test]
    fn one_publisher_one_topic_and_one_qos_have_one_order() {
        assert_eq!(broken(&two([1, 1], ["a", "a"])), [(Order, Some(0))]);
        assert_eq!(broken(&two([2, 2], ["a", "a"])), [(Order, Some(0))]);
        assert_eq!(broken(&two([1, 2], ["a", "a"])), []);
        assert_eq!(broken(&two([1, 1], ["a", "b"])), []);
    }

    #[test]
    fn a_repeat_may_come_late() {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).subscribe(2, 1, "a", 1);
        h.publish(1, 1, 0, "a", 1).publish(1, 1, 1, "a", 1);
        h.deliver(2, 1, (1, 0), "a", 1, 1).deliver(2, 1, (1, 1), "a", 1, 2).settle(2, 1, 2).lost(2, 1);
        h.resume(2, 2).again(2, 2, (1, 0), "a", 1, 1).settle(2, 2, 1).drain();
        assert_eq!(broken(&h), []);
    }
}
