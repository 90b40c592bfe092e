//! One thing is made wrong in a good history, of a kind that the history shows beyond doubt: it is found, always.

use std::collections::HashSet;

use crate::check::run::Run;
use crate::check::testkit::broker::{World, run};
use crate::check::testkit::{History, Random, broken};
use crate::check::verdict::Expectations;
use crate::check::verdict::Guarantee::{
    self, AtLeastOnce, ExactlyOnce, NoAcknowledgedLoss, NothingFromNowhere, OneOwner, Order, ReplicasAgree, Retained,
    Shared, Subscriptions, Wills,
};
use crate::history::MessageName;
use crate::history::event::{Answer, Client, Delivery, What};
use crate::history::index::{Change, Index, Outcome};

const WORLD: World = World { steps: 500, faults_one_in: 50, ..World::FAULTY };
const WANTED: usize = 150;

/// A good history, its index, and dice.
struct Good<'a> {
    run: &'a Run<'a>,
    dice: Random,
    history: History,
}

/// Makes one thing wrong in each of many histories and wants this guarantee named each time.
fn found(guarantee: Guarantee, mutate: impl Fn(&mut Good<'_>) -> Option<()>) {
    let expectations = Expectations::default();
    let mut times = 0;
    for seed in 0.. {
        assert!(seed < 40 * WANTED as u64, "only {times} histories have what it takes");
        let history = run(WORLD, seed);
        let index = Index::build(history.events.iter().cloned().map(Ok)).unwrap();
        let view = Run::new(&index, &expectations);
        let mut good = Good { run: &view, dice: Random::new(seed), history };
        if mutate(&mut good).is_none() {
            continue;
        }
        let named: HashSet<Guarantee> = broken(&good.history).into_iter().map(|(guarantee, _)| guarantee).collect();
        assert!(named.contains(&guarantee), "seed {seed}: {named:?}\n{}", super::text(&good.history));
        times += 1;
        if times == WANTED {
            return;
        }
    }
}

impl Good<'_> {
    fn any<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        if all.is_empty() { None } else { Some(all[self.dice.below(all.len())].clone()) }
    }

    /// Places of deliveries for which this holds.
    fn deliveries(&self, holds: impl Fn(u32, &Delivery) -> bool) -> Vec<usize> {
        let is = |what: &What, client: u32| matches!(what, What::Deliver(d) if holds(client, d));
        let client = |at: usize| self.history.events[at].client.map_or(0, |client| client.0);
        (0..self.history.events.len()).filter(|&at| is(&self.history.events[at].what, client(at))).collect()
    }

    fn delivery(&mut self, at: usize) -> &mut Delivery {
        let What::Deliver(delivery) = &mut self.history.events[at].what else { panic!("{at} is no delivery") };
        delivery
    }

    /// The connection that a client has at the end; none where two were opened at once and nothing says which it is.
    fn connection(&self, client: u32) -> Option<u32> {
        let at = self.run.index.clients.iter().position(|life| life.client == Client(client))?;
        Some(self.run.index.conns[self.run.attached[at]?].number.0)
    }

    fn is_last(&self, client: u32, delivery: &Delivery) -> bool {
        self.connection(client) == Some(delivery.connection.0)
    }

    /// Messages at QoS 1 or 2 that were acknowledged and published once, on topics for which this holds.
    fn published(&self, on: impl Fn(&str) -> bool) -> Vec<MessageName> {
        let index = self.run.index;
        (0..index.messages.len())
            .filter(|&m| self.run.effects[m].is_acknowledged && self.run.effects[m].times == 1)
            .filter(|&m| on(index.text(index.messages[m].topic)))
            .map(|m| index.messages[m].name)
            .collect()
    }

    /// Wills of connections that were the owner when everybody had subscribed, broke, and were followed by another.
    fn due(&self) -> Vec<MessageName> {
        let index = self.run.index;
        let subscribed = index.subscribing.iter().filter(|change| change.change != Change::Read);
        let from = subscribed.map(|change| change.span.ended).max();
        (0..index.conns.len())
            .map(|at| (at, &index.conns[at]))
            .filter(|(at, conn)| conn.span.outcome == Outcome::Ok && !self.run.is_contested(*at))
            .filter(|(at, conn)| conn.closed.is_some() && self.run.places[*at].next.is_some())
            .filter(|(_, conn)| Some(conn.alive_after) > from)
            .filter_map(|(_, conn)| Some(index.messages[conn.will?.0].name))
            .collect()
    }

    fn without(&mut self, gone: impl Fn(u32, &Delivery) -> bool) {
        let gone: HashSet<usize> = self.deliveries(gone).into_iter().collect();
        let mut at = 0;
        self.history.events.retain(|_| {
            at += 1;
            !gone.contains(&(at - 1))
        });
    }

    fn forget_positions(&mut self) {
        for event in &mut self.history.events {
            match &mut event.what {
                What::Deliver(d) => d.position = None,
                What::Ok { answer: Answer::Published { position, .. }, .. } => *position = None,
                _ => {}
            }
        }
    }

    /// Two first deliveries of one subscriber, one right after the other, for which this holds, change places.
    fn swap(&mut self, holds: impl Fn(&Run<'_>, usize, usize, usize) -> bool) -> Option<()> {
        let mut pairs = Vec::new();
        for client in 0..self.run.index.clients.len() {
            for pair in self.run.firsts(client).windows(2) {
                let ((a, first), (b, second)) = (pair[0], pair[1]);
                let (x, y) = (self.run.index.arrivals[first], self.run.index.arrivals[second]);
                let is_sure = |m| self.run.is_of_the_first_time(client, m);
                if x.qos == y.qos && !x.dup && !y.dup && is_sure(a) && is_sure(b) && holds(self.run, client, a, b) {
                    pairs.push((x.line.0 as usize - 1, y.line.0 as usize - 1));
                }
            }
        }
        let (first, second) = self.any(&pairs)?;
        let (x, y) = (self.delivery(first).clone(), self.delivery(second).clone());
        for (at, other) in [(first, y), (second, x)] {
            let delivery = self.delivery(at);
            (delivery.message, delivery.topic, delivery.position) = (other.message, other.topic, other.position);
        }
        Some(())
    }
}

