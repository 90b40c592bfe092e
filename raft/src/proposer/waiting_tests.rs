use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::proposer::testkit::{connection, ids_of, incarnation, publish, publish_from, settle, submission};

fn waiting() -> Waiting {
    Waiting::new(incarnation(1), 1000, 1 << 20)
}

fn ids(cut: &Cut) -> Vec<u64> {
    cut.commands.iter().flat_map(ids_of).collect()
}

#[test]
fn a_batch_keeps_the_order_and_stops_at_its_bounds() {
    let mut waiting = waiting();
    for id in 0..10 {
        waiting.submit(submission(id, publish(id))).unwrap();
    }
    assert_eq!(ids(&waiting.cut(4, 1 << 20)), [0, 1, 2, 3]);
    let one = command_bytes(&publish(0));
    assert_eq!(ids(&waiting.cut(64, 3 * one)), [4, 5, 6], "bytes bound a batch too");
    assert_eq!(ids(&waiting.cut(64, 1)), [7], "a command that is longer than a batch goes alone");
    assert_eq!(waiting.len(), 2);
    assert_eq!(waiting.bytes(), 2 * one);
    assert_eq!(ids(&waiting.cut(64, 1 << 20)), [8, 9]);
    assert!(waiting.cut(64, 1 << 20).commands.is_empty());
    assert_eq!(waiting.bytes(), 0);
}

#[test]
fn at_a_bound_the_command_comes_back_and_room_is_a_quarter_below() {
    let mut waiting = Waiting::new(incarnation(1), 8, 1 << 20);
    for id in 0..8 {
        waiting.submit(submission(id, publish(id))).unwrap();
    }
    assert_eq!(waiting.submit(submission(8, publish(8))).unwrap_err().ticket.request, 8);
    assert!(!waiting.has_room());
    waiting.cut(2, 1 << 20);
    assert!(!waiting.has_room());
    waiting.cut(1, 1 << 20);
    assert!(waiting.has_room());
    let mut bytes = Waiting::new(incarnation(1), 100, 10);
    bytes.submit(submission(0, publish(0))).unwrap();
    assert!(bytes.submit(submission(1, publish(1))).is_err(), "one command may overshoot, a second may not");
    for max in 1..5 {
        let mut small = Waiting::new(incarnation(1), max, 1 << 20);
        while small.submit(submission(0, publish(0))).is_ok() {}
        assert!(!small.has_room(), "room is never told where the next command would be refused");
    }
}

#[test]
fn what_was_withdrawn_gets_no_number() {
    let mut waiting = waiting();
    let withdrawn = Arc::new(AtomicBool::new(false));
    waiting.submit(submission(0, publish(0))).unwrap();
    waiting.submit(Submission { withdrawn: Some(withdrawn.clone()), ..submission(1, publish(1)) }).unwrap();
    waiting.submit(submission(2, publish(2))).unwrap();
    withdrawn.store(true, Ordering::Release);
    let cut = waiting.cut(64, 1 << 20);
    assert_eq!((ids(&cut), cut.withdrawn), (vec![0, 2], 1));
    assert_eq!(cut.waiters.iter().map(|w| (w.ticket.request, w.command)).collect::<Vec<_>>(), [(0, 0), (2, 1)]);
}

#[test]
fn acknowledgements_of_one_connection_become_one_command() {
    let (a, b) = (connection(1, 1), connection(2, 1));
    let mut waiting = waiting();
    for (id, from) in [(0, a), (1, b), (2, a), (3, b), (4, a)] {
        waiting.submit(submission(id, settle(from, id))).unwrap();
    }
    let cut = waiting.cut(64, 1 << 20);
    assert_eq!(cut.commands.iter().map(ids_of).collect::<Vec<_>>(), [vec![0, 2, 4], vec![1, 3]]);
    assert_eq!(cut.merged, 3);
    let waiters: Vec<_> = cut.waiters.iter().map(|w| (w.ticket.request, w.command)).collect();
    assert_eq!(waiters, [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)], "told in the order of submission");
}

#[test]
fn an_acknowledgement_never_overtakes_another_command_of_its_connection() {
    let (a, taken_over) = (connection(1, 1), connection(1, 2));
    let mut waiting = waiting();
    waiting.submit(submission(0, settle(a, 0))).unwrap();
    waiting.submit(submission(1, publish_from(a, 1))).unwrap();
    waiting.submit(submission(2, settle(a, 2))).unwrap();
    waiting.submit(submission(3, settle(taken_over, 3))).unwrap();
    waiting.submit(submission(4, publish_from(connection(9, 1), 4))).unwrap();
    waiting.submit(submission(5, settle(a, 5))).unwrap();
    let cut = waiting.cut(64, 1 << 20);
    assert_eq!(cut.commands.iter().map(ids_of).collect::<Vec<_>>(), [vec![0], vec![1], vec![2, 5], vec![3], vec![4]]);
}

#[test]
fn one_merged_command_stays_bounded() {
    let mut waiting = waiting();
    for id in 0..=SETTLE_ACKS_MAX as u64 {
        waiting.submit(submission(id, settle(connection(1, 1), id))).unwrap();
    }
    let cut = waiting.cut(64, 1 << 20);
    assert_eq!(cut.commands.len(), 2);
    assert_eq!(ids_of(&cut.commands[0]).len(), SETTLE_ACKS_MAX);
}

#[test]
fn what_can_wait_goes_with_what_cannot_or_when_it_has_waited() {
    let patience = Duration::from_millis(5);
    let start = Instant::now();
    let none = Demand::default();
    let patient = |id| Submission { can_wait: true, ..submission(id, settle(connection(1, 1), id)) };
    let mut waiting = waiting();
    assert_eq!(waiting.demand(start, patience), none);
    waiting.submit(patient(0)).unwrap();
    let until = Demand { patient_until: Some(start + patience), ..none };
    assert_eq!(waiting.demand(start, patience), until);
    waiting.submit(patient(1)).unwrap();
    assert_eq!(waiting.demand(start + patience / 2, patience), until, "from the first on");
    assert!(!waiting.presses());
    assert_eq!(waiting.demand(start + patience, patience).commands, 2);
    assert!(waiting.presses(), "a slot that is free is for them, too");

    waiting.submit(submission(2, publish(2))).unwrap();
    assert!(waiting.presses());
    assert_eq!(waiting.demand(start, patience).commands, 3);
    assert_eq!(ids(&waiting.cut(64, 1 << 20)), [0, 1, 2], "in order");
    assert!(!waiting.presses());

    let later = start + patience * 9;
    waiting.submit(patient(3)).unwrap();
    assert_eq!(waiting.demand(later, patience).patient_until, Some(later + patience), "the next waits anew");
    assert_eq!(waiting.demand(later, Duration::ZERO).commands, 1, "no patience");
    (4..67).for_each(|id| waiting.submit(patient(id)).unwrap());
    assert_eq!((waiting.presses(), waiting.demand(later, patience).commands), (true, 64), "enough for a batch");
}
