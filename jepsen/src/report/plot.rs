//! A picture of one run: acknowledgements a second and how long they took, with the faults marked.

use std::collections::HashMap;
use std::path::Path;

use plotters::prelude::*;

use crate::history::event::{Event, OpId, What};

const SIZE: (u32, u32) = (1000, 520);
const NS_PER_S: u64 = 1_000_000_000;

/// What is drawn.
#[derive(Debug, Default)]
struct Series {
    /// Acknowledgements of each second.
    rate: Vec<u32>,
    /// Latencies in ms of each second, unsorted.
    latency: Vec<Vec<f64>>,
    /// From and to in seconds, and which nemesis.
    faults: Vec<(f64, f64, String)>,
}

fn series(events: impl IntoIterator<Item = Event>) -> Series {
    let mut series = Series::default();
    let mut begun: HashMap<OpId, u64> = HashMap::new();
    let mut standing: HashMap<u32, (f64, String)> = HashMap::new();
    let mut last_s = 0.0;
    for event in events {
        let s = event.at_ns as f64 / NS_PER_S as f64;
        last_s = s;
        match event.what {
            What::Invoke { op, .. } => drop(begun.insert(op, event.at_ns)),
            What::Ok { op, .. } => {
                let Some(from) = begun.remove(&op) else { continue };
                let second = usize::try_from(event.at_ns / NS_PER_S).unwrap_or(usize::MAX);
                if second >= series.rate.len() {
                    series.rate.resize(second + 1, 0);
                    series.latency.resize(second + 1, Vec::new());
                }
                if let (Some(n), Some(ms)) = (series.rate.get_mut(second), series.latency.get_mut(second)) {
                    *n += 1;
                    ms.push(event.at_ns.saturating_sub(from) as f64 / 1e6);
                }
            }
            What::Fault { number, nemesis, .. } => drop(standing.insert(number, (s, nemesis))),
            What::Healed { number } => {
                series.faults.extend(standing.remove(&number).map(|(from, nemesis)| (from, s, nemesis)));
            }
            _ => {}
        }
    }
    series.faults.extend(standing.into_values().map(|(from, nemesis)| (from, last_s, nemesis)));
    series.faults.sort_by(|a, b| a.0.total_cmp(&b.0));
    series
}

/// The value that so many of a hundred do not exceed.
fn percentile(values: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len().saturating_sub(1)) * percent / 100).copied()
}

/// Draws it.
///
/// # Errors
/// What the file system, or the drawing, says.
pub(crate) fn draw(
    events: impl IntoIterator<Item = Event>,
    title: &str,
    path: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let series = series(events);
    let end = series.rate.len().max(1) as f64;
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 16))?;
    let (upper, lower) = root.split_vertically(SIZE.1 / 2);
    let rate_max = f64::from(series.rate.iter().copied().max().unwrap_or(1).max(1)) * 1.15;
    let mut chart = ChartBuilder::on(&upper)
        .margin(8)
        .x_label_area_size(24)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end, 0.0..rate_max)?;
    mark(&mut chart, &series.faults, rate_max, true)?;
    chart.configure_mesh().disable_x_mesh().y_desc("acknowledged / s").draw()?;
    let rate = series.rate.iter().enumerate().map(|(second, n)| (second as f64 + 0.5, f64::from(*n)));
    chart.draw_series(LineSeries::new(rate, &BLUE))?;

    let mut chart = ChartBuilder::on(&lower)
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end, (0.1..30_000.0).log_scale())?;
    mark(&mut chart, &series.faults, 30_000.0, false)?;
    chart.configure_mesh().disable_x_mesh().x_desc("seconds").y_desc("p50, p99 / ms").draw()?;
    for (percent, color) in [(50, BLUE), (99, RED)] {
        let points = series.latency.iter().enumerate();
        let points = points.filter_map(|(second, ms)| Some((second as f64 + 0.5, percentile(ms, percent)?.max(0.1))));
        chart.draw_series(LineSeries::new(points, &color))?;
    }
    root.present()?;
    Ok(())
}

type Chart<'a, 'b, Y> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<plotters::coord::types::RangedCoordf64, Y>>;

fn mark<Y: plotters::coord::ranged1d::Ranged<ValueType = f64>>(
    chart: &mut Chart<'_, '_, Y>,
    faults: &[(f64, f64, String)],
    top: f64,
    has_names: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    let grey = BLACK.mix(0.1).filled();
    let bands = faults.iter().map(|(from, to, _)| Rectangle::new([(*from, 0.1), (*to, top)], grey));
    chart.draw_series(bands)?;
    if has_names {
        let names = (0..).zip(faults).map(|(n, (from, _, nemesis))| {
            let level = top * (0.97 - 0.06 * f64::from(n % 3));
            Text::new(nemesis.clone(), (*from, level), ("sans-serif", 11))
        });
        chart.draw_series(names)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_latencies_and_faults_are_where_they_belong() {
        let lines = r#"{"at_ns":100000000,"client":1,"event":"invoke","op":1,"f":"connect","connection":1,"node":"n1","clean_start":true,"expiry_s":0,"will":null}
{"at_ns":1500000000,"client":null,"event":"fault","number":1,"nemesis":"kill","nodes":["n1"],"what":"SIGKILL"}
{"at_ns":2100000000,"client":1,"event":"ok","op":1,"answer":"connected","present":false}
{"at_ns":2500000000,"client":null,"event":"healed","number":1}"#;
        let events = lines.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
        let series = series(events);
        assert_eq!(series.rate, [0, 0, 1]);
        assert_eq!(series.latency.last().unwrap()[..], [2000.0]);
        assert_eq!(series.faults, [(1.5, 2.5, "kill".to_owned())]);
    }

    #[test]
    fn percentiles_of_few() {
        assert_eq!(percentile(&[], 50), None);
        assert_eq!(percentile(&[3.0, 1.0, 2.0], 50), Some(2.0));
        assert_eq!(percentile(&[1.0, 2.0], 99), Some(1.0));
    }
}
