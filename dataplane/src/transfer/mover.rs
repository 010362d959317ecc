//! The driver.

mod peers;

use super::Moved;
use super::holding::{Holdings, Publication};
use crate::transport::{
    Completion, ConnectionId, Event as Heard, Lease, NodeId, Op, OpError, OpId, OpenError, Path, PollError,
    Region, Stats, Transport, Wake,
};
use dflow_proto::Tick;
use dflow_proto::ids::{Extent, ObjectKey, RunId, SegmentId};
use dflow_proto::transfer::{
    Effect, Effects, Event, PeerId, ReadFault, Receiver, Ticket, TransferLimits, relay_plan,
};
use dflow_proto::wire::ErrorCode;
use dflow_proto::wire::notice::{self, Notice};
use dflow_shm::segment::Map;
use peers::Peer;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Messages of a connection that is about to open: more than a peer says in the time that takes.
const EARLY_MAX: usize = 1024;

/// Memory for an object that comes from elsewhere.
#[derive(Clone)]
pub struct Landing {
    /// The segment, which must have been given to [`Mover::register`].
    pub map: Arc<Map>,
    /// Where in it; as long as was asked for.
    pub extent: Extent,
    /// Kept until no read can write there any more.
    pub keep: Option<Arc<dyn Any + Send + Sync>>,
}

/// Numbers of this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MoverStats {
    /// Of the transport.
    pub transport: Stats,
    /// Objects held for others.
    pub held: usize,
    /// Objects known or wanted from others.
    pub known: usize,
    /// Bytes asked for and not here yet.
    pub in_flight_bytes: u64,
}

/// See the [module](super).
pub struct Mover<T: Transport> {
    transport: T,
    limits: TransferLimits,
    receiver: Receiver,
    holdings: Holdings,
    peers: BTreeMap<NodeId, Peer>,
    /// Who is at the other end.
    connections: BTreeMap<ConnectionId, NodeId>,
    /// What came over connections that are open for the peer and not yet for this end.
    early: BTreeMap<ConnectionId, Vec<Vec<u8>>>,
    regions: BTreeMap<SegmentId, Region>,
    landings: BTreeMap<ObjectKey, (u32, Landing)>,
    ops: BTreeMap<Ticket, OpId>,
    /// Reads that the transport had no room for.
    waiting: VecDeque<Waiting>,
    /// Given up while they waited for the transport.
    dropped: BTreeSet<Ticket>,
    effects: Effects,
    found: Vec<Moved>,
    heard: Vec<Heard>,
}

struct Waiting {
    ticket: Ticket,
    key: ObjectKey,
    attempt: u32,
    node: NodeId,
    region: Region,
    offset: u64,
    at: u64,
    bytes: u64,
    deadline: Tick,
}

impl<T: Transport> Mover<T> {
    /// Over `transport`, which the calling thread polls from now on through this.
    pub fn new(transport: T, limits: TransferLimits) -> Mover<T> {
        Mover {
            transport,
            limits,
            receiver: Receiver::new(limits),
            holdings: Holdings::default(),
            peers: BTreeMap::new(),
            connections: BTreeMap::new(),
            early: BTreeMap::new(),
            regions: BTreeMap::new(),
            landings: BTreeMap::new(),
            ops: BTreeMap::new(),
            waiting: VecDeque::new(),
            dropped: BTreeSet::new(),
            effects: Vec::new(),
            found: Vec::new(),
            heard: Vec::new(),
        }
    }

    /// The transport's time.
    pub fn now(&self) -> Tick {
        self.transport.now()
    }

    /// Where peers reach this node.
    pub fn address(&self) -> Option<SocketAddr> {
        self.transport.address()
    }

    /// Wakes a sleeping [`Mover::poll`].
    pub fn waker(&self) -> Arc<dyn Wake> {
        self.transport.waker()
    }

    /// Lets [`Mover::poll`] return also while `fd` is readable. For one descriptor.
    ///
    /// # Errors
    /// The kernel refuses to watch it.
    pub fn watch(&mut self, fd: OwnedFd) -> Result<(), OpenError> {
        self.transport.watch(fd)
    }

    /// The transport, to look at.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// What carries the data between a node and this one; `None` if it is not connected.
    pub fn path(&self, node: NodeId) -> Option<Path> {
        self.transport.path(self.peers.get(&node)?.connection?)
    }

    /// Numbers of this moment.
    pub fn stats(&self) -> MoverStats {
        MoverStats {
            transport: self.transport.stats(),
            held: self.holdings.len(),
            known: self.receiver.objects(),
            in_flight_bytes: self.receiver.in_flight_bytes(),
        }
    }

