//! The laws of transports (`dflow_dataplane::transport`), as tests that any implementation can be held to.
//!
//! A [`World`] makes endpoints that can reach each other. Every law is a function over a [`Bed`], a few nodes in
//! one thread; [`laws`] and [`faults`] list them. A new backend passes when it runs them all unchanged.

pub mod faults;
pub mod forbid;
#[cfg(feature = "rdma")]
pub mod forge;
pub mod laws;
pub mod raw;
pub mod worlds;

use dflow_dataplane::transport::streams::Streams;
use dflow_dataplane::transport::{
    Completion, Config, ConnectionId, Epoch, Event, Lease, NodeId, Op, OpId, Region, Secret, Transport,
};
use dflow_proto::Tick;
use dflow_proto::ids::{Extent, SegmentId};
use dflow_shm::segment::{Map, Segment};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A network with a kind of transport on it.
pub trait World {
    /// The transport under test.
    type T: Transport;
    /// Bare streams on the same network, for peers that do not keep to the protocol.
    type Raw: Streams;
    /// A transport that listens.
    fn open(&mut self, config: Config) -> Self::T;
    /// Bare streams.
    fn raw(&mut self) -> Self::Raw;
    /// Where to listen: any free address that the others can reach.
    fn any_address(&self) -> SocketAddr;
}

/// Bytes of each node's segment: what its peers read, and room to read into.
pub const SEGMENT_BYTES: u64 = ROOM + (52 << 20);
/// Where the room begins.
pub const ROOM: u64 = 20 << 20;
/// No law takes longer, in the transport's own time.
const PATIENCE_MS: u64 = 60_000;

/// The byte at `offset` of node `node`'s segment.
pub fn expected(node: u64, offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ (offset >> 12) as u8 ^ node as u8
}

/// One node of a bed: a transport and a segment full of [`expected`] bytes.
pub struct Node<T> {
    /// Under test.
    pub transport: T,
    /// Its number.
    pub id: NodeId,
    /// Its segment.
    pub map: Arc<Map>,
    /// The segment's registration.
    pub region: Region,
    /// Connections that are open, and with whom.
    pub connected: BTreeMap<ConnectionId, NodeId>,
    /// Connections that ended, and why.
    pub disconnected: BTreeMap<ConnectionId, dflow_dataplane::transport::Broken>,
    /// What was completed, in order.
    pub completions: Vec<Completion>,
    /// What was received, in order.
    pub messages: Vec<(ConnectionId, Vec<u8>)>,
    /// The extent of the lease of each read under way.
    pub leased: BTreeMap<OpId, Extent>,
    accepted: u64,
    completed: u64,
}

impl<T: Transport> Node<T> {
    /// `ms` milliseconds from now.
    pub fn in_ms(&self, ms: u64) -> Tick {
        self.transport.now().after_ms(ms)
    }

    /// A lease of `bytes` bytes at `at` of the room.
    pub fn room(&self, at: u64, bytes: u64) -> Lease {
        let extent = Extent { segment: self.map.segment(), offset: ROOM + at, bytes };
        Lease::of(&self.map, extent).expect("the room is large enough")
    }

    /// Submits; panics if it is refused.
    pub fn submit(&mut self, op: Op) -> OpId {
        self.try_submit(op).expect("there is room for an operation")
    }

    /// Submits, and counts it if it is accepted.
    pub fn try_submit(&mut self, op: Op) -> Result<OpId, dflow_dataplane::transport::Refused> {
        let extent = match &op {
            Op::Read { into, .. } => Some(into.extent()),
            Op::Send { .. } => None,
        };
        let id = self.transport.submit(op)?;
        self.accepted += 1;
        if let Some(extent) = extent {
            let double = self.leased.insert(id, extent);
            assert!(double.is_none(), "an operation's number is used twice");
        }
        Ok(id)
    }

    /// Reads `bytes` at `offset` of `region` into `at` of the room.
    pub fn read(
        &mut self,
        connection: ConnectionId,
        region: Region,
        offset: u64,
        at: u64,
        bytes: u64,
    ) -> OpId {
        let (into, deadline) = (self.room(at, bytes), self.in_ms(PATIENCE_MS));
        self.submit(Op::Read { connection, region, offset, into, deadline, tag: offset })
    }

