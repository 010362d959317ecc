//! `dflow run`: a node in this process, one run, its result.

use super::exit::Exit;
use super::history::KeepArgs;
use super::interrupt::count_interrupts;
use super::live::{Live, bytes_text, state_word};
use super::open::open;
use super::results;
pub(super) use crate::api::start_policy as parse_start;
use crate::history::{Facts, Printed, graph_facts, input_facts, new_run_name};
use crate::node::{Given, Node, NodeConfig, OutputValue, RunFailure, RunHandle, RunSpec, Spread};
use crate::workflow::{self, Workflow};
use dflow_core::graph::StartPolicy;
use dflow_core::scheduler::RunError;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How often the terminal is redrawn.
const FRAME: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dflow run wordcount.yaml --input text=@corpus.txt
  dflow run video.yaml -i video=@in.mp4 -i segment_s=8 -o out/
  dflow run wordcount.yaml -i text=@corpus.txt --start all-ready -o json   (control flow, for comparison)")]
pub(super) struct RunArgs {
    /// Workflow file (dflow/v1, YAML or JSON), or a WfFormat trace or FaaSFlow file
    file: PathBuf,
    /// An input: NAME=VALUE, or NAME=@FILE for a file's content; repeatable
    #[arg(short, long = "input", value_name = "NAME=VALUE")]
    inputs: Vec<String>,
    /// When invocations may start, overriding the file: eager, first-byte, all-ready, or first:K
    #[arg(long, value_name = "POLICY", value_parser = parse_start)]
    start: Option<StartPolicy>,
    /// A directory for the results (one file per output), or `json` for a summary on stdout; repeatable
    #[arg(short, long = "output", value_name = "DIR|json")]
    outputs: Vec<String>,
    /// CPU tokens, in cores; default: the cores this process may use
    #[arg(long, value_name = "CORES", env = "DFLOW_CPUS")]
    cpus: Option<f64>,
    /// Invocations that may exist at one time, waiting ones included
    #[arg(long, env = "DFLOW_SLOTS")]
    slots: Option<u32>,
    /// Memory of the object store, e.g. 2GiB; default: a quarter of the machine's
    #[arg(long, value_name = "SIZE", env = "DFLOW_STORE", value_parser = parse_size)]
    store: Option<u64>,
    /// Where a full store puts what is not in use, or `none`: a full store then waits
    #[arg(long, value_name = "DIR", env = "DFLOW_SPILL", default_value = "/var/tmp")]
    spill: PathBuf,
    /// Most bytes the spill directory may take
    #[arg(long, value_name = "SIZE", env = "DFLOW_SPILL_MAX", value_parser = parse_size)]
    spill_max: Option<u64>,
    /// Microseconds a reader spins before it sleeps
    #[arg(long, value_name = "US", env = "DFLOW_SPIN_US", default_value_t = 0)]
    spin_us: u32,
    /// Copy outputs at their seal: for functions that may be hostile, not only wrong
    #[arg(long, env = "DFLOW_STRICT")]
    strict: bool,
    /// Show what functions print
    #[arg(long)]
    logs: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    keep: KeepArgs,
}

pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    workflow::parse_size(text)
}

/// Where results go, from the `-o` options.
#[derive(Default)]
struct Sink {
    dir: Option<PathBuf>,
    json: bool,
}

/// What a record tells beyond the run itself.
struct About<'a> {
    workflow: &'a Workflow,
    inputs: &'a [(String, Given)],
    config: &'a NodeConfig,
}

pub(super) fn run(args: &RunArgs) -> Exit {
    let workflow = match open(&args.file) {
        Ok(workflow) => Arc::new(workflow),
        Err(code) => return code,
    };
    let inputs = match parse_inputs(&args.inputs) {
        Ok(inputs) => inputs,
        Err(message) => {
            eprintln!("error: {message}");
            return Exit::Usage;
        }
    };
    let mut sink = Sink::default();
    for output in &args.outputs {
        if output == "json" {
            sink.json = true;
        } else {
            sink.dir = Some(output.into());
        }
    }
    if let Some(dir) = &sink.dir
        && let Err(error) = results::prepare(dir)
    {
        eprintln!("error: {error}");
        return Exit::Output;
    }
    let config = node_config(args);
    let node = match Node::start(config.clone()) {
        Ok(node) => node,
        Err(error) => {
            eprintln!("error: {error}");
            return Exit::Environment;
        }
    };
    let spec = RunSpec {
        workflow: workflow.clone(),
        inputs: inputs.clone(),
        start: args.start,
        spread: Spread::Auto,
    };
    // From before the run's first process exists, which a Ctrl-C would otherwise orphan.
    let interrupts = count_interrupts();
    let code = match node.submit(spec) {
        Ok(handle) => {
            let about = About { workflow: &workflow, inputs: &inputs, config: &config };
            follow(args, &node, handle, &sink, &about, &interrupts)
        }
        Err(error) => {
            eprintln!("error: {error}");
            Exit::Usage
        }
    };
    node.shutdown();
    code
}

