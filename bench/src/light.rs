//! Connections without buffers of their own, for clients of which there are many and that say little.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use quorate_jepsen::wire::encode::{self, Connect};
use quorate_jepsen::wire::{Packet, Version, decode, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::BenchError;

/// Longest wait for one answer: many ask at a time.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Room for an answer: a SUBACK has a byte for each of at most 1,024 filters.
const ANSWER_BYTES_MAX: usize = 2_048;

/// Connects; also whether a session was there.
pub(crate) async fn open(at: SocketAddr, version: Version, connect: &Connect) -> Result<(TcpStream, bool), BenchError> {
    let shown = at.to_string();
    let opening = tokio::time::timeout(ANSWER_MAX, TcpStream::connect(at)).await;
    let mut stream =
        opening.map_err(|_| BenchError::Silent { at, what: "SYN ACK" })?.map_err(BenchError::io(&shown))?;
    stream.set_nodelay(true).map_err(BenchError::io(&shown))?;
    let mut out = Vec::new();
    encode::connect(&mut out, version, connect);
    match ask(&mut stream, version, &out, "CONNACK").await? {
        Packet::ConnAck { code: 0, present, .. } => Ok((stream, present)),
        other => Err(BenchError::Refused { at, answer: format!("{other:?}") }),
    }
}

/// Subscribes to filters at once, at QoS 1.
pub(crate) async fn subscribe(
    stream: &mut TcpStream,
    version: Version,
    id: u16,
    filters: &[String],
) -> Result<(), BenchError> {
    let mut out = Vec::new();
    let asked: Vec<(&str, u8)> = filters.iter().map(|filter| (filter.as_str(), 1)).collect();
    encode::subscribe(&mut out, version, id, &asked);
    match ask(stream, version, &out, "SUBACK").await? {
        Packet::SubAck { codes, .. } if codes.iter().all(|code| *code <= 2) => Ok(()),
        other => Err(BenchError::Refused { at: peer(stream)?, answer: format!("{other:?}") }),
    }
}

/// Sends one packet and reads the one that answers it.
pub(crate) async fn ask(
    stream: &mut TcpStream,
    version: Version,
    packet: &[u8],
    what: &'static str,
) -> Result<Packet, BenchError> {
    let at = peer(stream)?;
    tokio::time::timeout(ANSWER_MAX, ask_unbounded(stream, at, version, packet))
        .await
        .map_err(|_| BenchError::Silent { at, what })?
}

async fn ask_unbounded(
    stream: &mut TcpStream,
    at: SocketAddr,
    version: Version,
    packet: &[u8],
) -> Result<Packet, BenchError> {
    let shown = at.to_string();
    stream.write_all(packet).await.map_err(BenchError::io(&shown))?;
    let (mut buffer, mut length) = ([0; ANSWER_BYTES_MAX], 0);
    loop {
        let read = buffer.get(..length).unwrap_or_default();
        if let Some(frame) = frame(read)? {
            return Ok(decode(&frame, version)?);
        }
        match stream.read(buffer.get_mut(length..).unwrap_or_default()).await.map_err(BenchError::io(&shown))? {
            0 => return Err(BenchError::Closed { at }),
            bytes => length += bytes,
        }
    }
}

/// Ends the connection by DISCONNECT.
pub(crate) async fn close(mut stream: TcpStream, version: Version) -> Result<(), BenchError> {
    let shown = peer(&stream)?.to_string();
    let mut out = Vec::new();
    encode::disconnect(&mut out, version, 0, None);
    stream.write_all(&out).await.map_err(BenchError::io(&shown))?;
    stream.shutdown().await.map_err(BenchError::io(&shown))
}

/// Whether the broker has ended it: nothing comes on an idle connection.
pub(crate) fn is_closed(stream: &TcpStream) -> bool {
    !matches!(stream.try_read(&mut [0; 64]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
}

/// Does a job for each number, some at a time; what came of them, in the order of their ends.
pub(crate) async fn each<T, F>(
    numbers: Range<u32>,
    at_a_time: usize,
    job: impl Fn(u32) -> F,
) -> Result<Vec<T>, BenchError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, BenchError>> + Send + 'static,
{
    let mut done = Vec::with_capacity(numbers.len());
    let mut running = JoinSet::new();
    for number in numbers {
        if running.len() >= at_a_time
            && let Some(end) = running.join_next().await
        {
            done.push(end.map_err(|_| BenchError::Task)??);
        }
        running.spawn(job(number));
    }
    while let Some(end) = running.join_next().await {
        done.push(end.map_err(|_| BenchError::Task)??);
    }
    Ok(done)
}

fn peer(stream: &TcpStream) -> Result<SocketAddr, BenchError> {
    stream.peer_addr().map_err(BenchError::io("a client's socket"))
}
