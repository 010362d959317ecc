//! The scheduler alone: how many completions a second one core gets through it, and what a run of
//! 100,000 invocations takes in memory. The driver answers every start with what a worker would report.

use crate::machine::{cpu_ns, resident_bytes};
use crate::report::{Goal, Report};
use crate::stats::Samples;
use anyhow::{Context, Result, bail, ensure};
use dflow_core::graph::{
    Foreach, Function, Graph, InputPort, OnFailure, OutputPort, Policy, PortKind, PortType, Retry, RunOutput,
    Source, StartPolicy, Step, StepKind, Tolerate,
};
use dflow_core::scheduler::{Capacity, Effect, Event, Outcome, Put, Scheduler};
use dflow_proto::{InvocationId, ObjectKey, RunId, Tick};
use std::collections::VecDeque;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Invocations of each graph, about.
const INVOCATIONS: u32 = 100_000;
/// Width of the layered graph.
const LAYER: u32 = 1000;
/// Producers that each of its steps reads.
const FAN_IN: u32 = 3;
const CAPACITY: Capacity = Capacity { cpu_milli: 64_000, slots: 128 };
const RUN: RunId = RunId(1);

/// A shape by name.
type Shape = (&'static str, fn() -> Graph);

const SHAPES: [Shape; 3] = [("chain", chain), ("layers", layers), ("foreach", foreach)];

fn step(index: u32, inputs: Vec<Source>, kind: PortKind) -> Step {
    let input = |source| InputPort { name: "in".into(), ty: PortType::Bytes, source, optional: false };
    let output = OutputPort {
        name: "out".into(),
        ty: PortType::Bytes,
        kind,
        hint_bytes: 0,
        bytes_max: 0,
        items_max: INVOCATIONS,
        file: false,
    };
    Step {
        name: format!("s{index}"),
        kind: StepKind::Call(0),
        inputs: inputs.into_iter().map(input).collect(),
        outputs: vec![output],
        when: None,
        foreach: None,
        after: Vec::new(),
        start: StartPolicy::FirstByte,
        retry: Retry::default(),
        timeout_ms: 0,
        cpu_milli: 1000,
        estimate_us: 0,
        on_failure: OnFailure::Fail,
    }
}

fn graph(steps: Vec<Step>) -> Graph {
    let last = Source::Output { step: steps.len() as u32 - 1, port: 0 };
    Graph {
        name: "bench@1".into(),
        inputs: Vec::new(),
        functions: vec![Function { name: "f".into(), workers_max: 1024, deterministic: false }],
        steps,
        outputs: vec![RunOutput { name: "out".into(), source: last }],
        policy: Policy::default(),
    }
}

/// One after the other.
fn chain() -> Graph {
    let source = |i: u32| i.checked_sub(1).map(|step| Source::Output { step, port: 0 });
    graph((0..INVOCATIONS).map(|i| step(i, source(i).into_iter().collect(), PortKind::Plain)).collect())
}

/// Layers of [`LAYER`] steps, each of which reads [`FAN_IN`] of the layer before.
fn layers() -> Graph {
    let sources = |i: u32| -> Vec<Source> {
        let Some(layer) = (i / LAYER).checked_sub(1) else { return Vec::new() };
        (0..FAN_IN).map(|k| Source::Output { step: layer * LAYER + (i + k * 7) % LAYER, port: 0 }).collect()
    };
    graph((0..INVOCATIONS).map(|i| step(i, sources(i), PortKind::Plain)).collect())
}

/// A list, an invocation for each of its items, and one that reads all they made.
fn foreach() -> Graph {
    let list = Source::Output { step: 0, port: 0 };
    let mut each = step(1, vec![Source::Item], PortKind::Plain);
    each.foreach = Some(Foreach {
        over: list,
        json: false,
        parallel_max: u32::MAX,
        items_max: INVOCATIONS,
        tolerate: Tolerate::Count(0),
    });
    let join = step(2, vec![Source::Gather { step: 1, port: 0 }], PortKind::Plain);
    graph(vec![step(0, Vec::new(), PortKind::Many), each, join])
}

/// Workers that answer at once.
struct Driver {
    scheduler: Scheduler,
    graph: Arc<Graph>,
    effects: Vec<Effect>,
    running: VecDeque<(InvocationId, u32)>,
    completions: u64,
    ended: bool,
}

impl Driver {
    fn new(graph: Arc<Graph>) -> Driver {
        let scheduler = Scheduler::new(CAPACITY);
        Driver {
            scheduler,
            graph,
            effects: Vec::new(),
            running: VecDeque::new(),
            completions: 0,
            ended: false,
        }
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        self.scheduler.handle(Tick(0), event, &mut self.effects);
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Start { invocation, attempt, .. } => self.running.push_back((invocation, attempt)),
                Effect::RunEnded { result, .. } => {
                    result?;
                    self.ended = true;
                }
                Effect::Stop { .. }
                | Effect::Evaluate { .. }
                | Effect::MeasureList { .. }
                | Effect::Tell { .. }
                | Effect::Publish { .. } => {
                    bail!("the scheduler asked for {effect:?}, for which there is no reason")
                }
                Effect::Warm { .. } | Effect::Relink { .. } | Effect::Release(_) | Effect::Note { .. } => {}
            }
        }
        Ok(())
    }

    /// What a worker of this invocation reports, from its seals to its end.
    fn complete(&mut self, invocation: InvocationId, attempt: u32) -> Result<()> {
        let put = |item| Put { key: ObjectKey { run: RUN, invocation, port: 0, item }, attempt, bytes: 1 };
        if self.graph.steps[invocation.step as usize].outputs[0].kind == PortKind::Many {
            for item in 0..INVOCATIONS {
                self.handle(Event::Sealed(put(item)))?;
            }
            self.handle(Event::Pinned { run: RUN, invocation, attempt, port: 0, count: INVOCATIONS })?;
        } else {
            self.handle(Event::Sealed(put(0)))?;
        }
        self.completions += 1;
        self.handle(Event::Ended { run: RUN, invocation, attempt, outcome: Outcome::Ok })
    }

    /// The whole run.
    fn run(&mut self) -> Result<()> {
        // Early starters wait for those they read from: they end last of what runs.
        while let Some((invocation, attempt)) = self.running.pop_front() {
            let joins = self.graph.steps[invocation.step as usize].inputs.iter();
            let early = joins.clone().any(|input| matches!(input.source, Source::Gather { .. }));
            if early && !self.running.is_empty() {
                self.running.push_back((invocation, attempt));
                continue;
            }
            self.complete(invocation, attempt)?;
        }
        ensure!(self.ended, "nothing runs and the run has not ended");
        Ok(())
    }
}

