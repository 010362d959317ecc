//! A workflow as a picture: for the terminal, for Graphviz, for a browser.
//!
//! All three show the steps and what they wait for. Inputs and outputs of the run are told at the
//! steps that read and make them: as vertices of their own they would add most of the edges of a
//! large graph and little knowledge.

mod ascii;
mod dot;
mod layout;
mod svg;

pub(crate) use dot::quoted;

use crate::workflow::{Runtime, Workflow};
use dflow_core::graph::{Condition, PortKind, Source, Step, StepKind};
use std::collections::BTreeMap;

/// A kind of picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A tree of plain characters.
    #[default]
    Ascii,
    /// Input of Graphviz.
    Dot,
    /// A drawing that needs nothing else; follows the light or dark scheme of its viewer.
    Svg,
}

/// Draws a workflow. The result ends with a line break.
pub fn render(workflow: &Workflow, format: Format) -> String {
    let view = View::of(workflow);
    match format {
        Format::Ascii => ascii::render(&view),
        Format::Dot => dot::render(&view),
        Format::Svg => svg::render(&view),
    }
}

/// What a picture shows.
struct View {
    title: String,
    nodes: Vec<Node>,
    edges: Vec<Edge>,
}

struct Node {
    name: String,
    /// `python`, `native`, `exec`, `builtin` or `switch`.
    kind: &'static str,
    /// The function, if its name is not the step's.
    function: String,
    /// What else is special about it: `foreach piece`, `when ...`, `start eager`.
    notes: Vec<String>,
    /// What it reads, in the order of the file.
    reads: Vec<String>,
    /// Outputs of the run that it makes.
    makes: Vec<String>,
    /// Length of the longest path that leads to it.
    rank: usize,
}

/// All that one step waits for another for.
struct Edge {
    from: usize,
    to: usize,
    /// The ports read; empty if no data flows.
    ports: Vec<String>,
    kind: EdgeKind,
}

/// The strongest reason of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum EdgeKind {
    /// `after`.
    Order,
    /// A condition reads or asks.
    Condition,
    /// An input.
    Data,
    /// An input that can be read while it grows, item by item or byte by byte.
    Stream,
}

impl View {
    fn of(workflow: &Workflow) -> View {
        let graph = &workflow.graph;
        let mut edges: BTreeMap<(usize, usize), Edge> = BTreeMap::new();
        let mut add = |from: u32, to: usize, port: Option<String>, kind: EdgeKind| {
            let from = from as usize;
            let edge = edges.entry((from, to)).or_insert(Edge { from, to, ports: Vec::new(), kind });
            edge.kind = edge.kind.max(kind);
            edge.ports.extend(port.filter(|port| !edge.ports.contains(port)));
        };
        for (to, step) in graph.steps.iter().enumerate() {
            let foreach = step.foreach.iter().map(|foreach| &foreach.over);
            let inputs = step.inputs.iter().map(|input| &input.source);
            let cases: &[_] = match &step.kind {
                StepKind::Switch(cases) => cases,
                StepKind::Call(_) => &[],
            };
            for source in inputs.chain(foreach).chain(cases.iter().map(|case| &case.value)) {
                let (Source::Output { step: from, port } | Source::Gather { step: from, port }) = source
                else {
                    continue;
                };
                let port = &graph.steps[*from as usize].outputs[usize::from(*port)];
                let whole = port.kind == PortKind::Plain && !matches!(source, Source::Gather { .. });
                let kind = if whole { EdgeKind::Data } else { EdgeKind::Stream };
                add(*from, to, Some(port.name.clone()), kind);
            }
            for condition in step.when.iter().chain(cases.iter().filter_map(|case| case.when.as_ref())) {
                for from in waits(condition) {
                    add(from, to, None, EdgeKind::Condition);
                }
            }
            for from in &step.after {
                add(*from, to, None, EdgeKind::Order);
            }
        }
        let edges: Vec<Edge> = edges.into_values().collect();
        let ranks = ranks(graph.steps.len(), &edges);
        let node = |(index, step): (usize, &Step)| node(workflow, index, step, ranks[index]);
        let nodes = graph.steps.iter().enumerate().map(node).collect();
        View { title: graph.name.clone(), nodes, edges }
    }
}

