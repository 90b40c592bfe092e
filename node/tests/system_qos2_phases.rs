//! QoS 2 resumed on another node in each of its phases, inbound and outbound (guarantee 3): once after the connection
//! broke, once after its node was killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use quorate_jepsen::wire::{AckKind, Packet, Version};
use testkit::raw::{Raw, publish};
use testkit::{System, three_nodes};

/// What happens between the first connection and the second.
#[derive(Clone, Copy, PartialEq)]
enum Break {
    Connection,
    Node,
}

/// The last packet of the exchange that the first connection saw or sent: it breaks behind it.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Publish,
    Pubrec,
    Pubrel,
    Pubcomp,
}

const PHASES: [Phase; 4] = [Phase::Publish, Phase::Pubrec, Phase::Pubrel, Phase::Pubcomp];
/// The client begins here and resumes on the next node.
const HOME: usize = 0;
const ELSEWHERE: usize = 1;
/// Where the other side of each exchange is.
const OTHER: usize = 2;

/// Ends the first connection; the client under test comes back on another node.
async fn resume_elsewhere(system: &mut System, client: Raw, how: Break, id: &str) -> Raw {
    if how == Break::Node {
        system.kill(HOME);
    }
    drop(client);
    system.resume(ELSEWHERE, Version::V5, id).await
}

fn mend(system: &mut System, how: Break) {
    if how == Break::Node {
        system.restart(HOME);
        system.wait_whole();
    }
    system.assert_same_digest();
}

async fn inbound(how: Break) {
    let mut system = three_nodes();
    let mut receiver = system.connect(OTHER, Version::V5, "receiver").await;
    receiver.subscribe("in/#", 2).await;
    for phase in PHASES {
        println!("inbound, {phase:?}");
        let id = format!("sender-{phase:?}");
        let topic = format!("in/{phase:?}");
        let message = publish(&topic, 2, 7, false, "the message");
        let mut sender = system.connect(HOME, Version::V5, &id).await;
        sender.publish(&message).await;
        if !matches!(phase, Phase::Publish) {
            sender.expect_ack(AckKind::Pubrec, 7).await;
        }
        if matches!(phase, Phase::Pubrel | Phase::Pubcomp) {
            sender.ack(AckKind::Pubrel, 7).await;
        }
        if matches!(phase, Phase::Pubcomp) {
            sender.expect_ack(AckKind::Pubcomp, 7).await;
        }
        let mut sender = resume_elsewhere(&mut system, sender, how, &id).await;
        match phase {
            Phase::Publish => {
                sender.publish(&publish(&topic, 2, 7, true, "the message")).await;
                sender.expect_ack(AckKind::Pubrec, 7).await;
                sender.ack(AckKind::Pubrel, 7).await;
                sender.expect_ack(AckKind::Pubcomp, 7).await;
            }
            Phase::Pubrec => {
                // A sender that lost the PUBREC sends once more, and is answered; nothing is published.
                sender.publish(&publish(&topic, 2, 7, true, "the message")).await;
                sender.expect_ack(AckKind::Pubrec, 7).await;
                sender.ack(AckKind::Pubrel, 7).await;
                sender.expect_ack(AckKind::Pubcomp, 7).await;
            }
            Phase::Pubrel => {
                sender.ack(AckKind::Pubrel, 7).await;
                // Released before or not: 0x92 is as good an answer.
                match sender.next().await {
                    Packet::Ack(ack) if ack.kind == AckKind::Pubcomp && ack.id == 7 => {}
                    other => panic!("{other:?}"),
                }
            }
            Phase::Pubcomp => {}
        }
        receiver.receive_through("the message", false).await;
        // The identifier is free again: under it goes a new message.
        sender.publish(&publish(&topic, 2, 7, false, "another")).await;
        sender.expect_ack(AckKind::Pubrec, 7).await;
        sender.ack(AckKind::Pubrel, 7).await;
        sender.expect_ack(AckKind::Pubcomp, 7).await;
        receiver.receive_through("another", false).await;
        receiver.expect_nothing().await;
        mend(&mut system, how);
    }
}

