//! The `dflow` command: what it accepts, and which part of the house answers.

mod bench;
mod dev;
mod doctor;
mod exit;
mod export;
mod graph;
mod history;
mod import;
mod interrupt;
mod lint;
mod live;
mod node;
mod open;
mod plan;
mod remote;
mod report;
mod results;
mod run;
mod trace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Serverless workflows started by data.
///
/// A function starts when its input data begins to exist, even while the functions before it
/// still run; outputs are handed over through shared memory without a copy.
#[derive(Debug, Parser)]
#[command(name = "dflow", version, max_term_width = 100, after_help = exit::HELP)]
struct Args {
    /// Log what the node does to stderr (error, warn, info, debug, trace, or a filter such as
    /// `dflow_control=debug`).
    #[arg(long, global = true, env = "DFLOW_LOG", value_name = "FILTER")]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a workflow on this machine and print its result
    Run(Box<run::RunArgs>),
    /// Check workflow files and print every mistake with its place
    Lint(lint::LintArgs),
    /// Draw a workflow's graph
    Graph(graph::GraphArgs),
    /// Show where the steps would lie on several nodes, without running
    Plan(plan::PlanArgs),
    /// Turn a trace or workflow of another system into a workflow file
    Import(import::ImportArgs),
    /// Write a past run in the form of another tool
    Export(export::ExportArgs),
    /// Run a node: a service that takes workflows and runs over HTTP
    Node(Box<node::NodeArgs>),
    /// Run several nodes on this machine, to try and to test
    Dev(dev::DevArgs),
    /// Look at a node's configuration
    Config(node::ConfigArgs),
    /// Give a workflow with its files to a node
    Deploy(remote::DeployArgs),
    /// Begin a run at a node
    Submit(remote::SubmitArgs),
    /// Wait for the end of a node's run
    Wait(remote::WaitArgs),
    /// Fetch outputs of a node's run
    Get(remote::GetArgs),
    /// End a node's run
    Cancel(remote::CancelArgs),
    /// List the nodes
    Nodes(remote::NodesArgs),
    /// List runs: of a node if DFLOW_SERVER or --server names one, else past runs of this machine
    Ps(history::PsArgs),
    /// Show a run: result, inputs, steps, failures
    Show(history::ShowArgs),
    /// Print what functions printed in a run
    Logs(history::LogsArgs),
    /// Write a past run as a trace for Perfetto
    Trace(trace::TraceArgs),
    /// Write a past run as a page for a browser
    Report(report::ReportArgs),
    /// Measure
    Bench(bench::BenchArgs),
    /// Look whether this machine is fit for DFlow, and say how to mend what is not
    Doctor(doctor::DoctorArgs),
}

/// Parses the command line, runs it, and returns the documented exit code.
pub fn main() -> ExitCode {
    let args = Args::parse();
    // A node's configuration says how it logs.
    if !matches!(args.command, Command::Node(_)) {
        init_logging(args.log.as_deref());
    }
    let code = match args.command {
        Command::Run(args) => run::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Graph(args) => graph::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Node(args) => node::run(&args),
        Command::Dev(args) => dev::run(&args),
        Command::Config(args) => node::config(&args),
        Command::Deploy(args) => remote::deploy(&args),
        Command::Submit(args) => remote::submit(&args),
        Command::Wait(args) => remote::wait(&args),
        Command::Get(args) => remote::get(&args),
        Command::Cancel(args) => remote::cancel(&args),
        Command::Nodes(args) => remote::nodes(&args),
        Command::Ps(args) => history::ps(&args),
        Command::Show(args) => history::show(&args),
        Command::Logs(args) => history::logs(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    };
    ExitCode::from(code as u8)
}

fn init_logging(filter: Option<&str>) {
    let filter = tracing_subscriber::EnvFilter::new(filter.unwrap_or("error"));
    // A second initialisation (an embedding program's own) is no reason to stop.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
