//! What the arena's preparations are worth: GB/s of filling an extent whose pages are fresh, were prefaulted,
//! or are used again, beside a memcpy between private buffers, with and without huge pages.
//!
//! `cargo run --release -p dflow-dataplane --example arena_write [MIB]`
#![allow(clippy::print_stdout)]

use dflow_dataplane::{Arena, ArenaConfig, LocalStore};
use dflow_proto::ids::{Extent, InvocationId, RunId};
use dflow_proto::store::{Limits, Owner, Purpose, Reserve, Sealed};
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 5;
const MIB: u64 = 1 << 20;

fn owner() -> Owner {
    Owner { run: RunId(1), invocation: InvocationId { step: 0, item: 0 }, attempt: 1 }
}

/// GB/s of `work` on `bytes`.
fn speed(bytes: u64, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    bytes as f64 / start.elapsed().as_secs_f64() / 1e9
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

struct Measured {
    fresh: f64,
    prefaulted: f64,
    reused: f64,
    prefault: f64,
}

fn measure(source: &[u8], huge_pages: bool) -> Result<(Measured, String), Box<dyn std::error::Error>> {
    let bytes = source.len() as u64;
    let (mut fresh, mut prefaulted, mut reused, mut prefault) = (vec![], vec![], vec![], vec![]);
    let mut backing = String::new();
    for _ in 0..ROUNDS {
        for ahead in [false, true] {
            let arena_bytes = 4 * bytes + 64 * MIB;
            let arena = Arena::new(&ArenaConfig { bytes: arena_bytes, huge_pages, prefault_bytes: 0 })?;
            backing = arena.huge_pages().to_string();
            let mut store = LocalStore::new(arena, Limits { arena_bytes, ..Limits::default() });
            let mut fill = |populate: &mut Vec<f64>| -> Result<f64, Box<dyn std::error::Error>> {
                let Reserve::Granted(grant) = store.reserve(owner(), bytes, Purpose::Output) else {
                    return Err("an empty store has no room".into());
                };
                let extent = Extent { bytes, ..grant };
                if ahead && populate.len() < prefaulted.len() + 1 {
                    let map = store.arena().map().clone();
                    let mut result = Ok(());
                    populate.push(speed(bytes, || result = map.populate(extent)));
                    result?;
                }
                let part = store.arena().part_mut(extent)?;
                let speed = speed(bytes, || part.copy_in(0, black_box(source)));
                store.drop_owner(owner(), Sealed::Keep);
                Ok(speed)
            };
            let first = fill(&mut prefault)?;
            reused.push(fill(&mut prefault)?);
            if ahead { prefaulted.push(first) } else { fresh.push(first) }
        }
    }
    let measured = Measured {
        fresh: median(fresh),
        prefaulted: median(prefaulted),
        reused: median(reused),
        prefault: median(prefault),
    };
    Ok((measured, backing))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mib = std::env::args().nth(1).map_or(Ok(256), |text| text.parse::<u64>())?;
    let bytes = mib * MIB;
    let source = vec![0x5a_u8; bytes as usize];
    let mut target = vec![1_u8; bytes as usize];
    let memcpy =
        median((0..ROUNDS).map(|_| speed(bytes, || target.copy_from_slice(black_box(&source)))).collect());
    println!("{mib} MiB, GB/s, median of {ROUNDS}; memcpy between private buffers: {memcpy:.1}");
    println!("{:>10} {:>10} {:>10} {:>12}  huge pages", "fresh", "prefaulted", "reused", "prefaulting");
    for huge_pages in [true, false] {
        let (m, backing) = measure(&source, huge_pages)?;
        println!("{:10.1} {:10.1} {:10.1} {:12.1}  {backing}", m.fresh, m.prefaulted, m.reused, m.prefault);
    }
    Ok(())
}
