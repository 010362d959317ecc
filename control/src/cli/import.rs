//! `dflow import`: a workflow of another system as a `dflow/v1` file.

use super::exit::Exit;
use crate::import::{self, ImportOptions, Imported, Kind, Mode};
use dflow_proto::limits::WORKFLOW_BYTES_MAX;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Tasks become steps of the built-in function `synthetic`, which read, wait and write as much as the
trace says; who hands what to whom is found by the names of files.

Examples:
  dflow import wfformat trace.json -o trace.yaml
  dflow import wfformat trace.json --mode trace --time-scale 0.001 | dflow graph /dev/stdin
  dflow import faasflow flat_workflow.yaml --mode zero --size-scale 0.1 -o small.yaml")]
pub(super) struct ImportArgs {
    /// The format of the file
    #[arg(value_enum)]
    kind: Kind,
    /// The file, `-` for stdin
    file: PathBuf,
    /// What tasks do with their time
    #[arg(long, value_enum, default_value = "paper")]
    mode: Mode,
    /// Traced seconds are multiplied by this in mode trace
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    time_scale: f64,
    /// Sizes are multiplied by this
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    size_scale: f64,
    /// Leave out what comes from outside the workflow, instead of steps that put it
    #[arg(long)]
    no_externals: bool,
    /// Items of a list whose length the file does not tell
    #[arg(long, value_name = "N", default_value_t = 8)]
    items: u32,
    /// Where the file is from, for the header of the result
    #[arg(long, value_name = "TEXT")]
    origin: Option<String>,
    /// Where to write the workflow; stdout unless given
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: &ImportArgs) -> Exit {
    let bytes = match read(&args.file) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("error: cannot read {}: {error}", args.file.display());
            return Exit::Usage;
        }
    };
    let options = ImportOptions {
        mode: args.mode,
        time_scale: args.time_scale,
        size_scale: args.size_scale,
        externals: !args.no_externals,
        items: args.items,
        origin: args.origin.clone(),
    };
    let Imported { yaml, warnings, stats } = match import::import(args.kind, &bytes, &options) {
        Ok(imported) => imported,
        Err(error) => {
            eprintln!("error: {}: {error}", args.file.display());
            if let Some(other) = import::sniff(&bytes).filter(|kind| *kind != args.kind) {
                eprintln!("  = help: this looks like a file for `dflow import {}`", other.name());
            }
            return Exit::Usage;
        }
    };
    for warning in &warnings {
        eprintln!("warning: {}: {warning}", args.file.display());
    }
    eprintln!(
        "{}: {} tasks, {} edges, {} bytes between tasks, {} bytes from outside",
        args.file.display(),
        stats.tasks,
        stats.edges,
        stats.edge_bytes,
        stats.external_bytes
    );
    let (written, place) = match &args.output {
        Some(path) => (std::fs::write(path, &yaml), path.display().to_string()),
        None => (std::io::stdout().lock().write_all(yaml.as_bytes()), "stdout".into()),
    };
    match written {
        Ok(()) => Exit::Ok,
        Err(error) => {
            eprintln!("error: cannot write to {place}: {error}");
            Exit::Output
        }
    }
}

/// The whole file; one byte more than is allowed of a larger one, so that the importer refuses it.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(WORKFLOW_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(path)?.take(WORKFLOW_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
