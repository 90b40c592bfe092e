//! Joining: a machine asks any node of the cluster to be admitted, and is told who it is.
//!
//! The joiner's token, kept in its data directory, makes it idempotent: however often it asks, it is the
//! same node. A node that does not lead passes the request on to the leader, which allocates the id in the
//! log and adds the node as a learner; [`crate::membership`] promotes it when it has caught up.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bincode::{Decode, Encode};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use quorate_store::codec::{self, Enveloped, Kind, Payload};
use quorate_store::command::NodeInfo;
use quorate_store::ids::NodeId;
use thiserror::Error;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::identity::ClusterId;
use crate::peer::{PeerConn, PeerService, PeerTransport, Purpose, dial_address};

const KIND_JOIN: u8 = 10;
const KIND_GRANTED: u8 = 11;
const KIND_REFUSED: u8 = 12;

/// Longest wait for an admission: it is a log entry and a membership change.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// A request is passed on at most once: it says so.
const REQUESTS_PER_CONNECTION_MAX: usize = 16;

/// What a machine that wants to join says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct JoinRequest {
    /// [`crate::identity::DataDir::join_token`].
    pub token: u128,
    /// Its name and addresses.
    pub info: NodeInfo,
    /// Not promoted to voter when it has caught up.
    pub stays_learner: bool,
}

/// Who it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinGrant {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its id, for ever.
    pub node: NodeId,
}

/// Why a machine was not admitted.
#[derive(Clone, Debug, Error)]
pub enum JoinError {
    /// No leader was reached. Try again.
    #[error("no leader could be reached: {0}; try again when the cluster has one")]
    NoLeader(String),
    /// The cluster says no.
    #[error("the cluster does not admit this node: {0}")]
    Refused(String),
}

#[derive(Debug, Encode, Decode)]
struct JoinBody {
    request: JoinRequest,
    /// By another node: this one must be the leader.
    passed_on: bool,
}

#[derive(Debug, Encode, Decode)]
struct GrantBody {
    cluster: u128,
    node: u64,
}

#[derive(Debug, Encode, Decode)]
struct RefusalBody {
    /// Nothing is wrong with the request, there is just no leader.
    no_leader: bool,
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
frames!(JoinBody, GrantBody, RefusalBody);

/// Admits nodes: [`crate::Cluster`].
pub(crate) trait Admission: Send + Sync + 'static {
    /// On the leader: allocates, adds. Elsewhere, unless `passed_on`: asks the leader.
    fn admit(&self, request: JoinRequest, passed_on: bool) -> BoxFuture<'_, Result<JoinGrant, JoinError>>;
}

/// Serves [`Purpose::Control`].
pub(crate) struct ControlService {
    admission: Arc<dyn Admission>,
}

impl ControlService {
    pub(crate) fn new(admission: Arc<dyn Admission>) -> Self {
        Self { admission }
    }
}

fn encode<T: Enveloped>(value: &T) -> io::Result<Bytes> {
    codec::encode(value).map_err(io::Error::other)
}

fn decode<T: Enveloped>(body: &Bytes) -> io::Result<T> {
    codec::decode(body).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

impl PeerService for ControlService {
    fn purpose(&self) -> Purpose {
        Purpose::Control
    }

    fn serve(self: Arc<Self>, from: NodeId, conn: PeerConn) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Err(error) = serve_connection(&*self.admission, conn).await {
                warn!(%from, %error, "a control connection broke");
            }
        })
    }
}

async fn serve_connection(admission: &dyn Admission, mut conn: PeerConn) -> io::Result<()> {
    for _ in 0..REQUESTS_PER_CONNECTION_MAX {
        let Some(frame) = conn.recv().await? else { return Ok(()) };
        if frame.kind != KIND_JOIN {
            let what = format!("a frame of kind {} on a control connection", frame.kind);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let JoinBody { request, passed_on } = decode(&frame.body)?;
        info!(name = %request.info.name, peer = %request.info.peer, passed_on, "a node asks to join");
        let (kind, body) = match admission.admit(request, passed_on).await {
            Ok(grant) => (KIND_GRANTED, encode(&GrantBody { cluster: grant.cluster.0, node: grant.node.0 })?),
            Err(error) => {
                let no_leader = matches!(error, JoinError::NoLeader(_));
                let (JoinError::NoLeader(why) | JoinError::Refused(why)) = error;
                (KIND_REFUSED, encode(&RefusalBody { no_leader, why })?)
            }
        };
        conn.send(kind, body).await?;
        conn.flush().await?;
    }
    Ok(())
}

/// Asks over an open control connection.
pub(crate) async fn ask(conn: &mut PeerConn, request: &JoinRequest, passed_on: bool) -> Result<JoinGrant, JoinError> {
    let asked = async {
        conn.send(KIND_JOIN, encode(&JoinBody { request: request.clone(), passed_on })?).await?;
        conn.flush().await?;
        conn.recv().await?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    };
    let no_leader = |e: io::Error| JoinError::NoLeader(e.to_string());
    let answer = match timeout(JOIN_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(no_leader)?,
        Err(_) => return Err(JoinError::NoLeader("no answer in time".into())),
    };
    match answer.kind {
        KIND_GRANTED => {
            let grant: GrantBody = decode(&answer.body).map_err(no_leader)?;
            Ok(JoinGrant { cluster: ClusterId(grant.cluster), node: NodeId(grant.node) })
        }
        KIND_REFUSED => {
            let refusal: RefusalBody = decode(&answer.body).map_err(no_leader)?;
            Err(if refusal.no_leader { JoinError::NoLeader(refusal.why) } else { JoinError::Refused(refusal.why) })
        }
        other => Err(JoinError::NoLeader(format!("a frame of kind {other} where an answer belongs"))),
    }
}

/// Asks the nodes at `peers`, one after the other, until one admits this machine.
pub(crate) async fn join_through(
    peers: &[String],
    request: &JoinRequest,
    transport: &dyn PeerTransport,
) -> Result<JoinGrant, JoinError> {
    let mut last = JoinError::NoLeader("no peer address was given".into());
    for peer in peers {
        let asked = match dial_address(peer, None, NodeId(0), Purpose::Control, transport).await {
            Ok((mut conn, _)) => ask(&mut conn, request, false).await,
            Err(error) => Err(JoinError::NoLeader(format!("{peer}: {error}"))),
        };
        match asked {
            Ok(grant) => return Ok(grant),
            Err(error) => {
                warn!(%peer, %error, "not admitted through this peer");
                last = error;
            }
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::frame;

    #[test]
    fn joining_keeps_its_bytes() {
        let text = |s: &str| s.to_owned();
        let info = NodeInfo { name: text("a"), mqtt: text("m:1"), peer: text("p:1"), admin: text("d:1") };
        let request = JoinRequest { token: 77, info, stays_learner: true };
        frame("join", &JoinBody { request, passed_on: false });
        frame("join-granted", &GrantBody { cluster: 5, node: 4 });
        frame("join-refused", &RefusalBody { no_leader: true, why: text("there is no leader just now") });
    }
}