    /// Lets peers read a segment, and objects land in it.
    pub fn register(&mut self, map: &Arc<Map>) -> Region {
        let region = self.transport.register(map);
        self.regions.insert(map.segment(), region);
        region
    }

    /// Takes a node for dead: it reads nothing here any more.
    pub fn lose(&mut self, node: NodeId) {
        for key in self.holdings.lose(node) {
            self.released(key);
        }
    }

    /// The region of a registered segment.
    pub fn region(&self, segment: SegmentId) -> Option<Region> {
        self.regions.get(&segment).copied()
    }

    /// The segment's memory goes: nobody may read or land there any more.
    pub fn deregister(&mut self, segment: SegmentId) {
        if let Some(region) = self.regions.remove(&segment) {
            self.transport.deregister(region);
        }
    }

    /// Lets peers read an object, from its first byte on. Nobody is told yet.
    pub fn publish(&mut self, key: ObjectKey, publication: Publication) {
        self.holdings.publish(key, publication);
    }

    /// Tells `nodes` of a published object; large ones pass it on among themselves.
    pub fn announce(&mut self, key: ObjectKey, nodes: &[NodeId]) {
        let Some(publication) = self.holdings.get(key) else { return };
        let size = if publication.inline.is_empty() { publication.capacity_bytes } else { 0 };
        let plan = match publication.inline.is_empty() {
            true => relay_plan(nodes, size, self.limits.chunk_bytes),
            // A value that travels in the announcement is there when it is announced: no second hand needed.
            false => nodes.iter().map(|node| (*node, Vec::new())).collect(),
        };
        for (node, relay) in plan {
            if let Some(notice) = self.holdings.announce(key, node, relay) {
                self.tell(node, &notice);
            }
        }
    }

    /// More of a published object can be read.
    pub fn advance(&mut self, key: ObjectKey, watermark: u64) {
        self.holdings.advance(key, watermark, None);
    }

    /// A published object is complete.
    pub fn seal(&mut self, key: ObjectKey, size: u64) {
        self.holdings.advance(key, size, Some(size));
    }

    /// An object is not held here any more. `lost`: its producer died, and what was read of it is void.
    pub fn withdraw(&mut self, key: ObjectKey, lost: bool) {
        for (node, notice) in self.holdings.withdraw(key, lost) {
            self.tell(node, &notice);
        }
    }

    /// Begins to fetch an object; ends in `Arrived` or `Failed`.
    pub fn fetch(&mut self, key: ObjectKey, deadline: Tick) {
        self.give(Event::Fetch { key, deadline });
    }

    /// The object is not needed any more.
    pub fn cancel(&mut self, key: ObjectKey) {
        self.give(Event::Cancel { key });
    }

    /// The answer to [`Moved::Reserve`]: memory, or none.
    ///
    /// # Panics
    /// If the landing's segment was not registered.
    pub fn granted(&mut self, key: ObjectKey, attempt: u32, landing: Option<Landing>) {
        let granted = landing.is_some();
        if let Some(landing) = landing {
            assert!(self.regions.contains_key(&landing.map.segment()), "landings lie in registered segments");
            self.landings.insert(key, (attempt, landing));
        }
        self.give(Event::Reserved { key, attempt, granted });
    }

    /// The node needs an object no more. Its memory is let go when the last read into it has come back and those
    /// that were told of it have finished.
    pub fn release(&mut self, key: ObjectKey) {
        self.landings.remove(&key);
        if self.holdings.let_go(key) {
            self.withdraw(key, false);
        }
    }

    fn released(&mut self, key: ObjectKey) {
        if self.holdings.is_let_go(key) {
            self.withdraw(key, false);
        }
        self.found.push(Moved::Released { key });
    }

    /// A run is over: all its objects are forgotten.
    pub fn drop_run(&mut self, run: RunId) {
        self.receiver.drop_run(run, &mut self.effects);
        self.act();
        let landed = self.landings.keys().filter(|key| key.run == run).copied();
        let keys: BTreeSet<ObjectKey> = landed.chain(self.holdings.of_run(run)).collect();
        for key in keys {
            self.landings.remove(&key);
            self.withdraw(key, false);
        }
    }

    /// Asks nodes for an object.
    pub fn ask(&mut self, key: ObjectKey, nodes: &[NodeId]) {
        nodes.iter().for_each(|node| self.tell(*node, &Notice::Want { key }));
    }

