//! The PROXY protocol, versions 1 and 2: a header before everything else, in which a proxy says for whom it speaks.
//!
//! A sans-IO parser of what one of our listeners needs: streams over IPv4, IPv6 and Unix sockets. It is strict: a
//! header that is not exactly right is none, because what decides on an address must not be guessed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ntex::codec::Decoder;
use ntex::util::BytesMut;
use thiserror::Error;

use super::options::ProxyHeader;

/// Longest line of version 1, with its end.
const V1_BYTES_MAX: usize = 107;
const V1_START: &[u8] = b"PROXY ";
const V2_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of version 2 up to the addresses.
const V2_HEAD_BYTES: usize = 16;
/// Longest header of version 2: the least that a first segment of TCP has room for.
const V2_BYTES_MAX: usize = 536;

/// Why the first bytes are no header that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadProxyHeader {
    /// Something else.
    #[error("the connection does not begin with the PROXY header that this listener wants")]
    Missing,
    /// Too long.
    #[error("the PROXY header is longer than {V1_BYTES_MAX} (version 1) or {V2_BYTES_MAX} bytes (version 2)")]
    TooLong,
    /// Not as it should be.
    #[error("the PROXY header is malformed: {0}")]
    Malformed(&'static str),
}

/// A header that has come whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its length; what follows is the connection.
    pub bytes: usize,
    /// For whom the proxy speaks; none when it speaks for itself or does not know.
    pub source: Option<SocketAddr>,
}

/// Reads the header at the beginning of `bytes`, `None` while it is not whole.
///
/// # Errors
/// [`BadProxyHeader`] as soon as the bytes cannot become the `wanted` header.
pub fn parse(bytes: &[u8], wanted: ProxyHeader) -> Result<Option<Header>, BadProxyHeader> {
    let begins = |start: &[u8]| bytes.iter().zip(start).all(|(a, b)| a == b);
    let (v1, v2) = match wanted {
        ProxyHeader::None => return Ok(Some(Header { bytes: 0, source: None })),
        ProxyHeader::V1 => (true, false),
        ProxyHeader::V2 => (false, true),
        ProxyHeader::Any => (true, true),
    };
    match () {
        () if v1 && begins(V1_START) => parse_v1(bytes),
        () if v2 && begins(V2_START) => parse_v2(bytes),
        () => Err(BadProxyHeader::Missing),
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<Header>, BadProxyHeader> {
    let within = bytes.get(..V1_BYTES_MAX).unwrap_or(bytes);
    let Some(end) = within.iter().position(|b| *b == b'\n') else {
        return if within.len() < V1_BYTES_MAX { Ok(None) } else { Err(BadProxyHeader::TooLong) };
    };
    let line = bytes.get(..end).and_then(|line| line.strip_suffix(b"\r"));
    let line = line.ok_or(BadProxyHeader::Malformed("its line does not end with CR LF"))?;
    let line = line.strip_prefix(V1_START).and_then(|line| std::str::from_utf8(line).ok());
    let line = line.ok_or(BadProxyHeader::Malformed("its line is no text"))?;
    let mut words = line.split(' ');
    let source = match words.next() {
        Some("UNKNOWN") => None,
        Some(family @ ("TCP4" | "TCP6")) => {
            let wrong = BadProxyHeader::Malformed("its line is not `FAMILY SOURCE DESTINATION PORT PORT`");
            let mut word = || words.next().ok_or(wrong);
            let addresses = [word()?, word()?].map(|text| match family {
                "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| wrong),
                _ => text.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| wrong),
            });
            let ports = [word()?, word()?].map(|text| port(text).ok_or(wrong));
            if words.next().is_some() {
                return Err(wrong);
            }
            let [source, destination] = addresses;
            let [source_port, destination_port] = ports;
            destination?;
            destination_port?;
            Some(SocketAddr::new(source?, source_port?))
        }
        _ => return Err(BadProxyHeader::Malformed("its family is not TCP4, TCP6 or UNKNOWN")),
    };
    Ok(Some(Header { bytes: end + 1, source }))
}

/// A port as it is written: digits, none too many.
fn port(text: &str) -> Option<u16> {
    let written = text.parse::<u16>().ok()?;
    (written.to_string() == text).then_some(written)
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Header>, BadProxyHeader> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    let Some(&[command, family, high, low]) = bytes.get(V2_START.len()..V2_HEAD_BYTES) else { return Ok(None) };
    if command != LOCAL && command != PROXY {
        return Err(BadProxyHeader::Malformed("its version is not 2, or its command is neither LOCAL nor PROXY"));
    }
    let total = V2_HEAD_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if total > V2_BYTES_MAX {
        return Err(BadProxyHeader::TooLong);
    }
    let Some(body) = bytes.get(V2_HEAD_BYTES..total) else { return Ok(None) };
    if command == LOCAL {
        return Ok(Some(Header { bytes: total, source: None })); // whatever else it says is to be ignored
    }
    let (source, rest) = addresses_v2(family, body)?;
    if !are_tlvs(rest) {
        return Err(BadProxyHeader::Malformed("what follows its addresses does not fit into it"));
    }
    Ok(Some(Header { bytes: total, source }))
}

/// The source, and what follows the addresses.
fn addresses_v2(family: u8, body: &[u8]) -> Result<(Option<SocketAddr>, &[u8]), BadProxyHeader> {
    const SHORT: BadProxyHeader = BadProxyHeader::Malformed("it is too short for its addresses");
    const UNIX_BYTES: usize = 216;
    match family {
        0x00 => Ok((None, body)),
        0x11 => {
            let (&[a, b, c, d, _, _, _, _, high, low, _, _], rest) = body.split_first_chunk().ok_or(SHORT)?;
            Ok((Some(SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low])))), rest))
        }
        0x21 => {
            let (source, rest) = body.split_first_chunk::<16>().ok_or(SHORT)?;
            let (_destination, rest) = rest.split_first_chunk::<16>().ok_or(SHORT)?;
            let (&[high, low, _, _], rest) = rest.split_first_chunk().ok_or(SHORT)?;
            Ok((Some(SocketAddr::from((*source, u16::from_be_bytes([high, low])))), rest))
        }
        0x31 => Ok((None, body.get(UNIX_BYTES..).ok_or(SHORT)?)),
        _ => Err(BadProxyHeader::Malformed("it is not for a stream over IPv4, IPv6 or a Unix socket")),
    }
}

/// Whether these are whole type-length-values. What they say is not needed.
fn are_tlvs(mut rest: &[u8]) -> bool {
    while !rest.is_empty() {
        let Some((&[_, high, low], value)) = rest.split_first_chunk() else { return false };
        let Some(after) = value.get(usize::from(u16::from_be_bytes([high, low]))..) else { return false };
        rest = after;
    }
    true
}

/// [`parse`] as ntex's `Io` wants it.
#[derive(Debug)]
pub(super) struct ProxyDecoder(pub(super) ProxyHeader);

impl Decoder for ProxyDecoder {
    type Item = Option<SocketAddr>;
    type Error = BadProxyHeader;

    fn decode(&self, src: &mut BytesMut) -> Result<Option<Self::Item>, BadProxyHeader> {
        let header = parse(src, self.0)?;
        Ok(header.map(|header| {
            src.advance_to(header.bytes);
            header.source
        }))
    }
}

#[cfg(test)]
mod tests;
