//! What clients do in a run: each seed has some features and not others (swarm testing: Groce and others, "Swarm
//! Testing", 2012), because a load with a little of everything seldom has much of anything.

use quorate_store::ids::QoS;

use crate::world::{below, note, one_in};

/// One client's ways. Turns come about seven times a second.
#[derive(Clone, Debug)]
pub(crate) struct Habits {
    /// It sends and gets everything on `t/#`: what it was promised is also counted without any history.
    pub(crate) is_core: bool,
    /// Session Expiry Interval; 0: Clean Start each time.
    pub(crate) expiry_s: u32,
    /// So many of a hundred CONNECTs throw the session away.
    pub(crate) clean_percent: u64,
    pub(crate) receive_maximum: u16,
    /// Subscribed from the beginning on.
    pub(crate) filter: Option<(String, QoS)>,
    /// It subscribes and unsubscribes instead.
    pub(crate) churns: bool,
    /// Where it publishes, and at which QoS.
    pub(crate) topics: Vec<String>,
    pub(crate) qos: Vec<QoS>,
    pub(crate) retains: bool,
    /// It also empties the retained messages.
    pub(crate) empties: bool,
    /// So many of a hundred of its messages expire after 1 to 3 seconds.
    pub(crate) expiring_percent: u64,
    /// Messages that it has on their way.
    pub(crate) window: usize,
    /// Retained messages that it reads.
    pub(crate) reads: Vec<String>,
    /// Topic of its wills, and their QoS.
    pub(crate) will: Option<(String, QoS)>,
    /// In so many of a hundred turns answers to deliveries wait for the next turn.
    pub(crate) hold_percent: u64,
    /// How often in a thousand turns it breaks its connection, says goodbye, or connects elsewhere while it has one.
    pub(crate) breaks_permille: u64,
    pub(crate) goodbyes_permille: u64,
    pub(crate) takeovers_permille: u64,
    /// How long it stays away after that, in milliseconds.
    pub(crate) away_ms: (u64, u64),
    /// When the load is over it goes, and does not come back.
    pub(crate) leaves: bool,
}

const BOTH: [QoS; 2] = [QoS::AtLeastOnce, QoS::ExactlyOnce];
const ALL: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

impl Habits {
    fn plain() -> Self {
        Self {
            is_core: false,
            expiry_s: 86_400,
            clean_percent: 0,
            receive_maximum: 10,
            filter: None,
            churns: false,
            topics: Vec::new(),
            qos: BOTH.to_vec(),
            retains: false,
            empties: false,
            expiring_percent: 0,
            window: 8,
            reads: Vec::new(),
            will: None,
            hold_percent: 0,
            breaks_permille: 0,
            goodbyes_permille: 0,
            takeovers_permille: 0,
            away_ms: (0, 300),
            leaves: false,
        }
    }

    fn subscriber(filter: &str, qos: QoS) -> Self {
        Self { filter: Some((filter.to_owned(), qos)), ..Self::plain() }
    }

    fn publisher(topics: &[&str]) -> Self {
        Self { topics: topics.iter().map(|topic| (*topic).to_owned()).collect(), window: 4, ..Self::plain() }
    }
}

/// What a seed may have beside publishers of, and subscribers to, everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feature {
    /// Wills with and without delay.
    Wills,
    /// Retained messages as registers, read on any node.
    Retained,
    /// Retained messages that are emptied again.
    Emptied,
    /// A shared group.
    Shared,
    /// Subscriptions that come and go.
    Churn,
    /// Sessions that are taken over while their connection stands.
    Takeover,
    /// Sessions that end with their connection, or are thrown away.
    Transient,
    /// Sessions that expire while their client is away.
    Expiring,
    /// Messages that expire, before they are sent or between sending and completion.
    MessageExpiry,
    /// A backlog for somebody who stays away.
    Offline,
    /// QoS 0 among the rest.
    QosZero,
    /// Connections break often, and answers are late.
    Breaks,
}

const FEATURES: [Feature; 12] = [
    Feature::Wills,
    Feature::Retained,
    Feature::Emptied,
    Feature::Shared,
    Feature::Churn,
    Feature::Takeover,
    Feature::Transient,
    Feature::Expiring,
    Feature::MessageExpiry,
    Feature::Offline,
    Feature::QosZero,
    Feature::Breaks,
];

/// The clients of a run, by chance.
pub(crate) fn some() -> Vec<Habits> {
    let features: Vec<Feature> = FEATURES.into_iter().filter(|_| one_in(3)).collect();
    note!("the load has {features:?}");
    let has = |feature| features.contains(&feature);
    let mut all = Vec::new();
    for _ in 0..2 + below(3) {
        let core = Habits::publisher(&["t/0", "t/1", "t/2"]);
        let filter = Some(("t/#".to_owned(), QoS::ExactlyOnce));
        all.push(Habits { is_core: true, filter, window: 8, ..core });
    }
    for feature in &features {
        add(*feature, &mut all);
    }
    if has(Feature::QosZero) {
        // Past the log a message may meet a subscription that has just ended: guarantee 6 is of QoS 1 and 2.
        let meets_churn = |habits: &Habits| habits.topics.iter().any(|topic| topic.starts_with("u/"));
        let others = all.iter_mut().filter(|habits| !habits.retains && !meets_churn(habits));
        others.for_each(|habits| habits.qos = ALL.to_vec());
    }
    if has(Feature::Breaks) {
        for habits in &mut all {
            habits.hold_percent = habits.hold_percent.max(below(50));
            habits.breaks_permille = habits.breaks_permille.max(5 + below(60));
            habits.receive_maximum = 2 + below(15) as u16;
        }
    }
    all
}

