//! `dflow bench workflow`: workflows under load.

use super::super::exit::Exit;
use super::super::interrupt::count_interrupts;
use super::super::open::open_with;
use super::super::run::{parse_inputs, parse_size, parse_start};
use crate::bench::{self, BenchError, Contender, Load, Plan, Subject};
use crate::import::{ImportOptions, Mode};
use crate::node::{Given, NodeConfig, Overlaps};
use dflow_core::graph::StartPolicy;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Contenders: `dflow` (the policies of the files) comes first and is what others are compared with; those of
--start, --without and --baseline follow. Each has nodes of its own; they take turns, block by block.

Baselines, all of them control flow without warming ahead:
  same-store      on DFlow's own store
  cflow           a central trigger, all data through a remote store
  faasflow        triggers and data stay on a virtual worker, a remote store between workers
  faasflow-redis  the same, with redis-server as the remote store
  knix            all on one virtual worker, triggers and data through its message bus, a fork for each invocation
Remote stores are processes behind a veth link of --link bytes a second (root; else loopback, and it says
so). What is imitated and what is not: docs/evaluation.md.

Ctrl-C and SIGTERM end it at once, without results (exit code 130), and leave nothing behind. A contender that loses
a node is given up, with the node's name, and the others go on (exit code 1).

Examples:
  dflow bench workflow genome.yaml --cpus 56 --baseline same-store,cflow -n 20
  dflow bench workflow wordcount.yaml -i text=@corpus.txt --start eager,all-ready --closed 4 -n 1000
  dflow bench workflow a.yaml b.yaml --rate 20 --without cold-start,fan-in,streaming,hand-over --json r.json
  dflow bench workflow genome.yaml --cpus 48 --nodes 3 --link 50MB --baseline cflow,faasflow,faasflow-redis,knix
  dflow bench workflow trace.json --time-scale 0.01 --size-scale 0.01 --cold --baseline cflow --svg r.svg")]
pub(super) struct WorkflowArgs {
    /// Workflow files; more than one run side by side, in turns
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// An input of those workflows that have it: NAME=VALUE or NAME=@FILE; repeatable
    #[arg(short, long = "input", value_name = "NAME=VALUE")]
    inputs: Vec<String>,
    /// DFlow with these start policies: eager, first-byte, all-ready, first:K
    #[arg(long, value_name = "POLICY,..", value_delimiter = ',', value_parser = parse_start)]
    start: Vec<StartPolicy>,
    /// DFlow without one of: cold-start, fan-in, streaming, hand-over, trace
    #[arg(long, value_name = "WHAT,..", value_delimiter = ',', value_parser = parse_without)]
    without: Vec<Contender>,
    /// Other systems, imitated: same-store, cflow, faasflow, faasflow-redis, knix
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', value_parser = parse_baseline)]
    baseline: Vec<Contender>,
    /// Leave `dflow` itself out; the next contender comes first
    #[arg(long)]
    no_dflow: bool,
    /// Closed loop: so many clients, each with one run at a time
    #[arg(long, value_name = "CLIENTS", default_value_t = 1, conflicts_with = "rate",
          value_parser = clap::value_parser!(u32).range(1..=256))]
    closed: u32,
    /// Open loop: so many runs a second, whether or not those before have ended
    #[arg(long, value_name = "PER_S", value_parser = parse_rate)]
    rate: Option<f64>,
    /// When runs of an open loop begin
    #[arg(long, value_enum, default_value = "poisson", requires = "rate")]
    arrivals: Arrivals,
    /// Runs of each contender, over all workflows; a p99 wants 1,000 of each workflow
    #[arg(short = 'n', long, value_name = "RUNS", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    runs: u32,
    /// Runs of each workflow and node before anything is measured, under the same load
    #[arg(long, value_name = "RUNS", default_value_t = 2)]
    warmups: u32,
    /// Each run finds no function process and no loaded code
    #[arg(long)]
    cold: bool,
    /// Of random arrivals
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// A run that takes longer is cancelled and counts as failed
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    patience: u64,
    /// CPU tokens, in cores; default: the cores this process may use
    #[arg(long, value_name = "CORES", env = "DFLOW_CPUS")]
    cpus: Option<f64>,
    /// Invocations that may exist at one time, waiting ones included
    #[arg(long, env = "DFLOW_SLOTS")]
    slots: Option<u32>,
    /// Memory of each contender's object store
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = parse_size)]
    store: u64,
    /// Nodes: DFlow's are one cluster, each with a share of the cores and a link of its own; imitated systems have as
    /// many workers with those cores
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    nodes: u32,
    /// The link of each node and to a remote store, in bytes a second each way
    #[arg(long, value_name = "SIZE", default_value = "50MB", value_parser = parse_size)]
    link: u64,
    /// Virtual workers of imitated systems, for one node
    #[arg(long, value_name = "N", default_value_t = 7, conflicts_with = "nodes", value_parser = clap::value_parser!(u32).range(1..=1000))]
    workers: u32,
    /// Cores of each virtual worker, for one node
    #[arg(long, value_name = "CORES", default_value_t = 8, conflicts_with = "nodes", value_parser = clap::value_parser!(u32).range(1..=1000))]
    worker_cpus: u32,
    /// What tasks of an imported trace do with their time
    #[arg(long, value_enum, default_value = "paper")]
    mode: Mode,
    /// Leave out what comes from outside an imported workflow
    #[arg(long)]
    no_externals: bool,
    /// Times of synthetic steps are multiplied by this
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = parse_scale)]
    time_scale: f64,
    /// Sizes of what synthetic steps write are multiplied by this
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = parse_scale)]
    size_scale: f64,
    /// Write all figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a chart to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Say nothing on the way
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Arrivals {
    /// At random, with exponential gaps
    Poisson,
    /// Evenly
    Fixed,
}

