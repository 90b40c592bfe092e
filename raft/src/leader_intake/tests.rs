//! Over real loopback connections: what a leader takes, refuses and answers.

use quorate_store::command::{NodeInfo, NodeStarted};
use quorate_store::ids::{BatchSeq, ClusterTime};
use tokio::time::timeout;

use super::*;
use crate::identity::ClusterId;
use crate::peer::{AddressBook, LocalPeer, PeerListener, PeerPool, Tcp};
use crate::proposer::encode_direct;
use crate::proposer::testkit::{FakeRaft, Mood, incarnation, publish};

const SOON: Duration = Duration::from_secs(20);

fn local(node: u64) -> LocalPeer {
    LocalPeer { cluster: ClusterId(1), node: NodeId(node), boot: node, address: "".into() }
}

fn batch(node: u64, seq: u64) -> Bytes {
    let origin = Origin::Stream { node: NodeId(node), incarnation: incarnation(1), seq: BatchSeq(seq) };
    codec::encode(&Batch { origin, commands: vec![publish(seq)] }).unwrap()
}

fn desk(raft: &FakeRaft) -> Arc<LeaderDesk<FakeRaft>> {
    let attendance = Arc::new(Attendance::new(Duration::from_secs(3)));
    let clock = Arc::new(ClusterClock::new(Duration::MAX));
    Arc::new(LeaderDesk::new(raft.clone(), clock, attendance, Duration::from_secs(2), Arc::default()))
}

/// Node 1 serves; node 2 has a pool that knows where.
async fn serve(raft: &FakeRaft) -> (PeerPool, Arc<LeaderDesk<FakeRaft>>, tokio::task::JoinHandle<()>) {
    let desk = desk(raft);
    let listener = PeerListener::bind("127.0.0.1:0", &*Tcp::transport(None)).await.unwrap();
    let addresses = AddressBook::default();
    addresses.set_nodes([(NodeId(1), listener.local_addr().unwrap().to_string())].into());
    let service: Arc<dyn PeerService> = Arc::new(LeaderIntake::new(desk.clone()));
    let serving = tokio::spawn(listener.run(local(1), AddressBook::default(), vec![service]));
    (PeerPool::new(local(2), addresses, Tcp::transport(None)), desk, serving)
}

async fn send(conn: &mut PeerConn, batch: Bytes) {
    conn.send(kind::BATCH, batch).await.unwrap();
    conn.flush().await.unwrap();
}

async fn refusal(conn: &mut PeerConn) -> Refused {
    let frame = timeout(SOON, conn.recv()).await.unwrap().unwrap().unwrap();
    assert_eq!(frame.kind, kind::REFUSED);
    let refused = codec::decode(&frame.body).unwrap();
    assert_eq!(timeout(SOON, conn.recv()).await.unwrap().unwrap(), None, "the refusal is the last frame");
    refused
}

async fn appended(raft: &FakeRaft, count: usize) -> Vec<Bytes> {
    timeout(SOON, raft.log().wait_for(|log| log.len() >= count)).await.unwrap().unwrap().clone()
}

#[tokio::test]
async fn a_leader_appends_what_comes_in_order_and_says_nothing() {
    let cluster = FakeRaft::cluster(&[1, 2]);
    FakeRaft::elect(&cluster, 1, 1);
    let (pool, ..) = serve(&cluster[0]).await;
    let mut conn = pool.dial(NodeId(1), Purpose::Proposals).await.unwrap();
    let batches: Vec<Bytes> = (1..=50).map(|seq| batch(2, seq)).collect();
    for batch in &batches {
        conn.send(kind::BATCH, batch.clone()).await.unwrap();
    }
    conn.flush().await.unwrap();
    assert_eq!(appended(&cluster[0], 50).await, batches);
}

#[tokio::test]
async fn who_does_not_lead_says_who_does_and_appends_nothing_behind_it() {
    let cluster = FakeRaft::cluster(&[1, 2, 3]);
    FakeRaft::elect(&cluster, 3, 1);
    let (pool, ..) = serve(&cluster[0]).await;
    let mut conn = pool.dial(NodeId(1), Purpose::Proposals).await.unwrap();
    send(&mut conn, batch(2, 1)).await;
    send(&mut conn, batch(2, 2)).await;
    assert_eq!(refusal(&mut conn).await, Refused::NotLeader { leader: Some(NodeId(3)) });
    FakeRaft::elect(&cluster, 1, 2);
    assert!(cluster[0].log().borrow().is_empty());
}

