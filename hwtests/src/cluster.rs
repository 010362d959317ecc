//! Several nodes in this process, on loopback, that know each other.

use crate::run::Scene;
use dflow_control::node::{
    ClusterConfig, NetThread, Node, NodeConfig, PeerConfig, RunHandle, RunSpec, Spread, SubmitError,
};
use dflow_core::placement::{Place, Placement};
use dflow_dataplane::transport::{Epoch, NodeId};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

/// Longest wait, on a slow and busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// What the nodes are called.
pub const NAMES: [&str; 3] = ["ada", "bob", "cem"];

/// The nodes, and a folder for their files.
pub struct Cluster {
    /// The first is the home of runs.
    pub nodes: Vec<Node>,
    /// Where workflows and functions are written.
    pub scene: Scene,
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port")
}

impl Cluster {
    /// Nodes that are all connected; `None` after saying what is missing.
    pub fn start(count: usize, change: impl Fn(usize, &mut NodeConfig)) -> Option<Cluster> {
        let addresses: Vec<SocketAddr> = (0..count).map(|_| free_address()).collect();
        let peer = |i: usize| PeerConfig {
            node: NodeId(i as u64 + 1),
            name: NAMES[i].into(),
            address: addresses[i],
        };
        let mut nodes = Vec::new();
        for index in 0..count {
            let mut cluster = ClusterConfig::new(
                "test",
                NodeId(index as u64 + 1),
                NAMES[index],
                Epoch(1),
                addresses[index],
            );
            // Both kinds in every test, also where the machine would choose one.
            cluster.net_thread = if index % 2 == 0 { NetThread::Engine } else { NetThread::Own };
            cluster.peers = (0..count).filter(|other| *other != index).map(peer).collect();
            let mut config = NodeConfig {
                cluster: Some(cluster),
                cpu_milli: 2000,
                store_bytes: 256 << 20,
                prefault_bytes: 8 << 20,
                ..NodeConfig::default()
            };
            if let Some(path) = config.libexec.missing() {
                println!("SKIP cluster: {} is not built", path.display());
                return None;
            }
            change(index, &mut config);
            nodes.push(Node::start(config).expect("a node"));
        }
        let cluster = Cluster { nodes, scene: Scene::new() };
        let begun = Instant::now();
        let all_up =
            |node: &Node| node.peers().expect("the engine lives").iter().all(|p| p.up && p.slots > 0);
        while !cluster.nodes.iter().all(all_up) {
            assert!(
                begun.elapsed() < PATIENCE,
                "the nodes do not find each other: {:?}",
                cluster.nodes.iter().map(Node::peers).collect::<Vec<_>>()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(cluster)
    }

    /// Where `places` says the steps lie, by their order in the file; none: where it pays.
    pub fn spread(&self, places: &[Place]) -> Spread {
        if places.is_empty() {
            return Spread::Auto;
        }
        let nodes = NAMES[..self.nodes.len()].iter().map(|name| (*name).into()).collect();
        let placement = Placement { nodes: self.nodes.len() as u16, steps: places.to_vec() };
        Spread::Given { nodes, placement }
    }

    /// Begins a run at the first node.
    ///
    /// # Errors
    /// Those of [`Node::submit`].
    pub fn submit(&self, spec: RunSpec) -> Result<RunHandle, SubmitError> {
        self.nodes[0].submit(spec)
    }
}
