//! What one node takes: handing an object over, an invocation, a cold start. Its functions are the built-in `probe`,
//! which tells by the clock that all processes share when its parts happened.

use super::clock::monotonic_ns;
use super::{Memcpy, Quantiles};
use crate::node::{Node, NodeConfig, OutputValue, RunSpec, Spread, StartError, SubmitError, What};
use crate::workflow::{self, Workflow};
use dflow_core::graph::StartPolicy;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A run that takes longer has gone wrong.
const PATIENCE: Duration = Duration::from_secs(60);
/// The producer of a hand-over works so long before it seals, so that its reader is asleep by then. Microseconds.
const WORK_US: u64 = 2000;
/// Runs before those that count.
const WARMUPS: u64 = 5;
/// Between cold starts, so that the end of one process is no part of the next one's start.
const PAUSE: Duration = Duration::from_millis(5);

/// Why nothing, or no more, was measured.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The node does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A run was not taken.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// A run failed.
    #[error("a run failed: {0}")]
    Run(String),
    /// A run did not end.
    #[error("a run did not end within {} s", PATIENCE.as_secs())]
    Late,
    /// The reference could not be measured.
    #[error("no memory for the reference: {0}")]
    Memory(String),
}

/// One line of figures.
#[derive(Clone, Debug)]
pub struct Line {
    /// What was measured.
    pub what: String,
    /// Its times in nanoseconds.
    pub times: Quantiles,
    /// What bounds it, in nanoseconds, and its name.
    pub beside: Option<(&'static str, f64)>,
}

impl Line {
    /// The heads of [`Line::cells`].
    pub const HEADS: [&'static str; 8] = ["what", "n", "p50 us", "p90", "p99", "p99.9", "beside", "which is"];

    /// For a table or CSV.
    pub fn cells(&self) -> [String; 8] {
        let us = |nanos: u64| format!("{:.1}", nanos as f64 / 1e3);
        let t = &self.times;
        let (name, value) = self.beside.map_or(("-", "-".into()), |(n, v)| (n, format!("{:.1}", v / 1e3)));
        let n = t.samples.to_string();
        [self.what.clone(), n, us(t.p50), us(t.p90), us(t.p99), us(t.p999), value, name.into()]
    }

    /// All of it.
    pub fn json(&self) -> Value {
        let beside = self.beside.map(|(name, nanos)| json!({"name": name, "ns": nanos}));
        json!({"what": self.what, "times_ns": self.times.json(), "beside": beside})
    }
}

/// What a probe tells, in its own order.
#[derive(Clone, Copy, Debug)]
struct Times {
    begun: u64,
    got: u64,
    sealing: u64,
}

struct Bench {
    node: Node,
}

impl Bench {
    fn start(spin_us: u32, store_bytes: u64) -> Result<Bench, LocalError> {
        let config = NodeConfig { spin_us, ..NodeConfig::default() };
        let store_bytes = config.store_bytes.max(store_bytes);
        Ok(Bench { node: Node::start(NodeConfig { store_bytes, ..config })? })
    }

