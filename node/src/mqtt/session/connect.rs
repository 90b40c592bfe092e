//! CONNECT and CONNACK: one command opens, resumes or takes over the session; its outcome says how the
//! client finds it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use quorate_store::command::{self, Command};
use quorate_store::delayed;
use quorate_store::effect::Connected;
use quorate_store::ids::{ClusterTime, QueueSeq};

use super::outbox::{Outbox, Start};
use super::requests::Wait;
use super::{Ending, Now, Output, Session, State};
use crate::mqtt::options::MqttOptions;
use crate::mqtt::packet::{ConnAck, Connect, Granted, Outgoing, Version};
use crate::mqtt::reason::Reason;

/// Whether this node takes the client at all: quorum, connection limit, authentication.
#[derive(Clone, Debug)]
pub enum Admission {
    /// It does.
    Granted,
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
        let bound = options.keep_alive_s_max;
        let shortened = version.is_v5() && bound > 0 && (connect.keep_alive_s == 0 || connect.keep_alive_s > bound);
        let keep_alive_s = if shortened { bound } else { connect.keep_alive_s };
        let expiry_s = match connect.expiry_s {
            Some(s) => s,
            None if connect.clean_start => 0,
            None => options.session_expiry_s,
        };
        let assigned = connect.client_id.is_empty().then(fresh_id);
        let mut session = Self {
            version,
            state: State::Connecting,
            me: None,
            greeting: Greeting {
                asked_expiry_s: expiry_s,
                assigned: assigned.as_deref().map(Arc::from),
                keep_alive_s: shortened.then_some(bound),
            },
            connect_by_ms: now.mono_ms.saturating_add(options.connect_deadline.as_millis() as u64),
            keep_alive_ms: u64::from(keep_alive_s) * 1500,
            heard_ms: now.mono_ms,
            packet_bytes_max: connect.packet_bytes_max.map_or(usize::MAX - 1, |n| n as usize),
            wants_problems: connect.wants_problems,
            next_request: 0,
            pending: VecDeque::new(),
            logged_qos0: 0,
            unanswered_qos1: 0,
            unanswered_qos2: 0,
            inbound_qos2: HashSet::new(),
            held: VecDeque::new(),
            held_bytes: 0,
            aliases: HashMap::new(),
            outbox: Outbox::new(Start {
                durable: false,
                head: QueueSeq(0),
                sent_until: QueueSeq(0),
                tail: QueueSeq(0),
                window: connect.receive_maximum.min(options.inflight_max),
            }),
            options,
        };
        if let Some((reason, server_reference)) = session.refusal(&connect, admission) {
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
            // Whoever is let in is anonymous.
            user: None,
        });
        session.propose(Wait::Connect, command, out);
        session
    }

    fn refusal(&self, connect: &Connect, admission: Admission) -> Option<(Reason, Option<Arc<str>>)> {
        if connect.has_auth_method {
            // No enhanced authentication is offered yet [MQTT-4.12.0-1].
            return Some((Reason::BAD_AUTHENTICATION_METHOD, None));
        }
        let nameless = connect.client_id.is_empty();
        if nameless && (self.version == Version::V31 || (self.version == Version::V311 && !connect.clean_start)) {
            return Some((Reason::CLIENT_IDENTIFIER_NOT_VALID, None)); // [MQTT-3.1.3-8]
        }
        let is_delayed = |will: &command::Will| delayed::split(&will.topic).is_some();
        if connect.will.as_ref().is_some_and(is_delayed) {
            return Some((Reason::TOPIC_NAME_INVALID, None)); // a will has a delay of its own
        }
        match admission {
            Admission::Granted => None,
            Admission::Refused { reason, server_reference } => Some((reason, server_reference)),
        }
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
        self.heard_ms = now.mono_ms;
        self.outbox = Outbox::new(Start {
            durable: connected.durable,
            head: connected.queue_head,
            sent_until: connected.sent_until,
            tail: connected.queue_tail,
            window: self.outbox.window(),
        });
        out.counts.accepted += 1;
        out.packets.push(Outgoing::ConnAck(Box::new(ConnAck {
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
            }),
            server_reference: None,
        })));
    }
}
