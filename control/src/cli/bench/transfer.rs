//! `dflow bench transfer`: bytes between two nodes.

use super::super::exit::Exit;
use super::super::history::print;
use super::super::run::parse_size;
use super::out::{Format, line};
use crate::bench::Memcpy;
use crate::bench::transfer::{Client, Plan, Row, TransferError, serve};
use crate::daemon::config::Secret as SecretFile;
use crate::netns::Lab;
use dflow_dataplane::transport::{Backend, Config, Epoch, NodeId, Secret};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::io::{BufRead, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the other end of `--local` listens.
const LOCAL_PORT: u16 = 7411;
/// The other end listens by then.
const START: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
One end serves (--listen), the other measures (PEER); --local is both, in two network namespaces of their own
(root), each on half of the processors. Objects are read from the peer's memory into memory that is there, one after the other or -q at a time.
Beside them, in turns: blocking TCP sockets (--streams of them above 64 KiB, else one), the next port but one
of the server's. Each size ends with a check of every byte. CPU counts both ends. `of raw`: medians of rounds.

Examples:
  dflow bench transfer -a --local
  dflow bench transfer --size 16MiB -n 100 --local --bandwidth 50MB -o json
  dflow bench transfer --listen 10.0.0.1:7411 --secret-file s     # there
  dflow bench transfer 10.0.0.1:7411 --secret-file s -a           # here")]
#[command(group(clap::ArgGroup::new("ends").required(true).args(["peer", "listen", "local"])))]
pub(super) struct TransferArgs {
    /// The serving end
    #[arg(value_name = "PEER")]
    peer: Option<SocketAddr>,
    /// Serve measurements at this address
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Both ends, in two network namespaces that are made for it (root)
    #[arg(long)]
    local: bool,
    /// Bytes a second of the link of --local
    #[arg(long, value_name = "SIZE", requires = "local", value_parser = parse_bandwidth)]
    bandwidth: Option<u64>,
    /// All sizes from 1 KiB to 256 MiB
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
    /// Streams for bulk, of the transport and of the raw sockets
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    streams: u16,
    /// What carries the bytes
    #[arg(long, value_enum, default_value = "auto")]
    transport: Carrier,
    /// Microseconds each end looks before it sleeps
    #[arg(long, value_name = "US", default_value_t = 0)]
    spin_us: u64,
    /// A file with the secret of both ends; needed off loopback
    #[arg(long, value_name = "FILE", env = "DFLOW_SECRET_FILE")]
    secret_file: Option<PathBuf>,
    /// The secret is the first line of stdin, and the end of stdin ends the server
    #[arg(long, hide = true)]
    secret_stdin: bool,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Carrier {
    /// RDMA where there is a card, else io_uring, else plain sockets
    Auto,
    Uring,
    Tcp,
    Rdma,
}

fn parse_bandwidth(text: &str) -> Result<u64, String> {
    parse_size(text.strip_suffix("/s").unwrap_or(text))
}

impl TransferArgs {
    fn backend(&self) -> Backend {
        match self.transport {
            Carrier::Auto => Backend::Auto,
            Carrier::Uring => Backend::Uring,
            Carrier::Tcp => Backend::Tcp,
            Carrier::Rdma => Backend::Rdma,
        }
    }

    fn config(&self, node: u64, secret: Secret) -> Config {
        let mut config = Config::new("dflow-bench", NodeId(node), Epoch(1), secret);
        (config.lanes, config.spin_us) = (self.streams, self.spin_us);
        config
    }

    fn secret(&self) -> Result<Secret, String> {
        if self.secret_stdin {
            let mut text = String::new();
            std::io::stdin().lock().read_line(&mut text).map_err(|e| format!("cannot read stdin: {e}"))?;
            return Ok(Secret::new(text.trim()));
        }
        let file =
            self.secret_file.as_deref().map(SecretFile::read).transpose().map_err(|e| e.to_string())?;
        Ok(file.map_or(Secret::none(), |secret| Secret::new(secret.expose())))
    }
}

pub(super) fn run(args: &TransferArgs) -> Exit {
    if !(8..=1 << 30).contains(&args.size) {
        eprintln!("error: --size is 8 bytes to 1 GiB");
        return Exit::Usage;
    }
    if args.local {
        return local(args);
    }
    let secret = match args.secret() {
        Ok(secret) => secret,
        Err(error) => {
            eprintln!("error: {error}");
            return Exit::Usage;
        }
    };
    match (args.listen, args.peer) {
        (Some(address), _) => listen(args, address, secret),
        (None, Some(peer)) => measure(args, peer, secret),
        (None, None) => Exit::Usage,
    }
}

fn listen(args: &TransferArgs, address: SocketAddr, secret: Secret) -> Exit {
    if args.secret_stdin {
        std::thread::spawn(|| {
            let mut rest = [0; 64];
            while matches!(std::io::stdin().read(&mut rest), Ok(1..)) {}
            std::process::exit(0);
        });
    }
    let mut config = args.config(1, secret);
    config.listen = Some(address);
    match serve(config, args.backend(), |address| eprintln!("listening at {address}; Ctrl-C ends it")) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            eprintln!("error: {error}");
            Exit::Environment
        }
    }
}

