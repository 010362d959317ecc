//! A network of one's own on one machine: a namespace a node, joined by virtual links that may be shaped.
//!
//! Two nodes are joined by one link; more hang on a bridge in a namespace of its own. Nothing is made in the
//! caller's namespace, so addresses never clash, and deleting the namespaces deletes everything.
//!
//! A small process, the guard, holds the other end of a pipe and does that deleting when the pipe closes: when the
//! [`Lab`] is dropped, and just so when its owner is killed, by whatever signal.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Nodes of one lab.
pub const LAB_NODES_MAX: usize = 64;
/// The name of each node's interface, inside its namespace.
pub const LAB_INTERFACE: &str = "eth0";
/// How long data may queue before a shaped link drops it. Milliseconds.
const QUEUE_MS_MAX: u64 = 20;
/// A shaped link sends at least so much at once: a segment as the kernel makes them for TCP, and a little more.
const BURST_BYTES_MIN: u64 = 96 << 10;
/// The guard is done by then, or is left to itself. Milliseconds.
const GUARD_MS_MAX: u64 = 10_000;

/// Deletes namespaces, and ends what still runs in them, once its stdin closes. Arguments: the owner, the
/// namespaces.
const GUARD: &str = r#"
trap '' INT TERM HUP QUIT
owner=$1; shift
read -r _
for name; do
    for pid in $(ip netns pids "$name"); do [ "$pid" = "$owner" ] || kill -KILL "$pid"; done
done
for name; do ip netns del "$name"; done
"#;

/// Why there is no lab.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// Only root may make network namespaces.
    #[error(
        "network namespaces need root, this is user {uid}: run it with sudo, or do without its own network"
    )]
    NotRoot {
        /// The user.
        uid: u32,
    },
    /// Root without the right to it, as in most containers.
    #[error(
        "`{command}` was not permitted: this container lacks CAP_SYS_ADMIN or CAP_NET_ADMIN (docker run --privileged)"
    )]
    NotPermitted {
        /// What was tried.
        command: String,
    },
    /// A program is not installed.
    #[error("`{program}` is missing: apt-get install iproute2")]
    Missing {
        /// Its name.
        program: String,
    },
    /// More nodes than a lab has addresses for, or none.
    #[error("a lab has 1 to {LAB_NODES_MAX} nodes, not {nodes}")]
    Nodes {
        /// What was asked for.
        nodes: usize,
    },
    /// A bandwidth that cannot be kept.
    #[error("a link's bandwidth is at least 1 kB/s, not {bytes_per_s} bytes/s")]
    Bandwidth {
        /// What was asked for.
        bytes_per_s: u64,
    },
    /// A program ended badly.
    #[error("`{command}` failed: {stderr}")]
    Failed {
        /// With its arguments.
        command: String,
        /// What it said.
        stderr: String,
    },
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Namespaces joined by links. Dropped, it removes everything, processes in the namespaces included.
#[derive(Debug)]
pub struct Lab {
    nodes: Vec<Node>,
    /// The namespace of the bridge that joins more than two.
    hub: Option<String>,
    guard: Child,
}

#[derive(Debug)]
struct Node {
    name: String,
    namespace: Arc<File>,
}

