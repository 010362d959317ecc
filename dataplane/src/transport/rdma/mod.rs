//! RDMA beside streams: each connection is one of the [`Engine`]'s, and, where both ends have cards that reach each
//! other, a link of one queue pair or several, its lanes.
//!
//! The streams carry what they carry best and what must not break: the handshake, liveness, the exchange of queue
//! pairs and keys (`pairing` of the wire protocol), and all data whenever RDMA is absent or broken. The queue
//! pairs carry reads, one-sided, straight from the owner's segment into the lease, and messages that fit a receive
//! buffer. A large read is cut into pieces, each of which goes over the lane that has the least to do. So the choice of what carries the data is made for each peer, tested with a probe before data depends on
//! it, and revised while operations are under way: what the cards did not bring of a read, the streams do.
//!
//! - `discover`, `survey`: which cards, ports and addresses, and why;
//! - `library`, `card`, `queue`, `window`: libibverbs, and all that is unsafe; [`bare`]: them alone, to be measured;
//! - `link`: how far a connection is on its way to RDMA, as a pure state machine; `lane`: what it goes over, and which
//!   ports are put together;
//! - `pair`: what the two ends say about it; `carry`: operations and their completions; `ending`: deadlines, cancels,
//!   and what happens when a link, a connection or a card ends.
//!
//! A connection is told to the application when it is decided what carries its data, so that the first read goes
//! the right way.
//!
//! One thread does everything. It looks for completions without a system call while it is busy; before it sleeps it
//! asks the cards to be woken, through the one descriptor that the streams watch beside their own.

pub mod bare;
mod card;
mod carry;
pub mod discover;
mod ending;
mod error;
mod lane;
mod library;
mod link;
mod pair;
mod queue;
mod state;
mod survey;
mod window;

pub use error::CardError;

use super::engine::Engine;
use super::slab::Slab;
use super::streams::Streams;
use super::{
    Capabilities, Config, ConnectionId, Event, NodeId, Op, OpError, OpId, OpenError, Path, PollError,
    Refused, RefusedWhy, Region, Stats, Transport, Wake,
};
use card::{Card, Done, Purpose, RECEIVES, Waking};
use dflow_proto::Tick;
use dflow_proto::ids::SegmentId;
use dflow_proto::wire::capability;
use dflow_proto::wire::pairing::{LANES_MAX, MESSAGE_PREFIX_BYTES};
use dflow_proto::wire::{READ_BYTES_MAX, WIRE_MESSAGE_BYTES_MAX};
use dflow_shm::lookout::Lookout;
use dflow_shm::segment::Map;
use discover::{Choice, Device};
use lane::PerCard;
use rustix::event::epoll::{self, EventData, EventFlags};
use state::{Local, Operation, Peer};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A receive buffer: holds an announcement with a value of a few KiB. Longer messages go over the streams.
const BUFFER_BYTES: usize = 8 << 10;
/// Waits that have lately been shorter than this are spent looking for completions instead of asleep: going to
/// sleep and being woken costs about as much. Microseconds.
const SPIN_US_MAX: u64 = 50;
/// While no more messages than these are under way, and nothing else, that they have arrived wakes nobody: an answer, which does, is
/// more likely to come. It is looked for after [`REPORT_LATE`].
const SENT_FEW: usize = 4;
/// How late it may be noticed that a message has left.
const REPORT_LATE: Duration = Duration::from_millis(2);
/// While completions keep waking us, what happens to the cards themselves is looked at once in so many times.
const EVENTS_EVERY: u32 = 16;

/// The cards of this host. No card, or no RDMA at all, is an error that says what is missing.
pub fn survey() -> Result<Vec<Device>, CardError> {
    survey::survey().map_err(CardError::None)
}

/// The ports that a transport with this configuration uses, and why; or why none.
pub fn look(listen: Option<IpAddr>, wish: Option<&str>) -> Result<Choice, CardError> {
    // An address belongs to this host, as this network namespace sees it, if a socket can have it.
    let is_local = |ip: IpAddr| UdpSocket::bind((ip, 0)).is_ok();
    discover::choose(&survey()?, wish, listen, &is_local).map_err(CardError::None)
}

/// Opens `choice` and registers `map` with each of its ports, as a node does at its start; answers how long that took.
pub fn try_out(choice: &Choice, map: &Arc<Map>) -> Result<Duration, CardError> {
    let mut took = Duration::ZERO;
    for port in &choice.ports {
        let card = Card::open(port, [0; 32], &Rc::default(), RECEIVES)?;
        let begin = Instant::now();
        card.register(map, Purpose::Read)?;
        took += begin.elapsed();
    }
    Ok(took)
}

