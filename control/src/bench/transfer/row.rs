//! The figures of one size.

use crate::bench::stats::Quantiles;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// One kind of transfer at one size, over all rounds.
#[derive(Clone, Debug, Default)]
pub struct Side {
    nanos: Vec<u64>,
    bytes: u64,
    cpu_s: f64,
    wall: Duration,
    /// GB/s of each round.
    rates: Vec<f64>,
    round: Option<(Instant, f64, u64)>,
}

impl Side {
    pub(super) fn begin(&mut self, cpu_s: f64) {
        self.round = Some((Instant::now(), cpu_s, 0));
    }

    pub(super) fn add(&mut self, bytes: u64, nanos: Vec<u64>) {
        let moved = bytes * nanos.len() as u64;
        self.bytes += moved;
        if let Some(round) = &mut self.round {
            round.2 += moved;
        }
        self.nanos.extend(nanos);
    }

    /// Bytes that went the other way meanwhile.
    pub(super) fn add_other_way(&mut self, moved: u64) {
        self.bytes += moved;
        if let Some(round) = &mut self.round {
            round.2 += moved;
        }
    }

    pub(super) fn lasted(&self) -> Duration {
        self.round.map_or(Duration::ZERO, |(begun, ..)| begun.elapsed())
    }

    pub(super) fn end_wall(&mut self) {
        let lasted = self.lasted();
        self.wall += lasted;
        let bytes = self.round.map_or(0, |round| round.2);
        self.rates.push(bytes as f64 / 1e9 / lasted.as_secs_f64());
    }

    pub(super) fn end_cpu(&mut self, cpu_s: f64) {
        self.cpu_s += cpu_s - self.round.take().map_or(cpu_s, |round| round.1);
    }

    /// GB/s: the best round's, that of all together, the middle one's.
    pub fn rates(&self) -> [f64; 3] {
        let mut sorted = self.rates.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or_default();
        let average = self.bytes as f64 / 1e9 / self.wall.as_secs_f64().max(1e-9);
        [at(sorted.len().saturating_sub(1)), average, at(sorted.len() / 2)]
    }

    /// Processor seconds of both ends for each GB.
    pub fn cpu_s_per_gb(&self) -> f64 {
        self.cpu_s / (self.bytes as f64 / 1e9).max(1e-12)
    }

    /// Microseconds: p50, p90, p99, p99.9.
    pub fn latency_us(&self) -> [f64; 4] {
        let q = Quantiles::of(self.nanos.clone());
        [q.p50, q.p90, q.p99, q.p999].map(|nanos| nanos as f64 / 1e3)
    }

    fn messages_per_s(&self) -> f64 {
        self.nanos.len() as f64 / self.wall.as_secs_f64().max(1e-9)
    }

    fn json(&self) -> Value {
        let ([peak, average, median], [p50, p90, p99, p999]) = (self.rates(), self.latency_us());
        json!({
            "iterations": self.nanos.len(), "gb_per_s_peak": peak, "gb_per_s": average,
            "gb_per_s_median": median, "messages_per_s": self.messages_per_s(),
            "p50_us": p50, "p90_us": p90, "p99_us": p99, "p999_us": p999,
            "cpu_s_per_gb": self.cpu_s_per_gb(),
        })
    }
}

/// One size: a transport, and raw sockets beside it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Of each object.
    pub bytes: u64,
    /// Objects under way.
    pub depth: u64,
    /// Raw sockets used.
    pub streams: u16,
    /// The transport's.
    pub ours: Side,
    /// The ceiling.
    pub raw: Side,
    /// Bytes compared after the timed part, all of them right.
    pub checked_bytes: u64,
}

impl Row {
    /// The heads of [`Row::cells`].
    pub const HEADS: [&'static str; 15] = [
        "bytes",
        "n",
        "GB/s peak",
        "average",
        "msg/s",
        "p50 us",
        "p90",
        "p99",
        "p99.9",
        "CPU s/GB",
        "raw GB/s",
        "raw p50",
        "raw CPU",
        "of raw",
        "data",
    ];

    /// For a table or CSV.
    pub fn cells(&self) -> [String; 15] {
        let (rates, us, raw) = (self.ours.rates(), self.ours.latency_us(), self.raw.rates());
        let one = |value: f64| format!("{value:.1}");
        let three = |value: f64| format!("{value:.3}");
        [
            self.bytes.to_string(),
            self.ours.nanos.len().to_string(),
            three(rates[0]),
            three(rates[1]),
            format!("{:.0}", self.ours.messages_per_s()),
            one(us[0]),
            one(us[1]),
            one(us[2]),
            one(us[3]),
            three(self.ours.cpu_s_per_gb()),
            three(raw[1]),
            one(self.raw.latency_us()[0]),
            three(self.raw.cpu_s_per_gb()),
            three(rates[2] / raw[2].max(1e-12)),
            "ok".into(),
        ]
    }

    /// All figures.
    pub fn json(&self) -> Value {
        json!({
            "bytes": self.bytes, "depth": self.depth, "raw_streams": self.streams,
            "transport": self.ours.json(), "raw": self.raw.json(),
            "of_raw": self.ours.rates()[2] / self.raw.rates()[2].max(1e-12),
            "data_checked_bytes": self.checked_bytes, "data": "ok",
        })
    }
}
