//! The HTTP request that turns a connection into a WebSocket (RFC 6455 §4.2), sans IO: bytes in, answer out.

use std::fmt::Write as _;

use httparse::{EMPTY_HEADER, Header, Request, Status};
use ntex::codec::Decoder;
use ntex::util::BytesMut;

/// Longest request.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Most headers of one.
const HEADERS_MAX: usize = 64;
/// What MQTT is called among the protocols of WebSockets, and its version 3.1.
const PROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];

/// A request that is not granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {text}")]
pub(super) struct Refused {
    /// Its line.
    status: &'static str,
    /// Headers that only this answer has.
    headers: &'static str,
    /// What the client reads.
    text: &'static str,
}

const fn bad(text: &'static str) -> Refused {
    Refused { status: "400 Bad Request", headers: "", text }
}

impl Refused {
    /// The answer, after which the connection is closed.
    pub(super) fn answer(&self) -> Vec<u8> {
        let Self { status, headers, text } = self;
        format!(
            "HTTP/1.1 {status}\r\n{headers}Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{text}\n",
            text.len() + 1
        )
        .into_bytes()
    }
}

/// Waits for the request, as ntex's `Io` wants it. What comes out is the answer that grants it.
#[derive(Debug)]
pub(super) struct Upgrade<'a> {
    /// The path that the listener has.
    pub(super) path: &'a str,
    /// Pages that may come; empty: all.
    pub(super) origins: &'a [String],
}

impl Decoder for Upgrade<'_> {
    type Item = Vec<u8>;
    type Error = Refused;

    fn decode(&self, src: &mut BytesMut) -> Result<Option<Vec<u8>>, Refused> {
        let Some((bytes, answer)) = self.answer(src)? else { return Ok(None) };
        src.advance_to(bytes);
        Ok(Some(answer))
    }
}

impl Upgrade<'_> {
    /// The length of the request and the answer to it, `None` while it is not whole.
    fn answer(&self, bytes: &[u8]) -> Result<Option<(usize, Vec<u8>)>, Refused> {
        let mut headers = [EMPTY_HEADER; HEADERS_MAX];
        let mut request = Request::new(&mut headers);
        let within = bytes.get(..REQUEST_BYTES_MAX).unwrap_or(bytes);
        let len = match request.parse(within) {
            Ok(Status::Complete(len)) => len,
            Ok(Status::Partial) if within.len() < REQUEST_BYTES_MAX => return Ok(None),
            Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                let status = "431 Request Header Fields Too Large";
                return Err(Refused { status, headers: "", text: "The request is longer than 8 KiB or 64 headers." });
            }
            Err(_) => return Err(bad("This is no HTTP request: MQTT is spoken through a WebSocket here.")),
        };
        let path = request.path.unwrap_or_default();
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        if path != self.path {
            return Err(Refused { status: "404 Not Found", headers: "", text: "There is no WebSocket at this path." });
        }
        if request.method != Some("GET") || request.version != Some(1) {
            return Err(bad("A WebSocket begins with GET and HTTP/1.1."));
        }
        let (key, protocol) = check(request.headers, self.origins)?;
        let accept = ntex::ws::hash_key(key.as_bytes()).map_err(|_| bad("Sec-WebSocket-Key is too long."))?;
        let mut answer =
            String::from("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
        // [MQTT-6.0.0-4]
        let _ = write!(answer, "Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n");
        Ok(Some((len, answer.into_bytes())))
    }
}

/// The key, and the protocol that is spoken.
fn check<'a>(headers: &[Header<'a>], origins: &[String]) -> Result<(&'a str, &'static str), Refused> {
    let has_token = |name: &str, token: &str| tokens(headers, name).any(|t| t.eq_ignore_ascii_case(token));
    if values(headers, "Host").count() != 1 {
        return Err(bad("The request needs one Host header."));
    }
    if !has_token("Upgrade", "websocket") || !has_token("Connection", "upgrade") {
        return Err(bad("MQTT is spoken through a WebSocket here: the request asks for no upgrade to one."));
    }
    if values(headers, "Content-Length").any(|len| len != "0") || values(headers, "Transfer-Encoding").next().is_some()
    {
        return Err(bad("A request for a WebSocket has no body."));
    }
    if values(headers, "Sec-WebSocket-Version").ne(["13"]) {
        let headers = "Sec-WebSocket-Version: 13\r\n";
        return Err(Refused {
            status: "426 Upgrade Required",
            headers,
            text: "Only version 13 of WebSocket is spoken.",
        });
    }
    let mut keys = values(headers, "Sec-WebSocket-Key");
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Err(bad("The request needs one Sec-WebSocket-Key."));
    };
    // 16 bytes in base64.
    let is_base64 = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    if key.len() != 24 || !key.strip_suffix("==").is_some_and(|digits| digits.bytes().all(is_base64)) {
        return Err(bad("Sec-WebSocket-Key is not 16 bytes in base64."));
    }
    if !origins.is_empty()
        && let Some(origin) = values(headers, "Origin").find(|origin| !origins.iter().any(|of| of == origin))
    {
        tracing::debug!(origin, "a WebSocket of a page that is not let in");
        let text = "This page may not open a WebSocket here: its origin is not among those of the listener.";
        return Err(Refused { status: "403 Forbidden", headers: "", text });
    }
    // [MQTT-6.0.0-3]
    let protocol = tokens(headers, "Sec-WebSocket-Protocol").find_map(|t| PROTOCOLS.into_iter().find(|p| *p == t));
    let protocol = protocol.ok_or(bad("The client must offer `mqtt` in Sec-WebSocket-Protocol."))?;
    Ok((key, protocol))
}

