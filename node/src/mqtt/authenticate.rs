//! Finds out who a client is before it has a session: asks the chain, and waits for what takes time without blocking
//! the worker, as long as the client waits too.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use ntex::io::{IoBoxed, IoStatusUpdate};
use ntex::util::Either;

use super::auth::scram::{self, Exchange};
use super::auth::{Attempt, Identity, Judgement, Refused};
use super::conn::says_goodbye;
use super::listen::{Arrival, AuthMethod, Client};
use super::packet::{AuthData, Connect, Outgoing, Packet, Secret};
use super::reason::Reason;
use super::wire::{self, Wire};
use super::worker::Worker;

/// Who the client is, or why it is not let in. `None` when it does not wait for the answer any more.
pub(super) async fn authenticate(
    io: &IoBoxed,
    wire: &Wire,
    client: &Client,
    arrival: &Arrival,
    worker: &Worker,
    connect: &Connect,
) -> Option<Result<Identity, Reason>> {
    // Who is refused anyway costs nothing more.
    if arrival.refusal().is_some() || worker.unavailable().is_some() {
        return Some(Err(Reason::SERVER_UNAVAILABLE));
    }
    let judgement = {
        let access = worker.access();
        let listener = &arrival.listener.options;
        let certificate_user = client.certificate_user.as_deref();
        let attempt = Attempt {
            connect,
            listener,
            peer: client.peer,
            is_unknown: client.is_unknown,
            certificate_user,
            access: &access,
        };
        worker.shared.authenticator.judge(attempt)
    };
    let result = match judgement {
        Judgement::Now(result) => result,
        // In a box of its own: a connection that needs none of it has no room for it.
        slow => Box::pin(wait_for(io, wire, worker, slow)).await?,
    };
    // What was checked may have changed since.
    let result = result.and_then(|identity| {
        let refused = Refused { method: Some(identity.method), reason: Reason::NOT_AUTHORIZED };
        if identity.holds(&worker.access()) { Ok(identity) } else { Err(refused) }
    });
    worker.mailbox.stats.judged(result.as_ref().map(|identity| identity.method).map_err(|refused| refused.method));
    if let Err(refused) = &result {
        worker.tell_sparsely(|more| {
            let (client_id, user) = (connect.client_id.as_str(), connect.username.as_deref());
            tracing::warn!(client_id, user, peer = ?client.peer, ?refused, more, "a client was not let in");
        });
    }
    Some(result.map_err(|refused| refused.reason))
}

async fn wait_for(
    io: &IoBoxed,
    wire: &Wire,
    worker: &Worker,
    judgement: Judgement,
) -> Option<Result<Identity, Refused>> {
    match judgement {
        Judgement::Now(result) => Some(result),
        Judgement::Later(verdict) => Some(match while_client_waits(io, worker, verdict).await? {
            Some(result) => result,
            // It is this node that was too slow.
            None => Err(Refused { method: None, reason: Reason::SERVER_BUSY }),
        }),
        Judgement::Exchange(exchange) => {
            let timeout = worker.shared.options.connect_timeout;
            tokio::time::timeout(timeout, exchange_packets(io, wire, *exchange)).await.ok()?
        }
    }
}

/// Waits for `future` as long as the client does: `None` when it is gone. `Some(None)`: the time to connect is over.
async fn while_client_waits<T>(
    io: &IoBoxed,
    worker: &Worker,
    mut future: impl Future<Output = T> + Unpin,
) -> Option<Option<T>> {
    let options = &worker.shared.options;
    let mut over = pin!(tokio::time::sleep(options.connect_timeout));
    let mut said_goodbye = false;
    poll_fn(|cx| {
        if let Poll::Ready(output) = pin!(&mut future).poll(cx) {
            return Poll::Ready(Some(Some(output)));
        }
        if over.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(None));
        }
        io.poll_dispatch(cx);
        while !said_goodbye && let Poll::Ready(status) = io.poll_status_update(cx) {
            match status {
                IoStatusUpdate::PeerGone(_) => {
                    // What it sent before it said goodbye counts, if it may come in.
                    said_goodbye = says_goodbye(io, options.packet_bytes_max);
                    if !said_goodbye {
                        return Poll::Ready(None);
                    }
                }
                IoStatusUpdate::WriteBackpressure => break,
                IoStatusUpdate::KeepAlive => {}
            }
        }
        Poll::Pending
    })
    .await
}

/// Enhanced authentication before CONNACK: nothing but AUTH comes from the client, or DISCONNECT [MQTT-3.1.2-30].
async fn exchange_packets(io: &IoBoxed, wire: &Wire, exchange: Exchange) -> Option<Result<Identity, Refused>> {
    let refused = |reason| Some(Err(Refused { method: Some(AuthMethod::Scram), reason }));
    let data = Some(Secret(bytes::Bytes::copy_from_slice(exchange.server_first().as_bytes())));
    let auth = Box::new(AuthData { method: scram::METHOD.to_owned(), data });
    let more = Outgoing::Auth(Reason::CONTINUE_AUTHENTICATION, auth); // [MQTT-4.12.0-2]
    io.with_write_buf(|buffer| wire::encode(wire.version(), &more, buffer)).ok()?;
    let auth = match io.recv(wire).await {
        Ok(Some(Packet::Auth(auth))) => auth,
        Ok(Some(Packet::Disconnect { .. }) | None) | Err(Either::Right(_)) => return None,
        Ok(Some(_)) => return refused(Reason::PROTOCOL_ERROR),
        Err(Either::Left(reject)) => return refused(reject.reason),
    };
    let Some(answer) = auth.auth.filter(|answer| answer.method == scram::METHOD) else {
        return refused(Reason::PROTOCOL_ERROR); // [MQTT-4.12.0-5]
    };
    if auth.reason != Reason::CONTINUE_AUTHENTICATION {
        return refused(Reason::PROTOCOL_ERROR);
    }
    let data = answer.data.as_ref().map(|data| &data.0[..]).unwrap_or_default();
    match exchange.finish(data, rand::random()) {
        Ok(identity) => Some(Ok(identity)),
        Err(bad) => refused(bad.reason()),
    }
}
