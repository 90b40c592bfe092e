//! What may happen, in small numbers that the driver reads against the state of the moment; so whatever
//! proptest cuts out of a history, the rest still makes sense.

use proptest::prelude::*;
use quorate_store::command::ShareStrategy;

use super::driver::SHARED;

use super::access::{AccessOp, access_op};

const CLIENTS: u8 = 5;

/// One thing that happens in a cluster.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// A node starts anew.
    Start(u8),
    /// A `NodeStarted` of a node arrives again, the last or an earlier one.
    StartAgain { node: u8, back: u8 },
    /// A `NodeStarted` that names a life which is not the node's latest.
    StartUnaware { node: u8, nonce: u8 },
    /// A leader says that a node is lost.
    Lose { node: u8, right_term: bool, former: bool },
    /// Another leader.
    NewTerm,
    /// A node is removed, and another joins.
    Replace(u8),
    /// A batch of a node's stream.
    Batch { node: u8, cmds: Vec<Cmd>, time: Time },
    /// So many messages at once that a queue is longer than what is held of it in memory.
    Flood { node: u8, messages: u16 },
    /// A batch of the stream that was applied already.
    Replay { node: u8, back: u8 },
    /// A batch with others missing before it.
    Gap { node: u8, ahead: u8 },
    /// A batch of an incarnation that is closed.
    Ghost { pick: u8, cmds: Vec<Cmd> },
    /// Time passes.
    Tick(Time),
    /// A setting.
    ExpiryMax(u32),
    /// How many idempotency keys are remembered, and how long.
    KeyWindow { keys: u64, seconds: u32 },
    /// Longest delay.
    DelayMax(u32),
    /// Another setting.
    SubscriptionsMax(u32),
    /// The bound of a queue, and what happens there. Only in histories that are about it.
    Bound { bytes: u64, drop_oldest: bool },
    /// Users or rules change.
    Access(AccessOp),
    /// How members of a shared group are chosen.
    ShareStrategy { filter: u8, strategy: ShareStrategy },
    /// An operator ends a session.
    EndSession(u8),
    /// The process starts anew.
    Reopen,
}

/// How the stamp of an entry compares with the one before.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Time {
    Later(u64),
    /// A new leader's clock is behind.
    Behind(u64),
}

/// One command of a client, or of what pretends to be one.
#[derive(Clone, Debug)]
pub(crate) enum Cmd {
    Connect {
        client: u8,
        clean: bool,
        expiry_s: u32,
        receive_maximum: u16,
        will: Option<WillOp>,
        late: bool,
    },
    Close {
        who: Who,
        drop_will: bool,
        end: bool,
        sent: u8,
    },
    Publish {
        who: Who,
        admin: bool,
        qos: u8,
        retain: bool,
        empty: bool,
        topic: u8,
        id: u8,
        expiry_s: Option<u32>,
        /// Idempotency keys: those of the bits that are set.
        keys: u8,
        delay_s: Option<u32>,
    },
    Release {
        who: Who,
        id: u8,
    },
    Settle {
        who: Who,
        picks: Vec<(u8, bool)>,
    },
    Subscribe {
        who: Who,
        filter: u8,
        qos: u8,
        identifier: Option<u32>,
        flags: u8,
    },
    Unsubscribe {
        who: Who,
        filters: Vec<u8>,
    },
}

/// A connection: one of those on the node, or one that is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    pub(crate) pick: u8,
    pub(crate) stale: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct WillOp {
    pub(crate) delay_s: u32,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) expiry_s: Option<u32>,
}

fn time() -> impl Strategy<Value = Time> {
    prop_oneof![
        6 => Just(Time::Later(0)),
        3 => (1..1500_u64).prop_map(Time::Later),
        2 => (1..6_u64).prop_map(|s| Time::Later(s * 1000)),
        1 => Just(Time::Later(100_000)),
        1 => (1..5000_u64).prop_map(Time::Behind),
    ]
}

fn who() -> impl Strategy<Value = Who> {
    (any::<u8>(), prop::bool::weighted(0.08)).prop_map(|(pick, stale)| Who { pick, stale })
}

fn will() -> impl Strategy<Value = WillOp> {
    let delay_s = prop_oneof![Just(0), Just(1), Just(3), Just(100)];
    let expiry_s = prop_oneof![4 => Just(None), 1 => Just(Some(2))];
    (delay_s, 0..3_u8, any::<bool>(), expiry_s).prop_map(|(delay_s, qos, retain, expiry_s)| WillOp {
        delay_s,
        qos,
        retain,
        expiry_s,
    })
}

