//! Simulated streams: virtual time, delays, segments cut at random, all from one seed.
//!
//! Bytes of one stream keep their order, and streams overtake each other as they like. A poll of any endpoint
//! moves the time to the next thing that happens, once nobody has anything left to do at the present one, so a
//! whole cluster runs in one thread, the same way each time.

use super::streams::{Outgoing, StreamEvent, StreamId, Streams, Target};
use super::{OpenError, PollError, Wake};
use dflow_proto::Tick;
use dflow_shm::segment::Map;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How the simulated network behaves.
#[derive(Clone, Copy, Debug)]
pub struct SimConfig {
    /// Decides everything that varies.
    pub seed: u64,
    /// From one end to the other, microseconds: at least and at most.
    pub delay_us: (u64, u64),
    /// What one node can send, and receive, in bytes a microsecond.
    pub bytes_per_us: u64,
    /// The longest piece in which bytes arrive.
    pub segment_bytes_max: usize,
}

impl SimConfig {
    /// A network of 1 GB/s with delays of 20 to 200 us.
    pub const fn new(seed: u64) -> SimConfig {
        SimConfig { seed, delay_us: (20, 200), bytes_per_us: 1000, segment_bytes_max: 64 << 10 }
    }
}

/// The network that simulated endpoints share.
#[derive(Clone)]
pub struct SimNet(Rc<RefCell<Net>>);

/// One endpoint's streams.
pub struct SimStreams {
    net: SimNet,
    endpoint: usize,
}

struct Net {
    config: SimConfig,
    now: u64,
    random: u64,
    sequence: u64,
    due: BTreeMap<(u64, u64), Due>,
    endpoints: Vec<Endpoint>,
    halves: BTreeMap<u64, Half>,
    next_half: u64,
    hash: u64,
    /// Waits in a row that gave way to an endpoint with something to do.
    yields: usize,
}

#[derive(Default)]
struct Endpoint {
    inbox: VecDeque<StreamEvent>,
    listening: Option<SocketAddr>,
    /// Its link is busy until then, each way.
    sending_until: u64,
    receiving_until: u64,
    /// Nothing leaves it and nothing reaches it.
    dark: bool,
}

/// One end of a stream.
struct Half {
    endpoint: usize,
    other: Option<u64>,
    arrived: VecDeque<u8>,
    /// What ends the stream, after what has arrived is read.
    end: Option<io::ErrorKind>,
    receive: Option<Target>,
    done: usize,
    sending: bool,
    /// The last piece sent arrives then; none may arrive earlier.
    last_arrival: u64,
    closed: bool,
}

/// What is going to happen.
enum Due {
    Arrive { half: u64, bytes: Vec<u8> },
    End { half: u64, kind: io::ErrorKind },
    Connect { half: u64, address: SocketAddr },
    Connected { half: u64 },
    Sent { half: u64, outgoing: Outgoing },
}

impl SimNet {
    /// An empty network.
    pub fn new(config: SimConfig) -> SimNet {
        SimNet(Rc::new(RefCell::new(Net {
            config,
            now: 0,
            random: config.seed,
            sequence: 0,
            due: BTreeMap::new(),
            endpoints: Vec::new(),
            halves: BTreeMap::new(),
            next_half: 1,
            hash: 0xcbf2_9ce4_8422_2325,
            yields: 0,
        })))
    }

    /// A new endpoint.
    pub fn endpoint(&self) -> SimStreams {
        let mut net = self.0.borrow_mut();
        net.endpoints.push(Endpoint::default());
        SimStreams { net: self.clone(), endpoint: net.endpoints.len() - 1 }
    }

    /// The time.
    pub fn now(&self) -> Tick {
        Tick(self.0.borrow().now)
    }

    /// A digest of all that has happened: equal for equal seeds and equal use.
    pub fn hash(&self) -> u64 {
        self.0.borrow().hash
    }

