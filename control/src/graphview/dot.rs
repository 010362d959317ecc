//! Input of Graphviz.

use super::{EdgeKind, View, listed, short};
use std::fmt::Write;

pub(super) fn render(view: &View) -> String {
    let mut out = format!("digraph {} {{\n", quoted(&view.title));
    out.push_str("  rankdir=LR;\n");
    out.push_str("  node [shape=box, style=rounded, fontname=\"sans-serif\", fontsize=11];\n");
    out.push_str("  edge [fontname=\"sans-serif\", fontsize=9];\n");
    for (i, node) in view.nodes.iter().enumerate() {
        let mut lines =
            vec![node.name.clone(), format!("{} {}", node.kind, node.function).trim_end().to_owned()];
        lines.extend(node.notes.iter().map(|note| short(note, 40)));
        let inputs: Vec<String> = node.reads.iter().filter(|r| r.starts_with("inputs.")).cloned().collect();
        if !inputs.is_empty() {
            lines.push(format!("<- {}", listed(&inputs, 3)));
        }
        if !node.makes.is_empty() {
            lines.push(format!("=> {}", listed(&node.makes, 3)));
        }
        let shape = if node.kind == "switch" { ", shape=diamond, style=solid" } else { "" };
        // Graphviz draws a second border around what runs many times.
        let many = if node.notes.iter().any(|n| n.starts_with("foreach")) { ", peripheries=2" } else { "" };
        let _ = writeln!(out, "  s{i} [label={}{shape}{many}];", quoted(&lines.join("\n")));
    }
    for edge in &view.edges {
        let style = match edge.kind {
            EdgeKind::Stream => "penwidth=2",
            EdgeKind::Data => "style=solid",
            EdgeKind::Condition => "style=dashed",
            EdgeKind::Order => "style=dotted",
        };
        let label = quoted(&listed(&edge.ports, 3));
        let _ = writeln!(out, "  s{} -> s{} [label={label}, {style}];", edge.from, edge.to);
    }
    out.push_str("}\n");
    out
}

/// A quoted string of Graphviz's language.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