    /// Sends a message.
    pub fn send(&mut self, connection: ConnectionId, message: Vec<u8>) -> OpId {
        let deadline = self.in_ms(PATIENCE_MS);
        self.submit(Op::Send { connection, message, deadline, tag: 0 })
    }

    /// Whether anything was found. Holds the laws that can be seen from outside.
    fn poll(&mut self, wait: Duration) -> bool {
        let mut events = Vec::new();
        self.transport.poll(&mut events, wait).expect("the event queue works");
        let found = !events.is_empty();
        for event in events {
            self.take(event);
        }
        found
    }

    fn take(&mut self, event: Event) {
        let of = |connection: &ConnectionId, disconnected: &BTreeMap<_, _>| {
            assert!(!disconnected.contains_key(connection), "law 9: {connection:?} was at its end");
        };
        match event {
            Event::Connected { connection, node, .. } => {
                of(&connection, &self.disconnected);
                let double = self.connected.insert(connection, node);
                assert!(double.is_none(), "{connection:?} is connected twice");
            }
            Event::Disconnected { connection, why } => {
                of(&connection, &self.disconnected);
                self.connected.remove(&connection);
                self.disconnected.insert(connection, why);
            }
            Event::Message { connection, bytes } => {
                of(&connection, &self.disconnected);
                assert!(self.connected.contains_key(&connection), "law 9: {connection:?} had not begun");
                self.messages.push((connection, bytes));
            }
            Event::Completed(completion) => {
                of(&completion.connection, &self.disconnected);
                self.completed += 1;
                if let Some(lease) = &completion.lease {
                    let extent = self.leased.remove(&completion.op);
                    assert_eq!(extent, Some(lease.extent()), "law 1 and 2: once, and with its own lease");
                    assert!(completion.done_bytes <= lease.bytes());
                    if completion.result.is_ok() {
                        assert_eq!(completion.done_bytes, lease.bytes());
                    }
                }
                self.completions.push(completion);
            }
        }
    }

    /// Operations that have not completed.
    pub fn under_way(&self) -> u64 {
        self.accepted - self.completed
    }

    /// The node at the other end of `connection`.
    pub fn peer(&self, connection: ConnectionId) -> Option<NodeId> {
        self.connected.get(&connection).copied()
    }

    /// An open connection to `node`.
    pub fn connection_to(&self, node: NodeId) -> Option<ConnectionId> {
        self.connected.iter().find(|(_, peer)| **peer == node).map(|(connection, _)| *connection)
    }
}

/// Panics unless `completion` was a success that brought the bytes of `node` from `offset` on.
pub fn assert_read(completion: &Completion, node: NodeId, offset: u64) {
    assert_eq!(completion.result, Ok(()), "read at {offset}");
    assert_bytes(completion.lease.as_ref().expect("a read has a lease"), node, offset, completion.done_bytes);
}

/// Panics unless the first `bytes` of `lease` are those of `node` from `offset` on.
pub fn assert_bytes(lease: &Lease, node: NodeId, offset: u64, bytes: usize) {
    let mut have = vec![0; bytes];
    lease.copy_out(0, &mut have);
    let wrong = have.iter().zip(offset..).position(|(have, at)| *have != expected(node.0, at));
    assert_eq!(wrong, None, "law 3: first wrong byte of {bytes} read at {offset} of {node:?}");
}

/// Nodes in one thread.
pub struct Bed<W: World> {
    /// Their network.
    pub world: W,
    /// By index; node `i` has the id `i + 1`.
    pub nodes: Vec<Node<W::T>>,
}

impl<W: World> Bed<W> {
    /// `count` nodes with configurations that `adjust` has seen.
    pub fn new(world: W, count: u64, adjust: impl Fn(&mut Config)) -> Bed<W> {
        let mut bed = Bed { world, nodes: Vec::new() };
        for id in 1..=count {
            let mut config = bed.config(id);
            adjust(&mut config);
            bed.add(config);
        }
        bed
    }

    /// A configuration that fits the others.
    pub fn config(&self, node: u64) -> Config {
        let mut config = Config::new("conformance", NodeId(node), Epoch(7), Secret::new("for tests"));
        config.listen = Some(self.world.any_address());
        config
    }