async fn outbound(how: Break) {
    let mut system = three_nodes();
    let mut sender = system.connect(OTHER, Version::V5, "sender").await;
    for phase in PHASES {
        println!("outbound, {phase:?}");
        let id = format!("receiver-{phase:?}");
        let topic = format!("out/{phase:?}");
        let mut receiver = system.connect(HOME, Version::V5, &id).await;
        receiver.subscribe(&topic, 2).await;
        sender.publish_through(&topic, 2, "the message").await;
        let first = receiver.expect_message("the message", false).await;
        assert_eq!(first.qos, 2);
        match phase {
            Phase::Publish => {}
            Phase::Pubrec => receiver.ack(AckKind::Pubrec, first.id).await,
            Phase::Pubrel | Phase::Pubcomp => {
                receiver.ack(AckKind::Pubrec, first.id).await;
                receiver.expect_ack(AckKind::Pubrel, first.id).await;
                if matches!(phase, Phase::Pubcomp) {
                    receiver.ack(AckKind::Pubcomp, first.id).await;
                }
            }
        }
        let mut receiver = resume_elsewhere(&mut system, receiver, how, &id).await;
        // A marker behind what is owed: whatever comes before it belongs to the exchange.
        sender.publish_through(&topic, 2, "marker").await;
        let mut owed = Vec::new();
        let marker = loop {
            match receiver.next().await {
                Packet::Publish(p) if p.payload == b"marker" => break p,
                Packet::Publish(p) => {
                    owed.push(format!("PUBLISH dup={} id={}", u8::from(p.dup), p.id));
                    receiver.ack(AckKind::Pubrec, p.id).await;
                }
                Packet::Ack(ack) if ack.kind == AckKind::Pubrel => {
                    owed.push(format!("PUBREL id={}", ack.id));
                    receiver.ack(AckKind::Pubcomp, ack.id).await;
                }
                other => panic!("{other:?}"),
            }
        };
        let again = format!("PUBLISH dup=1 id={}", first.id);
        let release = format!("PUBREL id={}", first.id);
        let expected: &[&[&String]] = match phase {
            // The PUBREL of what is sent again may come before or behind the marker.
            Phase::Publish => &[&[&again], &[&again, &release]],
            // The PUBREC was committed before the connection broke, or was not.
            Phase::Pubrec => &[&[&release], &[&again], &[&again, &release]],
            Phase::Pubrel => &[&[&release]],
            // The PUBCOMP was committed before the connection broke, or was not.
            Phase::Pubcomp => &[&[], &[&release]],
        };
        let is_expected = expected.iter().any(|wanted| wanted.iter().copied().eq(&owed));
        assert!(is_expected, "{phase:?}: {owed:?}, wanted one of {expected:?}");
        assert_eq!((marker.id, marker.dup), (first.id + 1, false), "the row after it has the identifier after it");
        receiver.ack(AckKind::Pubrec, marker.id).await;
        let mut releases = usize::from(!owed.contains(&release) && !owed.is_empty()) + 1;
        while releases > 0 {
            match receiver.next().await {
                Packet::Ack(ack) if ack.kind == AckKind::Pubrel => receiver.ack(AckKind::Pubcomp, ack.id).await,
                other => panic!("{phase:?}: {other:?}"),
            }
            releases -= 1;
        }
        receiver.expect_nothing().await;
        receiver.disconnect().await;
        mend(&mut system, how);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn inbound_qos_2_resumes_on_another_node_in_each_phase_after_its_connection_broke() {
    inbound(Break::Connection).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn inbound_qos_2_resumes_on_another_node_in_each_phase_after_its_node_died() {
    inbound(Break::Node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn outbound_qos_2_resumes_on_another_node_in_each_phase_after_its_connection_broke() {
    outbound(Break::Connection).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn outbound_qos_2_resumes_on_another_node_in_each_phase_after_its_node_died() {
    outbound(Break::Node).await;
}