fn connect() -> impl Strategy<Value = Cmd> {
    let expiry_s = prop_oneof![2 => Just(0), 1 => Just(1), 2 => Just(5), 5 => Just(200), 2 => Just(u32::MAX)];
    let receive_maximum = prop_oneof![Just(1), Just(2), Just(3), Just(10), Just(150), Just(65_535)];
    let clean = prop::bool::weighted(0.15);
    let late = prop::bool::weighted(0.05);
    (0..CLIENTS, clean, expiry_s, receive_maximum, prop::option::of(will()), late).prop_map(
        |(client, clean, expiry_s, receive_maximum, will, late)| Cmd::Connect {
            client,
            clean,
            expiry_s,
            receive_maximum,
            will,
            late,
        },
    )
}

fn publish() -> impl Strategy<Value = Cmd> {
    let expiry_s = prop_oneof![5 => Just(None), 1 => Just(Some(1)), 1 => Just(Some(5))];
    let flag = |p| prop::bool::weighted(p);
    let keys = prop_oneof![6 => Just(0), 1 => Just(1), 1 => Just(2), 1 => 0..16_u8];
    let delay_s = prop_oneof![8 => Just(None), 1 => (0..5_u32).prop_map(Some), 1 => Just(Some(100))];
    (who(), flag(0.1), granted(), flag(0.3), flag(0.1), any::<u8>(), 1..4_u8, expiry_s, keys, delay_s).prop_map(
        |(who, admin, qos, retain, empty, topic, id, expiry_s, keys, delay_s)| Cmd::Publish {
            who,
            admin,
            qos,
            retain,
            empty,
            topic,
            id,
            expiry_s,
            keys,
            delay_s,
        },
    )
}

/// Often a wide one: what nobody subscribes to goes nowhere.
fn filter() -> impl Strategy<Value = u8> {
    prop_oneof![2 => any::<u8>(), 1 => Just(4), 2 => Just(5), 2 => SHARED, 1 => SHARED.end..SHARED.end + 2]
}

/// QoS 0 leaves no rows.
fn granted() -> impl Strategy<Value = u8> {
    prop_oneof![1 => Just(0), 2 => Just(1), 3 => Just(2)]
}

fn cmd() -> impl Strategy<Value = Cmd> {
    let flag = prop::bool::weighted;
    let identifier = prop_oneof![2 => Just(None), 1 => (1..4_u32).prop_map(Some)];
    prop_oneof![
        5 => connect(),
        2 => (who(), any::<bool>(), flag(0.1), any::<u8>())
            .prop_map(|(who, drop_will, end, sent)| Cmd::Close { who, drop_will, end, sent }),
        12 => publish(),
        2 => (who(), 1..4_u8).prop_map(|(who, id)| Cmd::Release { who, id }),
        12 => (who(), prop::collection::vec((any::<u8>(), flag(0.15)), 1..5))
            .prop_map(|(who, picks)| Cmd::Settle { who, picks }),
        5 => (who(), filter(), granted(), identifier, any::<u8>()).prop_map(
            |(who, filter, qos, identifier, flags)| Cmd::Subscribe { who, filter, qos, identifier, flags }
        ),
        1 => (who(), prop::collection::vec(any::<u8>(), 1..3))
            .prop_map(|(who, filters)| Cmd::Unsubscribe { who, filters }),
    ]
}

fn cmds() -> impl Strategy<Value = Vec<Cmd>> {
    prop::collection::vec(cmd(), 1..6)
}

fn strategy() -> impl Strategy<Value = ShareStrategy> {
    use ShareStrategy::{Local, MostRoom, RoundRobin, StickyTopic};
    prop::sample::select(vec![MostRoom, RoundRobin, StickyTopic, Local])
}

