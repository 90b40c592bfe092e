//! Judges what clients saw: nothing acknowledged is lost, QoS 2 exactly once, order, and QoS 1 repeats only
//! where MQTT allows them.
//!
//! Pure: a [`History`] goes in, a [`Verdict`] comes out. What it promises is in docs/GUARANTEES.md (2 to 5).

use std::collections::{HashMap, HashSet};

use crate::client::Qos;

/// What all clients saw.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Publishers, by number.
    pub publishers: Vec<PublisherHistory>,
    /// Subscribers to all of them.
    pub subscribers: Vec<SubscriberHistory>,
}

/// What one publisher did. Its messages are numbered from 0; each goes to all subscribers.
#[derive(Clone, Debug)]
pub struct PublisherHistory {
    /// Its QoS.
    pub qos: Qos,
    /// One for each message.
    pub messages: Vec<PublishedMessage>,
}

/// One message of a publisher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublishedMessage {
    /// How often PUBLISH was sent (more than once only after a lost connection).
    pub sends: u32,
    /// PUBACK or PUBREC came with success.
    pub acknowledged: bool,
    /// It came with a refusal.
    pub refused: bool,
}

/// What one subscriber saw, in order.
#[derive(Clone, Debug, Default)]
pub struct SubscriberHistory {
    /// Deliveries.
    pub deliveries: Vec<Delivery>,
    /// Times that the server had forgotten its session.
    pub sessions_lost: u64,
}

/// One delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Number of the publisher.
    pub publisher: usize,
    /// Number of its message.
    pub number: usize,
    /// QoS.
    pub qos: Qos,
    /// DUP.
    pub dup: bool,
    /// Packet identifier.
    pub packet_id: u16,
    /// Number of the subscriber's connection.
    pub connection: u64,
}

/// Counts for one QoS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages acknowledged to publishers.
    pub acknowledged: u64,
    /// Deliveries, repeats included, over all subscribers.
    pub delivered: u64,
    /// Acknowledged and missing, over all subscribers.
    pub lost: u64,
    /// Repeats that MQTT allows: QoS 1, DUP=1, on a later connection; or the publisher sent it again.
    pub repeated: u64,
    /// Repeats that it does not allow.
    pub duplicated: u64,
    /// Deliveries that came before an earlier message of their publisher, or in another order than elsewhere.
    pub out_of_order: u64,
}

/// The judgement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// QoS 1.
    pub at_least_once: Counts,
    /// QoS 2.
    pub exactly_once: Counts,
    /// Deliveries of what nobody published, or at another QoS.
    pub invented: u64,
    /// Sessions that the server forgot.
    pub sessions_lost: u64,
    /// Publishes that were refused (no violation: the publisher knows).
    pub refused: u64,
    /// The first few violations, in words.
    pub examples: Vec<String>,
}

/// Examples that are kept.
const EXAMPLES_MAX: usize = 10;

impl Verdict {
    /// Whether every promise was kept.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let kept = |counts: &Counts| counts.lost == 0 && counts.duplicated == 0 && counts.out_of_order == 0;
        kept(&self.at_least_once) && kept(&self.exactly_once) && self.invented == 0 && self.sessions_lost == 0
    }

    fn counts(&mut self, qos: Qos) -> &mut Counts {
        if qos == Qos::ExactlyOnce { &mut self.exactly_once } else { &mut self.at_least_once }
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(text());
        }
    }
}

type Name = (usize, usize);

/// Judges `history`, once all traffic has come to rest.
#[must_use]
pub fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    for publisher in &history.publishers {
        let acknowledged = publisher.messages.iter().filter(|message| message.acknowledged).count();
        verdict.counts(publisher.qos).acknowledged += acknowledged as u64;
        verdict.refused += publisher.messages.iter().filter(|message| message.refused).count() as u64;
    }
    for (who, subscriber) in history.subscribers.iter().enumerate() {
        verdict.sessions_lost += subscriber.sessions_lost;
        if subscriber.sessions_lost > 0 {
            verdict.example(|| format!("subscriber {who}: its session was forgotten"));
        }
        check_deliveries(history, who, subscriber, &mut verdict);
        check_order(history, who, subscriber, &mut verdict);
    }
    check_one_order(history, &mut verdict);
    verdict
}

