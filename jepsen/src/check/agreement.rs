//! Guarantee 5, second half: all subscribers see one order.
//!
//! The first deliveries of each client are a chain; all chains together must have no cycle, so that one order of all
//! messages explains what everybody saw. (Pairs of subscribers are not enough: three may each agree with each other
//! and still go in a circle.) Linear in the deliveries. Not held for what [`super::order`] does not hold for.

use std::collections::HashMap;

use crate::history::index::{ClientAt, DeliveryAt, MessageAt};

use super::run::Run;
use super::verdict::{Found, Guarantee, Kind, LINES_MAX};

/// That one message came right before another, and where.
#[derive(Clone, Copy)]
struct Edge {
    from: MessageAt,
    to: MessageAt,
    client: ClientAt,
    first: DeliveryAt,
    second: DeliveryAt,
}

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    let mut edges = Vec::new();
    for client in 0..run.index.clients.len() {
        let chain: Vec<(MessageAt, DeliveryAt)> =
            run.firsts(client).into_iter().filter(|&(message, _)| run.is_of_the_first_time(client, message)).collect();
        edges.extend(chain.windows(2).map(|pair| Edge {
            from: pair[0].0,
            to: pair[1].0,
            client,
            first: pair[0].1,
            second: pair[1].1,
        }));
    }
    let Some(cycle) = cycle(run.index.messages.len(), &edges) else { return };
    let Some(last) = cycle.last() else { return };
    let whole: Vec<String> = cycle
        .iter()
        .take(LINES_MAX / 2)
        .map(|edge| format!("{} then {} at {}", run.name(edge.from), run.name(edge.to), run.client(edge.client).0))
        .collect();
    let what = format!("no one order explains what clients saw: {}", whole.join(", "));
    let mut bad = run.violation(Guarantee::Order, Kind::Reordered, Some(last.client), Some(last.to), what);
    let lines = cycle.iter().flat_map(|e| [run.index.arrivals[e.first].line, run.index.arrivals[e.second].line]);
    bad.lines = lines.take(LINES_MAX).collect();
    found.violations.push(bad);
}

/// A cycle, if there is one: a short one, for people to read.
fn cycle(messages: usize, edges: &[Edge]) -> Option<Vec<Edge>> {
    let mut before = vec![0_u32; messages];
    let mut after: HashMap<MessageAt, Vec<usize>> = HashMap::new();
    for (at, edge) in edges.iter().enumerate() {
        before[edge.to] += 1;
        after.entry(edge.from).or_default().push(at);
    }
    let mut free: Vec<MessageAt> = (0..messages).filter(|&message| before[message] == 0).collect();
    let mut left = messages;
    while let Some(message) = free.pop() {
        left -= 1;
        for &edge in after.get(&message).into_iter().flatten() {
            let to = edges[edge].to;
            before[to] -= 1;
            if before[to] == 0 {
                free.push(to);
            }
        }
    }
    if left == 0 {
        return None;
    }
    // Everything that still has something before it is in a cycle or after one. Backwards one always meets a cycle.
    let mut into: HashMap<MessageAt, usize> = HashMap::new();
    for (at, edge) in edges.iter().enumerate().filter(|(_, e)| before[e.from] > 0 && before[e.to] > 0) {
        into.insert(edge.to, at);
    }
    let start = edges.iter().find(|e| before[e.from] > 0 && before[e.to] > 0)?.to;
    let mut met: HashMap<MessageAt, usize> = HashMap::new();
    let mut path: Vec<Edge> = Vec::new();
    let mut at = start;
    while !met.contains_key(&at) {
        met.insert(at, path.len());
        let edge = edges[*into.get(&at)?];
        path.push(edge);
        at = edge.from;
    }
    let mut cycle = path.split_off(*met.get(&at)?);
    cycle.reverse();
    Some(shortened(&cycle, edges, &before))
}

/// The shortest cycle through an edge of this one: breadth first among what is left.
fn shortened(cycle: &[Edge], edges: &[Edge], before: &[u32]) -> Vec<Edge> {
    let Some(&closing) = cycle.first() else { return Vec::new() };
    let mut after: HashMap<MessageAt, Vec<usize>> = HashMap::new();
    for (at, edge) in edges.iter().enumerate().filter(|(_, e)| before[e.from] > 0 && before[e.to] > 0) {
        after.entry(edge.from).or_default().push(at);
    }
    let mut came_by: HashMap<MessageAt, usize> = HashMap::new();
    let mut queue = std::collections::VecDeque::from([closing.to]);
    while let Some(message) = queue.pop_front() {
        if message == closing.from {
            break;
        }
        for &at in after.get(&message).into_iter().flatten() {
            let to = edges[at].to;
            if to != closing.to && !came_by.contains_key(&to) {
                came_by.insert(to, at);
                queue.push_back(to);
            }
        }
    }
    let mut found = vec![closing];
    let mut at = closing.from;
    while at != closing.to {
        let Some(&edge) = came_by.get(&at) else { return cycle.to_vec() };
        found.push(edges[edge]);
        at = edges[edge].from;
    }
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::{History, broken};
    use crate::check::verdict::Guarantee::Order;

    /// Publishers 1 to 3 publish one message each; each client sees those of its list, in its order.
    fn seen(orders: &[&[u32]]) -> History {
        let mut h = History::new();
        for publisher in 1..=3 {
            h.connect(publisher, 1);
        }
        for (client, order) in (10..).zip(orders) {
            h.connect(client, 1);
            for publisher in *order {
                h.subscribe(client, 1, &format!("t/{publisher}"), 1);
            }
        }
        for publisher in 1..=3 {
            h.publish(publisher, 1, 0, &format!("t/{publisher}"), 1);
        }
        for (client, order) in (10..).zip(orders) {
            for (id, publisher) in (1..).zip(*order) {
                h.deliver(client, 1, (*publisher, 0), &format!("t/{publisher}"), 1, id).settle(client, 1, id);
            }
        }
        h.drain();
        h
    }

    #[test]
    fn one_order_explains_what_everybody_saw() {
        assert_eq!(broken(&seen(&[&[1, 2, 3], &[1, 3], &[2, 3]])), []);
        assert_eq!(broken(&seen(&[&[3, 1, 2], &[3, 2], &[1]])), []);
    }

    #[test]
    fn two_who_disagree_are_found() {
        assert_eq!(broken(&seen(&[&[1, 2, 3], &[2, 1]])).len(), 1);
        assert_eq!(broken(&seen(&[&[1, 2], &[2, 1]]))[0].0, Order);
    }

    #[test]
    fn three_who_agree_by_pairs_and_go_in_a_circle_are_found() {
        assert_eq!(broken(&seen(&[&[1, 2], &[2, 3], &[3, 1]])).len(), 1);
    }
}
