//! MQTT inside of a WebSocket: frames in, bytes out, and the other way round.
//!
//! A filter of ntex between the socket (or TLS) and MQTT. A frame's payload is passed on as it comes, so that what
//! waits in memory is bounded by MQTT packets and not by frames, whose borders mean nothing [MQTT-6.0.0-2]. ntex has
//! such a filter too; it holds whole frames, and takes frames that RFC 6455 wants refused.

use std::cell::{Cell, RefCell};
use std::io;
use std::task::Poll;

use ntex::io::{FilterBuf, FilterLayer};
use ntex::util::{BytePages, BytesMut};

/// Longest payload of a control frame (RFC 6455 §5.5).
const CONTROL_BYTES_MAX: usize = 125;

/// Codes of a Close frame (RFC 6455 §7.4.1).
const CLOSE_NORMAL: u16 = 1000;
const CLOSE_PROTOCOL: u16 = 1002;
const CLOSE_UNSUPPORTED: u16 = 1003;

/// Opcodes (RFC 6455 §5.2).
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Why a client's frames are not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} (WebSocket close code {code})")]
pub(super) struct Violation {
    code: u16,
    what: &'static str,
}

const fn violation(what: &'static str) -> Violation {
    Violation { code: CLOSE_PROTOCOL, what }
}

/// What a client says about the WebSocket itself.
#[derive(Debug, PartialEq, Eq)]
enum Control {
    Ping(Vec<u8>),
    Close(u16),
}

/// A data frame of which not all has come.
#[derive(Debug)]
struct Payload {
    mask: [u8; 4],
    left: u64,
}

/// Takes the frames of a client apart.
#[derive(Debug, Default)]
struct Reader {
    payload: Option<Payload>,
    /// Between the first and the last frame of a message.
    is_fragmented: bool,
}

/// The head of a frame.
struct Head {
    is_final: bool,
    opcode: u8,
    len: u64,
    mask: [u8; 4],
    bytes: usize,
}

impl Head {
    fn read(bytes: &[u8]) -> Result<Option<Self>, Violation> {
        let Some((&[first, second], rest)) = bytes.split_first_chunk() else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(violation("a frame uses an extension that was not agreed upon"));
        }
        if second & 0x80 == 0 {
            return Err(violation("a frame of a client is not masked"));
        }
        let (is_final, opcode) = (first & 0x80 != 0, first & 0x0F);
        let (len, len_bytes) = match second & 0x7F {
            126 => match rest.first_chunk() {
                Some(len) => (u64::from(u16::from_be_bytes(*len)), 2),
                None => return Ok(None),
            },
            127 => match rest.first_chunk() {
                Some(len) => (u64::from_be_bytes(*len), 8),
                None => return Ok(None),
            },
            len => (u64::from(len), 0),
        };
        if (len_bytes == 2 && len < 126) || (len_bytes == 8 && len <= u64::from(u16::MAX)) || len > u64::MAX >> 1 {
            return Err(violation("a frame's length is not written as it must be"));
        }
        if opcode >= CLOSE && (!is_final || len > CONTROL_BYTES_MAX as u64) {
            return Err(violation("a control frame is fragmented or longer than 125 bytes"));
        }
        let Some(mask) = rest.get(len_bytes..).and_then(<[u8]>::first_chunk) else { return Ok(None) };
        Ok(Some(Self { is_final, opcode, len, mask: *mask, bytes: 2 + len_bytes + 4 }))
    }
}