fn is_subscriber(client: u32) -> bool {
    (101..200).contains(&client)
}

#[test]
fn a_delivery_that_is_missing() {
    found(NoAcknowledgedLoss, |good| {
        // Who reads the retained value of r/1 gives up what it had subscribed to.
        let message = good.any(&good.published(|topic| topic.starts_with('t')))?;
        good.connection(101)?;
        good.without(|client, d| client == 101 && d.message == message);
        Some(())
    });
}

#[test]
fn a_suffix_that_is_missing_everywhere() {
    found(NoAcknowledgedLoss, |good| {
        let last = *good.published(|topic| topic.starts_with('t')).last()?;
        good.without(|_, d| d.message.publisher == last.publisher && d.message.seq >= last.seq);
        Some(())
    });
}

#[test]
fn a_qos_2_message_twice() {
    found(ExactlyOnce, |good| {
        let once: HashSet<MessageName> = good.published(|_| true).into_iter().collect();
        let all = good.deliveries(|client, d| {
            d.qos == 2 && is_subscriber(client) && good.is_last(client, d) && once.contains(&d.message)
        });
        let at = good.any(&all)?;
        let mut again = good.history.events[at].clone();
        if let What::Deliver(d) = &mut again.what {
            (d.packet_id, d.dup, d.repeated) = (60_000, false, false);
        }
        good.history.push(again.client.map(|client| client.0), again.what);
        Some(())
    });
}

#[test]
fn a_qos_1_message_twice_on_one_connection() {
    found(AtLeastOnce, |good| {
        let all = good.deliveries(|client, d| d.qos == 1 && is_subscriber(client) && good.is_last(client, d));
        let at = good.any(&all)?;
        let again = good.history.events[at].clone();
        good.history.events.insert(at + 1, again);
        Some(())
    });
}

#[test]
fn two_of_one_publisher_the_wrong_way_round() {
    found(Order, |good| {
        good.forget_positions();
        good.swap(|run, _, a, b| {
            run.stream_of(a).is_some() && run.stream_of(a) == run.stream_of(b) && run.is_before(a, b)
        })
    });
}

#[test]
fn two_of_two_publishers_the_wrong_way_round_at_one_subscriber() {
    found(Order, |good| {
        good.forget_positions();
        good.swap(|run, client, a, b| {
            (0..run.index.clients.len()).filter(|&other| other != client).any(|other| {
                let firsts = run.firsts(other);
                let has = |m| firsts.iter().any(|(first, _)| *first == m) && run.is_of_the_first_time(other, m);
                has(a) && has(b)
            })
        })
    });
}

#[test]
fn a_position_that_is_another() {
    found(Order, |good| {
        let all = good.deliveries(|client, d| d.qos > 0 && is_subscriber(client) && d.position.is_some());
        let at = good.any(&all)?;
        let (name, position) = (good.delivery(at).message, good.delivery(at).position?);
        let message = good.run.index.message(name)?;
        if good.deliveries(|_, d| d.message == name).len() < 2 || good.run.effects[message].times != 1 {
            return None;
        }
        good.delivery(at).position = Some(position + 1_000_000);
        Some(())
    });
}

#[test]
fn a_message_that_nobody_sent() {
    found(NothingFromNowhere, |good| {
        let at = good.any(&good.deliveries(|_, _| true))?;
        good.delivery(at).message.seq += 1_000_000;
        Some(())
    });
}

#[test]
fn a_qos_above_that_of_the_subscription() {
    found(NothingFromNowhere, |good| {
        let all = good.deliveries(|client, d| d.topic == "r/1" && d.qos == 1 && is_subscriber(client));
        let at = good.any(&all)?;
        good.delivery(at).qos = 2;
        Some(())
    });
}

