//! The server's half: what a packet does, in the order of one log, to sessions, groups and retained messages.

use std::collections::{BTreeSet, VecDeque};

use super::{Broker, Down, IDENTIFIERS, Message, Name, Row, Up};
use crate::check::filter;
use crate::check::testkit::History;
use crate::history::event::{Answer, OpId, Step};

impl Broker {
    /// One packet of a client takes effect.
    pub(super) fn apply(&mut self, conn: usize) -> bool {
        let Some(up) = self.conns[conn].up.pop_front() else { return false };
        let client = self.conns[conn].client;
        if let Up::Connect { op, clean_start, expiry_s, will } = up {
            self.applied_connect(conn, op, clean_start, expiry_s, will);
            return true;
        }
        if self.sessions.get(&client).is_none_or(|session| session.owner != Some(conn)) {
            return true;
        }
        match up {
            Up::Publish { op, name, topic, qos, retain, key } => {
                let position = self.applied_publish(client, name, topic, qos, retain, key);
                if qos > 0 {
                    self.tell(conn, Down::Answer(op, Answer::Published { code: 0, position: Some(position) }));
                }
            }
            Up::Subscribe(op, filter, qos) => {
                self.tell(conn, Down::Answer(op, Answer::Subscribed { code: qos }));
                let kept = self.retained.values().filter(|m| filter == m.topic).cloned().collect::<Vec<_>>();
                let session = self.sessions.get_mut(&client).unwrap();
                session.filters.insert(filter, qos);
                for message in kept {
                    let qos = qos.min(message.qos);
                    self.queue(client, message, qos, true, None);
                }
            }
            Up::Unsubscribe(op, filter) => {
                self.sessions.get_mut(&client).unwrap().filters.remove(&filter);
                self.tell(conn, Down::Answer(op, Answer::Unsubscribed { code: 0 }));
            }
            Up::Read(op, topic) => {
                let message = self.retained.get(&topic).map(|m| History::name(m.name));
                self.tell(conn, Down::Answer(op, Answer::Retained { message }));
            }
            Up::Settle(packet_id, step) => {
                let rows = &mut self.sessions.get_mut(&client).unwrap().rows;
                match step {
                    Step::Ack => rows.retain(|row| row.packet_id != packet_id || row.qos != 1),
                    Step::Complete => rows.retain(|row| row.packet_id != packet_id || !row.is_released),
                    Step::Received => {
                        if let Some(row) = rows.iter_mut().find(|row| row.packet_id == packet_id && row.qos == 2) {
                            row.is_released = true;
                            self.tell(conn, Down::Release(packet_id));
                        }
                    }
                }
            }
            Up::Disconnect => self.sessions.get_mut(&client).unwrap().will = None,
            Up::Gone => self.leave(client),
            Up::Connect { .. } => {}
        }
        true
    }

    fn tell(&mut self, conn: usize, down: Down) {
        if self.conns[conn].is_open {
            self.conns[conn].down.push_back(down);
        }
    }

    /// The session of a client has no owner any more.
    fn leave(&mut self, client: u32) {
        let Some(session) = self.sessions.get_mut(&client) else { return };
        session.owner = None;
        let mut back: Vec<Row> = Vec::new();
        let (gone, kept): (Vec<Row>, Vec<Row>) = session
            .rows
            .drain(..)
            .partition(|row| row.group.is_some() && (row.qos == 1 || row.sent_on.is_none() && !row.may_be_sent));
        session.rows = kept;
        for row in &mut session.rows {
            row.sent_on = None;
        }
        back.extend(gone);
        let will = session.will.take();
        if session.expiry_s == 0 {
            self.sessions.remove(&client);
        }
        for row in back.into_iter().rev() {
            let group = row.group.clone().unwrap();
            self.groups.entry(group).or_default().push_front((row.message.clone(), row.message.qos));
        }
        if let Some((name, topic)) = will {
            self.spread(name, &topic, 1);
        }
        self.dispatch();
    }

