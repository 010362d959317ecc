//! A run as one page of HTML that needs nothing else: no network, no other file.
//!
//! Names, messages and log lines are other people's text: all of it goes through
//! [`html`](crate::text::html) on its way into the page.

mod gantt;
mod tables;

use crate::history::{Outcome, RunRecord};
use crate::text::{bytes_text, html, time_text, utc_text};
use crate::trace::Timeline;
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page.
pub fn page(record: &RunRecord, timeline: &Timeline) -> String {
    let summary = &record.summary;
    let mut out = String::new();
    let title = html(&format!("{} {}", summary.workflow, summary.run));
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'\">\n<title>{title}</title>\n<style>\n{STYLE}</style></head>\n<body>\n"
    );
    header(&mut out, record, timeline);
    out.push_str("<h2>Where the time went</h2>\n");
    gantt::draw(&mut out, record, timeline);
    tables::overlaps(&mut out, timeline);
    tables::critical(&mut out, record, timeline);
    out.push_str("<h2>Graph</h2>\n");
    if record.graph.drawing.is_empty() {
        out.push_str("<p>The drawing was too large to be kept; <code>dflow graph -f svg</code> makes one of the file.</p>\n");
    } else {
        // Drawn by `graphview`, which escapes what it is given.
        let _ = writeln!(out, "<div class=\"scroll\">{}</div>", record.graph.drawing);
    }
    tables::steps(&mut out, record, timeline);
    tables::edges(&mut out, record, timeline);
    tables::links(&mut out, record, timeline);
    tables::failures(&mut out, record);
    tables::logs(&mut out, record);
    let _ = write!(out, "<div id=\"tip\"></div>\n<script>\n{SCRIPT}</script>\n</body></html>\n");
    out
}

fn header(out: &mut String, record: &RunRecord, timeline: &Timeline) {
    let s = &record.summary;
    let _ = writeln!(
        out,
        "<h1>{} <span class=\"badge {}\">{}</span></h1>",
        html(&s.workflow),
        s.outcome.word(),
        s.outcome.word()
    );
    let start = record.start.map(|s| format!(", started by <b>{s}</b> (command line)")).unwrap_or_default();
    let _ = writeln!(
        out,
        "<p>run <b>{}</b> of {}, {} on {}{start}</p>",
        html(&s.run),
        html(&s.file),
        utc_text(s.started_unix_us),
        html(&record.node.host)
    );
    if let Outcome::Failed(text) | Outcome::Cancelled(text) | Outcome::Deadline(text) = &s.outcome {
        let _ = writeln!(out, "<div class=\"error\">{}</div>", html(text));
    }
    let bound = timeline.bound;
    let cores = f64::from(record.node.cpu_milli) / 1000.0;
    let over = match bound.us() {
        0 => String::new(),
        us => format!("{:.2}x the ideal bound", s.makespan_us as f64 / us as f64),
    };
    let tiles = [
        (time_text(s.makespan_us), "makespan".to_owned(), over),
        (time_text(bound.us()), "ideal bound".to_owned(), "the longer of the next two".to_owned()),
        (time_text(bound.path_us), "critical path of work".to_owned(), "data and work alone".to_owned()),
        (time_text(bound.work_us), format!("work / {cores} cores"), "no gap, no start".to_owned()),
        (s.attempts.to_string(), "attempts".to_owned(), format!("{} steps", s.steps)),
        (bytes_text(s.bytes), "put by steps".to_owned(), format!("{} objects", timeline.objects.len())),
    ];
    out.push_str("<div class=\"tiles\">\n");
    for (value, name, more) in tiles {
        let _ = writeln!(out, "<div class=\"tile\"><b>{value}</b>{name}<br><span>{more}</span></div>");
    }
    out.push_str("</div>\n");
    if !record.inputs.is_empty() {
        let input = |i: &crate::history::InputFacts| {
            let file = i.file.as_ref().map(|f| format!(" from {}", html(f))).unwrap_or_default();
            format!("<b>{}</b> {}{file}", html(&i.name), bytes_text(i.bytes))
        };
        let inputs: Vec<String> = record.inputs.iter().map(input).collect();
        let _ = writeln!(out, "<p>inputs: {}</p>", inputs.join(", "));
    }
    if record.events_dropped > 0 {
        let _ =
            writeln!(out, "<p>{} events were not kept; what follows ends early.</p>", record.events_dropped);
    }
}
