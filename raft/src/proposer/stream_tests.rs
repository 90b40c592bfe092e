use bytes::Bytes;
use quorate_store::ids::Position;

use super::*;
use crate::proposer::testkit::{incarnation, ticket};

const RESEND: Duration = Duration::from_millis(1000);

fn limits() -> StreamLimits {
    StreamLimits {
        batches_max: 8,
        bytes_max: 1 << 20,
        batch_commands_max: 64,
        batch_bytes_max: 64 << 10,
        resend_after: RESEND,
    }
}

fn stream(now: Instant) -> ProposalStream {
    ProposalStream::new(NodeId(1), incarnation(5), limits(), now)
}

/// Cuts one batch of one command whose ticket and bytes are its number.
fn cut(stream: &mut ProposalStream, now: Instant) -> u64 {
    let Next::Cut(origin) = stream.next(1000, 1 << 20, now) else { panic!("no slot") };
    let Origin::Stream { seq, .. } = origin else { panic!("not of a stream") };
    let waiters = vec![Waiter { ticket: ticket(seq.0), command: 0 }];
    assert!(stream.number(origin, Bytes::copy_from_slice(&[seq.0 as u8]), 1, waiters));
    seq.0
}

/// Everything that goes down the link now.
fn sent(stream: &mut ProposalStream, now: Instant) -> Vec<(u8, bool)> {
    let mut sent = Vec::new();
    while let Next::Send { bytes, again } = stream.next(0, 0, now) {
        sent.push((bytes[0], again));
    }
    sent
}

fn applied(stream: &mut ProposalStream, seq: u64, now: Instant) -> Vec<u64> {
    let mut told = Vec::new();
    let outcome = Outcome::Published { position: Position::new(seq, 0), matched: true };
    stream.applied(BatchSeq(seq), &[outcome], now, &mut |ticket, _| told.push(ticket.request)).unwrap();
    told
}

#[test]
fn nothing_is_numbered_without_a_link() {
    let now = Instant::now();
    let mut stream = stream(now);
    assert_eq!(stream.next(10, 10, now), Next::Nothing);
    stream.connected(now);
    assert!(matches!(stream.next(10, 10, now), Next::Cut(Origin::Stream { seq: BatchSeq(1), .. })));
    stream.disconnected();
    assert_eq!(stream.next(10, 10, now), Next::Nothing);
}

#[test]
fn numbers_count_from_one_and_slots_are_bounded() {
    let now = Instant::now();
    let mut stream = stream(now);
    stream.connected(now);
    for seq in 1..=8 {
        assert_eq!(cut(&mut stream, now), seq);
        assert_eq!(sent(&mut stream, now), [(seq as u8, false)]);
    }
    assert_eq!(stream.next(1000, 1 << 20, now), Next::Nothing);
    assert_eq!(applied(&mut stream, 1, now), [1]);
    assert_eq!(cut(&mut stream, now), 9);
    assert_eq!(sent(&mut stream, now), [(9, false)]);
}

#[test]
fn batches_grow_with_the_number_in_flight_and_a_lone_command_goes_at_once() {
    let now = Instant::now();
    let mut stream = stream(now);
    stream.connected(now);
    for _ in 0..EAGER_BATCHES {
        assert!(matches!(stream.next(1, 50, now), Next::Cut(_)));
        cut(&mut stream, now);
        sent(&mut stream, now);
    }
    assert_eq!(stream.next(3, 150, now), Next::Nothing, "with 4 in flight, 4 are wanted");
    assert!(matches!(stream.next(4, 200, now), Next::Cut(_)));
    assert!(matches!(stream.next(1, 33 << 10, now), Next::Cut(_)), "or half a batch in bytes");
    applied(&mut stream, 1, now);
    assert!(matches!(stream.next(1, 50, now), Next::Cut(_)), "what waits goes when those before it are applied");
}

#[test]
fn a_new_link_gets_all_that_was_not_seen_applied_in_order_before_anything_new() {
    let now = Instant::now();
    let mut stream = stream(now);
    stream.connected(now);
    for _ in 0..3 {
        cut(&mut stream, now);
        sent(&mut stream, now);
    }
    stream.disconnected();
    assert_eq!(applied(&mut stream, 1, now), [1], "the log goes on telling without a link");
    stream.connected(now);
    assert!(matches!(stream.next(10, 10, now), Next::Send { .. }), "nothing new before the old");
    assert_eq!(sent(&mut stream, now), [(3, true)]);
    assert_eq!(cut(&mut stream, now), 4);
    assert_eq!(sent(&mut stream, now), [(4, false)]);
}