/// See the [module](self).
pub struct Rdma<S: Streams> {
    engine: Engine<S>,
    config: Config,
    capabilities: Capabilities,
    /// Those that are open. A card keeps its place for as long as it is.
    cards: PerCard<Card>,
    /// How many there were at the start: while there are fewer, the others are looked for.
    cards_wanted: usize,
    /// Why there is no card, while there is none.
    card_why: String,
    /// When to look for cards again, and how often that failed.
    reopen_at: Tick,
    reopen_failures: u32,
    /// Readable when a card has news or the caller's descriptor is readable; watched by the streams.
    news: OwnedFd,
    /// The caller's descriptor.
    callers: Option<OwnedFd>,
    armed: Waking,
    /// Times that completions have woken us.
    wakes: u32,
    regions: BTreeMap<(u32, u32), Local>,
    by_segment: BTreeMap<SegmentId, (u32, u32)>,
    peers: BTreeMap<ConnectionId, Peer>,
    /// Connections by card and number of their queue pairs, and by mark, with the lane.
    numbers: BTreeMap<(usize, u32), ConnectionId>,
    marks: BTreeMap<u64, (ConnectionId, usize)>,
    mark_next: u64,
    ops: Slab<Operation>,
    /// Accepted and not completed.
    live: usize,
    /// Operations that wait for room in the streams, in order.
    overflow: VecDeque<u64>,
    found: VecDeque<Event>,
    deadline_min: Tick,
    done: Vec<Done>,
    heard: Vec<Event>,
    lookout: Lookout,
    /// Smoothed length of the waits that a completion ended, in microseconds. `None` where spinning cannot pay.
    wait_us: Option<u64>,
    stats: Stats,
    /// How often memory was registered with a card.
    registrations: Rc<Cell<u64>>,
}

impl<S: Streams> Rdma<S> {
    /// Opens the cards of `choice` beside `streams`; one of them is enough.
    pub fn new(streams: S, mut config: Config, choice: &Choice) -> Result<Rdma<S>, OpenError> {
        config.offers |= capability::RDMA;
        let os = |what| move |source: rustix::io::Errno| OpenError::Os { what, source: source.into() };
        // Looking is done here, where completions are seen, too.
        let mut engine = Engine::new(streams, Config { spin_us: 0, ..config.clone() })?;
        let registrations = Rc::default();
        let (mut opened, mut refused) = (Vec::new(), None);
        for port in choice.ports.iter().take(LANES_MAX) {
            match Card::open(port, engine.random(), &registrations, RECEIVES) {
                Ok(card) => opened.push(card),
                Err(error) => {
                    tracing::warn!(device = port.device, port = port.port, %error, "not used for RDMA");
                    refused = refused.or(Some(error));
                }
            }
        }
        if opened.is_empty() {
            return Err(refused.unwrap_or_else(|| CardError::None("no port was chosen".to_owned())).into());
        }
        let news = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(os("create an epoll"))?;
        let copy = rustix::io::fcntl_dupfd_cloexec(&news, 3).map_err(os("copy a descriptor"))?;
        engine.watch(copy)?;
        let mut features = engine.capabilities().features.clone();
        features.splice(0..0, opened.iter().map(|card| card.choice.to_string()));
        let capabilities = Capabilities {
            name: "rdma",
            one_sided: true,
            message_bytes_max: WIRE_MESSAGE_BYTES_MAX - MESSAGE_PREFIX_BYTES,
            features,
            ..engine.capabilities().clone()
        };
        // With one processor, looking keeps whoever is waited for from running.
        let alone = std::thread::available_parallelism().map_or(1, usize::from) == 1;
        let mut rdma = Rdma {
            engine,
            config,
            capabilities,
            cards: [const { None }; LANES_MAX],
            cards_wanted: opened.len(),
            card_why: String::new(),
            reopen_at: Tick(0),
            reopen_failures: 0,
            news,
            callers: None,
            armed: Waking::Never,
            wakes: 0,
            regions: BTreeMap::new(),
            by_segment: BTreeMap::new(),
            peers: BTreeMap::new(),
            numbers: BTreeMap::new(),
            marks: BTreeMap::new(),
            mark_next: 1 << 32,
            ops: Slab::new(),
            live: 0,
            overflow: VecDeque::new(),
            found: VecDeque::new(),
            deadline_min: Tick(u64::MAX),
            done: Vec::new(),
            heard: Vec::new(),
            lookout: Lookout::default(),
            wait_us: (!alone).then_some(0),
            stats: Stats::default(),
            registrations,
        };
        for (place, card) in opened.into_iter().enumerate() {
            rdma.adopt(place, card).map_err(|source| OpenError::Os { what: "watch the card", source })?;
        }
        Ok(rdma)
    }

