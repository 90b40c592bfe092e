//! What a client asks: publish, release, subscribe, unsubscribe, disconnect. Each becomes a command; only
//! QoS 0 that asks nothing of the log (no RETAIN, no idempotency key, no delay) goes past it, and only when nothing
//! logged before it is still on its way.

use quorate_store::command::{self, Command, SubscribeOptions};
use quorate_store::ids::{PacketId, QoS};
use quorate_store::message::MessageProperties;
use quorate_store::seeded_bug::{SeededBug, is_seeded};
use quorate_store::topic::{TopicFilter, TopicName};

use super::requests::{Subscribing, Wait};
use super::wishes::Wishes;
use super::{Ending, Now, Output, Session};
use crate::mqtt::options::DELIVERY_OVERHEAD_BYTES;
use crate::mqtt::packet::{Outgoing, Publish, Subscribe};
use crate::mqtt::reason::Reason;
use crate::mqtt::sys::SysAsk;

impl Session {
    /// PUBLISH. A 3.1.1 client knows no Receive Maximum: above it, its publishes wait here, and what is
    /// not a publish is still read.
    pub(super) fn publish(&mut self, publish: Publish, out: &mut Output) {
        if !self.version.is_v5() && (!self.held.is_empty() || self.is_window_full()) {
            self.held_bytes += held_bytes(&publish);
            self.held.push_back(publish);
        } else {
            self.take_publish(publish, out);
        }
    }

    /// Counts a PUBLISH against the client's rate. It is taken, whatever the rate; the next waits.
    pub(super) fn meter(&mut self, publish: &Publish, now: Now, out: &mut Output) {
        let Some(rate) = &mut self.rate else { return };
        let topic = publish.topic.as_ref().map_or(0, |t| t.as_str().len());
        let wait_ms = rate.took(publish.payload.len() + topic, now.mono_ms);
        if wait_ms > 0 {
            out.counts.throttled += 1;
            self.throttled_until_ms = Some(now.mono_ms.saturating_add(wait_ms));
        }
    }

    fn is_window_full(&self) -> bool {
        self.unanswered_qos1 + self.unanswered_qos2 >= usize::from(self.options.receive_maximum)
    }

    /// Takes held publishes for which there is room now.
    pub(super) fn release_held(&mut self, out: &mut Output) {
        while !self.is_over() && !self.held.is_empty() && !self.is_window_full() {
            self.take_held(out);
        }
    }

    fn take_held(&mut self, out: &mut Output) {
        if let Some(publish) = self.held.pop_front() {
            self.held_bytes = self.held_bytes.saturating_sub(held_bytes(&publish));
            self.take_publish(publish, out);
        }
    }

    fn take_publish(&mut self, publish: Publish, out: &mut Output) {
        let Some(from) = self.me else { return };
        let Publish { qos, retain, id, topic, alias, expiry_s, properties, payload, .. } = publish;
        if let Some(reason) = self.not_offered(qos, retain) {
            return self.end(Ending::Error(reason), out);
        }
        let topic = match self.resolve(topic, alias) {
            Ok(topic) => topic,
            Err(reason) => return self.end(Ending::Error(reason), out),
        };
        let was_open = id.is_some_and(|id| self.inbound_qos2.contains(&id));
        if let Some(id) = id
            && !self.enter_window(qos, id)
        {
            return self.end(Ending::Error(Reason::RECEIVE_MAXIMUM_EXCEEDED), out);
        }
        // The alias is set whether or not the rules let this message through: it belongs to the connection, and what is
        // sent under it later is judged again. What the log has recorded already is not published a second time: it is
        // asked for its answer.
        let may = self.principal.may_publish(&out.access, topic.as_str(), qos, retain);
        if !may && !id.is_some_and(|id| qos == QoS::ExactlyOnce && self.principal.recorded.contains(&id)) {
            tracing::debug!(client_id = self.client_id(), user = self.user(), %topic, "a publish was refused by the rules");
            return self.deny_publish(qos, id, was_open && qos == QoS::ExactlyOnce, out);
        }
        out.counts.publish_in(qos, payload.len());
        if let Some(reason) = self.publish_refusal(&topic, properties.as_deref(), &payload) {
            return self.refuse_publish(qos, id, reason, out);
        }
        let wishes = match Wishes::of(&topic, properties.as_deref()) {
            Ok(wishes) => wishes,
            Err(reason) => return self.refuse_publish(qos, id, reason, out),
        };
        let packet_id = if qos == QoS::ExactlyOnce { id } else { None };
        let publish =
            command::Publish { from: Some(from), packet_id, qos, retain, topic, properties, expiry_s, payload };
        let wait = match (qos, id) {
            (QoS::AtLeastOnce, Some(id)) if is_seeded(SeededBug::AckedBeforeCommit) => {
                out.packets.push(Outgoing::PubAck(id, Reason::SUCCESS));
                self.unanswered_qos1 = self.unanswered_qos1.saturating_sub(1);
                Wait::Publish0
            }
            (QoS::AtLeastOnce, Some(id)) => Wait::Publish1(id, wishes.has_key),
            (QoS::ExactlyOnce, Some(id)) => Wait::Publish2(id, wishes.has_key),
            _ if !retain && !wishes.need_the_log() && self.logged_qos0 == 0 => return out.qos0.push(publish),
            _ => {
                self.logged_qos0 += 1;
                Wait::Publish0
            }
        };
        self.propose(wait, Command::Publish(publish), out);
    }

