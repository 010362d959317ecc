//! What a node of a cluster is told, and over which nodes a run is to be spread.

use crate::netns::Lab;
use dflow_core::placement::Placement;
use dflow_dataplane::transport::{Backend, Epoch, NodeId, Secret};
use std::net::SocketAddr;
use std::sync::Arc;

/// The highest number of a node: with it begin the names of all runs that are submitted there.
pub const NODE_MAX: u64 = u16::MAX as u64;

/// What a link is taken to carry if nobody says: 8 gigabits a second.
pub const LINK_BYTES_PER_S: u64 = 1_000_000_000;

/// A node's place in its cluster.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The cluster's name, 1 to 64 bytes: nodes of another are refused.
    pub cluster: String,
    /// Shared by its nodes; needed off loopback.
    pub secret: Secret,
    /// This node's number, 1 to [`NODE_MAX`], unlike that of any other.
    pub node: NodeId,
    /// Its name, for people.
    pub name: String,
    /// Its incarnation: larger at each start.
    pub epoch: Epoch,
    /// Where it accepts other nodes. Port 0 chooses one.
    pub listen: SocketAddr,
    /// The others, as far as known at the start.
    pub peers: Vec<PeerConfig>,
    /// What moves bytes between them.
    pub backend: Backend,
    /// RDMA devices to use, separated by commas; `None`: those that suit the address.
    pub rdma_device: Option<String>,
    /// Bulk streams of each connection.
    pub lanes: u16,
    /// Which thread moves objects and messages.
    pub net_thread: NetThread,
    /// What a link between two nodes carries each way, in bytes a second; steps are placed by it.
    pub link_bytes_per_s: u64,
    /// The network this node lives in, as one of its nodes; `None`: the caller's.
    pub lab: Option<(Arc<Lab>, usize)>,
    /// What steps may ask for by `placement: {prefer: "label:NAME"}`, besides the node's own name.
    pub labels: Vec<String>,
}

/// Which thread of a node moves objects and messages between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetThread {
    /// The engine's where processors are few, else one of its own.
    #[default]
    Auto,
    /// The engine's: fewer threads to wake, so the shortest way from one node to a function on another.
    Engine,
    /// One of its own: bulk that is copied, as over TCP, never keeps the engine from scheduling.
    Own,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where it accepts connections.
    pub address: SocketAddr,
}

/// A cluster that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// A number out of range.
    #[error("node {name} has the number {have}; give it one from 1 to {NODE_MAX}")]
    Number {
        /// Whose.
        name: String,
        /// The number.
        have: u64,
    },
    /// Two nodes that cannot be told apart.
    #[error("nodes {one} and {other} have the same {what}: give each its own")]
    Twice {
        /// `number` or `name`.
        what: &'static str,
        /// One.
        one: String,
        /// And another.
        other: String,
    },
}

/// Over which nodes a run is spread.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Spread {
    /// Over all that are connected, where it pays.
    #[default]
    Auto,
    /// Nowhere: all of it here.
    Home,
    /// Over this node and the named ones.
    Over(Vec<String>),
    /// As told.
    Given {
        /// Names of the nodes by their number in the placement; the first is this node.
        nodes: Vec<String>,
        /// Where each step lies.
        placement: Placement,
    },
}

impl ClusterConfig {
    /// A node that listens on `listen` and knows no other yet.
    pub fn new(cluster: &str, node: NodeId, name: &str, epoch: Epoch, listen: SocketAddr) -> Self {
        ClusterConfig {
            cluster: cluster.into(),
            secret: Secret::none(),
            node,
            name: name.into(),
            epoch,
            listen,
            peers: Vec::new(),
            backend: Backend::Auto,
            rdma_device: None,
            lanes: 2,
            net_thread: NetThread::Auto,
            link_bytes_per_s: LINK_BYTES_PER_S,
            lab: None,
            labels: Vec::new(),
        }
    }

    /// Refuses nodes that cannot be told apart.
    ///
    /// # Errors
    /// What is wrong, and with which nodes.
    pub fn check(&self) -> Result<(), ClusterError> {
        let own = (self.node, self.name.as_str());
        let nodes: Vec<_> = self.peers.iter().map(|p| (p.node, p.name.as_str())).chain([own]).collect();
        for (index, (node, name)) in nodes.iter().enumerate() {
            if !(1..=NODE_MAX).contains(&node.0) {
                return Err(ClusterError::Number { name: (*name).into(), have: node.0 });
            }
            for (other_node, other) in &nodes[..index] {
                let what = match (other_node == node, other == name) {
                    (true, _) => "number",
                    (_, true) => "name",
                    _ => continue,
                };
                return Err(ClusterError::Twice { what, one: (*other).into(), other: (*name).into() });
            }
        }
        Ok(())
    }

    /// The first name for a run that is submitted here: no other node, and no other incarnation of this one
    /// within 65,536 starts, gives the same.
    pub(super) fn first_run(&self) -> u64 {
        (self.node.0 & 0xffff) << 48 | (self.epoch.0 & 0xffff) << 32 | 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_must_differ() {
        let listen: SocketAddr = ([127, 0, 0, 1], 0).into();
        let mut config = ClusterConfig::new("c", NodeId(1), "a", Epoch(5), listen);
        let peer = |node, name: &str| PeerConfig { node: NodeId(node), name: name.into(), address: listen };
        config.peers = vec![peer(2, "b"), peer(3, "c")];
        assert_eq!(config.check(), Ok(()));
        config.peers[1] = peer(2, "c");
        assert!(matches!(config.check(), Err(ClusterError::Twice { what: "number", .. })));
        config.peers[1] = peer(3, "a");
        assert!(matches!(config.check(), Err(ClusterError::Twice { what: "name", .. })));
        config.peers[1] = peer(70_000, "d");
        assert!(matches!(config.check(), Err(ClusterError::Number { have: 70_000, .. })));
        assert_eq!(config.first_run(), 1 << 48 | 5 << 32 | 1);
    }
}