fn values<'a>(headers: &[Header<'a>], name: &str) -> impl Iterator<Item = &'a str> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| std::str::from_utf8(header.value).unwrap_or_default().trim())
}

/// The parts of a header that is a list.
fn tokens<'a>(headers: &[Header<'a>], name: &str) -> impl Iterator<Item = &'a str> {
    values(headers, name).flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "GET /mqtt?x=1 HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: other, mqtt\r\nOrigin: https://a.example\r\n\r\n";

    fn answer(request: &str, origins: &[&str]) -> Result<Option<(usize, Vec<u8>)>, Refused> {
        let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
        Upgrade { path: "/mqtt", origins: &origins }.answer(request.as_bytes())
    }

    /// [MQTT-6.0.0-4]: the protocol that the client offered is the one that the server names.
    #[test]
    fn a_good_request_is_granted_with_its_protocol() {
        let (len, granted) = answer(&format!("{REQUEST}\x10\x0c"), &[]).unwrap().unwrap();
        let granted = String::from_utf8(granted).unwrap();
        assert_eq!(len, REQUEST.len(), "what follows is frames");
        assert!(granted.starts_with("HTTP/1.1 101 "), "{granted}");
        // The example of RFC 6455 §1.3.
        assert!(granted.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{granted}");
        assert!(granted.ends_with("Sec-WebSocket-Protocol: mqtt\r\n\r\n"), "{granted}");
        let old = REQUEST.replace("other, mqtt", "mqttv3.1");
        let (_, granted) = answer(&old, &[]).unwrap().unwrap();
        assert!(String::from_utf8(granted).unwrap().ends_with("Sec-WebSocket-Protocol: mqttv3.1\r\n\r\n"));
        for end in 0..REQUEST.len() {
            assert_eq!(answer(&REQUEST[..end], &[]), Ok(None), "{end}");
        }
    }

    /// What a client must offer is the rule 6.0.0-3, for clients.
    #[test]
    fn a_bad_request_is_answered_with_what_is_wrong() {
        for (from, to, status, text) in [
            ("/mqtt", "/", "404", "no WebSocket at this path"),
            ("GET", "POST", "400", "begins with GET"),
            ("HTTP/1.1", "HTTP/1.0", "400", "HTTP/1.1"),
            ("Host: a\r\n", "", "400", "Host"),
            ("Upgrade: WebSocket\r\n", "", "400", "no upgrade"),
            ("keep-alive, Upgrade", "keep-alive", "400", "no upgrade"),
            ("Version: 13", "Version: 8", "426", "version 13"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "short", "400", "16 bytes in base64"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZ!==", "400", "16 bytes in base64"),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", "400", "Sec-WebSocket-Key"),
            ("other, mqtt", "other, MQTT", "400", "must offer `mqtt`"),
            ("Sec-WebSocket-Protocol: other, mqtt\r\n", "", "400", "must offer `mqtt`"),
            ("Host: a", "Host: a\r\nContent-Length: 5", "400", "no body"),
            ("GET /mqtt", "\x10\x0c\x00\x04MQTT", "400", "no HTTP request"),
        ] {
            assert!(REQUEST.contains(from), "{from}");
            let refused = answer(&REQUEST.replace(from, to), &[]).unwrap_err();
            let said = String::from_utf8(refused.answer()).unwrap();
            assert!(said.starts_with(&format!("HTTP/1.1 {status} ")) && said.contains(text), "{from} -> {to}: {said}");
        }
    }

    #[test]
    fn only_pages_of_the_origins_open_a_websocket_when_there_are_some() {
        assert!(answer(REQUEST, &["https://b.example", "https://a.example"]).is_ok());
        assert!(
            answer(&REQUEST.replace("Origin: https://a.example\r\n", ""), &["https://b.example"]).is_ok(),
            "no page"
        );
        assert_eq!(answer(REQUEST, &["https://b.example"]).unwrap_err().status, "403 Forbidden");
    }

    #[test]
    fn a_request_is_bounded() {
        let long = REQUEST.replace("Origin: https://a.example", &format!("X: {}", "x".repeat(9000)));
        assert!(answer(&long, &[]).unwrap_err().status.starts_with("431 "));
        let many = REQUEST.replace("Origin: https://a.example", &"X: y\r\n".repeat(70));
        assert!(answer(&many, &[]).unwrap_err().status.starts_with("431 "));
    }
}
