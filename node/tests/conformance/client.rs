//! A client on a blocking socket whose every byte the test decides. It reads with `quorate_jepsen::wire`, which shares
//! nothing with the broker.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub(crate) use quorate_jepsen::wire::property::{Property, Value};
pub(crate) use quorate_jepsen::wire::{AckKind, Publish, Version};
use quorate_jepsen::wire::{Frame, encode, frame, property, publish_of};

/// How long an answer may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A variable byte integer.
pub(crate) fn variable(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let more = if n > 127 { 0x80 } else { 0 };
        bytes.push((n & 127) as u8 | more);
        n >>= 7;
        if more == 0 {
            return bytes;
        }
    }
}

/// A packet of a first byte and a body.
pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    [&[first][..], &variable(body.len()), body].concat()
}

/// A field with its length.
pub(crate) fn field(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// A property section with its length.
pub(crate) fn section(properties: &[Property]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Property { id, value } in properties {
        bytes.push(*id);
        match value {
            Value::U8(v) => bytes.push(*v),
            Value::U16(v) => bytes.extend(v.to_be_bytes()),
            Value::U32(v) => bytes.extend(v.to_be_bytes()),
            Value::Var(v) => bytes.extend(variable(*v as usize)),
            Value::Text(v) => bytes.extend(field(v.as_bytes())),
            Value::Bytes(v) => bytes.extend(field(v)),
            Value::Pair(a, b) => bytes.extend([field(a.as_bytes()), field(b.as_bytes())].concat()),
        }
    }
    [variable(bytes.len()), bytes].concat()
}

/// A property.
pub(crate) fn prop(id: u8, value: Value) -> Property {
    Property { id, value }
}

/// A User Property.
pub(crate) fn user(key: &str, value: &str) -> Property {
    prop(property::USER, Value::Pair(key.to_owned(), value.to_owned()))
}

/// A will.
#[derive(Clone, Debug, Default)]
pub(crate) struct Will {
    pub(crate) topic: String,
    pub(crate) payload: String,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) properties: Vec<Property>,
}

/// A CONNECT.
#[derive(Clone, Debug)]
pub(crate) struct Connect {
    pub(crate) version: Version,
    pub(crate) id: String,
    pub(crate) clean: bool,
    pub(crate) keep_alive_s: u16,
    pub(crate) properties: Vec<Property>,
    pub(crate) will: Option<Will>,
    pub(crate) user_name: Option<Vec<u8>>,
    pub(crate) password: Option<Vec<u8>>,
    /// Bits of the Connect Flags that are turned over.
    pub(crate) odd_flags: u8,
}

impl Connect {
    /// With a session of an hour when it is not clean.
    pub(crate) fn new(version: Version, id: &str, clean: bool) -> Self {
        let lasting = prop(property::SESSION_EXPIRY, Value::U32(3600));
        Self {
            version,
            id: id.to_owned(),
            clean,
            keep_alive_s: 0,
            properties: if version == Version::V5 && !clean { vec![lasting] } else { Vec::new() },
            will: None,
            user_name: None,
            password: None,
            odd_flags: 0,
        }
    }

    pub(crate) fn with(mut self, id: u8, value: Value) -> Self {
        self.properties.push(prop(id, value));
        self
    }

    /// Clean Start and yet a session that lasts.
    pub(crate) fn fresh(mut self) -> Self {
        self.clean = true;
        self
    }

    pub(crate) fn keep_alive(mut self, seconds: u16) -> Self {
        self.keep_alive_s = seconds;
        self
    }

    pub(crate) fn will(mut self, topic: &str, qos: u8, retain: bool, payload: &str) -> Self {
        let (topic, payload) = (topic.to_owned(), payload.to_owned());
        self.will = Some(Will { topic, payload, qos, retain, properties: Vec::new() });
        self
    }

