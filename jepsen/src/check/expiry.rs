//! Guarantee 11, what has expired is not sent for the first time [MQTT-3.3.2-5].
//!
//! A message that was certainly published once, and acknowledged, arrives for the first time (DUP=0) within its Message
//! Expiry Interval of the acknowledgement, and what cluster time may be behind our clock: as for wills
//! ([`Expectations::will_late_ns_max`]). What may have been sent before goes on, expired or not.
//!
//! That it need not arrive is for the other checks to know: [`super::no_loss`], [`super::shared`], [`super::replay`].
//!
//! [`Expectations::will_late_ns_max`]: super::verdict::Expectations::will_late_ns_max

use super::run::{Freshness, Run};
use super::verdict::{Found, Guarantee, Kind};

const NS_PER_S: u64 = 1_000_000_000;

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    for arrival in &run.index.arrivals {
        let Some(message) = arrival.message.filter(|_| !arrival.dup && !arrival.retain) else { continue };
        let Some(expiry_s) = run.index.messages[message].expiry_s else { continue };
        let effect = run.effects[message];
        if effect.times != 1 || !effect.is_acknowledged || run.freshness(arrival) == Freshness::Stale {
            continue;
        }
        let expiry_ns = u64::from(expiry_s).saturating_mul(NS_PER_S);
        let (by_ns, arrived_ns) = (run.index.at_ns(effect.by), run.index.at_ns(arrival.line));
        let expired_ns = by_ns.saturating_add(expiry_ns);
        if arrived_ns > run.outages.after(by_ns, expiry_ns.saturating_add(run.expectations.will_late_ns_max)) {
            let late_s = (arrived_ns - expired_ns) / NS_PER_S;
            let what = format!("came for the first time {late_s} s after it had expired");
            let bad = run.violation(Guarantee::Bounded, Kind::Unwanted, Some(arrival.client), Some(message), what);
            found.violations.push(bad);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::{History, broken};
    use crate::check::verdict::Guarantee::Bounded;

    /// A message of 2 s that comes so long after its acknowledgement; none: it does not come.
    fn came_after(seconds: Option<u64>, dup: bool) -> History {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).subscribe(2, 1, "a", 1).publish_expiring(1, 1, 0, "a", 1, 2);
        if let Some(seconds) = seconds {
            h.wait_s(seconds);
            if dup {
                h.lost(2, 1).resume(2, 2).again(2, 2, (1, 0), "a", 1, 1).settle(2, 2, 1);
            } else {
                h.deliver(2, 1, (1, 0), "a", 1, 1).settle(2, 1, 1);
            }
        }
        h.drain();
        h
    }

    #[test]
    fn what_has_expired_does_not_come_for_the_first_time() {
        assert_eq!(broken(&came_after(Some(1), false)), []);
        assert_eq!(broken(&came_after(Some(10), false)), [], "cluster time may be behind");
        assert_eq!(broken(&came_after(Some(60), false)), [(Bounded, Some(0))]);
        assert_eq!(broken(&came_after(Some(60), true)), [], "it may have been sent before");
    }

    #[test]
    fn what_has_expired_need_not_come() {
        assert_eq!(broken(&came_after(None, false)), []);
    }
}
