//! The bytes on disk and on the wire, held fast by fixtures in `raft/tests/golden`.
//!
//! A test that fails here means that a node of this build would not understand what an older one wrote.
//! `QUORATE_WRITE_GOLDEN=1` writes fixtures that do not exist yet; it never changes one that does.

use std::fmt::Debug;
use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use quorate_store::codec::{self, Enveloped};

/// The stored bytes, which must be these.
pub(crate) fn golden(name: &str, bytes: &[u8]) -> Bytes {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.bin"));
    if !path.exists() && std::env::var_os("QUORATE_WRITE_GOLDEN").is_some() {
        fs::write(&path, bytes).unwrap();
    }
    let stored = Bytes::from(fs::read(&path).unwrap());
    assert_eq!(stored, bytes, "{name}: the bytes have changed");
    stored
}

/// A frame's body, encoded, compared and decoded again.
pub(crate) fn frame<T: Enveloped + Debug>(name: &str, body: &T) -> T {
    let bytes = codec::encode(body).unwrap();
    let parts: Vec<u8> = codec::encode_parts(body).unwrap().concat();
    assert_eq!(parts, bytes, "in parts or whole, the bytes are the same");
    let read: T = codec::decode(&golden(name, &bytes)).unwrap();
    assert_eq!(format!("{read:?}"), format!("{body:?}"));
    read
}
