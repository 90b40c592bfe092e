//! Guarantee 6, subscriptions are linearizable: UNSUBACK before PUBLISH means no delivery ([`super::no_loss`] holds
//! that SUBACK before PUBLISH means one).
//!
//! A live message that arrives was published while the client may have been subscribed to its topic: some SUBSCRIBE
//! that matches was invoked before the message can have been published for the last time, and no UNSUBACK, and no
//! CONNACK of a new session, certainly stands between the two. While both go on at once either answer is right.
//! What waits in a shared group may also go to who joins it later.

use crate::history::read::Line;

use super::run::Run;
use super::verdict::{Found, Guarantee, Kind};

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    for arrival in run.index.arrivals.iter().filter(|arrival| !arrival.retain) {
        let Some(message) = arrival.message else { continue };
        // QoS 0 goes past the log, and is not promised.
        if run.index.messages[message].qos == 0 {
            continue;
        }
        let effect = run.effects[message];
        let routes = run.routes_to(arrival.client, arrival.topic);
        // It arrived: it was published before.
        let by = effect.by.min(arrival.line);
        let is_wanted = routes.is_some_and(|routes| {
            routes.direct.iter().any(|&at| !run.timelines[at].is_absent(effect.from, by))
                || routes.shared.iter().any(|&at| !run.timelines[at].is_absent(effect.from, arrival.line))
        });
        // What nobody sent, and what no filter ever matched, is for another check.
        let was_ever = routes.is_some_and(|routes| {
            let mut all = routes.direct.iter().chain(&routes.shared);
            all.any(|&at| run.timelines[at].has_begun(arrival.line))
        });
        if is_wanted || !was_ever || effect.from == Line::NEVER {
            continue;
        }
        let what = "arrived, and was published when its receiver was not subscribed".to_owned();
        let client = Some(arrival.client);
        let mut bad = run.violation(Guarantee::Subscriptions, Kind::Unwanted, client, Some(message), what);
        bad.lines.push(arrival.line);
        let changes = run.index.subscribing.iter().filter(|change| change.client == arrival.client);
        let ended = changes.map(|change| change.span.ended).filter(|&line| line < effect.from).max();
        bad.lines.extend(ended);
        found.violations.push(bad);
    }
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::{History, broken};
    use crate::check::verdict::Guarantee::Subscriptions;

    fn subscribed() -> History {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).subscribe(2, 1, "a", 1);
        h
    }

    #[test]
    fn after_unsuback_nothing_comes_that_was_published_since() {
        let mut h = subscribed();
        h.unsubscribe(2, 1, "a").publish(1, 1, 0, "a", 1).deliver(2, 1, (1, 0), "a", 1, 1).settle(2, 1, 1);
        assert_eq!(broken(h.drain()), [(Subscriptions, Some(0))]);
        let mut h = subscribed();
        h.publish(1, 1, 0, "a", 1).unsubscribe(2, 1, "a").deliver(2, 1, (1, 0), "a", 1, 1).settle(2, 1, 1);
        assert_eq!(broken(h.drain()), [], "it was in the queue");
    }

    #[test]
    fn qos_0_goes_past_the_log_and_is_not_held_to_it() {
        let mut h = subscribed();
        h.unsubscribe(2, 1, "a").publish(1, 1, 0, "a", 0).deliver(2, 1, (1, 0), "a", 0, 0);
        assert_eq!(broken(h.drain()), []);
    }

    #[test]
    fn before_subscribe_nothing_comes_live() {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).publish(1, 1, 0, "a", 1).subscribe(2, 1, "a", 1);
        h.deliver(2, 1, (1, 0), "a", 1, 1).settle(2, 1, 1);
        assert_eq!(broken(h.drain()), [(Subscriptions, Some(0))]);
    }

    #[test]
    fn while_both_go_on_either_is_right() {
        for comes in [true, false] {
            let mut h = subscribed();
            let op = h.unsubscribe_open(2, 1, "a");
            h.publish(1, 1, 0, "a", 1).unsuback(2, op);
            if comes {
                h.deliver(2, 1, (1, 0), "a", 1, 1).settle(2, 1, 1);
            }
            assert_eq!(broken(h.drain()), []);
        }
    }

    #[test]
    fn a_subscription_does_not_outlive_its_session() {
        let mut h = subscribed();
        h.lost(2, 1).connect_with(2, 2, |c| c.clean_start = true).publish(1, 1, 0, "a", 1);
        h.deliver(2, 2, (1, 0), "a", 1, 1).settle(2, 2, 1);
        assert_eq!(broken(h.drain()), [(Subscriptions, Some(0))]);
    }

    #[test]
    fn who_subscribes_again_is_subscribed_again() {
        let mut h = subscribed();
        h.unsubscribe(2, 1, "a").subscribe(2, 1, "a", 1).publish(1, 1, 0, "a", 1);
        h.deliver(2, 1, (1, 0), "a", 1, 1).settle(2, 1, 1);
        assert_eq!(broken(h.drain()), []);
    }
}
