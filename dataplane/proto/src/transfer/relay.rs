//! How one object with many readers spreads.

use crate::wire::NodeId;
use alloc::vec::Vec;

/// Up to so many readers are served by the holder itself when the object is small.
const DIRECT_MAX: usize = 4;

/// Whom a holder announces an object to, and whom each of them is to serve in turn.
///
/// A large object goes along a chain: every node receives once and sends once, so with chunks passed on as they
/// come the last reader is done a few chunks after the first, however many there are. Where the chain would be
/// longer than the object has chunks, it is split in two at each step, which doubles what a node sends but halves
/// the way.
pub fn relay_plan(nodes: &[NodeId], size: u64, chunk_bytes: u64) -> Vec<(NodeId, Vec<NodeId>)> {
    let chunks = size / chunk_bytes.max(1);
    let branches = match nodes.len() {
        count if chunks == 0 && count <= DIRECT_MAX => count,
        count if count as u64 * 4 <= chunks => 1,
        _ => 2,
    };
    let mut plan: Vec<(NodeId, Vec<NodeId>)> = Vec::new();
    let length = nodes.len().div_ceil(branches.max(1)).max(1);
    for part in nodes.chunks(length) {
        if let Some((first, rest)) = part.split_first() {
            plan.push((*first, rest.to_vec()));
        }
    }
    plan
}
