//! The chart of attempts over time: phases as bars, overlaps as bands under them, the critical path as
//! a line through them.
//!
//! Everything between the axes stands in one group whose units are microseconds; zooming changes that
//! group's transformation and nothing else.

use crate::history::RunRecord;
use crate::text::{bytes_text, html, time_text};
use crate::trace::{Attempt, Overlaps, PhaseKind, Timeline, invocation_name, lanes};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Attempts that are drawn.
const ATTEMPTS_MAX: usize = 20_000;
/// Bands of overlaps that are drawn.
const SHADES_MAX: usize = 20_000;
/// Lanes up to which each step has its own; more are drawn by slot.
const STEP_LANES_MAX: u32 = 120;
const WIDTH: f64 = 1200.0;
const LEFT: f64 = 170.0;
const TOP: f64 = 24.0;
const LANE: f64 = 24.0;
const BAR: f64 = 14.0;

/// Where each attempt is drawn.
struct Rows {
    /// Lane of each attempt.
    lane: Vec<u32>,
    /// Name and first lane of each row.
    rows: Vec<(String, u32)>,
    count: u32,
}

pub(super) fn draw(out: &mut String, record: &RunRecord, timeline: &Timeline) {
    if timeline.attempts.is_empty() {
        out.push_str("<p>No invocation started.</p>\n");
        return;
    }
    legend(out);
    let rows = rows(record, timeline);
    let end_us = timeline.attempts.iter().map(|a| a.ended_us).max().unwrap_or(0);
    let span_us = end_us.max(timeline.makespan_us).max(1);
    let height = TOP + f64::from(rows.count) * LANE + 6.0;
    let width = WIDTH - LEFT - 10.0;
    let scale = width / span_us as f64;
    let _ = writeln!(
        out,
        "<div class=\"scroll\"><svg class=\"gantt\" viewBox=\"0 0 {WIDTH} {height}\" data-left=\"{LEFT}\" \
         data-width=\"{width}\" data-us=\"{span_us}\" role=\"img\" aria-label=\"attempts over time\">"
    );
    let _ = writeln!(
        out,
        "<defs><clipPath id=\"inside\"><rect x=\"{LEFT}\" y=\"0\" width=\"{}\" height=\"{height}\"/></clipPath></defs>",
        WIDTH - LEFT
    );
    for (index, (_, lane)) in rows.rows.iter().enumerate().filter(|(index, _)| index % 2 == 0) {
        let end = rows.rows.get(index + 1).map_or(rows.count, |(_, lane)| *lane);
        let _ = writeln!(
            out,
            "<rect class=\"band\" x=\"0\" y=\"{}\" width=\"{WIDTH}\" height=\"{}\"/>",
            TOP + f64::from(*lane) * LANE,
            f64::from(end - lane) * LANE
        );
    }
    axis(out, span_us, scale, height);
    let _ = writeln!(
        out,
        "<g clip-path=\"url(#inside)\"><g class=\"plot\" transform=\"translate({LEFT} 0) scale({scale:e} 1)\">"
    );
    for (index, attempt) in timeline.attempts.iter().enumerate().take(ATTEMPTS_MAX) {
        bar(out, record, timeline, attempt, y_of(&rows, index));
    }
    shades(out, record, timeline, &rows);
    critical(out, timeline, &rows);
    out.push_str("</g></g>\n");
    for (name, lane) in &rows.rows {
        let shown: String = name.chars().take(24).collect();
        let _ = writeln!(
            out,
            "<text x=\"6\" y=\"{:.1}\" data-t=\"{}\">{}</text>",
            TOP + f64::from(*lane) * LANE + 14.0,
            html(name),
            html(&shown)
        );
    }
    out.push_str("</svg></div>\n");
    if timeline.attempts.len() > ATTEMPTS_MAX {
        let _ = writeln!(
            out,
            "<p>The first {ATTEMPTS_MAX} of {} attempts are drawn.</p>",
            timeline.attempts.len()
        );
    }
}

