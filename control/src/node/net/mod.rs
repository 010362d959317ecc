//! The thread that moves objects and messages between nodes: it owns the [`Mover`], does what the engine
//! commands, and tells the engine what came.
//!
//! The engine may wait for this thread to take a command; this thread never waits for the engine. While the
//! engine does not take what it is told, the transport is not polled, so that pressure reaches the peers.

mod kept;
mod message;

pub(crate) use kept::{Kept, Returned, Returns};
pub(crate) use message::{Facts, Fate, Join, Message};

use super::cluster::{ClusterConfig, PeerConfig};
use super::view::{LinkView, PeerView};
use crossbeam::channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use dflow_dataplane::transfer::{Landing, Moved, Mover, Publication};
use dflow_dataplane::transport::{self, Config, Epoch, NodeId, OpenError, Transport, Wake};
use dflow_proto::RunId;
use dflow_proto::ids::{Extent, ObjectKey, SegmentId};
use dflow_proto::transfer::TransferLimits;
use dflow_shm::segment::Map;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Commands that may queue; the engine waits when there are more.
const COMMANDS_MAX: usize = 16 << 10;
/// Events that may queue for the engine.
const EVENTS_MAX: usize = 4 << 10;
/// Longest sleep.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// How soon an engine that does not take its events is offered them again.
const OFFER_AGAIN: Duration = Duration::from_millis(1);
/// A node that has not come back after so long is lost.
const GRACE: Duration = Duration::from_secs(2);
/// A node with the higher number leaves dialling to the other for so long.
const DIAL_AFTER: Duration = Duration::from_secs(1);
/// An object must be here so long after it was announced: longer than any run that anybody waits for. What ends a
/// fetch earlier is the end of its run, or of a node.
const FETCH_MS_MAX: u64 = 30 * 24 * 3600 * 1000;

/// What the engine wants.
pub(crate) enum Command {
    /// Another node exists.
    Peer(PeerConfig),
    /// Say something to a node's engine.
    Say { node: NodeId, message: Vec<u8> },
    /// Let nodes fetch an object, or the beginning of one.
    Publish { key: ObjectKey, publish: Publish, to: Vec<NodeId> },
    /// More of it can be read.
    Advance { key: ObjectKey, watermark: u64 },
    /// It is complete.
    Seal { key: ObjectKey, size: u64 },
    /// It is not needed here any more; those who were told may finish.
    Release { key: ObjectKey },
    /// It is void.
    Void { key: ObjectKey },
    /// Have it fetched, though no announcement has come.
    Fetch { key: ObjectKey },
    /// Ask a node for it.
    Ask { key: ObjectKey, node: NodeId },
    /// It is not wanted any more.
    Cancel { key: ObjectKey },
    /// The answer to [`Moved::Reserve`].
    Granted { key: ObjectKey, attempt: u32, landing: Option<(Arc<Map>, Extent, Kept)> },
    /// A run is over here.
    Drop { run: RunId },
    /// A segment's memory goes.
    Gone { segment: SegmentId },
    /// Answer with these, and what carries data to each.
    Links { views: Vec<PeerView>, reply: Sender<Vec<PeerView>> },
    /// End.
    Stop,
}

/// An object to be published.
pub(crate) struct Publish {
    /// Its producer's try, from 1.
    pub(crate) attempt: u32,
    /// Where it lies, as long as it may grow, and what keeps it there; `None` if all of it is in `inline`.
    pub(crate) place: Option<(Arc<Map>, Extent, Kept)>,
    /// Its size, once it is complete.
    pub(crate) size: Option<u64>,
    /// Bytes that are there.
    pub(crate) watermark: u64,
    /// All of it.
    pub(crate) inline: Vec<u8>,
}

/// What the engine learns.
#[derive(Debug)]
pub(crate) enum NetEvent {
    /// Of objects and messages.
    Moved(Moved),
    /// A node is gone for good, or has begun anew and forgotten all.
    Lost {
        /// Which.
        node: NodeId,
        /// How it went.
        why: String,
    },
}

/// The engine's end.
pub(crate) struct Net {
    commands: Sender<Command>,
    pub(crate) events: Receiver<NetEvent>,
    waker: Arc<dyn Wake>,
    /// Commands were given since the thread was last woken.
    unrung: bool,
    /// Where peers reach this node.
    pub(crate) address: Option<SocketAddr>,
    thread: Option<JoinHandle<()>>,
}

impl Net {
    /// Opens the transport, in a thread of its own. `main` is the arena's main segment.
    pub(crate) fn start(
        config: &ClusterConfig,
        main: Arc<Map>,
        doorbell: Arc<OwnedFd>,
    ) -> Result<Net, OpenError> {
        let (commands, inbox) = bounded(COMMANDS_MAX);
        let (outbox, events) = bounded(EVENTS_MAX);
        let (ready, opened) = bounded(1);
        let config = config.clone();
        let thread = std::thread::Builder::new()
            .name("dflow-net".into())
            .spawn(move || match open(&config) {
                Err(error) => drop(ready.send(Err(error))),
                Ok(transport) => {
                    let limits = TransferLimits { announced_ms: FETCH_MS_MAX, ..TransferLimits::default() };
                    let mut mover = Mover::new(transport, limits);
                    mover.register(&main);
                    let _ = ready.send(Ok((mover.waker(), mover.address())));
                    let segments = BTreeMap::from([(main.segment(), main)]);
                    let mut thread = Thread::new(mover, segments, config.node, inbox, outbox, doorbell);
                    config.peers.iter().for_each(|peer| thread.peer(peer));
                    thread.run();
                }
            })
            .map_err(|source| OpenError::Os { what: "start the network thread", source })?;
        let gone = || OpenError::Os {
            what: "start the network thread",
            source: std::io::Error::other("it ended at once"),
        };
        let (waker, address) = opened.recv().map_err(|_| gone())??;
        Ok(Net { commands, events, waker, unrung: false, address, thread: Some(thread) })
    }

