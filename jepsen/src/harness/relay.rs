//! A TCP relay in front of the nodes, one for each client: what a load balancer does.
//!
//! A client that knows one address reconnects to it and finds itself on the next node that accepts. The relay owns
//! its listener and the connections through it; it never looks at the bytes.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::HarnessError;

/// How long a node may take to accept.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// A relay. It stops accepting when it is dropped; connections through it live on until one side ends them.
#[derive(Debug)]
pub struct Relay {
    at: SocketAddr,
    is_over: Arc<AtomicBool>,
}

impl Relay {
    /// Listens on a loopback port of its own. The first connection goes to `nodes[first]`, each later one to the next.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(nodes: Vec<SocketAddr>, first: usize) -> Result<Self, HarnessError> {
        let listen = || -> io::Result<(TcpListener, SocketAddr)> {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let at = listener.local_addr()?;
            Ok((listener, at))
        };
        let (listener, at) = listen().map_err(HarnessError::io("starting a relay"))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, turn) = (Arc::clone(&is_over), AtomicUsize::new(first));
        thread::spawn(move || {
            for client in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                // A client that finds no node is dropped, as a load balancer does, and comes again.
                if let (Ok(client), Some(node)) = (client, next_node(&nodes, &turn)) {
                    join(&client, &node);
                }
            }
        });
        Ok(Self { at, is_over })
    }

    /// Where clients connect to.
    #[must_use]
    pub const fn at(&self) -> SocketAddr {
        self.at
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Wakes the accepting thread; that nobody listens any more is as good.
        drop(TcpStream::connect_timeout(&self.at, CONNECT_MAX));
    }
}

/// Connects to the node whose turn it is, or to the next that accepts.
fn next_node(nodes: &[SocketAddr], turn: &AtomicUsize) -> Option<TcpStream> {
    for _ in 0..nodes.len() {
        let at = turn.fetch_add(1, Ordering::Relaxed) % nodes.len();
        if let Some(stream) = nodes.get(at).and_then(|node| TcpStream::connect_timeout(node, CONNECT_MAX).ok()) {
            return Some(stream);
        }
    }
    None
}

/// Copies both ways until either side ends, then ends both.
fn join(client: &TcpStream, node: &TcpStream) {
    for (from, to) in [(client, node), (node, client)] {
        let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { return };
        drop(from.set_nodelay(true));
        thread::spawn(move || {
            // However it ended, both sides are over: a reset of one is a close of the other.
            drop(io::copy(&mut from, &mut to));
            drop(from.shutdown(Shutdown::Both));
            drop(to.shutdown(Shutdown::Both));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn each_connection_goes_to_the_next_node_that_accepts() {
        let nodes: Vec<TcpListener> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let mut at: Vec<SocketAddr> = nodes.iter().map(|n| n.local_addr().unwrap()).collect();
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        at.insert(1, gone);
        let relay = Relay::start(at, 0).unwrap();
        for node in &nodes {
            let mut client = TcpStream::connect(relay.at()).unwrap();
            let (mut served, _) = node.accept().unwrap();
            client.write_all(b"ping").unwrap();
            let mut got = [0; 4];
            served.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"ping");
            drop(served);
            assert_eq!(client.read(&mut got).unwrap(), 0, "the node's end reaches the client");
        }
    }
}
