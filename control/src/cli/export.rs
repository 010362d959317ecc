//! `dflow export`: a past run in the form of another tool.

use super::exit::Exit;
use super::history::{PlaceArgs, RUN_HELP, print};
use crate::import::export;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dflow export last wfformat > run.json     (an execution instance, schema 1.5; `dflow import` reads it)
  dflow export last dot | dot -Tpng > run.png
  dflow export 3f2a svg > run.svg")]
pub(super) struct ExportArgs {
    #[arg(help = RUN_HELP)]
    run: String,
    /// The form
    #[arg(value_enum)]
    form: Form,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// What ran, with times and sizes, as a WfFormat execution instance
    Wfformat,
    /// The graph with each step's time and bytes, for Graphviz
    Dot,
    /// The graph, as the run's report draws it
    Svg,
}

pub(super) fn run(args: &ExportArgs) -> Exit {
    let record = match args.place.load(&args.run) {
        Ok(record) => record,
        Err(code) => return code,
    };
    match args.form {
        Form::Wfformat => print(&format!("{:#}\n", export::wfformat(&record))),
        Form::Dot => print(&export::dot(&record)),
        Form::Svg if record.graph.drawing.is_empty() => {
            eprintln!(
                "error: the drawing was too large to be kept; `dflow graph -f svg` makes one of the file"
            );
            Exit::Output
        }
        Form::Svg => print(&record.graph.drawing),
    }
}
