//! How fast this machine fills and copies memory of the kind that the store is made of.

use dflow_proto::ids::{Extent, SegmentId};
use dflow_shm::segment::{PartMut, Segment};
use serde_json::{Value, json};
use std::io;
use std::time::Instant;

/// Bytes moved for one figure, at least; and how often, at most.
const BYTES_WANTED: u64 = 256 << 20;
const TIMES_MAX: u64 = 2000;

/// GB/s at one size; medians.
#[derive(Clone, Copy, Debug)]
pub struct Memcpy {
    /// Bytes filled or copied at a time.
    pub bytes: u64,
    /// Into memory whose pages are not there yet.
    pub fill_fresh: f64,
    /// Into memory used before.
    pub fill_reused: f64,
    /// From private memory into fresh memory.
    pub copy_fresh: f64,
    /// Into memory used before.
    pub copy_reused: f64,
}

impl Memcpy {
    /// Measures one size.
    pub fn measure(bytes: u64) -> io::Result<Memcpy> {
        let source = vec![7u8; bytes as usize];
        let fill = |part: &PartMut| part.clear();
        let copy = |part: &PartMut| part.copy_in(0, &source);
        Ok(Memcpy {
            bytes,
            fill_fresh: fresh(bytes, fill)?,
            fill_reused: reused(bytes, fill)?,
            copy_fresh: fresh(bytes, copy)?,
            copy_reused: reused(bytes, copy)?,
        })
    }

    /// All figures.
    pub fn json(&self) -> Value {
        json!({
            "bytes": self.bytes, "fill_fresh_gb_per_s": self.fill_fresh,
            "fill_reused_gb_per_s": self.fill_reused, "copy_fresh_gb_per_s": self.copy_fresh,
            "copy_reused_gb_per_s": self.copy_reused,
        })
    }
}

fn part(bytes: u64) -> io::Result<PartMut> {
    let segment = SegmentId(1);
    let whole = bytes.next_multiple_of(4096);
    let map =
        Segment::create(segment, "memcpy", whole).and_then(|s| s.map_node()).map_err(io::Error::other)?;
    map.part_mut(Extent { segment, offset: 0, bytes }).map_err(io::Error::other)
}

fn fresh(bytes: u64, write: impl Fn(&PartMut)) -> io::Result<f64> {
    let times = (BYTES_WANTED / bytes).clamp(3, TIMES_MAX / 10);
    let mut rates = Vec::new();
    for _ in 0..times {
        let part = part(bytes)?;
        rates.push(timed(bytes, &part, &write));
    }
    Ok(median(rates))
}

fn reused(bytes: u64, write: impl Fn(&PartMut)) -> io::Result<f64> {
    let part = part(bytes)?;
    write(&part);
    let times = (BYTES_WANTED / bytes).clamp(5, TIMES_MAX);
    Ok(median((0..times).map(|_| timed(bytes, &part, &write)).collect()))
}

fn timed(bytes: u64, part: &PartMut, write: &impl Fn(&PartMut)) -> f64 {
    let begun = Instant::now();
    write(part);
    bytes as f64 / begun.elapsed().as_nanos().max(1) as f64
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
