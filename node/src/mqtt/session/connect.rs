//! CONNECT and CONNACK: one command opens, resumes or takes over the session; its outcome says how the
//! client finds it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use quorate_store::command::{self, Command};
use quorate_store::delayed;
use quorate_store::effect::Connected;
use quorate_store::ids::{ClusterTime, QueueSeq};

use super::access::Principal;
use super::outbox::{Outbox, Start};
use super::rate::Rate;
use super::requests::Wait;
use super::{Ending, Now, Output, Session, State, offer};
use crate::mqtt::auth::Identity;
use crate::mqtt::options::MqttOptions;
use crate::mqtt::packet::{ConnAck, Connect, Granted, Outgoing, Version};
use crate::mqtt::reason::Reason;
use crate::mqtt::wire;

/// Whether this node takes the client at all: quorum, connection limit, authentication.
#[derive(Clone, Debug)]
pub enum Admission {
    /// It does, and this is who it is.
    Granted(Identity),
    /// It does not.
    Refused {
        /// Why.
        reason: Reason,
        /// Who may.
        server_reference: Option<Arc<str>>,
    },
}

/// What CONNACK has to say beside the outcome.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) asked_expiry_s: u32,
    assigned: Option<Arc<str>>,
    keep_alive_s: Option<u16>,
    wants_response_information: bool,
}

impl Session {
    /// Begins with a CONNECT: proposes it, or refuses the client at once.
    ///
    /// `fresh_id` makes a client identifier that nobody has or can guess.
    pub fn connect(
        options: Arc<MqttOptions>,
        version: Version,
        connect: Connect,
        admission: Admission,
        fresh_id: impl FnOnce() -> String,
        now: Now,
        out: &mut Output,
    ) -> Self {
        let (keep_alive_s, told_keep_alive_s) = keep_alive(version, connect.keep_alive_s, &options);
        let expiry_s = match connect.expiry_s {
            Some(s) => s,
            None if connect.clean_start => 0,
            None => options.session_expiry_s,
        };
        let assigned = connect.client_id.is_empty().then(fresh_id);
        let (identity, refused) = match admission {
            Admission::Granted(identity) => (identity, None),
            Admission::Refused { reason, server_reference } => (Identity::default(), Some((reason, server_reference))),
        };
        let mut session = Self {
            version,
            state: State::Connecting,
            me: None,
            is_resumed: false,
            greeting: Greeting {
                asked_expiry_s: expiry_s,
                assigned: assigned.as_deref().map(Arc::from),
                keep_alive_s: told_keep_alive_s,
                wants_response_information: connect.wants_response_information,
            },
            principal: Principal::new(assigned.as_deref().unwrap_or(&connect.client_id), identity, now),
            connect_by_ms: now.mono_ms.saturating_add(options.connect_deadline.as_millis() as u64),
            keep_alive_ms: u64::from(keep_alive_s) * 1500,
            heard_ms: now.mono_ms,
            packet_bytes_max: connect.packet_bytes_max.map_or(usize::MAX - 1, |n| n as usize),
            wants_problems: connect.wants_problems,
            said_goodbye: false,
            what: None,
            rate: Rate::new(options.publish_rate_max, options.publish_bytes_rate_max, now.mono_ms),
            throttled_until_ms: None,
            next_request: 0,
            pending: VecDeque::new(),
            logged_qos0: 0,
            unanswered_qos1: 0,
            unanswered_qos2: 0,
            inbound_qos2: BTreeSet::new(),
            held: VecDeque::new(),
            held_bytes: 0,
            aliases: BTreeMap::new(),
            // Nothing is delivered before the outcome, which says what the queue is.
            outbox: Outbox::new(Start {
                durable: true,
                head: QueueSeq(0),
                sent_until: QueueSeq(0),
                tail: QueueSeq(0),
                window: connect.receive_maximum.min(options.inflight_max),
                alias_max: connect.topic_alias_max.min(options.topic_alias_out_max),
            }),
            options,
        };
        if let Some((reason, server_reference)) = session.refusal(&connect, refused, out) {
            session.end(Ending::Redirect { reason, server_reference }, out);
            return session;
        }
        let deadline = now.cluster.0.saturating_add(session.options.connect_deadline.as_millis() as u64);
        let command = Command::Connect(command::Connect {
            client_id: assigned.unwrap_or(connect.client_id),
            clean_start: connect.clean_start,
            expiry_s,
            receive_maximum: connect.receive_maximum.min(session.options.inflight_max),
            will: connect.will,
            deadline: ClusterTime(deadline),
            user: session.user().map(str::to_owned),
        });
        session.propose(Wait::Connect, command, out);
        session
    }

