//! How many completions DScheduler handles a second on one core, and how many bytes an invocation costs.
//!
//! `cargo run --release -p dflow-core --example throughput`
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use dflow_core::graph::*;
use dflow_core::scheduler::*;
use dflow_proto::{InvocationId, ObjectKey, RunId, Tick};
use std::sync::Arc;
use std::time::Duration;

const INVOCATIONS: u32 = 100_000;
const REPEATS: usize = 5;

fn step(name: String, inputs: Vec<Source>) -> Step {
    let input = |source| InputPort { name: "in".into(), ty: PortType::Bytes, source, optional: false };
    Step {
        name,
        kind: StepKind::Call(0),
        inputs: inputs.into_iter().map(input).collect(),
        outputs: vec![OutputPort {
            name: "out".into(),
            ty: PortType::Bytes,
            kind: PortKind::Plain,
            hint_bytes: 0,
            bytes_max: 0,
            items_max: 0,
            file: false,
        }],
        when: None,
        foreach: None,
        after: Vec::new(),
        start: StartPolicy::FirstByte,
        retry: Retry::default(),
        timeout_ms: 60_000,
        cpu_milli: 1000,
        estimate_us: 0,
        on_failure: OnFailure::Fail,
    }
}

fn graph(steps: Vec<Step>) -> Graph {
    let function = Function { name: "f".into(), workers_max: u32::MAX, deterministic: false };
    let inputs = vec![RunInput { name: "list".into(), ty: PortType::Json }];
    Graph { name: "bench@1".into(), inputs, functions: vec![function], steps, ..Graph::default() }
}

fn output(step: u32) -> Source {
    Source::Output { step, port: 0 }
}

/// 100,000 steps one after the other.
fn chain() -> Graph {
    graph(
        (0..INVOCATIONS)
            .map(|i| step(format!("s{i}"), i.checked_sub(1).map(output).into_iter().collect()))
            .collect(),
    )
}

/// 100 layers of 1,000 steps, each reading two of the layer before.
fn layers() -> Graph {
    let two =
        |i: u32| (i >= 1000).then(|| vec![output(i - 1000), output(i - 1000 - i % 1000 + (i * 7) % 1000)]);
    graph((0..INVOCATIONS).map(|i| step(format!("s{i}"), two(i).unwrap_or_default())).collect())
}

/// A foreach of 100,000 items and a merge of them all.
fn wide() -> Graph {
    let mut each = step("each".into(), vec![Source::Item]);
    each.foreach = Some(Foreach {
        over: Source::Input(0),
        json: true,
        parallel_max: u32::MAX,
        items_max: INVOCATIONS,
        tolerate: Tolerate::Count(0),
    });
    graph(vec![each, step("merge".into(), vec![Source::Gather { step: 0, port: 0 }])])
}

/// 99 groups of 1,000 producers, each group read whole by 10 steps: a fan-in of 1,000, a fan-out of 10.
fn fan_in() -> Graph {
    let mut steps: Vec<Step> = (0..99_000).map(|i| step(format!("p{i}"), Vec::new())).collect();
    for c in 0..990 {
        let group = c / 10 * 1000;
        steps.push(step(format!("c{c}"), (group..group + 1000).map(output).collect()));
    }
    graph(steps)
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

/// Time this process has been on a CPU: the figure must not depend on what else the machine does.
fn on_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

/// Executes a run whose functions take no time; (completions, time inside the scheduler's caller).
fn drive(graph: &Arc<Graph>, slots: u32) -> (u64, Duration, Duration, usize) {
    let before = resident();
    let mut scheduler = Scheduler::new(Capacity { cpu_milli: 1000 * slots, slots });
    let (mut effects, mut running) = (Vec::new(), Vec::<(InvocationId, u32)>::new());
    let run = RunId(1);
    let begin = on_cpu();
    scheduler.handle(
        Tick(0),
        Event::Submit { run, graph: graph.clone(), start: None, part: None },
        &mut effects,
    );
    let submitted = on_cpu() - begin;
    let (mut completions, mut now, mut over) = (0u64, 0u64, false);
    let begin = on_cpu();
    while !over {
        for effect in effects.drain(..) {
            match effect {
                Effect::Start { invocation, attempt, .. } => running.push((invocation, attempt)),
                Effect::MeasureList { .. } => running.push((InvocationId { step: u32::MAX, item: 0 }, 0)),
                Effect::RunEnded { .. } => over = true,
                _ => {}
            }
        }
        let Some((invocation, attempt)) = running.pop() else { break };
        now += 1;
        if invocation.step == u32::MAX {
            let event = Event::ListLength { run, step: 0, result: Ok(INVOCATIONS) };
            scheduler.handle(Tick(now), event, &mut effects);
            continue;
        }
        let key = ObjectKey { run, invocation, port: 0, item: 0 };
        scheduler.handle(Tick(now), Event::Sealed(Put { key, attempt, bytes: 1 }), &mut effects);
        scheduler.handle(
            Tick(now),
            Event::Ended { run, invocation, attempt, outcome: Outcome::Ok },
            &mut effects,
        );
        completions += 1;
    }
    let took = on_cpu() - begin;
    assert!(over, "the run hangs");
    (completions, submitted, took, resident().saturating_sub(before))
}

fn main() {
    type Shape = (&'static str, fn() -> Graph);
    let shapes: [Shape; 4] = [("chain", chain), ("layers", layers), ("wide", wide), ("fan-in", fan_in)];
    if let Some(name) = std::env::args().nth(1) {
        let Some((_, make)) = shapes.iter().find(|shape| shape.0 == name) else { return };
        let graph = Arc::new(make());
        let mut runs: Vec<_> = (0..REPEATS).map(|_| drive(&graph, 64)).collect();
        // Only the first finds the heap empty, so its growth is what a run costs.
        let bytes = runs[0].3;
        runs.sort_by_key(|run| run.2);
        let (completions, submitted, took, _) = runs[REPEATS / 2];
        let rate = completions as f64 / took.as_secs_f64();
        let each = bytes as u64 / completions;
        println!("{name:10} {completions:13} {rate:16.0} {:12.1} {each:18}", submitted.as_secs_f64() * 1e3);
        return;
    }
    println!(
        "{:10} {:>13} {:>16} {:>12} {:>18}",
        "graph", "completions", "completions/s", "submit ms", "bytes/invocation"
    );
    let Ok(this) = std::env::current_exe() else { return };
    for (name, _) in shapes {
        // A process each, so that one's memory does not hide another's.
        let status = std::process::Command::new(&this).arg(name).status();
        assert!(status.is_ok_and(|status| status.success()), "{name} failed");
    }
}