#[test]
fn a_delivery_after_unsuback() {
    found(Subscriptions, |good| {
        let (receiver, publisher) = (good.connection(101)?, good.connection(1)?);
        good.history.unsubscribe(101, receiver, "t/+").publish(1, publisher, 5_000, "t/1", 1);
        good.history.deliver(101, receiver, (1, 5_000), "t/1", 1, 60_000).settle(101, receiver, 60_000);
        Some(())
    });
}

#[test]
fn a_retained_value_that_was_overwritten() {
    found(Retained, |good| {
        good.forget_positions();
        let index = good.run.index;
        let written = |m: usize| good.run.effects[m];
        let names = good.published(|topic| topic == "r/1");
        let all: Vec<usize> = names.into_iter().filter_map(|name| index.message(name)).collect();
        let mut stale = Vec::new();
        for read in index.subscribing.iter().filter(|r| r.span.outcome == Outcome::Ok && r.value.is_some()) {
            let before: Vec<usize> = all.iter().copied().filter(|&m| written(m).by < read.span.invoked).collect();
            for &old in &before {
                if before.iter().any(|&new| written(old).by < written(new).from) {
                    stale.push((read.span.ended, Some(index.messages[old].name)));
                }
            }
            if !before.is_empty() {
                stale.push((read.span.ended, None));
            }
        }
        let (line, value) = good.any(&stale)?;
        let answer = &mut good.history.events[line.0 as usize - 1].what;
        let What::Ok { answer: Answer::Retained { message }, .. } = answer else { return None };
        *message = value;
        Some(())
    });
}

#[test]
fn a_session_present_that_is_wrong() {
    found(OneOwner, |good| {
        let index = good.run.index;
        let is_sure = |conn: usize| index.conns[conn].span.outcome == Outcome::Ok && !good.run.is_contested(conn);
        let all: Vec<usize> = (0..index.conns.len())
            .filter(|&at| index.clients[index.conns[at].client].conns.iter().all(|&conn| is_sure(conn)))
            .collect();
        let line = index.conns[good.any(&all)?].span.ended;
        let answer = &mut good.history.events[line.0 as usize - 1].what;
        let What::Ok { answer: Answer::Connected { present }, .. } = answer else { return None };
        *present = !*present;
        Some(())
    });
}

#[test]
fn an_old_connection_that_is_served() {
    found(OneOwner, |good| {
        let conns = good.run.index.conns.iter().enumerate();
        let all: Vec<(u32, u32)> = conns
            .filter(|(at, conn)| conn.span.outcome == Outcome::Ok && good.run.places[*at].next.is_some())
            .map(|(_, conn)| (good.run.client(conn.client).0, conn.number.0))
            .collect();
        let (client, connection) = good.any(&all)?;
        good.history.publish(client, connection, 5_000, "nobody", 1);
        Some(())
    });
}

#[test]
fn a_shared_message_that_two_have() {
    found(Shared, |good| {
        let all = good.deliveries(|client, d| client > 200 && d.qos == 1 && good.is_last(client, d));
        let once: HashSet<MessageName> = good.published(|topic| topic == "t/1").into_iter().collect();
        let all: Vec<usize> = all.into_iter().filter(|&at| once.contains(&good.delivery(at).message)).collect();
        let at = good.any(&all)?;
        let other = if good.history.events[at].client == Some(Client(201)) { 202 } else { 201 };
        let (name, connection) = (good.delivery(at).message, good.connection(other)?);
        let name = (name.publisher, name.seq);
        good.history.deliver(other, connection, name, "t/1", 1, 60_000).settle(other, connection, 60_000);
        Some(())
    });
}

#[test]
fn a_shared_message_that_nobody_has() {
    found(Shared, |good| {
        let message = good.any(&good.published(|topic| topic == "t/1"))?;
        // From a member that is gone nothing comes back at QoS 2.
        good.connection(201).and(good.connection(202))?;
        good.without(|client, d| client > 200 && d.message == message);
        Some(())
    });
}

#[test]
fn a_will_that_is_missing_or_of_the_living() {
    found(Wills, |good| {
        good.connection(101)?;
        let message = good.any(&good.due())?;
        good.without(|client, d| client == 101 && d.message == message);
        Some(())
    });
    found(Wills, |good| {
        let (receiver, publisher) = (good.connection(101)?, good.connection(1)?);
        good.history.deliver(101, receiver, (1001, u64::from(publisher)), "w", 1, 60_000).settle(101, receiver, 60_000);
        good.history.publish(1, publisher, 5_000, "nobody", 1);
        Some(())
    });
}

#[test]
fn a_will_that_comes_twice() {
    found(AtLeastOnce, |good| {
        let all = good.deliveries(|client, d| is_subscriber(client) && d.topic == "w" && good.is_last(client, d));
        let at = good.any(&all)?;
        let (name, client) = (good.delivery(at).message, good.history.events[at].client?.0);
        let connection = good.connection(client)?;
        good.history.deliver(client, connection, (name.publisher, name.seq), "w", 1, 60_000);
        Some(())
    });
}

#[test]
fn a_replica_that_differs() {
    found(ReplicasAgree, |good| {
        let What::Digest { digest, .. } = &mut good.history.events.last_mut()?.what else { return None };
        "other".clone_into(digest);
        Some(())
    });
}
