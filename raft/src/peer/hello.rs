//! The first frames of a connection: both sides say which cluster and node they are.
//!
//! The dialer speaks first. A hello of another cluster, to another node than the one listening, or of an
//! unknown purpose or protocol is answered with a refusal that says what, why and what to do; nothing
//! else is ever exchanged with such a peer.

use std::io;
use std::sync::Arc;

use bincode::{Decode, Encode};
use bytes::Bytes;
use quorate_store::codec::{self, Enveloped, Kind, Payload};
use quorate_store::ids::NodeId;

use super::{PeerConn, Purpose};
use crate::identity::ClusterId;

/// Version of what the frames mean. Raised when an older build could not follow.
pub(crate) const PROTOCOL_VERSION: u16 = 1;

const KIND_HELLO: u8 = 0;
const KIND_WELCOME: u8 = 1;
const KIND_REFUSED: u8 = 2;

/// Who a node is, to its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalPeer {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    /// Random, new for each start of the process: a peer that comes back with another one has died between.
    pub(crate) boot: u64,
    /// Where its peer port is: whoever talks to it knows this before its `NodeStarted` is committed.
    pub(crate) address: Arc<str>,
}

#[derive(Debug, Encode, Decode)]
struct Hello {
    protocol: u16,
    cluster: u128,
    node: u64,
    boot: u64,
    address: String,
    /// Whom the dialer wants; 0: whoever listens there.
    to: u64,
    purpose: u8,
}

#[derive(Debug, Encode, Decode)]
struct Welcome {
    cluster: u128,
    node: u64,
    boot: u64,
    address: String,
}

#[derive(Debug, Encode, Decode)]
struct Refused {
    why: String,
}

macro_rules! frames {
    ($($name:ty),*) => {$(
        impl Enveloped for $name {
            const KIND: Kind = Kind::Frame;
            fn payloads(&self, _: &mut dyn FnMut(&Payload)) {}
        }
    )*};
}
frames!(Hello, Welcome, Refused);

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn encode<T: Enveloped>(value: &T) -> io::Result<Bytes> {
    codec::encode(value).map_err(|e| invalid(e.to_string()))
}

/// The dialer's side. `local` is `None` for a node that has not joined yet; `to` is 0 for whoever listens.
///
/// # Errors
/// `PermissionDenied` with the other side's reason when it refuses.
pub(super) async fn greet(
    mut conn: PeerConn,
    local: Option<&LocalPeer>,
    to: NodeId,
    purpose: Purpose,
) -> io::Result<(PeerConn, LocalPeer)> {
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        cluster: local.map_or(0, |l| l.cluster.0),
        node: local.map_or(0, |l| l.node.0),
        boot: local.map_or(0, |l| l.boot),
        address: local.map_or_else(String::new, |l| l.address.to_string()),
        to: to.0,
        purpose: purpose as u8,
    };
    conn.send(KIND_HELLO, encode(&hello)?).await?;
    conn.flush().await?;
    let answer = conn.recv().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    match answer.kind {
        KIND_WELCOME => {
            let welcome: Welcome = codec::decode(&answer.body).map_err(|e| invalid(e.to_string()))?;
            let peer = LocalPeer {
                cluster: ClusterId(welcome.cluster),
                node: NodeId(welcome.node),
                boot: welcome.boot,
                address: welcome.address.into(),
            };
            conn.established(peer.node, peer.boot, purpose);
            Ok((conn, peer))
        }
        KIND_REFUSED => {
            let refused: Refused = codec::decode(&answer.body).map_err(|e| invalid(e.to_string()))?;
            Err(io::Error::new(io::ErrorKind::PermissionDenied, refused.why))
        }
        other => Err(invalid(format!("a frame of kind {other} where an answer to the hello belongs"))),
    }
}

/// The listener's side.
///
/// With where the dialer says that it listens.
///
/// # Errors
/// When the dialer was refused; it has been told.
pub(super) async fn receive(mut conn: PeerConn, local: &LocalPeer) -> io::Result<(PeerConn, String)> {
    let frame = conn.recv().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    if frame.kind != KIND_HELLO {
        return Err(invalid(format!("a frame of kind {} where a hello belongs", frame.kind)));
    }
    let hello: Hello = codec::decode(&frame.body).map_err(|e| invalid(e.to_string()))?;
    match judge(&hello, local) {
        Ok(purpose) => {
            let welcome = Welcome {
                cluster: local.cluster.0,
                node: local.node.0,
                boot: local.boot,
                address: local.address.to_string(),
            };
            conn.send(KIND_WELCOME, encode(&welcome)?).await?;
            conn.flush().await?;
            conn.established(NodeId(hello.node), hello.boot, purpose);
            Ok((conn, hello.address))
        }
        Err(why) => {
            conn.send(KIND_REFUSED, encode(&Refused { why: why.clone() })?).await?;
            conn.flush().await?;
            Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
        }
    }
}

fn judge(hello: &Hello, local: &LocalPeer) -> Result<Purpose, String> {
    if hello.protocol != PROTOCOL_VERSION {
        return Err(format!(
            "node {} speaks peer protocol {PROTOCOL_VERSION}, the caller {}: run compatible versions of quorate",
            local.node, hello.protocol
        ));
    }
    let Some(purpose) = Purpose::from_u8(hello.purpose) else {
        return Err(format!("purpose {} is unknown to node {}: upgrade it", hello.purpose, local.node));
    };
    let newcomer = hello.cluster == 0 && hello.node == 0 && purpose == Purpose::Control;
    if !newcomer && hello.cluster != local.cluster.0 {
        return Err(format!(
            "node {} belongs to cluster {}, the caller to cluster {}: check the address, or start the caller on an empty data directory to join here",
            local.node,
            local.cluster,
            ClusterId(hello.cluster)
        ));
    }
    if hello.to != 0 && hello.to != local.node.0 {
        return Err(format!("this is node {}, not node {}: an address was reused", local.node, hello.to));
    }
    if hello.node == local.node.0 {
        return Err(format!(
            "the caller says it is node {}, as this one is: is a copy of its data directory running elsewhere?",
            local.node
        ));
    }
    Ok(purpose)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::frame;

    #[test]
    fn the_hello_keeps_its_bytes() {
        let (cluster, address) = (0x0123_4567_89ab_cdef_u128, String::from("a.example:7400"));
        let hello = Hello { protocol: 1, cluster, node: 2, boot: 5, address: address.clone(), to: 3, purpose: 4 };
        frame("hello", &hello);
        frame("hello-welcome", &Welcome { cluster, node: 3, boot: 6, address });
        frame("hello-refused", &Refused { why: "this is node 3, not node 2".into() });
    }
}