    /// Queues a command; waits while the queue is full.
    pub(crate) fn command(&mut self, command: Command) {
        self.unrung = true;
        match self.commands.try_send(command) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(command)) => {
                self.waker.wake();
                // A thread that is gone needs no command.
                let _ = self.commands.send(command);
            }
        }
    }

    /// Wakes the thread if it was given something to do.
    pub(crate) fn ring(&mut self) {
        if std::mem::take(&mut self.unrung) {
            self.waker.wake();
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.command(Command::Stop);
        self.ring();
        if let Some(thread) = self.thread.take() {
            // Its panic, if that is how it ended, has been printed.
            let _ = thread.join();
        }
    }
}

fn open(config: &ClusterConfig) -> Result<Box<dyn Transport>, OpenError> {
    if let Some((lab, node)) = &config.lab {
        let failed =
            |error| OpenError::Os { what: "enter a network namespace", source: std::io::Error::other(error) };
        lab.enter_thread(*node).map_err(failed)?;
    }
    let mut wire = Config::new(&config.cluster, config.node, config.epoch, config.secret.clone());
    wire.listen = Some(config.listen);
    wire.lanes = config.lanes;
    wire.spin_us = config.spin_us;
    wire.rdma_device = config.rdma_device.clone();
    transport::open(wire, config.backend).map(|(transport, _)| transport)
}

struct Thread {
    mover: Mover<Box<dyn Transport>>,
    segments: BTreeMap<SegmentId, Arc<Map>>,
    me: NodeId,
    inbox: Receiver<Command>,
    outbox: Sender<NetEvent>,
    doorbell: Arc<OwnedFd>,
    /// What the engine has not taken yet.
    backlog: VecDeque<NetEvent>,
    /// The incarnations of those that were here.
    epochs: BTreeMap<NodeId, Epoch>,
    /// Those that went: when they are given up, and why.
    absent: BTreeMap<NodeId, (Instant, String)>,
}

impl Thread {
    fn new(
        mover: Mover<Box<dyn Transport>>,
        segments: BTreeMap<SegmentId, Arc<Map>>,
        me: NodeId,
        inbox: Receiver<Command>,
        outbox: Sender<NetEvent>,
        doorbell: Arc<OwnedFd>,
    ) -> Thread {
        let (backlog, epochs, absent) = Default::default();
        Thread { mover, segments, me, inbox, outbox, doorbell, backlog, epochs, absent }
    }

    fn peer(&mut self, peer: &PeerConfig) {
        self.mover.add_peer(peer.node, peer.address);
        // Both ends dialling at once would give two connections, and one is enough.
        let after = if self.me < peer.node { Duration::ZERO } else { DIAL_AFTER };
        self.mover.keep_connected(peer.node, after);
    }

    fn run(mut self) {
        let mut found = Vec::new();
        loop {
            loop {
                match self.inbox.try_recv() {
                    Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return,
                    Ok(command) => self.command(command),
                    Err(TryRecvError::Empty) => break,
                }
            }
            self.offer();
            if !self.backlog.is_empty() {
                std::thread::sleep(OFFER_AGAIN);
                continue;
            }
            if let Err(error) = self.mover.poll(&mut found, self.wait()) {
                tracing::error!(%error, "the network is gone");
                let why = format!("this node's network failed: {error}");
                let lost = |node: &NodeId| NetEvent::Lost { node: *node, why: why.clone() };
                self.backlog.extend(self.epochs.keys().map(lost));
                return self.linger();
            }
            for moved in found.drain(..) {
                self.moved(moved);
            }
            self.give_up();
        }
    }

    /// Without a network there is only the engine left to tell.
    fn linger(mut self) {
        while !self.backlog.is_empty() {
            self.offer();
            std::thread::sleep(OFFER_AGAIN);
            if matches!(self.inbox.try_recv(), Ok(Command::Stop) | Err(TryRecvError::Disconnected)) {
                return;
            }
        }
    }

    fn wait(&self) -> Duration {
        let now = Instant::now();
        let first = self.absent.values().map(|(at, _)| at.saturating_duration_since(now)).min();
        first.unwrap_or(SLEEP_MAX).min(SLEEP_MAX)
    }

    /// Gives the engine what it has room for, and rings.
    fn offer(&mut self) {
        let before = self.backlog.len();
        while let Some(event) = self.backlog.pop_front() {
            match self.outbox.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => {
                    self.backlog.push_front(event);
                    break;
                }
                // An engine that is gone is about to end this thread, too.
                Err(TrySendError::Disconnected(_)) => self.backlog.clear(),
            }
        }
        if self.backlog.len() < before {
            // A doorbell that overflows is ringing already.
            let _ = rustix::io::write(&*self.doorbell, &1u64.to_ne_bytes());
        }
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
        self.backlog.push_back(NetEvent::Moved(moved));
    }

    /// Those that did not come back are lost.
    fn give_up(&mut self) {
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
        self.backlog.push_back(NetEvent::Lost { node, why });
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

    fn command(&mut self, command: Command) {
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
