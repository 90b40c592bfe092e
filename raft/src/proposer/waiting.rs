//! Commands that wait for a number.
//!
//! Owns the queue between the front end's workers and the stream, bounded in commands and bytes, and the
//! rules of what goes into one batch: order is kept, what was withdrawn is left out, acknowledgements of
//! one connection that wait together become one command. It never numbers, encodes or sends anything, so
//! whatever is here may still be forgotten without a trace.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quorate_store::command::{Command, Connect, NodeInfo, Publish, SessionRef, Settle, Will};
use quorate_store::ids::Incarnation;
use quorate_store::message::MessageProperties;

use crate::effects::Ticket;

/// Acknowledgements in one merged [`Command::Settle`]: bounds what apply does for one command.
pub(crate) const SETTLE_ACKS_MAX: usize = 512;

/// So many commands are enough for a batch, though all of them can wait.
const PATIENT_COMMANDS_MAX: usize = 64;

/// A command on its way into the log.
#[derive(Clone, Debug)]
pub struct Submission {
    /// What.
    pub command: Command,
    /// Whom its outcome answers.
    pub ticket: Ticket,
    /// Set by the front end when nobody wants the command any more (a CONNECT whose socket closed): it is
    /// dropped, unless it has its number already.
    pub withdrawn: Option<Arc<AtomicBool>>,
    /// Nobody waits for its outcome, nor for anything behind it: it goes with what comes next, or after
    /// [`Limits::patience`](crate::Limits::patience). An entry of its own would cost every node an fsync.
    pub can_wait: bool,
}

/// Which command of a batch a ticket waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    /// Whom to tell.
    pub(crate) ticket: Ticket,
    /// Number of the command in its batch.
    pub(crate) command: u32,
}

/// What was taken out of the queue for one batch.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    /// In order.
    pub(crate) commands: Vec<Command>,
    /// In the order of submission.
    pub(crate) waiters: Vec<Waiter>,
    /// How many were withdrawn, and left out.
    pub(crate) withdrawn: u64,
    /// How many were merged into an earlier one.
    pub(crate) merged: u64,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Waiting {
    incarnation: Incarnation,
    queue: VecDeque<(Submission, usize)>,
    bytes: usize,
    commands_max: usize,
    bytes_max: usize,
    /// How many of the queue cannot wait.
    pressing: usize,
    /// Since when there are only such as can.
    patient_since: Option<Instant>,
    /// They have waited, and are not cut yet: for want of a slot, as those that cannot wait.
    is_overdue: bool,
}

/// What there is to be cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Commands; none as long as all of them can wait.
    pub(crate) commands: usize,
    /// About how long they are.
    pub(crate) bytes: usize,
    /// Until then they can.
    pub(crate) patient_until: Option<Instant>,
}