fn op() -> impl Strategy<Value = Op> {
    let flag = prop::bool::weighted;
    prop_oneof![
        1 => any::<u8>().prop_map(Op::Start),
        1 => (any::<u8>(), 0..3_u8).prop_map(|(node, back)| Op::StartAgain { node, back }),
        1 => (any::<u8>(), 1..9_u8).prop_map(|(node, nonce)| Op::StartUnaware { node, nonce }),
        2 => (any::<u8>(), flag(0.7), flag(0.2))
            .prop_map(|(node, right_term, former)| Op::Lose { node, right_term, former }),
        1 => Just(Op::NewTerm),
        1 => any::<u8>().prop_map(Op::Replace),
        60 => (any::<u8>(), cmds(), time()).prop_map(|(node, cmds, time)| Op::Batch { node, cmds, time }),
        2 => (any::<u8>(), 0..4_u8).prop_map(|(node, back)| Op::Replay { node, back }),
        1 => (any::<u8>(), 1..4_u8).prop_map(|(node, ahead)| Op::Gap { node, ahead }),
        1 => (any::<u8>(), cmds()).prop_map(|(pick, cmds)| Op::Ghost { pick, cmds }),
        5 => time().prop_map(Op::Tick),
        1 => prop_oneof![Just(3), Just(3600), Just(u32::MAX)].prop_map(Op::ExpiryMax),
        1 => prop_oneof![Just(2), Just(65_536)].prop_map(Op::SubscriptionsMax),
        1 => (prop_oneof![Just(150), Just(300), Just(700), Just(1 << 30)], any::<bool>())
            .prop_map(|(bytes, drop_oldest)| Op::Bound { bytes, drop_oldest }),
        1 => (prop_oneof![Just(0), Just(1), Just(2), Just(1_000_000)], prop_oneof![Just(0), Just(2), Just(100)])
            .prop_map(|(keys, seconds)| Op::KeyWindow { keys, seconds }),
        1 => prop_oneof![Just(2), Just(1000)].prop_map(Op::DelayMax),
        1 => access_op().prop_map(Op::Access),
        1 => (any::<u8>(), strategy()).prop_map(|(filter, strategy)| Op::ShareStrategy { filter, strategy }),
        1 => (0..CLIENTS).prop_map(Op::EndSession),
        2 => Just(Op::Reopen),
    ]
}

/// A history of at most `most` steps.
pub(crate) fn ops(most: usize) -> impl Strategy<Value = Vec<Op>> {
    (prop::collection::vec(settled_client(), 0..4), prop::collection::vec(op(), 1..most)).prop_map(|(clients, ops)| {
        let mut history: Vec<Op> = clients.into_iter().flatten().collect();
        history.extend(ops);
        history
    })
}

/// A history of long queues and wide windows.
pub(crate) fn ops_over_long_queues() -> impl Strategy<Value = Vec<Op>> {
    let flood = (any::<u8>(), 50..400_u16).prop_map(|(node, messages)| Op::Flood { node, messages });
    let acks = prop::collection::vec((any::<u8>(), prop::bool::weighted(0.15)), 50..200);
    let settle = (any::<u8>(), who(), acks).prop_map(|(node, who, picks)| Op::Batch {
        node,
        cmds: vec![Cmd::Settle { who, picks }],
        time: Time::Later(0),
    });
    (ops(5), prop::collection::vec(prop_oneof![2 => flood, 4 => settle, 5 => op()], 5..30)).prop_map(
        |(mut history, rest)| {
            history.extend(rest);
            history
        },
    )
}

/// A history of long queues that are full.
pub(crate) fn ops_over_long_full_queues() -> impl Strategy<Value = Vec<Op>> {
    let bound = (prop_oneof![Just(700), 10_000..40_000_u64], any::<bool>())
        .prop_map(|(bytes, drop_oldest)| Op::Bound { bytes, drop_oldest });
    let bounds = prop::collection::vec((any::<prop::sample::Index>(), bound), 1..4);
    (prop::collection::vec(settled_client(), 1..3), ops_over_long_queues(), bounds).prop_map(
        |(clients, rest, bounds)| {
            let mut history: Vec<Op> = clients.into_iter().flatten().chain(rest).collect();
            for (at, bound) in bounds {
                history.insert(at.index(history.len()), bound);
            }
            history
        },
    )
}

/// A client that connects and subscribes to begin with.
fn settled_client() -> impl Strategy<Value = Vec<Op>> {
    (any::<u8>(), connect(), filter(), granted()).prop_map(|(node, connect, filter, qos)| {
        let who = Who { pick: 0, stale: false };
        let subscribe = Cmd::Subscribe { who, filter, qos, identifier: None, flags: 2 };
        let batch = |cmd| Op::Batch { node, cmds: vec![cmd], time: Time::Later(0) };
        vec![batch(connect), batch(subscribe)]
    })
}