fn qos() -> QoS {
    if one_in(2) { QoS::ExactlyOnce } else { QoS::AtLeastOnce }
}

fn add(feature: Feature, all: &mut Vec<Habits>) {
    match feature {
        Feature::Wills => {
            all.push(Habits::subscriber("w/#", QoS::ExactlyOnce));
            for _ in 0..2 {
                let will = Some(("w/0".to_owned(), qos()));
                let away_ms = (0, 3_000);
                all.push(Habits {
                    will,
                    away_ms,
                    leaves: true,
                    breaks_permille: 80,
                    goodbyes_permille: 60,
                    ..Habits::plain()
                });
            }
        }
        Feature::Retained => {
            for _ in 0..2 {
                all.push(Habits { retains: true, window: 1, ..Habits::publisher(&["r/0", "r/1"]) });
            }
            all.extend((0..2).map(|_| reader(&["r/0", "r/1"])));
            // By it the places of all of them in the log are known.
            all.push(Habits::subscriber("r/#", QoS::AtLeastOnce));
        }
        Feature::Emptied => {
            // One writer for each: then what it wrote last is what must be there.
            let qos = vec![QoS::AtLeastOnce];
            all.push(Habits { retains: true, empties: true, window: 1, qos, ..Habits::publisher(&["e/0"]) });
            all.push(reader(&["e/0"]));
        }
        Feature::Shared => {
            for _ in 0..2 + below(2) {
                let member = Habits::subscriber("$share/g/s/#", qos());
                all.push(Habits { hold_percent: 20, breaks_permille: below(25), away_ms: (0, 2_000), ..member });
            }
            all.extend([Habits::publisher(&["s/0"]), Habits::publisher(&["s/1"])]);
        }
        Feature::Churn => {
            for _ in 0..2 {
                all.push(Habits { churns: true, breaks_permille: 10, ..Habits::subscriber("u/+", qos()) });
            }
            all.push(Habits::publisher(&["u/0", "u/1"]));
        }
        Feature::Takeover => {
            for topic in ["k/0", "k/1"] {
                let filter = Some(("k/#".to_owned(), qos()));
                let moving = Habits::publisher(&[topic]);
                all.push(Habits { filter, takeovers_permille: 20 + below(60), hold_percent: 20, ..moving });
            }
        }
        Feature::Transient => {
            let filter = Some(("x/#".to_owned(), qos()));
            let fleeting = Habits { filter, breaks_permille: 10, goodbyes_permille: 10, ..Habits::publisher(&["x/0"]) };
            all.push(Habits { expiry_s: 0, ..fleeting.clone() });
            all.push(Habits { clean_percent: 30, ..fleeting });
            all.push(Habits::subscriber("x/#", QoS::ExactlyOnce));
        }
        Feature::Expiring => {
            let expiry_s = 1 + below(6) as u32;
            let filter = Some(("y/#".to_owned(), qos()));
            let away_ms = (0, 12_000);
            let publisher = Habits::publisher(&["y/0"]);
            all.push(Habits { expiry_s, filter, away_ms, breaks_permille: 20, goodbyes_permille: 10, ..publisher });
            all.push(Habits::publisher(&["y/1"]));
        }
        Feature::MessageExpiry => {
            // What may have been sent goes on when it has expired, or its receiver waits for PUBREL for ever.
            let subscriber = Habits::subscriber("m/#", QoS::ExactlyOnce);
            let away_ms = (0, 4_000);
            all.push(Habits { hold_percent: 60, breaks_permille: 60, away_ms, receive_maximum: 5, ..subscriber });
            for topic in ["m/0", "m/1"] {
                all.push(Habits { expiring_percent: 70, ..Habits::publisher(&[topic]) });
            }
        }
        Feature::Offline => {
            let away_ms = (5_000, 15_000);
            let filter = Some(("t/#".to_owned(), QoS::ExactlyOnce));
            all.push(Habits { is_core: true, filter, away_ms, breaks_permille: 40, ..Habits::plain() });
        }
        Feature::QosZero | Feature::Breaks => {}
    }
}

fn reader(topics: &[&str]) -> Habits {
    let reads = topics.iter().map(|topic| (*topic).to_owned()).collect();
    // What an earlier read left in a session must not look like the answer to a later one.
    Habits { reads, expiry_s: 0, goodbyes_permille: 30, ..Habits::plain() }
}
