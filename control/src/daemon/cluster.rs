//! A node's place in its cluster, from its configuration.
//!
//! All nodes are given the same peers, so each can number them alike: in the order of their names. The number
//! is in the names of runs and in the handshake; nodes whose lists differ refuse each other there.

use super::config::{Loaded, Settings};
use super::error::DaemonError;
use crate::node::{ClusterConfig, PeerConfig};
use dflow_dataplane::transport::{self, Epoch, NodeId};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{SystemTime, UNIX_EPOCH};

/// What all nodes of one set of peers call their cluster.
const CLUSTER: &str = "dflow";

/// `None` for a node without peers.
///
/// # Errors
/// When an address cannot be resolved.
pub(super) fn cluster(loaded: &Loaded) -> Result<Option<ClusterConfig>, DaemonError> {
    let settings = &loaded.settings;
    if settings.peers.is_empty() {
        return Ok(None);
    }
    let number =
        |name: &str| NodeId(1 + names(settings).iter().filter(|other| **other < name).count() as u64);
    // Larger at each start, as long as the clock does not go back between two of them.
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let listen = resolve("data", &settings.data)?;
    let mut config =
        ClusterConfig::new(CLUSTER, number(&settings.name), &settings.name, Epoch(epoch), listen);
    if let Some(secret) = &loaded.secret {
        config.secret = transport::Secret::new(secret.expose().as_bytes());
    }
    for peer in &settings.peers {
        let address = resolve("peers", &peer.data)?;
        config.peers.push(PeerConfig { node: number(&peer.name), name: peer.name.clone(), address });
    }
    config.labels = settings.labels.clone();
    config.backend = settings.backend;
    config.net_thread = settings.net_thread;
    config.rdma_device = settings.rdma_device.clone();
    config.link_bytes_per_s = settings.link_bytes_per_s;
    Ok(Some(config))
}

fn names(settings: &Settings) -> Vec<&str> {
    settings.peers.iter().map(|peer| peer.name.as_str()).chain([settings.name.as_str()]).collect()
}

fn resolve(key: &'static str, address: &str) -> Result<SocketAddr, DaemonError> {
    let failed = |source| DaemonError::Listen {
        key,
        address: address.to_owned(),
        source,
        hint: "; give it as HOST:PORT with a host that this machine can resolve".to_owned(),
    };
    let mut found = address.to_socket_addrs().map_err(failed)?;
    found.next().ok_or_else(|| failed(std::io::Error::other("it has no address")))
}
