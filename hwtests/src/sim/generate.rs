//! Random workflows: every feature of the graph, small enough that thousands run in seconds.

use super::rng::Rng;
use dflow_core::graph::*;

/// A random graph of at most `steps_max` steps that passes [`Graph::check`].
pub fn graph(rng: &mut Rng, steps_max: u64) -> Graph {
    let functions = (0..1 + rng.below(4)).map(|i| Function {
        name: format!("f{i}"),
        workers_max: 1 + rng.below(4) as u32,
        deterministic: rng.chance(40),
    });
    let mut graph = Graph {
        name: "random@1".into(),
        inputs: vec![
            RunInput { name: "a".into(), ty: PortType::Bytes },
            RunInput { name: "b".into(), ty: PortType::Json },
        ],
        functions: functions.collect(),
        ..Graph::default()
    };
    for _ in 0..1 + rng.below(12).min(steps_max.max(1) - 1) {
        let step = step(rng, &graph);
        graph.steps.push(step);
    }
    for i in 0..rng.below(4) {
        let source = source(rng, &graph);
        graph.outputs.push(RunOutput { name: format!("o{i}"), source });
    }
    graph.policy.finish_started = rng.chance(30);
    graph
}

/// Any reference to what there is so far.
fn source(rng: &mut Rng, graph: &Graph) -> Source {
    if graph.steps.is_empty() || rng.chance(15) {
        return if rng.chance(50) {
            Source::Const(rng.below(3) as u32)
        } else {
            Source::Input(rng.below(2) as u16)
        };
    }
    // The recent ones more often, so that chains get long.
    let back = rng.below(graph.steps.len() as u64).min(rng.below(graph.steps.len() as u64));
    let step = (graph.steps.len() as u64 - 1 - back) as u32;
    let of = &graph.steps[step as usize];
    let port = rng.below(of.outputs.len() as u64) as u16;
    match (of.foreach.is_some(), of.outputs[port as usize].kind) {
        (true, PortKind::Many) => Source::Const(0),
        (true, _) => Source::Gather { step, port },
        (false, _) => Source::Output { step, port },
    }
}

fn condition(rng: &mut Rng, graph: &Graph) -> Condition {
    let reads = (0..rng.below(3)).map(|_| source(rng, graph)).collect();
    let some = |rng: &mut Rng| rng.below(graph.steps.len() as u64) as u32;
    let asks = if graph.steps.is_empty() || rng.chance(60) { Vec::new() } else { vec![some(rng)] };
    Condition { id: rng.below(1000) as u32, reads, asks }
}

fn port(rng: &mut Rng, i: u64, kinds: &[PortKind]) -> OutputPort {
    OutputPort {
        name: format!("p{i}"),
        ty: PortType::Bytes,
        kind: *rng.pick(kinds),
        hint_bytes: rng.below(3) * 100_000,
        bytes_max: 0,
        items_max: 0,
        file: false,
    }
}

fn start(rng: &mut Rng) -> StartPolicy {
    match rng.below(6) {
        0 => StartPolicy::Eager,
        1 | 2 => StartPolicy::FirstByte,
        3 => StartPolicy::First(1 + rng.below(3) as u32),
        4 => StartPolicy::First(0),
        _ => StartPolicy::AllReady,
    }
}

fn step(rng: &mut Rng, graph: &Graph) -> Step {
    let name = format!("s{}", graph.steps.len());
    let retry = Retry {
        retries_max: 1 + rng.below(3) as u32,
        backoff_ms: rng.below(20),
        factor_milli: 2000,
        backoff_ms_max: 100,
        jitter_milli: 200,
        on: if rng.chance(50) { vec![ErrorClass::All] } else { vec![ErrorClass::Crash, ErrorClass::Timeout] },
    };
    let mut step = Step {
        name,
        kind: StepKind::Call(rng.below(graph.functions.len() as u64) as u32),
        inputs: Vec::new(),
        outputs: Vec::new(),
        when: None,
        foreach: None,
        after: Vec::new(),
        start: start(rng),
        retry,
        timeout_ms: timeout_ms(rng, graph),
        cpu_milli: *rng.pick(&[0, 250, 1000, 1000, 2000, 9000]),
        estimate_us: rng.below(3) * 500,
        on_failure: if rng.chance(15) { OnFailure::Ignore } else { OnFailure::Fail },
    };
    if !graph.steps.is_empty() && rng.chance(12) {
        step.after.push(rng.below(graph.steps.len() as u64) as u32);
    }
    if !graph.steps.is_empty() && rng.chance(15) {
        let mut cases: Vec<Case> = (0..1 + rng.below(2))
            .map(|_| Case { when: Some(condition(rng, graph)), value: source(rng, graph) })
            .collect();
        if rng.chance(80) {
            cases.push(Case { when: None, value: source(rng, graph) });
        }
        step.kind = StepKind::Switch(cases.into());
        step.outputs.push(port(rng, 0, &[PortKind::Plain]));
        step.on_failure = OnFailure::Fail;
        return step;
    }
    if rng.chance(20) {
        step.when = Some(condition(rng, graph));
    }
    if rng.chance(35) {
        step.foreach = foreach(rng, graph);
    }
    for i in 0..rng.below(4) {
        let source = if step.foreach.is_some() && (i == 0 || rng.chance(20)) {
            Source::Item
        } else {
            source(rng, graph)
        };
        let optional = rng.chance(20);
        step.inputs.push(InputPort { name: format!("i{i}"), ty: PortType::Bytes, source, optional });
    }
    let kinds: &[_] = &[PortKind::Plain, PortKind::Plain, PortKind::Stream, PortKind::Many];
    for i in 0..1 + rng.below(2) {
        step.outputs.push(port(rng, i, kinds));
    }
    step
}

/// Waiting for data counts, so a timeout must outlast the timeouts of all that hang before it.
fn timeout_ms(rng: &mut Rng, graph: &Graph) -> u64 {
    let before = graph.steps.iter().filter(|step| step.timeout_ms > 0).count() as u32;
    if before < 4 && rng.chance(40) { 10_000 * 1000u64.pow(before) } else { 0 }
}

fn foreach(rng: &mut Rng, graph: &Graph) -> Option<Foreach> {
    let over = source(rng, graph);
    let json = match over {
        Source::Gather { .. } => false,
        Source::Output { step, port } => {
            let of = &graph.steps[step as usize];
            of.outputs[port as usize].kind != PortKind::Many
        }
        _ => true,
    };
    let tolerate = match rng.below(3) {
        0 => Tolerate::Count(0),
        1 => Tolerate::Count(rng.below(3) as u32),
        _ => Tolerate::Percent(rng.below(101) as u8),
    };
    let items_max = if rng.chance(3) { 1 } else { 100 };
    Some(Foreach { over, json, parallel_max: 1 + rng.below(4) as u32, items_max, tolerate })
}
