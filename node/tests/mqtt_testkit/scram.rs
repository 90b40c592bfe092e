//! A client's side of SCRAM-SHA-256 (RFC 5802), written on its own, and the packets that carry it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use super::client::{packet, string};

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// PBKDF2 with one block.
fn salted(password: &str, salt: &[u8], iterations: u32) -> [u8; 32] {
    let mut u = hmac(password.as_bytes(), &[salt, &[0, 0, 0, 1]].concat());
    let mut salted = u;
    for _ in 1..iterations {
        u = hmac(password.as_bytes(), &u);
        salted.iter_mut().zip(u).for_each(|(a, b)| *a ^= b);
    }
    salted
}

/// Between its two messages.
pub(crate) struct Scram {
    first_bare: String,
    password: String,
    /// What the server has to prove.
    server_final: String,
}

impl Scram {
    pub(crate) fn new(user: &str, password: &str, nonce: &str) -> Self {
        let first_bare = format!("n={user},r={nonce}");
        Self { first_bare, password: password.to_owned(), server_final: String::new() }
    }

    pub(crate) fn first(&self) -> String {
        format!("n,,{}", self.first_bare)
    }

    /// Answers server-first.
    pub(crate) fn last(&mut self, server_first: &str) -> String {
        let attributes: Vec<&str> = server_first.split(',').collect();
        let [nonce, salt, iterations] = attributes[..] else { panic!("{server_first}") };
        let salt = BASE64.decode(salt.strip_prefix("s=").unwrap()).unwrap();
        let salted = salted(&self.password, &salt, iterations.strip_prefix("i=").unwrap().parse().unwrap());
        let mut proof = hmac(&salted, b"Client Key");
        let stored = Sha256::digest(proof);
        let without_proof = format!("c=biws,{nonce}");
        let signed = format!("{},{server_first},{without_proof}", self.first_bare);
        proof.iter_mut().zip(hmac(&stored, signed.as_bytes())).for_each(|(a, b)| *a ^= b);
        let server = hmac(&hmac(&salted, b"Server Key"), signed.as_bytes());
        self.server_final = format!("v={}", BASE64.encode(server));
        format!("{without_proof},p={}", BASE64.encode(proof))
    }

    /// What the server must say at the end.
    pub(crate) fn server_final(&self) -> &str {
        &self.server_final
    }
}

/// Authentication Method and Data as properties.
pub(crate) fn properties(method: &str, data: &str) -> Vec<u8> {
    [&[0x15][..], &string(method), &[0x16], &string(data)].concat()
}

/// AUTH.
pub(crate) fn auth(reason: u8, method: &str, data: &str) -> Vec<u8> {
    let properties = properties(method, data);
    let n = properties.len();
    let length = if n < 128 { vec![n as u8] } else { vec![(n & 127) as u8 | 0x80, (n >> 7) as u8] };
    packet(0xF0, &[&[reason][..], &length, &properties].concat())
}

/// Method and data among the properties of a packet, which start after their length at `at`.
pub(crate) fn auth_of(body: &[u8], at: usize) -> (String, String) {
    let mut rest = &body[at + if body[at] < 0x80 { 1 } else { 2 }..];
    let (mut method, mut data) = (String::new(), String::new());
    while let Some((id, fields)) = rest.split_first() {
        let field = || {
            let n = usize::from(u16::from_be_bytes([fields[0], fields[1]]));
            (String::from_utf8(fields[2..2 + n].to_vec()).unwrap(), &fields[2 + n..])
        };
        rest = match id {
            0x15 => {
                let (text, rest) = field();
                method = text;
                rest
            }
            0x16 => {
                let (text, rest) = field();
                data = text;
                rest
            }
            0x11 | 0x27 => &fields[4..],
            0x21 | 0x22 | 0x13 => &fields[2..],
            0x2A | 0x24 | 0x25 | 0x28 | 0x29 => &fields[1..],
            other => panic!("property {other:#x}"),
        };
    }
    (method, data)
}