    pub(crate) fn will_with(mut self, id: u8, value: Value) -> Self {
        self.will.as_mut().unwrap().properties.push(prop(id, value));
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let v5 = self.version == Version::V5;
        let will = self.will.as_ref().map_or(0, |w| 0x04 | w.qos << 3 | u8::from(w.retain) << 5);
        let names = u8::from(self.user_name.is_some()) << 7 | u8::from(self.password.is_some()) << 6;
        let mut body = field(b"MQTT");
        body.push(if v5 { 5 } else { 4 });
        body.push((will | names | u8::from(self.clean) << 1) ^ self.odd_flags);
        body.extend(self.keep_alive_s.to_be_bytes());
        if v5 {
            body.extend(section(&self.properties));
        }
        body.extend(field(self.id.as_bytes()));
        if let Some(will) = &self.will {
            if v5 {
                body.extend(section(&will.properties));
            }
            body.extend(field(will.topic.as_bytes()));
            body.extend(field(will.payload.as_bytes()));
        }
        for bytes in [&self.user_name, &self.password].into_iter().flatten() {
            body.extend(field(bytes));
        }
        packet(0x10, &body)
    }
}

/// A PUBLISH without properties; id 0 at QoS 0.
pub(crate) fn publish(topic: &str, qos: u8, id: u16, payload: &str) -> Publish {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic: topic.to_owned(),
        id: if qos == 0 { 0 } else { id },
        properties: Vec::new(),
        payload: payload.as_bytes().to_vec(),
    }
}

/// A packet of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) first: u8,
    pub(crate) body: Vec<u8>,
    version: Version,
}

impl Got {
    /// Bytes that it had on the wire.
    pub(crate) fn bytes(&self) -> usize {
        1 + variable(self.body.len()).len() + self.body.len()
    }

    /// Packet identifier of an acknowledgement.
    pub(crate) fn id(&self) -> u16 {
        assert!(matches!(self.first >> 4, 4..=7 | 9 | 11), "{self:?}");
        u16::from_be_bytes([self.body[0], self.body[1]])
    }

    /// Reason code of CONNACK, DISCONNECT and the acknowledgements of publishes.
    pub(crate) fn reason(&self) -> u8 {
        match self.first >> 4 {
            2 => self.body[1],
            4..=7 => self.body.get(2).copied().unwrap_or(0),
            14 | 15 => self.body.first().copied().unwrap_or(0),
            _ => panic!("{self:?} has no reason code"),
        }
    }

    /// What stands behind the identifier of SUBACK and UNSUBACK, one for each filter.
    pub(crate) fn codes(&self) -> &[u8] {
        assert!(matches!(self.first, 0x90 | 0xb0), "{self:?}");
        let skipped = if self.version == Version::V5 { self.section_at(2).1 } else { 2 };
        &self.body[skipped..]
    }

    /// Properties.
    pub(crate) fn properties(&self) -> Vec<Property> {
        if self.version == Version::V4 {
            return Vec::new();
        }
        let at = match self.first >> 4 {
            2 | 9 | 11 => 2,
            3 => return self.publish().properties,
            4..=7 => 3,
            _ => 1,
        };
        if self.body.len() <= at {
            return Vec::new();
        }
        let (start, end) = self.section_at(at);
        property::parse(&self.body[start..end]).unwrap()
    }

    /// Where the property section that begins at `at` has its content.
    fn section_at(&self, at: usize) -> (usize, usize) {
        let (mut length, mut next, mut shift) = (0, at, 0);
        loop {
            let byte = self.body[next];
            length |= usize::from(byte & 127) << shift;
            next += 1;
            shift += 7;
            if byte < 128 {
                return (next, next + length);
            }
        }
    }

    /// It is a PUBLISH.
    pub(crate) fn publish(&self) -> Publish {
        let frame = Frame { first: self.first, body: &self.body, bytes: 0 };
        let p = publish_of(&frame, self.version).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        Publish {
            dup: p.dup,
            qos: p.qos,
            retain: p.retain,
            topic: p.topic.to_owned(),
            id: p.id,
            properties: property::parse(p.properties).unwrap(),
            payload: p.payload.to_vec(),
        }
    }
}

/// A connection. Dropped without DISCONNECT it is one that broke.
pub(crate) struct Client {
    pub(crate) socket: TcpStream,
    pub(crate) version: Version,
    input: Vec<u8>,
    next_id: u16,
    markers: u32,
}

