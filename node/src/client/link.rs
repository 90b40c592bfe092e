//! One TCP connection of the client: packets in, packets out, nothing else.
//!
//! Reading and writing go on at the same time, so a server that waits for our acknowledgements before it
//! takes more of our publishes never waits for ever.

use std::io;

use bytes::BytesMut;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::codec::{DecodeError, EncodeError, decode, encode};
use super::packet::{Packet, Version};

/// Read buffer at the start.
const READ_BYTES: usize = 32 << 10;

/// Why a link is of no use any more.
#[derive(Debug, Error)]
pub enum LinkError {
    /// It could not be made.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// It broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// The other side closed it.
    #[error("the server closed the connection")]
    Closed,
    /// What came is no MQTT.
    #[error("the server sent what is not MQTT: {0}")]
    Malformed(#[from] DecodeError),
    /// What we wanted to send is no MQTT.
    #[error("{0}")]
    Unsendable(#[from] EncodeError),
}

/// A connection.
#[derive(Debug)]
pub struct Link {
    version: Version,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    input: BytesMut,
    output: BytesMut,
}

impl Link {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// [`LinkError::Connect`]
    pub async fn connect(address: &str, version: Version) -> Result<Self, LinkError> {
        let stream = TcpStream::connect(address).await.map_err(LinkError::Connect)?;
        stream.set_nodelay(true).map_err(LinkError::Connect)?;
        let (reader, writer) = stream.into_split();
        Ok(Self { version, reader, writer, input: BytesMut::with_capacity(READ_BYTES), output: BytesMut::new() })
    }

    /// Queues a packet; [`Self::next`] sends it.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn queue(&mut self, packet: &Packet) -> Result<(), LinkError> {
        Ok(encode(packet, self.version, &mut self.output)?)
    }

    /// Sends what is queued while it waits for the next packet. May be dropped at any time.
    ///
    /// # Errors
    /// [`LinkError`]: the link is of no use any more.
    pub async fn next(&mut self) -> Result<Packet, LinkError> {
        loop {
            if let Some(packet) = decode(&mut self.input, self.version)? {
                return Ok(packet);
            }
            let Self { reader, writer, input, output, .. } = self;
            tokio::select! {
                read = reader.read_buf(input) => {
                    if read? == 0 {
                        return Err(LinkError::Closed);
                    }
                }
                written = writer.write_buf(output), if !output.is_empty() => {
                    written?;
                }
            }
        }
    }

    /// Bytes that are queued.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.output.len()
    }

    /// Sends all that is queued.
    ///
    /// # Errors
    /// [`LinkError::Broken`]
    pub async fn flush(&mut self) -> Result<(), LinkError> {
        self.writer.write_all_buf(&mut self.output).await?;
        Ok(self.writer.flush().await?)
    }
}