#[test]
fn a_batch_applied_before_it_was_sent_again_is_not_sent_again() {
    let now = Instant::now();
    let mut stream = stream(now);
    stream.connected(now);
    cut(&mut stream, now);
    sent(&mut stream, now);
    cut(&mut stream, now);
    sent(&mut stream, now);
    stream.connected(now);
    assert_eq!(applied(&mut stream, 1, now), [1]);
    assert_eq!(sent(&mut stream, now), [(2, true)]);
    assert_eq!(applied(&mut stream, 2, now), [2]);
    assert_eq!(cut(&mut stream, now), 3);
}

#[test]
fn a_gap_has_everything_sent_again_once() {
    let now = Instant::now();
    let mut stream = stream(now);
    stream.connected(now);
    for _ in 0..4 {
        cut(&mut stream, now);
        sent(&mut stream, now);
    }
    applied(&mut stream, 1, now);
    assert_eq!(stream.gap(BatchSeq(2)), Ok(true));
    assert_eq!(stream.gap(BatchSeq(2)), Ok(false), "before it was even sent");
    assert_eq!(sent(&mut stream, now), [(2, true), (3, true), (4, true)]);
    assert_eq!(stream.gap(BatchSeq(2)), Ok(false), "each refused batch tells of the same gap");
    applied(&mut stream, 2, now);
    assert_eq!(stream.gap(BatchSeq(3)), Ok(true), "another gap");
    stream.connected(now);
    assert_eq!(sent(&mut stream, now), [(3, true), (4, true)]);
    assert_eq!(stream.gap(BatchSeq(3)), Ok(true), "the same gap on another link");
}

#[test]
fn patience_ends_without_progress_and_doubles_each_time() {
    let start = Instant::now();
    let mut stream = stream(start);
    stream.connected(start);
    assert_eq!(stream.deadline(), None);
    cut(&mut stream, start);
    assert_eq!(stream.deadline(), None, "what was not sent cannot be late");
    sent(&mut stream, start + RESEND);
    assert_eq!(stream.deadline(), Some(start + 2 * RESEND));
    assert!(!stream.stalled(start + RESEND));
    let mut now = start + 2 * RESEND;
    for patience in [2, 4, 8, 8] {
        assert!(stream.stalled(now));
        stream.disconnected();
        assert_eq!(stream.deadline(), None);
        stream.connected(now);
        assert_eq!(sent(&mut stream, now), [(1, true)]);
        assert_eq!(stream.deadline(), Some(now + patience * RESEND));
        now += patience * RESEND;
    }
    cut(&mut stream, now);
    sent(&mut stream, now);
    applied(&mut stream, 1, now);
    assert_eq!(stream.deadline(), Some(now + RESEND), "progress restores patience");
}

#[test]
fn what_the_log_cannot_say_breaks_the_stream() {
    let now = Instant::now();
    let mut stream = stream(now);
    stream.connected(now);
    let mut tell = |_: Ticket, _: Outcome| panic!("nothing may be told");
    let foreign = stream.applied(BatchSeq(1), &[Outcome::Done], now, &mut tell);
    assert_eq!(foreign, Err(StreamBroken::OutOfTurn { applied: BatchSeq(1), oldest: None }));
    cut(&mut stream, now);
    cut_is_broken_by_two_outcomes(&mut stream, now);
    sent(&mut stream, now);
    cut(&mut stream, now);
    assert!(matches!(stream.gap(BatchSeq(7)), Err(StreamBroken::ForeignGap { .. })));
}

fn cut_is_broken_by_two_outcomes(stream: &mut ProposalStream, now: Instant) {
    let two = stream.applied(BatchSeq(1), &[Outcome::Done, Outcome::Done], now, &mut |_, _| {});
    assert_eq!(two, Err(StreamBroken::Outcomes { seq: BatchSeq(1), commands: 1, outcomes: 2 }));
}

#[test]
fn a_batch_cut_for_another_stream_is_not_numbered() {
    let now = Instant::now();
    let mut stream = stream(now);
    stream.connected(now);
    let foreign = Origin::Stream { node: NodeId(1), incarnation: incarnation(4), seq: BatchSeq(1) };
    assert!(!stream.number(foreign, Bytes::new(), 1, Vec::new()));
    let later = Origin::Stream { node: NodeId(1), incarnation: incarnation(5), seq: BatchSeq(2) };
    assert!(!stream.number(later, Bytes::new(), 1, Vec::new()));
    assert_eq!(stream.in_flight(), 0);
}