/// The steps that a condition waits for.
fn waits(condition: &Condition) -> impl Iterator<Item = u32> {
    let read = |source: &Source| match source {
        Source::Output { step, .. } | Source::Gather { step, .. } => Some(*step),
        Source::Const(_) | Source::Input(_) | Source::Item => None,
    };
    condition.reads.iter().filter_map(read).chain(condition.asks.iter().copied())
}

fn node(workflow: &Workflow, index: usize, step: &Step, rank: usize) -> Node {
    let graph = &workflow.graph;
    let (kind, function) = match &step.kind {
        StepKind::Switch(_) => ("switch", String::new()),
        StepKind::Call(function) => {
            let spec = &workflow.functions[*function as usize];
            let shown = match &spec.runtime {
                Runtime::Builtin { handler } => handler.name(),
                _ if spec.name == step.name => "",
                _ => &spec.name,
            };
            (spec.runtime.name(), shown.to_owned())
        }
    };
    let written = |source: &Source| match source {
        Source::Const(_) => None,
        Source::Item => Some("item".to_owned()),
        Source::Input(input) => Some(format!("inputs.{}", graph.inputs[usize::from(*input)].name)),
        Source::Output { step, port } | Source::Gather { step, port } => {
            let producer = &graph.steps[*step as usize];
            let all = if matches!(source, Source::Gather { .. }) { "[*]" } else { "" };
            Some(format!("{}.{}{all}", producer.name, producer.outputs[usize::from(*port)].name))
        }
    };
    let mut notes = Vec::new();
    if let Some(foreach) = &step.foreach {
        notes
            .push(format!("foreach {}", written(&foreach.over).unwrap_or_else(|| "literal list".to_owned())));
    }
    if let Some(when) = &step.when {
        notes.push(format!("when {}", workflow.conditions[when.id as usize].text()));
    }
    let mut reads: Vec<String> = step.inputs.iter().filter_map(|input| written(&input.source)).collect();
    if let StepKind::Switch(cases) = &step.kind {
        reads.extend(cases.iter().filter_map(|case| written(&case.value)));
    }
    let mut seen = std::collections::HashSet::new();
    reads.retain(|read| seen.insert(read.clone()));
    let makes = graph.outputs.iter().filter(|output| match output.source {
        Source::Output { step, .. } | Source::Gather { step, .. } => step as usize == index,
        Source::Const(_) | Source::Input(_) | Source::Item => false,
    });
    let makes = makes.map(|output| output.name.clone()).collect();
    Node { name: step.name.clone(), kind, function, notes, reads, makes, rank }
}

/// The length of the longest path to each step. The graph has no cycles.
fn ranks(nodes: usize, edges: &[Edge]) -> Vec<usize> {
    let mut next: Vec<Vec<usize>> = vec![Vec::new(); nodes];
    let mut waits = vec![0usize; nodes];
    for edge in edges {
        next[edge.from].push(edge.to);
        waits[edge.to] += 1;
    }
    let mut ranks = vec![0; nodes];
    let mut ready: Vec<usize> = (0..nodes).filter(|n| waits[*n] == 0).collect();
    while let Some(from) = ready.pop() {
        for &to in &next[from] {
            ranks[to] = ranks[to].max(ranks[from] + 1);
            waits[to] -= 1;
            if waits[to] == 0 {
                ready.push(to);
            }
        }
    }
    ranks
}

/// A text cut to `max` characters, on one line.
fn short(text: &str, max: usize) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= max {
        return line;
    }
    line.chars().take(max.saturating_sub(3)).chain("...".chars()).collect()
}

/// Words joined by commas, those beyond `max` counted.
fn listed(words: &[String], max: usize) -> String {
    match words.len().checked_sub(max) {
        None | Some(0) => words.join(", "),
        Some(more) => format!("{} and {more} more", words[..max].join(", ")),
    }
}
