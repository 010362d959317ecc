//! Latencies as bars: a group a workflow, a bar a contender, up to its median, with a whisker up to its 99th
//! percentile and a line at the ideal bound.

use super::results::Row;
use crate::text::{html, time_text};
use std::fmt::Write;

const STYLE: &str = "\
.dflow-chart { color-scheme: light dark; --paper: #ffffff; --ink: #1d2330; --faint: #66708a; --line: #d5dae5; --bound: #c0392b; background: var(--paper); }
@media (prefers-color-scheme: dark) { .dflow-chart { --paper: #14171e; --ink: #e6e9f0; --faint: #98a2b8; --line: #333b4b; --bound: #ff8a7a; } }
.dflow-chart text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.dflow-chart .title { font-size: 16px; font-weight: 600; }
.dflow-chart .faint { fill: var(--faint); font-size: 11px; }
.dflow-chart .grid { stroke: var(--line); }
.dflow-chart .whisker { stroke: var(--ink); stroke-width: 1.5; }
.dflow-chart .bound { stroke: var(--bound); stroke-width: 2; }
";

/// Apart in hue and in lightness, on light and on dark ground.
const COLOURS: [&str; 10] = [
    "#2f6fde", "#e08a1e", "#2a9d63", "#b0499c", "#8a6d3b", "#4fb3bf", "#d9534f", "#7a67c7", "#9aa4bb",
    "#5f7d1f",
];

const BAR: f64 = 20.0;
const GAP: f64 = 5.0;
const LABEL: f64 = 150.0;
const WIDTH: f64 = 900.0;
const RIGHT: f64 = 190.0;

/// The drawing, complete.
pub(super) fn draw(title: &str, rows: &[Row]) -> String {
    let mut workflows: Vec<&str> = Vec::new();
    let mut contenders: Vec<&str> = Vec::new();
    for row in rows {
        if !workflows.contains(&&*row.workflow) {
            workflows.push(&row.workflow);
        }
        if !contenders.contains(&&*row.contender) {
            contenders.push(&row.contender);
        }
    }
    let group = contenders.len() as f64 * (BAR + GAP) + 26.0;
    let (top, bottom) = (64.0, 36.0);
    let height = top + group * workflows.len() as f64 + bottom;
    let most_us =
        rows.iter().map(|row| row.latency_us.p99.max(row.bound_us())).max().unwrap_or(1).max(1) as f64;
    let scale = |us: u64| LABEL + us as f64 / most_us * (WIDTH - LABEL - RIGHT);
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg class=\"dflow-chart\" xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>{0}</title>\n<style>\n{STYLE}</style>\n<text class=\"title\" x=\"16\" y=\"26\">{0}</text>\n<text class=\"faint\" x=\"16\" y=\"44\">bar: median; whisker: 99th percentile; red line: ideal bound (critical path, or work on all cores)</text>",
        html(title)
    );
    for tick in 0..=4 {
        let us = (most_us * f64::from(tick) / 4.0) as u64;
        let x = scale(us);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{:.1}\"/><text class=\"faint\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            height - bottom,
            height - bottom + 18.0,
            time_text(us)
        );
    }
    for (at, workflow) in workflows.iter().enumerate() {
        let y0 = top + group * at as f64;
        let _ = writeln!(
            out,
            "<text x=\"16\" y=\"{:.1}\" font-weight=\"600\">{}</text>",
            y0 + 16.0,
            html(workflow)
        );
        for (index, contender) in contenders.iter().enumerate() {
            let found = rows.iter().find(|r| r.workflow == *workflow && r.contender == *contender);
            let Some(row) = found else { continue };
            let y = y0 + 22.0 + index as f64 * (BAR + GAP);
            bar(&mut out, row, y, COLOURS[index % COLOURS.len()], &scale);
        }
    }
    out.push_str("</svg>\n");
    out
}

fn bar(out: &mut String, row: &Row, y: f64, colour: &str, scale: &dyn Fn(u64) -> f64) {
    let middle = y + BAR / 2.0;
    let q = &row.latency_us;
    let (p50, p99) = (scale(q.p50), scale(q.p99));
    let star = if q.p99_is_sound() || q.samples == 0 { "" } else { "*" };
    let told = match q.samples {
        0 => "no run ended".to_owned(),
        _ => format!("{} / {}{star}", time_text(q.p50), time_text(q.p99)),
    };
    let name = html(&row.contender);
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>\
         <rect x=\"{LABEL}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"><title>{name}: {told}, {} runs</title></rect>\
         <line class=\"whisker\" x1=\"{p50:.1}\" y1=\"{middle:.1}\" x2=\"{p99:.1}\" y2=\"{middle:.1}\"/>\
         <line class=\"whisker\" x1=\"{p99:.1}\" y1=\"{:.1}\" x2=\"{p99:.1}\" y2=\"{:.1}\"/>\
         <text class=\"faint\" x=\"{:.1}\" y=\"{:.1}\">{told}</text>",
        LABEL - 8.0,
        middle + 4.0,
        (p50 - LABEL).max(0.0),
        q.samples,
        middle - 5.0,
        middle + 5.0,
        p99.max(p50) + 8.0,
        middle + 4.0,
    );
    if row.bound_us() > 0 {
        let x = scale(row.bound_us());
        let _ = writeln!(
            out,
            "<line class=\"bound\" x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>",
            y + BAR
        );
    }
}
