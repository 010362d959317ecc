//! Steps that do nothing: what the system adds to each.

use crate::native;
use crate::node::{self, Done, parse};
use crate::report::{Goal, Report, number};
use crate::stats::Samples;
use crate::wake::{self, Wake};
use anyhow::{Result, ensure};
use dflow_control::node::{Given, NodeConfig};
use dflow_control::workflow::Workflow;
use dflow_core::graph::StartPolicy;
use std::path::Path;
use std::sync::Arc;

const STEPS: usize = 10;
const ITEMS: usize = 100;
/// Runs of each kind before those that count.
const WARMUP: usize = 20;
/// Runs of one kind in a row; then comes the other.
const GROUP: usize = 20;
/// Samples of the reference before each group.
const WAKES: usize = 20;

const POLICIES: [(StartPolicy, &str); 2] =
    [(StartPolicy::FirstByte, "first-byte"), (StartPolicy::Eager, "eager")];

/// Whole runs, and what lies between the functions' own clocks. Microseconds.
#[derive(Default)]
struct Found {
    whole: Samples,
    inner: Samples,
}

fn native_functions(library: &Path) -> String {
    let function = |name: &str| {
        format!(
            "  {name}: {{runtime: native, library: {}, symbol: bench_{name}, outputs: {{out: bytes}}}}\n",
            library.display()
        )
    };
    format!("functions:\n{}{}", function("begin"), function("step"))
}

fn python_functions() -> String {
    let file = native::own("python/bench.py");
    let function = |name: &str| {
        format!(
            "  {name}: {{runtime: python, handler: \"{}:{name}\", outputs: {{out: bytes}}}}\n",
            file.display()
        )
    };
    format!("functions:\n{}{}", function("begin"), function("step"))
}

/// begin -> step -> … -> step, [`STEPS`] in all.
fn chain(functions: &str, input: &str) -> Result<Arc<Workflow>> {
    let mut body = format!("{functions}steps:\n  s0: {{function: begin}}\n");
    for i in 1..STEPS {
        body += &format!("  s{i}: {{function: step, in: {{{input}: steps.s{}.out}}}}\n", i - 1);
    }
    body += &format!("outputs:\n  out: {{from: steps.s{}.out}}\n", STEPS - 1);
    Ok(parse("chain", &body, Path::new("."))?)
}

/// The benchmark `chain`.
pub(crate) fn bench(report: &mut Report, n: Option<usize>) -> Result<()> {
    report.begin("chain");
    let library = native::library()?;
    let mut wake = Wake::start(wake::SHORT)?;
    for (name, functions, input, w_max) in
        [("native", native_functions(&library), "in", 3.0), ("python", python_functions(), "value", 6.0)]
    {
        let bench = node::start(NodeConfig::default())?;
        let workflow = chain(&functions, input)?;
        let mut found: [Found; 2] = Default::default();
        let one = |policy| -> Result<(f64, f64)> {
            let done = bench.run(&workflow, &[], Some(policy))?;
            let [begin, end] = done.words("out")?;
            Ok((done.elapsed_us() / STEPS as f64, (end - begin) as f64 / 1000.0 / (STEPS - 1) as f64))
        };
        for (policy, _) in POLICIES.into_iter().cycle().take(2 * WARMUP) {
            one(policy)?;
        }
        for _ in 0..n.unwrap_or(300).div_ceil(GROUP) {
            if let Some(wake) = &mut wake {
                wake.measure(WAKES)?;
            }
            for ((policy, _), found) in POLICIES.iter().zip(&mut found) {
                for _ in 0..GROUP {
                    let (whole, inner) = one(*policy)?;
                    found.whole.push(whole);
                    found.inner.push(inner);
                }
            }
        }
        let w = wake.as_ref().map_or(f64::NAN, |wake| wake.samples().median());
        for ((_, policy), found) in POLICIES.iter().zip(&found) {
            let goal = Goal::times(w_max, w, "W");
            report.row(&format!("{name}, {policy}: a step (whole run / {STEPS})"), &found.whole, "us", &goal);
            report.row(&format!("{name}, {policy}: from step to step"), &found.inner, "us", &goal);
        }
        for ((_, policy), found) in POLICIES.iter().zip(&found) {
            let (whole, inner) = (found.whole.median() / w, found.inner.median() / w);
            report.note(&format!(
                "{name}, {policy}: {} W a step, {} W from step to step",
                number(whole),
                number(inner)
            ));
        }
    }
    if let Some(wake) = &wake {
        report.row("W, between the groups above", wake.samples(), "us", &Goal::None);
    }
    Ok(())
}

/// The benchmark `fanout`.
pub(crate) fn bench_fanout(report: &mut Report, n: Option<usize>) -> Result<()> {
    report.begin("fanout");
    let library = native::library()?;
    let body = format!(
        "\
inputs:
  list: {{type: list}}
functions:
  begin: {{runtime: native, library: {library}, symbol: bench_begin, outputs: {{out: bytes}}}}
  join: {{runtime: native, library: {library}, symbol: bench_join, outputs: {{out: bytes}}}}
steps:
  work:
    function: begin
    foreach: {{item: x, over: inputs.list}}
    in: {{x: item.x}}
  join: {{function: join, in: {{in: \"steps.work.out[*]\"}}}}
outputs:
  count: {{from: steps.join.out}}
",
        library = library.display()
    );
    let workflow = parse("fanout", &body, Path::new("."))?;
    let bench = node::start(NodeConfig::default())?;
    let list = Given::Json((0..ITEMS).collect());
    let one = || -> Result<Done> {
        let done = bench.run(&workflow, &[("list", list.clone())], None)?;
        let [count] = done.words("count")?;
        ensure!(count == ITEMS as u64, "{count} items arrived where {ITEMS} were sent");
        Ok(done)
    };
    for _ in 0..WARMUP {
        one()?;
    }
    let (mut whole, mut inside) = (Samples::new(), Samples::new());
    for _ in 0..n.unwrap_or(200) {
        let done = one()?;
        whole.push(done.elapsed_us() / 1000.0);
        inside.push(done.makespan_us() / 1000.0);
    }
    report.row(
        &format!("{ITEMS} invocations and their fan-in, as the caller sees it"),
        &whole,
        "ms",
        &Goal::at_most(5.0),
    );
    report.row("the same on the node's clock", &inside, "ms", &Goal::None);
    Ok(())
}