    /// A card is open: be woken by it, and register with it what there is.
    fn adopt(&mut self, place: usize, card: Card) -> std::io::Result<()> {
        for fd in card.descriptors() {
            epoll::add(&self.news, fd, EventData::new_u64(0), EventFlags::IN)?;
        }
        for local in self.regions.values_mut() {
            local.memories[place] = register(&card, &local.map);
        }
        self.armed = Waking::Never;
        self.cards[place] = Some(card);
        Ok(())
    }

    fn cards_open(&self) -> usize {
        self.cards.iter().flatten().count()
    }

    /// Bytes of this process that RDMA takes for one connection, beside what all share; without what the card's driver
    /// keeps for its queue pair.
    pub fn link_bytes(&self, connection: ConnectionId) -> Option<usize> {
        self.peers.get(&connection).map(Peer::bytes)
    }

    fn note_deadline(&mut self, at: Tick) {
        self.deadline_min = self.deadline_min.min(at);
    }

    fn is_open(&self, connection: ConnectionId) -> bool {
        self.peers.get(&connection).is_some_and(|peer| peer.told && !peer.closing)
    }

    /// Looks at what the cards have, and moves everything along. Whether there was anything.
    fn progress(&mut self) -> bool {
        let any = self.harvest();
        self.expire();
        self.pump_overflow();
        any
    }

    /// Asks to be woken by the cards; for how long it is safe to sleep: not at all if something came meanwhile.
    fn sleep_max(&mut self) -> Duration {
        let (outstanding, messages) = self
            .cards
            .iter()
            .flatten()
            .fold((0, 0), |(all, sent), card| (all + card.outstanding, sent + card.messages));
        let only_sent = messages > 0 && messages == outstanding && messages <= SENT_FEW;
        let wanted = if only_sent { Waking::Arrivals } else { Waking::All };
        if self.armed < wanted && self.cards_open() > 0 {
            self.cards.iter().flatten().for_each(|card| card.arm(wanted));
            self.armed = wanted;
            // What completed before a card was armed wakes nobody.
            if self.harvest() {
                return Duration::ZERO;
            }
        }
        if only_sent { REPORT_LATE } else { Duration::MAX }
    }

    /// Takes the news that have woken us; `true` if they are none of the cards', so of the caller's descriptor. What is
    /// not taken stays readable, and ends the next sleep.
    fn take_news(&mut self) -> bool {
        let mut woken = false;
        for card in self.cards.iter().flatten() {
            woken |= card.take_wake();
        }
        self.wakes = self.wakes.wrapping_add(u32::from(woken));
        if woken {
            self.armed = Waking::Never;
        }
        // Completions come often and events hardly ever: to look for them each time would be a system call in vain.
        if woken && !self.wakes.is_multiple_of(EVENTS_EVERY) {
            return false;
        }
        let mut none = !woken;
        for place in 0..LANES_MAX {
            while let Some(event) = self.cards[place].as_ref().and_then(Card::event) {
                none = false;
                self.card_event(place, event);
            }
        }
        none
    }

    /// How long to look before sleeping: as long as waits have lately taken, if that was short.
    fn spin_us(&self) -> u64 {
        let busy = self.cards.iter().flatten().any(|card| card.outstanding > 0);
        match self.wait_us {
            Some(wait_us) if busy && wait_us <= SPIN_US_MAX => 2 * wait_us.max(5),
            _ => self.config.spin_us,
        }
    }
}

/// Registers with a card; what all refuse is read over the streams.
fn register(card: &Card, map: &Arc<Map>) -> Option<card::Memory> {
    card.register(map, Purpose::Read)
        .inspect_err(|error| {
            tracing::warn!(device = card.choice.device, %error, "a segment is not registered: its data goes another way");
        })
        .ok()
}

impl<S: Streams> Transport for Rdma<S> {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn now(&self) -> Tick {
        self.engine.now()
    }

    fn address(&self) -> Option<SocketAddr> {
        self.engine.address()
    }

    fn register(&mut self, map: &Arc<Map>) -> Region {
        let region = self.engine.register(map);
        let memories = self.cards.each_ref().map(|card| card.as_ref().and_then(|card| register(card, map)));
        let id = (region.id, region.generation);
        self.by_segment.insert(map.segment(), id);
        self.regions.insert(id, Local { region, map: map.clone(), memories });
        self.tell_key(id);
        region
    }

    fn deregister(&mut self, region: Region) -> bool {
        let id = (region.id, region.generation);
        if let Some(local) = self.regions.remove(&id) {
            // The cards refuse it from here on: whoever has the key still, reads nothing any more.
            if self.by_segment.get(&local.map.segment()) == Some(&id) {
                self.by_segment.remove(&local.map.segment());
            }
            drop(local);
            self.tell_revoked(id);
        }
        self.engine.deregister(region)
    }