    fn refusal(
        &self,
        connect: &Connect,
        refused: Option<(Reason, Option<Arc<str>>)>,
        out: &mut Output,
    ) -> Option<(Reason, Option<Arc<str>>)> {
        let nameless = connect.client_id.is_empty();
        if nameless && (self.version == Version::V31 || (self.version == Version::V311 && !connect.clean_start)) {
            return Some((Reason::CLIENT_IDENTIFIER_NOT_VALID, None)); // [MQTT-3.1.3-8]
        }
        let is_delayed = |will: &command::Will| delayed::split(&will.topic).is_some();
        if connect.will.as_ref().is_some_and(is_delayed) {
            return Some((Reason::TOPIC_NAME_INVALID, None)); // a will has a delay of its own
        }
        if refused.is_some() {
            return refused;
        }
        // It is published later under the rights that its client has now.
        let will = connect.will.as_ref()?;
        if let Some(reason) = self.will_refusal(will) {
            return Some((reason, None));
        }
        if self.principal.may_publish(&out.access, will.topic.as_str(), will.qos, will.retain) {
            return None;
        }
        out.counts.denied_publishes += 1;
        Some((Reason::NOT_AUTHORIZED, None))
    }

    /// The CONNECT was applied: the session is this connection's.
    pub(super) fn connected(&mut self, connected: &Connected, now: Now, out: &mut Output) {
        if connected.session.epoch.0.index() > now.applied {
            tracing::error!(epoch = %connected.session.epoch, applied = now.applied, "a CONNACK before its commit was applied");
            out.counts.acks_before_commit += 1;
            return self.end(Ending::Error(Reason::IMPLEMENTATION_SPECIFIC_ERROR), out);
        }
        self.state = State::Open;
        self.me = Some(connected.session);
        self.is_resumed = connected.present;
        self.principal.recorded.clone_from(&connected.inbound_qos2);
        self.heard_ms = now.mono_ms;
        self.outbox = Outbox::new(Start {
            durable: connected.durable,
            head: connected.queue_head,
            sent_until: connected.sent_until,
            tail: connected.queue_tail,
            window: self.outbox.window(),
            alias_max: self.outbox.alias_max(),
        });
        out.counts.accepted += 1;
        let mut ack = ConnAck {
            // 3.1 has no Session Present: the byte is reserved there.
            session_present: connected.present && self.version != Version::V31,
            reason: Reason::SUCCESS,
            granted: self.version.is_v5().then(|| Granted {
                expiry_s: (connected.expiry_s != self.greeting.asked_expiry_s).then_some(connected.expiry_s),
                receive_maximum: self.options.receive_maximum,
                packet_bytes_max: self.options.packet_bytes_max,
                client_id: self.greeting.assigned.clone(),
                topic_alias_max: self.options.topic_alias_max,
                keep_alive_s: self.greeting.keep_alive_s,
                offered: offer::offered(&self.options),
                response_information: self.response_information(),
                auth: self.principal.server_final(),
            }),
            server_reference: None,
        };
        if wire::connack_len(self.version, &ack) > self.packet_bytes_max
            && let Some(granted) = &mut ack.granted
        {
            granted.response_information = None; // what it cannot do without comes first
        }
        out.packets.push(Outgoing::ConnAck(Box::new(ack)));
    }

    /// Where replies to this client may go, when it asked and something is configured [MQTT-3.1.2-28].
    fn response_information(&self) -> Option<Box<str>> {
        let prefix = &self.options.response_topic_prefix;
        (self.greeting.wants_response_information && !prefix.is_empty()).then(|| Box::from(prefix.as_str()))
    }
}

/// The keep alive that counts, and what a client of 5.0 is told when it is another than it asked for
/// [MQTT-3.2.2-22]. Others cannot be told, and keep theirs; but one that asked for none may have an implied one.
fn keep_alive(version: Version, asked_s: u16, options: &MqttOptions) -> (u16, Option<u16>) {
    if !version.is_v5() {
        return (if asked_s == 0 { options.keep_alive_s_implied } else { asked_s }, None);
    }
    let (min, max) = (options.keep_alive_s_min, options.keep_alive_s_max);
    let granted = match asked_s {
        0 => max,
        s if max > 0 => s.max(min).min(max),
        s => s.max(min),
    };
    (granted, (granted != asked_s).then_some(granted))
}
