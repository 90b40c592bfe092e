//! A comparison as pictures: bars, one panel for each load, each with a scale of its own.
//!
//! Written by hand: rectangles and text are all that there is, and a load generator needs no library for those.

use super::summary::{Spread, number};
use super::{Contender, Report};

const WIDTH: usize = 820;
const BAR: usize = 18;
const GAP: usize = 6;
const LEFT: usize = 100;
const RIGHT: usize = 200;
const HEAD: usize = 34;
/// Where the first panel begins.
pub(crate) const TOP: usize = 40;

/// One picture.
struct Picture {
    file: &'static str,
    title: &'static str,
    figure: &'static str,
    decimals: usize,
}

const PICTURES: [Picture; 3] = [
    Picture { file: "throughput.svg", title: "messages acknowledged a second", figure: "published_per_s", decimals: 0 },
    Picture {
        file: "latency.svg",
        title: "ms from PUBLISH to its acknowledgement, p99",
        figure: "ack_p99_ms",
        decimals: 2,
    },
    Picture {
        file: "processor.svg",
        title: "us of processor time a message, all processes",
        figure: "cpu_us",
        decimals: 0,
    },
];

/// File names and contents.
pub(super) fn pictures(report: &Report) -> Vec<(&'static str, String)> {
    PICTURES.iter().map(|picture| (picture.file, draw(report, picture))).collect()
}

fn draw(report: &Report, picture: &Picture) -> String {
    let mut body = String::new();
    let mut y = TOP;
    for scenario in report.arguments.scenarios.iter().copied() {
        let bar = |contender: &Contender| Bar {
            name: contender.name().to_owned(),
            spread: Spread::of(&report.values(*contender, scenario, picture.figure)),
            is_own: *contender == Contender::Quorate,
        };
        let bars: Vec<Bar> = report.arguments.peers.iter().map(bar).collect();
        if bars.iter().any(|bar| bar.spread.is_some()) {
            body += &panel(scenario.title(), &bars, picture.decimals, &mut y);
        }
    }
    page(picture.title, &body, y)
}

/// A whole picture of panels, the last of which ended at `y`.
pub(crate) fn page(title: &str, body: &str, y: usize) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"16\">{title}</text>\n{body}</svg>\n"
    )
}

/// One line of a panel.
pub(crate) struct Bar {
    pub(crate) name: String,
    /// None: not measured.
    pub(crate) spread: Option<Spread>,
    /// Quorate's.
    pub(crate) is_own: bool,
}

/// One load; `y` goes to its end.
pub(crate) fn panel(title: &str, bars: &[Bar], decimals: usize, y: &mut usize) -> String {
    let top = bars.iter().filter_map(|bar| bar.spread.map(|s| s.max)).fold(f64::MIN_POSITIVE, f64::max);
    let length = |value: f64| value / top * (WIDTH - LEFT - RIGHT) as f64;
    let mut text = format!("<text x=\"10\" y=\"{}\" fill=\"#555\">{title}</text>\n", *y + 20);
    *y += HEAD;
    for Bar { name, spread, is_own } in bars {
        let middle = *y + BAR / 2;
        let base = middle + 4;
        text += &format!("<text x=\"{}\" y=\"{base}\" text-anchor=\"end\">{name}</text>\n", LEFT - 8);
        match spread {
            Some(spread) => {
                let [median, min, max] = [spread.median, spread.min, spread.max].map(length);
                let color = if *is_own { "#2b6cb0" } else { "#a0aec0" };
                let (from, to) = (LEFT as f64 + min, LEFT as f64 + max);
                text += &format!(
                    "<rect x=\"{LEFT}\" y=\"{}\" width=\"{median:.1}\" height=\"{BAR}\" fill=\"{color}\"/>\n\
                     <path d=\"M{from:.1} {middle}H{to:.1}\" stroke=\"black\"/>\n\
                     <text x=\"{:.1}\" y=\"{base}\">{}</text>\n",
                    *y,
                    to + 6.0,
                    number(spread.median, decimals)
                );
            }
            None => text += &format!("<text x=\"{LEFT}\" y=\"{base}\" fill=\"#888\">not measured</text>\n"),
        }
        *y += BAR + GAP;
    }
    *y += GAP;
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_fills_the_panel() {
        let rows = [("Quorate", Spread::of(&[50.0])), ("NATS", Spread::of(&[100.0])), ("RabbitMQ", None)];
        let bar = |(name, spread): (&str, _)| Bar { name: name.to_owned(), spread, is_own: false };
        let mut y = 0;
        let text = panel("latency", &rows.map(bar), 0, &mut y);
        assert!(text.contains("width=\"520.0\"") && text.contains("width=\"260.0\""), "{text}");
        assert!(text.contains("not measured") && y > 3 * BAR, "{text}");
    }
}