    fn connect(&mut self, address: SocketAddr, node: Option<NodeId>, deadline: Tick) -> ConnectionId {
        self.engine.connect(address, node, deadline)
    }

    fn submit(&mut self, op: Op) -> Result<OpId, Refused> {
        let (connection, bytes, max, deadline) = match &op {
            Op::Read { connection, into, deadline, .. } => {
                (*connection, into.bytes(), READ_BYTES_MAX, *deadline)
            }
            Op::Send { connection, message, deadline, .. } => {
                (*connection, message.len(), self.capabilities.message_bytes_max, *deadline)
            }
        };
        let why = match () {
            () if bytes > max => Some(RefusedWhy::TooLong { bytes, max }),
            () if self.live >= self.config.ops_max => Some(RefusedWhy::Full { ops: self.live }),
            () if !self.is_open(connection) => Some(RefusedWhy::NotConnected),
            () => None,
        };
        if let Some(why) = why {
            self.stats.refused_full += u64::from(matches!(why, RefusedWhy::Full { .. }));
            return Err(Refused { why, op: Box::new(op) });
        }
        self.stats.accepted += 1;
        self.live += 1;
        self.note_deadline(deadline);
        Ok(OpId(self.begin(op)))
    }

    fn cancel(&mut self, op: OpId) {
        self.stop(op.0, OpError::Cancelled);
    }

    fn poll(&mut self, events: &mut Vec<Event>, wait: Duration) -> Result<(), PollError> {
        let begin = self.now();
        let until = begin.0.saturating_add(wait.as_micros() as u64);
        self.lookout.begin(Duration::from_micros(self.spin_us()).min(wait));
        self.progress();
        loop {
            let now = self.now();
            let mut timeout = Duration::ZERO;
            let idle = self.found.is_empty() && now.0 < until && !self.lookout.again();
            let sleep_max = if idle { self.sleep_max() } else { Duration::ZERO };
            if self.found.is_empty() && !sleep_max.is_zero() {
                let earliest = until.min(self.deadline_min.0).min(self.next_link_deadline().0);
                timeout = Duration::from_micros(earliest.saturating_sub(now.0)).min(sleep_max);
            }
            let mut heard = std::mem::take(&mut self.heard);
            self.engine.poll(&mut heard, timeout)?;
            let called = (self.engine.was_watched() && self.take_news()) | self.engine.was_woken();
            for event in heard.drain(..) {
                self.hear(event);
            }
            self.heard = heard;
            let any = self.progress();
            let after = self.now();
            if any && let Some(wait_us) = &mut self.wait_us {
                *wait_us = (*wait_us * 7 + after.since_us(begin)) / 8;
            }
            if !self.found.is_empty() || after.0 >= until || called {
                break;
            }
        }
        events.extend(self.found.drain(..));
        Ok(())
    }

    fn close(&mut self, connection: ConnectionId) {
        self.harvest();
        self.let_go(connection, &OpError::Cancelled);
        self.engine.close(connection);
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.engine.waker()
    }

    fn watch(&mut self, fd: OwnedFd) -> Result<(), OpenError> {
        let added = epoll::add(&self.news, &fd, EventData::new_u64(0), EventFlags::IN);
        added.map_err(|error| OpenError::Os { what: "watch a descriptor", source: error.into() })?;
        self.callers = Some(fd);
        Ok(())
    }

    fn sever(&mut self, connection: ConnectionId, after_bytes: u64) {
        if after_bytes == 0 {
            self.harvest();
            self.let_go(connection, &OpError::Disconnected);
        } else if let Some(peer) = self.peers.get_mut(&connection) {
            peer.sever_after = Some(after_bytes);
        }
        self.engine.sever(connection, after_bytes);
    }

    fn path(&self, connection: ConnectionId) -> Option<Path> {
        let peer = self.peers.get(&connection)?;
        let below = self.engine.path(connection)?;
        let up = peer.link.is_up();
        Some(Path {
            transport: if up { "rdma" } else { below.transport },
            why: peer.why.clone(),
            rdma_bytes: peer.card_bytes,
            stream_bytes: peer.stream_bytes,
        })
    }

    fn stats(&self) -> Stats {
        let below = self.engine.stats();
        Stats {
            ops: self.live,
            connections: below.connections,
            served_bytes: below.served_bytes,
            misbehaved: below.misbehaved,
            registrations: self.registrations.get(),
            ..self.stats
        }
    }
}

impl<S: Streams> Drop for Rdma<S> {
    fn drop(&mut self) {
        // Queue pairs first: they hold the leases that cards may write to, and cards cannot close before.
        self.peers.clear();
        self.regions.clear();
    }
}
