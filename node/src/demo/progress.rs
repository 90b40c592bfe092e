//! Progress while the demo runs: a spinner on a terminal, a line every two seconds elsewhere. Steps and
//! results go to standard output, the spinner to standard error.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::report::grouped;

/// Between two lines where no terminal is.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Shows what happens.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    bar: Option<ProgressBar>,
    last_line: Mutex<Instant>,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Begins.
    #[must_use]
    pub fn new() -> Self {
        let bar = (std::io::stderr().is_terminal() && std::io::stdout().is_terminal()).then(|| {
            let style =
                ProgressStyle::with_template("  {spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let started = Instant::now();
        Self { started, bar, last_line: Mutex::new(started) }
    }

    /// A step, with the time.
    pub fn step(&self, text: &str) {
        self.print(&format!("[{:5.1} s] {text}", self.started.elapsed().as_secs_f64()));
    }

    /// A line.
    pub fn print(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print_line(text)),
            None => print_line(text),
        }
    }

    /// How far the load is; `what` is going on.
    pub fn counts(&self, acknowledged: u64, delivered: u64, what: &str) {
        let text = format!("{} acknowledged, {} delivered: {what}", grouped(acknowledged), grouped(delivered));
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            return;
        }
        let mut last = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= LINE_INTERVAL {
            *last = Instant::now();
            self.step(&format!("  {text}"));
        }
    }

    /// No more spinner.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// That nobody reads any more does not end the demo.
fn print_line(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}
