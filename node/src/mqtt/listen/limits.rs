//! How many may come in: at a time, from one address, in a second. Of the node and of each listener alike.
//!
//! A bound of 0 is none, and costs nothing. Nothing here knows sockets or clocks: it is told who comes and when.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::mqtt::reason::Reason;

/// Bits of an IPv6 address that one customer has to himself.
const IPV6_PREFIX_BITS: u32 = 64;

/// Which bound a connection would have gone beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mqtt) enum Refusal {
    /// Connections at a time.
    Connections,
    /// Connections of one address.
    Address,
    /// New connections in a second.
    Rate,
}

impl Refusal {
    pub(super) const ALL: [Self; 3] = [Self::Connections, Self::Address, Self::Rate];

    /// What CONNACK says: 3 to clients of 3.1.1, who may come again, whichever it was.
    pub(in crate::mqtt) const fn reason(self) -> Reason {
        match self {
            Self::Connections => Reason::SERVER_BUSY,
            Self::Address => Reason::QUOTA_EXCEEDED,
            Self::Rate => Reason::CONNECTION_RATE_EXCEEDED,
        }
    }

    /// Its label in metrics.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Address => "address",
            Self::Rate => "rate",
        }
    }
}

/// The bounds of the node, or of one listener.
#[derive(Debug)]
pub(in crate::mqtt) struct Bounds {
    connections_max: usize,
    connections: AtomicUsize,
    per_address_max: usize,
    addresses: Mutex<HashMap<IpAddr, usize>>,
    rate: Option<Rate>,
}

impl Bounds {
    pub(in crate::mqtt) fn new(connections_max: usize, per_address_max: usize, rate_max: u32) -> Self {
        Self {
            connections_max,
            connections: AtomicUsize::new(0),
            per_address_max,
            addresses: Mutex::default(),
            rate: (rate_max > 0).then(|| Rate::new(rate_max)),
        }
    }

    /// A new connection, before anything is known of it. False: there were too many in this second.
    pub(in crate::mqtt) fn arrives(&self, now: Instant) -> bool {
        self.rate.as_ref().is_none_or(|rate| rate.take(now))
    }

    /// One more of this address, if it has one; [`Bounds::leave`] when it is over.
    pub(in crate::mqtt) fn enter(&self, address: Option<IpAddr>) -> Result<(), Refusal> {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let refusal = if self.connections_max > 0 && before >= self.connections_max {
            Refusal::Connections
        } else if self.per_address_max > 0
            && let Some(address) = address
        {
            let mut addresses = self.addresses();
            let count = addresses.entry(counted(address)).or_default();
            if *count < self.per_address_max {
                *count += 1;
                return Ok(());
            }
            Refusal::Address
        } else {
            return Ok(());
        };
        self.connections.fetch_sub(1, Ordering::Relaxed);
        Err(refusal)
    }

    /// What was entered is over.
    pub(in crate::mqtt) fn leave(&self, address: Option<IpAddr>) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        if self.per_address_max > 0
            && let Some(address) = address
        {
            let address = counted(address);
            let mut addresses = self.addresses();
            if let Some(count) = addresses.get_mut(&address) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    addresses.remove(&address);
                }
            }
        }
    }

    fn addresses(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts as one address: of IPv6 the network that a customer gets, else he has endless many.
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << (128 - IPV6_PREFIX_BITS)))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// So many a second, and as many at once when there were none before (a token bucket).
#[derive(Debug)]
struct Rate {
    interval: Duration,
    /// When the bucket is full again.
    full_at: Mutex<Option<Instant>>,
}

impl Rate {
    fn new(per_second: u32) -> Self {
        Self { interval: Duration::from_secs(1) / per_second.max(1), full_at: Mutex::new(None) }
    }

    fn take(&self, now: Instant) -> bool {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let after = full_at.map_or(now, |at| at.max(now)) + self.interval;
        let taken = after.saturating_duration_since(now) <= Duration::from_secs(1);
        if taken {
            *full_at = Some(after);
        }
        taken
    }
}

/// Says yes at most once in a while, for log lines that anybody can cause.
#[derive(Debug, Default)]
pub(in crate::mqtt) struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    const PAUSE: Duration = Duration::from_secs(10);

    pub(in crate::mqtt) fn now(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= Self::PAUSE);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    #[test]
    fn a_bound_of_nothing_bounds_nothing() {
        let bounds = Bounds::new(0, 0, 0);
        let now = Instant::now();
        assert!((0..10_000).all(|_| bounds.arrives(now) && bounds.enter(ip("10.0.0.1")).is_ok()));
    }

    #[test]
    fn connections_and_addresses_are_given_back() {
        let bounds = Bounds::new(3, 2, 0);
        assert_eq!(bounds.enter(ip("10.0.0.1")), Ok(()));
        assert_eq!(bounds.enter(ip("::ffff:10.0.0.1")), Ok(()));
        assert_eq!(bounds.enter(ip("10.0.0.1")), Err(Refusal::Address));
        assert_eq!(bounds.enter(ip("10.0.0.2")), Ok(()));
        assert_eq!(bounds.enter(ip("10.0.0.3")), Err(Refusal::Connections));
        assert_eq!(bounds.enter(None), Err(Refusal::Connections));
        bounds.leave(ip("10.0.0.1"));
        assert_eq!(bounds.enter(ip("10.0.0.1")), Ok(()));
        for address in ["10.0.0.1", "10.0.0.1", "10.0.0.2"] {
            bounds.leave(ip(address));
        }
        assert_eq!((bounds.addresses().len(), bounds.connections.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn a_customer_of_ipv6_is_counted_once() {
        let bounds = Bounds::new(0, 1, 0);
        assert_eq!(bounds.enter(ip("2001:db8:1:2::1")), Ok(()));
        assert_eq!(bounds.enter(ip("2001:db8:1:2:ffff::2")), Err(Refusal::Address));
        assert_eq!(bounds.enter(ip("2001:db8:1:3::1")), Ok(()));
    }

    #[test]
    fn a_rate_lets_so_many_through_at_once_and_then_so_many_a_second() {
        let bounds = Bounds::new(0, 0, 10);
        let start = Instant::now();
        let through = |at: Duration| (0..50).filter(|_| bounds.arrives(start + at)).count();
        assert_eq!(through(Duration::ZERO), 10);
        assert_eq!(through(Duration::from_millis(99)), 0);
        assert_eq!(through(Duration::from_millis(500)), 5);
        assert_eq!(through(Duration::from_secs(60)), 10, "no more than a second's are saved up");
    }

    #[test]
    fn what_anybody_can_cause_is_logged_seldom() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let logged = (0..30).filter(|s| seldom.now(start + Duration::from_secs(*s))).count();
        assert_eq!(logged, 3);
    }
}
