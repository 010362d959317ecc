//! What each of RDMA's ways takes to bring an object to its place, without a transport around it.
//!
//! ```text
//!          who has the bytes              who wants them
//!   read   says that they are there ────▶ reads them
//!   write  writes them into a window ───▶ is told by the last one
//!   send   sends them ──────────────────▶ copies each message from its buffer to its place
//! ```
//! *One way* is half of there and back, from the bytes at their source until the other end's thread, which sleeps for
//! completions, knows that they are in place. Speed is that of several objects at a time, to the same place each, as
//! perftest's programs do it.

mod duel;

use super::{TransferError, content, cpu_seconds};
use crate::bench::stats::Quantiles;
use dflow_dataplane::transport::rdma::bare::{Bare, Reach};
use dflow_dataplane::transport::rdma::discover::ChosenPort;
use dflow_dataplane::transport::rdma::look;
use dflow_proto::ids::SegmentId;
use duel::{Duel, Order, Reply};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

/// Rounds of each way, which alternate.
const ROUNDS: u64 = 5;
/// Bytes and objects of a size that says nothing about how long.
const BYTES_WANTED: u64 = 128 << 20;
const OBJECTS_MIN: u64 = 10;
const OBJECTS_MAX: u64 = 500;
/// How often a window is opened and closed to see how long that takes.
const WINDOWS: usize = 50;

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Whoever wants the bytes reads them, when it has been told that they are there.
    Read,
    /// Whoever has the bytes writes them into a window that was granted for it.
    Write,
    /// Messages, which are copied to their place.
    Send,
}

impl Mode {
    /// Its name in results.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Read => "read",
            Mode::Write => "write",
            Mode::Send => "send",
        }
    }
}

/// What is measured for each size.
#[derive(Clone, Debug)]
pub struct VerbsPlan {
    /// The ways, in turns.
    pub modes: Vec<Mode>,
    /// Objects of each size and way there and back, and as many for speed; in all rounds together.
    pub objects: Option<u64>,
    /// Objects under way at a time, for speed.
    pub depth: u64,
}

/// An end, as the other needs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Card {
    end: Vec<u8>,
    readable: Place,
}

/// A [`Reach`], to be said.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Place {
    address: u64,
    bytes: u64,
    key: u32,
}

impl From<Reach> for Place {
    fn from(Reach { address, bytes, key }: Reach) -> Place {
        Place { address, bytes, key }
    }
}

impl From<Place> for Reach {
    fn from(Place { address, bytes, key }: Place) -> Reach {
        Reach { address, bytes, key }
    }
}

/// One size and way.
#[derive(Clone, Debug)]
pub struct VerbsRow {
    bytes: u64,
    mode: Mode,
    depth: u64,
    one_way: Vec<u64>,
    /// GB/s of each round.
    rates: Vec<f64>,
    moved: u64,
    cpu_s: f64,
}

impl VerbsRow {
    /// The heads of [`VerbsRow::cells`].
    pub const HEADS: [&'static str; 11] =
        ["bytes", "mode", "n", "one way us", "p90", "p99", "depth", "GB/s", "peak", "CPU s/GB", "data"];

    fn rate(&self) -> [f64; 2] {
        let mut sorted = self.rates.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or_default();
        [at(sorted.len() / 2), at(sorted.len().saturating_sub(1))]
    }

    fn cpu_s_per_gb(&self) -> f64 {
        self.cpu_s / (self.moved as f64 / 1e9).max(1e-12)
    }

    /// For a table or CSV: the median of one way, and of rounds.
    pub fn cells(&self) -> [String; 11] {
        let (us, [median, peak]) = (Quantiles::of(self.one_way.clone()), self.rate());
        let one = |nanos: u64| format!("{:.1}", nanos as f64 / 1e3);
        [
            self.bytes.to_string(),
            self.mode.name().into(),
            self.one_way.len().to_string(),
            one(us.p50),
            one(us.p90),
            one(us.p99),
            self.depth.to_string(),
            format!("{median:.6}"),
            format!("{peak:.6}"),
            format!("{:.3}", self.cpu_s_per_gb()),
            "ok".into(),
        ]
    }

    /// All figures.
    pub fn json(&self) -> Value {
        let [median, peak] = self.rate();
        json!({
            "bytes": self.bytes, "mode": self.mode.name(), "depth": self.depth,
            "one_way_ns": Quantiles::of(self.one_way.clone()).json(),
            "gb_per_s_median": median, "gb_per_s_peak": peak, "gb_per_s_of_rounds": self.rates,
            "cpu_s_per_gb": self.cpu_s_per_gb(), "data": "ok",
        })
    }
}

/// Nanoseconds to open a window for the other end's writes, and to close it; `None` where the card has none.
pub type WindowTimes = Option<[Quantiles; 2]>;

/// The port that is measured.
pub(super) fn port(listen: Option<IpAddr>, wish: Option<&str>) -> Result<ChosenPort, TransferError> {
    let choice = look(listen, wish).map_err(|error| TransferError::Open(error.into()))?;
    Ok(choice.ports[0].clone())
}

/// An end with memory for objects of so many bytes, and what the other needs of it.
fn open(port: &ChosenPort, bytes: u64, stop: Arc<AtomicBool>) -> Result<(Duel, Card), TransferError> {
    let source = content::memory(SegmentId(1), bytes)?;
    content::fill(&source)?;
    let target = content::memory(SegmentId(2), bytes)?;
    let bare = Bare::open(port, &source, &target)?;
    let card = Card { end: bare.end(), readable: bare.readable().into() };
    Ok((Duel::new(bare, target, stop), card))
}

/// The end that serves, in a thread of its own until the other is done or gone. Ended when this is dropped.
pub(super) struct Serving {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    /// Serves the end `other`; answers with the one here.
    pub(super) fn begin(port: ChosenPort, other: Card, bytes: u64) -> Result<(Serving, Card), TransferError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (said, heard) = sync_channel(1);
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || serve(&port, &other, bytes, stop, &said)
        });
        let serving = Serving { stop, thread: Some(thread) };
        let card = heard.recv().map_err(|_| TransferError::Peer("a thread ended badly".into()))??;
        Ok((serving, card))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Whatever it says, it has ended.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(
    port: &ChosenPort,
    other: &Card,
    bytes: u64,
    stop: Arc<AtomicBool>,
    said: &SyncSender<Result<Card, TransferError>>,
) {
    let opened = open(port, bytes, stop).and_then(|(mut duel, card)| {
        duel.connect(&other.end, other.readable.into())?;
        Ok((duel, card))
    });
    // Whoever waits for the card goes on to wait for what is measured; it sees from its own end if this one is gone.
    match opened {
        Ok((mut duel, card)) => {
            if said.send(Ok(card)).is_ok()
                && let Err(error) = duel.obey()
            {
                tracing::debug!(%error, "a measurement of verbs has ended");
            }
        }
        Err(error) => drop(said.send(Err(error))),
    }
}

