//! The demo's words: the verdict table and the phases at a kill.

use std::time::Duration;

use super::checker::{Counts, Verdict};
use crate::client::Phases;

/// What was measured beside the verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Longest pause of a publisher on a node that survived the leader.
    pub survivor_pause: Option<Duration>,
    /// From the leader's death until all its clients were served on other nodes.
    pub clients_served: Option<Duration>,
    /// From the death of all nodes until all clients were served again.
    pub all_served: Option<Duration>,
}

/// `12345` as `12,345`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The verdict table.
#[must_use]
pub fn verdict_table(verdict: &Verdict, subscribers: usize, timings: &Timings, replicas_agree: Option<bool>) -> String {
    let mut text = format!("\n  {:<44}{:>12}{:>12}\n", "", "QoS 1", "QoS 2");
    let mut row = |label: &str, value: fn(&Counts) -> u64| {
        let (one, two) = (grouped(value(&verdict.at_least_once)), grouped(value(&verdict.exactly_once)));
        text.push_str(&format!("  {label:<44}{one:>12}{two:>12}\n"));
    };
    row("acknowledged to the publishers", |counts| counts.acknowledged);
    row(&format!("delivered to {subscribers} subscribers, together"), |counts| counts.delivered);
    row("lost", |counts| counts.lost);
    row("repeated after a broken connection", |counts| counts.repeated);
    row("duplicated", |counts| counts.duplicated);
    row("out of order", |counts| counts.out_of_order);
    text.push('\n');
    let mut line = |label: &str, value: String| text.push_str(&format!("  {label:<56}{value:>12}\n"));
    line("longest pause of a publisher on a surviving node", seconds(timings.survivor_pause));
    line("until the killed node's clients were served again", seconds(timings.clients_served));
    line("until all clients were served after all nodes were killed", seconds(timings.all_served));
    line("replicas agree (digest of all rows, three nodes)", yes_no(replicas_agree));
    if verdict.sessions_lost + verdict.invented + verdict.refused > 0 {
        line("sessions that a server forgot", grouped(verdict.sessions_lost));
        line("deliveries that nobody published", grouped(verdict.invented));
        line("publishes refused", grouped(verdict.refused));
    }
    for example in &verdict.examples {
        text.push_str(&format!("  ! {example}\n"));
    }
    text
}

fn seconds(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "not seen".to_owned(), |duration| format!("{:.2} s", duration.as_secs_f64()))
}

fn yes_no(value: Option<bool>) -> String {
    match value {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "not seen",
    }
    .to_owned()
}

/// How many exchanges were in flight in each phase.
#[must_use]
pub fn phases_text(phases: &Phases) -> String {
    format!(
        "    in flight, clients to nodes: QoS 2 PUBLISH without PUBREC {}, PUBREL without PUBCOMP {}; QoS 1 PUBLISH without PUBACK {}\n    \
         in flight, nodes to clients: QoS 2 PUBLISH without PUBREC {}, PUBREC without PUBREL {}, PUBREL without PUBCOMP {}; QoS 1 PUBLISH without PUBACK {}",
        phases.publish_without_pubrec,
        phases.pubrel_without_pubcomp,
        phases.publish_without_puback,
        phases.received_without_pubrec,
        phases.pubrec_without_pubrel,
        phases.released_without_pubcomp,
        phases.received_without_puback,
    )
}

/// Whether every phase has something in it.
#[must_use]
pub fn is_populated(phases: &Phases) -> bool {
    [
        phases.publish_without_puback,
        phases.publish_without_pubrec,
        phases.pubrel_without_pubcomp,
        phases.received_without_puback,
        phases.received_without_pubrec,
        phases.pubrec_without_pubrel,
        phases.released_without_pubcomp,
    ]
    .iter()
    .all(|count| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_scripts_and_people_look_for() {
        let counts = Counts { acknowledged: 12_345, delivered: 37_035, ..Counts::default() };
        let verdict = Verdict { at_least_once: counts, exactly_once: counts, ..Verdict::default() };
        let timings = Timings { survivor_pause: Some(Duration::from_millis(240)), ..Timings::default() };
        let table = verdict_table(&verdict, 3, &timings, Some(true));
        for part in ["12,345", "37,035", "lost", "duplicated", "out of order", "0.24 s", "not seen"] {
            assert!(table.contains(part), "{part} is not in {table}");
        }
        assert!(!table.contains('!'));
    }

    #[test]
    fn one_empty_phase_is_noticed() {
        let full = Phases {
            publish_without_puback: 1,
            publish_without_pubrec: 1,
            pubrel_without_pubcomp: 1,
            received_without_puback: 1,
            received_without_pubrec: 1,
            pubrec_without_pubrel: 1,
            released_without_pubcomp: 1,
        };
        assert!(is_populated(&full));
        assert!(!is_populated(&Phases { pubrec_without_pubrel: 0, ..full }));
    }
}
