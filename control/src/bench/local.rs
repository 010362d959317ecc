//! What one node takes: handing an object over, an invocation, a cold start. Its functions are the built-in `probe`,
//! which tells by the clock that all processes share when its parts happened, so that nothing needs to be compiled.
//! The goals of the specification are measured by `dflow-benches`, with compiled and Python functions and beside what
//! the machine itself takes.

use super::one::{Bench, Done, OneError, parse};
use super::{Memcpy, Quantiles};
use crate::node::NodeConfig;
use dflow_core::graph::StartPolicy;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// The producer of a hand-over works so long before it seals, so that its reader is asleep by then. Microseconds.
const WORK_US: u64 = 2000;
/// Runs before those that count.
const WARMUPS: u64 = 5;
/// Between cold starts, so that the end of one process is no part of the next one's start.
const PAUSE: Duration = Duration::from_millis(5);

/// Why nothing, or no more, was measured.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The node, or one of its runs.
    #[error(transparent)]
    One(#[from] OneError),
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

impl Times {
    /// Of the probe that put an output.
    fn of(done: &Done, name: &str) -> Result<Times, OneError> {
        let [begun, _, got, sealing] = done.words(name)?;
        Ok(Times { begun, got, sealing })
    }
}

/// A node with a store of at least `store_bytes`.
fn bench(spin_us: u32, store_bytes: u64) -> Result<Bench, OneError> {
    let config = NodeConfig { spin_us, ..NodeConfig::default() };
    let store_bytes = config.store_bytes.max(store_bytes);
    Bench::start(NodeConfig { store_bytes, ..config })
}

/// From just before a producer's seal to just after its reader's waiting get, in two processes.
pub fn hand_off(bytes: u64, n: u64, spin_us: u32) -> Result<Line, LocalError> {
    let bench = bench(spin_us, bytes.saturating_mul(3))?;
    let body = format!(
        "functions:\n  put: {{runtime: builtin, handler: probe, outputs: {{data: {{type: bytes, size_hint: {bytes}}}, times: bytes}}}}\n  \
         get: {{runtime: builtin, handler: probe, outputs: {{times: bytes}}}}\n\
         steps:\n  put: {{function: put, in: {{bytes: {bytes}, work_us: {WORK_US}}}}}\n  \
         get: {{function: get, in: {{data: steps.put.data}}}}\n\
         outputs:\n  put: {{from: steps.put.times}}\n  get: {{from: steps.get.times}}\n"
    );
    let workflow = parse("handoff", &body, Path::new("."))?;
    let mut nanos = Vec::new();
    for run in 0..WARMUPS + n {
        let done = bench.run(&workflow, &[], Some(StartPolicy::Eager))?;
        let (put, get) = (Times::of(&done, "put")?, Times::of(&done, "get")?);
        if run >= WARMUPS {
            nanos.push(get.got.saturating_sub(put.sealing));
        }
    }
    let copy = Memcpy::measure(bytes.max(4096)).map_err(|e| LocalError::Memory(e.to_string()))?;
    let beside = Some(("copying it", bytes as f64 / copy.copy_reused));
    Ok(Line { what: format!("{bytes} bytes"), times: Quantiles::of(nanos), beside })
}

/// A chain of `steps` that do nothing: of a step, all of a run's time, and from one's first line to the next one's.
pub fn invoke(steps: u32, n: u64) -> Result<[Line; 2], LocalError> {
    let bench = bench(0, 0)?;
    let mut body = "functions:\n  f: {runtime: builtin, handler: probe, outputs: {times: bytes}}\nsteps:\n  s0: {function: f}\n".to_owned();
    for at in 1..steps {
        body += &format!("  s{at}: {{function: f, in: {{before: steps.s{}.times}}}}\n", at - 1);
    }
    body += &format!(
        "outputs:\n  first: {{from: steps.s0.times}}\n  last: {{from: steps.s{}.times}}\n",
        steps - 1
    );
    let workflow = parse("invoke", &body, Path::new("."))?;
    let (mut whole, mut between) = (Vec::new(), Vec::new());
    for run in 0..WARMUPS + n {
        let done = bench.run(&workflow, &[], Some(StartPolicy::FirstByte))?;
        let (first, last) = (Times::of(&done, "first")?, Times::of(&done, "last")?);
        if run >= WARMUPS {
            whole.push(done.elapsed.as_nanos() as u64 / u64::from(steps));
            between.push(last.got.saturating_sub(first.begun) / u64::from((steps - 1).max(1)));
        }
    }
    let line = |what: &str, nanos| Line { what: what.into(), times: Quantiles::of(nanos), beside: None };
    Ok([line("a step", whole), line("step to step", between)])
}

/// From the submission of an invocation for which there is no process to its function's first line. Its code is loaded:
/// a process is forked from one that has it.
pub fn cold(n: u64) -> Result<Line, LocalError> {
    let bench = bench(0, 0)?;
    let workflow = parse(
        "cold",
        "functions:\n  f: {runtime: builtin, handler: probe, pool: {max_uses: 1}, outputs: {times: bytes}}\n\
         steps:\n  s: {function: f}\noutputs:\n  times: {from: steps.s.times}\n",
        Path::new("."),
    )?;
    let mut nanos = Vec::new();
    // A run whose process was up before it was asked for is no cold start; there are never many.
    for run in 0..WARMUPS + 3 * n {
        let done = bench.run(&workflow, &[], Some(StartPolicy::FirstByte))?;
        if run >= WARMUPS && done.waited_for_a_process() {
            nanos.push(Times::of(&done, "times")?.begun.saturating_sub(done.submitted_ns));
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
