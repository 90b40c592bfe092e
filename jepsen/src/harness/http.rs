//! Just enough HTTP/1.1 for a broker's REST API: one request, one connection, the whole answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::HarnessError;

/// How long a broker may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

/// GET.
///
/// # Errors
/// When nothing that is HTTP comes back in time.
pub fn get(to: SocketAddr, path: &str) -> Result<Answer, HarnessError> {
    request(to, "GET", path, None)
}

/// Any method, with a JSON body if there is one.
///
/// # Errors
/// When nothing that is HTTP comes back in time.
pub fn request(to: SocketAddr, method: &str, path: &str, json: Option<&str>) -> Result<Answer, HarnessError> {
    request_within(to, method, path, json, ANSWER_MAX)
}

/// As [`request`], of a broker that may be cut off, frozen or slow.
///
/// # Errors
/// When nothing that is HTTP comes back within `bound` (of connecting, and of each read).
pub fn request_within(
    to: SocketAddr,
    method: &str,
    path: &str,
    json: Option<&str>,
    bound: Duration,
) -> Result<Answer, HarnessError> {
    let what = format!("{method} http://{to}{path}");
    let raw = exchange(to, method, path, json, bound).map_err(HarnessError::io(what.clone()))?;
    parse(&raw).ok_or_else(|| HarnessError::Answer { what, answer: String::from_utf8_lossy(&raw).into_owned() })
}

fn exchange(to: SocketAddr, method: &str, path: &str, json: Option<&str>, bound: Duration) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&to, bound)?;
    stream.set_read_timeout(Some(bound))?;
    let body = json.unwrap_or_default();
    let kind = if json.is_some() { "Content-Type: application/json\r\n" } else { "" };
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n{kind}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw)?;
    Ok(raw)
}

fn parse(raw: &[u8]) -> Option<Answer> {
    let text = std::str::from_utf8(raw).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if is_chunked { joined(body)? } else { body.to_owned() };
    Some(Answer { status, body })
}

/// The chunks of a chunked body as one.
fn joined(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn answers_are_read_whole_and_in_chunks() {
        let whole = parse(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
        assert_eq!((whole.status, whole.body.as_str()), (200, "{}"));
        let chunks =
            parse(b"HTTP/1.1 503 x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n").unwrap();
        assert_eq!((chunks.status, chunks.body.as_str()), (503, "abc"));
        assert!(parse(b"nonsense").is_none());
    }
}
