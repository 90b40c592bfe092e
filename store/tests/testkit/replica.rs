//! A second replica of a log: cut into other runs, reopened, crashed.

use quorate_store::effect::{AllEffects, Effect, EffectSink};
use quorate_store::ids::Incarnation;
use quorate_store::machine::Machine;
use quorate_store::rows::MemRows;

use super::Entry;

/// What happens after an entry on this replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The run goes on.
    GoOn,
    /// The run is written.
    Commit,
    /// The run is written, and the process starts anew.
    Reopen,
    /// The run is written and reaches the disk.
    Flush,
    /// Power fails: rows fall back to what reached the disk, and the log is applied again from there.
    Crash,
}

/// Applies `log` with `cuts` in between (cyclic; at the end the run is always written). Returns the rows and
/// the effects of each entry as text; an entry applied a second time must have the same effects again.
pub(crate) fn replay(log: &[Entry], cuts: &[Then]) -> (MemRows, Vec<String>) {
    let mut machine = Machine::open(MemRows::default()).unwrap();
    let mut flushed = MemRows::default();
    let mut told: Vec<String> = Vec::new();
    let mut next = 0;
    let mut step = 0;
    while next < log.len() {
        let entry = &log[next];
        let mut effects = AllEffects::default();
        machine.apply(entry.context, &entry.batch, &mut effects).unwrap();
        let text = describe(&effects.0);
        match told.get(next) {
            Some(before) => assert_eq!(*before, text, "entry {} has other effects the second time", next + 1),
            None => told.push(text),
        }
        next += 1;
        let then = if cuts.is_empty() { Then::Commit } else { cuts[step % cuts.len()] };
        step += 1;
        match then {
            Then::GoOn => {}
            Then::Commit => machine.commit_run().unwrap(),
            Then::Reopen => {
                machine.commit_run().unwrap();
                machine = reopened(&machine);
            }
            Then::Flush => {
                machine.commit_run().unwrap();
                flushed = machine.store().clone();
            }
            // Not over and over again: a log is finite and so are power cuts.
            Then::Crash if step < log.len() * 3 => {
                machine = Machine::open(flushed.clone()).unwrap();
                next = machine.applied().index as usize;
            }
            Then::Crash => machine.commit_run().unwrap(),
        }
    }
    machine.commit_run().unwrap();
    (machine.store().clone(), told)
}

/// The same rows in a new process; nothing but memory may differ.
pub(crate) fn reopened(machine: &Machine<MemRows>) -> Machine<MemRows> {
    let (applied, digest) = (machine.applied(), machine.digest().unwrap());
    let (timed, continued) = (machine.has_deadlines(), machine.has_continuations());
    let again = Machine::open(machine.store().clone()).unwrap();
    assert_eq!(again.applied(), applied);
    assert_eq!(again.digest().unwrap(), digest);
    assert_eq!(again.sessions(), machine.sessions());
    assert_eq!(again.shares(), machine.shares());
    assert_eq!(again.nodes(), machine.nodes());
    assert_eq!(again.settings(), machine.settings());
    assert_eq!(again.delayed(), machine.delayed());
    assert!(again.access() == machine.access());
    assert_eq!((again.has_deadlines(), again.has_continuations()), (timed, continued));
    again
}

/// Effects of one entry, as text.
pub(crate) fn describe(effects: &[Effect]) -> String {
    effects.iter().map(|effect| format!("{effect:?}\n")).collect()
}

/// Wants what concerns one incarnation, or nothing.
#[derive(Debug)]
pub(crate) struct Wanting {
    whom: Option<Incarnation>,
    heard: Vec<Effect>,
}

impl Wanting {
    pub(crate) fn new(whom: Option<Incarnation>) -> Self {
        Self { whom, heard: Vec::new() }
    }
}

impl EffectSink for Wanting {
    fn wants(&self, incarnation: Incarnation) -> bool {
        self.whom == Some(incarnation)
    }
    fn push(&mut self, effect: Effect) {
        self.heard.push(effect);
    }
}

/// Applies `log` on a node that wants to hear of its own incarnation only. Returns the rows and what it heard,
/// and of what there is to hear what concerns it, as text.
pub(crate) fn replay_wanting(log: &[Entry], whom: Option<Incarnation>) -> (MemRows, String, String) {
    let mut all = AllEffects::default();
    let mut machine = Machine::open(MemRows::default()).unwrap();
    for entry in log {
        machine.apply(entry.context, &entry.batch, &mut all).unwrap();
    }
    let mut machine = Machine::open(MemRows::default()).unwrap();
    let mut sink = Wanting::new(whom);
    for entry in log {
        machine.apply(entry.context, &entry.batch, &mut sink).unwrap();
        machine.commit_run().unwrap();
    }
    let mine: Vec<Effect> = all.0.into_iter().filter(|effect| concerns(effect, whom)).collect();
    (machine.store().clone(), describe(&sink.heard), describe(&mine))
}

fn concerns(effect: &Effect, whom: Option<Incarnation>) -> bool {
    match effect {
        Effect::DirectApplied { .. } => true,
        Effect::Applied { incarnation, .. }
        | Effect::Gap { incarnation, .. }
        | Effect::IncarnationClosed { incarnation, .. } => Some(*incarnation) == whom,
        Effect::Deliver { owner, .. } | Effect::Withdraw { owner, .. } | Effect::Kick { owner, .. } => {
            Some(*owner) == whom
        }
    }
}
