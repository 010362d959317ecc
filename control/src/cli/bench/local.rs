//! `dflow bench handoff`, `invoke` and `cold`: what one node takes.

use super::super::exit::Exit;
use super::super::history::print;
use super::super::run::parse_size;
use super::out::{Format, named_line};
use crate::bench::local::{Line, LocalError, cold, hand_off, invoke};
use crate::bench::one::OneError;

#[derive(Debug, clap::Args)]
pub(super) struct HandoffArgs {
    /// Sizes of the object
    #[arg(long, value_name = "SIZE,..", value_delimiter = ',', default_value = "1KiB,1MiB,64MiB", value_parser = parse_size)]
    size: Vec<u64>,
    /// Microseconds the reader looks before it sleeps
    #[arg(long, value_name = "US", default_value_t = 0)]
    spin_us: u32,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct InvokeArgs {
    /// Steps of the chain
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=1000))]
    steps: u32,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct ColdArgs {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Samples
    #[arg(short = 'n', long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    iterations: u64,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(super) fn run_handoff(args: &HandoffArgs) -> Exit {
    if args.size.iter().any(|size| !(1..=1 << 30).contains(size)) {
        eprintln!("error: --size is 1 byte to 1 GiB");
        return Exit::Usage;
    }
    hand_offs(&args.size, args.common.iterations, args.spin_us, args.common.output)
}

/// Hands objects of these sizes over.
pub(super) fn hand_offs(sizes: &[u64], n: u64, spin_us: u32, output: Format) -> Exit {
    told(sizes.iter().map(|size| hand_off(*size, n, spin_us)).collect(), output)
}

pub(super) fn run_invoke(args: &InvokeArgs) -> Exit {
    told(invoke(args.steps, args.common.iterations).map(Vec::from), args.common.output)
}

pub(super) fn run_cold(args: &ColdArgs) -> Exit {
    told(cold(args.common.iterations).map(|line| vec![line]), args.common.output)
}

fn told(lines: Result<Vec<Line>, LocalError>, output: Format) -> Exit {
    let lines = match lines {
        Ok(lines) => lines,
        Err(error) => {
            eprintln!("error: {error}");
            return match error {
                LocalError::One(OneError::Start(_)) | LocalError::Memory(_) => Exit::Environment,
                _ => Exit::Failed,
            };
        }
    };
    if output == Format::Json {
        let lines: Vec<_> = lines.iter().map(Line::json).collect();
        return print(&format!("{:#}\n", serde_json::json!({ "figures": lines })));
    }
    let rows = lines.iter().map(|l| named_line(output, &l.cells()));
    print(&(named_line(output, &Line::HEADS.map(String::from)) + &rows.collect::<String>()))
}
