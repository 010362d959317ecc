//! A drawing that needs nothing else.

use super::layout::{NODE_HEIGHT, NODE_WIDTH, layout};
use super::{EdgeKind, Node, View, listed, short};
use std::fmt::Write;

/// Rules for this drawing only: it may stand among others in one page.
const STYLE: &str = "\
.dflow-graph { color-scheme: light dark; --paper: #ffffff; --ink: #1d2330; --faint: #66708a; --box: #f3f5f9; --line: #9aa4bb; --mark: #2f6fde; background: var(--paper); }
@media (prefers-color-scheme: dark) { .dflow-graph { --paper: #14171e; --ink: #e6e9f0; --faint: #98a2b8; --box: #202531; --line: #5d6880; --mark: #7aa7ff; } }
.dflow-graph text { font-family: system-ui, sans-serif; fill: var(--ink); font-size: 13px; }
.dflow-graph .title { font-size: 17px; font-weight: 600; }
.dflow-graph .small { font-size: 11px; fill: var(--faint); }
.dflow-graph rect { fill: var(--box); stroke: var(--line); }
.dflow-graph .switch { stroke: var(--mark); stroke-dasharray: 5 3; }
.dflow-graph .makes { stroke: var(--mark); stroke-width: 2; }
.dflow-graph path { fill: none; stroke: var(--line); stroke-width: 1.4; }
.dflow-graph .stream { stroke: var(--mark); stroke-width: 2; }
.dflow-graph .condition { stroke-dasharray: 5 4; }
.dflow-graph .order { stroke-dasharray: 1.5 4; }
.dflow-graph .head { fill: var(--line); stroke: none; }
";

/// Characters of the 13 and 11 pixel fonts that fit a box.
const NAME_CHARS: usize = 24;
const SMALL_CHARS: usize = 31;

pub(super) fn render(view: &View) -> String {
    let layout = layout(view);
    let (width, height) = (layout.width, layout.height);
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg class=\"dflow-graph\" xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">"
    );
    let _ = writeln!(out, "<title>{}</title>\n<style>\n{STYLE}</style>", escaped(&view.title));
    out.push_str("<defs><marker id=\"head\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" markerUnits=\"userSpaceOnUse\" orient=\"auto\"><path class=\"head\" d=\"M0 0L8 4L0 8z\"/></marker></defs>\n");
    let _ =
        writeln!(out, "<text class=\"title\" x=\"24\" y=\"34\">{}</text>", escaped(&short(&view.title, 100)));
    for (edge, points) in view.edges.iter().zip(&layout.edges) {
        let class = match edge.kind {
            EdgeKind::Stream => "stream",
            EdgeKind::Data => "data",
            EdgeKind::Condition => "condition",
            EdgeKind::Order => "order",
        };
        let what = match edge.kind {
            EdgeKind::Condition if edge.ports.is_empty() => "condition".to_owned(),
            EdgeKind::Order => "after".to_owned(),
            _ => edge.ports.join(", "),
        };
        let (from, to) = (&view.nodes[edge.from].name, &view.nodes[edge.to].name);
        let title = escaped(&format!("{from} -> {to}: {what}"));
        let _ = writeln!(
            out,
            "<path class=\"{class}\" d=\"{}\" marker-end=\"url(#head)\"><title>{title}</title></path>",
            curve(points)
        );
    }
    for (node, (x, y)) in view.nodes.iter().zip(&layout.nodes) {
        draw_node(&mut out, node, *x, *y);
    }
    out.push_str("</svg>\n");
    out
}

fn draw_node(out: &mut String, node: &Node, x: f64, y: f64) {
    let class = match (node.kind, node.makes.is_empty()) {
        ("switch", _) => "switch",
        (_, false) => "makes",
        _ => "step",
    };
    let mut details = vec![format!("{}: {} {}", node.name, node.kind, node.function).trim_end().to_owned()];
    details.extend(node.notes.iter().cloned());
    if !node.reads.is_empty() {
        details.push(format!("reads {}", listed(&node.reads, 20)));
    }
    if !node.makes.is_empty() {
        details.push(format!("makes output {}", node.makes.join(", ")));
    }
    let _ = writeln!(out, "<g><title>{}</title>", escaped(&details.join("\n")));
    let foreach = node.notes.iter().any(|note| note.starts_with("foreach"));
    if foreach {
        // A second sheet behind what runs many times.
        let _ = writeln!(
            out,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{NODE_WIDTH}\" height=\"{NODE_HEIGHT}\" rx=\"7\"/>",
            x + 4.0,
            y + 4.0
        );
    }
    let _ = writeln!(
        out,
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{NODE_WIDTH}\" height=\"{NODE_HEIGHT}\" rx=\"7\"/>"
    );
    let mut second = format!("{} {}", node.kind, node.function).trim_end().to_owned();
    if !node.makes.is_empty() {
        second = format!("{second} \u{21d2} {}", node.makes.join(", "));
    }
    let inputs: Vec<String> =
        node.reads.iter().filter_map(|read| read.strip_prefix("inputs.")).map(str::to_owned).collect();
    let third = match (node.notes.first(), inputs.is_empty()) {
        (Some(note), _) => note.clone(),
        (None, false) => format!("\u{2190} {}", inputs.join(", ")),
        (None, true) => String::new(),
    };
    let rows = [
        ("", node.name.as_str(), NAME_CHARS),
        ("small", &second, SMALL_CHARS),
        ("small", &third, SMALL_CHARS),
    ];
    for (i, (class, text, max)) in rows.into_iter().enumerate() {
        let text = escaped(&short(text, max));
        let _ = writeln!(
            out,
            "<text class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
            x + 10.0,
            y + 20.0 + 16.0 * i as f64
        );
    }
    out.push_str("</g>\n");
}

/// A smooth line through the points: level in the columns, curved between them.
fn curve(points: &[(f64, f64)]) -> String {
    let mut out = String::new();
    let Some((x, y)) = points.first() else { return out };
    let _ = write!(out, "M{x:.1} {y:.1}");
    for (i, pair) in points.windows(2).enumerate() {
        let ((x1, y1), (x2, y2)) = (pair[0], pair[1]);
        if i % 2 == 0 {
            let middle = (x1 + x2) / 2.0;
            let _ = write!(out, "C{middle:.1} {y1:.1} {middle:.1} {y2:.1} {x2:.1} {y2:.1}");
        } else {
            let _ = write!(out, "L{x2:.1} {y2:.1}");
        }
    }
    out
}

/// Text of XML; what XML cannot carry is left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push('\n'),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