#[tokio::test]
async fn a_connection_ends_when_the_lead_is_lost_or_a_batch_was_dropped() {
    let cluster = FakeRaft::cluster(&[1, 2]);
    FakeRaft::elect(&cluster, 1, 1);
    let (pool, ..) = serve(&cluster[0]).await;
    let mut conn = pool.dial(NodeId(1), Purpose::Proposals).await.unwrap();
    send(&mut conn, batch(2, 1)).await;
    appended(&cluster[0], 1).await;
    cluster[0].tell_refusal();
    assert_eq!(refusal(&mut conn).await, Refused::Busy, "it leads on: come again");
    let mut conn = pool.dial(NodeId(1), Purpose::Proposals).await.unwrap();
    send(&mut conn, batch(2, 1)).await;
    appended(&cluster[0], 2).await;
    FakeRaft::elect(&cluster, 2, 2);
    assert_eq!(refusal(&mut conn).await, Refused::NotLeader { leader: Some(NodeId(2)) });
}

#[tokio::test]
async fn a_leader_whose_disk_is_behind_reads_no_more_and_goes_on_when_it_is_not() {
    let cluster = FakeRaft::cluster(&[1, 2]);
    FakeRaft::elect(&cluster, 1, 1);
    let mut refused = cluster[0].refused();
    cluster[0].set_mood(Mood::Refuses(AppendRefused::Overloaded { unflushed_bytes: 1 << 30 }));
    let (pool, ..) = serve(&cluster[0]).await;
    let mut conn = pool.dial(NodeId(1), Purpose::Proposals).await.unwrap();
    let batches: Vec<Bytes> = (1..=3).map(|seq| batch(2, seq)).collect();
    for batch in &batches {
        send(&mut conn, batch.clone()).await;
    }
    // Longer than a direct command would wait.
    timeout(SOON, refused.wait_for(|n| *n > 100)).await.unwrap().unwrap();
    assert!(cluster[0].log().borrow().is_empty());
    cluster[0].set_mood(Mood::Takes);
    assert_eq!(appended(&cluster[0], 3).await, batches);
    // While it waits, the lead may go.
    cluster[0].set_mood(Mood::Refuses(AppendRefused::Paused));
    send(&mut conn, batch(2, 4)).await;
    let before = *refused.borrow_and_update();
    timeout(SOON, refused.wait_for(|n| *n > before)).await.unwrap().unwrap();
    cluster[0].tell_refusal();
    assert_eq!(refusal(&mut conn).await, Refused::Busy);
    assert_eq!(cluster[0].log().borrow().len(), 3);
}

#[tokio::test]
async fn what_would_stop_every_node_is_never_appended() {
    let cluster = FakeRaft::cluster(&[1, 2]);
    FakeRaft::elect(&cluster, 1, 1);
    let (pool, ..) = serve(&cluster[0]).await;
    let direct = encode_direct(1, Command::Tick).unwrap();
    for bad in [Bytes::from_static(b"no batch at all"), batch(3, 1), batch(2, 1).slice(..20), direct] {
        let mut conn = pool.dial(NodeId(1), Purpose::Proposals).await.unwrap();
        send(&mut conn, bad).await;
        assert_eq!(refusal(&mut conn).await, Refused::Malformed);
    }
    let mut conn = pool.dial(NodeId(1), Purpose::Proposals).await.unwrap();
    conn.send(99, Bytes::new()).await.unwrap();
    conn.flush().await.unwrap();
    assert_eq!(refusal(&mut conn).await, Refused::Malformed);
    assert!(cluster[0].log().borrow().is_empty());
}

#[tokio::test]
async fn questions_are_answered_by_the_leader_wherever_they_are_asked() {
    let cluster = FakeRaft::cluster(&[1, 2]);
    FakeRaft::elect(&cluster, 1, 1);
    let (pool, leader_desk, _serving) = serve(&cluster[0]).await;
    let (there, courier) = Asks::new(desk(&cluster[1]), pool.clone());
    let (here, _) = Asks::new(leader_desk, pool);
    tokio::spawn(courier);
    let info = NodeInfo::default();
    let start = Command::NodeStarted(NodeStarted { node: NodeId(2), nonce: 5, replaces: None, wall_ms: 6, info });
    let direct = encode_direct(5, start).unwrap();
    for (asks, appended) in [(&here, 1), (&there, 2)] {
        let clock = ClockReport { time: ClusterTime(1), is_live: false, wall_ms: 2 };
        let pong = asks.ask(Ask::Ping { incarnation: None, clock }, SOON).await.unwrap();
        assert!(matches!(pong, Reply::Pong { quorum_age_ms: Some(_), .. }));
        let ask = Ask::Direct(quorate_store::codec::Payload(direct.clone()));
        assert_eq!(asks.ask(ask, SOON).await, Ok(Reply::Enqueued));
        assert_eq!(cluster[0].log().borrow().len(), appended);
        assert_eq!(asks.ask(Ask::ReadIndex, SOON).await, Ok(Reply::ReadIndex(appended as u64)));
        let stream = Ask::Direct(quorate_store::codec::Payload(batch(2, 1)));
        assert_eq!(asks.ask(stream, SOON).await, Err(AskError::Malformed { asked: NodeId(1) }));
        let publish = Ask::Direct(quorate_store::codec::Payload(encode_direct(5, publish(1)).unwrap()));
        assert_eq!(asks.ask(publish, SOON).await, Err(AskError::Malformed { asked: NodeId(1) }));
    }
    cluster[0].set_acked(None);
    assert_eq!(there.ask(Ask::ReadIndex, SOON).await, Ok(Reply::NoQuorum));
}

