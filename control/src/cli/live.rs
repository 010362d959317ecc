//! A run as it happens: a tree of steps on a terminal, one line per change elsewhere.

use crate::node::{LogLine, RunView, StepView};
pub(super) use crate::text::bytes_text;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::Write as _;
use std::io::IsTerminal;

/// Steps shown one by one; larger graphs show the busiest and a count of the rest.
const ROWS_MAX: usize = 40;

/// Shows a run on stderr.
pub(super) enum Live {
    /// Redrawn in place.
    Tree { multi: MultiProgress, rows: Vec<ProgressBar>, total: ProgressBar },
    /// A line whenever a step changes its state.
    Lines { last: Vec<&'static str> },
    /// Nothing.
    Silent,
}

impl Live {
    /// A tree on a terminal, lines elsewhere.
    pub(super) fn new(view: &RunView, quiet: bool) -> Self {
        if quiet {
            return Live::Silent;
        }
        if !std::io::stderr().is_terminal() {
            return Live::Lines { last: vec!["waiting"; view.steps.len()] };
        }
        let multi = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        let row = || {
            let bar = ProgressBar::new_spinner();
            // The template is a constant of ours; only its own syntax could be wrong.
            bar.set_style(
                ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            multi.add(bar)
        };
        let rows = (0..view.steps.len().min(ROWS_MAX)).map(|_| row()).collect();
        let total = row();
        Live::Tree { multi, rows, total }
    }

    /// Shows the state now. `elapsed_s` is the run's age in seconds.
    pub(super) fn update(&mut self, view: &RunView, elapsed_s: f64) {
        match self {
            Live::Silent => {}
            Live::Lines { last } => {
                for (step, last) in view.steps.iter().zip(last) {
                    let state = state_word(step);
                    if state != *last {
                        eprintln!("{elapsed_s:8.3} s  {}", row_text(step, state));
                        *last = state;
                    }
                }
            }
            Live::Tree { rows, total, .. } => {
                let mut order: Vec<usize> = (0..view.steps.len()).collect();
                if view.steps.len() > rows.len() {
                    // Running first, then waiting, then ended; the file's order within each.
                    order.sort_by_key(|i| (rank(&view.steps[*i]), *i));
                }
                for (n, (bar, i)) in rows.iter().zip(&order).enumerate() {
                    let step = &view.steps[*i];
                    let branch = if n + 1 == rows.len() { "└─" } else { "├─" };
                    bar.set_message(format!("{branch} {}", row_text(step, state_word(step))));
                }
                total.set_message(total_text(view, elapsed_s, rows.len()));
            }
        }
    }

    /// Prints what functions printed, above the tree. `dropped` lines were lost before them.
    pub(super) fn print(&self, lines: &[LogLine], dropped: u64) {
        let show = |text: String| match self {
            // A terminal that went away is no reason to end the run.
            Live::Tree { multi, .. } => drop(multi.println(text)),
            Live::Lines { .. } | Live::Silent => eprintln!("{text}"),
        };
        if dropped > 0 {
            show(format!("({dropped} lines of output dropped)"));
        }
        lines.iter().for_each(|l| show(format!("{} | {}", l.step, l.text)));
    }

    /// Leaves the last state on the terminal.
    pub(super) fn finish(self) {
        if let Live::Tree { rows, total, .. } = self {
            rows.iter().for_each(ProgressBar::abandon);
            total.abandon();
        }
    }
}

/// The one word for a step's state.
pub(super) fn state_word(step: &StepView) -> &'static str {
    step.state_word()
}

fn rank(step: &StepView) -> u8 {
    match state_word(step) {
        "failed" => 0,
        "running" | "waiting for data" | "warming" => 1,
        "queued" => 2,
        "waiting" => 3,
        _ => 4,
    }
}

fn row_text(step: &StepView, state: &str) -> String {
    let mut text = format!("{:<24} {state:<16}", step.name);
    if let Some(items) = step.items {
        let _ = write!(text, " {}/{items} items", step.done);
    }
    if step.running > 1 {
        let _ = write!(text, " {} at work", step.running - step.blocked.min(step.running));
    }
    if step.bytes > 0 {
        let _ = write!(text, " {}", bytes_text(step.bytes));
    }
    if let (Some(start), Some(end)) = (step.first_start, step.last_end)
        && step.running == 0
    {
        let _ = write!(text, " {:.3} s", end.since_us(start) as f64 / 1e6);
    }
    if step.retried > 0 {
        let _ = write!(text, " ({} tried again)", step.retried);
    }
    if step.failed > 0 {
        let _ = write!(text, " ({} failed)", step.failed);
    }
    text.trim_end().to_string()
}

fn total_text(view: &RunView, elapsed_s: f64, rows: usize) -> String {
    let ended = view.steps.iter().filter(|s| s.complete || s.skipped).count();
    let bytes: u64 = view.steps.iter().map(|s| s.bytes).sum();
    let hidden = view.steps.len().saturating_sub(rows);
    let hidden = if hidden > 0 { format!(", {hidden} not shown") } else { String::new() };
    format!("{ended}/{} steps{hidden}, {}, {elapsed_s:.1} s", view.steps.len(), bytes_text(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_asleep_says_so() {
        let mut step = StepView { running: 2, blocked: 1, ..StepView::default() };
        assert_eq!(state_word(&step), "running");
        step.blocked = 2;
        assert_eq!(state_word(&step), "waiting for data");
    }
}
