//! The protocol over any [`Streams`]: connections made of streams, reads, messages, deadlines.
//!
//! - `state`: what is known about connections, streams and operations;
//! - `greet`: how streams become connections;
//! - `receive`: what comes in: frames, payload straight into its target;
//! - `transmit`: what goes out: batches on the control stream, data on the lanes;
//! - `ending`: deadlines, cancels, and how operations and connections end.
//!
//! On a lane the engine receives exactly one header, and then exactly the payload into the lease of the read it
//! belongs to, so no byte of bulk is copied by us. Small data and messages share buffered reads of the control
//! stream, where one system call for many frames is worth more than the copy.

mod ending;
mod greet;
mod receive;
mod state;
mod transmit;

use super::slab::Slab;
use super::streams::{StreamEvent, StreamId, Streams};
use super::{
    Capabilities, Config, ConnectionId, Epoch, Event, NodeId, Op, OpId, OpenError, Path, PollError, Refused,
    RefusedWhy, Region, Stats, Transport, Wake,
};
use dflow_proto::Tick;
use dflow_proto::wire::handshake::{Dialer, Role};
use dflow_proto::wire::{READ_BYTES_MAX, SMALL_BYTES_MAX, WIRE_MESSAGE_BYTES_MAX};
use dflow_shm::lookout::Lookout;
use dflow_shm::segment::Map;
use state::{Connection, Operation, Phase, Stream, Task};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Where small things come and go at least this often, bulk makes way for them. Microseconds.
const TALK_US: u64 = 2_000;

/// See the [module](self).
pub struct Engine<S: Streams> {
    streams: S,
    config: Config,
    lookout: Lookout,
    capabilities: Capabilities,
    address: Option<SocketAddr>,
    connections: Slab<Connection>,
    sockets: BTreeMap<StreamId, Stream>,
    ops: Slab<Operation>,
    /// Registered segments by index, and how often each index was used.
    regions: Vec<(u32, Option<Arc<Map>>)>,
    /// Connections by the session that their lanes name.
    sessions: BTreeMap<u64, u64>,
    /// The newest incarnation seen of each node.
    epochs: BTreeMap<NodeId, Epoch>,
    /// Connections that have something to send.
    dirty: Vec<u64>,
    /// Found, not yet told.
    found: VecDeque<Event>,
    /// No deadline is earlier than this. Completions do not raise it, so that they need no search.
    deadline_min: Tick,
    incoming: Vec<StreamEvent>,
    /// The time at the last look: reading the clock for each of many small steps would cost more than they do.
    clock: Tick,
    /// When something small went or came last.
    talked: Tick,
    /// In this poll, somebody has called for the polling thread.
    woken: bool,
    /// In this poll, what is watched beside the streams was readable.
    watched: bool,
    stats: Stats,
}

impl<S: Streams> Engine<S> {
    /// Opens a transport, and listens if it is told to.
    pub fn new(mut streams: S, config: Config) -> Result<Engine<S>, OpenError> {
        config.check()?;
        let address = config.listen.map(|address| streams.listen(address)).transpose()?;
        let capabilities = Capabilities {
            name: streams.name(),
            read_bytes_max: READ_BYTES_MAX,
            message_bytes_max: WIRE_MESSAGE_BYTES_MAX,
            one_sided: false,
            direct: true,
            virtual_time: streams.virtual_time(),
            features: streams.features(),
        };
        Ok(Engine {
            streams,
            lookout: Lookout::default(),
            config,
            capabilities,
            address,
            connections: Slab::new(),
            sockets: BTreeMap::new(),
            ops: Slab::new(),
            regions: Vec::new(),
            sessions: BTreeMap::new(),
            epochs: BTreeMap::new(),
            dirty: Vec::new(),
            found: VecDeque::new(),
            deadline_min: Tick(u64::MAX),
            incoming: Vec::new(),
            woken: false,
            watched: false,
            clock: Tick(0),
            talked: Tick(0),
            stats: Stats::default(),
        })
    }

    /// Whether the last poll ended because the watched descriptor was readable.
    #[cfg(feature = "rdma")]
    pub(super) fn was_watched(&self) -> bool {
        self.watched
    }

