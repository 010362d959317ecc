//! How fast a function writes an object, against memcpy into private memory that is used again and
//! again: the same process, the same bytes, the three ways taking turns.

use crate::native;
use crate::node::{self, parse};
use crate::report::{Goal, Report, number};
use crate::stats::Samples;
use anyhow::Result;
use dflow_control::node::NodeConfig;
use std::path::Path;

const BYTES: u64 = 64 << 20;
/// Runs before the first that counts: they fork the process and touch the extents.
const WARMUP: usize = 4;
/// The share of memcpy's speed to reach.
const SHARE: f64 = 0.9;

/// The benchmark `write`.
pub(crate) fn bench(report: &mut Report, n: Option<usize>) -> Result<()> {
    report.begin("write");
    let library = native::library()?;
    let bench = node::start(NodeConfig::default())?;
    let body = format!(
        "\
inputs:
  turn: {{type: int}}
functions:
  write:
    runtime: native
    library: {}
    symbol: bench_write
    outputs:
      reserved: {{type: bytes, size_hint: {BYTES}}}
      put: {{type: bytes, size_hint: {BYTES}}}
      times: bytes
steps:
  write: {{function: write, in: {{bytes: {BYTES}, turn: inputs.turn}}}}
outputs:
  times: {{from: steps.write.times}}
",
        library.display()
    );
    let workflow = parse("write", &body, Path::new("."))?;
    let mut speeds: [Samples; 4] = Default::default();
    for turn in 0..WARMUP + n.unwrap_or(20) {
        let given = dflow_control::node::Given::Json(turn.into());
        let done = bench.run(&workflow, &[("turn", given)], None)?;
        let times: [u64; 4] = done.words("times")?;
        if turn >= WARMUP {
            for (speed, ns) in speeds.iter_mut().zip(times) {
                speed.push(BYTES as f64 / ns as f64);
            }
        }
    }
    let [memcpy, reserved, filled, put] = &speeds;
    let goal = || {
        let limit = SHARE * memcpy.median();
        Goal::AtLeast(limit, format!(">= {SHARE} memcpy = {}", number(limit)))
    };
    report.row("memcpy into reused private memory, 64 MiB", memcpy, "GB/s", &Goal::None);
    report.row("reserve, fill, seal", reserved, "GB/s", &goal());
    report.row("  of it the fill alone", filled, "GB/s", &Goal::None);
    report.row("put", put, "GB/s", &goal());
    for (name, samples) in [("reserve, fill, seal", reserved), ("put", put)] {
        report.note(&format!("{name}: {} of memcpy", number(samples.median() / memcpy.median())));
    }
    report.note(&format!("huge pages of the store: {}", bench.huge_pages()));
    Ok(())
}
