//! Rows of results: printed as a table as they come, kept for the JSON file.

use crate::stats::Samples;
use serde_json::{Value, json};

/// What the median of a row should be.
#[derive(Clone, Debug)]
pub(crate) enum Goal {
    /// Nothing: the row is a reference, or shown beside one that has a goal.
    None,
    /// At most this, in the row's unit; the text says where it comes from.
    AtMost(f64, String),
    /// At least this.
    AtLeast(f64, String),
}

impl Goal {
    /// At most `times` of a reference that was measured in the same run.
    pub(crate) fn times(times: f64, reference: f64, name: &str) -> Goal {
        let limit = times * reference;
        Goal::AtMost(limit, format!("<= {times} {name} = {}", number(limit)))
    }

    /// At most `limit`.
    pub(crate) fn at_most(limit: f64) -> Goal {
        Goal::AtMost(limit, format!("<= {}", number(limit)))
    }

    /// At least `limit`.
    pub(crate) fn at_least(limit: f64) -> Goal {
        Goal::AtLeast(limit, format!(">= {}", number(limit)))
    }

    fn text(&self) -> &str {
        match self {
            Goal::None => "",
            Goal::AtMost(_, text) | Goal::AtLeast(_, text) => text,
        }
    }

    fn met(&self, median: f64) -> Option<bool> {
        match self {
            Goal::None => None,
            Goal::AtMost(limit, _) => Some(median <= *limit),
            Goal::AtLeast(limit, _) => Some(median >= *limit),
        }
    }
}

/// Where benchmarks put what they found.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Value>,
    notes: Vec<String>,
    skips: Vec<String>,
    benchmark: &'static str,
}

impl Report {
    /// Begins the rows of one benchmark.
    pub(crate) fn begin(&mut self, benchmark: &'static str) {
        self.benchmark = benchmark;
        say(&format!(
            "\n{:<52} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9}  {:<5} {:<24} met",
            benchmark, "n", "p50", "p90", "p99", "min", "max", "unit", "goal"
        ));
    }

    /// One row. A row without samples is not shown.
    pub(crate) fn row(&mut self, what: &str, samples: &Samples, unit: &str, goal: &Goal) {
        if samples.len() == 0 {
            return self.skip(what, "no valid sample");
        }
        let at = [0.5, 0.9, 0.99, 0.0, 1.0].map(|q| samples.quantile(q));
        let met = goal.met(at[0]);
        let word = met.map_or("", |met| if met { "yes" } else { "NO" });
        let [p50, p90, p99, min, max] = at.map(number);
        let n = samples.len();
        say(&format!(
            "{what:<52} {n:>6} {p50:>9} {p90:>9} {p99:>9} {min:>9} {max:>9}  {unit:<5} {:<24} {word}",
            goal.text()
        ));
        self.rows.push(json!({
            "benchmark": self.benchmark, "what": what, "n": n, "unit": unit,
            "p50": at[0], "p90": at[1], "p99": at[2], "min": at[3], "max": at[4],
            "goal": goal.text(), "met": met,
        }));
    }

    /// A row for something that is one number and not a distribution.
    pub(crate) fn value(&mut self, what: &str, value: f64, unit: &str, goal: &Goal) {
        self.row(what, &[value].into_iter().collect(), unit, goal);
    }

    /// Something that cannot be measured here.
    pub(crate) fn skip(&mut self, what: &str, why: &str) {
        say(&format!("SKIP {what}: {why}"));
        self.skips.push(format!("{what}: {why}"));
    }

    /// A remark below the rows.
    pub(crate) fn note(&mut self, text: &str) {
        say(&format!("  {text}"));
        self.notes.push(format!("{}: {text}", self.benchmark));
    }

    /// All rows, as one JSON document.
    pub(crate) fn into_json(self, machine: Value) -> Value {
        json!({ "machine": machine, "rows": self.rows, "notes": self.notes, "skipped": self.skips })
    }
}

/// A line of results.
pub(crate) fn say(line: &str) {
    #[expect(clippy::print_stdout, reason = "the table is this program's product")]
    {
        println!("{}", line.trim_end());
    }
}

/// Three significant digits or all that stand before the point.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "-".into(),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_judged_by_the_median() {
        assert_eq!(Goal::at_most(5.0).met(5.0), Some(true));
        assert_eq!(Goal::at_least(5.0).met(4.9), Some(false));
        assert_eq!(Goal::None.met(1.0), None);
        assert_eq!(Goal::times(1.5, 20.0, "W").text(), "<= 1.5 W = 30.0");
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.1234, 1.234, 12.34, 123.4, f64::NAN].map(number);
        assert_eq!(texts, ["0.123", "1.23", "12.3", "123", "-"]);
    }

    #[test]
    fn rows_are_kept() {
        let mut report = Report::default();
        report.begin("test");
        report.row("thing", &[3.0, 1.0, 2.0].into_iter().collect(), "us", &Goal::at_most(2.0));
        report.row("nothing", &Samples::new(), "us", &Goal::None);
        let json = report.into_json(Value::Null);
        assert_eq!(json["rows"][0]["p50"], 2.0);
        assert_eq!(json["rows"][0]["met"], true);
        assert_eq!(json["skipped"][0], "nothing: no valid sample");
    }
}