impl Client {
    pub(crate) fn open(at: SocketAddr, version: Version) -> Self {
        let socket = TcpStream::connect(at).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, version, input: Vec::new(), next_id: 1, markers: 0 }
    }

    /// Sends CONNECT; the packet that comes.
    pub(crate) fn greet(&mut self, connect: &Connect) -> Got {
        self.send(&connect.bytes());
        self.read()
    }

    /// Sends bytes. That the broker has closed already is seen by reading.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        drop(self.socket.write_all(bytes));
    }

    /// The next packet; nothing when the broker closed.
    pub(crate) fn next(&mut self) -> Option<Got> {
        let mut buffer = [0; 65_536];
        loop {
            if let Some(frame) = frame(&self.input).unwrap() {
                let got = Got { first: frame.first, body: frame.body.to_vec(), version: self.version };
                let bytes = frame.bytes;
                self.input.drain(..bytes);
                return Some(got);
            }
            match self.socket.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => self.input.extend(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => break,
                Err(e) => panic!("no packet came: {e}"),
            }
        }
        assert!(self.input.is_empty(), "closed within a packet: {:02x?}", self.input);
        None
    }

    /// The next packet.
    pub(crate) fn read(&mut self) -> Got {
        self.next().expect("the broker closed the connection")
    }

    /// A packet identifier that was not used yet.
    pub(crate) fn fresh_id(&mut self) -> u16 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// SUBSCRIBE with properties; the SUBACK.
    pub(crate) fn subscribe_with(&mut self, properties: &[Property], filters: &[(&str, u8)]) -> Got {
        let id = self.fresh_id();
        let mut body = id.to_be_bytes().to_vec();
        if self.version == Version::V5 {
            body.extend(section(properties));
        }
        for (filter, options) in filters {
            body.extend(field(filter.as_bytes()));
            body.push(*options);
        }
        self.send(&packet(0x82, &body));
        let ack = self.read();
        assert_eq!((ack.first, ack.id()), (0x90, id), "{ack:?}");
        ack
    }

    /// SUBSCRIBE; the codes of its SUBACK.
    pub(crate) fn subscribe_many(&mut self, filters: &[(&str, u8)]) -> Vec<u8> {
        self.subscribe_with(&[], filters).codes().to_vec()
    }

    /// SUBSCRIBE to one filter, which is granted as asked.
    pub(crate) fn subscribe(&mut self, filter: &str, options: u8) {
        assert_eq!(self.subscribe_many(&[(filter, options)]), [options & 3], "{filter}");
    }

    /// UNSUBSCRIBE; the UNSUBACK.
    pub(crate) fn unsubscribe(&mut self, filters: &[&str]) -> Got {
        let (id, mut bytes) = (self.fresh_id(), Vec::new());
        encode::unsubscribe(&mut bytes, self.version, id, filters);
        self.send(&bytes);
        let ack = self.read();
        assert_eq!((ack.first, ack.id()), (0xb0, id), "{ack:?}");
        ack
    }

    /// Sends a PUBLISH.
    pub(crate) fn send_publish(&mut self, publish: &Publish) {
        let mut bytes = Vec::new();
        encode::publish(&mut bytes, self.version, publish);
        self.send(&bytes);
    }

    /// Publishes and goes through the whole handshake. A QoS 0 message is taken when this returns.
    pub(crate) fn publish_through(&mut self, publish: &Publish) {
        self.send_publish(publish);
        match publish.qos {
            0 => self.ping(),
            1 => self.expect_ack(AckKind::Puback, publish.id),
            _ => {
                self.expect_ack(AckKind::Pubrec, publish.id);
                self.ack(AckKind::Pubrel, publish.id);
                self.expect_ack(AckKind::Pubcomp, publish.id);
            }
        }
    }

    /// Publishes without properties, through the whole handshake.
    pub(crate) fn publish(&mut self, topic: &str, qos: u8, payload: &str) {
        let id = self.fresh_id();
        self.publish_through(&publish(topic, qos, id, payload));
    }

    /// PUBACK, PUBREC, PUBREL or PUBCOMP.
    pub(crate) fn ack(&mut self, kind: AckKind, id: u16) {
        let first = (kind as u8) << 4 | if kind == AckKind::Pubrel { 2 } else { 0 };
        self.send(&packet(first, &id.to_be_bytes()));
    }

    /// The same with a reason code (5.0).
    pub(crate) fn ack_with(&mut self, kind: AckKind, id: u16, reason: u8) {
        let first = (kind as u8) << 4 | if kind == AckKind::Pubrel { 2 } else { 0 };
        self.send(&packet(first, &[&id.to_be_bytes()[..], &[reason]].concat()));
    }

    /// The next packet is this acknowledgement, and no refusal.
    pub(crate) fn expect_ack(&mut self, kind: AckKind, id: u16) {
        let got = self.read();
        let first = (kind as u8) << 4 | if kind == AckKind::Pubrel { 2 } else { 0 };
        assert!(got.first == first && got.id() == id && got.reason() < 0x80, "wanted {kind:?} {id}, got {got:?}");
    }

    /// The next packet is a PUBLISH.
    pub(crate) fn message(&mut self) -> Publish {
        self.read().publish()
    }

    /// The next packet is a PUBLISH with this payload, which is settled.
    pub(crate) fn receive(&mut self, payload: &str) -> Publish {
        let publish = self.message();
        assert_eq!(String::from_utf8_lossy(&publish.payload), payload, "{publish:?}");
        self.settle(&publish);
        publish
    }

    /// Settles a PUBLISH whole.
    pub(crate) fn settle(&mut self, publish: &Publish) {
        match publish.qos {
            0 => {}
            1 => self.ack(AckKind::Puback, publish.id),
            _ => {
                self.ack(AckKind::Pubrec, publish.id);
                self.expect_ack(AckKind::Pubrel, publish.id);
                self.ack(AckKind::Pubcomp, publish.id);
            }
        }
    }

    /// PINGREQ and PINGRESP, with nothing between them.
    pub(crate) fn ping(&mut self) {
        self.send(&[0xc0, 0]);
        let got = self.read();
        assert_eq!((got.first, got.body.len()), (0xd0, 0), "{got:?}");
    }

    /// Nothing was on its way to this client: a message that it sends to itself, behind all that was published before,
    /// comes first.
    pub(crate) fn expect_nothing(&mut self) {
        self.markers += 1;
        let port = self.socket.local_addr().unwrap().port();
        let topic = format!("marker/{port}/{}", self.markers);
        assert_eq!(self.subscribe_many(&[(&topic, 1)]), [1]);
        let id = self.fresh_id();
        self.send_publish(&publish(&topic, 1, id, "marker"));
        for _ in 0..2 {
            match self.read() {
                got if got.first == 0x40 => assert_eq!(got.id(), id),
                got => {
                    let marker = got.publish();
                    assert_eq!(marker.topic, topic, "something came: {marker:?}");
                    self.settle(&marker);
                }
            }
        }
        assert_eq!(self.unsubscribe(&[&topic]).first, 0xb0);
    }

    /// The broker closes without a word.
    pub(crate) fn expect_silent_close(&mut self) {
        assert_eq!(self.next(), None);
    }

    /// The broker ends the connection: on 5.0 with a DISCONNECT of this reason, on 3.1.1 without a word.
    pub(crate) fn expect_end(&mut self, reason: u8) {
        if self.version == Version::V5 {
            let got = self.read();
            assert_eq!((got.first, got.reason()), (0xe0, reason), "{got:?}");
        }
        self.expect_silent_close();
    }

    /// DISCONNECT, and the end of the connection.
    pub(crate) fn disconnect(mut self) {
        self.send(&[0xe0, 0]);
        self.expect_silent_close();
    }

    /// DISCONNECT with a body (5.0), and the end of the connection.
    pub(crate) fn disconnect_with(mut self, body: &[u8]) {
        self.send(&packet(0xe0, body));
        self.expect_silent_close();
    }

    /// The connection breaks. When this returns the broker may not know it yet.
    pub(crate) fn break_off(self) {
        drop(self);
    }
}