fn legend(out: &mut String) {
    out.push_str("<div class=\"legend\">");
    for kind in PhaseKind::ALL {
        let _ = write!(out, "<span><i class=\"key {}\"></i>{}</span>", class(kind), kind.name());
    }
    out.push_str(
        "<span><button data-zoom=\"0.5\">+</button> <button data-zoom=\"2\">&minus;</button> \
         <button data-zoom=\"0\">all</button></span></div>\n<div class=\"legend\">\
         <label><input type=\"checkbox\" checked data-hide=\"critical\"> <i class=\"key critical\"></i>critical path</label>",
    );
    for (index, name) in Overlaps::NAMES.iter().enumerate() {
        let _ = write!(
            out,
            "<label><input type=\"checkbox\" checked data-hide=\"o{index}\"> <i class=\"key o{index}\"></i>{name}</label>"
        );
    }
    out.push_str("</div>\n<p>Zoom with the buttons or Ctrl and the wheel; drag to move.</p>\n");
}

fn class(kind: PhaseKind) -> &'static str {
    match kind {
        PhaseKind::Queue => "queue",
        PhaseKind::Memory => "memory",
        PhaseKind::Cold => "cold",
        PhaseKind::Start => "start",
        PhaseKind::Wait => "wait",
        PhaseKind::Compute => "compute",
        PhaseKind::Put => "put",
    }
}

/// A row for each step with as many lanes as it needs, or, if these are too many, a lane for each slot.
fn rows(record: &RunRecord, timeline: &Timeline) -> Rows {
    let mut steps: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (index, attempt) in timeline.attempts.iter().enumerate() {
        steps.entry(attempt.step).or_default().push(index);
    }
    let mut rows = Rows { lane: vec![0; timeline.attempts.len()], rows: Vec::new(), count: 0 };
    for (step, mut attempts) in steps {
        attempts.sort_by_key(|i| timeline.attempts[*i].ready_us);
        // What queues is drawn in its lane, unless that would take more lanes than there is room for.
        let with_queue =
            lanes(attempts.iter().map(|i| &timeline.attempts[*i]).map(|a| (a.ready_us, a.ended_us)));
        let placed = if with_queue.iter().any(|lane| *lane >= record.node.slots.max(4)) {
            attempts.sort_by_key(|i| timeline.attempts[*i].started_us);
            lanes(attempts.iter().map(|i| &timeline.attempts[*i]).map(|a| (a.started_us, a.ended_us)))
        } else {
            with_queue
        };
        let name = record.graph.steps.get(step as usize).map_or_else(String::new, |s| s.name.clone());
        rows.rows.push((name, rows.count));
        for (attempt, lane) in attempts.iter().zip(&placed) {
            rows.lane[*attempt] = rows.count + lane;
        }
        rows.count += placed.iter().max().map_or(0, |lane| lane + 1);
    }
    if rows.count > STEP_LANES_MAX {
        rows.lane = lanes(timeline.attempts.iter().map(|a| (a.started_us, a.ended_us)));
        rows.count = rows.lane.iter().max().map_or(0, |lane| lane + 1);
        rows.rows = (0..rows.count).map(|lane| (format!("slot {lane}"), lane)).collect();
    }
    rows
}

fn y_of(rows: &Rows, attempt: usize) -> f64 {
    TOP + f64::from(rows.lane[attempt]) * LANE + 3.0
}

/// As the script draws it, for a viewer without scripts.
fn axis(out: &mut String, span_us: u64, scale: f64, height: f64) {
    let raw = span_us as f64 / 8.0;
    let power = 10f64.powf(raw.log10().floor());
    let step =
        ([1.0, 2.0, 5.0, 10.0].into_iter().find(|m| m * power >= raw).unwrap_or(10.0) * power).max(1.0);
    out.push_str("<g class=\"axis\">\n");
    let mut us = 0.0;
    while us <= span_us as f64 {
        let x = LEFT + us * scale;
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"20\" y2=\"{height}\"/><text class=\"small\" x=\"{:.1}\" y=\"14\">{}</text>",
            x + 3.0,
            time_text(us as u64)
        );
        us += step;
    }
    out.push_str("</g>\n");
}