impl Reader {
    /// Takes what is whole from the front of `input`; payload goes to `out`. How much was taken.
    fn read(
        &mut self,
        input: &[u8],
        out: &mut BytesMut,
        control: &mut impl FnMut(Control),
    ) -> Result<usize, Violation> {
        let mut taken = 0;
        loop {
            let rest = input.get(taken..).unwrap_or_default();
            if let Some(payload) = &mut self.payload {
                let n = usize::try_from(payload.left).unwrap_or(usize::MAX).min(rest.len());
                let start = out.len();
                out.extend_from_slice(rest.get(..n).unwrap_or_default());
                unmask(out.get_mut(start..).unwrap_or_default(), payload.mask);
                payload.mask.rotate_left(n % 4);
                payload.left -= n as u64;
                taken += n;
                if payload.left > 0 {
                    return Ok(taken);
                }
                self.payload = None;
                continue;
            }
            let Some(head) = Head::read(rest)? else { return Ok(taken) };
            match head.opcode {
                BINARY if self.is_fragmented => return Err(violation("a message begins inside of another one")),
                CONTINUATION if !self.is_fragmented => return Err(violation("a message goes on that has not begun")),
                BINARY | CONTINUATION => {
                    self.is_fragmented = !head.is_final;
                    self.payload = Some(Payload { mask: head.mask, left: head.len });
                    taken += head.bytes;
                }
                TEXT => {
                    let what = "MQTT comes in binary frames only [MQTT-6.0.0-1]";
                    return Err(Violation { code: CLOSE_UNSUPPORTED, what });
                }
                CLOSE | PING | PONG => {
                    let Some(payload) = rest.get(head.bytes..head.bytes + head.len as usize) else {
                        return Ok(taken);
                    };
                    let mut payload = payload.to_vec();
                    unmask(&mut payload, head.mask);
                    taken += head.bytes + payload.len();
                    match (head.opcode, payload.as_slice()) {
                        (PING, _) => control(Control::Ping(payload)),
                        (PONG, _) => {}
                        (_, []) => return closed(CLOSE_NORMAL, taken, control),
                        (_, &[high, low, ..]) => return closed(u16::from_be_bytes([high, low]), taken, control),
                        (_, _) => return Err(violation("a Close frame has half a code")),
                    }
                }
                _ => return Err(violation("a frame of an unknown kind")),
            }
        }
    }
}

fn closed(code: u16, taken: usize, control: &mut impl FnMut(Control)) -> Result<usize, Violation> {
    control(Control::Close(code));
    Ok(taken)
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    for (byte, key) in bytes.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= key;
    }
}

