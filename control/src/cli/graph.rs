//! `dflow graph`: the workflow as a picture.

use super::exit::Exit;
use super::open::open;
use crate::graphview;
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct GraphArgs {
    /// Workflow file (dflow/v1, YAML or JSON)
    file: PathBuf,
    /// ascii for the terminal, dot for Graphviz, svg for a browser
    #[arg(short, long, value_enum, default_value = "ascii")]
    format: graphview::Format,
}

pub(super) fn run(args: &GraphArgs) -> Exit {
    let workflow = match open(&args.file) {
        Ok(workflow) => workflow,
        Err(code) => return code,
    };
    let picture = graphview::render(&workflow, args.format);
    match std::io::stdout().lock().write_all(picture.as_bytes()) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            eprintln!("error: cannot write to stdout: {error}");
            Exit::Output
        }
    }
}
