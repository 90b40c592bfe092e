//! The world that the nodes are in: what happens when, chance, and the record of it all.
//!
//! Events are closures at a virtual time, in the order of their times and then of their making. Everything is in one
//! thread, so the world is a thread's own, and who needs it asks for it ([`after`], [`below`], [`write_down`]).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use xxhash_rust::xxh3::Xxh3;

use crate::clock;

type Action = Box<dyn FnOnce()>;

struct World {
    events: BTreeMap<(u64, u64), Action>,
    made: u64,
    random: StdRng,
    hash: Xxh3,
    lines: u64,
    /// Kept when somebody wants to read them.
    trace: Option<Vec<String>>,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

fn with<T>(f: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(|world| f(world.as_mut().expect("a simulation runs in this thread")))
}

/// Makes this thread a simulation's.
pub(crate) fn begin(seed: u64, keeps_trace: bool) {
    clock::begin(seed);
    WORLD.set(Some(World {
        events: BTreeMap::new(),
        made: 0,
        random: StdRng::seed_from_u64(seed),
        hash: Xxh3::new(),
        lines: 0,
        trace: keeps_trace.then(Vec::new),
    }));
}

/// Does `action` when `delay` has passed.
pub(crate) fn after(delay: Duration, action: impl FnOnce() + 'static) {
    let at = clock::now_ns() + delay.as_nanos() as u64;
    with(|world| {
        world.made += 1;
        world.events.insert((at, world.made), Box::new(action));
    });
}

/// When the next event is due.
pub(crate) fn next_event_ns() -> Option<u64> {
    with(|world| world.events.first_key_value().map(|((at, _), _)| *at))
}

/// Takes an event that is due.
pub(crate) fn take_due() -> Option<Action> {
    with(|world| {
        let first = world.events.first_entry().filter(|first| first.key().0 <= clock::now_ns())?;
        Some(first.remove())
    })
}

/// Does something whose chance depends on `seed` alone.
pub(crate) fn with_chance<T>(seed: u64, f: impl FnOnce() -> T) -> T {
    let before = with(|world| std::mem::replace(&mut world.random, StdRng::seed_from_u64(seed)));
    let result = f();
    with(|world| world.random = before);
    result
}

/// True once in `of` times.
pub(crate) fn one_in(of: u32) -> bool {
    below(u64::from(of)) == 0
}

/// A number below `bound`.
pub(crate) fn below(bound: u64) -> u64 {
    with(|world| world.random.random_range(0..bound.max(1)))
}

/// A time from `least` to `most`, evenly.
pub(crate) fn between(least: Duration, most: Duration) -> Duration {
    let (least, most) = (least.as_nanos() as u64, most.as_nanos() as u64);
    Duration::from_nanos(least + below(most.saturating_sub(least) + 1))
}

/// One of `all`.
pub(crate) fn one_of<T: Copy>(all: &[T]) -> Option<T> {
    all.get(below(all.len() as u64) as usize).copied()
}

/// Writes down what happens. What two runs of a seed write down must be the same, to the byte.
pub(crate) fn write_down(what: fmt::Arguments<'_>) {
    let line = format!("{:>12.6} {what}", clock::now_ns() as f64 / 1e9);
    with(|world| {
        world.hash.update(line.as_bytes());
        world.hash.update(b"\n");
        world.lines += 1;
        if let Some(trace) = &mut world.trace {
            trace.push(line);
        }
    });
}

/// Number of lines that were written down, and their hash.
pub(crate) fn digest() -> (u64, u64) {
    with(|world| (world.lines, world.hash.digest()))
}

/// The lines, if they were kept.
pub(crate) fn take_trace() -> Vec<String> {
    with(|world| world.trace.take().unwrap_or_default())
}

/// [`write_down`], as `format!` is written.
macro_rules! note {
    ($($arg:tt)*) => { $crate::world::write_down(format_args!($($arg)*)) };
}
pub(crate) use note;
