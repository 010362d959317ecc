//! Hand-over: from just before a producer's seal to just after its reader's get, in two processes.

use crate::machine::cores;
use crate::native;
use crate::node::{self, Bench, parse};
use crate::report::{Goal, Report, number};
use crate::stats::Samples;
use crate::wake::{self, Wake};
use anyhow::{Result, ensure};
use dflow_control::node::NodeConfig;
use dflow_control::workflow::Workflow;
use dflow_core::graph::StartPolicy;
use std::path::Path;
use std::sync::Arc;

/// Sizes, and how many samples of each are enough.
const SIZES: [(u64, &str, usize); 4] =
    [(1 << 10, "1 KiB", 500), (1 << 20, "1 MiB", 300), (64 << 20, "64 MiB", 60), (1 << 30, "1 GiB", 9)];
/// Samples are taken in this many rounds of all sizes, so that the machine's moods meet all of them.
const ROUNDS: usize = 3;
/// Samples of the reference before each group.
const WAKES: usize = 60;
/// A reader that came to its get less than this before the seal was not asleep yet. Nanoseconds.
const ASLEEP_NS: u64 = 300_000;
/// Longer than any producer computes and fills, so that a spinning reader never falls asleep.
const SPIN_US: u32 = 5_000_000;

struct Size {
    bytes: u64,
    name: &'static str,
    n: usize,
    workflow: Arc<Workflow>,
    /// From before the seal to after the get.
    handed: Samples,
    /// From before the seal to after it: what it costs the producer.
    sealed: Samples,
    /// Runs in which the reader was late.
    late: usize,
}

fn workflow(bytes: u64, library: &Path) -> Result<Arc<Workflow>> {
    let body = format!(
        "\
functions:
  produce:
    runtime: native
    library: {library}
    symbol: bench_produce
    outputs: {{data: {{type: bytes, size_hint: {bytes}}}, times: bytes}}
  consume:
    runtime: native
    library: {library}
    symbol: bench_consume
    outputs: {{times: bytes}}
steps:
  produce: {{function: produce, in: {{bytes: {bytes}}}}}
  consume: {{function: consume, start: eager, in: {{data: steps.produce.data}}}}
outputs:
  produced: {{from: steps.produce.times}}
  consumed: {{from: steps.consume.times}}
",
        library = library.display()
    );
    Ok(parse("handoff", &body, Path::new("."))?)
}

impl Size {
    fn run(&mut self, bench: &Bench) -> Result<()> {
        let done = bench.run(&self.workflow, &[], Some(StartPolicy::Eager))?;
        let [before, after] = done.words("produced")?;
        let [asked, got, bytes] = done.words("consumed")?;
        ensure!(bytes == self.bytes, "{bytes} bytes arrived where {} were sent", self.bytes);
        if asked + ASLEEP_NS > before {
            self.late += 1;
        } else {
            self.handed.push(got.saturating_sub(before) as f64 / 1000.0);
            self.sealed.push((after - before) as f64 / 1000.0);
        }
        Ok(())
    }
}

/// The benchmark `handoff`.
pub(crate) fn bench(report: &mut Report, n: Option<usize>) -> Result<()> {
    report.begin("handoff");
    if cores() < 2 {
        report.skip("handoff", "one core: producer and reader cannot be on two");
        return Ok(());
    }
    let library = native::library()?;
    one_way(report, n, &library, false)?;
    one_way(report, n, &library, true)
}

fn one_way(report: &mut Report, n: Option<usize>, library: &Path, spinning: bool) -> Result<()> {
    let config = NodeConfig { spin_us: if spinning { SPIN_US } else { 0 }, ..NodeConfig::default() };
    let store_bytes = config.store_bytes;
    let bench = node::start(config)?;
    let how = if spinning { "spinning" } else { "sleeping" };
    let mut sizes = Vec::new();
    for (bytes, name, enough) in SIZES {
        if bytes * 2 > store_bytes {
            report.skip(&format!("{name}, {how} reader"), "the store of this machine is too small");
            continue;
        }
        let workflow = workflow(bytes, library)?;
        let (handed, sealed) = (Samples::new(), Samples::new());
        sizes.push(Size { bytes, name, n: n.unwrap_or(enough), workflow, handed, sealed, late: 0 });
    }
    // Beside a node that spins, a wake between two others would be measured on busy cores.
    let mut wake = if spinning { None } else { Wake::start(wake::LONG)? };
    for round in 0..ROUNDS {
        for size in &mut sizes {
            if let Some(wake) = &mut wake {
                wake.measure(WAKES)?;
            }
            if round == 0 {
                // Forks the processes and touches the memory that later runs use again.
                for _ in 0..3 {
                    size.run(&bench)?;
                }
                (size.handed, size.sealed, size.late) = (Samples::new(), Samples::new(), 0);
            }
            for _ in 0..size.n.div_ceil(ROUNDS) {
                size.run(&bench)?;
            }
        }
    }
    let w = wake.as_ref().map_or(f64::NAN, |wake| wake.samples().median());
    if let Some(wake) = &wake {
        report.row("W, between the groups below", wake.samples(), "us", &Goal::None);
    }
    let smallest = sizes.first().map_or(f64::NAN, |size| size.handed.median());
    for (index, size) in sizes.iter().enumerate() {
        let goal = match (index, spinning) {
            (0, false) => Goal::times(1.5, w, "W"),
            (0, true) => Goal::at_most(3.0),
            _ => Goal::times(1.5, smallest, "x 1 KiB"),
        };
        report.row(&format!("{}, {how} reader", size.name), &size.handed, "us", &goal);
    }
    for size in &sizes {
        let median = size.handed.median();
        let late = if size.late > 0 {
            format!(", {} runs left out (reader late)", size.late)
        } else {
            String::new()
        };
        let in_w = if spinning { String::new() } else { format!("{} W, ", number(median / w)) };
        report.note(&format!(
            "{}, {how}: {in_w}{} x 1 KiB; the seal itself keeps the producer {} us{late}",
            size.name,
            number(median / smallest),
            number(size.sealed.median()),
        ));
    }
    report.note(&format!("huge pages of the store: {}", bench.huge_pages()));
    Ok(())
}
