//! Dialing peers, and where they are.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use quorate_store::ids::NodeId;
use tokio::time::timeout;

use super::hello::{LocalPeer, greet};
use super::{PeerConn, PeerTransport, Purpose};

/// Longest wait for connection and hello.
const DIAL_TIMEOUT: Duration = Duration::from_millis(1000);

/// Where each node's peer port is. What it said when it last talked to this node goes before what its last
/// committed start says, and that before where it joined.
#[derive(Clone, Debug, Default)]
pub(crate) struct AddressBook(Arc<RwLock<Addresses>>);

#[derive(Debug, Default)]
struct Addresses {
    members: BTreeMap<NodeId, String>,
    nodes: BTreeMap<NodeId, String>,
    said: BTreeMap<NodeId, String>,
}

impl AddressBook {
    /// Its address, if known.
    pub(crate) fn get(&self, node: NodeId) -> Option<String> {
        let book = self.0.read().unwrap_or_else(PoisonError::into_inner);
        book.said.get(&node).or_else(|| book.nodes.get(&node)).or_else(|| book.members.get(&node)).cloned()
    }

    /// Replaces what the membership says; who is no member any more is forgotten.
    pub(crate) fn set_members(&self, members: BTreeMap<NodeId, String>) {
        let mut book = self.0.write().unwrap_or_else(PoisonError::into_inner);
        book.said.retain(|node, _| members.contains_key(node));
        book.members = members;
    }

    /// A node has just said where it is.
    pub(crate) fn says(&self, node: NodeId, address: &str) {
        if node.0 == 0 || address.is_empty() || self.get(node).as_deref() == Some(address) {
            return;
        }
        self.0.write().unwrap_or_else(PoisonError::into_inner).said.insert(node, address.to_owned());
    }

    /// Replaces what the nodes said of themselves when they started.
    pub(crate) fn set_nodes(&self, nodes: BTreeMap<NodeId, String>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).nodes = nodes;
    }
}

/// Dials peers. Each call is a new connection; whoever dials keeps it for its purpose.
#[derive(Clone)]
pub(crate) struct PeerPool {
    local: LocalPeer,
    addresses: AddressBook,
    transport: Arc<dyn PeerTransport>,
    /// The address at which each node was last reached.
    reached: Arc<Mutex<BTreeMap<NodeId, String>>>,
}

impl PeerPool {
    /// For this node.
    pub(crate) fn new(local: LocalPeer, addresses: AddressBook, transport: Arc<dyn PeerTransport>) -> Self {
        Self { local, addresses, transport, reached: Arc::default() }
    }

    /// Where the nodes are.
    pub(crate) fn addresses(&self) -> &AddressBook {
        &self.addresses
    }

    /// Replaces what is known of the members; who is none any more is forgotten.
    pub(crate) fn set_members(&self, members: BTreeMap<NodeId, String>) {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).retain(|node, _| members.contains_key(node));
        self.addresses.set_members(members);
    }

    /// Connects to `node`.
    ///
    /// # Errors
    /// `NotFound` when its address is unknown, `PermissionDenied` when it refuses this node,
    /// `ConnectionRefused` when no process listens there, `TimedOut`.
    pub(crate) async fn dial(&self, node: NodeId, purpose: Purpose) -> io::Result<PeerConn> {
        let Some(address) = self.addresses.get(node) else {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("the address of node {node} is unknown")));
        };
        let (conn, _) = dial_address(&address, Some(&self.local), node, purpose, &*self.transport).await?;
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).insert(node, address);
        Ok(conn)
    }

    /// Whether `node` was reached where it is now said to be: only then does a refused connection mean that
    /// its process is gone.
    pub(crate) fn has_reached(&self, node: NodeId) -> bool {
        let address = self.addresses.get(node);
        address.is_some() && self.reached.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned() == address
    }
}

/// Connects to whatever node listens at `address` (`to` 0), or only to node `to`.
pub(crate) async fn dial_address(
    address: &str,
    local: Option<&LocalPeer>,
    to: NodeId,
    purpose: Purpose,
    transport: &dyn PeerTransport,
) -> io::Result<(PeerConn, LocalPeer)> {
    let connect = async {
        let stream = transport.connect(address).await?;
        greet(PeerConn::new(stream), local, to, purpose).await
    };
    timeout(DIAL_TIMEOUT, connect).await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))?
}
