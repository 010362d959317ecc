//! The two ends of a measurement between nodes: one serves, the other measures, or both are here.

use super::super::exit::Exit;
use super::super::run::parse_size;
use crate::bench::transfer::TransferError;
use crate::daemon::config::Secret as SecretFile;
use crate::netns::Lab;
use dflow_dataplane::transport::{Backend, Config, Epoch, NodeId, Secret};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::io::{BufRead, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the other ends of `--local` listen.
const LOCAL_PORT: u16 = 7411;
/// They do by then.
const START: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("ends").required(true).args(["peer", "listen", "local"])))]
pub(super) struct EndArgs {
    /// The serving end
    #[arg(value_name = "PEER")]
    peer: Option<SocketAddr>,
    /// Serve measurements at this address
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// All ends, in network namespaces that are made for it (root)
    #[arg(long)]
    local: bool,
    /// Bytes a second of each link of --local
    #[arg(long, value_name = "SIZE", requires = "local", value_parser = parse_bandwidth)]
    pub(super) bandwidth: Option<u64>,
    /// Streams for bulk, of the transport and of the raw sockets
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub(super) streams: u16,
    /// What carries the bytes
    #[arg(long, value_enum, default_value = "auto")]
    transport: Carrier,
    /// Microseconds each end looks before it sleeps
    #[arg(long, value_name = "US", default_value_t = 0)]
    pub(super) spin_us: u64,
    /// A file with the secret of both ends; needed off loopback
    #[arg(long, value_name = "FILE", env = "DFLOW_SECRET_FILE")]
    secret_file: Option<PathBuf>,
    /// The secret is the first line of stdin, and the end of stdin ends the server
    #[arg(long, hide = true)]
    secret_stdin: bool,
    /// The serving end's number
    #[arg(long, hide = true, default_value_t = 1)]
    node: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Carrier {
    /// RDMA where there is a card, else io_uring, else plain sockets
    Auto,
    Uring,
    Tcp,
    Rdma,
    /// The store that two functions of one node share
    Shm,
}

fn parse_bandwidth(text: &str) -> Result<u64, String> {
    parse_size(text.strip_suffix("/s").unwrap_or(text))
}

/// What this process is.
enum End {
    /// It serves, with this.
    Serving(Config),
    /// It measures what serves.
    Measuring(Others),
}

/// The ends that serve. Those that were started here end when this is dropped.
pub(super) struct Others {
    /// The servers, by number.
    pub(super) servers: Vec<(NodeId, SocketAddr)>,
    /// They listen by then.
    pub(super) until: Instant,
    secret: Secret,
    _processes: Vec<Process>,
    _lab: Option<Lab>,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl EndArgs {
    pub(super) fn backend(&self) -> Backend {
        match self.transport {
            // Nothing is carried over what is shared; `run` refuses it.
            Carrier::Auto | Carrier::Shm => Backend::Auto,
            Carrier::Uring => Backend::Uring,
            Carrier::Tcp => Backend::Tcp,
            Carrier::Rdma => Backend::Rdma,
        }
    }

    pub(super) fn is_local(&self) -> bool {
        self.local
    }

    pub(super) fn is_shm(&self) -> bool {
        self.transport == Carrier::Shm
    }

    /// Whether RDMA is used if it is there.
    pub(super) fn may_use_rdma(&self) -> bool {
        matches!(self.transport, Carrier::Auto | Carrier::Rdma)
    }

    /// The measuring end's.
    pub(super) fn config(&self, node: NodeId, others: &Others) -> Config {
        self.config_with(node, others.secret.clone())
    }

    fn config_with(&self, node: NodeId, secret: Secret) -> Config {
        // Each process is an incarnation of its own.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let epoch = Epoch(now.map_or(1, |now| now.as_micros() as u64));
        let mut config = Config::new("dflow-bench", node, epoch, secret);
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

    /// Serves, or measures what serves; with `--local`, `servers` others, started as `dflow bench VERB --listen`.
    pub(super) fn run(
        &self,
        verb: &str,
        servers: usize,
        serve: impl FnOnce(Config, Backend, fn(SocketAddr)) -> Result<(), TransferError>,
        measure: impl FnOnce(&Others) -> Exit,
    ) -> Exit {
        if self.is_shm() {
            eprintln!("error: --transport shm is within a node: only `dflow bench transfer --local` has it");
            return Exit::Usage;
        }
        let listening = |address| eprintln!("listening at {address}; Ctrl-C ends it");
        match self.open(verb, servers) {
            Ok(End::Serving(config)) => match serve(config, self.backend(), listening) {
                Ok(()) => Exit::Ok,
                Err(error) => {
                    eprintln!("error: {error}");
                    Exit::Environment
                }
            },
            Ok(End::Measuring(others)) => measure(&others),
            Err((why, code)) => {
                eprintln!("error: {why}");
                code
            }
        }
    }

    /// Finds out which end this is.
    fn open(&self, verb: &str, servers: usize) -> Result<End, (String, Exit)> {
        if self.local {
            let others = self.start_others(verb, servers);
            return others
                .map(End::Measuring)
                .map_err(|why| (format!("--local: {why:#}"), Exit::Environment));
        }
        let secret = self.secret().map_err(|why| (why, Exit::Usage))?;
        match (self.listen, self.peer) {
            (Some(address), _) => {
                if self.secret_stdin {
                    end_with_stdin();
                }
                let mut config = self.config_with(NodeId(self.node), secret);
                config.listen = Some(address);
                Ok(End::Serving(config))
            }
            (None, Some(peer)) => {
                let servers = vec![(NodeId(1), peer)];
                let (until, _processes, _lab) = (Instant::now(), Vec::new(), None);
                Ok(End::Measuring(Others { servers, until, secret, _processes, _lab }))
            }
            (None, None) => Err(("say PEER, --listen or --local".into(), Exit::Usage)),
        }
    }

    fn start_others(&self, verb: &str, servers: usize) -> anyhow::Result<Others> {
        let lab = Lab::new(servers + 1, self.bandwidth)?;
        let mut random = [0; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        // A process inherits the processors of the thread that starts it.
        let (theirs, ours) = halves()?;
        if servers == 1 {
            sched_setaffinity(None, &theirs)?;
        }
        let (mut processes, mut addresses) = (Vec::new(), Vec::new());
        for at in 0..servers {
            let (node, address) = (at as u64 + 1, SocketAddr::new(IpAddr::V4(lab.address(at)), LOCAL_PORT));
            processes.push(self.start(verb, &lab, at, address, &secret)?);
            addresses.push((NodeId(node), address));
        }
        if servers == 1 {
            sched_setaffinity(None, &ours)?;
        }
        lab.enter_thread(servers)?;
        Ok(Others {
            servers: addresses,
            until: Instant::now() + START,
            secret: Secret::new(secret),
            _processes: processes,
            _lab: Some(lab),
        })
    }

    fn start(
        &self,
        verb: &str,
        lab: &Lab,
        at: usize,
        address: SocketAddr,
        secret: &str,
    ) -> anyhow::Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        let carrier = clap::ValueEnum::to_possible_value(&self.transport)
            .map_or("auto".into(), |v| v.get_name().to_owned());
        command.args(["bench", verb, "--secret-stdin", "--transport", &carrier]);
        command.arg("--listen").arg(address.to_string()).arg("--node").arg((at + 1).to_string());
        command.arg("--streams").arg(self.streams.to_string()).arg("--spin-us").arg(self.spin_us.to_string());
        command.env_remove("DFLOW_SECRET_FILE");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        lab.enter(at, &mut command);
        let mut process = Process(command.spawn()?);
        if let Some(stdin) = &mut process.0.stdin {
            writeln!(stdin, "{secret}")?;
        }
        Ok(process)
    }
}

fn end_with_stdin() {
    std::thread::spawn(|| {
        let mut rest = [0; 64];
        while matches!(std::io::stdin().read(&mut rest), Ok(1..)) {}
        std::process::exit(0);
    });
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
