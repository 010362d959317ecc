//! What is done for the engine with a [`Mover`], by whichever thread polls it.

use super::{Command, NetEvent, Publish};
use crate::node::cluster::{ClusterConfig, PeerConfig};
use crate::node::view::LinkView;
use dflow_dataplane::transfer::{Landing, Moved, Mover, Publication};
use dflow_dataplane::transport::{self, Config, Epoch, NodeId, OpenError, Transport, Wake};
use dflow_proto::ids::{ObjectKey, SegmentId};
use dflow_proto::transfer::TransferLimits;
use dflow_shm::segment::Map;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest sleep.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// A node that has not come back after so long is lost.
const GRACE: Duration = Duration::from_secs(2);
/// A node with the higher number leaves dialling to the other for so long.
const DIAL_AFTER: Duration = Duration::from_secs(1);
/// An object must be here so long after it was announced: longer than any run that anybody waits for. What ends a
/// fetch earlier is the end of its run, or of a node.
const FETCH_MS_MAX: u64 = 30 * 24 * 3600 * 1000;

/// The network is broken: nothing can be moved any more.
pub(super) struct Gone;

/// Bound to the thread that opened it.
pub(super) struct Courier {
    mover: Mover<Box<dyn Transport>>,
    segments: BTreeMap<SegmentId, Arc<Map>>,
    me: NodeId,
    /// What the engine has not taken yet.
    pub(super) events: VecDeque<NetEvent>,
    found: Vec<Moved>,
    /// The incarnations of those that were here.
    epochs: BTreeMap<NodeId, Epoch>,
    /// Those that went: when they are given up, and why.
    absent: BTreeMap<NodeId, (Instant, String)>,
}

impl Courier {
    /// Opens the transport. `main` is the arena's main segment.
    pub(super) fn open(config: &ClusterConfig, main: Arc<Map>, spin_us: u32) -> Result<Courier, OpenError> {
        if let Some((lab, node)) = &config.lab {
            let failed = |error| OpenError::Os {
                what: "enter a network namespace",
                source: std::io::Error::other(error),
            };
            lab.enter_thread(*node).map_err(failed)?;
        }
        let mut wire = Config::new(&config.cluster, config.node, config.epoch, config.secret.clone());
        wire.listen = Some(config.listen);
        wire.lanes = config.lanes;
        wire.spin_us = spin_us.into();
        wire.rdma_device = config.rdma_device.clone();
        let (transport, _) = transport::open(wire, config.backend)?;
        let limits = TransferLimits { announced_ms: FETCH_MS_MAX, ..TransferLimits::default() };
        let mut mover = Mover::new(transport, limits);
        mover.register(&main);
        let mut courier = Courier {
            mover,
            segments: BTreeMap::from([(main.segment(), main)]),
            me: config.node,
            events: VecDeque::new(),
            found: Vec::new(),
            epochs: BTreeMap::new(),
            absent: BTreeMap::new(),
        };
        config.peers.iter().for_each(|peer| courier.peer(peer));
        Ok(courier)
    }

