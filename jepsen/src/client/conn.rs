//! One connection: bytes in, packets out. It knows nothing of sessions.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::history::event::Connection;
use crate::wire::property::{self, Property, Value};
use crate::wire::{self, Packet, Version};

/// Bytes of one packet that a client takes.
const PACKET_BYTES_MAX: usize = 1 << 20;
/// The shortest wait that a socket takes: 0 would be for ever.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// A packet of the broker, with the position that it says where it says one.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) packet: Packet,
    pub(super) position: Option<u64>,
}

/// Why there is no packet and will be none.
#[derive(Debug)]
pub(super) enum Over {
    /// The other side or the network ended it.
    Lost,
    /// What came is no MQTT.
    Nonsense(String),
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) id: Connection,
    /// Name of the node.
    pub(super) node: String,
    /// When the last bytes came.
    pub(super) heard: Instant,
    /// When the last bytes went.
    pub(super) spoke: Instant,
    stream: TcpStream,
    version: Version,
    buffer: Vec<u8>,
}

impl Conn {
    /// Opens a socket; no byte is sent.
    pub(super) fn open(at: SocketAddr, node: &str, version: Version, bound: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&at, bound)?;
        stream.set_nodelay(true)?;
        // A partition fills the socket's buffer: the write must not hang for ever.
        stream.set_write_timeout(Some(bound))?;
        let now = Instant::now();
        let node = node.to_owned();
        Ok(Self { id: Connection(0), node, heard: now, spoke: now, stream, version, buffer: Vec::new() })
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.spoke = Instant::now();
        self.stream.write_all(bytes)
    }

    /// The next packet, if one comes within `bound`.
    pub(super) fn read(&mut self, bound: Duration) -> Result<Option<Arrived>, Over> {
        let end = Instant::now() + bound;
        loop {
            if let Some(arrived) = self.buffered()? {
                return Ok(Some(arrived));
            }
            let left = end.saturating_duration_since(Instant::now()).max(WAIT_MIN);
            self.stream.set_read_timeout(Some(left)).map_err(|_| Over::Lost)?;
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(Over::Lost),
                Ok(bytes) => {
                    self.heard = Instant::now();
                    self.buffer.extend(chunk.iter().take(bytes));
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() >= end {
                        return Ok(None);
                    }
                }
                Err(_) => return Err(Over::Lost),
            }
        }
    }

    fn buffered(&mut self) -> Result<Option<Arrived>, Over> {
        let nonsense = |e: wire::WireError| Over::Nonsense(e.to_string());
        if self.buffer.len() > PACKET_BYTES_MAX {
            return Err(Over::Nonsense(format!("{} bytes without an end", self.buffer.len())));
        }
        let Some(frame) = wire::frame(&self.buffer).map_err(nonsense)? else { return Ok(None) };
        let packet = wire::decode(&frame, self.version).map_err(nonsense)?;
        let position = match &packet {
            Packet::Ack(_) if self.version == Version::V5 => {
                position_in(&wire::ack_properties_of(&frame).map_err(nonsense)?)
            }
            Packet::Publish(publish) => position_in(&publish.properties),
            _ => None,
        };
        let bytes = frame.bytes;
        self.buffer.drain(..bytes);
        Ok(Some(Arrived { packet, position }))
    }

    /// Ends it without a word.
    pub(super) fn shut(&self) {
        // That the other side is gone already is as good.
        drop(self.stream.shutdown(Shutdown::Both));
    }
}

fn position_in(properties: &[Property]) -> Option<u64> {
    properties.iter().find_map(|p| match &p.value {
        Value::Pair(name, value) if p.id == property::USER && name == "position" => value.parse().ok(),
        _ => None,
    })
}