impl Lab {
    /// Makes `nodes` namespaces that reach each other. With `bandwidth`, in bytes a second, that is what leaves
    /// each node at most, and what reaches it. Takes some 10 ms a node.
    pub fn new(nodes: usize, bandwidth: Option<u64>) -> Result<Lab, LabError> {
        /// Of this process; with its id they make names unique.
        static LABS: AtomicU32 = AtomicU32::new(0);
        if !(1..=LAB_NODES_MAX).contains(&nodes) {
            return Err(LabError::Nodes { nodes });
        }
        let uid = rustix::process::geteuid();
        if !uid.is_root() {
            return Err(LabError::NotRoot { uid: uid.as_raw() });
        }
        let (owner, lab) = (std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let name = |end: &str| format!("dflow-{owner}-{lab}-{end}");
        let names: Vec<String> = (0..nodes).map(|i| name(&i.to_string())).collect();
        let hub = (nodes > 2).then(|| name("hub"));
        let all: Vec<&String> = names.iter().chain(&hub).collect();

        // The guard is there before what it guards: a lab that cannot be finished is removed like any other.
        let guard = guard(owner, &all)?;
        let mut lab = Lab { nodes: Vec::new(), hub: hub.clone(), guard };
        batch(None, &all.iter().map(|name| format!("netns add {name}")).collect::<Vec<_>>())?;
        for name in names {
            let file = File::open(namespace_path(&name));
            let namespace = file.map_err(|source| LabError::System { what: "open a namespace", source })?;
            lab.nodes.push(Node { name, namespace: Arc::new(namespace) });
        }
        lab.join()?;
        for i in 0..nodes {
            lab.set_bandwidth(i, bandwidth)?;
        }
        Ok(lab)
    }

    fn join(&self) -> Result<(), LabError> {
        let mut links = Vec::new();
        let hub = self.hub.as_deref();
        match (hub, &self.nodes[..]) {
            (Some(hub), nodes) => {
                batch(Some(hub), &["link add hub type bridge".into(), "link set hub up".into()])?;
                for (i, node) in nodes.iter().enumerate() {
                    let near = &node.name;
                    links.push(format!(
                        "link add {LAB_INTERFACE} netns {near} type veth peer name {} netns {hub}",
                        port(i)
                    ));
                }
            }
            (None, [a, b]) => links.push(format!(
                "link add {LAB_INTERFACE} netns {} type veth peer name {LAB_INTERFACE} netns {}",
                a.name, b.name
            )),
            _ => {}
        }
        batch(None, &links)?;
        if let Some(hub) = hub {
            let plug = |i| format!("link set {} master hub up", port(i));
            batch(Some(hub), &(0..self.nodes.len()).map(plug).collect::<Vec<_>>())?;
        }
        for (i, node) in self.nodes.iter().enumerate() {
            let mut lines = vec!["link set lo up".to_owned()];
            if self.nodes.len() > 1 {
                lines.push(format!("addr add {}/24 dev {LAB_INTERFACE}", self.address(i)));
                lines.push(format!("link set {LAB_INTERFACE} up"));
            } else {
                lines.push(format!("addr add {}/24 dev lo", self.address(i)));
            }
            batch(Some(&node.name), &lines)?;
        }
        Ok(())
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// A node's address.
    ///
    /// # Panics
    /// If there is no such node, as everywhere here.
    pub fn address(&self, node: usize) -> Ipv4Addr {
        assert!(node < self.nodes.len(), "node {node} of {}", self.nodes.len());
        Ipv4Addr::new(10, 77, 0, node as u8 + 1)
    }

    /// The name of a node's namespace, for `ip netns exec`.
    pub fn namespace(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    /// Lets `command` start inside a node.
    pub fn enter(&self, node: usize, command: &mut Command) {
        let namespace = self.nodes[node].namespace.clone();
        // SAFETY: between fork and exec only what is async-signal-safe may be done; the closure makes one system
        // call, setns, and allocates nothing.
        unsafe {
            command.pre_exec(move || move_into(&namespace));
        }
    }

    /// Moves the calling thread into a node, for good. Sockets that it opens from now on are that node's.
    pub fn enter_thread(&self, node: usize) -> Result<(), LabError> {
        move_into(&self.nodes[node].namespace)
            .map_err(|source| LabError::System { what: "enter a namespace", source })
    }

    /// Shapes what leaves a node, and what reaches it, to so many bytes a second from now on, or no more. (Of two
    /// nodes on one link, what leaves one is what reaches the other.)
    pub fn set_bandwidth(&self, node: usize, bandwidth: Option<u64>) -> Result<(), LabError> {
        if let Some(hub) = &self.hub {
            shape(hub, &port(node), bandwidth)?;
        }
        match self.nodes.len() {
            1 => Ok(()),
            _ => shape(&self.nodes[node].name, LAB_INTERFACE, bandwidth),
        }
    }

    /// Cuts a node's link, or mends it.
    pub fn set_link(&self, node: usize, up: bool) -> Result<(), LabError> {
        let state = if up { "up" } else { "down" };
        batch(Some(&self.nodes[node].name), &[format!("link set {LAB_INTERFACE} {state}")])
    }
}

/// The bridge's end of a node's link.
fn port(node: usize) -> String {
    format!("node{node}")
}

/// Shapes what an interface of a namespace sends.
fn shape(namespace: &str, interface: &str, bandwidth: Option<u64>) -> Result<(), LabError> {
    let qdisc = ["-n", namespace, "qdisc"];
    let Some(bytes_per_s) = bandwidth else {
        // There is none to delete on a link that was never shaped.
        let _ = run("tc", &[&qdisc[..], &["del", "dev", interface, "root"]].concat(), "");
        return Ok(());
    };
    if bytes_per_s < 1000 {
        return Err(LabError::Bandwidth { bytes_per_s });
    }
    let rate = format!("{}bit", bytes_per_s.saturating_mul(8));
    // The kernel refills its tokens some 250 times a second at worst.
    let burst_bytes = (bytes_per_s / 250).max(BURST_BYTES_MIN);
    let limit_bytes = bytes_per_s.saturating_mul(QUEUE_MS_MAX) / 1000 + 2 * burst_bytes;
    let (burst, limit) = (burst_bytes.to_string(), limit_bytes.to_string());
    let shape = ["replace", "dev", interface, "root", "tbf", "rate", &rate, "burst", &burst];
    run("tc", &[&qdisc[..], &shape, &["limit", &limit]].concat(), "")
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let give_up = Instant::now() + Duration::from_millis(GUARD_MS_MAX);
        while matches!(self.guard.try_wait(), Ok(None)) && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn namespace_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

fn move_into(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn guard(owner: u32, names: &[&String]) -> Result<Child, LabError> {
    let mut command = Command::new("sh");
    command.args(["-c", GUARD, "dflow-lab", &owner.to_string()]).args(names);
    // Its own group: an interrupt from the terminal ends the owner, and must not end the guard before its work.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(|source| LabError::System { what: "start the lab's guard, `sh`", source })
}

/// Lines for `ip`, in one process.
fn batch(namespace: Option<&str>, lines: &[String]) -> Result<(), LabError> {
    if lines.is_empty() {
        return Ok(());
    }
    let within = namespace.map_or(vec![], |name| vec!["-n", name]);
    run("ip", &[&within[..], &["-batch", "-"]].concat(), &(lines.join("\n") + "\n"))
}

fn run(program: &str, arguments: &[&str], input: &str) -> Result<(), LabError> {
    let what = || match input.lines().next() {
        Some(line) => format!("{program} {} <<< {line}", arguments.join(" ")),
        None => format!("{program} {}", arguments.join(" ")),
    };
    let system = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => LabError::Missing { program: program.to_owned() },
        _ => LabError::System { what: "run a program of iproute2", source },
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(system)?;
    // One that ended early says why on its stderr.
    let _ = child.stdin.take().expect("piped above").write_all(input.as_bytes());
    let mut stderr = String::new();
    let _ = child.stderr.take().expect("piped above").read_to_string(&mut stderr);
    let status = child.wait().map_err(system)?;
    match status.success() {
        true => Ok(()),
        false if stderr.contains("not permitted") => Err(LabError::NotPermitted { command: what() }),
        false => Err(LabError::Failed { command: what(), stderr: stderr.trim().replace('\n', "; ") }),
    }
}