/// The end that measures, in a thread of its own: says its end, is told the other's, and gives each row when it is there.
pub(super) fn measure(
    port: &ChosenPort,
    sizes: &[u64],
    plan: &VerbsPlan,
    (said, heard): (SyncSender<Card>, Receiver<Card>),
    stop: Arc<AtomicBool>,
    mut each: impl FnMut(VerbsRow),
) -> Result<WindowTimes, TransferError> {
    let gone = || TransferError::Peer("the other end was not set up".into());
    let (mut duel, card) = open(port, sizes.iter().copied().max().unwrap_or(8), stop)?;
    said.send(card).map_err(|_| gone())?;
    let other = heard.recv().map_err(|_| gone())?;
    duel.connect(&other.end, other.readable.into())?;
    let windows = duel.window_times(WINDOWS)?;
    duel.greet()?;
    for &bytes in sizes {
        for row in size(&mut duel, bytes, plan)? {
            each(row);
        }
    }
    duel.order(&Order::Done)?;
    duel.settle()?;
    Ok(windows.map(|times| times.map(Quantiles::of)))
}

fn size(duel: &mut Duel, bytes: u64, plan: &VerbsPlan) -> Result<Vec<VerbsRow>, TransferError> {
    let depth = plan.depth.clamp(1, duel.depth_max(bytes));
    let empty = |mode: &Mode| VerbsRow {
        bytes,
        mode: *mode,
        depth,
        one_way: Vec::new(),
        rates: Vec::new(),
        moved: 0,
        cpu_s: 0.0,
    };
    let mut rows: Vec<VerbsRow> = plan.modes.iter().map(empty).collect();
    let default = (BYTES_WANTED / bytes).clamp(OBJECTS_MIN, OBJECTS_MAX);
    let wanted = plan.objects.unwrap_or(default).max(1);
    for row in &rows {
        // Once before anything is timed: what is allocated or learnt at first use is not the verb's.
        echoes(duel, row.mode, bytes, 1)?;
    }
    for round in 0..ROUNDS {
        let times = wanted / ROUNDS + u64::from(round < wanted % ROUNDS);
        for row in rows.iter_mut().filter(|_| times > 0) {
            row.one_way.extend(echoes(duel, row.mode, bytes, times)?);
            let before = cpu(duel)?;
            let seconds = flood(duel, row.mode, bytes, times, depth)?;
            row.cpu_s += cpu(duel)? - before;
            row.moved += bytes * times;
            row.rates.push((bytes * times) as f64 / 1e9 / seconds);
        }
    }
    for mode in &plan.modes {
        duel.clear()?;
        duel.order(&Order::Clear)?;
        duel.reply()?;
        echoes(duel, *mode, bytes, 1)?;
        duel.check(bytes)?;
        duel.order(&Order::Check { bytes })?;
        duel.reply()?;
    }
    Ok(rows)
}

/// There and back, `times` times; nanoseconds of one way.
fn echoes(duel: &mut Duel, mode: Mode, bytes: u64, times: u64) -> Result<Vec<u64>, TransferError> {
    duel.order(&Order::Echo { mode, bytes, times })?;
    duel.reply()?;
    let mut nanos = Vec::with_capacity(times as usize);
    for _ in 0..times {
        let begun = Instant::now();
        duel.put(mode, bytes as usize)?;
        duel.get(mode, bytes as usize)?;
        nanos.push(begun.elapsed().as_nanos() as u64 / 2);
    }
    duel.settle()?;
    Ok(nanos)
}

/// `times` objects, `depth` at a time; seconds of all of them, until the end that wants them has them.
fn flood(duel: &mut Duel, mode: Mode, bytes: u64, times: u64, depth: u64) -> Result<f64, TransferError> {
    if mode != Mode::Read {
        duel.order(&Order::Take { mode, bytes, times })?;
        duel.reply()?;
    }
    duel.settle()?;
    let begun = Instant::now();
    duel.flood(mode, bytes as usize, times, depth)?;
    if mode != Mode::Read {
        duel.reply()?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    duel.settle()?;
    Ok(seconds)
}

/// Processor seconds of both ends.
fn cpu(duel: &mut Duel) -> Result<f64, TransferError> {
    duel.order(&Order::Cpu)?;
    match duel.reply()? {
        Reply::Cpu { seconds } => Ok(seconds + cpu_seconds()),
        other => Err(TransferError::Peer(format!("{other:?}"))),
    }
}
