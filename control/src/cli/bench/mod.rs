//! `dflow bench`: measurements.

mod store;
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
    /// Be the remote store of an imitated system (`dflow bench workflow` starts it)
    #[command(hide = true)]
    Store(store::StoreArgs),
}

pub(super) fn run(args: &BenchArgs) -> Exit {
    match &args.what {
        What::Workflow(args) => workflow::run(args),
        What::Store(args) => store::run(args),
    }
}
