//! What the rules say is what happens, and who the client is can be proved once more.

use quorate_store::access::{Access, AclAction, AclRule, Permission, User, Who};

use super::*;
use crate::mqtt::auth::scram;
use crate::mqtt::listen::AuthMethod;
use crate::mqtt::options::DenyAction;
use crate::mqtt::packet::{Auth, AuthData, Secret};

fn rule(number: u32, permission: Permission, filters: &[&str]) -> AclRule {
    let filters = filters.iter().map(|f| (*f).to_owned()).collect();
    let (who, action) = (Who::All, AclAction::All);
    AclRule { number, permission, who, action, filters, qos_max: QoS::ExactlyOnce, retain: None }
}

fn denies(filters: &[&str]) -> Access {
    Access { rules: [rule(1, Permission::Deny, filters)].into_iter().collect(), ..Access::default() }
}

fn publish(topic: &str, qos: QoS, packet_id: u16) -> Packet {
    Packet::Publish(Publish {
        dup: false,
        qos,
        retain: false,
        id: (qos != QoS::AtMostOnce).then(|| id(packet_id)),
        topic: (!topic.is_empty()).then(|| TopicName::new(topic).unwrap()),
        alias: None,
        expiry_s: None,
        properties: None,
        payload: Payload(Bytes::from_static(b"x")),
    })
}

fn open(version: Version, access: Access) -> Rig {
    let mut rig = Rig::open(version);
    rig.out.access = Arc::new(access);
    rig
}

#[test]
fn a_refused_publish_is_answered_in_turn_and_reaches_nothing() {
    let mut rig = open(Version::V5, denies(&["secret/#"]));
    rig.packet(publish("open", QoS::AtLeastOnce, 1));
    rig.packet(publish("secret/a", QoS::AtLeastOnce, 2));
    rig.packet(publish("secret/a", QoS::ExactlyOnce, 3));
    rig.packet(publish("secret/a", QoS::AtMostOnce, 0));
    rig.packet(publish("$delayed/10/secret/a", QoS::AtLeastOnce, 4));
    assert_eq!(rig.take_commands().len(), 1, "only the one that is allowed is proposed");
    assert!(rig.said().is_empty() && rig.out.qos0.is_empty(), "the first answer is still owed");
    rig.outcome(1, Outcome::Published { position: Position::new(9, 0), matched: true });
    assert_eq!(rig.said(), [("puback", 1, 0), ("puback", 2, 0x87), ("pubrec", 3, 0x87), ("puback", 4, 0x87)]);
    assert_eq!(rig.out.counts.denied_publishes, 4);
    assert!(!rig.session.is_over());
    // A refused identifier is free again.
    rig.packet(publish("open", QoS::ExactlyOnce, 3));
    assert!(matches!(&rig.take_commands()[..], [Command::Publish(p)] if p.packet_id == Some(id(3))));
}

/// [MQTT-3.3.5-2 v3.1.1]
#[test]
fn an_older_client_is_disconnected_or_answered_as_usual() {
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut rig = open(Version::V311, denies(&["secret"]));
        rig.packet(publish("secret", qos, 1));
        assert!(rig.session.is_over());
        assert!(matches!(rig.take_commands()[..], [Command::Close(_)]));
    }
    let ignore = MqttOptions { acl_deny_action: DenyAction::Ignore, ..MqttOptions::default() };
    let mut rig = Rig::connecting(Version::V311, hello(Version::V311), ignore);
    rig.outcome(0, Outcome::Connected(found()));
    rig.said();
    rig.take_commands();
    rig.out.access = Arc::new(denies(&["secret"]));
    rig.packet(publish("secret", QoS::AtMostOnce, 0));
    rig.packet(publish("secret", QoS::AtLeastOnce, 1));
    rig.packet(publish("secret", QoS::ExactlyOnce, 2));
    assert_eq!(rig.said(), [("puback", 1, 0), ("pubrec", 2, 0)]);
    assert!(rig.take_commands().is_empty() && rig.out.qos0.is_empty());
    assert_eq!(rig.out.counts.denied_publishes, 3);
}

#[test]
fn what_the_log_has_recorded_is_asked_for_although_the_rules_changed() {
    let recorded = Connected { inbound_qos2: vec![id(7)], ..found() };
    let mut rig = Rig::open_with(Version::V5, recorded);
    rig.out.access = Arc::new(denies(&["t"]));
    rig.packet(publish("t", QoS::ExactlyOnce, 7));
    assert!(matches!(rig.take_commands()[..], [Command::Publish(_)]), "its PUBREC must not say that it is refused");
    rig.outcome(1, Outcome::AlreadyRecorded);
    assert_eq!(rig.said(), [("pubrec", 7, 0)]);
    // Once it is released it stands for new messages.
    rig.packet(Packet::PubRel { id: id(7) });
    assert!(matches!(rig.take_commands()[..], [Command::Release { .. }]));
    rig.packet(publish("t", QoS::ExactlyOnce, 7));
    assert!(rig.take_commands().iter().all(|command| !matches!(command, Command::Publish(_))));
}

