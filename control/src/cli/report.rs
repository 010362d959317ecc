//! `dflow report`: a past run as a page for a browser.

use super::exit::Exit;
use super::history::{PlaceArgs, RUN_HELP};
use crate::{report, trace::Timeline};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The page is one file that needs nothing else: it can be opened from disk, mailed, or kept with the result.

Examples:
  dflow report
  dflow report last~1 -o before.html")]
pub(super) struct ReportArgs {
    #[arg(help = RUN_HELP, default_value = "last")]
    run: String,
    /// Where to write it, `-` for stdout; default: dflow-RUN.html
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    server: super::remote::ServerArgs,
}

pub(super) fn run(args: &ReportArgs) -> Exit {
    let record = match args.place.load_from(&args.server, &args.run) {
        Ok(record) => record,
        Err(code) => return code,
    };
    let page = report::page(&record, &Timeline::of(&record));
    let path = args.output.clone().unwrap_or_else(|| format!("dflow-{}.html", record.summary.run).into());
    if path.as_os_str() == "-" {
        return super::history::print(&page);
    }
    match std::fs::write(&path, page) {
        Ok(()) => {
            eprintln!("wrote {}", path.display());
            Exit::Ok
        }
        Err(error) => {
            eprintln!("error: cannot write {}: {error}; choose another place with -o FILE", path.display());
            Exit::Output
        }
    }
}