    /// Moves everything along, appends what was found, returns when something was or `wait` has passed.
    pub fn poll(&mut self, moved: &mut Vec<Moved>, wait: Duration) -> Result<(), PollError> {
        self.flush();
        let now = self.transport.now();
        let mut wait = if self.found.is_empty() { wait } else { Duration::ZERO };
        if let Some(deadline) = self.deadline() {
            wait = wait.min(Duration::from_micros(deadline.since_us(now)));
        }
        let mut heard = std::mem::take(&mut self.heard);
        self.transport.poll(&mut heard, wait)?;
        for event in heard.drain(..) {
            self.hear(event);
        }
        self.heard = heard;
        let now = self.transport.now();
        if self.receiver.deadline().is_some_and(|deadline| deadline <= now) {
            self.receiver.tick(now, &mut self.effects);
            self.act();
        }
        if self.found.is_empty() {
            self.flush();
        } else {
            // Whoever is told something answers at once and polls again: what there is to say now leaves with the answer.
            self.read_on();
        }
        moved.append(&mut self.found);
        Ok(())
    }

    fn deadline(&self) -> Option<Tick> {
        let redials = self.peers.values().filter(|peer| peer.must_dial()).map(|peer| peer.redial_at);
        let open = self.peers.values().filter(|peer| peer.connection.is_some());
        let acks = open.filter_map(|peer| peer.talk.ack_at());
        redials.chain(acks).chain(self.receiver.deadline()).min()
    }

    fn give(&mut self, event: Event) {
        self.receiver.handle(self.transport.now(), event, &mut self.effects);
        self.act();
    }

    /// Does what the machine says.
    fn act(&mut self) {
        while !self.effects.is_empty() {
            for effect in std::mem::take(&mut self.effects) {
                match effect {
                    Effect::Reserve { key, attempt, bytes } => {
                        self.found.push(Moved::Reserve { key, attempt, bytes });
                    }
                    Effect::Read { ticket, key, attempt, peer, region, offset, at, bytes, deadline } => {
                        let node = NodeId(peer.0);
                        let read =
                            Waiting { ticket, key, attempt, node, region, offset, at, bytes, deadline };
                        self.waiting.push_back(read);
                    }
                    Effect::CancelRead { ticket } => match self.ops.get(&ticket) {
                        Some(op) => self.transport.cancel(*op),
                        None => drop(self.dropped.insert(ticket)),
                    },
                    Effect::Inline { key, attempt, bytes } => {
                        self.found.push(Moved::Inline { key, attempt, bytes });
                    }
                    Effect::Advanced { key, attempt, watermark } => {
                        self.holdings.advance(key, watermark, None);
                        self.found.push(Moved::Advanced { key, attempt, watermark });
                    }
                    Effect::Arrived { key, attempt, size } => {
                        self.holdings.advance(key, size, Some(size));
                        self.found.push(Moved::Arrived { key, attempt, size });
                    }
                    Effect::Void { key, attempt } => {
                        // What was passed on of it is void as well.
                        self.landings.remove(&key);
                        self.withdraw(key, true);
                        self.found.push(Moved::Void { key, attempt });
                    }
                    Effect::Failed { key, why } => {
                        self.landings.remove(&key);
                        self.withdraw(key, false);
                        self.found.push(Moved::Failed { key, why });
                    }
                    Effect::Seek { key } => self.found.push(Moved::Seek { key }),
                    Effect::Relay { key, attempt, nodes } => self.relay(key, attempt, &nodes),
                    Effect::Tell { peer, notice } => {
                        self.tell(NodeId(peer.0), &notice);
                    }
                }
            }
            self.start_reads();
        }
    }

    /// Publishes the copy here, as far as it has come, and announces it onwards.
    fn relay(&mut self, key: ObjectKey, attempt: u32, nodes: &[NodeId]) {
        let Some((_, landing)) = self.landings.get(&key).filter(|(have, _)| *have == attempt) else { return };
        let region = self.regions[&landing.map.segment()];
        if self.holdings.get(key).is_none_or(|publication| publication.attempt < attempt) {
            self.holdings.publish(
                key,
                Publication {
                    attempt,
                    region,
                    offset: landing.extent.offset,
                    capacity_bytes: landing.extent.bytes,
                    size: None,
                    watermark: 0,
                    inline: Vec::new(),
                    keep: Some(Arc::new(landing.clone())),
                },
            );
        }
        self.announce(key, nodes);
    }

    /// Hands waiting reads to the transport, and does what follows from its refusals.
    fn read_on(&mut self) {
        self.start_reads();
        if !self.effects.is_empty() {
            self.act();
        }
    }

