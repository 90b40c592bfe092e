//! A client whose every packet the test decides, over a plain socket.

use std::net::SocketAddr;
use std::time::Duration;

use quorate_jepsen::wire::encode;
pub(crate) use quorate_jepsen::wire::encode::{Connect, Will};
use quorate_jepsen::wire::property::{Property, USER, Value};
use quorate_jepsen::wire::{Ack, AckKind, Frame, Packet, Publish, Version};
use quorate_jepsen::wire::{ack_of, ack_properties_of, decode, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::SOON;

/// A connection. Dropped without DISCONNECT, it is a connection that broke.
pub(crate) struct Raw {
    stream: TcpStream,
    input: Vec<u8>,
    version: Version,
    next_id: u16,
}

/// A client whose session outlives its connections.
pub(crate) fn client(id: &str, clean: bool) -> Connect {
    Connect { client_id: id.to_owned(), clean, keep_alive_s: 0, expiry_s: 3600, receive_maximum: u16::MAX, will: None }
}

/// A publish without properties; id 0 at QoS 0.
pub(crate) fn publish(topic: &str, qos: u8, id: u16, dup: bool, payload: &str) -> Publish {
    Publish {
        dup,
        qos,
        retain: false,
        topic: topic.to_owned(),
        id,
        properties: Vec::new(),
        payload: payload.as_bytes().to_vec(),
    }
}

/// The number that is a publish's payload.
pub(crate) fn number(publish: &Publish) -> u32 {
    String::from_utf8_lossy(&publish.payload).parse().unwrap()
}

/// [`publish`] with an idempotency key.
pub(crate) fn keyed(key: &str, publish: Publish) -> Publish {
    let value = Value::Pair("idempotency-key".to_owned(), key.to_owned());
    Publish { properties: vec![Property { id: USER, value }], ..publish }
}

impl Raw {
    /// Connects, with whether a session was present; the broker must accept.
    pub(crate) async fn connect(at: SocketAddr, version: Version, connect: &Connect) -> (Self, bool) {
        let (client, packet) = Self::open(at, version, connect).await;
        match packet {
            Some(Packet::ConnAck { code: 0, present, .. }) => (client, present),
            other => panic!("{} at {at} got {other:?}", connect.client_id),
        }
    }

    /// Sends CONNECT; the first packet that comes back, or nothing when the connection was closed.
    pub(crate) async fn open(at: SocketAddr, version: Version, connect: &Connect) -> (Self, Option<Packet>) {
        let mut client = Self::send_connect(at, version, connect).await;
        let packet = client.next_or_close().await;
        (client, packet)
    }

    /// As [`Self::connect`], with properties of CONNECT that [`Connect`] has no field for.
    pub(crate) async fn connect_with(at: SocketAddr, connect: &Connect, more: &[Property]) -> (Self, bool) {
        let mut client = Self::to(at, Version::V5).await;
        client.send(|out, version| encode::connect_with(out, version, connect, more)).await;
        match client.next_or_close().await {
            Some(Packet::ConnAck { code: 0, present, .. }) => (client, present),
            other => panic!("{} at {at} got {other:?}", connect.client_id),
        }
    }

    async fn to(at: SocketAddr, version: Version) -> Self {
        let stream = TcpStream::connect(at).await.unwrap_or_else(|e| panic!("connecting to {at}: {e}"));
        stream.set_nodelay(true).unwrap();
        Self { stream, input: Vec::new(), version, next_id: 1 }
    }

    /// Sends CONNECT and waits for nothing.
    pub(crate) async fn send_connect(at: SocketAddr, version: Version, connect: &Connect) -> Self {
        let mut client = Self::to(at, version).await;
        client.send(|out, version| encode::connect(out, version, connect)).await;
        client
    }

    /// Sends what `write` appends. That the broker has closed already is seen by reading.
    pub(crate) async fn send(&mut self, write: impl FnOnce(&mut Vec<u8>, Version)) {
        let mut out = Vec::new();
        write(&mut out, self.version);
        drop(self.stream.write_all(&out).await);
    }

    /// Sends a PUBLISH.
    pub(crate) async fn publish(&mut self, publish: &Publish) {
        self.send(|out, version| encode::publish(out, version, publish)).await;
    }

    /// Sends PUBACK, PUBREC, PUBREL or PUBCOMP.
    pub(crate) async fn ack(&mut self, kind: AckKind, id: u16) {
        self.send(|out, _| encode::ack(out, Ack { kind, id, code: 0 })).await;
    }

    /// Publishes a message whole, with all of its handshake.
    pub(crate) async fn publish_through(&mut self, topic: &str, qos: u8, payload: &str) {
        let id = if qos == 0 { 0 } else { self.fresh_id() };
        self.publish(&publish(topic, qos, id, false, payload)).await;
        match qos {
            0 => {}
            1 => self.expect_ack(AckKind::Puback, id).await,
            _ => {
                self.expect_ack(AckKind::Pubrec, id).await;
                self.ack(AckKind::Pubrel, id).await;
                self.expect_ack(AckKind::Pubcomp, id).await;
            }
        }
    }

    /// Subscribes to one filter and waits for SUBACK; packets before it are an error.
    pub(crate) async fn subscribe(&mut self, filter: &str, options: u8) {
        let id = self.fresh_id();
        self.send(|out, version| encode::subscribe(out, version, id, &[(filter, options)])).await;
        match self.next().await {
            Packet::SubAck { id: got, codes } if got == id && codes == [options & 3] => {}
            other => panic!("SUBSCRIBE to {filter} got {other:?}"),
        }
    }

    /// Unsubscribes from one filter and waits for UNSUBACK.
    pub(crate) async fn unsubscribe(&mut self, filter: &str) {
        let id = self.fresh_id();
        self.send(|out, version| encode::unsubscribe(out, version, id, &[filter])).await;
        match self.next().await {
            Packet::UnsubAck { id: got, .. } if got == id => {}
            other => panic!("UNSUBSCRIBE from {filter} got {other:?}"),
        }
    }

    /// A packet identifier that this connection has not used yet.
    pub(crate) fn fresh_id(&mut self) -> u16 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// The next packet.
    pub(crate) async fn next(&mut self) -> Packet {
        self.next_or_close().await.expect("the broker closed the connection")
    }

    /// The next packet; nothing when the broker closes.
    pub(crate) async fn next_or_close(&mut self) -> Option<Packet> {
        tokio::time::timeout(SOON, self.read()).await.expect("the broker sends nothing")
    }

    /// The next packet; `Err` when none comes for `quiet`.
    pub(crate) async fn next_within(&mut self, quiet: Duration) -> Result<Option<Packet>, ()> {
        tokio::time::timeout(quiet, self.read()).await.map_err(drop)
    }

    async fn read(&mut self) -> Option<Packet> {
        let version = self.version;
        self.read_frame(|frame| decode(frame, version).unwrap_or_else(|e| panic!("{e}: {frame:?}"))).await
    }

    async fn read_frame<T>(&mut self, read: impl FnOnce(&Frame<'_>) -> T) -> Option<T> {
        loop {
            if let Some(frame) = frame(&self.input).unwrap() {
                let (read, bytes) = (read(&frame), frame.bytes);
                self.input.drain(..bytes);
                return Some(read);
            }
            // A reset is a close.
            if self.stream.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// The next packet is this acknowledgement, with a reason code below 0x80.
    pub(crate) async fn expect_ack(&mut self, kind: AckKind, id: u16) {
        match self.next().await {
            Packet::Ack(ack) if ack.kind == kind && ack.id == id && ack.code < 0x80 => {}
            other => panic!("wanted {kind:?} {id}, got {other:?}"),
        }
    }

    /// The next packet is this acknowledgement; its reason code and its user property `position`.
    pub(crate) async fn expect_ack_at(&mut self, kind: AckKind, id: u16) -> (u8, Option<String>) {
        self.ack_at_or_close(kind, id).await.expect("the broker closed the connection")
    }

    /// [`Self::expect_ack_at`], or nothing when the broker closes.
    pub(crate) async fn ack_at_or_close(&mut self, kind: AckKind, id: u16) -> Option<(u8, Option<String>)> {
        let read = |frame: &Frame<'_>| match frame.kind() {
            4 | 5 => Some((ack_of(frame).unwrap(), ack_properties_of(frame).unwrap())),
            _ => None,
        };
        let read = tokio::time::timeout(SOON, self.read_frame(read)).await.expect("the broker sends nothing");
        // A DISCONNECT, or the end without one.
        let (ack, properties) = read??;
        assert_eq!((ack.kind, ack.id), (kind, id));
        let position = properties.into_iter().find_map(|property| match property.value {
            Value::Pair(name, value) if property.id == USER && name == "position" => Some(value),
            _ => None,
        });
        Some((ack.code, position))
    }

    /// The next packet is a PUBLISH.
    pub(crate) async fn expect_publish(&mut self) -> Publish {
        match self.next().await {
            Packet::Publish(publish) => publish,
            other => panic!("wanted a PUBLISH, got {other:?}"),
        }
    }

    /// The next packet is a PUBLISH with this payload and DUP.
    pub(crate) async fn expect_message(&mut self, payload: &str, dup: bool) -> Publish {
        let publish = self.expect_publish().await;
        assert_eq!((String::from_utf8_lossy(&publish.payload).as_ref(), publish.dup), (payload, dup), "{publish:?}");
        publish
    }

    /// Receives a PUBLISH with this payload and settles it whole.
    pub(crate) async fn receive_through(&mut self, payload: &str, dup: bool) -> Publish {
        let publish = self.expect_message(payload, dup).await;
        self.settle(&publish).await;
        publish
    }

    /// Settles a PUBLISH whole.
    pub(crate) async fn settle(&mut self, publish: &Publish) {
        match publish.qos {
            0 => {}
            1 => self.ack(AckKind::Puback, publish.id).await,
            _ => {
                self.ack(AckKind::Pubrec, publish.id).await;
                self.expect_ack(AckKind::Pubrel, publish.id).await;
                self.ack(AckKind::Pubcomp, publish.id).await;
            }
        }
    }

    /// Nothing comes before the answer to a ping.
    pub(crate) async fn expect_nothing(&mut self) {
        self.send(|out, _| encode::ping(out)).await;
        match self.next().await {
            Packet::PingResp => {}
            other => panic!("wanted nothing, got {other:?}"),
        }
    }

    /// Nothing comes for this long.
    pub(crate) async fn expect_silence(&mut self, quiet: Duration) {
        if let Ok(got) = self.next_within(quiet).await {
            panic!("wanted silence, got {got:?}");
        }
    }

    /// The broker ends the connection; the reason code of its DISCONNECT, if it sent one. Other packets are passed over.
    pub(crate) async fn expect_end(&mut self) -> Option<u8> {
        let mut reason = None;
        while let Some(packet) = self.next_or_close().await {
            if let Packet::Disconnect { code, .. } = packet {
                reason = Some(code);
            }
        }
        reason
    }

    /// The broker ends the connection with a DISCONNECT that sends the client to other nodes, and acknowledges nothing
    /// before that.
    pub(crate) async fn expect_sent_away_unanswered(&mut self) {
        let mut packets = Vec::new();
        while let Some(packet) = self.next_or_close().await {
            packets.push(packet);
        }
        assert!(!packets.iter().any(|p| matches!(p, Packet::Ack(_))), "a minority acknowledged: {packets:?}");
        let is_sent_away = |p: &Packet| matches!(p, Packet::Disconnect { code: 0x9c | 0x9d | 0x89, .. });
        assert!(packets.iter().any(is_sent_away), "closed without a word: {packets:?}");
    }

    /// DISCONNECT, and the end of the connection.
    pub(crate) async fn disconnect(mut self) {
        self.send(|out, version| encode::disconnect(out, version, 0, None)).await;
        while self.next_or_close().await.is_some() {}
    }
}