    /// Whether the last poll ended because of a waker.
    #[cfg(feature = "rdma")]
    pub(super) fn was_woken(&self) -> bool {
        self.woken
    }

    /// What both ends of a connection offered, as bits of `capability`.
    #[cfg(feature = "rdma")]
    pub(super) fn agreed(&self, connection: ConnectionId) -> u32 {
        let agreed = self.connections.get(connection.0).and_then(|c| c.agreed);
        agreed.map_or(0, |agreed| agreed.capabilities)
    }

    /// Ends a connection whose peer misbehaved towards the layer above.
    #[cfg(feature = "rdma")]
    pub(super) fn break_off(&mut self, connection: ConnectionId, why: super::Broken) {
        self.drop_connection(connection.0, why, true);
    }

    /// Random bytes from the streams' surroundings.
    #[cfg(feature = "rdma")]
    pub(super) fn random(&mut self) -> [u8; 32] {
        self.streams.random()
    }

    fn refuse(&mut self, why: RefusedWhy, op: Op) -> Result<OpId, Refused> {
        if matches!(why, RefusedWhy::Full { .. }) {
            self.stats.refused_full += 1;
        }
        Err(Refused { why, op: Box::new(op) })
    }

    /// A deadline has come into the world.
    fn note_deadline(&mut self, at: Tick) {
        self.deadline_min = self.deadline_min.min(at);
    }

    /// `connection` has something to send.
    fn mark(&mut self, connection: u64) {
        if let Some(c) = self.connections.get_mut(connection)
            && !c.dirty
        {
            c.dirty = true;
            self.dirty.push(connection);
        }
    }

    fn dial_stream(&mut self, connection: u64, address: SocketAddr, node: NodeId, role: Role) -> StreamId {
        let nonce = self.streams.random();
        let (dialer, hello) = Dialer::new(self.config.identity(), node, role, nonce);
        let id = self.streams.dial(address);
        let deadline = self.streams.now().after_ms(self.config.handshake_ms_max);
        let lane = match role {
            Role::Control { .. } => 0,
            Role::Lane { lane, .. } => lane,
        };
        let mut stream = Stream::new(Some(connection), lane, Phase::Dialling(dialer), deadline);
        hello.encode(&mut stream.greeting);
        self.sockets.insert(id, stream);
        self.note_deadline(deadline);
        id
    }
}

impl<S: Streams> Transport for Engine<S> {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn now(&self) -> Tick {
        self.streams.now()
    }

    fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    fn register(&mut self, map: &Arc<Map>) -> Region {
        let index = self.regions.iter().position(|(_, map)| map.is_none()).unwrap_or_else(|| {
            self.regions.push((0, None));
            self.regions.len() - 1
        });
        let slot = &mut self.regions[index];
        slot.0 += 1;
        slot.1 = Some(map.clone());
        let (id, generation) = (index as u32, slot.0);
        self.streams.register(map, id);
        Region { id, generation, epoch: self.config.epoch, bytes: map.bytes() }
    }

    fn deregister(&mut self, region: Region) -> bool {
        let slot = self.regions.get_mut(region.id as usize).filter(|slot| slot.0 == region.generation);
        let existed = slot.and_then(|slot| slot.1.take()).is_some();
        if existed {
            self.streams.deregister(region.id);
        }
        existed
    }

    fn connect(&mut self, address: SocketAddr, node: Option<NodeId>, deadline: Tick) -> ConnectionId {
        let node = node.unwrap_or_default();
        let key = self.connections.insert(Connection::new(Some(address), self.config.lanes, deadline));
        let control = self.dial_stream(key, address, node, Role::Control { lanes: self.config.lanes });
        let connection = self.connections.get_mut(key).expect("inserted above");
        connection.streams.push(control);
        connection.wanted = node;
        self.note_deadline(deadline);
        ConnectionId(key)
    }