#[test]
fn an_identifier_in_use_opens_no_way_around_the_rules() {
    let mut rig = open(Version::V5, denies(&["secret"]));
    rig.packet(publish("open", QoS::ExactlyOnce, 1));
    rig.packet(Packet::PubRel { id: id(1) });
    rig.take_commands();
    rig.packet(publish("secret", QoS::ExactlyOnce, 1));
    assert_eq!(rig.said(), [("disconnect", 0, 0x87)]);
    assert!(matches!(rig.take_commands()[..], [Command::Close(_)]));
}

#[test]
fn an_alias_of_a_refused_publish_is_set_and_judged_again() {
    let mut rig = open(Version::V5, denies(&["secret"]));
    let with_alias = |topic: &str, n| match publish(topic, QoS::AtLeastOnce, n) {
        Packet::Publish(publish) => Packet::Publish(Publish { alias: Some(1), ..publish }),
        other => other,
    };
    rig.packet(with_alias("secret", 1));
    rig.packet(with_alias("", 2));
    assert_eq!(rig.said(), [("puback", 1, 0x87), ("puback", 2, 0x87)]);
    rig.out.access = Arc::default();
    rig.packet(with_alias("", 3));
    assert!(matches!(&rig.take_commands()[..], [Command::Publish(p)] if p.topic.as_str() == "secret"));
}

#[test]
fn filters_are_judged_one_by_one_and_granted_at_the_qos_of_the_rule() {
    let mut limited = rule(2, Permission::Allow, &["slow/#"]);
    limited.qos_max = QoS::AtMostOnce;
    let mut access = denies(&["secret/#"]);
    access.rules.insert(limited);
    for (version, refused) in [(Version::V5, 0x87), (Version::V311, 0x87)] {
        let mut rig = open(version, access.clone());
        let options =
            SubscribeOptions { qos: QoS::AtLeastOnce, no_local: false, retain_as_published: false, retain_handling: 0 };
        let filters = ["a", "secret/x", "#", "slow/x"].map(|f| Ok((TopicFilter::new(f).unwrap(), options)));
        rig.packet(Packet::Subscribe(Subscribe { id: id(1), identifier: None, filters: filters.to_vec() }));
        let [Command::Subscribe(command)] = &rig.take_commands()[..] else { panic!() };
        let asked: Vec<_> = command.filters.iter().map(|(f, o)| (f.as_str().to_owned(), o.qos)).collect();
        assert_eq!(asked, [("a".to_owned(), QoS::AtLeastOnce), ("slow/x".to_owned(), QoS::AtMostOnce)]);
        rig.outcome(1, Outcome::Subscribed(vec![Ok(granted(QoS::AtLeastOnce)), Ok(granted(QoS::AtMostOnce))]));
        let [Outgoing::SubAck(_, reasons)] = &rig.take_packets()[..] else { panic!() };
        assert_eq!(reasons.iter().map(|r| r.0).collect::<Vec<_>>(), [1, refused, refused, 0]);
        assert_eq!(rig.out.counts.denied_subscriptions, 2);
    }
}

fn will(topic: &str) -> Will {
    Will {
        delay_s: 0,
        topic: TopicName::new(topic).unwrap(),
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: None,
        expiry_s: None,
        payload: Payload(Bytes::new()),
    }
}

fn connect_with(access: &Access, connect: Connect, admission: Admission) -> Rig {
    let mut out = Output { room: 1 << 20, access: Arc::new(access.clone()), ..Output::default() };
    let options = Arc::new(MqttOptions::default());
    let session = Session::connect(options, Version::V5, connect, admission, || "fresh".into(), NOW, &mut out);
    Rig { session, out }
}

#[test]
fn a_will_is_judged_when_its_client_connects() {
    let admitted = || Admission::Granted(Identity::default());
    let hello_with = |topic| Connect { will: Some(will(topic)), ..hello(Version::V5) };
    let mut rig = connect_with(&denies(&["secret"]), hello_with("secret"), admitted());
    assert_eq!(rig.said(), [("connack", 0, 0x87)]);
    assert!(rig.take_commands().is_empty());
    let mut rig = connect_with(&denies(&["secret"]), hello_with("open"), admitted());
    assert!(matches!(&rig.take_commands()[..], [Command::Connect(c)] if c.will.is_some()));
}

