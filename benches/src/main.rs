//! Benchmarks of DFlow: `cargo run --release -p dflow-benches -- NAME`.
//!
//! Each prints a table of medians with their spread, and beside each figure the reference that bounds
//! it (a futex wake, a memcpy, a fork), measured in the same run. Nothing here asserts a time.

mod chain;
mod cold;
mod handoff;
mod machine;
mod native;
mod node;
mod report;
mod scheduler;
mod seal;
mod stats;
mod wake;
mod wordcount;
mod write;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use report::{Report, say};
use std::path::PathBuf;
use std::process::ExitCode;

/// The node lives in this process, and so with the allocator it has in `dflow`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measure DFlow on this machine.
///
/// `met` tells whether the median reaches the goal. Run on an idle machine, with an optimised build.
#[derive(Debug, Parser)]
#[command(name = "dflow-benches", max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    what: What,
    /// Samples of each kind; the default is enough for an honest median
    #[arg(short, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    n: Option<u32>,
    /// Write machine and results as JSON
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
enum What {
    /// W, the reference: one futex wake between two processes
    Wake,
    /// From a seal to the return of a waiting get in another process, 1 KiB to 1 GiB
    Handoff,
    /// Writing an object against memcpy
    Write,
    /// The modes of sealing, 64 KiB to 256 MiB
    Seal,
    /// Ten steps that do nothing, native and Python
    Chain,
    /// A hundred invocations that do nothing, and their fan-in
    Fanout,
    /// The scheduler alone: completions a second, bytes an invocation
    Scheduler,
    /// From the start without a process to the function's first line
    Cold,
    /// Word Count on real text, data flow against control flow
    Wordcount,
    /// All of them
    All,
    /// The other process of `wake`
    #[command(hide = true)]
    Sleeper {
        /// The shared memory
        path: String,
        /// Its processor
        cpu: usize,
    },
    /// The fresh process of `scheduler`
    #[command(hide = true)]
    SchedulerMemory {
        /// The graph
        shape: String,
    },
}

type Benchmark = fn(&mut Report, Option<usize>) -> Result<()>;

/// In the order of `all`.
const BENCHMARKS: [(What, Benchmark); 9] = [
    (What::Wake, wake::bench),
    (What::Scheduler, scheduler::bench),
    (What::Seal, seal::bench),
    (What::Write, write::bench),
    (What::Handoff, handoff::bench),
    (What::Chain, chain::bench),
    (What::Fanout, chain::bench_fanout),
    (What::Cold, cold::bench),
    (What::Wordcount, wordcount::bench),
];

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all went well.
fn run(args: &Args) -> Result<bool> {
    match &args.what {
        What::Sleeper { path, cpu } => return wake::sleeper(path, *cpu).map(|()| true),
        What::SchedulerMemory { shape } => return scheduler::memory(shape).map(|()| true),
        _ => {}
    }
    let machine = machine::Machine::here();
    say(&machine.text());
    let mut report = Report::default();
    let mut well = true;
    let chosen = BENCHMARKS.iter().filter(|(what, _)| args.what == What::All || args.what == *what);
    for (what, bench) in chosen {
        // One that fails does not take the others' results with it.
        if let Err(error) = bench(&mut report, args.n.map(|n| n as usize)) {
            eprintln!("error: {what:?}: {error:#}");
            well = false;
        }
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report.into_json(machine.json()))?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(well)
}
