//! Virtual time and seeded randomness, below everything: in a simulation's thread libc's clock, its random bytes and
//! its wait for events are these.
//!
//! `std::time::Instant`, `SystemTime`, tokio's timers, `HashMap`'s keys, `rand::random` and the order in which
//! `tokio::select!` looks at its branches all come from these three functions in the end. So the code under test is
//! what is shipped, to the last instruction: no clock is passed around in it, no feature is set. Other threads (the
//! test harness) get the real ones.
//!
//! A runtime that has nothing to do waits for events; here that tells the simulation that it has nothing to do, and
//! until when ([`run_until_idle`]). Docs: `docs/adr/0007-simulated-time.md`.
#![allow(unsafe_code, reason = "the signatures are libc's; each function writes only where its caller said")]

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

use libc::{c_int, c_long, c_uint, c_void, clockid_t, size_t, ssize_t, timespec};
use tokio::runtime::Runtime;

/// Wall clock at virtual time 0: 2026-01-01, in nanoseconds.
const WALL_BASE_NS: u64 = 1_767_225_600_000_000_000;
/// Monotonic time at which a simulation begins: code subtracts from it.
const BASE_NS: u64 = 1_000_000_000_000;
/// Turns without idling, above which a node is taken to be in an endless loop.
const TURNS_MAX: u32 = 200_000;

thread_local! {
    static IS_SIMULATED: Cell<bool> = const { Cell::new(false) };
    static NOW_NS: Cell<u64> = const { Cell::new(0) };
    static WALL_SKEW_NS: Cell<i64> = const { Cell::new(0) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    static TURNS: Cell<u32> = const { Cell::new(0) };
    static IDLE: Cell<Option<c_int>> = const { Cell::new(None) };
    static ROOT: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

/// From now on this thread's time and randomness are simulated.
pub(crate) fn begin(seed: u64) {
    RANDOM.set(seed ^ 0x9e37_79b9_7f4a_7c15);
    NOW_NS.set(0);
    IS_SIMULATED.set(true);
}

/// Virtual nanoseconds since the simulation began.
pub(crate) fn now_ns() -> u64 {
    NOW_NS.get()
}

/// Time goes on to `to`.
pub(crate) fn advance_to(to: u64) {
    NOW_NS.set(to.max(NOW_NS.get()));
}

/// How far the wall clock of whoever runs now is off.
pub(crate) fn set_wall_skew_ms(ms: i64) {
    WALL_SKEW_NS.set(ms.saturating_mul(1_000_000));
}

/// A node in an endless loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endless;

/// Runs all tasks of `runtime` until none can go on; the virtual time at which the next of its timers is due.
pub(crate) fn run_until_idle(runtime: &Runtime) -> Result<Option<u64>, Endless> {
    IDLE.set(None);
    TURNS.set(0);
    runtime.block_on(poll_fn(|context| {
        if IDLE.get().is_some() {
            return Poll::Ready(());
        }
        ROOT.set(Some(context.waker().clone()));
        Poll::Pending
    }));
    ROOT.set(None);
    match IDLE.take() {
        Some(TIMEOUT_ENDLESS) => Err(Endless),
        Some(ms) => Ok(u64::try_from(ms).ok().map(|ms| now_ns() + ms * 1_000_000)),
        None => Ok(None),
    }
}

const TIMEOUT_ENDLESS: c_int = -2;

fn next_random() -> u64 {
    // SplitMix64 (Steele, Lea, Flood 2014).
    let state = RANDOM.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    RANDOM.set(state);
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// As libc's.
///
/// # Safety
/// `at` points to a timespec.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn clock_gettime(clock: clockid_t, at: *mut timespec) -> c_int {
    if !IS_SIMULATED.get() {
        // SAFETY: the caller's promise is the kernel's demand.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock as c_long, at) as c_int };
    }
    let now = NOW_NS.get();
    let ns = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => {
            (WALL_BASE_NS + now).saturating_add_signed(WALL_SKEW_NS.get())
        }
        _ => BASE_NS + now,
    };
    // SAFETY: the caller promised a timespec.
    unsafe { *at = timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 } };
    0
}

/// As libc's.
///
/// # Safety
/// `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t {
    if !IS_SIMULATED.get() {
        // SAFETY: the caller's promise is the kernel's demand.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags as c_long) as ssize_t };
    }
    // SAFETY: the caller promised that much room.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for chunk in bytes.chunks_mut(8) {
        let random = next_random().to_le_bytes();
        chunk.iter_mut().zip(random).for_each(|(byte, random)| *byte = random);
    }
    length as ssize_t
}

/// As libc's; in a simulation it never waits: who would wait is idle.
///
/// # Safety
/// `events` has room for `max` events.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut libc::epoll_event,
    max: c_int,
    timeout: c_int,
) -> c_int {
    if !IS_SIMULATED.get() {
        let (mask, size) = (std::ptr::null::<c_void>(), 8_usize);
        // SAFETY: the caller's promise is the kernel's demand.
        return unsafe { libc::syscall(libc::SYS_epoll_pwait, epoll, events, max, timeout, mask, size) as c_int };
    }
    let turns = TURNS.get() + 1;
    TURNS.set(turns);
    if timeout != 0 || turns > TURNS_MAX {
        IDLE.set(Some(if timeout == 0 { TIMEOUT_ENDLESS } else { timeout }));
        ROOT.with_borrow_mut(|root| {
            if let Some(root) = root.take() {
                root.wake();
            }
        });
    }
    0
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::{Duration, Instant, SystemTime};

    use super::*;

    /// What a program sees of time and randomness. (Not the branches of `select!`: their seeds count the runtimes of
    /// the process, hence a process of its own for each seed.)
    fn seen(seed: u64) -> String {
        let program = move || {
            begin(seed);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let started = Instant::now();
            let map: HashMap<u32, u32> = (0..20).map(|n| (n, n)).collect();
            let (log, order) = (std::sync::Arc::new(std::sync::Mutex::new(Vec::new())), format!("{:?}", map.keys()));
            let told = log.clone();
            runtime.spawn(async move {
                for n in 0..5_u64 {
                    tokio::time::sleep(Duration::from_millis(1000 * n + rand::random_range(0..500_u64))).await;
                    told.lock().unwrap().push((started.elapsed(), SystemTime::now()));
                }
            });
            while let Some(next) = run_until_idle(&runtime).unwrap() {
                advance_to(next);
            }
            format!("{order} {:?}", log.lock().unwrap())
        };
        std::thread::spawn(program).join().unwrap()
    }

    #[test]
    fn a_seed_decides_what_a_program_sees_and_takes_no_time() {
        let real = Instant::now();
        let (first, other) = (seen(7), seen(8));
        assert_ne!(first, other);
        assert_eq!(first, seen(7));
        assert!(real.elapsed() < Duration::from_secs(9), "ten virtual seconds cost none of ours");
    }
}