fn parse_without(text: &str) -> Result<Contender, String> {
    Contender::without(text).ok_or_else(|| format!("expected one of: {}, trace", Overlaps::NAMES.join(", ")))
}

fn parse_baseline(text: &str) -> Result<Contender, String> {
    Contender::baseline(text).ok_or_else(|| format!("expected one of: {}", Contender::BASELINES.join(", ")))
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| (1e-4..=1e5).contains(rate));
    rate.ok_or_else(|| "expected runs a second, from 0.0001 to 100000".into())
}

fn parse_scale(text: &str) -> Result<f64, String> {
    let scale = text.parse::<f64>().ok().filter(|scale| (0.0..=1e6).contains(scale));
    scale.ok_or_else(|| "expected a number from 0 to 1000000".into())
}

pub(super) fn run(args: &WorkflowArgs) -> Exit {
    let inputs = match parse_inputs(&args.inputs) {
        Ok(inputs) => inputs,
        Err(message) => return wrong(&message),
    };
    let mut subjects = Vec::new();
    for file in &args.files {
        match subject(args, file, &inputs) {
            Ok(subject) => subjects.push(subject),
            Err(code) => return code,
        }
    }
    if let Some((name, _)) = inputs.iter().find(|(name, _)| !known(&subjects, name)) {
        return wrong(&format!("no workflow has an input {name:?}"));
    }
    let plan = plan(args, subjects);
    if plan.contenders.is_empty() {
        return wrong("--no-dflow leaves nobody; name others with --start, --without or --baseline");
    }
    // Hours may lie between now and the moment in which they are written.
    for path in [&args.json, &args.svg].into_iter().flatten() {
        if let Err(error) = try_to_write(path) {
            eprintln!("error: cannot write {}: {error}", path.display());
            return Exit::Output;
        }
    }
    let mut say = |text: &str| {
        if !args.quiet {
            eprintln!("{text}");
        }
    };
    let results = match bench::measure(&plan, &mut say) {
        Ok(results) => results,
        Err(error) => {
            eprintln!("error: {error}");
            return match error {
                BenchError::ColdLoad => Exit::Usage,
                BenchError::Interrupted { .. } => Exit::Interrupted,
                BenchError::Node { .. } | BenchError::Nobody(_) => Exit::Environment,
            };
        }
    };
    let files = [(&args.json, format!("{:#}\n", results.json())), (&args.svg, results.svg())];
    let mut written = Exit::Ok;
    for (path, text) in files.iter().filter_map(|(path, text)| path.as_ref().map(|path| (path, text))) {
        if let Err(error) = std::fs::write(path, text) {
            eprintln!("error: cannot write {}: {error}", path.display());
            written = Exit::Output;
        }
    }
    // The figures are there, if only to be read.
    match super::super::history::print(&results.text()) {
        Exit::Ok if written != Exit::Ok => written,
        Exit::Ok if !results.complete() || !results.differ.is_empty() => Exit::Failed,
        code => code,
    }
}