    /// The endpoint that listens at `address` hears and says nothing any more (or again), as if its cable
    /// were pulled. Its peers get no notice.
    pub fn set_dark(&self, address: SocketAddr, dark: bool) {
        let mut net = self.0.borrow_mut();
        for endpoint in net.endpoints.iter_mut().filter(|e| e.listening == Some(address)) {
            endpoint.dark = dark;
        }
    }
}

impl Net {
    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        // splitmix64: small, seedable, good enough to vary schedules.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }

    fn delay(&mut self) -> u64 {
        let (min, max) = self.config.delay_us;
        min + self.below(max - min + 1)
    }

    fn at(&mut self, at: u64, due: Due) {
        self.sequence += 1;
        self.due.insert((at, self.sequence), due);
    }

    fn note(&mut self, what: u64) {
        self.hash = (self.hash ^ what ^ self.now.rotate_left(32)).wrapping_mul(0x0000_0100_0000_01b3);
    }

    fn tell(&mut self, endpoint: usize, event: StreamEvent) {
        self.endpoints[endpoint].inbox.push_back(event);
    }

    fn half(&mut self, endpoint: usize, other: Option<u64>) -> u64 {
        let id = self.next_half;
        self.next_half += 1;
        let half = Half {
            endpoint,
            other,
            arrived: VecDeque::new(),
            end: None,
            receive: None,
            done: 0,
            sending: false,
            last_arrival: 0,
            closed: false,
        };
        self.halves.insert(id, half);
        id
    }

    fn is_dark(&self, half: u64) -> bool {
        self.halves.get(&half).is_some_and(|half| self.endpoints[half.endpoint].dark)
    }

    /// Queues pieces of `bytes` for the other end, and answers when the last has left.
    fn transmit(&mut self, from: u64, mut bytes: &[u8]) -> u64 {
        let Some((endpoint, other)) = self.halves.get(&from).map(|half| (half.endpoint, half.other)) else {
            return self.now;
        };
        let to = other.filter(|other| self.halves.contains_key(other));
        let mut left = self.now;
        while !bytes.is_empty() {
            let n = (1 + self.below(self.config.segment_bytes_max as u64) as usize).min(bytes.len());
            let (piece, rest) = bytes.split_at(n);
            bytes = rest;
            let busy_us = n as u64 / self.config.bytes_per_us;
            left = self.endpoints[endpoint].sending_until.max(self.now) + busy_us;
            self.endpoints[endpoint].sending_until = left;
            let Some(half) = to else { continue };
            let delay = self.delay();
            let target = self.halves[&half].endpoint;
            let link = &mut self.endpoints[target].receiving_until;
            let through = (*link).max(left + delay - busy_us.min(left)) + busy_us;
            *link = through;
            let arrival = through.max(self.halves[&half].last_arrival);
            self.halves.get_mut(&half).expect("looked up above").last_arrival = arrival;
            self.at(arrival, Due::Arrive { half, bytes: piece.to_vec() });
        }
        left
    }

