//! The end that puts and measures.

use super::super::raw::{Raw, Ticket};
use super::super::{PATIENCE_MS, TransferError, content};
use super::end::{End, copy};
use super::{ACK, BACK, DROP, ECHO, Word};
use crate::bench::stats::Quantiles;
use dflow_dataplane::transfer::Moved;
use dflow_dataplane::transport::{Backend, Broken, Config, NodeId};
use dflow_proto::RunId;
use dflow_proto::ids::{InvocationId, ObjectKey};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A handshake takes no longer.
const CONNECT: Duration = Duration::from_secs(10);
/// Objects that are put and not got yet, where several are under way.
const UNDER_WAY_MAX: u64 = 4096;
/// And their bytes: announcements that a peer is too slow for are forgotten.
const UNDER_WAY_BYTES_MAX: u64 = 16 << 20;
/// What a producer writes before it says how far it is.
const STEP_BYTES: usize = 256 << 10;
/// The object that shares the link.
pub const BULK_BYTES: u64 = 256 << 20;
/// The object that goes to several nodes.
pub const SPREAD_BYTES: u64 = 64 << 20;

/// What was measured, and what stands beside it.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Its name.
    pub what: &'static str,
    /// Of each object.
    pub bytes: u64,
    /// Objects.
    pub n: usize,
    /// In nanoseconds, if it is a time.
    pub times: Option<Quantiles>,
    /// In objects a second, if it is a rate.
    pub per_s: Option<f64>,
    /// What it is compared with.
    pub beside: &'static str,
    /// That, in the same unit: nanoseconds, or objects a second.
    pub beside_is: f64,
    /// How often it holds that.
    pub ratio: f64,
}

impl Figure {
    /// The heads of [`Figure::cells`].
    pub const HEADS: [&'static str; 11] =
        ["what", "bytes", "n", "p50 us", "p90", "p99", "p99.9", "per s", "ratio", "to", "which is"];

    /// For a table or CSV.
    pub fn cells(&self) -> [String; 11] {
        let us = |pick: fn(&Quantiles) -> u64| {
            self.times.as_ref().map_or("-".into(), |times| format!("{:.1}", pick(times) as f64 / 1e3))
        };
        let that = if self.times.is_some() { self.beside_is / 1e3 } else { self.beside_is };
        [
            self.what.into(),
            self.bytes.to_string(),
            self.n.to_string(),
            us(|t| t.p50),
            us(|t| t.p90),
            us(|t| t.p99),
            us(|t| t.p999),
            self.per_s.map_or("-".into(), |rate| format!("{rate:.0}")),
            format!("{:.2}", self.ratio),
            format!("{that:.1}"),
            self.beside.into(),
        ]
    }

    /// All of it.
    pub fn json(&self) -> Value {
        json!({
            "what": self.what, "bytes": self.bytes, "n": self.n, "per_s": self.per_s,
            "times_ns": self.times.as_ref().map(Quantiles::json),
            "beside": self.beside, "beside_is": self.beside_is, "ratio": self.ratio,
        })
    }
}

/// A connection to one server or more.
pub struct PutClient {
    end: End,
    servers: Vec<(NodeId, SocketAddr)>,
    /// To the first server; there once it has said where.
    raw: Option<Raw>,
    runs: u64,
    moved: Vec<Moved>,
}

impl PutClient {
    /// Connects to servers, trying again until `until`. Objects that are put have at most `bytes` bytes, those that
    /// come back `back_bytes`.
    pub fn connect(
        config: Config,
        backend: Backend,
        servers: &[(NodeId, SocketAddr)],
        bytes: u64,
        back_bytes: u64,
        until: Instant,
    ) -> Result<PutClient, TransferError> {
        let mut end = End::open(config, backend)?;
        end.room(bytes, back_bytes)?;
        for (node, address) in servers {
            end.mover.add_peer(*node, *address);
            end.mover.keep_connected(*node, Duration::ZERO);
        }
        // Who listens answers by then.
        let patience = until.max(Instant::now() + CONNECT);
        let (mut moved, mut up) = (Vec::new(), 0);
        while up < servers.len() {
            end.poll(&mut moved, Duration::from_millis(50))?;
            for moved in moved.drain(..) {
                match moved {
                    Moved::Up { .. } => up += 1,
                    Moved::Down { why, .. }
                        if !matches!(why, Broken::Dial { .. }) || Instant::now() > until =>
                    {
                        return Err(why.into());
                    }
                    _ => {}
                }
            }
            if Instant::now() > patience && up < servers.len() {
                return Err(TransferError::Peer("no answer to a connection".into()));
            }
        }
        let mut client = PutClient { end, servers: servers.to_vec(), raw: None, runs: 0, moved };
        for (at, (node, address)) in servers.iter().enumerate() {
            let nodes = servers.iter().filter(|(other, _)| other != node);
            let nodes = nodes.map(|(node, address)| (node.0, *address)).collect();
            client.ask(*node, &Word::Nodes { nodes })?;
            let ticket = client.ask(*node, &Word::Room { bytes })?;
            if at == 0 {
                client.raw = Some(Raw::connect(address.ip(), ticket, 1)?);
            }
        }
        Ok(client)
    }

