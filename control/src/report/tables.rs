//! The page's tables.

use crate::history::RunRecord;
use crate::text::{bytes_text, html, time_text};
use crate::trace::{LinkBytes, Overlaps, PhaseKind, StretchKind, Timeline, invocation_name};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Rows of a table; those beyond are counted.
const ROWS_MAX: usize = 2000;
/// Log lines at the end of the page; `dflow logs` has all that are kept.
const LINES_MAX: usize = 300;

/// A table; columns whose head begins with `>` hold figures. Cells are HTML.
fn table(out: &mut String, head: &[&str], rows: &[Vec<String>]) {
    out.push_str("<div class=\"scroll\"><table><tr>");
    let class = |column: usize| if head[column].starts_with('>') { " class=\"n\"" } else { "" };
    for (column, name) in head.iter().enumerate() {
        let _ = write!(out, "<th{}>{}</th>", class(column), name.trim_start_matches('>'));
    }
    out.push_str("</tr>\n");
    for row in rows.iter().take(ROWS_MAX) {
        out.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let bar = if cell.starts_with("<i style") { " class=\"bar\"" } else { class(column) };
            let _ = write!(out, "<td{bar}>{cell}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
    if rows.len() > ROWS_MAX {
        let _ = writeln!(out, "<p>{} more rows are not shown.</p>", rows.len() - ROWS_MAX);
    }
}

pub(super) fn overlaps(out: &mut String, timeline: &Timeline) {
    out.push_str("<h2>What started early</h2>\n");
    out.push_str("<p>Control flow starts an invocation when the functions before it have ended; all of this would then have come later.</p>\n");
    let share = |index: usize| {
        let share = timeline.overlaps.shares[index];
        let part = 100.0 * share.wall_us as f64 / timeline.makespan_us.max(1) as f64;
        let unit = if index == 3 { "hand-over" } else { "attempt" };
        let unit = if share.count == 1 { unit.to_owned() } else { format!("{unit}s") };
        let time = |text: String| if index == 3 { String::new() } else { text };
        vec![
            format!("<i class=\"key o{index}\"></i>{}", Overlaps::NAMES[index]),
            format!("{} {unit}", share.count),
            time(time_text(share.total_us)),
            time(format!("{} ({part:.0} %)", time_text(share.wall_us))),
        ]
    };
    let rows: Vec<_> = (0..4).map(share).collect();
    table(out, &["overlap", ">how often", ">in all", ">of the run"], &rows);
}

pub(super) fn critical(out: &mut String, record: &RunRecord, timeline: &Timeline) {
    let mut sums: BTreeMap<(u32, &'static str), (u64, u64)> = BTreeMap::new();
    for stretch in &timeline.critical {
        let step = timeline.attempts[stretch.attempt as usize].step;
        let sum = sums.entry((step, stretch.kind.name())).or_default();
        sum.0 += stretch.until_us - stretch.from_us;
        sum.1 += 1;
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|(_, (us, _))| std::cmp::Reverse(*us));
    let longest = sums.first().map_or(1, |(_, (us, _))| (*us).max(1));
    let row = |((step, kind), (us, stretches)): &((u32, &str), (u64, u64))| {
        let name = record.graph.steps.get(*step as usize).map_or("", |s| s.name.as_str());
        let class = if *kind == StretchKind::Work.name() { "compute" } else { kind };
        vec![
            html(name),
            (*kind).to_owned(),
            stretches.to_string(),
            time_text(*us),
            format!("{:.1} %", 100.0 * *us as f64 / timeline.makespan_us.max(1) as f64),
            format!(
                "<i style=\"width:{:.1}%;background:var(--{class})\"></i>",
                100.0 * *us as f64 / longest as f64
            ),
        ]
    };
    out.push_str("<h2>Critical path</h2>\n<p>What the run waited for at each moment, summed by step: to make the run shorter, make one of these shorter.</p>\n");
    let rows: Vec<_> = sums.iter().map(row).collect();
    table(out, &["step", "spent on", ">stretches", ">time", ">of the run", ""], &rows);
}

pub(super) fn steps(out: &mut String, record: &RunRecord, timeline: &Timeline) {
    let kinds = PhaseKind::ALL.len();
    let mut spent: Vec<Vec<u64>> = vec![vec![0; kinds]; record.steps.len()];
    for attempt in &timeline.attempts {
        let Some(spent) = spent.get_mut(attempt.step as usize) else { continue };
        for phase in &attempt.phases {
            spent[phase.kind as usize] += phase.until_us - phase.from_us;
        }
    }
    let row = |(index, s): (usize, &crate::history::StepRow)| {
        let facts = record.graph.steps.get(index);
        let function =
            facts.map(|f| format!("{} ({})", html(&f.function), html(&f.runtime))).unwrap_or_default();
        let time = |us: Option<u64>| us.map(time_text).unwrap_or_default();
        let mut row = vec![
            html(&s.name),
            function,
            html(&s.state),
            s.items.map(|n| n.to_string()).unwrap_or_default(),
            s.done.to_string(),
            s.failed.to_string(),
            s.retried.to_string(),
            bytes_text(s.bytes),
            time(s.start_us),
            time(s.end_us),
        ];
        if let Some(places) = &record.places {
            row.insert(2, html(&places.of_step(index as u32).join(", ")));
        }
        row.extend(spent[index].iter().map(|us| if *us == 0 { String::new() } else { time_text(*us) }));
        row
    };
    let rows: Vec<_> = record.steps.iter().enumerate().map(row).collect();
    out.push_str("<h2>Steps</h2>\n<p>Times of phases are summed over attempts.</p>\n");
    let mut head = vec![
        "step",
        "function",
        "state",
        ">items",
        ">done",
        ">failed",
        ">retried",
        ">bytes",
        ">from",
        ">until",
        ">queue",
        ">memory",
        ">cold start",
        ">start",
        ">wait",
        ">compute",
        ">put",
    ];
    if record.places.is_some() {
        head.insert(2, "node");
    }
    table(out, &head, &rows);
}

pub(super) fn edges(out: &mut String, record: &RunRecord, timeline: &Timeline) {
    let mut edges: Vec<_> = timeline.edges.iter().collect();
    edges.sort_by_key(|e| std::cmp::Reverse(e.bytes));
    let most = edges.first().map_or(1, |e| e.bytes.max(1));
    let row = |e: &&crate::trace::EdgeBytes| {
        let step = |index: u32| record.graph.steps.get(index as usize);
        let name = |index: u32| step(index).map_or_else(String::new, |s| html(&s.name));
        let port = step(e.from).and_then(|s| s.outputs.get(usize::from(e.port)));
        vec![
            format!("{}.{}", name(e.from), port.map_or_else(String::new, |p| html(&p.name))),
            name(e.to),
            e.objects.to_string(),
            e.readers.to_string(),
            bytes_text(e.bytes),
            format!("<i style=\"width:{:.1}%\"></i>", 100.0 * e.bytes as f64 / most as f64),
        ]
    };
    let rows: Vec<_> = edges.iter().map(row).collect();
    out.push_str("<h2>Bytes per edge</h2>\n<p>Counted once for each reader; within a node no byte of it is copied.</p>\n");
    table(out, &["output", "read by", ">objects", ">readers", ">bytes read", ""], &rows);
}

/// Who read how much of whom.
pub(super) fn links(out: &mut String, record: &RunRecord, timeline: &Timeline) {
    let Some(places) = &record.places else { return };
    let nodes = 0..places.nodes.len() as u16;
    let most = timeline.links.values().map(|link| link.bytes).max().unwrap_or(0).max(1);
    let cell = |link: Option<&LinkBytes>| {
        let Some(link) = link else { return String::new() };
        let shade = 60.0 * link.bytes as f64 / most as f64;
        let objects = if link.objects == 1 { "object" } else { "objects" };
        format!(
            "<span class=\"heat\" style=\"--heat:{shade:.0}%\">{}</span> {} {objects}",
            bytes_text(link.bytes),
            link.objects
        )
    };
    let row = |from: u16| {
        let cells = nodes.clone().map(|to| cell(timeline.links.get(&(from, to))));
        [format!("<b>{}</b>", html(places.name(from)))].into_iter().chain(cells).collect()
    };
    let rows: Vec<Vec<String>> = nodes.clone().map(row).collect();
    let names = nodes.clone().map(|node| format!(">to {}", html(places.name(node))));
    let head: Vec<String> = ["from".to_owned()].into_iter().chain(names).collect();
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    out.push_str("<h2>Between nodes</h2>\n<p>An object counts once for each node that reads it.</p>\n");
    table(out, &head, &rows);
}

pub(super) fn failures(out: &mut String, record: &RunRecord) {
    if record.failures.is_empty() {
        return;
    }
    out.push_str("<h2>Failures</h2>\n");
    for failure in record.failures.iter().take(ROWS_MAX) {
        let then = if failure.retried { ", tried again" } else { "" };
        let _ = writeln!(
            out,
            "<p><b>{}</b>, attempt {}, at {}{then}</p><div class=\"error\">{}</div>",
            html(&invocation_name(&record.graph, failure.step, failure.item)),
            failure.attempt,
            time_text(failure.at_us),
            html(&failure.message)
        );
    }
}

pub(super) fn logs(out: &mut String, record: &RunRecord) {
    if record.logs.is_empty() {
        return;
    }
    let skipped = record.logs.len().saturating_sub(LINES_MAX);
    let before = skipped as u64 + record.logs_dropped;
    let _ = write!(out, "<h2>Printed by functions</h2>\n<details open><summary>{} lines", record.logs.len());
    if before > 0 {
        let _ = write!(out, ", {before} earlier ones not shown");
    }
    out.push_str("</summary><div class=\"scroll\"><pre>");
    for line in &record.logs[skipped..] {
        let _ = writeln!(out, "{} | {}", html(&line.step), html(&line.text));
    }
    out.push_str("</pre></div></details>\n");
}