    /// Lets `half` know, after all that was sent to it, that nothing follows.
    fn end(&mut self, half: u64, kind: io::ErrorKind) {
        let delay = self.delay();
        if let Some(last) = self.halves.get(&half).map(|half| half.last_arrival) {
            let at = match kind {
                io::ErrorKind::UnexpectedEof => last.max(self.now + delay),
                _ => self.now + delay,
            };
            self.at(at, Due::End { half, kind });
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Arrive { half, bytes } => {
                if self.is_dark(half)
                    || self.halves.get(&half).and_then(|h| h.other).is_some_and(|o| self.is_dark(o))
                {
                    return;
                }
                self.note(half << 32 | bytes.len() as u64);
                if let Some(h) = self.halves.get_mut(&half) {
                    h.arrived.extend(bytes);
                    self.fill(half);
                }
            }
            Due::End { half, kind } => {
                if self.is_dark(half) {
                    return;
                }
                self.note(half << 32 | 1 << 31);
                if let Some(h) = self.halves.get_mut(&half) {
                    if kind != io::ErrorKind::UnexpectedEof {
                        h.arrived.clear();
                    }
                    h.end = Some(kind);
                    self.fill(half);
                }
            }
            Due::Connect { half, address } => {
                let Some(endpoint) = self.halves.get(&half).filter(|h| !h.closed).map(|h| h.endpoint) else {
                    return;
                };
                let listener = self.endpoints.iter().position(|e| e.listening == Some(address));
                match listener {
                    Some(listener) if self.endpoints[listener].dark || self.endpoints[endpoint].dark => {}
                    Some(listener) => {
                        let other = self.half(listener, Some(half));
                        self.halves.get_mut(&half).expect("looked up above").other = Some(other);
                        self.tell(listener, StreamEvent::Accepted(StreamId(other)));
                        let back = self.now + self.delay();
                        self.at(back, Due::Connected { half });
                    }
                    None => {
                        let refused = io::ErrorKind::ConnectionRefused.into();
                        self.tell(endpoint, StreamEvent::Dialled(StreamId(half), Err(refused)));
                    }
                }
            }
            Due::Connected { half } => {
                if let Some(h) = self.halves.get(&half).filter(|h| !h.closed) {
                    let endpoint = h.endpoint;
                    self.tell(endpoint, StreamEvent::Dialled(StreamId(half), Ok(())));
                }
            }
            Due::Sent { half, outgoing } => {
                if let Some(h) = self.halves.get_mut(&half)
                    && !h.closed
                {
                    h.sending = false;
                    let endpoint = h.endpoint;
                    self.tell(
                        endpoint,
                        StreamEvent::Sent { stream: StreamId(half), outgoing, result: Ok(()) },
                    );
                }
            }
        }
    }

    /// Moves what has arrived to where the receiver wants it.
    fn fill(&mut self, id: u64) {
        let Some(half) = self.halves.get_mut(&id) else { return };
        let Some(target) = &mut half.receive else { return };
        let n = half.arrived.len().min(target.wanted() - half.done);
        let bytes: Vec<u8> = half.arrived.drain(..n).collect();
        target.copy_in(half.done, &bytes);
        half.done += n;
        let full = half.done == target.wanted() || half.done > 0 && !target.is_whole();
        let ended = if half.arrived.is_empty() && !full { half.end } else { None };
        if full || ended.is_some() {
            let result = ended.map_or(Ok(()), |kind| Err(kind.into()));
            self.give_back(id, result);
        }
    }

    fn give_back(&mut self, id: u64, result: io::Result<()>) {
        let Some(half) = self.halves.get_mut(&id) else { return };
        if let Some(target) = half.receive.take() {
            let (bytes, endpoint) = (std::mem::take(&mut half.done), half.endpoint);
            self.tell(endpoint, StreamEvent::Received { stream: StreamId(id), target, bytes, result });
        }
    }
}

impl Streams for SimStreams {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn features(&self) -> Vec<String> {
        vec![format!("seed {}", self.net.0.borrow().config.seed)]
    }

    fn virtual_time(&self) -> bool {
        true
    }

    fn now(&self) -> Tick {
        self.net.now()
    }

    fn random(&mut self) -> [u8; 32] {
        let mut net = self.net.0.borrow_mut();
        let mut bytes = [0; 32];
        bytes.iter_mut().for_each(|byte| *byte = net.below(256) as u8);
        bytes
    }

    fn listen(&mut self, address: SocketAddr) -> Result<SocketAddr, OpenError> {
        let mut net = self.net.0.borrow_mut();
        // Port 0 asks for a free address; an endpoint is its own host.
        let own =
            SocketAddr::from((Ipv4Addr::new(10, 0, (self.endpoint >> 8) as u8, self.endpoint as u8), 1));
        let address = if address.port() == 0 { own } else { address };
        net.endpoints[self.endpoint].listening = Some(address);
        Ok(address)
    }

