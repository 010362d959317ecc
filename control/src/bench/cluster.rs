//! The nodes of one contender: one, or several in this process, each with its sockets in a network of its own.

use crate::netns::Lab;
use crate::node::{ClusterConfig, Node, NodeConfig, PeerConfig};
use dflow_dataplane::transport::{Epoch, NodeId, Secret};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Where each node listens in a network of its own.
const PORT: u16 = 7401;
/// The nodes know each other by then.
const START: Duration = Duration::from_secs(20);
/// A node that dies is missed by the others at about the same time.
const SETTLE: Duration = Duration::from_secs(1);

/// The nodes of a contender. Dropped, they end.
pub(super) struct Nodes {
    /// At least one. A run is submitted to each in turn.
    pub(super) all: Vec<Node>,
    /// What lies between them, in words; `None` for nodes that have nothing to do with each other.
    pub(super) link: Option<String>,
    /// The link of each is shaped.
    pub(super) shaped: bool,
}

impl Nodes {
    /// So many alike that know nothing of each other.
    pub(super) fn apart(config: &NodeConfig, count: u32) -> Result<Nodes, String> {
        let start = |_| Node::start(config.clone()).map_err(|error| error.to_string());
        Ok(Nodes { all: (0..count.max(1)).map(start).collect::<Result<_, _>>()?, link: None, shaped: false })
    }

    /// So many that are one cluster, joined by links of that many bytes a second where this process may make them. Once
    /// `interrupts` are more than 0 nothing is waited for.
    pub(super) fn joined(
        config: &NodeConfig,
        count: u32,
        link_bytes_per_s: u64,
        interrupts: &AtomicU32,
    ) -> Result<Nodes, String> {
        if count < 2 {
            return Nodes::apart(config, 1);
        }
        let (lab, link) = match Lab::new(count as usize, Some(link_bytes_per_s)) {
            Ok(lab) => {
                let mb = link_bytes_per_s as f64 / 1e6;
                (Some(Arc::new(lab)), format!("{count} nodes, each behind veth of {mb} MB/s each way"))
            }
            Err(error) => (None, format!("{count} nodes on loopback, unshaped: {error}")),
        };
        let addresses: Result<Vec<SocketAddr>, _> = (0..count as usize)
            .map(|at| match &lab {
                Some(lab) => Ok(SocketAddr::new(IpAddr::V4(lab.address(at)), PORT)),
                None => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr()),
            })
            .collect();
        let addresses = addresses.map_err(|error| format!("no free port: {error}"))?;
        let secret = secret().map_err(|error| format!("cannot read /dev/urandom: {error}"))?;
        let mut all = Vec::new();
        for at in 0..addresses.len() {
            let mut cluster =
                ClusterConfig::new("bench", NodeId(at as u64 + 1), &name(at), Epoch(1), addresses[at]);
            cluster.secret = secret.clone();
            cluster.link_bytes_per_s = link_bytes_per_s;
            cluster.lab = lab.clone().map(|lab| (lab, at));
            let others = addresses.iter().enumerate().filter(|(other, _)| *other != at);
            cluster.peers = others
                .map(|(other, address)| PeerConfig {
                    node: NodeId(other as u64 + 1),
                    name: name(other),
                    address: *address,
                })
                .collect();
            let config = NodeConfig { cluster: Some(cluster), ..config.clone() };
            all.push(Node::start(config).map_err(|error| format!("node {}: {error}", name(at)))?);
        }
        let nodes = Nodes { all, link: Some(link), shaped: lab.is_some() };
        let late = Instant::now() + START;
        while !nodes.all.iter().all(knows_all) {
            if interrupts.load(Ordering::Relaxed) > 0 {
                return Err("interrupted".into());
            }
            if Instant::now() > late {
                return Err(format!("the nodes do not find each other within {} s", START.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(nodes)
    }

    /// Bytes that have come to one node from another, of all of them, since the start.
    pub(super) fn moved_bytes(&self) -> u64 {
        let links = self.all.iter().filter_map(Node::peers).flatten().filter_map(|peer| peer.link);
        links.map(|link| link.rdma_bytes + link.stream_bytes).sum()
    }

    /// Which of them has ended, or is out of the others' reach; `None` while all is well. Takes a second if it is not.
    pub(super) fn lost(&self) -> Option<String> {
        self.missing()?;
        // Each finds out for itself, and whom all miss is known when all have.
        std::thread::sleep(SETTLE);
        self.missing()
    }

    fn missing(&self) -> Option<String> {
        let mut missed = vec![0_usize; self.all.len()];
        for (at, node) in self.all.iter().enumerate() {
            let Some(peers) = node.peers() else { return Some(format!("node {} has ended", name(at))) };
            for (other, count) in missed.iter_mut().enumerate() {
                *count += usize::from(peers.iter().any(|peer| peer.name == name(other) && !peer.up));
            }
        }
        let most = missed.iter().copied().max().filter(|most| *most > 0)?;
        let names: Vec<String> = (0..missed.len()).filter(|at| missed[*at] == most).map(name).collect();
        Some(match &names[..] {
            [name] => format!("node {name} is out of the others' reach"),
            names => format!("nodes {} are out of each other's reach", names.join(" and ")),
        })
    }

    /// The next invocations find no process and no loaded code.
    pub(super) fn cool(&self) {
        self.all.iter().for_each(|node| {
            // A node that is gone will be heard of by its next run.
            node.cool();
        });
    }
}

/// What a node is called.
fn name(at: usize) -> String {
    format!("n{at}")
}

fn knows_all(node: &Node) -> bool {
    // A node that has told what it has may be given work.
    node.peers().is_some_and(|peers| peers.iter().all(|peer| peer.up && peer.slots > 0))
}

fn secret() -> std::io::Result<Secret> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Secret::new(bytes))
}
