//! The driver.

use super::Moved;
use super::holding::{Holdings, Publication};
use crate::transport::{
    Completion, ConnectionId, Event as Heard, Lease, NodeId, Op, OpError, OpId, PollError, Region, Stats,
    Transport, Wake,
};
use dflow_proto::Tick;
use dflow_proto::ids::{Extent, ObjectKey, RunId, SegmentId};
use dflow_proto::transfer::{
    Effect, Effects, Event, PeerId, ReadFault, Receiver, Ticket, TransferLimits, relay_plan,
};
use dflow_proto::wire::notice::{self, Notice};
use dflow_proto::wire::{ErrorCode, WIRE_MESSAGE_BYTES_MAX};
use dflow_shm::segment::Map;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long a connection attempt may take. Milliseconds.
const CONNECT_MS_MAX: u64 = 3_000;
/// How long after a failed attempt the next one begins. Milliseconds.
const RECONNECT_MS: u64 = 100;
/// How long a message may take to leave. Milliseconds.
const SEND_MS_MAX: u64 = 30_000;
/// Bytes of notices that wait for one peer; one that lets more gather is cut off and finds out by asking.
const OUTBOX_BYTES_MAX: usize = 64 << 20;

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

#[derive(Default)]
struct Peer {
    address: Option<SocketAddr>,
    connection: Option<ConnectionId>,
    dialling: Option<ConnectionId>,
    /// Not before then.
    redial_at: Tick,
    /// Encoded notices that wait for a connection, or for room in the transport.
    outbox: VecDeque<Vec<u8>>,
    outbox_bytes: usize,
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

    /// The transport, to look at.
    pub fn transport(&self) -> &T {
        &self.transport
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

    /// Says where a node is. It is dialled when there is something to tell it.
    pub fn add_peer(&mut self, node: NodeId, address: SocketAddr) {
        self.peers.entry(node).or_default().address = Some(address);
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

    /// The node needs an object no more, and peers must find it elsewhere. Its memory is let go when the last
    /// read into it has come back.
    pub fn release(&mut self, key: ObjectKey) {
        self.landings.remove(&key);
        self.withdraw(key, false);
    }

    /// A run is over: all its objects are forgotten.
    pub fn drop_run(&mut self, run: RunId) {
        self.receiver.drop_run(run, &mut self.effects);
        self.act();
        let landed = self.landings.keys().filter(|key| key.run == run).copied();
        let keys: BTreeSet<ObjectKey> = landed.chain(self.holdings.of_run(run)).collect();
        keys.into_iter().for_each(|key| self.release(key));
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
        self.flush();
        moved.append(&mut self.found);
        Ok(())
    }

    fn deadline(&self) -> Option<Tick> {
        let redials = self.peers.values().filter(|peer| peer.must_dial()).map(|peer| peer.redial_at);
        redials.chain(self.receiver.deadline()).min()
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
            Heard::Connected { connection, node, .. } => {
                self.connections.insert(connection, node);
                let peer = self.peers.entry(node).or_default();
                if peer.dialling == Some(connection) {
                    peer.dialling = None;
                }
                // Of two that were dialled at once the first stays in use: notices keep their order only within
                // one connection.
                let first = peer.connection.is_none();
                peer.connection.get_or_insert(connection);
                if first {
                    self.found.push(Moved::Up { node });
                }
            }
            Heard::Disconnected { connection, why } => self.disconnected(connection, why),
            Heard::Message { connection, bytes } => {
                let Some(node) = self.connections.get(&connection).copied() else { return };
                match notice::decode(&bytes) {
                    Ok(notices) => {
                        for notice in notices {
                            self.told(node, notice);
                        }
                    }
                    // A peer that garbles its notices is not believed any more; nothing else is harmed.
                    Err(error) => {
                        tracing::warn!(node = node.0, %error, "closing a connection that garbles");
                        self.transport.close(connection);
                    }
                }
            }
            Heard::Completed(completion) => self.completed(completion),
        }
    }

    fn told(&mut self, node: NodeId, notice: Notice) {
        match notice {
            Notice::Want { key } => {
                let sealed_or_growing = self.holdings.announce(key, node, Vec::new());
                match sealed_or_growing {
                    Some(notice) => self.tell(node, &notice),
                    None => self.found.push(Moved::Wanted { key, node }),
                }
            }
            Notice::Finished { key } => {
                if self.holdings.finished(key, node) {
                    self.found.push(Moved::Released { key });
                }
            }
            notice => self.give(Event::Notice { peer: PeerId(node.0), notice }),
        }
    }

    fn disconnected(&mut self, connection: ConnectionId, why: crate::transport::Broken) {
        let now = self.transport.now();
        let known = self.connections.remove(&connection);
        let dialled = self.peers.iter().find(|(_, peer)| peer.dialling == Some(connection));
        let Some(node) = known.or(dialled.map(|(node, _)| *node)) else { return };
        // Notices that were on their way are lost, also if another connection to that node is left (both ends may
        // have dialled): what it holds is asked for anew.
        self.give(Event::PeerGone { peer: PeerId(node.0) });
        let other = self.connections.iter().find(|(_, other)| **other == node).map(|(id, _)| *id);
        let peer = self.peers.entry(node).or_default();
        if peer.dialling == Some(connection) {
            peer.dialling = None;
            peer.redial_at = now.after_ms(RECONNECT_MS);
        }
        if peer.connection == Some(connection) {
            peer.connection = other;
            if other.is_none() {
                for key in self.holdings.lose(node) {
                    self.found.push(Moved::Released { key });
                }
                self.found.push(Moved::Down { node, why });
            }
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

    /// Queues a notice for a node, joined with others that wait.
    fn tell(&mut self, node: NodeId, notice: &Notice) {
        let peer = self.peers.entry(node).or_default();
        if peer.outbox_bytes > OUTBOX_BYTES_MAX {
            return;
        }
        let mut bytes = Vec::new();
        notice.encode(&mut bytes);
        peer.outbox_bytes += bytes.len();
        match peer.outbox.back_mut() {
            Some(last) if last.len() + bytes.len() <= WIRE_MESSAGE_BYTES_MAX / 2 => last.append(&mut bytes),
            _ => peer.outbox.push_back(bytes),
        }
    }

    /// Sends what waits, dials where it must.
    fn flush(&mut self) {
        self.start_reads();
        if !self.effects.is_empty() {
            self.act();
        }
        for (node, notice) in self.holdings.news() {
            self.tell(node, &notice);
        }
        let now = self.transport.now();
        for (node, peer) in &mut self.peers {
            if peer.must_dial()
                && peer.redial_at <= now
                && let Some(address) = peer.address
            {
                let deadline = now.after_ms(CONNECT_MS_MAX);
                peer.dialling = Some(self.transport.connect(address, Some(*node), deadline));
            }
            let Some(connection) = peer.connection else { continue };
            while let Some(message) = peer.outbox.pop_front() {
                let bytes = message.len();
                let op = Op::Send { connection, message, deadline: now.after_ms(SEND_MS_MAX), tag: 0 };
                match self.transport.submit(op) {
                    Ok(_) => peer.outbox_bytes -= bytes,
                    Err(refused) => {
                        if let Op::Send { message, .. } = *refused.op {
                            peer.outbox.push_front(message);
                        }
                        break;
                    }
                }
            }
        }
    }
}

impl Peer {
    fn must_dial(&self) -> bool {
        self.connection.is_none()
            && self.dialling.is_none()
            && !self.outbox.is_empty()
            && self.address.is_some()
    }
}