/// The other end, ended with us.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn local(args: &TransferArgs) -> Exit {
    let lab = match Lab::new(2, args.bandwidth) {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("error: --local: {error}");
            return Exit::Environment;
        }
    };
    let address = SocketAddr::new(IpAddr::V4(lab.address(0)), LOCAL_PORT);
    // A process inherits the processors of the thread that starts it.
    let other = halves().and_then(|(theirs, ours)| {
        sched_setaffinity(None, &theirs)?;
        let started = start(args, &lab, address)?;
        sched_setaffinity(None, &ours)?;
        lab.enter_thread(1)?;
        Ok(started)
    });
    match other {
        Ok((_other, secret)) => measure(args, address, secret),
        Err(error) => {
            eprintln!("error: cannot start the other end: {error}");
            Exit::Environment
        }
    }
}

/// The processors of each end. Two machines share none: where the scheduler puts both ends of a stream on one
/// processor, a copy finds its bytes in that processor's cache, and the raw sockets jump between two speeds.
fn halves() -> anyhow::Result<(CpuSet, CpuSet)> {
    let all = sched_getaffinity(None)?;
    let (mut halves, mut seen) = ([CpuSet::new(), CpuSet::new()], 0);
    for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)) {
        let half = usize::from(seen >= all.count() / 2);
        halves[half].set(cpu);
        seen += 1;
    }
    let [first, second] = halves;
    Ok(if first.count() == 0 { (all, all) } else { (first, second) })
}

fn start(args: &TransferArgs, lab: &Lab, address: SocketAddr) -> anyhow::Result<(Other, Secret)> {
    let mut random = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut command = Command::new(std::env::current_exe()?);
    let carrier = clap::ValueEnum::to_possible_value(&args.transport)
        .map_or("auto".into(), |v| v.get_name().to_owned());
    command.args(["bench", "transfer", "--secret-stdin", "--transport", &carrier]);
    command.arg("--listen").arg(address.to_string());
    command.arg("--streams").arg(args.streams.to_string()).arg("--spin-us").arg(args.spin_us.to_string());
    command.env_remove("DFLOW_SECRET_FILE").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    lab.enter(0, &mut command);
    let mut other = Other(command.spawn()?);
    if let Some(stdin) = &mut other.0.stdin {
        writeln!(stdin, "{secret}")?;
    }
    Ok((other, Secret::new(secret)))
}

fn measure(args: &TransferArgs, peer: SocketAddr, secret: Secret) -> Exit {
    let plan = Plan {
        objects: args.iterations,
        time: args.duration.map(Duration::from_secs),
        depth: args.depth,
        streams: args.streams,
    };
    let sizes: Vec<u64> = if args.all { (10..=28).map(|bits| 1 << bits).collect() } else { vec![args.size] };
    let config = args.config(2, secret);
    let until = Instant::now() + if args.local { START } else { Duration::ZERO };
    let mut client = match Client::connect(&config, args.backend(), peer, until) {
        Ok(client) => client,
        Err(error) => {
            eprintln!("error: {error}");
            return Exit::Environment;
        }
    };
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
                "transport": transport, "streams": args.streams, "spin_us": args.spin_us,
                "bandwidth_bytes_per_s": args.bandwidth, "sizes": rows,
                "memcpy": copy.map(|copy| copy.json()), "stopped": why,
            })
        )),
        Format::Table => {
            let copy = copy.map_or(0.0, |copy| copy.copy_reused);
            print(&format!(
                "{transport}, {} streams; memcpy into reused memory {copy:.2} GB/s (64 MiB)\n",
                args.streams
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
