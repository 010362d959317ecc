//! `dflow dev`: a cluster on this machine, for as long as the command runs.
//!
//! The nodes are real `dflow node` processes with a folder of their own each. On loopback anyone may use it; with a
//! bandwidth each node is in a network namespace of its own, whose link is shaped.

use super::exit::Exit;
use super::interrupt::count_interrupts;
use crate::netns::Lab;
use crate::node::TempFolder;
use crate::workflow::parse_size;
use anyhow::Context;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The first node's API; each node takes two ports. On loopback another cluster may have them: then it is the next
/// hundred, of so many.
const PORT: u16 = 7400;
const HUNDREDS: u16 = 10;
/// How long the nodes may take until they answer.
const READY_MAX: Duration = Duration::from_secs(20);
/// How long they may take to end.
const END_MAX: Duration = Duration::from_secs(35);
/// How often it is looked at whether something has changed.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dflow dev --nodes 3
  DFLOW_SERVER=127.0.0.1:7400 dflow submit --watch workflow.yaml
  dflow dev --nodes 3 --bandwidth 50MB/s    # as root: own namespaces, shaped links")]
pub(super) struct DevArgs {
    /// Nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16), value_name = "N")]
    nodes: u16,
    /// Cores that each node gives its functions
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024), value_name = "K")]
    cpus: u32,
    /// What leaves and reaches each node at most, such as 50MB/s (needs root: namespaces and tc); a number alone is in MB/s
    #[arg(long, value_parser = parse_bandwidth, value_name = "RATE")]
    bandwidth: Option<u64>,
    /// Memory of each node's store
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    store: String,
}

/// A node's addresses.
struct Ends {
    name: String,
    api: SocketAddr,
    data: SocketAddr,
}

/// Bytes a second.
fn parse_bandwidth(text: &str) -> Result<u64, String> {
    let size = text.strip_suffix("/s").unwrap_or(text);
    let bytes = match size.parse::<u64>() {
        Ok(megabytes) => megabytes.saturating_mul(1_000_000),
        Err(_) => parse_size(size)?,
    };
    if bytes < 1_000_000 { Err("it is at least 1MB/s".into()) } else { Ok(bytes) }
}

pub(super) fn run(args: &DevArgs) -> Exit {
    match cluster(args) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            eprintln!("error: {error:#}");
            Exit::Environment
        }
    }
}

fn cluster(args: &DevArgs) -> anyhow::Result<()> {
    // From before there is anything to clean up.
    let interrupts = count_interrupts();
    let lab = match args.bandwidth {
        Some(bytes_per_s) => Some(Lab::new(args.nodes.into(), Some(bytes_per_s))?),
        None => None,
    };
    let folder = TempFolder::new("dflow-dev-", "nodes")?;
    let secret = folder.path().join("secret");
    write_secret(&secret)?;
    let port = if lab.is_some() { PORT } else { free_ports(2 * args.nodes)? };
    let ends: Vec<Ends> = (0..args.nodes).map(|node| ends(node, port, lab.as_ref())).collect();
    let mut nodes = Nodes(Vec::new());
    for (index, own) in ends.iter().enumerate() {
        let peers: Vec<String> = ends
            .iter()
            .filter(|other| other.name != own.name)
            .map(|other| format!("{}={},{}", other.name, other.data, other.api))
            .collect();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("node").args(["--name", &own.name]);
        // Whatever ends this process ends its nodes.
        command
            .args(["--end-with", &std::process::id().to_string()])
            .arg("--state")
            .arg(folder.path().join(&own.name));
        command.args(["--api", &own.api.to_string(), "--data", &own.data.to_string()]);
        command.arg("--secret-file").arg(&secret);
        command.args(["--cpus", &args.cpus.to_string(), "--store", &args.store, "--log", "warn"]);
        if let Some(bytes_per_s) = args.bandwidth {
            command.args(["--link", &bytes_per_s.to_string()]);
        }
        if !peers.is_empty() {
            command.args(["--peers", &peers.join(" ")]);
        }
        if let Some(lab) = &lab {
            lab.enter(index, &mut command);
        }
        nodes.0.push(command.stdin(Stdio::null()).spawn()?);
    }
    if !await_ready(&mut nodes, &ends, lab.as_ref(), &interrupts)? {
        return Ok(());
    }
    let server = ends[0].api;
    eprintln!("{} nodes are up; the first answers at {server}. In another terminal:", ends.len());
    let within = lab.as_ref().map_or(String::new(), |lab| format!("ip netns exec {} ", lab.namespace(0)));
    eprintln!("  export DFLOW_SERVER={server} DFLOW_SECRET_FILE={}", secret.display());
    eprintln!("  {within}dflow nodes");
    eprintln!("  {within}dflow submit --watch WORKFLOW.yaml");
    eprintln!("Ctrl-C ends them.");
    let ended = nodes.until_interrupted(&interrupts)?;
    if let Some(index) = ended {
        anyhow::bail!("node {} has ended by itself; what it wrote above says why", ends[index].name);
    }
    Ok(())
}

