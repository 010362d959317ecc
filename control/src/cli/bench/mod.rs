//! `dflow bench`: measurements.

mod ends;
mod local;
mod memcpy;
mod out;
mod put;
mod store;
mod transfer;
mod workflow;

use super::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Workflows under load: start policies, imitated systems, and what each overlap is worth
    Workflow(Box<workflow::WorkflowArgs>),
    /// Bytes between two nodes, beside raw sockets of the same run
    Transfer(Box<transfer::TransferArgs>),
    /// Objects put on one node and got on another: hand-over, rate, streaming, one to many
    Put(Box<put::PutArgs>),
    /// An object handed from one function to the next on this machine
    Handoff(local::HandoffArgs),
    /// What an invocation costs: a chain of steps that do nothing
    Invoke(local::InvokeArgs),
    /// From submission to the first line of a function that has no process yet
    Cold(local::ColdArgs),
    /// The memory's own speed: filling and copying
    Memcpy(memcpy::MemcpyArgs),
    /// Be the remote store of an imitated system (`dflow bench workflow` starts it)
    #[command(hide = true)]
    Store(store::StoreArgs),
}

pub(super) fn run(args: &BenchArgs) -> Exit {
    match &args.what {
        What::Workflow(args) => workflow::run(args),
        What::Transfer(args) => transfer::run(args),
        What::Put(args) => put::run(args),
        What::Handoff(args) => local::run_handoff(args),
        What::Invoke(args) => local::run_invoke(args),
        What::Cold(args) => local::run_cold(args),
        What::Memcpy(args) => memcpy::run(args),
        What::Store(args) => store::run(args),
    }
}