    fn applied_connect(
        &mut self,
        conn: usize,
        op: OpId,
        clean_start: bool,
        expiry_s: u32,
        will: Option<(Name, String)>,
    ) {
        let client = self.conns[conn].client;
        self.position += 1;
        if let Some(old) = self.sessions.get(&client).and_then(|session| session.owner) {
            // The old owner does not know yet, and goes on for a while.
            for _ in 0..self.dice.below(3) {
                self.send(client);
            }
            self.tell(old, Down::Kick);
            self.leave(client);
        }
        if clean_start {
            self.sessions.remove(&client);
        }
        let present = self.sessions.contains_key(&client);
        let session = self.sessions.entry(client).or_default();
        session.owner = Some(conn);
        session.expiry_s = expiry_s;
        session.will = will;
        let released: Vec<u16> = session.rows.iter().filter(|row| row.is_released).map(|row| row.packet_id).collect();
        self.tell(conn, Down::Answer(op, Answer::Connected { present }));
        for packet_id in released {
            self.tell(conn, Down::Release(packet_id));
        }
        self.dispatch();
    }

    fn applied_publish(
        &mut self,
        client: u32,
        name: Name,
        topic: String,
        qos: u8,
        retain: bool,
        key: Option<String>,
    ) -> u64 {
        let known = match &key {
            Some(key) => self.keys.get(key).copied(),
            None => self.sessions[&client].inbound.get(&name).copied(),
        };
        if let Some(position) = known {
            return position;
        }
        let message = self.spread(name, &topic, qos);
        if let Some(key) = key {
            self.keys.insert(key, message.position);
        } else if qos == 2 {
            self.sessions.get_mut(&client).unwrap().inbound.insert(name, message.position);
        }
        let position = message.position;
        if retain {
            self.retained.insert(topic, message);
        }
        position
    }

    fn spread(&mut self, name: Name, topic: &str, qos: u8) -> Message {
        self.position += 1;
        let message = Message { name, topic: topic.to_owned(), qos, position: self.position };
        let mut groups: BTreeSet<(String, u8)> = BTreeSet::new();
        let mut to: Vec<(u32, u8)> = Vec::new();
        for (&client, session) in &self.sessions {
            let matching = session.filters.iter().filter(|(f, _)| filter::matches(filter::split(f).0, topic));
            let (shared, own): (Vec<_>, Vec<_>) = matching.partition(|(f, _)| f.starts_with('$'));
            to.extend(own.into_iter().map(|(_, granted)| *granted).max().map(|granted| (client, granted.min(qos))));
            groups.extend(shared.into_iter().map(|(f, _)| (f.clone(), qos)));
        }
        for (client, qos) in to {
            self.queue(client, message.clone(), qos, false, None);
        }
        for (group, qos) in groups {
            self.groups.entry(group).or_default().push_back((message.clone(), qos));
        }
        self.dispatch();
        message
    }

    fn queue(&mut self, client: u32, message: Message, qos: u8, retain: bool, group: Option<String>) {
        let session = self.sessions.get_mut(&client).unwrap();
        if qos == 0 {
            if let Some(conn) = session.owner {
                self.tell(conn, Down::Publish { message, qos, retain, dup: false, packet_id: 0 });
            }
            return;
        }
        session.next_id = session.next_id % IDENTIFIERS + 1;
        let packet_id = session.next_id;
        session.rows.push(Row {
            message,
            qos,
            retain,
            packet_id,
            sent_on: None,
            may_be_sent: false,
            is_released: false,
            group,
        });
    }

    /// What waits in a group goes to a member that is there.
    fn dispatch(&mut self) {
        for group in self.groups.keys().cloned().collect::<Vec<_>>() {
            let members: Vec<(u32, u8)> = self
                .sessions
                .iter()
                .filter(|(_, session)| session.owner.is_some())
                .filter_map(|(&client, session)| Some((client, *session.filters.get(&group)?)))
                .collect();
            if members.is_empty() {
                continue;
            }
            while let Some((message, qos)) = self.groups.get_mut(&group).and_then(VecDeque::pop_front) {
                let (client, granted) = members[self.dice.below(members.len())];
                self.queue(client, message, qos.min(granted), false, Some(group.clone()));
            }
        }
    }

    /// The next row of a session goes out.
    pub(super) fn send(&mut self, client: u32) -> bool {
        let Some(session) = self.sessions.get_mut(&client) else { return false };
        let Some(conn) = session.owner else { return false };
        let Some(row) = session.rows.iter_mut().find(|row| row.sent_on.is_none() && !row.is_released) else {
            return false;
        };
        let down = Down::Publish {
            message: row.message.clone(),
            qos: row.qos,
            retain: row.retain,
            dup: row.may_be_sent,
            packet_id: row.packet_id,
        };
        (row.sent_on, row.may_be_sent) = (Some(conn), true);
        self.tell(conn, down);
        true
    }
}