    /// Hands waiting reads to the transport, as far as it takes them.
    fn start_reads(&mut self) {
        while let Some(read) = self.waiting.pop_front() {
            if self.dropped.remove(&read.ticket) {
                self.answer(read.ticket, 0, Some(ReadFault::Again));
                continue;
            }
            let landing = self.landings.get(&read.key).filter(|(attempt, _)| *attempt == read.attempt);
            let lease = landing.and_then(|(_, landing)| {
                let offset = landing.extent.offset + read.at;
                let extent = Extent { offset, bytes: read.bytes, ..landing.extent };
                let inside = landing.extent.contains(&extent);
                let lease = Lease::of(&landing.map, extent).ok().filter(|_| inside)?;
                Some(lease.keeping(Arc::new(landing.clone())))
            });
            let Some(into) = lease else {
                // Its memory is gone: the transfer was given up meanwhile.
                self.answer(read.ticket, 0, Some(ReadFault::Again));
                continue;
            };
            let Some(connection) = self.peers.get(&read.node).and_then(|peer| peer.connection) else {
                self.answer(read.ticket, 0, Some(ReadFault::HolderLost));
                continue;
            };
            let (region, offset, deadline) = (read.region, read.offset, read.deadline);
            let op = Op::Read { connection, region, offset, into, deadline, tag: read.ticket.0 };
            match self.transport.submit(op) {
                Ok(op) => drop(self.ops.insert(read.ticket, op)),
                Err(refused) if matches!(refused.why, crate::transport::RefusedWhy::Full { .. }) => {
                    self.waiting.push_front(read);
                    return;
                }
                Err(_) => self.answer(read.ticket, 0, Some(ReadFault::HolderLost)),
            }
        }
    }

    fn answer(&mut self, ticket: Ticket, done_bytes: u64, fault: Option<ReadFault>) {
        let event = Event::Read { ticket, done_bytes, fault };
        self.receiver.handle(self.transport.now(), event, &mut self.effects);
    }

    fn hear(&mut self, event: Heard) {
        match event {
            Heard::Connected { connection, node, epoch, .. } => self.connected(connection, node, epoch),
            Heard::Disconnected { connection, why } => self.disconnected(connection, why),
            Heard::Message { connection, bytes } => match self.connections.get(&connection) {
                Some(node) => self.read(connection, *node, &bytes),
                None => {
                    let early = self.early.entry(connection).or_default();
                    early.push(bytes);
                    if early.len() > EARLY_MAX {
                        self.early.remove(&connection);
                        self.transport.close(connection);
                    }
                }
            },
            Heard::Completed(completion) => self.completed(completion),
        }
    }

    /// A message of an open connection.
    fn read(&mut self, connection: ConnectionId, node: NodeId, bytes: &[u8]) {
        match notice::decode(bytes) {
            Ok(notices) => notices.into_iter().for_each(|notice| self.told(connection, node, notice)),
            Err(error) => self.garbles(connection, node, error),
        }
    }

    fn told(&mut self, connection: ConnectionId, node: NodeId, notice: Notice) {
        match notice {
            Notice::Say { seq, ack, last, bytes } => {
                let now = self.transport.now();
                let peer = self.peers.entry(node).or_default();
                match peer.talk.hear(now, seq, ack, last, &bytes) {
                    Ok(Some(bytes)) => self.found.push(Moved::Said { node, bytes }),
                    Ok(None) => {}
                    Err(error) => self.garbles(connection, node, error),
                }
            }
            Notice::Want { key } => {
                let sealed_or_growing = self.holdings.announce(key, node, Vec::new());
                match sealed_or_growing {
                    Some(notice) => self.tell(node, &notice),
                    None => self.found.push(Moved::Wanted { key, node }),
                }
            }
            Notice::Finished { key } => {
                if self.holdings.finished(key, node) {
                    self.released(key);
                }
            }
            notice => self.give(Event::Notice { peer: PeerId(node.0), notice }),
        }
    }

    fn completed(&mut self, completion: Completion) {
        if completion.lease.is_none() {
            return;
        }
        let ticket = Ticket(completion.tag);
        self.ops.remove(&ticket);
        let fault = completion.result.err().map(|error| match error {
            OpError::Corrupt { .. } => ReadFault::Damaged,
            OpError::Disconnected => ReadFault::HolderLost,
            OpError::Remote(ErrorCode::StaleEpoch(_) | ErrorCode::NoRegion | ErrorCode::OutOfRange(_)) => {
                ReadFault::HolderLost
            }
            OpError::TimedOut { .. } | OpError::Cancelled | OpError::Remote(_) | OpError::Injected => {
                ReadFault::Again
            }
        });
        self.answer(ticket, completion.done_bytes as u64, fault);
        self.act();
    }
}