    fn dial(&mut self, address: SocketAddr) -> StreamId {
        let mut net = self.net.0.borrow_mut();
        let half = net.half(self.endpoint, None);
        let at = net.now + net.delay();
        net.at(at, Due::Connect { half, address });
        StreamId(half)
    }

    fn receive(&mut self, stream: StreamId, target: Target) {
        let mut net = self.net.0.borrow_mut();
        let half = net.halves.get_mut(&stream.0).expect("streams in use exist");
        assert!(half.receive.is_none(), "one receive at a time");
        (half.receive, half.done) = (Some(target), 0);
        net.fill(stream.0);
    }

    fn interrupt(&mut self, stream: StreamId) {
        self.net.0.borrow_mut().give_back(stream.0, Ok(()));
    }

    fn send(&mut self, stream: StreamId, outgoing: Outgoing) {
        let mut net = self.net.0.borrow_mut();
        let half = net.halves.get_mut(&stream.0).expect("streams in use exist");
        assert!(!half.sending, "one send at a time");
        half.sending = true;
        let mut bytes = outgoing.head.clone();
        if let Some(body) = &outgoing.body {
            body.append_to(&mut bytes);
        }
        let left = net.transmit(stream.0, &bytes);
        net.at(left, Due::Sent { half: stream.0, outgoing });
    }

    fn close(&mut self, stream: StreamId, abort: bool) {
        let mut net = self.net.0.borrow_mut();
        let Some(half) = net.halves.get_mut(&stream.0) else { return };
        half.closed = true;
        let (endpoint, other, dark) = (half.endpoint, half.other, net.is_dark(stream.0));
        net.give_back(stream.0, Err(io::ErrorKind::ConnectionAborted.into()));
        if let Some(other) = other
            && !dark
        {
            let kind = if abort { io::ErrorKind::ConnectionReset } else { io::ErrorKind::UnexpectedEof };
            net.end(other, kind);
        }
        // A send under way comes back as failed, now rather than when it would have left.
        let unsent: BTreeSet<(u64, u64)> = net
            .due
            .iter()
            .filter(|(_, due)| matches!(due, Due::Sent { half, .. } if *half == stream.0))
            .map(|(at, _)| *at)
            .collect();
        for at in unsent {
            if let Some(Due::Sent { outgoing, .. }) = net.due.remove(&at) {
                let result = Err(io::ErrorKind::ConnectionAborted.into());
                net.tell(endpoint, StreamEvent::Sent { stream, outgoing, result });
            }
        }
        net.halves.remove(&stream.0);
        net.tell(endpoint, StreamEvent::Closed(stream));
    }

    fn register(&mut self, _: &Arc<Map>, _: u32) {}

    fn deregister(&mut self, _: u32) {}

    fn wait(&mut self, events: &mut Vec<StreamEvent>, timeout: Duration) -> Result<(), PollError> {
        let mut net = self.net.0.borrow_mut();
        let until = net.now.saturating_add(timeout.as_micros() as u64);
        let busy = net.endpoints.iter().any(|endpoint| !endpoint.inbox.is_empty());
        // Others go first if they have something to do; one that is never polled does not stop the world.
        net.yields = if busy { net.yields + 1 } else { 0 };
        if !busy || net.yields > 2 * net.endpoints.len() {
            // One step of time: to the next thing that happens, and all that happens then.
            let next = net.due.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
            net.now = next.min(until).max(net.now);
            while net.due.first_key_value().is_some_and(|((at, _), _)| *at <= net.now) {
                if let Some((_, due)) = net.due.pop_first() {
                    net.happen(due);
                }
            }
        }
        if !net.endpoints[self.endpoint].inbox.is_empty() {
            net.yields = 0;
        }
        events.extend(net.endpoints[self.endpoint].inbox.drain(..));
        Ok(())
    }

    fn watch(&mut self, _: std::os::fd::OwnedFd) -> Result<(), OpenError> {
        // Nothing outside of the simulation can become readable in its time.
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        struct Nobody;
        impl Wake for Nobody {
            fn wake(&self) {}
        }
        Arc::new(Nobody)
    }
}
