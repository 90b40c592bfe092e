//! A client on a raw socket: bytes out, whole packets in. It knows just enough MQTT to say what a test
//! wants to say, right or wrong.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Client<S = TcpStream> {
    pub(crate) socket: S,
    pub(crate) v5: bool,
    /// Reason String of the last packet that had one: [`Client::next`] takes it out.
    pub(crate) why: Option<String>,
}

/// A packet: first byte and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) first: u8,
    pub(crate) body: Vec<u8>,
}

impl Raw {
    /// Of a PUBLISH: packet identifier (0 for QoS 0) and payload.
    pub(crate) fn publish(&self, v5: bool) -> (u16, Vec<u8>) {
        assert_eq!(self.first >> 4, 3, "{self:?}");
        let topic = usize::from(u16::from_be_bytes([self.body[0], self.body[1]]));
        let mut at = 2 + topic;
        let mut id = 0;
        if self.first & 6 != 0 {
            id = u16::from_be_bytes([self.body[at], self.body[at + 1]]);
            at += 2;
        }
        if v5 {
            assert!(self.body[at] < 0x80);
            at += 1 + usize::from(self.body[at]);
        }
        (id, self.body[at..].to_vec())
    }
}

pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut n = body.len();
    loop {
        let more = if n > 127 { 0x80 } else { 0 };
        bytes.push((n & 127) as u8 | more);
        n >>= 7;
        if more == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn string(s: &str) -> Vec<u8> {
    let mut bytes = (s.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(s.as_bytes());
    bytes
}

/// CONNECT of `level` with these flags, keep alive and (v5) properties.
pub(crate) fn connect(level: u8, client_id: &str, flags: u8, keep_alive: u16, properties: &[u8]) -> Vec<u8> {
    let mut body = string(if level == 3 { "MQIsdp" } else { "MQTT" });
    body.extend_from_slice(&[level, flags]);
    body.extend_from_slice(&keep_alive.to_be_bytes());
    if level == 5 {
        body.push(properties.len() as u8);
        body.extend_from_slice(properties);
    }
    body.extend_from_slice(&string(client_id));
    packet(0x10, &body)
}

impl Client {
    pub(crate) fn open(address: SocketAddr, v5: bool) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, v5, why: None }
    }

    /// Connects with a session that lasts (unless `clean`), and returns Session Present.
    pub(crate) fn connect(address: SocketAddr, v5: bool, client_id: &str, clean: bool) -> (Self, bool) {
        let mut client = Self::open(address, v5);
        let present = client.greet(client_id, clean);
        (client, present)
    }
}

impl<S: Read + Write> Client<S> {
    /// Over a stream of any kind.
    pub(crate) fn over(socket: S, v5: bool) -> Self {
        Self { socket, v5, why: None }
    }

    /// Sends CONNECT for a session that lasts (unless `clean`), and returns Session Present.
    pub(crate) fn greet(&mut self, client_id: &str, clean: bool) -> bool {
        let ack = self.try_greet(client_id, clean);
        assert_eq!((ack.first, ack.body[1]), (0x20, 0), "{ack:?}");
        ack.body[0] == 1
    }

    /// Sends the same, and returns what comes.
    pub(crate) fn try_greet(&mut self, client_id: &str, clean: bool) -> Raw {
        let lasting = [0x11, 0, 0, 3, 0xE8];
        let bytes = match (self.v5, clean) {
            (true, true) => connect(5, client_id, 2, 60, &[]),
            (true, false) => connect(5, client_id, 0, 60, &lasting),
            (false, clean) => connect(4, client_id, if clean { 2 } else { 0 }, 60, &[]),
        };
        self.send(&bytes);
        self.read()
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// The next packet, `None` when the server closed.
    pub(crate) fn next(&mut self) -> Option<Raw> {
        let mut byte = [0];
        match self.socket.read(&mut byte) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => return None,
            Err(e) => panic!("no packet came: {e}"),
        }
        let first = byte[0];
        let (mut n, mut shift) = (0, 0);
        loop {
            self.socket.read_exact(&mut byte).unwrap();
            n |= usize::from(byte[0] & 127) << shift;
            shift += 7;
            if byte[0] < 128 {
                break;
            }
        }
        let mut body = vec![0; n];
        self.socket.read_exact(&mut body).unwrap();
        if self.v5 {
            self.take_why(first, &mut body);
        }
        Some(Raw { first, body })
    }

    /// Takes the Reason String out of a packet of 5.0, whose first property it is.
    fn take_why(&mut self, first: u8, body: &mut Vec<u8>) {
        const REASON_STRING: u8 = 0x1F;
        let section = match first >> 4 {
            2 | 9 | 11 => 2,
            4..=7 => 3,
            14 => 1,
            _ => return,
        };
        let Some(&n) = body.get(section) else { return };
        if n < 4 || body[section + 1] != REASON_STRING {
            return;
        }
        assert!(n < 0x80, "a Reason String is short: {body:?}");
        let text = usize::from(u16::from_be_bytes([body[section + 2], body[section + 3]]));
        let taken: Vec<u8> = body.drain(section + 1..section + 4 + text).collect();
        self.why = Some(String::from_utf8(taken[3..].to_vec()).unwrap());
        body[section] -= taken.len() as u8;
        // As short as it would have been without.
        if body[section] == 0 && section + 1 == body.len() && matches!(first >> 4, 4..=7 | 14) {
            body.pop();
        }
    }

    pub(crate) fn read(&mut self) -> Raw {
        self.next().expect("the server closed")
    }

    pub(crate) fn expect(&mut self, first: u8, body: &[u8]) {
        assert_eq!(self.read(), Raw { first, body: body.to_vec() });
    }

    pub(crate) fn expect_closed(&mut self) {
        assert_eq!(self.next(), None);
    }

    pub(crate) fn ping(&mut self) {
        self.send(&[0xC0, 0]);
        self.expect(0xD0, &[]);
    }

    pub(crate) fn subscribe(&mut self, id: u16, filter: &str, qos: u8) {
        let mut body = id.to_be_bytes().to_vec();
        if self.v5 {
            body.push(0);
        }
        body.extend_from_slice(&string(filter));
        body.push(qos);
        self.send(&packet(0x82, &body));
        let ack = self.read();
        assert_eq!((ack.first, ack.body.last()), (0x90, Some(&qos)), "{ack:?}");
    }

    pub(crate) fn publish(&mut self, topic: &str, qos: u8, id: u16, payload: &[u8]) {
        let bytes = self.publish_bytes(topic, qos, id, payload);
        self.send(&bytes);
    }

    pub(crate) fn publish_bytes(&self, topic: &str, qos: u8, id: u16, payload: &[u8]) -> Vec<u8> {
        let mut body = string(topic);
        if qos > 0 {
            body.extend_from_slice(&id.to_be_bytes());
        }
        if self.v5 {
            body.push(0);
        }
        body.extend_from_slice(payload);
        packet(0x30 | qos << 1, &body)
    }

    /// PUBACK, PUBREC, PUBREL or PUBCOMP without a reason.
    pub(crate) fn ack(&mut self, first: u8, id: u16) {
        let [a, b] = id.to_be_bytes();
        self.send(&[first, 2, a, b]);
    }
}