    /// One run: what each output's probe tells, from submission to result, and whether a process had to be made.
    fn run(
        &self,
        workflow: &Arc<Workflow>,
        start: StartPolicy,
    ) -> Result<(Vec<Times>, u64, Duration, bool), LocalError> {
        let spec = RunSpec {
            workflow: workflow.clone(),
            inputs: Vec::new(),
            start: Some(start),
            spread: Spread::Auto,
        };
        let (submitted_ns, begun) = (monotonic_ns(), Instant::now());
        let handle = self.node.submit(spec)?;
        let Some(result) = handle.wait(Some(PATIENCE)) else {
            handle.cancel("the benchmark's patience is over");
            return Err(LocalError::Late);
        };
        let took = begun.elapsed();
        let outputs = result.map_err(|failure| LocalError::Run(failure.to_string()))?;
        let times = outputs.iter().map(|(name, output)| match output {
            OutputValue::Object(view) if view.len() == 48 => {
                let word = |at: usize| view[at * 8..][..8].try_into().map_or(0, u64::from_le_bytes);
                Ok(Times { begun: word(0), got: word(2), sealing: word(3) })
            }
            _ => Err(LocalError::Run(format!("output {name} is not what a probe puts"))),
        });
        let cold = |record: &crate::node::Record| matches!(record.what, What::Dispatched { cold: true });
        let cold = handle.watch().take_journal().records.iter().any(cold);
        Ok((times.collect::<Result<_, _>>()?, submitted_ns, took, cold))
    }
}

/// From just before a producer's seal to just after its reader's waiting get, in two processes.
pub fn hand_off(bytes: u64, n: u64, spin_us: u32) -> Result<Line, LocalError> {
    let bench = Bench::start(spin_us, bytes.saturating_mul(3))?;
    let workflow = parse(&format!(
        "functions:\n  put: {{runtime: builtin, handler: probe, outputs: {{data: {{type: bytes, size_hint: {bytes}}}, times: bytes}}}}\n  \
         get: {{runtime: builtin, handler: probe, outputs: {{times: bytes}}}}\n\
         steps:\n  put: {{function: put, in: {{bytes: {bytes}, work_us: {WORK_US}}}}}\n  \
         get: {{function: get, in: {{data: steps.put.data}}}}\n\
         outputs:\n  put: {{from: steps.put.times}}\n  get: {{from: steps.get.times}}\n"
    ))?;
    let mut nanos = Vec::new();
    for run in 0..WARMUPS + n {
        let (times, ..) = bench.run(&workflow, StartPolicy::Eager)?;
        if let ([put, get], true) = (&times[..], run >= WARMUPS) {
            nanos.push(get.got.saturating_sub(put.sealing));
        }
    }
    let copy = Memcpy::measure(bytes.max(4096)).map_err(|e| LocalError::Memory(e.to_string()))?;
    let beside = Some(("copying it", bytes as f64 / copy.copy_reused));
    Ok(Line { what: format!("{bytes} bytes"), times: Quantiles::of(nanos), beside })
}

/// A chain of `steps` that do nothing: of a step, all of a run's time, and from one's first line to the next one's.
pub fn invoke(steps: u32, n: u64) -> Result<[Line; 2], LocalError> {
    let bench = Bench::start(0, 0)?;
    let mut body = "functions:\n  f: {runtime: builtin, handler: probe, outputs: {times: bytes}}\nsteps:\n  s0: {function: f}\n".to_owned();
    for at in 1..steps {
        body += &format!("  s{at}: {{function: f, in: {{before: steps.s{}.times}}}}\n", at - 1);
    }
    body += &format!(
        "outputs:\n  first: {{from: steps.s0.times}}\n  last: {{from: steps.s{}.times}}\n",
        steps - 1
    );
    let workflow = parse(&body)?;
    let (mut whole, mut between) = (Vec::new(), Vec::new());
    for run in 0..WARMUPS + n {
        let (times, _, took, _) = bench.run(&workflow, StartPolicy::FirstByte)?;
        if let ([first, last], true) = (&times[..], run >= WARMUPS) {
            whole.push(took.as_nanos() as u64 / u64::from(steps));
            between.push(last.got.saturating_sub(first.begun) / u64::from((steps - 1).max(1)));
        }
    }
    let line = |what: &str, nanos| Line { what: what.into(), times: Quantiles::of(nanos), beside: None };
    Ok([line("a step", whole), line("step to step", between)])
}

/// From the submission of an invocation for which there is no process to its function's first line. Its code is loaded:
/// a process is forked from one that has it.
pub fn cold(n: u64) -> Result<Line, LocalError> {
    let bench = Bench::start(0, 0)?;
    let workflow = parse(
        "functions:\n  f: {runtime: builtin, handler: probe, pool: {max_uses: 1}, outputs: {times: bytes}}\n\
         steps:\n  s: {function: f}\noutputs:\n  times: {from: steps.s.times}\n",
    )?;
    let mut nanos = Vec::new();
    // A run whose process was up before it was asked for is no cold start; there are never many.
    for run in 0..WARMUPS + 3 * n {
        let (times, submitted_ns, _, cold) = bench.run(&workflow, StartPolicy::FirstByte)?;
        if run >= WARMUPS && cold {
            nanos.extend(times.iter().map(|times| times.begun.saturating_sub(submitted_ns)));
        }
        if nanos.len() as u64 >= n {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    let mut forks: Vec<u64> = (0..n.min(50)).map(|_| fork_ns()).collect();
    forks.sort_unstable();
    let beside = forks.get(forks.len() / 2).map(|nanos| ("starting `true`", *nanos as f64));
    Ok(Line { what: "cold start".into(), times: Quantiles::of(nanos), beside })
}

/// Nanoseconds of a program that does nothing, from its start to its end.
fn fork_ns() -> u64 {
    let begun = Instant::now();
    // A machine without it has no such reference, which is then next to nothing.
    let _ = std::process::Command::new("true").status();
    begun.elapsed().as_nanos() as u64
}

fn parse(body: &str) -> Result<Arc<Workflow>, LocalError> {
    let text = format!("apiVersion: dflow/v1\nkind: Workflow\nmetadata: {{name: bench}}\n{body}");
    let parsed = workflow::parse(&text, "bench.yaml", Path::new("."));
    parsed.map(Arc::new).map_err(|report| LocalError::Run(report.to_string()))
}
