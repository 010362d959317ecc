//! `dflow lint`: every mistake of a workflow file with its place.

use super::exit::Exit;
use super::open::open;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct LintArgs {
    /// Workflow files (dflow/v1, YAML or JSON)
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

pub(super) fn run(args: &LintArgs) -> Exit {
    let mut code = Exit::Ok;
    for file in &args.files {
        match open(file) {
            Ok(workflow) => {
                let graph = &workflow.graph;
                eprintln!("{}: {}: {} steps, no mistakes", file.display(), graph.name, graph.steps.len());
            }
            Err(wrong) => code = wrong,
        }
    }
    code
}
