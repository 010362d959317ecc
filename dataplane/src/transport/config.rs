//! What a transport is told at its start.

use super::error::OpenError;
use dflow_proto::wire::capability;
use dflow_proto::wire::handshake::{Identity, PROOF_BYTES, Prover};
use dflow_proto::wire::{CLUSTER_BYTES_MAX, Epoch, LANES_MAX, NodeId};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt;
use std::net::SocketAddr;

/// The cluster's shared secret. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// From a configuration file's bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Secret {
        Secret(bytes.into())
    }

    /// No secret at all: for nodes that listen on loopback only.
    pub const fn none() -> Secret {
        Secret(Vec::new())
    }

    /// Whether it is [`Secret::none`].
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_none() { "Secret(none)" } else { "Secret(..)" })
    }
}

impl Prover for Secret {
    fn mac(&self, parts: &[&[u8]]) -> [u8; PROOF_BYTES] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    }
}

/// Settings of one transport. All limits are per transport unless they say otherwise.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the cluster.
    pub cluster: String,
    /// This node.
    pub node: NodeId,
    /// Its incarnation.
    pub epoch: Epoch,
    /// The cluster's secret.
    pub secret: Secret,
    /// Where to accept connections, or `None` to only dial. Port 0 chooses one.
    pub listen: Option<SocketAddr>,
    /// Bulk streams of each connection that this node dials.
    pub lanes: u16,
    /// Send and check a crc32c with all data, if the peer does too.
    pub checksum: bool,
    /// Connections, both ways.
    pub connections_max: usize,
    /// Operations under way.
    pub ops_max: usize,
    /// Reads a peer may have unanswered here, a connection.
    pub requests_max: u32,
    /// Bytes of messages a peer may send here before they are taken, a connection.
    pub message_credit_bytes: u32,
    /// A stream's handshake must be over by then, in milliseconds.
    pub handshake_ms_max: u64,
    /// After this long without a word from the peer it is asked whether it lives, in milliseconds.
    pub ping_ms: u64,
    /// After this long without a word the connection is given up, in milliseconds.
    pub silence_ms_max: u64,
    /// How long a poll looks before it sleeps, in microseconds, giving way to other threads meanwhile.
    pub spin_us: u64,
    /// The RDMA cards to use, by their names and separated by commas (`mlx5_0,mlx5_1`); without any the best is chosen,
    /// and those that are like it.
    pub rdma_device: Option<String>,
    /// Whether io_uring may send without copying where the path turns out to support it.
    pub zero_copy: bool,
    /// What the layer above the streams offers to peers, as bits of `capability`.
    pub(super) offers: u32,
}

impl Config {
    /// Defaults for a node of a cluster.
    pub fn new(cluster: &str, node: NodeId, epoch: Epoch, secret: Secret) -> Config {
        Config {
            cluster: cluster.to_owned(),
            node,
            epoch,
            secret,
            listen: None,
            lanes: 2,
            checksum: false,
            connections_max: 1024,
            ops_max: 16384,
            requests_max: 1024,
            message_credit_bytes: 4 << 20,
            handshake_ms_max: 5_000,
            ping_ms: 2_000,
            silence_ms_max: 10_000,
            spin_us: 0,
            zero_copy: true,
            rdma_device: None,
            offers: 0,
        }
    }

    pub(super) fn identity(&self) -> Identity {
        let capabilities = self.offers | if self.checksum { capability::CHECKSUM } else { 0 };
        Identity { cluster: self.cluster.clone(), node: self.node, epoch: self.epoch, capabilities }
    }

    /// Refuses what cannot work, or must not be.
    pub(super) fn check(&self) -> Result<(), OpenError> {
        let within = |what, have: u64, min: u64, max: u64, allowed| match (min..=max).contains(&have) {
            true => Ok(()),
            false => Err(OpenError::Config { what, have, allowed }),
        };
        within(
            "length of `cluster`",
            self.cluster.len() as u64,
            1,
            CLUSTER_BYTES_MAX as u64,
            "1 to 64 bytes",
        )?;
        within("`lanes`", self.lanes.into(), 1, LANES_MAX.into(), "1 to 16")?;
        within("`ops_max`", self.ops_max as u64, 1, 1 << 20, "1 to 1048576")?;
        within("`requests_max`", self.requests_max.into(), 1, 1 << 16, "1 to 65536")?;
        let credit = u64::from(self.message_credit_bytes);
        within("`message_credit_bytes`", credit, 128 << 10, 1 << 30, "128 KiB to 1 GiB")?;
        within("`silence_ms_max`", self.silence_ms_max, self.ping_ms + 1, u64::MAX, "more than `ping_ms`")?;
        match self.listen {
            Some(address) if !address.ip().is_loopback() && self.secret.is_none() => {
                Err(OpenError::NoSecret { address })
            }
            _ => Ok(()),
        }
    }
}