    fn submit(&mut self, op: Op) -> Result<OpId, Refused> {
        let (connection, bytes, max, deadline) = match &op {
            Op::Read { connection, into, deadline, .. } => {
                (connection.0, into.bytes(), READ_BYTES_MAX, *deadline)
            }
            Op::Send { connection, message, deadline, .. } => {
                (connection.0, message.len(), WIRE_MESSAGE_BYTES_MAX, *deadline)
            }
        };
        if bytes > max {
            return self.refuse(RefusedWhy::TooLong { bytes, max }, op);
        }
        if self.ops.len() >= self.config.ops_max {
            return self.refuse(RefusedWhy::Full { ops: self.ops.len() }, op);
        }
        if !self.connections.get(connection).is_some_and(Connection::is_open) {
            return self.refuse(RefusedWhy::NotConnected, op);
        }
        let (operation, is_read) = match op {
            Op::Read { region, offset, into, tag, .. } => {
                let task = Task::Read { region, offset, lease: Some(into) };
                (Operation::new(connection, tag, deadline, bytes, task), true)
            }
            Op::Send { message, tag, .. } => {
                (Operation::new(connection, tag, deadline, bytes, Task::Send { message }), false)
            }
        };
        let key = self.ops.insert(operation);
        let c = self.connections.get_mut(connection).expect("looked up above");
        if is_read {
            c.requests.push_back(key)
        } else {
            c.messages.push_back(key)
        }
        c.ops.insert(key);
        self.stats.accepted += 1;
        self.note_deadline(deadline);
        self.mark(connection);
        Ok(OpId(key))
    }

    fn cancel(&mut self, op: OpId) {
        self.stop_operation(op.0, super::OpError::Cancelled);
    }

    fn poll(&mut self, events: &mut Vec<Event>, wait: Duration) -> Result<(), PollError> {
        (self.woken, self.watched) = (false, false);
        self.clock = self.streams.now();
        let until = self.clock.0.saturating_add(wait.as_micros() as u64);
        let spin = Duration::from_micros(self.config.spin_us).min(wait);
        self.lookout.begin(spin);
        loop {
            self.expire();
            self.flush();
            let now = self.clock.0;
            let mut timeout = Duration::ZERO;
            if self.found.is_empty() && !self.lookout.again() {
                timeout = Duration::from_micros(until.min(self.deadline_min.0).saturating_sub(now));
            }
            self.streams.cut(self.clock.since_us(self.talked) < TALK_US);
            let mut incoming = std::mem::take(&mut self.incoming);
            self.streams.wait(&mut incoming, timeout)?;
            self.clock = self.streams.now();
            if !incoming.is_empty() {
                // What serves peers never returns to the caller: activity, not the call, begins the looking anew.
                self.lookout.begin(spin);
            }
            for event in incoming.drain(..) {
                self.take_in(event);
            }
            self.incoming = incoming;
            if self.woken || self.watched || !self.found.is_empty() {
                break;
            }
            // In virtual time every wait is one step, so that other endpoints take theirs.
            let stepped = self.capabilities.virtual_time && self.dirty.is_empty();
            if stepped || self.clock.0 >= until && self.dirty.is_empty() {
                break;
            }
        }
        // Answers to what has just come in leave now, not when the caller polls next.
        self.flush();
        events.extend(self.found.drain(..));
        Ok(())
    }

    fn close(&mut self, connection: ConnectionId) {
        self.say_goodbye(connection.0);
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.streams.waker()
    }

    fn watch(&mut self, fd: OwnedFd) -> Result<(), OpenError> {
        self.streams.watch(fd)
    }

    fn sever(&mut self, connection: ConnectionId, after_bytes: u64) {
        match self.connections.get_mut(connection.0) {
            Some(_) if after_bytes == 0 => self.drop_connection(connection.0, super::Broken::Severed, true),
            Some(c) => {
                c.sever_after = Some(after_bytes);
                // Receives under way were posted without that limit.
                c.streams.iter().for_each(|stream| self.streams.interrupt(*stream));
            }
            None => {}
        }
    }

    fn path(&self, connection: ConnectionId) -> Option<Path> {
        let stream_bytes = self.connections.get(connection.0)?.read_bytes;
        let why = self.capabilities.features.join(", ");
        Some(Path { transport: self.capabilities.name, why, rdma_bytes: 0, stream_bytes })
    }

    fn stats(&self) -> Stats {
        Stats { ops: self.ops.len(), connections: self.connections.len(), ..self.stats }
    }
}

/// Whether a read of so many bytes is answered on the control stream.
const fn is_small(bytes: usize) -> bool {
    bytes <= SMALL_BYTES_MAX
}
