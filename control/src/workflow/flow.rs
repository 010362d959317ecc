//! What needs the whole graph: cycles, and which objects must be files.

use super::diagnostic::{Code, Diagnostics, word};
use super::link::Edge;
use super::names::Names;
use super::spec::{Constant, FunctionSpec, InputSpec, Runtime, StepSpec, TemplatePart};
use dflow_core::graph::{Source, Step, StepKind};

/// Most steps of a cycle that a message names.
const CYCLE_STEPS_SHOWN_MAX: usize = 20;

/// Reports steps that wait for each other, each step in at most one cycle.
pub(super) fn report_cycles(d: &mut Diagnostics<'_>, names: &Names<'_>, edges: &[Vec<Edge>]) {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        /// On the current path.
        Open,
        Done,
    }
    let mut state = vec![State::New; edges.len()];
    for first in 0..edges.len() {
        if state[first] != State::New {
            continue;
        }
        // The path, with the next edge to follow of each step on it.
        let mut path: Vec<(usize, usize)> = vec![(first, 0)];
        state[first] = State::Open;
        while let Some((step, next)) = path.last_mut() {
            let Some(&(to, span)) = edges[*step].get(*next) else {
                state[*step] = State::Done;
                path.pop();
                continue;
            };
            *next += 1;
            let to = to as usize;
            match state[to] {
                State::New => {
                    state[to] = State::Open;
                    path.push((to, 0));
                }
                State::Open => {
                    let begin = path.iter().position(|(step, _)| *step == to).unwrap_or(0);
                    let cycle: Vec<usize> = path[begin..].iter().map(|(step, _)| *step).collect();
                    report_cycle(d, names, &cycle, span);
                    // What remains of these steps would mostly repeat the same cycle.
                    for (step, _) in path.drain(begin..) {
                        state[step] = State::Done;
                    }
                }
                State::Done => {}
            }
        }
    }
}

fn report_cycle(d: &mut Diagnostics<'_>, names: &Names<'_>, cycle: &[usize], span: super::diagnostic::Span) {
    let name = |step: usize| format!("`{}`", word(names.steps[step].name));
    if let [only] = cycle {
        d.error_help(
            Code::Cycle,
            span,
            format!("step {} waits for itself", name(*only)),
            "remove this reference",
        );
        return;
    }
    let mut path: Vec<String> = cycle.iter().take(CYCLE_STEPS_SHOWN_MAX).map(|step| name(*step)).collect();
    if cycle.len() > CYCLE_STEPS_SHOWN_MAX {
        path.push(format!("{} more", cycle.len() - CYCLE_STEPS_SHOWN_MAX));
    }
    path.push(name(cycle[0]));
    let message = format!("steps wait for each other: {}", path.join(" -> "));
    let help = "an arrow goes from a step to one that it waits for; remove one of these references";
    d.error_help(Code::Cycle, span, message, help);
}

/// Marks the objects that a program reads or writes by path: its outputs, and what its inputs come
/// from, through switches and foreach lists.
pub(super) fn mark_files(
    steps: &mut [Step],
    specs: &[StepSpec],
    functions: &[FunctionSpec],
    inputs: &mut [InputSpec],
    constants: &mut [Constant],
) {
    let exec = |kind: &StepKind| match kind {
        StepKind::Call(function) => match &functions[*function as usize].runtime {
            Runtime::Exec { command, stdin, .. } => Some((command, stdin)),
            _ => None,
        },
        StepKind::Switch(_) => None,
    };
    let mut files: Vec<Source> = Vec::new();
    for (step, spec) in steps.iter_mut().zip(specs) {
        let Some((command, stdin)) = exec(&step.kind) else { continue };
        step.outputs.iter_mut().for_each(|port| port.file = true);
        let named = |name: &str| {
            let mut parts = command.iter().flat_map(|template| &template.parts);
            parts.any(|part| matches!(part, TemplatePart::Input(n) if n == name))
        };
        for (port, usage) in step.inputs.iter().zip(&spec.inputs) {
            // A scalar goes into the command as text.
            let as_text = usage.ty.is_scalar()
                && !usage.list
                && stdin.as_deref() != Some(&port.name)
                && named(&port.name);
            if as_text {
                continue;
            }
            files.push(match (&port.source, &step.foreach) {
                // An element of a JSON list is an object that the node makes.
                (Source::Item, Some(foreach)) if foreach.json => continue,
                (Source::Item, Some(foreach)) => foreach.over.clone(),
                (source, _) => source.clone(),
            });
        }
    }
    while let Some(source) = files.pop() {
        match source {
            Source::Input(input) => inputs[usize::from(input)].file = true,
            Source::Const(constant) => constants[constant as usize].file = true,
            Source::Output { step, port } | Source::Gather { step, port } => {
                let step = &mut steps[step as usize];
                let port = &mut step.outputs[usize::from(port)];
                if std::mem::replace(&mut port.file, true) {
                    continue;
                }
                if let StepKind::Switch(cases) = &step.kind {
                    files.extend(cases.iter().map(|case| case.value.clone()));
                }
            }
            Source::Item => {}
        }
    }
}