fn node_config(args: &RunArgs) -> NodeConfig {
    let mut config = NodeConfig { spin_us: args.spin_us, strict: args.strict, ..NodeConfig::default() };
    config.journal = args.keep.wanted();
    if let Some(cpus) = args.cpus {
        config.offer((cpus.clamp(0.001, 1e6) * 1000.0) as u32);
    }
    config.slots = args.slots.unwrap_or(config.slots).max(1);
    config.store_bytes = args.store.unwrap_or(config.store_bytes);
    config.spill_dir = (args.spill != Path::new("none")).then(|| args.spill.clone());
    config.spill_bytes = args.spill_max.unwrap_or(config.spill_bytes);
    config
}

pub(super) fn parse_inputs(pairs: &[String]) -> Result<Vec<(String, Given)>, String> {
    let parse = |pair: &String| {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(format!("--input {pair}: expected NAME=VALUE or NAME=@FILE"));
        };
        let given = match value.strip_prefix('@') {
            Some(path) => Given::File(path.into()),
            None => Given::Text(value.into()),
        };
        Ok((name.to_string(), given))
    };
    pairs.iter().map(parse).collect()
}

/// Shows the run until it ends, delivers, and writes its record down.
fn follow(
    args: &RunArgs,
    node: &Node,
    handle: RunHandle,
    sink: &Sink,
    about: &About<'_>,
    interrupts: &AtomicU32,
) -> Exit {
    let begun = Instant::now();
    let mut live = Live::new(&handle.watch().view(), args.quiet || sink.json);
    let mut printed = Printed::default();
    let mut told = 0;
    let result = loop {
        let result = handle.wait(Some(FRAME));
        let view = handle.watch().view();
        let (lines, dropped) = node.logs().take();
        if args.logs {
            live.print(&lines, dropped);
        }
        printed.add(&lines, dropped);
        live.update(&view, begun.elapsed().as_secs_f64());
        if let Some(result) = result {
            break result;
        }
        let interrupted = interrupts.load(Ordering::Relaxed);
        if interrupted > told {
            told = interrupted;
            if interrupted > 1 {
                eprintln!("interrupted again: leaving at once");
                return Exit::Interrupted;
            }
            handle.cancel("interrupted by Ctrl-C");
        }
    };
    live.finish();
    let elapsed = begun.elapsed();
    let run = new_run_name();
    if sink.json {
        print_summary(&run, &handle, &result, elapsed);
    }
    let code = match &result {
        Ok(outputs) => deliver(outputs, sink, args.quiet, elapsed),
        Err(failure) => {
            if !sink.json {
                eprintln!("error: {failure}");
            }
            match failure {
                RunFailure::Run(RunError::Deadline { .. }) => Exit::Deadline,
                RunFailure::Run(RunError::Cancelled(_)) if told > 0 => Exit::Interrupted,
                _ => Exit::Failed,
            }
        }
    };
    if args.keep.wanted() {
        let facts = Facts {
            run,
            file: args.file.display().to_string(),
            workflow: about.workflow,
            graph: &graph_facts(about.workflow),
            start: args.start,
            inputs: input_facts(about.workflow, about.inputs),
            node: about.config,
            age: begun.elapsed(),
            view: &handle.watch().view(),
            journal: &handle.watch().take_journal(),
            failure: result.as_ref().err(),
            printed,
            nodes: handle.watch().nodes(),
        };
        args.keep.save(&facts.record(), args.quiet || sink.json);
    }
    code
}

fn deliver(outputs: &[(String, OutputValue)], sink: &Sink, quiet: bool, elapsed: Duration) -> Exit {
    if !quiet && !sink.json {
        eprintln!("done in {:.3} s", elapsed.as_secs_f64());
    }
    if let Some(dir) = &sink.dir {
        match results::write_dir(dir, outputs) {
            Ok(files) if !quiet && !sink.json => {
                files
                    .iter()
                    .for_each(|(path, bytes)| eprintln!("wrote {} ({})", path.display(), bytes_text(*bytes)));
            }
            Ok(_) => {}
            Err(error) => {
                eprintln!("error: {error}");
                return Exit::Output;
            }
        }
    } else if !sink.json
        && let Err(error) = results::print(outputs)
    {
        eprintln!("error: cannot write to stdout: {error}");
        return Exit::Output;
    }
    Exit::Ok
}

/// One JSON document on stdout: result, steps, times.
fn print_summary(
    run: &str,
    handle: &RunHandle,
    result: &Result<Vec<(String, OutputValue)>, RunFailure>,
    elapsed: Duration,
) {
    let view = handle.watch().view();
    let step = |s: &crate::node::StepView| {
        let start_us = s.first_start.map(|t| t.since_us(view.submitted));
        let end_us = s.last_end.map(|t| t.since_us(view.submitted));
        serde_json::json!({
            "name": s.name, "state": state_word(s), "items": s.items, "done": s.done, "failed": s.failed,
            "retried": s.retried, "bytes": s.bytes, "start_us": start_us, "end_us": end_us,
        })
    };
    let makespan_us = view.ended.map(|t| t.since_us(view.submitted));
    let mut summary = serde_json::json!({
        "run": run, "ok": result.is_ok(), "makespan_us": makespan_us, "elapsed_us": elapsed.as_micros() as u64,
        "steps": view.steps.iter().map(step).collect::<Vec<_>>(),
    });
    match result {
        Ok(outputs) => summary["outputs"] = results::json(outputs).into(),
        Err(failure) => summary["error"] = failure.to_string().into(),
    }
    #[expect(clippy::print_stdout, reason = "the summary is this command's product")]
    {
        println!("{summary:#}");
    }
}