/// The first of `count` ports of loopback that are free.
fn free_ports(count: u16) -> anyhow::Result<u16> {
    let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let mut firsts = (0..HUNDREDS).map(|hundred| PORT + 100 * hundred);
    firsts
        .find(|first| (*first..*first + count).all(is_free))
        .context("the ports of loopback that nodes could have are in use; end another `dflow dev`")
}

fn ends(node: u16, first: u16, lab: Option<&Lab>) -> Ends {
    let name = format!("n{node}");
    match lab {
        Some(lab) => {
            let host = lab.address(node.into());
            Ends { name, api: (host, first).into(), data: (host, first + 1).into() }
        }
        None => {
            let port = first + 2 * node;
            Ends { name, api: ([127, 0, 0, 1], port).into(), data: ([127, 0, 0, 1], port + 1).into() }
        }
    }
}

fn write_secret(path: &Path) -> anyhow::Result<()> {
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;
    let mut bytes = [0_u8; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

/// The node processes. Dropped, they are told to end and waited for.
struct Nodes(Vec<Child>);

impl Nodes {
    /// The first that has ended, if one has.
    fn ended(&mut self) -> anyhow::Result<Option<usize>> {
        for (index, child) in self.0.iter_mut().enumerate() {
            if child.try_wait()?.is_some() {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// The first that has ended by itself, or `None` when this process is told to end.
    fn until_interrupted(&mut self, interrupts: &AtomicU32) -> anyhow::Result<Option<usize>> {
        while interrupts.load(Ordering::Relaxed) == 0 {
            if let Some(index) = self.ended()? {
                return Ok(Some(index));
            }
            std::thread::sleep(LOOK);
        }
        Ok(None)
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for child in &self.0 {
            if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
                // One that has ended already needs no word.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        let deadline = Instant::now() + END_MAX;
        for child in &mut self.0 {
            while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(10));
            }
            // Past its time, or gone: neither can fail in a way that matters now.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// False if this process is told to end meanwhile.
fn await_ready(
    nodes: &mut Nodes,
    ends: &[Ends],
    lab: Option<&Lab>,
    interrupts: &AtomicU32,
) -> anyhow::Result<bool> {
    let deadline = Instant::now() + READY_MAX;
    for (index, own) in ends.iter().enumerate() {
        loop {
            if interrupts.load(Ordering::Relaxed) > 0 {
                return Ok(false);
            }
            if answers(own.api, index, lab) {
                break;
            }
            if let Some(index) = nodes.ended()? {
                anyhow::bail!("node {} could not start; what it wrote above says why", ends[index].name);
            }
            if Instant::now() > deadline {
                anyhow::bail!("node {} does not answer at {} after {READY_MAX:?}", own.name, own.api);
            }
            std::thread::sleep(LOOK);
        }
    }
    Ok(true)
}

/// Whether somebody accepts at `api`, as seen from the node itself.
fn answers(api: SocketAddr, node: usize, lab: Option<&Lab>) -> bool {
    let connects = || TcpStream::connect_timeout(&api, Duration::from_millis(200)).is_ok();
    match lab {
        None => connects(),
        // A thread that has entered a namespace stays there.
        Some(lab) => std::thread::scope(|scope| {
            scope.spawn(|| lab.enter_thread(node).is_ok() && connects()).join().unwrap_or(false)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_bandwidth;

    #[test]
    fn a_rate_has_a_unit_or_is_in_megabytes() {
        for text in ["50", "50MB", "50MB/s"] {
            assert_eq!(parse_bandwidth(text), Ok(50_000_000), "{text}");
        }
        assert!(parse_bandwidth("50kB/s").is_err() && parse_bandwidth("fast").is_err());
    }
}