#[test]
fn a_client_is_known_no_longer_than_what_it_showed() {
    let until = std::time::Duration::from_secs(5);
    let identity = Identity { expires_in: Some(until), ..Identity::default() };
    let mut rig = connect_with(&Access::default(), hello(Version::V5), Admission::Granted(identity));
    rig.outcome(0, Outcome::Connected(found()));
    rig.said();
    assert_eq!(rig.session.deadline_ms(), Some(NOW.mono_ms + 5_000), "before the keep alive");
    let at = |ms| Now { mono_ms: NOW.mono_ms + ms, ..NOW };
    rig.drive(|session, out| session.tick(at(4_999), out));
    assert!(!rig.session.is_over());
    // Also while it is busy.
    rig.drive(|session, out| session.packet(Packet::PingReq, at(4_999), out));
    rig.drive(|session, out| session.tick(at(5_000), out));
    assert_eq!(rig.said(), [("pingresp", 0, 0), ("disconnect", 0, 0x87)]);
}

// ---- re-authentication ----

const SALT: &[u8] = b"salt";

/// Whose password is `pencil`, with one iteration.
fn user(name: &str) -> User {
    let keys = scram_client::keys(b"pencil", SALT, 1);
    let scram = Some(quorate_store::access::ScramVerifier {
        salt: SALT.to_vec(),
        iterations: 1,
        stored_key: keys.stored_key,
        server_key: keys.server_key,
    });
    User { name: name.into(), password_hash: None, scram, is_superuser: false }
}

/// A client's side of the exchange, as far as these tests need it.
mod scram_client {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use hmac::{Hmac, KeyInit as _, Mac as _};
    use sha2::{Digest as _, Sha256};

    pub(super) struct Keys {
        client_key: [u8; 32],
        pub(super) stored_key: [u8; 32],
        pub(super) server_key: [u8; 32],
    }

    fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(message);
        mac.finalize().into_bytes().into()
    }

    /// PBKDF2 with one block, by hand.
    pub(super) fn keys(password: &[u8], salt: &[u8], iterations: u32) -> Keys {
        let mut u = hmac(password, &[salt, &[0, 0, 0, 1]].concat());
        let mut salted = u;
        for _ in 1..iterations {
            u = hmac(password, &u);
            salted.iter_mut().zip(u).for_each(|(a, b)| *a ^= b);
        }
        let client_key = hmac(&salted, b"Client Key");
        Keys { client_key, stored_key: Sha256::digest(client_key).into(), server_key: hmac(&salted, b"Server Key") }
    }

    pub(super) fn last(first_bare: &str, server_first: &str, password: &[u8]) -> String {
        let keys = keys(password, super::SALT, 1);
        let nonce = server_first.split(',').next().unwrap();
        let without_proof = format!("c=biws,{nonce}");
        let signature = hmac(&keys.stored_key, format!("{first_bare},{server_first},{without_proof}").as_bytes());
        let mut proof = keys.client_key;
        proof.iter_mut().zip(signature).for_each(|(a, b)| *a ^= b);
        format!("{without_proof},p={}", BASE64.encode(proof))
    }
}

fn auth(reason: u8, method: &str, data: &str) -> Packet {
    let data = Some(Secret(Bytes::copy_from_slice(data.as_bytes())));
    Packet::Auth(Auth { reason: Reason(reason), auth: Some(Box::new(AuthData { method: method.into(), data })) })
}

fn scram_rig() -> Rig {
    let ann = user("ann");
    let access = Access {
        users: [("ann".to_owned(), ann.clone()), ("bob".to_owned(), user("bob"))].into_iter().collect(),
        ..Access::default()
    };
    let identity = Identity {
        user: Some("ann".into()),
        method: AuthMethod::Scram,
        stamp: Some(crate::mqtt::auth::stamp(&ann, AuthMethod::Scram)),
        expires_in: None,
        scram: Some(Box::new(crate::mqtt::auth::Exchanged { server_final: "v=x".into(), seed: [3; 32] })),
    };
    let mut rig = connect_with(&access, hello(Version::V5), Admission::Granted(identity));
    rig.take_commands();
    rig.outcome(0, Outcome::Connected(found()));
    rig
}

/// Begins a re-authentication; what the server asks.
fn begin(rig: &mut Rig, user: &str) -> Vec<Outgoing> {
    rig.packet(auth(0x19, scram::METHOD, &format!("n,,n={user},r=nonce")));
    rig.take_packets()
}

