//! `dflow bench`: measurements.

mod memcpy;
mod out;
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
        What::Memcpy(args) => memcpy::run(args),
        What::Store(args) => store::run(args),
    }
}