/// Invented, repeated, duplicated and lost.
fn check_deliveries(history: &History, who: usize, subscriber: &SubscriberHistory, verdict: &mut Verdict) {
    // Rows in which a message came: by packet identifier, the connection of the last delivery.
    let mut rows: HashMap<Name, HashMap<u16, u64>> = HashMap::new();
    for delivery in &subscriber.deliveries {
        let Delivery { publisher, number, qos, dup, packet_id, connection } = *delivery;
        let published = history.publishers.get(publisher).filter(|p| p.qos == qos).and_then(|p| p.messages.get(number));
        let Some(published) = published else {
            verdict.invented += 1;
            verdict.example(|| format!("subscriber {who}: nobody published {delivery:?}"));
            continue;
        };
        verdict.counts(qos).delivered += 1;
        let seen = rows.entry((publisher, number)).or_default();
        let is_first = seen.is_empty();
        let earlier = seen.insert(packet_id, connection);
        if is_first {
            continue;
        }
        let is_allowed = qos == Qos::AtLeastOnce
            && match earlier {
                // The same row again: only on a later connection, and marked.
                Some(earlier) => dup && connection > earlier,
                // Another row: the publisher sent it more than once, and the server cannot tell (QoS 1).
                None => seen.len() <= published.sends as usize,
            };
        if is_allowed {
            verdict.counts(qos).repeated += 1;
        } else {
            verdict.counts(qos).duplicated += 1;
            verdict.example(|| format!("subscriber {who}: duplicate {delivery:?}"));
        }
    }
    for (publisher, history) in history.publishers.iter().enumerate() {
        for (number, _) in history.messages.iter().enumerate().filter(|(_, message)| message.acknowledged) {
            if !rows.contains_key(&(publisher, number)) {
                verdict.counts(history.qos).lost += 1;
                verdict.example(|| {
                    format!(
                        "subscriber {who}: message {number} of publisher {publisher} was acknowledged and never came"
                    )
                });
            }
        }
    }
}

/// Per publisher: first deliveries ascend; on one connection, all do that were published once.
fn check_order(history: &History, who: usize, subscriber: &SubscriberHistory, verdict: &mut Verdict) {
    let mut seen: HashSet<Name> = HashSet::new();
    let mut newest: HashMap<usize, usize> = HashMap::new();
    let mut last: HashMap<usize, (u64, usize)> = HashMap::new();
    for delivery in &subscriber.deliveries {
        let Delivery { publisher, number, qos, connection, .. } = *delivery;
        let Some(message) = history.publishers.get(publisher).and_then(|p| p.messages.get(number)) else { continue };
        let mut is_ordered = true;
        if seen.insert((publisher, number)) {
            is_ordered = newest.insert(publisher, number).is_none_or(|newest| newest < number);
        }
        if message.sends == 1 {
            let before = last.insert(publisher, (connection, number));
            is_ordered &= before.is_none_or(|(on, before)| on != connection || before < number);
        }
        if !is_ordered {
            verdict.counts(qos).out_of_order += 1;
            verdict.example(|| format!("subscriber {who}: out of order {delivery:?}"));
        }
    }
}