/// Writes the head of a frame that is whole and not masked, as a server's are.
fn write_head(opcode: u8, len: usize, out: &mut BytePages) {
    let first = 0x80 | opcode;
    match len {
        0..=125 => out.extend_from_slice(&[first, len as u8]),
        126..=0xFFFF => {
            out.extend_from_slice(&[first, 126]);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.extend_from_slice(&[first, 127]);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

fn write_close(code: u16, out: &mut BytePages) {
    write_head(CLOSE, 2, out);
    out.extend_from_slice(&code.to_be_bytes());
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct WebSocket {
    reader: RefCell<Reader>,
    /// A Close frame was sent: nothing more is said, and nothing more is heard.
    is_closing: Cell<bool>,
}

impl WebSocket {
    fn close(&self, code: u16, buf: &FilterBuf<'_>) {
        if !self.is_closing.replace(true) {
            buf.with_write_buffers(|_, out| write_close(code, out));
        }
    }
}

impl FilterLayer for WebSocket {
    fn process_read_buf(&self, buf: &FilterBuf<'_>) -> io::Result<()> {
        buf.with_read_buffers(|input, out| {
            let Some(input) = input else { return };
            if self.is_closing.get() {
                input.clear();
                return;
            }
            let mut code = None;
            let read = self.reader.borrow_mut().read(input, out, &mut |control| match control {
                // A client that does not read its answers gets no more of them.
                Control::Ping(_) if buf.io().is_wr_backpressure() => {}
                Control::Ping(payload) => buf.with_write_buffers(|_, out| {
                    write_head(PONG, payload.len(), out);
                    out.extend_from_slice(&payload);
                }),
                Control::Close(with) => code = Some(with),
            });
            match read {
                Ok(taken) => input.advance_to(taken),
                Err(violation) => {
                    tracing::debug!(%violation, "a WebSocket was closed");
                    code = Some(violation.code);
                }
            }
            if let Some(code) = code {
                input.clear();
                self.close(code, buf);
                buf.io().close();
            }
        });
        Ok(())
    }

    fn process_write_buf(&self, buf: &FilterBuf<'_>) -> io::Result<()> {
        buf.with_write_buffers(|input, out| {
            if self.is_closing.get() {
                input.clear();
            } else if !input.is_empty() {
                write_head(BINARY, input.len(), out); // [MQTT-6.0.0-1]
                while let Some(page) = input.take() {
                    out.append(page);
                }
            }
        });
        Ok(())
    }

    fn shutdown(&self, buf: &FilterBuf<'_>) -> io::Result<Poll<()>> {
        self.process_write_buf(buf)?;
        self.close(CLOSE_NORMAL, buf);
        Ok(Poll::Ready(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 250];
        let mut bytes = vec![first];
        match payload.len() {
            len @ 0..=125 => bytes.push(0x80 | len as u8),
            len @ 126..=0xFFFF => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                bytes.push(0x80 | 127);
                bytes.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&mask);
        let mut masked = payload.to_vec();
        unmask(&mut masked, mask);
        bytes.extend_from_slice(&masked);
        bytes
    }

    /// What comes out when the bytes come in pieces of `n`.
    fn read(bytes: &[u8], n: usize) -> Result<(Vec<u8>, Vec<Control>), Violation> {
        let (mut reader, mut out, mut controls) = (Reader::default(), BytesMut::new(), Vec::new());
        let mut input = Vec::new();
        for piece in bytes.chunks(n.max(1)) {
            input.extend_from_slice(piece);
            let taken = reader.read(&input, &mut out, &mut |control| controls.push(control))?;
            input.drain(..taken);
            if controls.iter().any(|control| matches!(control, Control::Close(_))) {
                break; // nothing more is heard
            }
            assert!(input.len() < 14 + CONTROL_BYTES_MAX, "no more waits than a head and a control frame");
        }
        Ok((out.to_vec(), controls))
    }

    /// [MQTT-6.0.0-2]
    #[test]
    fn packets_may_span_frames_and_share_them() {
        let bytes = [
            frame(0x02, b"\x10\x0c\x00"),
            frame(0x89, b"hello"),
            frame(0x00, b"\x04MQ"),
            frame(0x80, b""),
            frame(0x82, &[7; 70_000]),
            frame(0x88, &[0x03, 0xE9]),
        ]
        .concat();
        let want = [&b"\x10\x0c\x00\x04MQ"[..], &[7; 70_000]].concat();
        for n in [1, 2, 3, 1000, usize::MAX] {
            let controls = vec![Control::Ping(b"hello".to_vec()), Control::Close(1001)];
            assert_eq!(read(&bytes, n), Ok((want.clone(), controls)));
        }
    }

    /// [MQTT-6.0.0-1]
    #[test]
    fn what_rfc_6455_or_mqtt_forbids_is_refused() {
        for (bytes, code) in [
            (frame(0x81, b"text"), 1003),
            (frame(0x01, b"text"), 1003),
            (vec![0x82, 3, 1, 2, 3], 1002),
            (frame(0xC2, b"x"), 1002),
            (frame(0x92, b"x"), 1002),
            (frame(0x83, b"x"), 1002),
            (frame(0x8B, b"x"), 1002),
            (frame(0x80, b"x"), 1002),
            ([frame(0x02, b"x"), frame(0x82, b"y")].concat(), 1002),
            (frame(0x09, b"x"), 1002),
            (frame(0x89, &[0; 126]), 1002),
            (frame(0x88, b"x"), 1002),
            (vec![0x82, 0xFE, 0, 125, 0, 0, 0, 0], 1002),
            (vec![0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0, 0, 0], 1002),
            (vec![0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1002),
        ] {
            for n in [1, usize::MAX] {
                assert_eq!(read(&bytes, n).map_err(|v| v.code), Err(code), "{bytes:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Whatever comes: no panic, and pieces say what the whole says.
        #[test]
        fn pieces_say_what_the_whole_says(bytes in prop::collection::vec(any::<u8>(), 0..400), n in 1_usize..20) {
            let (whole, pieces) = (read(&bytes, usize::MAX), read(&bytes, n));
            if let (Ok(whole), Ok(pieces)) = (&whole, &pieces) && whole.1.iter().all(|c| !matches!(c, Control::Close(_))) {
                prop_assert_eq!(whole, pieces);
            }
        }
    }
}