    /// Topic Name and Topic Alias of a PUBLISH (MQTT 5.0 §3.3.2.3.4).
    fn resolve(&mut self, topic: Option<TopicName>, alias: Option<u16>) -> Result<TopicName, Reason> {
        match (topic, alias) {
            (_, Some(alias)) if alias > self.options.topic_alias_max => Err(Reason::TOPIC_ALIAS_INVALID),
            (Some(topic), Some(alias)) => {
                self.aliases.insert(alias, topic.clone());
                Ok(topic)
            }
            (Some(topic), None) => Ok(topic),
            (None, Some(alias)) => self.aliases.get(&alias).cloned().ok_or(Reason::PROTOCOL_ERROR),
            (None, None) => Err(Reason::PROTOCOL_ERROR),
        }
    }

    /// Counts a QoS 1 or 2 publish; false when a v5 client is above Receive Maximum [MQTT-3.3.4-9].
    fn enter_window(&mut self, qos: QoS, id: PacketId) -> bool {
        let repeated = qos == QoS::ExactlyOnce && self.inbound_qos2.contains(&id);
        // QoS 1 counts until its PUBACK, QoS 2 until its PUBCOMP.
        let open = self.unanswered_qos1 + self.inbound_qos2.len();
        if self.version.is_v5() && !repeated && open >= usize::from(self.options.receive_maximum) {
            return false;
        }
        if qos == QoS::ExactlyOnce {
            self.inbound_qos2.insert(id);
            self.unanswered_qos2 += 1;
        } else {
            self.unanswered_qos1 += 1;
        }
        true
    }

    /// PUBREL: the log forgets the identifier, then PUBCOMP. An unknown one is asked for too: only the log
    /// knows what it recorded.
    pub(super) fn release(&mut self, packet_id: PacketId, out: &mut Output) {
        let Some(from) = self.me else { return };
        self.principal.recorded.retain(|recorded| *recorded != packet_id);
        self.propose(Wait::Release(packet_id), Command::Release { from, packet_id }, out);
    }

    /// SUBSCRIBE.
    pub(super) fn subscribe(&mut self, mut subscribe: Subscribe, out: &mut Output) {
        let Some(from) = self.me else { return };
        if let Err(reason) = self.hold_to_offer(&mut subscribe) {
            return self.end(Ending::Error(reason), out);
        }
        let Subscribe { id, identifier, mut filters } = subscribe;
        // First, because each filter that is left is held against every rule.
        self.refuse_above_limit(&mut filters, Reason::QUOTA_EXCEEDED);
        self.refuse_by_rules(&mut filters, out);
        let known: Vec<Option<Reason>> = filters.iter().map(|f| f.as_ref().err().copied()).collect();
        let filters: Vec<_> = filters.into_iter().flatten().collect();
        if filters.is_empty() {
            let reasons = known.into_iter().flatten().collect();
            return self.in_turn(Outgoing::SubAck(id, reasons), out);
        }
        let sys = sys_asks(identifier, &filters);
        if is_seeded(SeededBug::SubackBeforeCommit) {
            let granted = filters.iter().map(|(_, options)| Reason(options.qos as u8)).collect();
            out.packets.push(Outgoing::SubAck(id, granted));
            let command = Command::Subscribe(command::Subscribe { from, identifier, filters });
            return self.propose(Wait::Publish0, command, out);
        }
        let command = Command::Subscribe(command::Subscribe { from, identifier, filters });
        self.propose(Wait::Subscribe(Box::new(Subscribing { id, known, sys })), command, out);
    }