/// All subscribers see the messages of one QoS in one order.
fn check_one_order(history: &History, verdict: &mut Verdict) {
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let mut places: HashMap<Name, usize> = HashMap::new();
        for (who, subscriber) in history.subscribers.iter().enumerate() {
            let mut seen: HashSet<Name> = HashSet::new();
            let mut furthest = None;
            for delivery in subscriber.deliveries.iter().filter(|delivery| delivery.qos == qos) {
                let name = (delivery.publisher, delivery.number);
                if !seen.insert(name) {
                    continue;
                }
                if who == 0 {
                    places.insert(name, places.len());
                } else if let Some(place) = places.get(&name).copied() {
                    if furthest.is_some_and(|furthest| furthest > place) {
                        verdict.counts(qos).out_of_order += 1;
                        verdict
                            .example(|| format!("subscriber {who}: another order than subscriber 0 at {delivery:?}"));
                    } else {
                        furthest = Some(place);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: PublishedMessage = PublishedMessage { sends: 1, acknowledged: true, refused: false };

    fn publisher(qos: Qos, messages: &[PublishedMessage]) -> PublisherHistory {
        PublisherHistory { qos, messages: messages.to_vec() }
    }

    fn delivery(publisher: usize, number: usize, qos: Qos) -> Delivery {
        // One row for each message: the identifier follows from its number.
        let packet_id = 1 + (publisher * 100 + number) as u16;
        Delivery { publisher, number, qos, dup: false, packet_id, connection: 1 }
    }

    fn again(first: Delivery, connection: u64) -> Delivery {
        Delivery { dup: true, connection, ..first }
    }

    fn subscriber(deliveries: &[Delivery]) -> SubscriberHistory {
        SubscriberHistory { deliveries: deliveries.to_vec(), sessions_lost: 0 }
    }

    fn one_publisher(qos: Qos, messages: &[PublishedMessage], deliveries: &[Delivery]) -> Verdict {
        check(&History { publishers: vec![publisher(qos, messages)], subscribers: vec![subscriber(deliveries)] })
    }

    const Q1: Qos = Qos::AtLeastOnce;
    const Q2: Qos = Qos::ExactlyOnce;

    #[test]
    fn a_faultless_history_is_good() {
        let messages = [SENT; 3];
        let all = |qos, publisher| (0..3).map(move |number| delivery(publisher, number, qos));
        let deliveries: Vec<_> = all(Q1, 0).chain(all(Q2, 1)).collect();
        let history = History {
            publishers: vec![publisher(Q1, &messages), publisher(Q2, &messages)],
            subscribers: vec![subscriber(&deliveries), subscriber(&deliveries)],
        };
        let verdict = check(&history);
        assert!(verdict.is_good(), "{verdict:?}");
        assert_eq!(verdict.exactly_once, Counts { acknowledged: 3, delivered: 6, ..Counts::default() });
        assert!(verdict.examples.is_empty());
    }

    #[test]
    fn an_acknowledged_message_that_never_comes_is_lost() {
        for qos in [Q1, Q2] {
            let verdict = one_publisher(qos, &[SENT; 3], &[delivery(0, 0, qos), delivery(0, 2, qos)]);
            assert_eq!(verdict.clone().counts(qos).lost, 1);
            assert!(!verdict.is_good());
        }
    }

    #[test]
    fn an_unacknowledged_message_may_come_or_not() {
        let unknown = PublishedMessage { sends: 1, acknowledged: false, refused: false };
        assert!(one_publisher(Q2, &[unknown], &[]).is_good());
        assert!(one_publisher(Q2, &[unknown], &[delivery(0, 0, Q2)]).is_good());
        let refused = PublishedMessage { refused: true, ..unknown };
        let verdict = one_publisher(Q2, &[refused], &[]);
        assert!(verdict.is_good());
        assert_eq!(verdict.refused, 1);
    }

    #[test]
    fn qos_2_never_comes_twice() {
        let first = delivery(0, 0, Q2);
        for second in [first, again(first, 2), Delivery { packet_id: 99, ..first }] {
            let resent = PublishedMessage { sends: 2, ..SENT };
            let verdict = one_publisher(Q2, &[resent], &[first, second]);
            assert_eq!(verdict.exactly_once.duplicated, 1, "{second:?}");
            assert!(!verdict.is_good());
        }
    }

    #[test]
    fn qos_1_repeats_need_dup_and_a_later_connection() {
        let first = delivery(0, 0, Q1);
        let verdict = one_publisher(Q1, &[SENT], &[first, again(first, 2), again(first, 3)]);
        assert!(verdict.is_good(), "{verdict:?}");
        assert_eq!((verdict.at_least_once.repeated, verdict.at_least_once.delivered), (2, 3));
        for bad in [again(first, 1), Delivery { connection: 2, ..first }, Delivery { packet_id: 9, ..again(first, 2) }]
        {
            let verdict = one_publisher(Q1, &[SENT], &[first, bad]);
            assert_eq!(verdict.at_least_once.duplicated, 1, "{bad:?}");
        }
    }

    #[test]
    fn what_a_qos_1_publisher_sent_twice_may_come_in_two_rows() {
        let resent = PublishedMessage { sends: 2, ..SENT };
        let (first, second) = (delivery(0, 0, Q1), Delivery { packet_id: 50, ..delivery(0, 0, Q1) });
        let (next, next_again) = (delivery(0, 1, Q1), Delivery { packet_id: 51, ..delivery(0, 1, Q1) });
        let verdict = one_publisher(Q1, &[resent; 2], &[first, next, second, next_again]);
        assert!(verdict.is_good(), "{verdict:?}");
        let third = Delivery { packet_id: 60, ..first };
        assert_eq!(one_publisher(Q1, &[resent], &[first, second, third]).at_least_once.duplicated, 1);
    }

    #[test]
    fn a_step_back_is_out_of_order() {
        for qos in [Q1, Q2] {
            let deliveries = [delivery(0, 0, qos), delivery(0, 2, qos), delivery(0, 1, qos)];
            let verdict = one_publisher(qos, &[SENT; 3], &deliveries);
            assert_eq!(verdict.clone().counts(qos).out_of_order, 1);
            assert!(!verdict.is_good());
        }
    }

    #[test]
    fn a_resumed_connection_may_go_back_but_only_forward_from_there() {
        let [a, b, c] = [0, 1, 2].map(|number| delivery(0, number, Q1));
        assert!(
            one_publisher(Q1, &[SENT; 3], &[a, b, again(a, 2), again(b, 2), Delivery { connection: 2, ..c }]).is_good()
        );
        let verdict = one_publisher(Q1, &[SENT; 3], &[a, b, c, again(b, 2), again(a, 2)]);
        assert_eq!(verdict.at_least_once.out_of_order, 1);
    }

    #[test]
    fn two_subscribers_see_one_order() {
        let (a, b) = (delivery(0, 0, Q2), delivery(1, 0, Q2));
        let history = |second: &[Delivery]| History {
            publishers: vec![publisher(Q2, &[SENT]), publisher(Q2, &[SENT])],
            subscribers: vec![subscriber(&[a, b]), subscriber(second)],
        };
        assert!(check(&history(&[a, b])).is_good());
        assert_eq!(check(&history(&[b, a])).exactly_once.out_of_order, 1);
    }

    #[test]
    fn inventions_and_forgotten_sessions_are_violations() {
        assert_eq!(one_publisher(Q2, &[SENT], &[delivery(0, 0, Q2), delivery(0, 7, Q2)]).invented, 1);
        assert_eq!(one_publisher(Q2, &[SENT], &[delivery(0, 0, Q1), delivery(0, 0, Q2)]).invented, 1);
        let mut forgotten = subscriber(&[]);
        forgotten.sessions_lost = 1;
        let verdict = check(&History { publishers: Vec::new(), subscribers: vec![forgotten] });
        assert!(!verdict.is_good());
    }
}
