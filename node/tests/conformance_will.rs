//! Wills: published when a connection ends without a goodbye, as they were left, and never otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod conformance;

use conformance::client::{Connect, Value, field, packet, user};
use conformance::{Test, both, v5};
use quorate_jepsen::wire::property;

fn watcher(t: &Test) -> conformance::client::Client {
    let mut watcher = t.client("watcher");
    watcher.subscribe(&t.topic("will"), 2);
    watcher
}

/// A CONNECT with a will.
fn mortal(t: &Test, qos: u8, retain: bool) -> Connect {
    t.lasting("c").will(&t.topic("will"), qos, retain, "last words")
}

/// [MQTT-3.1.2-7], [MQTT-3.1.2-8], [MQTT-3.1.2-9], [MQTT-3.1.2-8 v3.1.1], [MQTT-3.1.2-9 v3.1.1]; once
/// [MQTT-3.1.2-10], [MQTT-3.1.2-10 v3.1.1].
#[test]
fn a_will_is_published_once_with_its_qos_when_its_connection_breaks() {
    both(|t| {
        let mut watcher = watcher(t);
        for qos in 0..=2 {
            t.accepted(&mortal(t, qos, false)).0.break_off();
            assert_eq!(watcher.receive("last words").qos, qos);
            // Nothing is left of it for the end of the next connection.
            t.resume("c").0.break_off();
            t.resume("c").0.disconnect();
            watcher.expect_nothing();
        }
    });
}

/// [MQTT-3.1.2-8]: a protocol error ends a connection like the loss of the network.
#[test]
fn a_will_is_published_when_the_broker_ends_the_connection() {
    both(|t| {
        let mut watcher = watcher(t);
        let mut client = t.accepted(&mortal(t, 1, false)).0;
        client.send(&[0x00, 0]);
        client.expect_end(0x81);
        watcher.receive("last words");
        let mut silent = t.accepted(&mortal(t, 1, false).keep_alive(1)).0;
        silent.expect_end(0x8d);
        watcher.receive("last words");
    });
}

/// [MQTT-3.14.4-3], [MQTT-3.1.2-10], [MQTT-3.14.4-3 v3.1.1], [MQTT-3.1.2-10 v3.1.1].
#[test]
fn a_disconnect_discards_the_will() {
    both(|t| {
        let mut watcher = watcher(t);
        t.accepted(&mortal(t, 1, false)).0.disconnect();
        watcher.expect_nothing();
        t.resume("c").0.break_off();
        t.resume("c").0.disconnect();
        watcher.expect_nothing();
    });
}

/// [MQTT-3.14.4-3], [MQTT-3.1.2-8].
#[test]
fn a_disconnect_with_will_publishes_it() {
    v5(|t| {
        let mut watcher = watcher(t);
        t.accepted(&mortal(t, 1, false)).0.disconnect_with(&[0x04]);
        watcher.receive("last words");
        watcher.expect_nothing();
    });
}

/// [MQTT-3.1.2-12 v3.1.1].
#[test]
fn without_a_will_none_is_published() {
    both(|t| {
        let mut watcher = watcher(t);
        t.resume("c").0.break_off();
        t.resume("c").0.disconnect();
        watcher.expect_nothing();
    });
}

/// [MQTT-3.1.2-14], [MQTT-3.1.2-15], [MQTT-3.1.2-16 v3.1.1], [MQTT-3.1.2-17 v3.1.1].
#[test]
fn a_will_is_retained_when_it_says_so_and_only_then() {
    both(|t| {
        for retain in [false, true] {
            let mut watcher = watcher(t);
            t.accepted(&mortal(t, 1, retain)).0.break_off();
            watcher.receive("last words");
            watcher.disconnect();
            let mut late = t.client("late");
            late.subscribe(&t.topic("will"), 1);
            if retain {
                assert!(late.receive("last words").retain);
            }
            late.expect_nothing();
        }
    });
}

/// [MQTT-3.1.2-11], [MQTT-3.1.2-12], [MQTT-3.1.2-13], [MQTT-3.1.2-11 v3.1.1], [MQTT-3.1.2-13 v3.1.1],
/// [MQTT-3.1.2-14 v3.1.1], [MQTT-3.1.2-15 v3.1.1]; with the flag, topic and payload are there [MQTT-3.1.2-9],
/// [MQTT-3.1.2-9 v3.1.1].
#[test]
fn the_flags_of_a_will_and_its_fields_agree() {
    both(|t| {
        let properties = if t.is_v5() { &[0][..] } else { &[] };
        let will = [properties, &field(b"w"), &field(b"m")].concat();
        for (flags, payload) in [
            (0x0a, &[][..]),
            (0x12, &[]),
            (0x22, &[]),
            (0x1e, &will),
            (0x02, &will),
            (0x06, &[]),
            (0x06, &will[..will.len() - 3]),
        ] {
            let level = if t.is_v5() { 5 } else { 4 };
            let body = [&field(b"MQTT")[..], &[level, flags, 0, 0], properties, &field(t.id("c").as_bytes()), payload];
            let mut client = t.open();
            client.send(&packet(0x10, &body.concat()));
            if let Some(got) = client.next() {
                assert!(t.is_v5() && got.first == 0x20 && got.reason() == 0x81, "{flags:02x} {payload:02x?}: {got:?}");
                client.expect_silent_close();
            }
        }
    });
}

/// [MQTT-3.1.3-9], [MQTT-3.1.2-8].
#[test]
fn a_client_that_is_back_before_the_delay_keeps_its_will_unpublished() {
    v5(|t| {
        let mut watcher = watcher(t);
        let delayed = mortal(t, 1, false).will_with(property::WILL_DELAY, Value::U32(5));
        t.accepted(&delayed).0.break_off();
        let (back, present) = t.resume("c");
        assert!(present);
        // One that does not come back shows that the delay has passed.
        let mut other = delayed.clone();
        other.id = t.id("other");
        t.accepted(&other).0.break_off();
        watcher.receive("last words");
        watcher.expect_nothing();
        drop(back);
    });
}

/// [MQTT-3.1.3-10]; its other properties come along.
#[test]
fn the_properties_of_a_will_are_forwarded_and_its_user_properties_in_order() {
    v5(|t| {
        let mut watcher = watcher(t);
        let mut connect = mortal(t, 1, false)
            .will_with(0x01, Value::U8(1))
            .will_with(0x03, Value::Text("text/plain".into()))
            .will_with(0x08, Value::Text("answers".into()))
            .will_with(0x09, Value::Bytes(vec![0, 255]));
        let ordered = [user("b", "1"), user("a", "2"), user("b", "1"), user("a", "0")];
        connect.will.as_mut().unwrap().properties.extend(ordered.clone());
        t.accepted(&connect).0.break_off();
        let got = watcher.receive("last words").properties;
        let users: Vec<_> = got.iter().filter(|p| p.id == property::USER).cloned().collect();
        assert_eq!(users, ordered);
        for (id, value) in [
            (0x01, Value::U8(1)),
            (0x03, Value::Text("text/plain".into())),
            (0x08, Value::Text("answers".into())),
            (0x09, Value::Bytes(vec![0, 255])),
        ] {
            assert!(got.iter().any(|p| p.id == id && p.value == value), "{id:#x} of {got:?}");
        }
    });
}
