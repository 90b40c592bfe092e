use super::*;
use crate::check::testkit::History;

fn fault(h: &History) -> Option<(u32, Fault)> {
    match Index::build(h.events.iter().cloned().map(Ok)) {
        Ok(_) => None,
        Err(ReadError::Invalid { line, fault }) => Some((line.0, fault)),
        Err(other) => panic!("{other}"),
    }
}

fn connected() -> History {
    let mut h = History::new();
    h.connect(1, 1);
    h
}

#[test]
fn operations_are_joined_with_their_ends_and_connections() {
    let mut h = connected();
    h.subscribe(1, 1, "a", 1);
    let op = h.publish_open(1, 1, 0, "a", 1);
    h.deliver(1, 1, (1, 0), "a", 1, 1).lost(1, 1).resume(1, 2);
    h.push(Some(1), What::Again { op, connection: Connection(2) }).puback(1, op);
    let index = Index::build(h.events.iter().cloned().map(Ok)).unwrap();
    assert_eq!((index.clients.len(), index.conns.len(), index.arrivals[0].message), (1, 2, Some(0)));
    let publish = &index.publishes[0];
    assert_eq!(publish.sendings.iter().map(|(line, conn)| (line.0, *conn)).collect::<Vec<_>>(), [(5, 0), (10, 1)]);
    assert_eq!((publish.span.ended, publish.span.outcome), (Line(11), Outcome::Ok));
    assert!(index.conns[1].present && index.conns[0].closed.is_some());
    assert_eq!(index.conns[0].alive_after, Line(3));
}

#[test]
fn what_no_harness_may_write_down_is_named_with_its_line() {
    let client = Client(1);
    let mut h = connected();
    h.ok(1, OpId(0), Answer::Connected { present: false });
    assert_eq!(fault(&h), Some((3, Fault::EndsTwice(OpId(0)))));
    let mut h = connected();
    h.info(1, OpId(9));
    assert_eq!(fault(&h), Some((3, Fault::Unknown(OpId(9)))));
    let mut h = connected();
    let op = h.publish_open(1, 1, 0, "a", 1);
    h.connack(1, op, false);
    assert_eq!(fault(&h), Some((4, Fault::WrongAnswer(op))));
    let mut h = connected();
    let op = h.publish_open(1, 1, 0, "a", 1);
    h.puback(2, op);
    assert_eq!(fault(&h), Some((4, Fault::Another(op))));
    let mut h = connected();
    h.deliver(1, 2, (1, 0), "a", 1, 1);
    assert_eq!(fault(&h), Some((3, Fault::NeverOpened(client, Connection(2)))));
    let mut h = connected();
    h.lost(1, 1).deliver(1, 1, (1, 0), "a", 1, 1);
    assert_eq!(fault(&h), Some((4, Fault::AfterEnd(client, Connection(1)))));
    let mut h = History::new();
    h.connect_open(1, 1, false, 60);
    h.deliver(1, 1, (1, 0), "a", 1, 1);
    assert_eq!(fault(&h), Some((2, Fault::BeforeConnack(client, Connection(1)))));
    let mut h = connected();
    h.connect(1, 1);
    assert_eq!(fault(&h), Some((3, Fault::ConnectsTwice(client, Connection(1)))));
    let mut h = connected();
    h.publish(1, 1, 0, "a", 1).publish(1, 1, 0, "a", 1);
    assert_eq!(fault(&h), Some((5, Fault::NameTakenTwice(History::name((1, 0))))));
    let mut h = connected();
    h.events[1].at_ns = 0;
    assert_eq!(fault(&h), Some((2, Fault::TimeGoesBack)));
}

#[test]
fn one_name_under_one_key_is_one_message() {
    let mut h = connected();
    h.connect(2, 1).publish_keyed(1, 1, 0, "a", "k", 7);
    let mut again = h.events[4].clone();
    again.client = Some(Client(2));
    if let What::Invoke { op, .. } = &mut again.what {
        *op = OpId(77);
    }
    again.at_ns = u64::MAX;
    h.events.push(again);
    let index = Index::build(h.events.iter().cloned().map(Ok)).unwrap();
    assert_eq!((index.messages.len(), index.publishes.len()), (1, 2));
}
