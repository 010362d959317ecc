//! `dflow bench transfer`: bytes between two nodes.

use super::super::exit::Exit;
use super::super::history::print;
use super::super::run::parse_size;
use super::ends::{EndArgs, Others};
use super::local::hand_offs;
use super::out::{Format, line};
use crate::bench::Memcpy;
use crate::bench::transfer::{Client, Plan, Row, TransferError, serve};
use dflow_dataplane::transport::NodeId;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
One end serves (--listen), the other measures (PEER); --local is both, in two network namespaces of their own
(root), each on half of the processors. Objects are read from the peer's memory, in chunks as a get does, into
memory that is there, one after the other or -q at a time. Beside them, in turns: blocking TCP sockets (--streams
of them above 64 KiB, else one), the next port but one of the server's. Each size ends with a check of every byte.
CPU counts both ends. `of raw`: medians of rounds.

--mode measures a queue pair of RDMA without the transport: bytes that are read by who wants them (`read`, as the transport does),
written into a memory window that was granted for them (`write`), or sent and copied to their place (`send`); several alternate.
`one way` is half of there and back, both ends asleep until the card wakes them; GB/s are those of -q at a time, to the same
place each, as perftest's programs do it. hwtests/guest/perftest sets those beside it.

--transport shm --local is an object handed from one function to another of the same node, through the store and
without a copy: `dflow bench handoff`.

Examples:
  dflow bench transfer -a --local
  dflow bench transfer --size 16MiB -n 100 --local --bandwidth 50MB -o json
  dflow bench transfer --transport shm --local --size 1MiB
  dflow bench transfer 10.0.0.1:7411 --secret-file s -a --mode read,write,send -q 8
  dflow bench transfer --listen 10.0.0.1:7411 --secret-file s     # there
  dflow bench transfer 10.0.0.1:7411 --secret-file s -a           # here")]
pub(super) struct TransferArgs {
    #[command(flatten)]
    ends: EndArgs,
    /// All sizes from 1 KiB to 256 MiB; with --mode 64 B, 1, 4, 16, 64 and 256 KiB, 1 and 16 MiB
    #[arg(short, long)]
    all: bool,
    /// Size of an object
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = parse_size, conflicts_with = "all")]
    size: u64,
    /// Objects of each size; default: 1 GiB of them, 5 to 5000
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    iterations: Option<u64>,
    /// Measure each size for so long instead
    #[arg(short = 'D', long, value_name = "SECONDS", conflicts_with = "iterations", value_parser = clap::value_parser!(u64).range(1..=3600))]
    duration: Option<u64>,
    /// Objects under way at a time
    #[arg(short = 'q', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    depth: u64,
    /// Both ends read at the same time; GB/s are those of both ways together
    #[arg(long)]
    bidir: bool,
    /// Ways of RDMA, without the transport
    #[arg(long, value_name = "MODE,..", value_enum, value_delimiter = ',', conflicts_with_all = ["bidir", "duration"])]
    mode: Vec<Mode>,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    Read,
    Write,
    Send,
}

/// Samples of a hand-over within a node.
const SHM_SAMPLES: u64 = 200;

pub(super) fn run(args: &TransferArgs) -> Exit {
    if !(8..=1 << 30).contains(&args.size) {
        eprintln!("error: --size is 8 bytes to 1 GiB");
        return Exit::Usage;
    }
    if !args.mode.is_empty() && !args.ends.may_use_rdma() {
        eprintln!(
            "error: --mode names ways of RDMA, of which sockets and shared memory have none: use --transport rdma, or leave it out"
        );
        return Exit::Usage;
    }
    if args.ends.is_shm() && args.ends.is_local() {
        let (n, spin_us) = (args.iterations.unwrap_or(SHM_SAMPLES), args.ends.spin_us);
        return hand_offs(&args.sizes(), n, spin_us.try_into().unwrap_or(u32::MAX), args.output);
    }
    let serve = |config, backend, ready: fn(SocketAddr)| serve(config, backend, ready);
    args.ends.run("transfer", 1, serve, |others| measure(args, others))
}

impl TransferArgs {
    fn sizes(&self) -> Vec<u64> {
        match (self.all, self.mode.is_empty()) {
            (true, true) => (10..=28).map(|bits| 1 << bits).collect(),
            (true, false) => [6, 10, 12, 14, 16, 18, 20, 24].map(|bits| 1 << bits).to_vec(),
            (false, _) => vec![self.size],
        }
    }
}

