//! Peers on loopback: who is let in, and what comes through.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use quorate_store::ids::{GroupId, NodeId};

use super::*;
use crate::identity::ClusterId;

/// Sends back what comes.
struct Echo(Purpose);

impl PeerService for Echo {
    fn purpose(&self) -> Purpose {
        self.0
    }

    fn serve(self: Arc<Self>, _: NodeId, mut conn: PeerConn) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while let Ok(Some(frame)) = conn.recv().await {
                if conn.send(frame.kind, frame.body).await.is_err() || conn.flush().await.is_err() {
                    return;
                }
            }
        })
    }
}

fn local(cluster: u128, node: u64) -> LocalPeer {
    LocalPeer { cluster: ClusterId(cluster), node: NodeId(node), boot: 5, address: format!("said:{node}").into() }
}

/// Node 1 of cluster 7, and a pool of `caller`'s that knows it as `name`.
async fn listening(caller: LocalPeer, name: NodeId) -> (JoinHandle<()>, PeerPool) {
    listening_with(caller, name, None, None).await
}

async fn listening_with(
    caller: LocalPeer,
    name: NodeId,
    server: Option<PeerTls>,
    client: Option<PeerTls>,
) -> (JoinHandle<()>, PeerPool) {
    let listener = PeerListener::bind("127.0.0.1:0", &*Tcp::transport(server)).await.unwrap();
    let addresses = AddressBook::default();
    addresses.set_members(BTreeMap::from([(name, listener.local_addr().unwrap().to_string())]));
    let services: Vec<Arc<dyn PeerService>> = vec![Arc::new(Echo(Purpose::QoS0)), Arc::new(Echo(Purpose::Control))];
    (
        tokio::spawn(listener.run(local(7, 1), addresses.clone(), services)),
        PeerPool::new(caller, addresses, Tcp::transport(client)),
    )
}

fn refusal(refused: io::Result<PeerConn>) -> String {
    let error = refused.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    error.to_string()
}

#[tokio::test]
async fn frames_of_any_size_come_through_in_order() {
    let (server, pool) = listening(local(7, 2), NodeId(1)).await;
    assert!(!pool.has_reached(NodeId(1)));
    let mut conn = pool.dial(NodeId(1), Purpose::QoS0).await.unwrap();
    assert!(pool.has_reached(NodeId(1)));
    assert_eq!((conn.peer(), conn.peer_boot(), conn.purpose()), (NodeId(1), 5, Purpose::QoS0));
    let said = pool.addresses().get(NodeId(2));
    assert_eq!(said.as_deref(), Some("said:2"), "the listener knows where the dialer is");
    let sizes = [0, 1, 100, 5000, 70_000, 3 << 20, 2];
    let body = |n: usize| Bytes::from(vec![n as u8; n]);
    let (mut sender, mut receiver) = {
        for n in [3, 4] {
            conn.send(9, body(n)).await.unwrap();
            conn.flush().await.unwrap();
            assert_eq!(conn.recv().await.unwrap().unwrap().body, body(n));
        }
        conn.into_split()
    };
    let sending = tokio::spawn(async move {
        for n in sizes {
            sender.send_parts(10, [body(n), body(n / 2)]).await.unwrap();
        }
        sender.flush().await.unwrap();
        sender
    });
    for n in sizes {
        let frame = timeout(Duration::from_secs(20), receiver.recv()).await.unwrap().unwrap().unwrap();
        assert_eq!((frame.kind, frame.group), (10, GroupId::MAIN));
        assert_eq!(frame.body, [body(n), body(n / 2)].concat());
    }
    assert!(receiver.try_recv().unwrap().is_none());
    sending.await.unwrap().shutdown().await.unwrap();
    assert!(receiver.recv().await.unwrap().is_none());
    server.abort();
}

#[tokio::test]
async fn a_node_of_another_cluster_is_told_so() {
    let (server, pool) = listening(local(8, 2), NodeId(1)).await;
    let why = refusal(pool.dial(NodeId(1), Purpose::Raft).await);
    assert!(why.contains("belongs to cluster 00000000000000000000000000000007"), "{why}");
    assert!(why.contains("empty data directory"), "{why}");
    server.abort();
}