    /// What carries the data.
    pub fn transport(&self) -> &'static str {
        self.end.name
    }

    /// Put here, got there: half of the way there and back, beside a raw round trip.
    pub fn hand_over(&mut self, bytes: u64, n: u64) -> Result<Figure, TransferError> {
        let (mut nanos, mut raw) = (Vec::new(), Vec::new());
        self.echoes(bytes, n.min(100), false)?;
        for _ in 0..5 {
            if let Some(sockets) = &mut self.raw {
                sockets.prepare(bytes, 1);
                raw.extend(sockets.round(bytes, 1, 1, n.div_ceil(5), false)?);
            }
            nanos.extend(self.echoes(bytes, n.div_ceil(5), false)?);
        }
        let (times, raw) = (Quantiles::of(nanos), Quantiles::of(raw));
        Ok(Figure {
            what: "hand-over",
            bytes,
            n: times.samples,
            per_s: None,
            beside: "raw round trip p50",
            beside_is: raw.p50 as f64,
            ratio: times.p50 as f64 / raw.p50.max(1) as f64,
            times: Some(times),
        })
    }

    /// The same while large objects cross the same way, beside the time without them.
    pub fn beside_bulk(&mut self, bytes: u64, n: u64) -> Result<Figure, TransferError> {
        let idle = Quantiles::of(self.echoes(bytes, n, false)?);
        let times = Quantiles::of(self.echoes(bytes, n, true)?);
        Ok(Figure {
            what: "beside bulk",
            bytes,
            n: times.samples,
            per_s: None,
            beside: "idle p99",
            beside_is: idle.p99 as f64,
            ratio: times.p99 as f64 / idle.p99.max(1) as f64,
            times: Some(times),
        })
    }

    /// Objects a second with many under way, beside one at a time.
    pub fn many(&mut self, bytes: u64, n: u64) -> Result<Figure, TransferError> {
        let one = Quantiles::of(self.echoes(bytes, n.min(2000), false)?);
        let (run, to) = (self.run(), [self.servers[0].0]);
        let under_way = UNDER_WAY_MAX.min(UNDER_WAY_BYTES_MAX / bytes.max(1));
        let (mut put, mut got) = (0, 0);
        let source = self.end.source.clone();
        let begun = Instant::now();
        while got < n {
            while put < n && put - got < under_way {
                self.end.put(key(run, put, DROP), &source, bytes, bytes, &to);
                put += 1;
            }
            for moved in self.next()? {
                if let Moved::Released { key } = moved {
                    self.end.mover.release(key);
                    got += 1;
                }
            }
        }
        let per_s = n as f64 / begun.elapsed().as_secs_f64();
        self.over(run)?;
        let alone = 1e9 / one.p50.max(1) as f64;
        Ok(Figure {
            what: "many",
            bytes,
            n: n as usize,
            times: None,
            per_s: Some(per_s),
            beside: "one at a time, per s",
            beside_is: alone,
            ratio: per_s / alone,
        })
    }

