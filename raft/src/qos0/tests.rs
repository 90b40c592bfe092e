//! What waits for the apply thread, and how long that is kept.

use quorate_store::codec::Payload;
use quorate_store::machine::Machine;
use quorate_store::rows::RowsOptions;
use quorate_store::topic::TopicName;

use super::*;
use crate::execution::Execution;
use crate::identity::ClusterId;
use crate::peer::{AddressBook, LocalPeer, Tcp};
use crate::proposer::testkit::{FakeFront, incarnation};
use crate::snapshots::Snapshots;

fn publish(n: u8) -> Publish {
    Publish {
        from: None,
        packet_id: None,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: TopicName::new("t").unwrap(),
        properties: None,
        expiry_s: None,
        payload: Payload(vec![n; 100].into()),
    }
}

#[test]
fn one_job_ends_after_so_many_deliveries_and_the_rest_keeps_its_place() {
    let mut queue = RouteQueue::default();
    for n in 0..6 {
        queue.publishes.push_back(publish(n));
        queue.bytes += publish_bytes(&publish(n));
    }
    let all = queue.bytes;
    let numbers = |publishes: &VecDeque<Publish>| -> Vec<u8> {
        publishes.iter().filter_map(|p| p.payload.first().copied()).collect()
    };
    let mut taken = queue.take(5);
    let mut routed = Vec::new();
    route_until(&mut taken, DELIVERIES_AT_ONCE, |p| {
        routed.extend(p.payload.first().copied());
        DELIVERIES_AT_ONCE / 2
    });
    assert_eq!(routed, [0, 1]);
    assert!(queue.give_back(taken), "another job goes on");
    assert_eq!(numbers(&queue.publishes), vec![2, 3, 4, 5]);
    assert_eq!(queue.bytes, all / 6 * 4);
    // A single one with very many goes through.
    let mut taken = queue.take(1);
    route_until(&mut taken, DELIVERIES_AT_ONCE, |_| DELIVERIES_AT_ONCE * 100);
    assert!(taken.is_empty());
    let rest = queue.take(usize::MAX);
    assert_eq!((rest.len(), queue.bytes), (3, 0));
    assert!(!queue.give_back(VecDeque::new()));
}

#[tokio::test]
async fn what_peers_send_faster_than_it_is_handed_on_is_dropped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (_, rows) = Snapshots::open(dir.path(), &RowsOptions::default()).unwrap();
    let apply = ApplyHandle::start(Machine::open(rows).unwrap(), AddressBook::default(), Execution::default()).unwrap();
    let _stops = crate::apply::StopsApply(apply.clone());
    // The apply thread is busy until it is told.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    apply.submit(Box::new(move |_| wait.recv().unwrap())).unwrap();
    let local = LocalPeer { cluster: ClusterId(1), node: NodeId(1), boot: 1, address: "".into() };
    let own = incarnation(5);
    let incarnations = watch::Sender::new(Some(own));
    let stats = Arc::new(StreamStats::default());
    let pool = PeerPool::new(local, AddressBook::default(), Tcp::transport(None));
    let front = Arc::new(FakeFront::default());
    let router = Qos0Router::new(apply.clone(), pool, front.clone(), incarnations.subscribe(), 64 << 10, stats.clone());
    let message: SharedMessage =
        message_of(Publish { payload: Payload(vec![7; 1000].into()), ..publish(0) }, ClusterTime(0));
    let position = Position::new(1, 0);
    let to = quorate_store::command::SessionRef {
        session: quorate_store::ids::SessionId(position),
        epoch: quorate_store::ids::Epoch(position),
    };
    let targets = vec![Target { to, retain: false, identifiers: Vec::new() }];
    let body = codec::encode(&Qos0Frame { owner: own, message, targets }).unwrap();
    let frame = || Frame { kind: FRAME_PUBLISH, group: quorate_store::ids::GroupId::MAIN, body: body.clone() };
    for _ in 0..1000 {
        router.receive(NodeId(2), vec![frame()]).unwrap();
    }
    let (received, dropped) = (stats.qos0_received.get(), stats.qos0_dropped_here.get());
    assert_eq!(received + dropped, 1000);
    assert!((50..70).contains(&received), "{received} of about 1.1 KB fit into 64 KiB");
    go.send(()).unwrap();
    apply.with_machine(|_| ()).await.unwrap();
    assert_eq!(front.seen().len() as u64, received, "what was taken is handed on");
    router.receive(NodeId(2), vec![frame()]).unwrap();
    assert_eq!(stats.qos0_received.get(), received + 1, "there is room again");
}
