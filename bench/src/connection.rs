//! One MQTT connection of the load generator: a socket, what came in and is not read yet, what is to go out.

use std::net::SocketAddr;
use std::time::Duration;

use quorate_jepsen::wire::encode::{self, Connect};
use quorate_jepsen::wire::{Frame, Packet, Version, decode, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::BenchError;

/// Room for what one read brings; grows when a packet is larger.
const READ_BYTES: usize = 256 * 1024;
/// How long a broker may take for a CONNACK or a SUBACK.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Bytes that came in.
pub(crate) struct Input {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    /// The next whole packet.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, BenchError> {
        let found = frame(self.buffer.get(self.start..self.end).unwrap_or_default())?;
        if let Some(found) = &found {
            self.start += found.bytes;
        }
        Ok(found)
    }

    /// Room at the end of the buffer; what is read already goes.
    fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.end == self.buffer.len() {
                self.buffer.resize(self.end * 2, 0);
            }
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }
}

/// A connection.
pub(crate) struct Connection {
    stream: TcpStream,
    /// What came in.
    pub(crate) input: Input,
    /// What goes out with the next [`Self::flush`].
    pub(crate) out: Vec<u8>,
    /// Its protocol version.
    pub(crate) version: Version,
}

impl Connection {
    /// Connects; also whether a session was there.
    pub(crate) async fn open(at: SocketAddr, version: Version, connect: &Connect) -> Result<(Self, bool), BenchError> {
        tokio::time::timeout(ANSWER_MAX, Self::open_unbounded(at, version, connect))
            .await
            .map_err(|_| BenchError::Silent { at, what: "CONNACK" })?
    }

    async fn open_unbounded(at: SocketAddr, version: Version, connect: &Connect) -> Result<(Self, bool), BenchError> {
        let shown = at.to_string();
        let stream = TcpStream::connect(at).await.map_err(BenchError::io(&shown))?;
        stream.set_nodelay(true).map_err(BenchError::io(&shown))?;
        let input = Input { buffer: vec![0; READ_BYTES], start: 0, end: 0 };
        let mut connection = Self { stream, input, out: Vec::with_capacity(READ_BYTES), version };
        encode::connect(&mut connection.out, version, connect);
        connection.flush().await?;
        match connection.packet().await? {
            Packet::ConnAck { code: 0, present, .. } => Ok((connection, present)),
            other => Err(BenchError::Refused { at, answer: format!("{other:?}") }),
        }
    }

    /// Subscribes to one filter.
    pub(crate) async fn subscribe(&mut self, filter: &str, qos: u8) -> Result<(), BenchError> {
        encode::subscribe(&mut self.out, self.version, 1, &[(filter, qos)]);
        self.flush().await?;
        let answer = tokio::time::timeout(ANSWER_MAX, self.packet())
            .await
            .map_err(|_| BenchError::Silent { at: self.peer(), what: "SUBACK" })??;
        match &answer {
            Packet::SubAck { codes, .. } if codes.iter().all(|code| *code <= 2) => Ok(()),
            other => Err(BenchError::Refused { at: self.peer(), answer: format!("{other:?}") }),
        }
    }

    /// Ends the connection by DISCONNECT.
    pub(crate) async fn close(mut self) -> Result<(), BenchError> {
        encode::disconnect(&mut self.out, self.version, 0, None);
        self.flush().await?;
        let shown = self.peer().to_string();
        self.stream.shutdown().await.map_err(BenchError::io(&shown))
    }

    /// Waits for one whole packet.
    pub(crate) async fn packet(&mut self) -> Result<Packet, BenchError> {
        loop {
            let version = self.version;
            if let Some(frame) = self.input.next()? {
                return Ok(decode(&frame, version)?);
            }
            self.read().await?;
        }
    }

    /// Waits until something has come in.
    pub(crate) async fn read(&mut self) -> Result<(), BenchError> {
        let got = self.stream.read(self.input.room()).await;
        match got {
            Ok(0) => Err(BenchError::Closed { at: self.peer() }),
            Ok(bytes) => {
                self.input.end += bytes;
                Ok(())
            }
            Err(e) => Err(BenchError::io(&self.peer().to_string())(e)),
        }
    }

    /// Sends what is to go out.
    pub(crate) async fn flush(&mut self) -> Result<(), BenchError> {
        if !self.out.is_empty() {
            let shown = self.peer();
            self.stream.write_all(&self.out).await.map_err(|e| BenchError::io(&shown.to_string())(e))?;
            self.out.clear();
        }
        Ok(())
    }

    fn peer(&self) -> SocketAddr {
        self.stream.peer_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)))
    }
}

/// A client whose session outlives its connections, or not. 3.1.1 has one flag for beginning anew and for not
/// outliving: there a persistent one goes on with what is left of an earlier run, unless [`end_session`] was called.
pub(crate) fn client(version: Version, id: &str, is_persistent: bool, clean: bool) -> Connect {
    Connect {
        client_id: id.to_owned(),
        clean: if version == Version::V4 { !is_persistent } else { clean },
        keep_alive_s: 0,
        expiry_s: if is_persistent { 3600 } else { 0 },
        receive_maximum: u16::MAX,
        will: None,
    }
}

/// Ends the session of a client, so that nothing of a run stays in the broker.
pub(crate) async fn end_session(at: SocketAddr, version: Version, id: &str) -> Result<(), BenchError> {
    Connection::open(at, version, &client(version, id, false, true)).await?.0.close().await
}
