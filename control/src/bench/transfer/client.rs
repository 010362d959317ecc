//! The end that reads and measures.

use super::pull::{Pull, stride};
use super::raw::Raw;
use super::row::{Row, Side};
use super::talk::{Answer, Ask, answer, ask, send};
#[cfg(feature = "rdma")]
use super::verbs::{self, VerbsPlan, VerbsRow, WindowTimes};
use super::{STRIPE_BYTES_MIN, TransferError, content, cpu_seconds};
use dflow_dataplane::transport::{Backend, Broken, Config, ConnectionId, Event, Region, Transport, open};
use dflow_proto::ids::SegmentId;
use dflow_shm::segment::Map;
use std::net::SocketAddr;
use std::sync::Arc;
#[cfg(feature = "rdma")]
use std::sync::{
    atomic::{AtomicBool, Ordering},
    mpsc::sync_channel,
};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

/// The segment that is read into, and the one that the peer reads.
pub(super) const TARGET: SegmentId = SegmentId(1);
pub(super) const SOURCE: SegmentId = SegmentId(2);
/// Rounds of each kind, which alternate.
const ROUNDS: u64 = 5;
/// Target memory for objects that are under way together.
const TARGET_BYTES: u64 = 256 << 20;
/// Bytes and objects of a size that says nothing about how long.
const BYTES_WANTED: u64 = 1 << 30;
const OBJECTS_MIN: u64 = ROUNDS;
const OBJECTS_MAX: u64 = 5000;

/// What is measured for each size.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Objects of each size, in all rounds together.
    pub objects: Option<u64>,
    /// Time for each kind at each size instead.
    pub time: Option<Duration>,
    /// Objects under way.
    pub depth: u64,
    /// Streams for bulk.
    pub streams: u16,
    /// The peer reads as much here at the same time.
    pub both_ways: bool,
}

/// What is read: the peer's memory and, by the peer, ours.
#[derive(Clone, Copy)]
struct Way {
    there: Region,
    here: Option<Region>,
}

/// A connection to a peer that serves.
pub struct Client {
    transport: Box<dyn Transport>,
    connection: ConnectionId,
    name: &'static str,
    address: SocketAddr,
}