/// Whether a file can be written; one that is not there is not left.
fn try_to_write(path: &Path) -> std::io::Result<()> {
    let is_new = !path.exists();
    std::fs::OpenOptions::new().append(true).create(true).open(path)?;
    if is_new { std::fs::remove_file(path) } else { Ok(()) }
}

fn wrong(message: &str) -> Exit {
    eprintln!("error: {message}");
    Exit::Usage
}

fn known(subjects: &[Subject], input: &str) -> bool {
    subjects.iter().any(|s| s.workflow.inputs.iter().any(|i| i.name == input))
}

fn subject(args: &WorkflowArgs, file: &Path, inputs: &[(String, Given)]) -> Result<Subject, Exit> {
    let options =
        ImportOptions { mode: args.mode, externals: !args.no_externals, ..ImportOptions::default() };
    let mut workflow = open_with(file, &options)?;
    if (args.time_scale, args.size_scale) != (1.0, 1.0) {
        let steps;
        (workflow, steps) = bench::scale(workflow, args.time_scale, args.size_scale);
        if steps == 0 {
            eprintln!("warning: {}: no synthetic step, so nothing is scaled", file.display());
        }
    }
    let has = |name: &str| workflow.inputs.iter().any(|i| i.name == name);
    let inputs = inputs.iter().filter(|(name, _)| has(name)).cloned().collect();
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Subject { name, workflow: Arc::new(workflow), inputs })
}

fn plan(args: &WorkflowArgs, subjects: Vec<Subject>) -> Plan {
    let mut contenders: Vec<Contender> = Vec::new();
    let dflow = (!args.no_dflow).then(Contender::dflow);
    let started = args.start.iter().map(|policy| Contender::start(*policy));
    let rest = args.without.iter().chain(&args.baseline).cloned();
    for contender in dflow.into_iter().chain(started).chain(rest) {
        if !contenders.contains(&contender) {
            contenders.push(contender);
        }
    }
    let mut node = NodeConfig { store_bytes: args.store, ..NodeConfig::default() };
    if let Some(cpus) = args.cpus {
        node.offer((cpus.clamp(0.001, 1e6) * 1000.0) as u32);
    }
    node.slots = args.slots.unwrap_or(node.slots).max(1);
    let (mut workers, mut worker_cpus) = (args.workers, args.worker_cpus);
    if args.nodes > 1 {
        node.cpu_milli = (node.cpu_milli / args.nodes).max(1);
        node.slots = node.slots.div_ceil(args.nodes);
        node.idle_max = node.idle_max.div_ceil(args.nodes);
        (workers, worker_cpus) = (args.nodes, node.cpu_milli.div_ceil(1000));
    }
    Plan {
        subjects,
        contenders,
        load: match args.rate {
            Some(per_s) => Load::Open { per_s, poisson: args.arrivals == Arrivals::Poisson },
            None => Load::Closed { clients: args.closed },
        },
        runs: args.runs,
        warmups: args.warmups,
        cold: args.cold,
        seed: args.seed,
        patience: Duration::from_secs(args.patience.max(1)),
        node,
        nodes: args.nodes,
        workers,
        worker_cpus,
        link_bytes_per_s: args.link.max(1000),
        interrupts: count_interrupts(),
    }
}
