//! What it costs to make an object immutable: the three ways, on memory as the store has it.
//!
//! - withdraw: the writer's mapping is closed; opening it for the extent's next user is shown apart;
//! - copy: the node copies the object to an extent that the function never had;
//! - write-sealed memfd: each object is a fresh memfd that is sealed against writing; what it takes
//!   longer than filling an extent that is used again, its memory being new.

use crate::report::{Goal, Report};
use crate::stats::Samples;
use anyhow::Result;
use dflow_control::bench::one::now_ns;
use dflow_proto::ids::{Extent, SegmentId};
use dflow_shm::segment::Segment;

const SIZES: [(u64, &str, usize); 4] =
    [(64 << 10, "64 KiB", 500), (1 << 20, "1 MiB", 200), (16 << 20, "16 MiB", 50), (256 << 20, "256 MiB", 9)];
const ARENA: SegmentId = SegmentId(0);

#[derive(Default)]
struct Costs {
    open: Samples,
    fill: Samples,
    withdraw: Samples,
    copy: Samples,
    memfd: Samples,
}

fn us(begin: u64) -> f64 {
    (now_ns() - begin) as f64 / 1000.0
}

/// One object of `bytes` bytes at offset 0 of the arena; its copy goes to the second half.
fn measure(bytes: u64, n: usize) -> Result<Costs> {
    let arena = Segment::create(ARENA, "bench-seal", bytes * 2)?;
    let (window, node) = (arena.window()?, arena.map_node()?);
    let extent = Extent { segment: ARENA, offset: 0, bytes };
    let away = node.part_mut(Extent { offset: bytes, ..extent })?;
    let private = vec![0x5a_u8; bytes as usize];
    // Both halves exist before anything is measured.
    window.open(extent)?.clear();
    window.close(extent)?;
    away.clear();
    let mut costs = Costs::default();
    // The first turn touches what the others use again.
    for turn in 0..=n {
        let mut begin = now_ns();
        let part = window.open(extent)?;
        let open = us(begin);
        begin = now_ns();
        part.copy_in(0, &private);
        let fill = us(begin);
        begin = now_ns();
        window.close(extent)?;
        let withdraw = us(begin);
        begin = now_ns();
        away.copy_in(0, &private);
        let copy = us(begin);
        begin = now_ns();
        sealed_memfd(&private)?;
        let memfd = us(begin) - fill;
        if turn > 0 {
            costs.open.push(open);
            costs.fill.push(fill);
            costs.withdraw.push(withdraw);
            costs.copy.push(copy);
            costs.memfd.push(memfd);
        }
    }
    Ok(costs)
}

/// Makes, fills and write-seals a memfd, and maps it for a reader.
fn sealed_memfd(from: &[u8]) -> Result<()> {
    let bytes = from.len() as u64;
    let mut segment = Segment::create(SegmentId(1), "bench-sealed", bytes)?;
    segment.fix_size(bytes)?;
    let extent = Extent { segment: SegmentId(1), offset: 0, bytes };
    let window = segment.window()?;
    let part = window.open(extent)?;
    part.copy_in(0, from);
    // The kernel refuses the seal while a writable mapping is left.
    drop((part, window));
    segment.seal_writes()?;
    segment.map_readonly()?;
    Ok(())
}

/// The benchmark `seal`.
pub(crate) fn bench(report: &mut Report, n: Option<usize>) -> Result<()> {
    report.begin("seal");
    for (bytes, name, enough) in SIZES {
        let costs = measure(bytes, n.unwrap_or(enough))?;
        report.row(&format!("{name}: fill of a reused extent"), &costs.fill, "us", &Goal::None);
        report.row(&format!("{name}: withdraw the mapping"), &costs.withdraw, "us", &Goal::None);
        report.row(&format!("{name}:   open it for the next user"), &costs.open, "us", &Goal::None);
        report.row(&format!("{name}: copy at seal (strict)"), &costs.copy, "us", &Goal::None);
        report.row(&format!("{name}: write-sealed memfd, beyond the fill"), &costs.memfd, "us", &Goal::None);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_of_sealing_work() {
        let costs = measure(64 << 10, 2).expect("measured");
        assert_eq!([&costs.open, &costs.withdraw, &costs.copy, &costs.memfd].map(Samples::len), [2; 4]);
    }
}