#[tokio::test]
async fn who_asks_is_told_when_nobody_or_another_leads_or_the_leader_is_gone() {
    let cluster = FakeRaft::cluster(&[1, 2]);
    let (pool, _, serving) = serve(&cluster[0]).await;
    let (asks, courier) = Asks::new(desk(&cluster[1]), pool);
    tokio::spawn(courier);
    assert_eq!(asks.ask(Ask::ReadIndex, SOON).await, Err(AskError::NoLeader));
    // Only node 2 believes that node 1 leads.
    FakeRaft::elect(&cluster[1..], 1, 1);
    assert_eq!(asks.ask(Ask::ReadIndex, SOON).await, Err(AskError::NotLeader { asked: NodeId(1), leader: None }));
    serving.abort();
    assert!(serving.await.is_err());
    let gone = timeout(SOON, async {
        // The first may still find the old connection.
        while !matches!(asks.ask(Ask::ReadIndex, SOON).await, Err(AskError::Unreachable { .. })) {}
    });
    gone.await.unwrap();
}

#[tokio::test]
async fn a_ping_is_answered_with_the_age_of_the_majority_and_one_of_a_removed_node_with_none() {
    let cluster = FakeRaft::cluster(&[1, 2, 3]);
    FakeRaft::elect(&cluster, 1, 1);
    let desk = desk(&cluster[0]);
    let clock = ClockReport { time: ClusterTime(1), is_live: false, wall_ms: 2 };
    let ping = async |node| match desk.answer(NodeId(node), Ask::Ping { incarnation: None, clock }).await {
        Reply::Pong { quorum_age_ms, .. } => quorum_age_ms,
        other => panic!("{other:?}"),
    };
    cluster[0].set_acked(Instant::now().checked_sub(Duration::from_millis(700)));
    assert!(ping(2).await.is_some_and(|age| (700..2000).contains(&age)), "not as if it were new");
    cluster[0].remove(NodeId(3));
    assert_eq!(ping(3).await, None);
    assert!(ping(2).await.is_some());
    cluster[0].set_acked(Instant::now().checked_sub(Duration::from_secs(2)));
    assert_eq!(ping(2).await, None, "beyond quorum_grace");
}

/// Takes questions; answers none on the first connection, and tells how many connections there were.
struct Mute {
    served: watch::Sender<u64>,
    leader: Arc<LeaderIntake<FakeRaft>>,
}

impl PeerService for Mute {
    fn purpose(&self) -> Purpose {
        Purpose::Proposals
    }

    fn serve(self: Arc<Self>, from: NodeId, mut conn: PeerConn) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            self.served.send_modify(|n| *n += 1);
            if *self.served.borrow() > 1 {
                return self.leader.clone().serve(from, conn).await;
            }
            while let Ok(Some(_)) = conn.recv().await {}
        })
    }
}

#[tokio::test]
async fn a_connection_on_which_no_answer_comes_is_dialed_anew() {
    let cluster = FakeRaft::cluster(&[1, 2]);
    FakeRaft::elect(&cluster, 1, 1);
    let served = watch::Sender::new(0);
    let leader = Arc::new(LeaderIntake::new(desk(&cluster[0])));
    let mute: Arc<dyn PeerService> = Arc::new(Mute { served: served.clone(), leader });
    let listener = PeerListener::bind("127.0.0.1:0", &*Tcp::transport(None)).await.unwrap();
    let addresses = AddressBook::default();
    addresses.set_nodes([(NodeId(1), listener.local_addr().unwrap().to_string())].into());
    tokio::spawn(listener.run(local(1), AddressBook::default(), vec![mute]));
    let (asks, courier) = Asks::new(desk(&cluster[1]), PeerPool::new(local(2), addresses, Tcp::transport(None)));
    tokio::spawn(courier);
    let clock = ClockReport { time: ClusterTime(1), is_live: false, wall_ms: 2 };
    // As a node pings: the first ones are never answered.
    let answered = timeout(SOON, async {
        let ping = || Ask::Ping { incarnation: None, clock };
        while asks.ask(ping(), Duration::from_millis(500)).await.is_err() {}
    });
    answered.await.unwrap();
    assert_eq!(*served.borrow(), 2);
}
