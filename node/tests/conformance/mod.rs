//! What the conformance tests share: one broker process for the tests of a file, and a client that says exactly what a
//! test wants to say. Tests have client identifiers and topics of their own, so that they run side by side.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub(crate) mod client;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use quorate_jepsen::harness::{Addresses, NodeProcess, Start, free_ports, http, wait_for};
use quorate_jepsen::wire::Version;
use tempfile::TempDir;

use client::{Client, Connect};

/// Longest wait for a broker to come up on a busy machine.
pub(crate) const START_MAX: Duration = Duration::from_secs(90);

/// A disk that others keep busy is no reason to turn clients away.
const PATIENT: [(&str, &str); 3] =
    [("node_timeout_ms", "60000"), ("quorum_grace_ms", "55000"), ("connect_deadline_ms", "60000")];

/// A broker process of one node.
pub(crate) struct Broker {
    pub(crate) node: NodeProcess,
    // Goes after the process.
    _dir: TempDir,
}

/// The broker that tests of this process share; it ends with the last of them.
pub(crate) fn broker() -> Arc<Broker> {
    static SHARED: Mutex<Weak<Broker>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let broker = Arc::new(Broker::start(&[]));
        *shared = Arc::downgrade(&broker);
        broker
    })
}

impl Broker {
    /// A broker with these settings (`receive_maximum` for `QUORATE_RECEIVE_MAXIMUM`).
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        let dir = TempDir::with_prefix("quorate-conformance-").unwrap();
        let ports = free_ports(3).unwrap();
        let at = Addresses::loopback(ports[0], ports[1], ports[2]);
        let mut node = NodeProcess::new(Path::new(env!("CARGO_BIN_EXE_quorate")), dir.path(), "n1", at);
        let variable = |(key, value): &(&str, &str)| (format!("QUORATE_{}", key.to_uppercase()), (*value).to_owned());
        node.env = PATIENT.iter().chain(settings).map(variable).collect();
        node.start(Start::Bootstrap).unwrap();
        let ready = wait_for("the broker welcomes clients", START_MAX, || {
            let answer = http::get(at.admin, "/health/ready").map_err(|e| e.to_string())?;
            if answer.status != 200 {
                return Err(answer.body);
            }
            // Ready comes before cluster time on a node's first start, and a CONNECT between them is refused.
            let ack = Client::open(at.mqtt, Version::V4).greet(&Connect::new(Version::V4, "welcome", true));
            if ack.reason() == 0 { Ok(()) } else { Err(format!("{ack:?}")) }
        });
        ready.unwrap_or_else(|e| panic!("{e}\n{}", node.log_tail()));
        Self { node, _dir: dir }
    }

    /// A test's view of it, in one version of the protocol.
    pub(crate) fn test(self: &Arc<Self>, version: Version) -> Test {
        let name = std::thread::current().name().unwrap_or("test").replace("::", "/");
        Test { broker: self.clone(), at: self.node.at.mqtt, version, name: format!("{name}-{version:?}") }
    }
}

/// A test in one version of the protocol, with names of its own.
pub(crate) struct Test {
    pub(crate) broker: Arc<Broker>,
    pub(crate) at: SocketAddr,
    pub(crate) version: Version,
    name: String,
}

/// Runs a test with 3.1.1 and with 5.0.
pub(crate) fn both(test: impl Fn(&Test)) {
    v4(&test);
    v5(&test);
}

/// Runs a test with 3.1.1.
pub(crate) fn v4(test: impl Fn(&Test)) {
    test(&broker().test(Version::V4));
}

/// Runs a test with 5.0.
pub(crate) fn v5(test: impl Fn(&Test)) {
    test(&broker().test(Version::V5));
}

impl Test {
    pub(crate) fn is_v5(&self) -> bool {
        self.version == Version::V5
    }

    /// A client identifier that only this test uses.
    pub(crate) fn id(&self, name: &str) -> String {
        format!("{}-{name}", self.name)
    }

    /// A topic that only this test uses.
    pub(crate) fn topic(&self, name: &str) -> String {
        format!("{}/{name}", self.name)
    }

    /// A CONNECT that asks for a session which ends with its connection.
    pub(crate) fn clean(&self, name: &str) -> Connect {
        Connect::new(self.version, &self.id(name), true)
    }

    /// A CONNECT that asks for the session that is there, or a new one, and for it to last.
    pub(crate) fn lasting(&self, name: &str) -> Connect {
        Connect::new(self.version, &self.id(name), false)
    }

    /// A connection on which nothing was said yet.
    pub(crate) fn open(&self) -> Client {
        Client::open(self.at, self.version)
    }

    /// A connected client whose session ends with its connection.
    pub(crate) fn client(&self, name: &str) -> Client {
        self.accepted(&self.clean(name)).0
    }

    /// A connected client whose session lasts, and whether there was one.
    pub(crate) fn resume(&self, name: &str) -> (Client, bool) {
        self.accepted(&self.lasting(name))
    }

    /// A client whose CONNECT is accepted, and Session Present.
    pub(crate) fn accepted(&self, connect: &Connect) -> (Client, bool) {
        let mut client = self.open();
        let ack = client.greet(connect);
        assert_eq!((ack.first, ack.reason()), (0x20, 0), "{ack:?}");
        (client, ack.body[0] == 1)
    }

    /// Another client publishes and has it acknowledged.
    pub(crate) fn publish(&self, topic: &str, qos: u8, payload: &str) {
        let mut publisher = self.client("publisher");
        publisher.publish(topic, qos, payload);
        publisher.disconnect();
    }

    /// Another client publishes with RETAIN and has it acknowledged.
    pub(crate) fn retain(&self, topic: &str, qos: u8, payload: &str) {
        let mut publisher = self.client("publisher");
        let id = publisher.fresh_id();
        publisher.publish_through(&client::Publish { retain: true, ..client::publish(topic, qos, id, payload) });
        publisher.disconnect();
    }
}