    /// Asks the rules for each filter: it is refused, or granted at a QoS that may be lower than asked for.
    fn refuse_by_rules(&self, filters: &mut [Result<(TopicFilter, SubscribeOptions), Reason>], out: &mut Output) {
        for subscription in filters {
            let Ok((filter, options)) = subscription else { continue };
            match self.principal.may_subscribe(&out.access, filter.as_str(), options.qos) {
                Some(qos) => options.qos = qos,
                None => {
                    out.counts.denied_subscriptions += 1;
                    tracing::debug!(client_id = self.client_id(), user = self.user(), %filter, "a subscription was refused by the rules");
                    *subscription = Err(Reason::NOT_AUTHORIZED);
                }
            }
        }
    }

    /// One command has so many filters, because apply does so much for it at once. Whether there were more.
    fn refuse_above_limit<T>(&self, filters: &mut [Result<T, Reason>], reason: Reason) -> bool {
        let mut refused = false;
        let taken = usize::from(self.options.subscribe_filters_max);
        for filter in filters.iter_mut().filter(|f| f.is_ok()).skip(taken) {
            *filter = Err(reason);
            refused = true;
        }
        refused
    }

    /// UNSUBSCRIBE.
    pub(super) fn unsubscribe(
        &mut self,
        id: PacketId,
        mut filters: Vec<Result<TopicFilter, Reason>>,
        out: &mut Output,
    ) {
        let Some(from) = self.me else { return };
        // UNSUBACK has no reason for a quota; that of 3.1.1 has none at all, and would say that all are gone.
        let refused = self.refuse_above_limit(&mut filters, Reason::IMPLEMENTATION_SPECIFIC_ERROR);
        if refused && !self.version.is_v5() {
            return self.end(Ending::Error(Reason::QUOTA_EXCEEDED), out);
        }
        let known: Vec<Option<Reason>> = filters.iter().map(|f| f.as_ref().err().copied()).collect();
        let filters: Vec<_> = filters.into_iter().flatten().collect();
        if filters.is_empty() {
            let reasons = known.into_iter().flatten().collect();
            return self.in_turn(Outgoing::UnsubAck(id, reasons), out);
        }
        if is_seeded(SeededBug::UnsubackBeforeCommit) {
            out.packets.push(Outgoing::UnsubAck(id, vec![Reason::SUCCESS; filters.len()]));
            return self.propose(Wait::Publish0, Command::Unsubscribe { from, filters }, out);
        }
        let wait = Wait::Unsubscribe(Box::new((id, known)));
        self.propose(wait, Command::Unsubscribe { from, filters }, out);
    }

    /// DISCONNECT from the client.
    pub(super) fn disconnect(&mut self, reason: Reason, expiry_s: Option<u32>, out: &mut Output) {
        // A session that was to end with its connection cannot be made to last [MQTT-3.14.2-2].
        if expiry_s.is_some_and(|s| s > 0) && self.greeting.asked_expiry_s == 0 {
            return self.end(Ending::Error(Reason::PROTOCOL_ERROR), out);
        }
        // What it published before it left is taken, whatever the window.
        while !self.held.is_empty() && !self.is_over() {
            self.take_held(out);
        }
        self.said_goodbye = true;
        self.end(Ending::Client { drop_will: reason == Reason::SUCCESS, expiry_s }, out);
    }
}

/// Which of the filters ask for `$SYS` topics and their values at once: place among them, and what for. What Retain
/// Handling says of retained messages holds for those values [MQTT-3.3.1-9..11].
fn sys_asks(identifier: Option<u32>, filters: &[(TopicFilter, SubscribeOptions)]) -> Vec<(usize, SysAsk)> {
    let asks = filters.iter().enumerate().filter(|(_, (f, o))| o.retain_handling < 2 && SysAsk::is_one(f));
    let ask = |(place, (filter, options)): (usize, &(TopicFilter, SubscribeOptions))| {
        (place, SysAsk { filter: filter.clone(), identifier, only_new: options.retain_handling == 1 })
    };
    asks.map(ask).collect()
}

fn held_bytes(publish: &Publish) -> usize {
    let topic = publish.topic.as_ref().map_or(0, |t| t.as_str().len());
    let properties = publish.properties.as_deref().map_or(0, MessageProperties::charge_bytes);
    publish.payload.len() + topic + properties + DELIVERY_OVERHEAD_BYTES
}