fn bar(out: &mut String, record: &RunRecord, timeline: &Timeline, attempt: &Attempt, y: f64) {
    let name = invocation_name(&record.graph, attempt.step, attempt.item);
    let written: u64 = attempt.puts.iter().map(|p| p.bytes).sum();
    let outcome = match attempt.ok {
        Some(true) => "",
        Some(false) => ", failed",
        None => ", unfinished",
    };
    let cold = if attempt.cold { ", cold" } else { "" };
    let _ = writeln!(
        out,
        "<g data-t=\"{}\">",
        html(&format!(
            "{name}, attempt {}{outcome}{cold}\n{} to {}, {}\nput {}, waited {}, CPU {}",
            attempt.attempt,
            time_text(attempt.started_us),
            time_text(attempt.ended_us),
            time_text(attempt.ended_us - attempt.started_us),
            bytes_text(written),
            time_text(attempt.wait_us),
            time_text(attempt.cpu_us)
        ))
    );
    for phase in &attempt.phases {
        let queue = phase.kind == PhaseKind::Queue;
        let (y, height) = if queue { (y + BAR / 2.0 - 2.0, 4.0) } else { (y, BAR) };
        let _ = write!(
            out,
            "<rect class=\"{}\" x=\"{}\" y=\"{y}\" width=\"{}\" height=\"{height}\"",
            class(phase.kind),
            phase.from_us,
            phase.until_us - phase.from_us
        );
        let detail = phase_text(record, timeline, attempt, phase);
        let _ = writeln!(out, " data-t=\"{}\"/>", html(&format!("{name}\n{detail}")));
    }
    if attempt.ok == Some(false) {
        let _ = writeln!(
            out,
            "<rect class=\"failed\" x=\"{}\" y=\"{y}\" width=\"{}\" height=\"{BAR}\"/>",
            attempt.started_us,
            attempt.ended_us - attempt.started_us
        );
    }
    out.push_str("</g>\n");
}

fn phase_text(
    record: &RunRecord,
    timeline: &Timeline,
    attempt: &Attempt,
    phase: &crate::trace::Phase,
) -> String {
    let mut text = format!("{}: {}", phase.kind.name(), time_text(phase.until_us - phase.from_us));
    let wait = attempt.waits.iter().find(|w| w.from_us == phase.from_us && phase.kind == PhaseKind::Wait);
    if let Some((wait, input)) = wait.and_then(|w| Some((w, w.input?))) {
        let step = record.graph.steps.get(attempt.step as usize);
        let name = step.and_then(|s| s.inputs.get(usize::from(input))).map_or("", |(name, _)| name.as_str());
        let _ = write!(text, "\nfor input {name}");
        if let Some(item) = wait.item {
            let _ = write!(text, "[{item}]");
        }
        if let Some(producer) = timeline.producer_of_wait(attempt, wait) {
            let _ = write!(text, " of {}", invocation_name(&record.graph, producer.0, producer.1));
        }
    }
    text
}

fn shades(out: &mut String, record: &RunRecord, timeline: &Timeline, rows: &Rows) {
    let drawn = timeline.overlaps.shades.iter().filter(|s| (s.attempt as usize) < ATTEMPTS_MAX);
    for shade in drawn.take(SHADES_MAX) {
        let attempt = &timeline.attempts[shade.attempt as usize];
        let y = y_of(rows, shade.attempt as usize) + BAR + 1.0;
        let name = invocation_name(&record.graph, attempt.step, attempt.item);
        let us = shade.until_us - shade.from_us;
        let took = if us > 0 { format!(": {}", time_text(us)) } else { String::new() };
        let told = html(&format!("{name}\n{}{took}", Overlaps::NAMES[shade.overlap]));
        let (class, x) = (shade.overlap, shade.from_us);
        let _ = if us == 0 {
            // A moment has no width; a stroke does.
            writeln!(out, "<path class=\"o{class} moment\" d=\"M{x} {y}v5\" data-t=\"{told}\"/>")
        } else {
            writeln!(
                out,
                "<rect class=\"o{class}\" x=\"{x}\" y=\"{y}\" width=\"{us}\" height=\"4\" data-t=\"{told}\"/>"
            )
        };
    }
}

/// The chain of causes, from the beginning to the end.
fn critical(out: &mut String, timeline: &Timeline, rows: &Rows) {
    let mut d = String::new();
    for stretch in timeline.critical.iter().rev().filter(|s| (s.attempt as usize) < ATTEMPTS_MAX) {
        let y = y_of(rows, stretch.attempt as usize) + BAR / 2.0;
        let command = if d.is_empty() { "M" } else { "L" };
        let _ = write!(d, "{command}{} {y}H{}", stretch.from_us, stretch.until_us);
    }
    if !d.is_empty() {
        let _ = writeln!(out, "<path class=\"critical\" d=\"{d}\"/>");
    }
}
