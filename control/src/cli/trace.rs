//! `dflow trace`: a past run for Perfetto.

use super::exit::Exit;
use super::history::{PlaceArgs, RUN_HELP};
use crate::trace::{Timeline, chrome};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Open the file in Perfetto (ui.perfetto.dev, which reads it inside the browser) or in chrome://tracing.

Examples:
  dflow trace last -o trace.json
  dflow trace 01k9 | gzip > trace.json.gz")]
pub(super) struct TraceArgs {
    #[arg(help = RUN_HELP, default_value = "last")]
    run: String,
    /// Where to write it; stdout unless given
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    server: super::remote::ServerArgs,
}

pub(super) fn run(args: &TraceArgs) -> Exit {
    let record = match args.place.load_from(&args.server, &args.run) {
        Ok(record) => record,
        Err(code) => return code,
    };
    let timeline = Timeline::of(&record);
    let write = |out: &mut dyn Write| {
        let mut out = BufWriter::new(out);
        chrome::write(&record, &timeline, &mut out)?;
        out.flush()
    };
    let (written, place) = match &args.output {
        Some(path) => (File::create(path).and_then(|mut file| write(&mut file)), path.display().to_string()),
        None => (write(&mut io::stdout().lock()), "stdout".to_owned()),
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("error: cannot write to {place}: {error}");
            Exit::Output
        }
        _ => Exit::Ok,
    }
}