impl Waiting {
    /// What waits for the stream of `incarnation`, and goes with it.
    pub(crate) fn new(incarnation: Incarnation, commands_max: usize, bytes_max: usize) -> Self {
        Self {
            incarnation,
            queue: VecDeque::new(),
            bytes: 0,
            commands_max,
            bytes_max,
            pressing: 0,
            patient_since: None,
            is_overdue: false,
        }
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Takes a command, or gives it back when the queue is at a bound. The last one in may overshoot the
    /// bytes, so that a command of any size finds its way.
    pub(crate) fn submit(&mut self, submission: Submission) -> Result<(), Box<Submission>> {
        if self.queue.len() >= self.commands_max || self.bytes >= self.bytes_max {
            return Err(Box::new(submission));
        }
        let bytes = command_bytes(&submission.command);
        self.bytes += bytes;
        self.pressing += usize::from(!submission.can_wait);
        self.queue.push_back((submission, bytes));
        Ok(())
    }

    /// What there is to be cut at `now`.
    pub(crate) fn demand(&mut self, now: Instant, patience: Duration) -> Demand {
        if self.queue.is_empty() || self.presses() {
            self.patient_since = None;
        } else {
            let until = *self.patient_since.get_or_insert(now) + patience;
            if now < until {
                return Demand { patient_until: Some(until), ..Demand::default() };
            }
            self.is_overdue = true;
        }
        Demand { commands: self.queue.len(), bytes: self.bytes, patient_until: None }
    }

    /// Whether there is something that cannot wait, or not any longer.
    pub(crate) fn presses(&self) -> bool {
        self.pressing > 0 || self.is_overdue || self.queue.len() >= PATIENT_COMMANDS_MAX
    }

    /// Whether whoever was refused should try again: a quarter below the bounds, so that they do not
    /// come one by one.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.len() < self.commands_max - self.commands_max / 4 && self.bytes < self.bytes_max - self.bytes_max / 4
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes what goes into the next batch: at most so many commands and about so many bytes, at least one.
    pub(crate) fn cut(&mut self, commands_max: usize, bytes_max: usize) -> Cut {
        let mut cut = Cut::default();
        let mut bytes = 0;
        // Settle commands of this cut into which a later one may go: nothing else of the same connection
        // came after them, so nothing changes its place among the connection's commands.
        let mut settles: HashMap<SessionRef, usize> = HashMap::new();
        while let Some((_, next_bytes)) = self.queue.front() {
            let full = cut.commands.len() >= commands_max || bytes + next_bytes > bytes_max;
            if full && !cut.commands.is_empty() {
                break;
            }
            let Some((submission, command_bytes)) = self.queue.pop_front() else { break };
            self.bytes -= command_bytes;
            self.pressing -= usize::from(!submission.can_wait);
            if submission.withdrawn.is_some_and(|w| w.load(Ordering::Acquire)) {
                cut.withdrawn += 1;
                continue;
            }
            bytes += command_bytes;
            let command = cut.take(submission.command, &mut settles);
            cut.waiters.push(Waiter { ticket: submission.ticket, command: command as u32 });
        }
        self.patient_since = None;
        self.is_overdue = false;
        cut
    }

    /// Forgets everything; how many that were.
    pub(crate) fn clear(&mut self) -> usize {
        self.bytes = 0;
        self.pressing = 0;
        self.is_overdue = false;
        let dropped = self.queue.len();
        self.queue.clear();
        dropped
    }
}

impl Cut {
    /// Adds a command, or merges it into an earlier one; its number in the batch.
    fn take(&mut self, command: Command, settles: &mut HashMap<SessionRef, usize>) -> usize {
        let number = self.commands.len();
        match &command {
            Command::Settle(settle) => {
                if let Some(earlier) = settles.get(&settle.from).copied()
                    && let Some(Command::Settle(into)) = self.commands.get_mut(earlier)
                    && into.acks.len() + settle.acks.len() <= SETTLE_ACKS_MAX
                {
                    into.acks.extend_from_slice(&settle.acks);
                    self.merged += 1;
                    return earlier;
                }
                settles.insert(settle.from, number);
            }
            other => {
                if let Some(from) = connection_of(other) {
                    settles.remove(&from);
                }
            }
        }
        self.commands.push(command);
        number
    }
}

/// The connection that a command comes from.
fn connection_of(command: &Command) -> Option<SessionRef> {
    match command {
        Command::Close(close) => Some(close.from),
        Command::Publish(publish) => publish.from,
        Command::Release { from, .. } | Command::Unsubscribe { from, .. } => Some(*from),
        Command::Settle(settle) => Some(settle.from),
        Command::Subscribe(subscribe) => Some(subscribe.from),
        _ => None,
    }
}

/// About how long a command is when encoded. It need not be exact: it bounds memory and batches.
pub(crate) fn command_bytes(command: &Command) -> usize {
    const FIXED: usize = 48;
    let variable = match command {
        Command::Connect(Connect { client_id, will, .. }) => client_id.len() + will.as_ref().map_or(0, will_bytes),
        Command::Publish(Publish { topic, properties, payload, .. }) => {
            topic.as_str().len() + payload.len() + properties.as_deref().map_or(0, properties_bytes)
        }
        Command::Settle(Settle { acks, .. }) => acks.len() * 16,
        Command::Subscribe(subscribe) => subscribe.filters.iter().map(|(f, _)| f.as_str().len() + 8).sum(),
        Command::Unsubscribe { filters, .. } => filters.iter().map(|f| f.as_str().len() + 4).sum(),
        Command::NodeStarted(started) => info_bytes(&started.info),
        Command::AllocateNode { info, .. } => info_bytes(info),
        _ => 0,
    };
    FIXED + variable
}

fn will_bytes(will: &Will) -> usize {
    16 + will.topic.as_str().len() + will.payload.len() + will.properties.as_deref().map_or(0, properties_bytes)
}

fn properties_bytes(p: &MessageProperties) -> usize {
    let text = |s: &Option<String>| s.as_ref().map_or(0, String::len);
    let user: usize = p.user.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
    16 + text(&p.content_type) + text(&p.response_topic) + p.correlation_data.as_ref().map_or(0, Vec::len) + user
}

fn info_bytes(info: &NodeInfo) -> usize {
    info.name.len() + info.mqtt.len() + info.peer.len() + info.admin.len()
}

#[cfg(test)]
#[path = "waiting_tests.rs"]
mod tests;
