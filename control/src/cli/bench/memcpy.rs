//! `dflow bench memcpy`: the memory's own speed.

use super::super::exit::Exit;
use super::super::history::print;
use super::super::run::parse_size;
use super::out::{Format, line};
use crate::bench::Memcpy;

#[derive(Debug, clap::Args)]
pub(super) struct MemcpyArgs {
    /// Sizes; default: 1 KiB to 256 MiB
    #[arg(long, value_name = "SIZE,..", value_delimiter = ',', value_parser = parse_size)]
    size: Vec<u64>,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(super) fn run(args: &MemcpyArgs) -> Exit {
    let sizes = match &args.size[..] {
        [] => (10..=28).step_by(2).map(|bits| 1 << bits).collect(),
        sizes => sizes.to_vec(),
    };
    if sizes.iter().any(|size| !(8..=4 << 30).contains(size)) {
        eprintln!("error: --size is 8 bytes to 4 GiB");
        return Exit::Usage;
    }
    let heads = ["bytes", "fill fresh", "fill reused", "copy fresh", "copy reused"];
    let mut rows = Vec::new();
    let mut text = line(args.output, &heads.map(String::from));
    for bytes in sizes {
        let row = match Memcpy::measure(bytes) {
            Ok(row) => row,
            Err(error) => {
                eprintln!("error: cannot measure {bytes} bytes: {error}");
                return Exit::Environment;
            }
        };
        let rates = [row.fill_fresh, row.fill_reused, row.copy_fresh, row.copy_reused];
        let cells: Vec<String> =
            [bytes.to_string()].into_iter().chain(rates.map(|r| format!("{r:.2}"))).collect();
        text += &line(args.output, &cells);
        rows.push(row.json());
    }
    match args.output {
        Format::Json => print(&format!("{:#}\n", serde_json::json!({ "memcpy": rows }))),
        Format::Table => print(&format!("{text}GB/s, medians; memory of the store's kind\n")),
        Format::Csv => print(&text),
    }
}
