//! `dflow bench put`: an object put on one node, got on another.

use super::super::exit::Exit;
use super::super::history::print;
use super::super::run::parse_size;
use super::ends::{EndArgs, Others};
use super::out::{Format, named_line};
use crate::bench::transfer::TransferError;
use crate::bench::transfer::put::{BULK_BYTES, CLIENT, Figure, PutClient, SPREAD_BYTES, serve_puts};
use std::net::SocketAddr;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
What is measured:
  hand-over     put here -> waiting get there returns: half of the way there and back; beside it a raw TCP round trip
  many          small objects a second with many under way
  beside bulk   the hand-over while objects of 256 MiB cross the same way; beside it its p99 without them
  stream        a producer writes --stream bytes at --rate: from its last byte to the reader's
  to all nodes  64 MiB to all of --nodes but this; beside it the time to one (--local)

Objects are announced and fetched as between nodes, small ones inside their announcement. Times of a hand-over are half of an
echo's, so its high percentiles are those of two ways together. What comes back is compared byte by byte, and what is
streamed or spread where it arrives.

Examples:
  dflow bench put --local
  dflow bench put --local --spin-us 60
  dflow bench put --local --nodes 8 --bandwidth 50MB --only 'to all nodes'")]
pub(super) struct PutArgs {
    #[command(flatten)]
    ends: EndArgs,
    /// Size of the objects that are handed over
    #[arg(long, value_name = "SIZE", default_value = "1KiB", value_parser = parse_size)]
    size: u64,
    /// Objects handed over, one after the other
    #[arg(short = 'n', long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(5..=10_000_000))]
    iterations: u64,
    /// Objects with many under way
    #[arg(long, value_name = "N", default_value_t = 500_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    many: u64,
    /// Size of the object that is read while it is written
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size)]
    stream: u64,
    /// Bytes a second that its producer writes
    #[arg(long, value_name = "SIZE", default_value = "1GB", value_parser = parse_size)]
    rate: u64,
    /// Nodes of --local
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=16))]
    nodes: u16,
    /// Measure only this: hand-over, many, beside bulk, stream, to all nodes; repeatable
    #[arg(long, value_name = "WHAT")]
    only: Vec<String>,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

const WHAT: [&str; 5] = ["hand-over", "many", "beside bulk", "stream", "to all nodes"];
/// Times that what takes long is repeated.
const REPEATS: u64 = 5;

pub(super) fn run(args: &PutArgs) -> Exit {
    let usage = if !(8..=256 << 20).contains(&args.size) || !(8..=1 << 30).contains(&args.stream) {
        Some("--size is 8 bytes to 256 MiB, --stream to 1 GiB".to_owned())
    } else if args.rate == 0 {
        Some("--rate is at least 1".into())
    } else if args.nodes > 2 && !args.ends.is_local() {
        Some("--nodes needs --local".into())
    } else {
        let unknown = args.only.iter().find(|what| !WHAT.contains(&what.as_str()));
        unknown.map(|what| format!("--only {what}: expected one of {}", WHAT.join(", ")))
    };
    if let Some(why) = usage {
        eprintln!("error: {why}");
        return Exit::Usage;
    }
    let serve = |config, backend, ready: fn(SocketAddr)| serve_puts(config, backend, ready);
    args.ends.run("put", usize::from(args.nodes) - 1, serve, |others| measure(args, others))
}

fn measure(args: &PutArgs, others: &Others) -> Exit {
    let wanted = |what: &str| match args.only.is_empty() {
        // One node is no spread.
        true => what != "to all nodes" || others.servers.len() > 1,
        false => args.only.iter().any(|only| only == what),
    };
    let needs = [("stream", args.stream), ("beside bulk", BULK_BYTES), ("to all nodes", SPREAD_BYTES)];
    let needed = needs.into_iter().filter(|(what, _)| wanted(what)).map(|(_, bytes)| bytes);
    let room = needed.max().unwrap_or(0).max(args.size);
    let config = args.ends.config(CLIENT, others);
    let (backend, servers) = (args.ends.backend(), &others.servers);
    let mut client = match PutClient::connect(config, backend, servers, room, args.size, others.until) {
        Ok(client) => client,
        Err(error) => {
            eprintln!("error: {error}");
            return Exit::Environment;
        }
    };
    let mut figures: Vec<Figure> = Vec::new();
    let mut printed = print(&named_line(args.output, &Figure::HEADS.map(String::from)));
    let mut ended = Ok(());
    for what in WHAT.into_iter().filter(|what| wanted(what)) {
        match one(args, &mut client, what) {
            Ok(figure) => {
                printed = print(&named_line(args.output, &figure.cells()));
                figures.push(figure);
            }
            Err(error) => {
                ended = Err(error);
                break;
            }
        }
    }
    let stopped = ended.err().map(|error| error.to_string());
    if args.output == Format::Json {
        let figures: Vec<_> = figures.iter().map(Figure::json).collect();
        printed = print(&format!(
            "{:#}\n",
            serde_json::json!({
                "transport": client.transport(), "spin_us": args.ends.spin_us, "nodes": args.nodes,
                "bandwidth_bytes_per_s": args.ends.bandwidth, "figures": figures, "stopped": stopped,
            })
        ));
    }
    if let Some(why) = stopped {
        eprintln!("error: stopped after {} figures: {why}", figures.len());
        return Exit::Failed;
    }
    printed
}

fn one(args: &PutArgs, client: &mut PutClient, what: &str) -> Result<Figure, TransferError> {
    match what {
        "hand-over" => client.hand_over(args.size, args.iterations),
        "many" => client.many(args.size.min(64 << 10), args.many),
        "beside bulk" => client.beside_bulk(args.size.min(64 << 10), args.iterations),
        "stream" => client.stream(args.stream, args.rate, REPEATS),
        _ => client.spread(REPEATS),
    }
}