/// Submission and run of one graph: nanoseconds of this core that each takes, and the completions.
fn once(graph: &Arc<Graph>) -> Result<(u64, u64, u64)> {
    let mut driver = Driver::new(graph.clone());
    let begun = cpu_ns();
    driver.handle(Event::Submit { run: RUN, graph: graph.clone(), start: None, part: None })?;
    let submitted = cpu_ns();
    driver.run()?;
    Ok((submitted - begun, cpu_ns() - submitted, driver.completions))
}

/// The most memory that one run takes, graph and all, in bytes an invocation. For a process that has
/// done nothing else yet.
pub(crate) fn memory(shape: &str) -> Result<()> {
    let (_, make) = SHAPES.iter().find(|(name, _)| *name == shape).context("no such shape")?;
    let (before, _) = resident_bytes();
    let graph = Arc::new(make());
    let (_, _, completions) = once(&graph)?;
    let (_, most) = resident_bytes();
    crate::report::say(&format!("{}", most.saturating_sub(before) as f64 / completions as f64));
    Ok(())
}

/// [`memory`] in a fresh process.
fn memory_apart(shape: &str) -> Result<f64> {
    let output = Command::new(std::env::current_exe()?)
        .args(["scheduler-memory", shape])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "measuring the memory of {shape} failed");
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// The benchmark `scheduler`.
pub(crate) fn bench(report: &mut Report, n: Option<usize>) -> Result<()> {
    report.begin("scheduler");
    let graphs: Vec<_> = SHAPES.iter().map(|(name, make)| (*name, Arc::new(make()))).collect();
    let mut speeds = vec![(Samples::new(), Samples::new()); graphs.len()];
    for _ in 0..n.unwrap_or(11) {
        for ((_, graph), (speed, submit)) in graphs.iter().zip(&mut speeds) {
            let (submitted, ran, completions) = once(graph)?;
            speed.push(completions as f64 * 1e3 / ran as f64);
            submit.push(submitted as f64 / 1e6);
        }
    }
    for ((name, _), (speed, submit)) in graphs.iter().zip(&speeds) {
        report.row(&format!("{name}: completions of one core"), speed, "M/s", &Goal::at_least(1.0));
        report.row(&format!("{name}: submission of the graph"), submit, "ms", &Goal::None);
    }
    for (name, _) in SHAPES {
        report.value(
            &format!("{name}: memory of an invocation"),
            memory_apart(name)?,
            "B",
            &Goal::at_most(1024.0),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_a_graph() {
        for (name, make) in SHAPES {
            make().check().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn every_shape_runs_to_its_end() {
        for (name, make) in SHAPES {
            let (_, _, completions) =
                once(&Arc::new(make())).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(completions >= u64::from(INVOCATIONS), "{name}: {completions}");
        }
    }
}