#[tokio::test]
async fn a_reused_address_and_a_copied_data_directory_are_noticed() {
    let (server, pool) = listening(local(7, 2), NodeId(3)).await;
    assert!(refusal(pool.dial(NodeId(3), Purpose::Raft).await).contains("this is node 1, not node 3"));
    server.abort();
    let (server, pool) = listening(local(7, 1), NodeId(1)).await;
    assert!(refusal(pool.dial(NodeId(1), Purpose::Raft).await).contains("copy of its data directory"));
    server.abort();
}

#[tokio::test]
async fn a_newcomer_may_only_ask_to_join() {
    let (server, pool) = listening(local(7, 2), NodeId(1)).await;
    let address = pool.addresses().get(NodeId(1)).unwrap();
    let (conn, peer) = dial_address(&address, None, NodeId(0), Purpose::Control, &*Tcp::transport(None)).await.unwrap();
    assert_eq!((conn.peer(), peer.cluster, &*peer.address), (NodeId(1), ClusterId(7), "said:1"));
    let refused = dial_address(&address, None, NodeId(0), Purpose::QoS0, &*Tcp::transport(None)).await;
    assert!(refusal(refused.map(|(conn, _)| conn)).contains("belongs to cluster"));
    server.abort();
}

#[tokio::test]
async fn nobody_listening_is_refused_and_an_unknown_node_not_found() {
    let (server, pool) = listening(local(7, 2), NodeId(1)).await;
    drop(pool.dial(NodeId(1), Purpose::QoS0).await.unwrap());
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    let kind = |refused: io::Result<PeerConn>| refused.unwrap_err().kind();
    assert_eq!(kind(pool.dial(NodeId(1), Purpose::QoS0).await), io::ErrorKind::ConnectionRefused);
    assert_eq!(kind(pool.dial(NodeId(3), Purpose::QoS0).await), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn what_a_node_says_of_itself_goes_before_the_membership() {
    let book = AddressBook::default();
    book.set_members(BTreeMap::from([(NodeId(1), "old:1".into()), (NodeId(2), "two:1".into())]));
    book.set_nodes(BTreeMap::from([(NodeId(1), "new:1".into())]));
    assert_eq!(book.get(NodeId(1)).as_deref(), Some("new:1"));
    assert_eq!(book.get(NodeId(2)).as_deref(), Some("two:1"));
    assert_eq!(book.get(NodeId(3)), None);
    book.says(NodeId(2), "now:1");
    book.says(NodeId(0), "nobody:1");
    assert_eq!((book.get(NodeId(2)).as_deref(), book.get(NodeId(0))), (Some("now:1"), None));
    // Who left is forgotten.
    book.set_members(BTreeMap::from([(NodeId(1), "old:1".into())]));
    assert_eq!(book.get(NodeId(2)), None);
}

/// With a certificate that a test authority signed (`raft/tests/tls`), or as a client without one.
fn tls(has_certificate: bool) -> PeerTls {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
    let read = |name: &str| std::fs::read(format!("{}/tests/tls/{name}.der", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let key = || PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(read("node-key")));
    let chain = || vec![CertificateDer::from(read("node"))];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(read("ca"))).unwrap();
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots.clone());
    let client = if has_certificate {
        client.with_client_auth_cert(chain(), key()).unwrap()
    } else {
        client.with_no_client_auth()
    };
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build().unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(), key())
        .unwrap();
    PeerTls::new(Arc::new(client), Arc::new(server), "quorate-peer".try_into().unwrap())
}

#[tokio::test]
async fn with_tls_both_sides_show_a_certificate() {
    let (server, pool) = listening_with(local(7, 2), NodeId(1), Some(tls(true)), Some(tls(true))).await;
    let mut conn = pool.dial(NodeId(1), Purpose::QoS0).await.unwrap();
    let body = Bytes::from(vec![9; 3 << 20]);
    conn.send(10, body.clone()).await.unwrap();
    conn.flush().await.unwrap();
    assert_eq!(timeout(Duration::from_secs(20), conn.recv()).await.unwrap().unwrap().unwrap().body, body);
    server.abort();

    for client in [Some(tls(false)), None] {
        let (server, pool) = listening_with(local(7, 2), NodeId(1), Some(tls(true)), client).await;
        assert!(pool.dial(NodeId(1), Purpose::QoS0).await.is_err());
        server.abort();
    }
}
