//! A small MQTT client, 3.1.1 and 5.0: what `quorate pub`, `sub` and `demo` use.
//!
//! [`session`] holds all semantics without I/O, [`link`] moves bytes, [`Client`] joins the two and keeps the
//! connection alive. It never reconnects by itself: who uses it decides where and when.

pub mod codec;
pub mod link;
pub mod packet;
pub mod session;

use std::collections::VecDeque;
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

pub use link::{Link, LinkError};
pub use packet::{Qos, Version, reason_text};
pub use session::{Event, Message, Outgoing, Phases, ProtocolError, Session, SessionOptions};

/// Why a connection ended or did not begin.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The socket.
    #[error("{0}")]
    Link(#[from] LinkError),
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// CONNACK with a reason.
    #[error("the server refused the connection: {reason:#04x} {}{}", reason_text(*.reason), .detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused {
        /// Reason code.
        reason: u8,
        /// What the server said with it.
        detail: Option<String>,
    },
    /// DISCONNECT from the server.
    #[error("the server ended the connection: {reason:#04x} {}", reason_text(*.reason))]
    Disconnected {
        /// Reason code.
        reason: u8,
        /// Where it sends us.
        server_reference: Option<String>,
    },
    /// Nothing came for one and a half keep alives, or no CONNACK in time.
    #[error("the server does not answer")]
    Silent,
}

/// A session and its connection, when there is one.
#[derive(Debug)]
pub struct Client {
    session: Session,
    link: Option<Link>,
    events: VecDeque<Event>,
    last_heard: Instant,
    last_ping: Instant,
}

impl Client {
    /// A client that is not connected.
    #[must_use]
    pub fn new(options: SessionOptions) -> Self {
        let now = Instant::now();
        Self { session: Session::new(options), link: None, events: VecDeque::new(), last_heard: now, last_ping: now }
    }

    /// The session; what it wants to send goes out with the next [`Self::next`].
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Connects to `address` (`host:port`) and waits for CONNACK; answers Session Present.
    ///
    /// # Errors
    /// [`ClientError`]; the session is as it was.
    pub async fn connect(&mut self, address: &str, timeout: Duration) -> Result<bool, ClientError> {
        self.close();
        let earlier = std::mem::take(&mut self.events);
        let result = self.connect_anew(address, timeout).await;
        if result.is_err() {
            self.close();
        }
        let later = std::mem::replace(&mut self.events, earlier);
        self.events.extend(later);
        result
    }

    async fn connect_anew(&mut self, address: &str, timeout: Duration) -> Result<bool, ClientError> {
        let deadline = Instant::now() + timeout;
        let version = self.session.options().version;
        let link = tokio::time::timeout_at(deadline, Link::connect(address, version)).await;
        self.link = Some(link.map_err(|_| ClientError::Silent)??);
        self.session.connect();
        tokio::time::timeout_at(deadline, self.connected()).await.map_err(|_| ClientError::Silent)?
    }

    async fn connected(&mut self) -> Result<bool, ClientError> {
        match self.next().await? {
            Event::Connected { present } => Ok(present),
            Event::Refused { reason, detail } => Err(ClientError::Refused { reason, detail }),
            Event::Disconnected { reason, server_reference } => {
                Err(ClientError::Disconnected { reason, server_reference })
            }
            // The session gives nothing else before CONNACK.
            _ => Err(ClientError::Protocol(ProtocolError::OutOfPlace("a packet"))),
        }
    }

    /// Sends what the session wants to send and waits for the next event. May be dropped at any time.
    ///
    /// # Errors
    /// [`ClientError`]; the connection is closed, the session stays.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        let result = self.advance().await;
        match result {
            Ok(Event::Disconnected { reason, server_reference }) if self.session.is_open() => {
                self.close();
                Err(ClientError::Disconnected { reason, server_reference })
            }
            Ok(event) => Ok(event),
            Err(error) => {
                self.close();
                Err(error)
            }
        }
    }

    async fn advance(&mut self) -> Result<Event, ClientError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let Some(link) = &mut self.link else { return Err(LinkError::Closed.into()) };
            while let Some(packet) = self.session.next_packet() {
                link.queue(&packet)?;
            }
            let keep_alive = Duration::from_secs(self.session.options().keep_alive_s.max(1).into());
            // By the clock, not by silence: a server that we only listen to must hear of us, too.
            let ping_at = self.last_ping + keep_alive / 2;
            tokio::select! {
                packet = link.next() => {
                    self.last_heard = Instant::now();
                    let mut events = Vec::new();
                    self.session.receive(packet?, &mut events)?;
                    self.events.extend(events);
                }
                () = tokio::time::sleep_until(ping_at), if self.session.is_open() => {
                    if self.last_heard.elapsed() > keep_alive + keep_alive / 2 {
                        return Err(ClientError::Silent);
                    }
                    self.last_ping = Instant::now();
                    self.session.ping();
                }
            }
        }
    }

    /// Bytes that the server has not taken yet.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.link.as_ref().map_or(0, Link::unsent_bytes)
    }

    /// Says DISCONNECT and waits until it is sent.
    pub async fn disconnect(&mut self, timeout: Duration) {
        self.session.disconnect();
        if let Some(link) = &mut self.link {
            let flushed = async {
                while let Some(packet) = self.session.next_packet() {
                    link.queue(&packet)?;
                }
                link.flush().await
            };
            // Who does not take the last words in time misses them.
            let _ = tokio::time::timeout(timeout, flushed).await;
        }
        self.close();
    }

    /// Drops the connection without a word. What the session has told already stays to be read.
    pub fn close(&mut self) {
        self.link = None;
        self.session.lost();
        self.last_heard = Instant::now();
        self.last_ping = self.last_heard;
    }
}

/// `mqtt://host:port`, `host:port` or `host` as `host:port`.
#[must_use]
pub fn address_of(url: &str) -> String {
    let rest = url.strip_prefix("mqtt://").or_else(|| url.strip_prefix("tcp://")).unwrap_or(url).trim_end_matches('/');
    let has_port =
        rest.rsplit_once(':').is_some_and(|(host, port)| !host.ends_with(':') && port.parse::<u16>().is_ok());
    if has_port { rest.to_owned() } else { format!("{rest}:1883") }
}