#[cfg(feature = "rdma")]
fn measure_verbs(args: &TransferArgs, client: &mut Client, sizes: &[u64]) -> Exit {
    use crate::bench::transfer::verbs::{Mode as Way, VerbsPlan, VerbsRow};
    let way = |mode: &Mode| match mode {
        Mode::Read => Way::Read,
        Mode::Write => Way::Write,
        Mode::Send => Way::Send,
    };
    let modes: Vec<Way> = args.mode.iter().map(way).collect();
    let plan = VerbsPlan { modes, objects: args.iterations, depth: args.depth };
    let mut printed = print(&line(args.output, &VerbsRow::HEADS.map(String::from)));
    let mut rows = Vec::new();
    let ended = client.measure_verbs(sizes, &plan, |row| {
        printed = print(&line(args.output, &row.cells()));
        rows.push(row.json());
    });
    let why = ended.as_ref().err().map(TransferError::to_string);
    let windows = ended.ok().flatten();
    match args.output {
        Format::Json => {
            let times = windows
                .map(|[open, close]| serde_json::json!({ "open_ns": open.json(), "close_ns": close.json() }));
            let all = serde_json::json!({ "verbs": rows, "window": times, "stopped": why });
            printed = print(&format!("{all:#}\n"));
        }
        Format::Table => {
            if let Some([open, close]) = windows {
                let us = |nanos: u64| nanos as f64 / 1e3;
                printed = print(&format!(
                    "a window opens in {:.1} us and closes in {:.1} (p50 of {})\n",
                    us(open.p50),
                    us(close.p50),
                    open.samples
                ));
            }
        }
        Format::Csv => {}
    }
    if let Some(why) = why {
        eprintln!("error: stopped after {} of {} rows: {why}", rows.len(), sizes.len() * plan.modes.len());
        return Exit::Failed;
    }
    printed
}

#[cfg(not(feature = "rdma"))]
fn measure_verbs(_: &TransferArgs, _: &mut Client, _: &[u64]) -> Exit {
    eprintln!("error: this dflow was built without the feature `rdma`");
    Exit::Environment
}

fn measure(args: &TransferArgs, others: &Others) -> Exit {
    let plan = Plan {
        objects: args.iterations,
        time: args.duration.map(Duration::from_secs),
        depth: args.depth,
        both_ways: args.bidir,
        streams: args.ends.streams,
    };
    let sizes = args.sizes();
    let config = args.ends.config(NodeId(2), others);
    let (_, peer) = others.servers[0];
    let mut client = match Client::connect(&config, args.ends.backend(), peer, others.until) {
        Ok(client) => client,
        Err(error) => {
            eprintln!("error: {error}");
            return Exit::Environment;
        }
    };
    if !args.mode.is_empty() {
        return measure_verbs(args, &mut client, &sizes);
    }
    // Nobody reads figures that could not be printed; the measurement's end says so, too.
    let mut printed = print(&line(args.output, &Row::HEADS.map(String::from)));
    let mut rows = Vec::new();
    let ended = client.measure(&sizes, plan, |row| {
        printed = print(&line(args.output, &row.cells()));
        rows.push(row.json());
    });
    let transport = client.transport();
    let copy = Memcpy::measure(64 << 20).ok();
    let why = ended.as_ref().err().map(TransferError::to_string);
    let code = match args.output {
        Format::Json => print(&format!(
            "{:#}\n",
            serde_json::json!({
                "transport": transport, "streams": args.ends.streams, "bidir": args.bidir, "spin_us": args.ends.spin_us,
                "bandwidth_bytes_per_s": args.ends.bandwidth, "sizes": rows,
                "memcpy": copy.map(|copy| copy.json()), "stopped": why,
            })
        )),
        Format::Table => {
            let copy = copy.map_or(0.0, |copy| copy.copy_reused);
            print(&format!(
                "{transport}, {} streams; memcpy into reused memory {copy:.2} GB/s (64 MiB)\n",
                args.ends.streams
            ))
        }
        Format::Csv => printed,
    };
    if let Some(why) = why {
        eprintln!("error: stopped after {} of {} sizes: {why}", rows.len(), sizes.len());
        return Exit::Failed;
    }
    code
}
