//! Waits until a peer is ready: by conditions, each with a bound, and with a word to who looks on.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use quorate_jepsen::wire::{Packet, Version, decode, encode, frame};

use super::process::Processes;
use crate::BenchError;
use crate::connection::client;

/// Longest time for one condition.
const READY_MAX: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// Between two words.
const WORD: Duration = Duration::from_secs(10);
/// Longest time for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Looks again and again until `look` has nothing to say against it.
pub(super) fn wait(
    processes: &mut Processes,
    what: &str,
    mut look: impl FnMut(&Processes) -> Result<(), String>,
) -> Result<(), BenchError> {
    let (start, mut last_word) = (Instant::now(), Instant::now());
    loop {
        let Err(last) = look(processes) else { return Ok(()) };
        processes.check()?;
        if start.elapsed() > READY_MAX {
            return Err(BenchError::NotWithin { what: what.to_owned(), bound: READY_MAX, last });
        }
        if last_word.elapsed() > WORD {
            eprintln!("still waiting for {what} ({:.0} s): {last}", start.elapsed().as_secs_f64());
            last_word = Instant::now();
        }
        std::thread::sleep(LOOK);
    }
}

/// Waits until a client with a persistent session is accepted there: what has no quorum yet refuses that.
pub(super) fn wait_client(processes: &mut Processes, at: SocketAddr) -> Result<(), BenchError> {
    wait(processes, &format!("a CONNACK from {at}"), |_| {
        connect(at, true)?;
        connect(at, false)
    })
}

/// Connects once; the second time, as a session that ends, what the first one left is gone.
fn connect(at: SocketAddr, is_persistent: bool) -> Result<(), String> {
    let shown = |e: std::io::Error| e.to_string();
    let mut stream = TcpStream::connect_timeout(&at, ANSWER_MAX).map_err(shown)?;
    stream.set_read_timeout(Some(ANSWER_MAX)).map_err(shown)?;
    let mut out = Vec::new();
    encode::connect(&mut out, Version::V4, &client(Version::V4, "bench-ready", is_persistent, true));
    stream.write_all(&out).map_err(shown)?;
    let (mut buffer, mut length) = ([0; 64], 0);
    loop {
        match stream.read(buffer.get_mut(length..).unwrap_or_default()).map_err(shown)? {
            0 => return Err("it closed the connection".to_owned()),
            bytes => length += bytes,
        }
        let read = buffer.get(..length).unwrap_or_default();
        if let Some(frame) = frame(read).map_err(|e| e.to_string())? {
            return match decode(&frame, Version::V4).map_err(|e| e.to_string())? {
                Packet::ConnAck { code: 0, .. } => {
                    out.clear();
                    encode::disconnect(&mut out, Version::V4, 0, None);
                    stream.write_all(&out).map_err(shown)
                }
                other => Err(format!("it answered {other:?}")),
            };
        }
    }
}
