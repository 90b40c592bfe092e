//! A comparison as a page of tables.

use super::scenario::{Column, Scenario};
use super::summary::{Spread, number};
use super::{Contender, Outcome, Report};

/// One measurement in one line, while it runs.
pub(super) fn line(scenario: Scenario, outcome: &Outcome) -> String {
    match outcome {
        Outcome::Measured { figures, .. } => {
            let shown = scenario.columns().iter().filter_map(|column| {
                let value = figures.get(column.figure)?;
                Some(format!("{} {}", column.heading, number(*value, column.decimals)))
            });
            shown.collect::<Vec<_>>().join("; ")
        }
        Outcome::Failed(why) => format!("failed: {why}"),
        Outcome::Lacking(why) => format!("not measured: {why}"),
    }
}

/// All of it.
pub(super) fn page(report: &Report) -> String {
    let arguments = &report.arguments;
    let mut text = format!(
        "# Brokers beside each other\n\n\
         {}. Repetitions: {}; measured seconds of each load: {}; payloads of 256 bytes; MQTT 3.1.1; persistent \
         sessions; publishers on the first node, subscribers on the second where there is one; new nodes for each \
         load. Median (lowest–highest). All nodes, their disks and the load generator share the machine.\n\n\
         | broker | version | nodes | what has happened to a message when its PUBACK arrives |\n|---|---|---|---|\n",
        report.machine, arguments.repetitions, arguments.seconds
    );
    for (_, it) in &report.contenders {
        text += &format!("| {} | {} | {} | {} |\n", it.name, it.version, it.nodes, it.durability);
    }
    for scenario in arguments.scenarios.iter().copied() {
        text += &table(report, scenario);
    }
    text += "\n## Configuration of the first node of each\n";
    for (_, it) in &report.contenders {
        text += &format!("\n{}:\n```\n{}```\n", it.name, it.configuration);
    }
    text
}

fn table(report: &Report, scenario: Scenario) -> String {
    let columns = scenario.columns();
    let mut text = format!("\n## {}\n\n", heading(report, scenario));
    text +=
        &format!("| |{}\n|---|{}\n", cells(columns, |c| c.heading.to_owned()), cells(columns, |_| "---".to_owned()));
    for contender in report.arguments.peers.iter().copied() {
        let cell = |column: &Column| {
            let spread = Spread::of(&report.values(contender, scenario, column.figure));
            spread.map_or_else(|| "–".to_owned(), |spread| spread.shown(column.decimals))
        };
        text += &format!("| {} |{}\n", contender.name(), cells(columns, cell));
    }
    let notes = notes(report, scenario);
    if notes.is_empty() { text } else { text + "\n" + &notes }
}

fn heading(report: &Report, scenario: Scenario) -> String {
    let arguments = &report.arguments;
    match scenario {
        Scenario::Offline => format!("{}: {} messages", scenario.title(), number(arguments.offline_messages as f64, 0)),
        Scenario::Idle => format!("{} {}", number(f64::from(arguments.idle_connections), 0), scenario.title()),
        _ => scenario.title().to_owned(),
    }
}

fn cells(columns: &[Column], cell: impl Fn(&Column) -> String) -> String {
    columns.iter().map(|column| format!(" {} |", cell(column))).collect()
}

/// What was not measured, and why.
fn notes(report: &Report, scenario: Scenario) -> String {
    let mut notes = String::new();
    let mut last: Option<(Contender, &str)> = None;
    for measurement in report.measurements.iter().filter(|m| m.scenario == scenario) {
        let (contender, repetition) = (measurement.contender, measurement.repetition);
        match &measurement.outcome {
            // The same in each repetition.
            Outcome::Lacking(why) if last != Some((contender, why)) && repetition == 1 => {
                notes += &format!("- {}: not measured, {why}.\n", contender.name());
                last = Some((contender, why));
            }
            Outcome::Failed(why) => {
                let why = why.lines().collect::<Vec<_>>().join(" / ");
                notes += &format!("- {}, repetition {repetition}: failed, {why}.\n", contender.name());
            }
            _ => {}
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::compare::scenario::Figures;
    use crate::compare::{CompareArgs, Measurement};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: CompareArgs,
    }

    fn measured(repetition: u32, per_s: f64) -> Measurement {
        let figures = Figures::from([("published_per_s", per_s), ("ack_p50_ms", 1.25)]);
        let outcome = Outcome::Measured { figures, report: serde_json::Value::Null };
        let (contender, scenario) = (Contender::Quorate, Scenario::Throughput);
        Measurement { contender, scenario, repetition, took_s: 1.0, outcome }
    }

    fn other(contender: Contender, scenario: Scenario, outcome: Outcome) -> Measurement {
        Measurement { contender, scenario, repetition: 1, took_s: 1.0, outcome }
    }

    #[test]
    fn a_table_has_medians_spreads_and_what_failed() {
        let args = Cli::parse_from(["compare"]).args;
        let report = Report {
            machine: "a machine".to_owned(),
            arguments: args,
            contenders: Vec::new(),
            measurements: vec![
                measured(1, 50_000.0),
                measured(2, 40_000.0),
                measured(3, 60_000.0),
                other(Contender::Nats, Scenario::Throughput, Outcome::Failed("it hung".to_owned())),
                other(Contender::Nats, Scenario::ExactlyOnce, Outcome::Lacking("no such thing".to_owned())),
            ],
        };
        let page = page(&report);
        assert!(page.contains("| Quorate | 50,000 (40,000–60,000) | – | 1.25 |"), "{page}");
        assert!(page.contains("- NATS, repetition 1: failed, it hung."), "{page}");
        assert!(page.contains("- NATS: not measured, no such thing."), "{page}");
    }

    #[test]
    fn all_loads_and_brokers_are_the_default() {
        let args = Cli::parse_from(["compare"]).args;
        assert_eq!(args.peers.len(), 4);
        assert_eq!(args.scenarios, Scenario::ALL);
    }
}