/// [MQTT-4.12.0-5] [MQTT-4.12.1-1]
#[test]
fn a_client_proves_once_more_who_it_is_while_everything_goes_on() {
    let mut rig = scram_rig();
    let [Outgoing::ConnAck(ack)] = &rig.take_packets()[..] else { panic!() };
    let told = ack.granted.as_ref().unwrap().auth.as_ref().unwrap();
    assert_eq!((told.method.as_str(), &told.data.as_ref().unwrap().0[..]), (scram::METHOD, &b"v=x"[..]));
    let mut nonces = Vec::new();
    for _ in 0..2 {
        let asked = begin(&mut rig, "ann");
        let [Outgoing::Auth(Reason::CONTINUE_AUTHENTICATION, asked)] = &asked[..] else { panic!("{asked:?}") };
        let server_first = String::from_utf8(asked.data.as_ref().unwrap().0.to_vec()).unwrap();
        rig.packet(publish("t", QoS::AtLeastOnce, 1));
        assert!(matches!(rig.take_commands()[..], [Command::Publish(_)]));
        let last = scram_client::last("n=ann,r=nonce", &server_first, b"pencil");
        rig.packet(auth(0x18, scram::METHOD, &last));
        let done = rig.take_packets();
        let [Outgoing::Auth(Reason::SUCCESS, done)] = &done[..] else { panic!("{done:?}") };
        assert!(done.data.as_ref().unwrap().0.starts_with(b"v="));
        nonces.push(server_first);
    }
    assert_ne!(nonces[0], nonces[1], "each exchange has its own nonce");
}

/// [MQTT-4.12.1-2]
#[test]
fn who_cannot_prove_it_once_more_is_disconnected() {
    let mut rig = scram_rig();
    rig.take_packets();
    let asked = begin(&mut rig, "ann");
    let [Outgoing::Auth(_, asked)] = &asked[..] else { panic!("{asked:?}") };
    let server_first = String::from_utf8(asked.data.as_ref().unwrap().0.to_vec()).unwrap();
    rig.packet(auth(0x18, scram::METHOD, &scram_client::last("n=ann,r=nonce", &server_first, b"pencils")));
    assert_eq!(rig.said(), [("disconnect", 0, 0x87)]);
    // Nor does it become somebody else.
    let mut rig = scram_rig();
    rig.take_packets();
    begin(&mut rig, "bob");
    assert!(rig.session.is_over());
}

/// [MQTT-4.12.0-6] [MQTT-4.12.1-1]
#[test]
fn an_auth_out_of_turn_is_a_protocol_error() {
    for (packets, what) in [
        (vec![auth(0x18, scram::METHOD, "x")], "nothing was asked"),
        (vec![auth(0x00, scram::METHOD, "x")], "only servers say so"),
        (vec![auth(0x19, "SCRAM-SHA-1", "n,,n=ann,r=x")], "another method"),
        (vec![auth(0x19, scram::METHOD, "n,,n=ann,r=x"), auth(0x19, scram::METHOD, "n,,n=ann,r=x")], "begun twice"),
        (vec![Packet::Auth(Auth { reason: Reason(0x19), auth: None })], "no method"),
    ] {
        let mut rig = scram_rig();
        rig.take_packets();
        for packet in packets {
            rig.packet(packet);
        }
        assert_eq!(rig.said().last(), Some(&("disconnect", 0, 0x82)), "{what}");
    }
    let mut rig = Rig::open(Version::V5);
    rig.packet(auth(0x19, scram::METHOD, "n,,n=ann,r=x"));
    assert_eq!(rig.said(), [("disconnect", 0, 0x82)], "CONNECT had no method");
}

#[test]
fn a_client_whose_user_changes_is_disconnected() {
    let mut rig = scram_rig();
    rig.take_packets();
    rig.drive(|session, out| session.check_identity(out));
    assert!(!rig.session.is_over());
    let mut access = (*rig.out.access).clone();
    access.users.insert("ann".into(), User { is_superuser: true, ..user("ann") });
    rig.out.access = Arc::new(access.clone());
    rig.drive(|session, out| session.check_identity(out));
    assert!(!rig.session.is_over(), "its password is the same");
    let mut changed = user("ann");
    changed.scram.as_mut().unwrap().stored_key[0] ^= 1;
    access.users.insert("ann".into(), changed);
    rig.out.access = Arc::new(access);
    rig.drive(|session, out| session.check_identity(out));
    assert_eq!(rig.said(), [("disconnect", 0, 0x87)]);
}
