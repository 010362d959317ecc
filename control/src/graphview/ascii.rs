//! The tree for the terminal: each step hangs below the last of those it waits for, so that its
//! depth is the length of the longest path to it.

use super::{View, listed, short};
use std::fmt::Write;

/// Deepest indentation; deeper steps are written at this one.
const DEPTH_SHOWN_MAX: usize = 30;
/// Widest column of names.
const NAMES_WIDTH_MAX: usize = 48;

pub(super) fn render(view: &View) -> String {
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); view.nodes.len()];
    let mut parent: Vec<Option<usize>> = vec![None; view.nodes.len()];
    for edge in &view.edges {
        let nearer = |p: usize| view.nodes[p].rank < view.nodes[edge.from].rank;
        if parent[edge.to].is_none_or(nearer) {
            parent[edge.to] = Some(edge.from);
        }
    }
    let mut roots = Vec::new();
    for (node, parent) in parent.iter().enumerate() {
        match parent {
            Some(parent) => children[*parent].push(node),
            None => roots.push(node),
        }
    }
    let rows = rows(&roots, &children, view);
    let width = rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0).min(NAMES_WIDTH_MAX);
    let mut out = format!("{}\n", view.title);
    for (label, node) in rows {
        let node = &view.nodes[node];
        let mut facts = vec![format!("{} {}", node.kind, node.function).trim_end().to_owned()];
        facts.extend(node.notes.iter().map(|note| short(note, 70)));
        if !node.reads.is_empty() {
            facts.push(format!("<- {}", listed(&node.reads, 4)));
        }
        if !node.makes.is_empty() {
            facts.push(format!("=> {}", listed(&node.makes, 4)));
        }
        let _ = writeln!(out, "{label:width$}  {}", facts.join("  "));
    }
    out
}

/// The steps in the order they are written, each with its branch drawn before its name.
fn rows(roots: &[usize], children: &[Vec<usize>], view: &View) -> Vec<(String, usize)> {
    let mut rows = Vec::with_capacity(view.nodes.len());
    // What is still to be written: the step, what goes before its branch, whether it is the last.
    let mut stack: Vec<(usize, String, bool)> = Vec::new();
    let push = |stack: &mut Vec<(usize, String, bool)>, steps: &[usize], prefix: &str| {
        let last = steps.last().copied();
        stack.extend(steps.iter().rev().map(|&step| (step, prefix.to_owned(), Some(step) == last)));
    };
    push(&mut stack, roots, "");
    while let Some((step, prefix, last)) = stack.pop() {
        let branch = if last { "`-- " } else { "|-- " };
        rows.push((format!("{prefix}{branch}{}", view.nodes[step].name), step));
        let deeper = match view.nodes[step].rank < DEPTH_SHOWN_MAX {
            true => format!("{prefix}{}", if last { "    " } else { "|   " }),
            false => prefix,
        };
        push(&mut stack, &children[step], &deeper);
    }
    rows
}
