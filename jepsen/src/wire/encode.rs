//! Appends what a client sends to a buffer.

use super::property::{self, Property, Value};
use super::{Ack, AckKind, Publish, Version};

/// A will.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Will {
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// QoS.
    pub qos: u8,
    /// RETAIN.
    pub retain: bool,
    /// Will Delay Interval in seconds (5.0).
    pub delay_s: u32,
}

/// CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// Client identifier.
    pub client_id: String,
    /// Clean Start, Clean Session.
    pub clean: bool,
    /// Keep Alive in seconds.
    pub keep_alive_s: u16,
    /// Session Expiry Interval in seconds (5.0).
    pub expiry_s: u32,
    /// Receive Maximum (5.0); 65,535 is not sent.
    pub receive_maximum: u16,
    /// Will.
    pub will: Option<Will>,
}

/// User name and password of a CONNECT.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub user: String,
    /// Password; 3.1.1 and 5.0 know logins without one.
    pub password: Option<String>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password goes nowhere but to the broker.
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

fn prefixed(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend(length.to_be_bytes());
    out.extend(bytes.iter().take(usize::from(length)));
}

fn var(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        out.push(if value > 0 { byte | 0x80 } else { byte });
        if value == 0 {
            return;
        }
    }
}

fn packet(out: &mut Vec<u8>, first: u8, body: &[u8]) {
    out.push(first);
    var(out, body.len());
    out.extend(body);
}

fn properties(out: &mut Vec<u8>, version: Version, list: &[Property]) {
    if version == Version::V4 {
        return;
    }
    let mut bytes = Vec::new();
    for Property { id, value } in list {
        bytes.push(*id);
        match value {
            Value::U8(v) => bytes.push(*v),
            Value::U16(v) => bytes.extend(v.to_be_bytes()),
            Value::U32(v) => bytes.extend(v.to_be_bytes()),
            Value::Var(v) => var(&mut bytes, *v as usize),
            Value::Text(v) => prefixed(&mut bytes, v.as_bytes()),
            Value::Bytes(v) => prefixed(&mut bytes, v),
            Value::Pair(a, b) => {
                prefixed(&mut bytes, a.as_bytes());
                prefixed(&mut bytes, b.as_bytes());
            }
        }
    }
    var(out, bytes.len());
    out.extend(bytes);
}

/// CONNECT.
pub fn connect(out: &mut Vec<u8>, version: Version, connect: &Connect) {
    connect_with(out, version, connect, &[]);
}

/// CONNECT with properties beside those that [`Connect`] has a field for.
pub fn connect_with(out: &mut Vec<u8>, version: Version, connect: &Connect, more: &[Property]) {
    connect_whole(out, version, connect, more, None);
}

/// CONNECT with user name and password.
pub fn connect_as(out: &mut Vec<u8>, version: Version, connect: &Connect, login: Option<&Login>) {
    connect_whole(out, version, connect, &[], login);
}

fn connect_whole(out: &mut Vec<u8>, version: Version, connect: &Connect, more: &[Property], login: Option<&Login>) {
    let mut body = Vec::new();
    prefixed(&mut body, b"MQTT");
    body.push(if version == Version::V4 { 4 } else { 5 });
    let will_flags = connect.will.as_ref().map_or(0, |w| 0x04 | ((w.qos & 3) << 3) | if w.retain { 0x20 } else { 0 });
    let login_flags = login.map_or(0, |login| 0x80 | if login.password.is_some() { 0x40 } else { 0 });
    body.push(login_flags | will_flags | if connect.clean { 0x02 } else { 0 });
    body.extend(connect.keep_alive_s.to_be_bytes());
    let mut list = Vec::new();
    if connect.expiry_s > 0 {
        list.push(Property { id: property::SESSION_EXPIRY, value: Value::U32(connect.expiry_s) });
    }
    if connect.receive_maximum != u16::MAX {
        list.push(Property { id: property::RECEIVE_MAXIMUM, value: Value::U16(connect.receive_maximum) });
    }
    list.extend_from_slice(more);
    properties(&mut body, version, &list);
    prefixed(&mut body, connect.client_id.as_bytes());
    if let Some(will) = &connect.will {
        let delay = Property { id: property::WILL_DELAY, value: Value::U32(will.delay_s) };
        properties(&mut body, version, if will.delay_s > 0 { std::slice::from_ref(&delay) } else { &[] });
        prefixed(&mut body, will.topic.as_bytes());
        prefixed(&mut body, &will.payload);
    }
    if let Some(Login { user, password }) = login {
        prefixed(&mut body, user.as_bytes());
        if let Some(password) = password {
            prefixed(&mut body, password.as_bytes());
        }
    }
    packet(out, 0x10, &body);
}

/// PUBLISH.
pub fn publish(out: &mut Vec<u8>, version: Version, publish: &Publish) {
    let mut body = Vec::with_capacity(publish.payload.len() + publish.topic.len() + 8);
    prefixed(&mut body, publish.topic.as_bytes());
    if publish.qos > 0 {
        body.extend(publish.id.to_be_bytes());
    }
    properties(&mut body, version, &publish.properties);
    body.extend(&publish.payload);
    let flags = if publish.dup { 8 } else { 0 } | ((publish.qos & 3) << 1) | u8::from(publish.retain);
    packet(out, 0x30 | flags, &body);
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP. A reason code other than 0 makes it the longer form of 5.0.
pub fn ack(out: &mut Vec<u8>, ack: Ack) {
    let first = ((ack.kind as u8) << 4) | if ack.kind == AckKind::Pubrel { 2 } else { 0 };
    let [high, low] = ack.id.to_be_bytes();
    match ack.code {
        0 => out.extend([first, 2, high, low]),
        code => out.extend([first, 3, high, low, code]),
    }
}

/// SUBSCRIBE: filters with their options byte (QoS in its lowest bits).
pub fn subscribe(out: &mut Vec<u8>, version: Version, id: u16, filters: &[(&str, u8)]) {
    let mut body = id.to_be_bytes().to_vec();
    properties(&mut body, version, &[]);
    for (filter, options) in filters {
        prefixed(&mut body, filter.as_bytes());
        body.push(*options);
    }
    packet(out, 0x82, &body);
}

/// UNSUBSCRIBE.
pub fn unsubscribe(out: &mut Vec<u8>, version: Version, id: u16, filters: &[&str]) {
    let mut body = id.to_be_bytes().to_vec();
    properties(&mut body, version, &[]);
    for filter in filters {
        prefixed(&mut body, filter.as_bytes());
    }
    packet(out, 0xa2, &body);
}

/// PINGREQ.
pub fn ping(out: &mut Vec<u8>) {
    out.extend([0xc0, 0]);
}

/// DISCONNECT with its reason code and, on 5.0, a new Session Expiry Interval.
pub fn disconnect(out: &mut Vec<u8>, version: Version, code: u8, expiry_s: Option<u32>) {
    match (version, code, expiry_s) {
        (Version::V4, ..) | (Version::V5, 0, None) => out.extend([0xe0, 0]),
        (Version::V5, code, None) => out.extend([0xe0, 1, code]),
        (Version::V5, code, Some(expiry_s)) => {
            let mut body = vec![code];
            let list = [Property { id: property::SESSION_EXPIRY, value: Value::U32(expiry_s) }];
            properties(&mut body, version, &list);
            packet(out, 0xe0, &body);
        }
    }
}