    /// A producer writes an object at `bytes_per_s`: how long after its last byte the reader, there, has it. Beside
    /// it, the writing.
    pub fn stream(&mut self, bytes: u64, bytes_per_s: u64, n: u64) -> Result<Figure, TransferError> {
        let (mut nanos, mut writing) = (Vec::new(), Vec::new());
        for _ in 0..n {
            let (lag, wrote) = self.one_stream(bytes, bytes_per_s)?;
            nanos.push(lag.as_nanos() as u64);
            writing.push(wrote.as_nanos() as u64);
        }
        let (times, writing) = (Quantiles::of(nanos), Quantiles::of(writing));
        Ok(Figure {
            what: "stream",
            bytes,
            n: times.samples,
            per_s: None,
            beside: "writing it",
            beside_is: writing.p50 as f64,
            ratio: times.p50 as f64 / writing.p50.max(1) as f64,
            times: Some(times),
        })
    }

    fn one_stream(&mut self, bytes: u64, bytes_per_s: u64) -> Result<(Duration, Duration), TransferError> {
        let (run, to) = (self.run(), [self.servers[0].0]);
        let (source, waker) = (self.end.source.clone(), self.end.mover.waker());
        content::clear(&self.end.source)?;
        // Made ahead, so that the time is that of writing it.
        let made = content::made(bytes);
        let key = key(run, 0, ACK);
        self.end.put(key, &source, bytes, 0, &to);
        let written = AtomicU64::new(0);
        let due = |bytes: u64| Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64);
        let begun = Instant::now();
        let lag = std::thread::scope(|scope| {
            // When the last byte was there.
            let writer = scope.spawn(|| {
                let (mut done, mut wrote) = (0, Duration::ZERO);
                for part in made.chunks(STEP_BYTES) {
                    content::write(&source, done, part)?;
                    done += part.len() as u64;
                    wrote = begun.elapsed();
                    written.store(done, Ordering::Release);
                    waker.wake();
                    std::thread::sleep(due(done).saturating_sub(begun.elapsed()));
                }
                Ok::<_, TransferError>(wrote)
            });
            let (mut told, mut arrived) = (0, None);
            let patience = due(bytes) + Duration::from_millis(PATIENCE_MS);
            while arrived.is_none() {
                if begun.elapsed() > patience {
                    return Err(TransferError::Peer("the object does not arrive there".into()));
                }
                let done = written.load(Ordering::Acquire);
                if done > told {
                    told = done;
                    match done == bytes {
                        true => self.end.mover.seal(key, bytes),
                        false => self.end.mover.advance(key, done),
                    }
                }
                for moved in self.woken(Duration::from_millis(100))? {
                    if let Moved::Inline { key, .. } = moved
                        && key.port == BACK
                    {
                        arrived = Some(begun.elapsed());
                    }
                }
            }
            let wrote = writer.join().map_err(|_| TransferError::Peer("the writer ended badly".into()))??;
            Ok::<_, TransferError>((arrived.unwrap_or(wrote).saturating_sub(wrote), wrote))
        })?;
        self.over(run)?;
        // What is put next is whole.
        content::fill(&self.end.source)?;
        Ok(lag)
    }

    /// One object to all servers, beside the time to one of them.
    pub fn spread(&mut self, n: u64) -> Result<Figure, TransferError> {
        let all: Vec<NodeId> = self.servers.iter().map(|(node, _)| *node).collect();
        let (mut one, mut many) = (Vec::new(), Vec::new());
        for _ in 0..n {
            one.push(self.one_spread(&all[..1])?);
            many.push(self.one_spread(&all)?);
        }
        let (times, one) = (Quantiles::of(many), Quantiles::of(one));
        Ok(Figure {
            what: "to all nodes",
            bytes: SPREAD_BYTES,
            n: times.samples,
            per_s: None,
            beside: "to one node",
            beside_is: one.p50 as f64,
            ratio: times.p50 as f64 / one.p50.max(1) as f64,
            times: Some(times),
        })
    }

    /// Nanoseconds until each of `to` has told that it has all of it.
    fn one_spread(&mut self, to: &[NodeId]) -> Result<u64, TransferError> {
        let run = self.run();
        let source = self.end.source.clone();
        let begun = Instant::now();
        self.end.put(key(run, 0, ACK), &source, SPREAD_BYTES, SPREAD_BYTES, to);
        let mut arrived = 0;
        while arrived < to.len() {
            let acks = self.next()?.into_iter();
            arrived += acks.filter(|m| matches!(m, Moved::Inline { key, .. } if key.port == BACK)).count();
        }
        let nanos = begun.elapsed().as_nanos() as u64;
        self.over(run)?;
        Ok(nanos)
    }

    /// Puts `n` objects one after the other, each of which comes back: nanoseconds of one way. Every byte of what
    /// comes back is compared.
    fn echoes(&mut self, bytes: u64, n: u64, beside_bulk: bool) -> Result<Vec<u64>, TransferError> {
        let (run, bulk_run, to) = (self.run(), self.run(), [self.servers[0].0]);
        let source = self.end.source.clone();
        let sent = copy(&source, bytes);
        let (mut nanos, mut bulks) = (Vec::with_capacity(n as usize), 0);
        if beside_bulk {
            self.end.put(key(bulk_run, 0, DROP), &source, BULK_BYTES, BULK_BYTES, &to);
        }
        for item in 0..n {
            let begun = Instant::now();
            self.end.put(key(run, item, ECHO), &source, bytes, bytes, &to);
            let mut back = None;
            while back.is_none() {
                for moved in self.next()? {
                    match moved {
                        Moved::Inline { bytes, key, .. } if key.port == BACK => back = Some(bytes),
                        Moved::Arrived { size, key, .. } if key.port == BACK => {
                            nanos.push(begun.elapsed().as_nanos() as u64 / 2);
                            back = Some(copy(&self.end.target, size));
                            self.end.mover.release(key);
                        }
                        Moved::Released { key } if key.run == bulk_run => {
                            self.end.mover.release(key);
                            bulks += 1;
                            let next = self::key(bulk_run, bulks, DROP);
                            self.end.put(next, &source, BULK_BYTES, BULK_BYTES, &to);
                        }
                        Moved::Released { key } => self.end.mover.release(key),
                        _ => {}
                    }
                }
            }
            if nanos.len() as u64 == item {
                nanos.push(begun.elapsed().as_nanos() as u64 / 2);
            }
            let back = back.unwrap_or_default();
            if let Some(at) = (0..sent.len().max(back.len())).find(|at| sent.get(*at) != back.get(*at)) {
                return Err(TransferError::Wrong { bytes, at: at as u64 });
            }
        }
        self.over(run)?;
        self.over(bulk_run)?;
        Ok(nanos)
    }

    fn run(&mut self) -> RunId {
        self.runs += 1;
        RunId(self.runs)
    }

    /// Both ends forget a run.
    fn over(&mut self, run: RunId) -> Result<(), TransferError> {
        self.end.mover.drop_run(run);
        for (node, _) in self.servers.clone() {
            self.ask(node, &Word::Over { run })?;
        }
        Ok(())
    }

    /// What happens next.
    fn next(&mut self) -> Result<Vec<Moved>, TransferError> {
        let until = Instant::now() + Duration::from_millis(PATIENCE_MS);
        while Instant::now() < until {
            let moved = self.woken(Duration::from_millis(PATIENCE_MS))?;
            if !moved.is_empty() {
                return Ok(moved);
            }
        }
        Err(TransferError::Peer(format!("nothing came for {PATIENCE_MS} ms")))
    }

    /// What happened until something did, somebody woke this thread, or `wait` had passed.
    fn woken(&mut self, wait: Duration) -> Result<Vec<Moved>, TransferError> {
        let mut moved = std::mem::take(&mut self.moved);
        self.end.poll(&mut moved, wait)?;
        for moved in &moved {
            match moved {
                Moved::Down { why, .. } => return Err(TransferError::Gone(why.clone())),
                Moved::Failed { why, .. } => return Err(TransferError::Peer(why.to_string())),
                _ => {}
            }
        }
        Ok(moved)
    }

    fn ask(&mut self, node: NodeId, word: &Word) -> Result<Ticket, TransferError> {
        self.end.say(node, word)?;
        loop {
            for moved in self.next()? {
                let Moved::Said { node: from, bytes } = moved else { continue };
                if from != node {
                    continue;
                }
                return match serde_json::from_slice(&bytes) {
                    Ok(Word::Done { raw }) => Ok(raw),
                    Ok(Word::Cannot { why }) => Err(TransferError::Peer(why)),
                    Ok(word) => Err(TransferError::Peer(format!("{word:?}"))),
                    Err(error) => Err(TransferError::Peer(error.to_string())),
                };
            }
        }
    }
}

fn key(run: RunId, number: u64, port: u16) -> ObjectKey {
    let invocation = InvocationId { step: (number >> 32) as u32, item: number as u32 };
    ObjectKey { run, invocation, port, item: 0 }
}