    /// One more node; answers its index.
    pub fn add(&mut self, config: Config) -> usize {
        let id = config.node;
        let mut transport = self.world.open(config);
        let segment = Segment::create(SegmentId(id.0 as u32), "conformance", SEGMENT_BYTES).expect("a memfd");
        let map = segment.map_node().expect("maps");
        let own = Extent { segment: map.segment(), offset: 0, bytes: ROOM };
        let part = map.part_mut(own).expect("inside");
        let mut bytes = vec![0; 1 << 20];
        for at in (0..ROOM).step_by(bytes.len()) {
            bytes.iter_mut().zip(at..).for_each(|(byte, at)| *byte = expected(id.0, at));
            part.copy_in(at as usize, &bytes);
        }
        let region = transport.register(&map);
        self.nodes.push(Node {
            transport,
            id,
            map,
            region,
            connected: BTreeMap::new(),
            disconnected: BTreeMap::new(),
            completions: Vec::new(),
            messages: Vec::new(),
            leased: BTreeMap::new(),
            accepted: 0,
            completed: 0,
        });
        self.nodes.len() - 1
    }

    /// Polls all nodes until `done`; panics after a minute of their time.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&Bed<W>) -> bool) {
        self.until_without(what, usize::MAX, |bed| done(bed));
    }

    /// The same while node `frozen` is not polled, as if its process were stopped.
    pub fn until_without(&mut self, what: &str, frozen: usize, mut done: impl FnMut(&Bed<W>) -> bool) {
        let witness = usize::from(frozen == 0);
        let give_up = self.nodes[witness].in_ms(PATIENCE_MS);
        while !done(self) {
            self.step(frozen);
            assert!(self.nodes[witness].transport.now() < give_up, "did not happen: {what}");
        }
    }

    /// Polls each node but `frozen` once, and sleeps a little if there was nothing to do.
    fn step(&mut self, frozen: usize) {
        let mut found = false;
        for index in (0..self.nodes.len()).filter(|index| *index != frozen) {
            found |= self.nodes[index].poll(Duration::ZERO);
        }
        if !found {
            self.nodes[usize::from(frozen == 0)].poll(Duration::from_micros(100));
        }
    }

    /// Lets `ms` milliseconds pass.
    pub fn pass(&mut self, ms: u64) {
        let until = self.nodes[0].in_ms(ms);
        self.until("time passes", |bed| bed.nodes[0].transport.now() >= until);
    }

    /// Connects node `from` to node `to`; panics if that fails.
    pub fn connect(&mut self, from: usize, to: usize) -> ConnectionId {
        let address = self.nodes[to].transport.address().expect("all nodes listen");
        let (peer, deadline) = (self.nodes[to].id, self.nodes[from].in_ms(PATIENCE_MS));
        let own = self.nodes[from].id;
        let before: Vec<_> = self.nodes[to].connected.keys().copied().collect();
        let connection = self.nodes[from].transport.connect(address, Some(peer), deadline);
        self.until("connected", |bed| {
            let why = bed.nodes[from].disconnected.get(&connection);
            assert_eq!(why, None, "cannot connect");
            bed.nodes[from].connected.contains_key(&connection)
                && bed.nodes[to].connected.keys().any(|known| !before.contains(known))
        });
        assert_eq!(self.nodes[from].peer(connection), Some(peer));
        assert!(self.nodes[to].connection_to(own).is_some());
        connection
    }

    /// Tries to connect; answers why it failed.
    pub fn fail_to_connect(
        &mut self,
        from: usize,
        address: SocketAddr,
        ms: u64,
    ) -> dflow_dataplane::transport::Broken {
        let deadline = self.nodes[from].in_ms(ms);
        let connection = self.nodes[from].transport.connect(address, None, deadline);
        self.until("refused", |bed| bed.nodes[from].disconnected.contains_key(&connection));
        self.nodes[from].disconnected[&connection].clone()
    }

    /// Polls until node `node` has nothing under way, and takes what it completed.
    pub fn settle(&mut self, node: usize) -> Vec<Completion> {
        self.until("all operations complete", |bed| bed.nodes[node].under_way() == 0);
        assert!(self.nodes[node].leased.is_empty());
        std::mem::take(&mut self.nodes[node].completions)
    }

    /// Node `index`'s region.
    pub fn region(&self, index: usize) -> Region {
        self.nodes[index].region
    }
}