impl Client {
    /// Connects, trying again until `until` while nobody listens yet.
    pub fn connect(
        config: &Config,
        backend: Backend,
        address: SocketAddr,
        until: Instant,
    ) -> Result<Client, TransferError> {
        let (mut transport, chosen) = open(config.clone(), backend)?;
        let mut events = Vec::new();
        loop {
            let deadline = transport.now().after_ms(5000);
            let connection = transport.connect(address, None, deadline);
            let why = 'attempt: loop {
                transport.poll(&mut events, Duration::from_millis(100))?;
                for event in events.drain(..) {
                    match event {
                        Event::Connected { .. } => {
                            return Ok(Client { transport, connection, name: chosen.name, address });
                        }
                        Event::Disconnected { why, .. } => break 'attempt why,
                        _ => {}
                    }
                }
            };
            if Instant::now() >= until || !matches!(why, Broken::Dial { .. }) {
                return Err(why.into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What carries the data.
    pub fn transport(&self) -> &'static str {
        self.transport.path(self.connection).map_or(self.name, |path| path.transport)
    }

    /// Measures sizes one after the other; `each` gets each size's figures when they are there.
    pub fn measure(
        &mut self,
        sizes: &[u64],
        plan: Plan,
        mut each: impl FnMut(Row),
    ) -> Result<(), TransferError> {
        let largest = sizes.iter().copied().max().unwrap_or(0);
        let answer = ask(self.transport.as_mut(), self.connection, &Ask::Own { bytes: largest })?;
        let Answer::Own { region, raw } = answer else {
            return Err(TransferError::Peer(format!("{answer:?}")));
        };
        let room = TARGET_BYTES.max(stride(largest));
        let target = content::memory(TARGET, room)?;
        self.transport.register(&target);
        let mine = if plan.both_ways { Some(self.own(largest)?) } else { None };
        let way = Way { there: region, here: mine };
        let mut raw =
            Raw::connect(self.address.ip(), raw, plan.streams * if plan.both_ways { 2 } else { 1 })?;
        for &bytes in sizes {
            let depth = plan.depth.clamp(1, room / stride(bytes));
            each(self.size(bytes, depth, plan, way, &target, &mut raw)?);
        }
        send(self.transport.as_mut(), self.connection, &Ask::Done)?;
        self.transport.poll(&mut Vec::new(), Duration::from_millis(10))?;
        Ok(())
    }

    fn size(
        &mut self,
        bytes: u64,
        depth: u64,
        plan: Plan,
        way: Way,
        target: &Arc<Map>,
        raw: &mut Raw,
    ) -> Result<Row, TransferError> {
        let streams = if bytes <= STRIPE_BYTES_MIN { 1 } else { plan.streams };
        raw.prepare(bytes, streams);
        let default = (BYTES_WANTED / bytes).clamp(OBJECTS_MIN, OBJECTS_MAX);
        let wanted = plan.objects.unwrap_or(default).max(1);
        let share = |round: u64| wanted / ROUNDS + u64::from(round < wanted % ROUNDS);
        let limit = plan.time.map(|time| time / ROUNDS as u32);
        // Once before anything is timed: what is allocated or learnt at first use is not the transfer's.
        self.pull(bytes, depth, way, target, depth)?;
        let both = plan.both_ways;
        self.beside(|| raw.round(bytes, streams, 1, 1, both))??;
        let (mut ours, mut ceiling) = (Side::default(), Side::default());
        for round in 0..ROUNDS {
            let batch = if limit.is_some() { depth.max(1) } else { share(round) };
            if batch == 0 {
                continue;
            }
            ceiling.begin(self.cpu()?);
            loop {
                let nanos = self.beside(|| raw.round(bytes, streams, depth, batch, both))??;
                ceiling.add(bytes, nanos);
                ceiling.add_other_way(if both { bytes * batch } else { 0 });
                if limit.is_none_or(|limit| ceiling.lasted() >= limit) {
                    break;
                }
            }
            ceiling.end_wall();
            ceiling.end_cpu(self.cpu()?);
            ours.begin(self.cpu()?);
            loop {
                let nanos = self.pull(bytes, depth, way, target, batch)?;
                ours.add(bytes, nanos);
                ours.add_other_way(if both { bytes * batch } else { 0 });
                if limit.is_none_or(|limit| ours.lasted() >= limit) {
                    break;
                }
            }
            ours.end_wall();
            ours.end_cpu(self.cpu()?);
        }
        content::clear(target)?;
        self.pull(bytes, depth, way, target, depth)?;
        for place in 0..depth {
            content::check(target, place * stride(bytes), bytes)?;
        }
        Ok(Row { bytes, depth, streams, ours, raw: ceiling, checked_bytes: bytes * depth })
    }

    /// Memory that the peer reads.
    fn own(&mut self, bytes: u64) -> Result<Region, TransferError> {
        let map = content::memory(SOURCE, bytes)?;
        content::fill(&map)?;
        // The transport keeps what is registered.
        Ok(self.transport.register(&map))
    }

    /// Reads `times` objects, while the peer does the same if that is asked for; nanoseconds of each.
    fn pull(
        &mut self,
        bytes: u64,
        depth: u64,
        way: Way,
        target: &Arc<Map>,
        times: u64,
    ) -> Result<Vec<u64>, TransferError> {
        let (transport, connection) = (self.transport.as_mut(), self.connection);
        if let Some(region) = way.here {
            send(transport, connection, &Ask::Pull { region, bytes, depth, times })?;
        }
        let region = way.there;
        let mut pull = Pull { transport, connection, region, target, bytes, depth, heard: Vec::new() };
        let nanos = pull.round(times)?;
        if way.here.is_some() {
            let heard = pull.heard;
            match answer(self.transport.as_mut(), heard)? {
                Answer::Pulled => {}
                other => return Err(TransferError::Peer(format!("{other:?}"))),
            }
        }
        Ok(nanos)
    }

    /// Runs `work` in a thread while the transport goes on answering its peer.
    fn beside<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> Result<T, TransferError> {
        let waker = self.transport.waker();
        let transport = &mut self.transport;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let result = work();
                waker.wake();
                result
            });
            attend(transport.as_mut(), thread, Ok(()), || {})
        })
    }

    /// Measures what each verb takes, without the transport; `each` gets each figure when it is there.
    #[cfg(feature = "rdma")]
    pub fn measure_verbs(
        &mut self,
        sizes: &[u64],
        plan: &VerbsPlan,
        each: impl FnMut(VerbsRow) + Send,
    ) -> Result<WindowTimes, TransferError> {
        let port = verbs::port(None, None)?;
        let bytes = sizes.iter().copied().max().unwrap_or(0);
        let (waker, connection) = (self.transport.waker(), self.connection);
        let transport = self.transport.as_mut();
        let stop = Arc::new(AtomicBool::new(false));
        std::thread::scope(|scope| {
            let (said, heard) = sync_channel(1);
            let (say, hear) = sync_channel(1);
            let thread = scope.spawn({
                let stop = stop.clone();
                move || {
                    let result = verbs::measure(&port, sizes, plan, (said, hear), stop, each);
                    waker.wake();
                    result
                }
            });
            let mut broken = Ok(());
            // It opens its card first, or ends and says why.
            if let Ok(card) = heard.recv() {
                match ask(transport, connection, &Ask::Verbs { card, bytes }) {
                    Ok(Answer::Verbs { card }) => drop(say.send(card)),
                    Ok(other) => broken = Err(TransferError::Peer(format!("{other:?}"))),
                    Err(error) => broken = Err(error),
                }
            }
            drop(say);
            attend(transport, thread, broken, || stop.store(true, Ordering::Release))
        })
        .flatten()
    }

    /// Processor seconds of both ends.
    fn cpu(&mut self) -> Result<f64, TransferError> {
        match ask(self.transport.as_mut(), self.connection, &Ask::Cpu)? {
            Answer::Cpu { seconds } => Ok(seconds + cpu_seconds()),
            answer => Err(TransferError::Peer(format!("{answer:?}"))),
        }
    }
}

/// Polls a transport until `thread` has ended: its result, unless the connection was `broken` or breaks, which `give_up` is called
/// for.
fn attend<T>(
    transport: &mut dyn Transport,
    thread: ScopedJoinHandle<'_, T>,
    mut broken: Result<(), TransferError>,
    give_up: impl FnOnce(),
) -> Result<T, TransferError> {
    let mut events = Vec::new();
    while !thread.is_finished() {
        if broken.is_ok() {
            broken = transport.poll(&mut events, Duration::from_millis(100)).map_err(Into::into);
        }
        for event in events.drain(..) {
            if let Event::Disconnected { why, .. } = event {
                broken = Err(why.into());
            }
        }
        if broken.is_err() {
            give_up();
            break;
        }
    }
    let done = thread.join().map_err(|_| TransferError::Peer("a thread ended badly".into()));
    broken.and(done)
}
