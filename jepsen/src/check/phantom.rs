//! Nothing from nowhere: every delivery is of a message that its publisher sent before, on that topic, and that was not
//! refused; it comes by a subscription that was asked for before, at the lower of the two QoS; RETAIN stands only on
//! what was published so.
//!
//! Where filters of one client overlap, the highest QoS of those that certainly match is the least that the message
//! may have. That the subscription was there when the message was published is [`super::subscriptions`]'s.

use crate::history::index::{Arrival, MessageAt};
use crate::history::read::Line;

use super::run::{Run, TimelineAt};
use super::verdict::{Found, Guarantee, Kind};

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    for arrival in &run.index.arrivals {
        if let Some(what) = reason_against(run, arrival) {
            let (client, message) = (Some(arrival.client), arrival.message);
            let mut bad = run.violation(Guarantee::NothingFromNowhere, Kind::Unwanted, client, message, what);
            bad.message = Some(arrival.name);
            bad.lines.push(arrival.line);
            found.violations.push(bad);
        }
    }
}

fn reason_against(run: &Run<'_>, arrival: &Arrival) -> Option<String> {
    let Some(message) = arrival.message else { return Some("was never sent".to_owned()) };
    let m = &run.index.messages[message];
    let effect = run.effects[message];
    if effect.times == 0 {
        return Some("was refused, or never left its client".to_owned());
    }
    if effect.from > arrival.line {
        return Some("arrived before it was sent".to_owned());
    }
    if m.topic != arrival.topic {
        return Some(format!(
            "was sent on {} and arrived on {}",
            run.index.text(m.topic),
            run.index.text(arrival.topic)
        ));
    }
    if arrival.retain && !m.retain {
        return Some("has RETAIN and was published without it".to_owned());
    }
    let routes = run.routes_to(arrival.client, arrival.topic);
    let begun = |at: &&TimelineAt| run.timelines[**at].has_begun(arrival.line);
    if !routes.is_some_and(|routes| routes.direct.iter().chain(&routes.shared).any(|at| begun(&at))) {
        return Some("matches nothing that its receiver subscribed to".to_owned());
    }
    let allowed = allowed_qos(run, arrival, message)?;
    (allowed & (1 << arrival.qos.min(2)) == 0)
        .then(|| format!("was sent at QoS {} and arrived at QoS {}", m.qos, arrival.qos))
}

/// Bits of the QoS that it may have; none when the subscriptions say nothing of it.
fn allowed_qos(run: &Run<'_>, arrival: &Arrival, message: MessageAt) -> Option<u8> {
    let routes = run.routes_to(arrival.client, arrival.topic)?;
    let effect = run.effects[message];
    // A retained message comes by a subscription that was made later than it.
    let (from, to) =
        if arrival.retain { (Line::START, arrival.line) } else { (effect.from, effect.by.min(arrival.line)) };
    let (mut bits, mut least) = (0, 0);
    for &at in &routes.direct {
        let timeline = &run.timelines[at];
        if timeline.is_absent(from, to) {
            continue;
        }
        let qos = timeline.qos(from, to);
        bits |= qos;
        if !arrival.retain && timeline.is_certain(from, to) {
            least = least.max(qos.trailing_zeros());
        }
    }
    bits &= 0b111_u8.checked_shl(least).unwrap_or(0);
    // A shared group serves its members apart from what they have subscribed to themselves.
    for &at in &routes.shared {
        bits |= run.timelines[at].qos(from, arrival.line);
    }
    let sent = run.index.messages[message].qos.min(2);
    let capped = (bits & ((1 << sent) - 1)) | if bits >> sent != 0 { 1 << sent } else { 0 };
    (capped != 0).then_some(capped)
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::{History, broken};
    use crate::check::verdict::Guarantee::NothingFromNowhere;

    fn subscribed(qos: u8) -> History {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).subscribe(2, 1, "a", qos).publish(1, 1, 0, "a", 1);
        h
    }

    #[test]
    fn what_nobody_sent_or_not_yet_or_not_there() {
        for (name, topic) in [((1, 7), "a"), ((1, 0), "b"), ((3, 0), "a")] {
            let mut h = subscribed(1);
            h.deliver(2, 1, (1, 0), "a", 1, 1).settle(2, 1, 1).deliver(2, 1, name, topic, 1, 2).settle(2, 1, 2);
            assert!(broken(h.drain()).iter().any(|(g, _)| *g == NothingFromNowhere), "{name:?} {topic}");
        }
        let mut h = subscribed(1);
        h.deliver(2, 1, (1, 0), "a", 1, 1).settle(2, 1, 1).deliver(2, 1, (1, 1), "a", 1, 2).settle(2, 1, 2);
        h.publish(1, 1, 1, "a", 1);
        assert!(broken(h.drain()).contains(&(NothingFromNowhere, Some(1))));
    }

    #[test]
    fn what_was_refused() {
        let mut h = subscribed(1);
        h.deliver(2, 1, (1, 0), "a", 1, 1).settle(2, 1, 1);
        let op = h.publish_open(1, 1, 1, "a", 1);
        h.fail(1, op).deliver(2, 1, (1, 1), "a", 1, 2).settle(2, 1, 2);
        assert_eq!(broken(h.drain()), [(NothingFromNowhere, Some(1))]);
    }

    #[test]
    fn the_lower_qos_of_the_two() {
        let mut h = subscribed(2);
        h.deliver(2, 1, (1, 0), "a", 2, 1).received(2, 1, 1).released(2, 1, 1).completed(2, 1, 1);
        assert_eq!(broken(h.drain()), [(NothingFromNowhere, Some(0))]);
        let mut h = subscribed(0);
        h.deliver(2, 1, (1, 0), "a", 0, 0);
        assert_eq!(broken(h.drain()), []);
    }

    #[test]
    fn what_no_filter_matches() {
        let mut h = subscribed(1);
        h.connect(3, 1).subscribe(3, 1, "b", 1).deliver(2, 1, (1, 0), "a", 1, 1).settle(2, 1, 1);
        h.deliver(3, 1, (1, 0), "a", 1, 1).settle(3, 1, 1);
        assert_eq!(broken(h.drain()), [(NothingFromNowhere, Some(0))]);
    }

    #[test]
    fn a_read_of_a_retained_value_subscribes_at_qos_1() {
        for (qos, is_fine) in [(1, true), (2, false)] {
            let mut h = History::new();
            h.connect(1, 1).connect(2, 1).read(2, 1, "a", None).publish(1, 1, 0, "a", 2);
            h.deliver(2, 1, (1, 0), "a", qos, 1).answer(2, 1, 1, qos);
            assert_eq!(broken(h.drain()).is_empty(), is_fine);
        }
    }
}
