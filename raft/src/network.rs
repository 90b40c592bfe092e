//! openraft's network over [`crate::raft_link`]: append streams, votes, transfer of leadership, snapshots.
//!
//! A network of openraft's is for one target and one use (replication, heartbeats, snapshots); all of them
//! share the one Raft connection to the target. Refused connections are `Unreachable`, so that openraft
//! backs off; what breaks midway is a `Network` error, which it retries at once.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use quorate_store::ids::NodeId;

use crate::execution::Execution;
use crate::raft_link::{AppendEntriesRequest, AppendStream, RaftLink, RaftLinks, StreamAppendResult};
use crate::snapshot_transfer;
use crate::snapshots::SnapshotData;
use crate::types::{Member, Snapshot, Types, Vote};
use crate::wire::{Answer, Call, VoteCall};

/// Between attempts to reach a peer: the last one repeats.
const BACKOFF_MS: [u64; 4] = [20, 50, 100, 250];

type Error = RPCError<Types>;

/// Makes networks.
pub(crate) struct Networks {
    links: RaftLinks,
    execution: Execution,
}

impl Networks {
    pub(crate) fn new(links: RaftLinks, execution: Execution) -> Self {
        Self { links, execution }
    }

    fn network(&self, target: u64, urgent: bool) -> Network {
        let (target, links) = (NodeId(target), self.links.clone());
        Network { target, link: links.to(target), links, urgent, execution: self.execution }
    }
}

impl RaftNetworkFactory<Types> for Networks {
    type Network = Network;

    async fn new_client(&mut self, target: u64, _: &Member) -> Network {
        self.network(target, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _: &Member) -> Network {
        self.network(target, true)
    }
}

/// To one peer.
pub(crate) struct Network {
    target: NodeId,
    link: Arc<RaftLink>,
    links: RaftLinks,
    urgent: bool,
    execution: Execution,
}

fn rpc_error(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::InvalidData => Error::Network(NetworkError::new(error)),
        _ => Error::Unreachable(Unreachable::new(error)),
    }
}

fn unexpected(answer: &Answer) -> Error {
    Error::Unreachable(Unreachable::from_string(format!("the peer answered {answer:?}")))
}

/// What [`Network::stream_append`] unfolds.
struct Streaming<S> {
    input: S,
    link: Arc<RaftLink>,
    urgent: bool,
    /// Opened with the first request: openraft's backoff is in the request stream, so a peer that cannot be
    /// reached is dialed no more often than that allows.
    stream: Option<AppendStream>,
    input_ended: bool,
    done: bool,
}

impl<S> Streaming<S>
where
    S: Stream<Item = AppendEntriesRequest> + OptionalSend + Unpin + 'static,
{
    /// The next answer. Requests go out meanwhile, as long as the window has room.
    async fn next(&mut self) -> Option<Result<StreamAppendResult, Error>> {
        if self.stream.is_none() && !self.done {
            let first = self.input.next().await?;
            if let Err(error) = self.begin(&first).await {
                self.done = true;
                return Some(Err(rpc_error(&error)));
            }
        }
        let stream = self.stream.as_mut()?;
        while !(self.done || self.input_ended && stream.in_flight() == 0) {
            tokio::select! {
                biased;
                answer = stream.answer() => {
                    // After a conflict or a higher vote openraft begins anew.
                    self.done = answer.as_ref().is_none_or(Result::is_err);
                    let gone = || Error::Network(NetworkError::from_string("the append stream broke"));
                    return Some(answer.ok_or_else(gone));
                }
                request = self.input.next(), if !self.input_ended && stream.has_room() => {
                    let sent = match request {
                        Some(request) => stream.send(&request).await,
                        None => {
                            self.input_ended = true;
                            stream.end().await
                        }
                    };
                    if let Err(error) = sent {
                        self.done = true;
                        return Some(Err(rpc_error(&error)));
                    }
                }
            }
        }
        None
    }

    async fn begin(&mut self, first: &AppendEntriesRequest) -> io::Result<()> {
        let stream = self.stream.insert(self.link.stream(self.urgent).await?);
        stream.send(first).await
    }
}

impl RaftNetworkV2<Types> for Network {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, Error> {
        // openraft itself only streams; this is the same for one request.
        let once = stream::iter([request]);
        let mut answers = self.stream_append(once, option).await?;
        match answers.next().await {
            Some(answer) => Ok(answer?.into()),
            None => Err(Error::Network(NetworkError::from_string("no answer"))),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult, Error>>, Error>>
    where
        S: Stream<Item = AppendEntriesRequest> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let (link, urgent) = (self.link.clone(), self.urgent);
            let streaming = Streaming { input, link, urgent, stream: None, input_ended: false, done: false };
            let answers = stream::unfold(streaming, |mut streaming| async move {
                let answer = streaming.next().await?;
                Some((answer, streaming))
            });
            let answers: BoxStream<'s, _> = Box::pin(answers);
            Ok(answers)
        })
    }

    async fn vote(&mut self, request: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, Error> {
        let call = Call::Vote(VoteCall::from(&request));
        match self.link.call(call, option.soft_ttl()).await.map_err(|e| rpc_error(&e))? {
            Answer::Vote(answer) => Ok(answer.into()),
            other => Err(unexpected(&other)),
        }
    }

    async fn pre_vote(&mut self, request: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, Error> {
        let call = Call::PreVote(VoteCall::from(&request));
        match self.link.call(call, option.soft_ttl()).await.map_err(|e| rpc_error(&e))? {
            Answer::Vote(answer) => Ok(answer.into()),
            other => Err(unexpected(&other)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, Error> {
        match self.link.call(Call::transfer(&request), option.soft_ttl()).await.map_err(|e| rpc_error(&e))? {
            Answer::Transfer(None) => Ok(Ok(())),
            Answer::Transfer(Some(refused)) => Ok(Err(refused.into_error())),
            other => Err(unexpected(&other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = snapshot_transfer::send(self.links.pool(), self.execution, self.target, &vote, &snapshot) => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(error) => Err(rpc_error(&error).into()),
            },
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        let [.., last] = BACKOFF_MS;
        let delays = BACKOFF_MS.into_iter().chain(std::iter::repeat(last));
        Some(Backoff::new(delays.map(Duration::from_millis)))
    }
}