    /// Where peers reach this node.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.mover.address()
    }

    /// Wakes a sleeping [`Courier::poll`].
    pub(super) fn waker(&self) -> Arc<dyn Wake> {
        self.mover.waker()
    }

    /// Lets polls return also while `fd` is readable.
    pub(super) fn watch(&mut self, fd: OwnedFd) -> Result<(), OpenError> {
        self.mover.watch(fd)
    }

    /// Moves everything along, for `wait` at most; what there is to tell stands in `events`.
    pub(super) fn poll(&mut self, wait: Duration) -> Result<(), Gone> {
        let wait = wait.min(SLEEP_MAX);
        let until = self.absent.values().map(|(at, _)| *at).min();
        let wait = until.map_or(wait, |at| wait.min(at.saturating_duration_since(Instant::now())));
        let mut found = std::mem::take(&mut self.found);
        if let Err(error) = self.mover.poll(&mut found, wait) {
            tracing::error!(%error, "the network is gone");
            let why = format!("this node's network failed: {error}");
            let lost = |node: &NodeId| NetEvent::Lost { node: *node, why: why.clone() };
            self.events.extend(self.epochs.keys().map(lost));
            return Err(Gone);
        }
        for moved in found.drain(..) {
            self.moved(moved);
        }
        self.found = found;
        self.give_up();
        Ok(())
    }

    fn peer(&mut self, peer: &PeerConfig) {
        self.mover.add_peer(peer.node, peer.address);
        // Both ends dialling at once would give two connections, and one is enough.
        let after = if self.me < peer.node { Duration::ZERO } else { DIAL_AFTER };
        self.mover.keep_connected(peer.node, after);
    }

    fn moved(&mut self, moved: Moved) {
        match &moved {
            Moved::Up { node, epoch } => {
                self.absent.remove(node);
                if self.epochs.insert(*node, *epoch).is_some_and(|before| before != *epoch) {
                    self.lose(*node, "it has been started anew".into());
                }
            }
            Moved::Down { node, why } => {
                self.absent.insert(*node, (Instant::now() + GRACE, why.to_string()));
            }
            _ => {}
        }
        self.events.push_back(NetEvent::Moved(moved));
    }

    /// Those that did not come back are lost.
    fn give_up(&mut self) {
        if self.absent.is_empty() {
            return;
        }
        let now = Instant::now();
        let over: Vec<NodeId> =
            self.absent.iter().filter(|(_, (at, _))| *at <= now).map(|(node, _)| *node).collect();
        for node in over {
            if let Some((_, why)) = self.absent.remove(&node) {
                self.lose(node, why);
            }
        }
    }

    fn lose(&mut self, node: NodeId, why: String) {
        self.mover.lose(node);
        self.events.push_back(NetEvent::Lost { node, why });
    }

    /// Peers may read this segment, and objects land in it.
    fn registered(&mut self, map: &Arc<Map>) -> transport::Region {
        // A segment whose length was fixed has another map, and needs another registration: registering again gives
        // the same region where it has not changed.
        let segment = map.segment();
        if self.segments.get(&segment).is_some_and(|known| !Arc::ptr_eq(known, map)) {
            self.mover.deregister(segment);
            self.segments.remove(&segment);
        }
        self.segments.entry(segment).or_insert_with(|| map.clone());
        match self.mover.region(segment) {
            Some(region) => region,
            None => self.mover.register(map),
        }
    }

    /// Does what the engine wants.
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Peer(peer) => self.peer(&peer),
            Command::Say { node, message } => {
                if let Err(error) = self.mover.say(node, &message) {
                    self.lose(node, error.to_string());
                }
            }
            Command::Publish { key, publish, to } => self.publish(key, publish, &to),
            Command::Advance { key, watermark } => self.mover.advance(key, watermark),
            Command::Seal { key, size } => self.mover.seal(key, size),
            Command::Release { key } => self.mover.release(key),
            Command::Void { key } => self.mover.withdraw(key, true),
            Command::Fetch { key } => {
                let deadline = self.mover.now().after_ms(FETCH_MS_MAX);
                self.mover.fetch(key, deadline);
            }
            Command::Ask { key, node } => self.mover.ask(key, &[node]),
            Command::Cancel { key } => self.mover.cancel(key),
            Command::Granted { key, attempt, landing } => {
                let landing = landing.map(|(map, extent, kept)| {
                    self.registered(&map);
                    Landing { map, extent, keep: Some(Arc::new(kept)) }
                });
                self.mover.granted(key, attempt, landing);
            }
            Command::Drop { run } => self.mover.drop_run(run),
            Command::Gone { segment } => {
                if self.segments.remove(&segment).is_some() {
                    self.mover.deregister(segment);
                }
            }
            Command::Links { mut views, reply } => {
                views.iter_mut().for_each(|view| view.link = self.link(NodeId(view.node)));
                // Who no longer listens needs no answer.
                let _ = reply.send(views);
            }
            // Seen to before.
            Command::Stop => {}
        }
    }

    fn link(&self, node: NodeId) -> Option<LinkView> {
        let path = self.mover.path(node)?;
        Some(LinkView {
            transport: path.transport.into(),
            why: path.why,
            rdma_bytes: path.rdma_bytes,
            stream_bytes: path.stream_bytes,
        })
    }

    fn publish(&mut self, key: ObjectKey, publish: Publish, to: &[NodeId]) {
        let Publish { attempt, place, size, watermark, inline } = publish;
        let (region, offset, capacity_bytes, keep) = match place {
            Some((map, extent, kept)) => {
                let keep: Arc<dyn std::any::Any + Send + Sync> = Arc::new(kept);
                (self.registered(&map), extent.offset, extent.bytes, Some(keep))
            }
            None => (transport::Region::default(), 0, inline.len() as u64, None),
        };
        let publication =
            Publication { attempt, region, offset, capacity_bytes, size, watermark, inline, keep };
        self.mover.publish(key, publication);
        self.mover.announce(key, to);
    }
}
