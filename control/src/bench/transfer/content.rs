//! The bytes that are sent: no two places alike, so that a misplaced chunk is seen.

use super::{MEMORY_BYTES_MAX, TransferError};
use dflow_proto::ids::{Extent, SegmentId};
use dflow_shm::segment::{Map, Segment};
use std::sync::Arc;

const PIECE_BYTES: u64 = 1 << 20;

/// A segment whose pages are there.
pub(super) fn memory(id: SegmentId, bytes: u64) -> Result<Arc<Map>, TransferError> {
    let error = |why: String| TransferError::Memory { bytes, why };
    if bytes > MEMORY_BYTES_MAX {
        return Err(error(format!("a measurement takes at most {MEMORY_BYTES_MAX}")));
    }
    let segment = Segment::create(id, "bench", bytes.next_multiple_of(4096));
    let map = segment.and_then(|segment| segment.map_node()).map_err(|e| error(e.to_string()))?;
    let all = Extent { segment: id, offset: 0, bytes: map.bytes() };
    map.populate(all).map_err(|e| error(e.to_string()))?;
    Ok(map)
}

/// Fills memory with what [`check`] expects.
pub(super) fn fill(map: &Arc<Map>) -> Result<(), TransferError> {
    pieces(map, 0, map.bytes(), |map, extent, piece| {
        map.part_mut(extent).map(|part| part.copy_in(0, piece)).map_err(|e| e.to_string())
    })
}

/// The bytes of an object, as [`check`] expects them.
pub(super) fn made(bytes: u64) -> Vec<u8> {
    let mut made = vec![0; bytes as usize];
    let pieces = made.chunks_mut(PIECE_BYTES as usize).enumerate();
    pieces.for_each(|(i, piece)| expected(i as u64 * PIECE_BYTES, piece));
    made
}

/// Writes a part of an object that lies at the start of memory.
pub(super) fn write(map: &Arc<Map>, at: u64, part: &[u8]) -> Result<(), TransferError> {
    let bytes = part.len() as u64;
    let extent = Extent { segment: map.segment(), offset: at, bytes };
    let room = map.part_mut(extent).map_err(|e| TransferError::Memory { bytes, why: e.to_string() })?;
    room.copy_in(0, part);
    Ok(())
}

/// Forgets what lies in memory.
pub(super) fn clear(map: &Arc<Map>) -> Result<(), TransferError> {
    pieces(map, 0, map.bytes(), |map, extent, _| {
        map.part_mut(extent).map(|part| part.clear()).map_err(|e| e.to_string())
    })
}

/// Compares an object of `bytes` bytes that lies at `at`.
pub(super) fn check(map: &Arc<Map>, at: u64, bytes: u64) -> Result<(), TransferError> {
    let mut wrong = None;
    let mut have = vec![0; PIECE_BYTES as usize];
    pieces(map, at, bytes, |map, extent, piece| {
        let have = &mut have[..piece.len()];
        map.part(extent).map_err(|e| e.to_string())?.copy_out(0, have);
        if let (None, Some(i)) = (wrong, have.iter().zip(piece).position(|(a, b)| a != b)) {
            wrong = Some(extent.offset - at + i as u64);
        }
        Ok(())
    })?;
    wrong.map_or(Ok(()), |at| Err(TransferError::Wrong { bytes, at }))
}

/// Calls `with` for each piece of an object, with the bytes that belong there.
fn pieces(
    map: &Arc<Map>,
    at: u64,
    bytes: u64,
    mut with: impl FnMut(&Arc<Map>, Extent, &[u8]) -> Result<(), String>,
) -> Result<(), TransferError> {
    let mut piece = vec![0; PIECE_BYTES as usize];
    for offset in (0..bytes).step_by(PIECE_BYTES as usize) {
        let n = PIECE_BYTES.min(bytes - offset);
        expected(offset, &mut piece);
        let extent = Extent { segment: map.segment(), offset: at + offset, bytes: n };
        with(map, extent, &piece[..n as usize]).map_err(|why| TransferError::Memory { bytes, why })?;
    }
    Ok(())
}

/// The bytes that belong at `offset` of an object.
fn expected(offset: u64, piece: &mut [u8]) {
    for (i, word) in piece.chunks_exact_mut(8).enumerate() {
        let place = (offset / 8 + i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        word.copy_from_slice(&(place ^ (place >> 29)).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_byte_is_found_where_it_is() {
        let map = memory(SegmentId(1), 3 << 20).expect("memory");
        fill(&map).expect("filled");
        check(&map, 0, 3 << 20).expect("as filled");
        let extent = Extent { segment: map.segment(), offset: 2 << 20, bytes: 8 };
        map.part_mut(extent).expect("inside").clear();
        let at = match check(&map, 0, 3 << 20) {
            Err(TransferError::Wrong { at, .. }) => at,
            other => panic!("{other:?}"),
        };
        assert_eq!(at >> 3, (2 << 20) >> 3);
        assert!(check(&map, 1 << 20, 1 << 20).is_err(), "a piece in another's place is wrong");
    }
}
