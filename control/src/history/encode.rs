//! Records as bytes. Times of events are written as differences, so that one takes 5 to 10 bytes.

use super::record::{Event, EventKind};
use serde::{Deserialize, Serialize};

/// Bytes that are no record of this format.
#[derive(Debug, thiserror::Error)]
#[error("a record cannot be decoded: {0}")]
pub(super) struct Undecodable(#[from] postcard::Error);

/// Any part of a record. Cannot fail: the types of `record` serialize unconditionally, and the buffer
/// grows.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).unwrap_or_default()
}

pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Undecodable> {
    Ok(postcard::from_bytes(bytes)?)
}

/// The events, as many as fit `bytes_max`, and how many do not.
pub(super) fn encode_events(events: &[Event], bytes_max: usize) -> (Vec<u8>, u64) {
    let mut out = Vec::new();
    let mut before = 0u64;
    for (index, event) in events.iter().enumerate() {
        let delta = event.at_us.wrapping_sub(before) as i64;
        let bytes = encode(&(delta, event.step, event.item, event.attempt, event.kind));
        if out.len() + bytes.len() > bytes_max {
            return (out, (events.len() - index) as u64);
        }
        before = event.at_us;
        out.extend_from_slice(&bytes);
    }
    (out, 0)
}

pub(super) fn decode_events(mut bytes: &[u8]) -> Result<Vec<Event>, Undecodable> {
    let mut events = Vec::new();
    let mut at_us = 0u64;
    while !bytes.is_empty() {
        let ((delta, step, item, attempt, kind), rest) =
            postcard::take_from_bytes::<(i64, u32, u32, u32, EventKind)>(bytes)?;
        at_us = at_us.wrapping_add(delta as u64);
        events.push(Event { at_us, step, item, attempt, kind });
        bytes = rest;
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(count: u64) -> Vec<Event> {
        let kind = |i: u64| match i % 3 {
            0 => EventKind::Started { early: i.is_multiple_of(2) },
            1 => EventKind::Sealed { port: 1, item: i as u32, bytes: i << 20 },
            _ => EventKind::Ended { ok: true, setup_us: 3, wait_us: i, put_us: 0, total_us: 400, cpu_us: 40 },
        };
        // One event is told late, and so lies before the one before it.
        let at = |i: u64| if i == 7 { 0 } else { i * 100 };
        (0..count)
            .map(|i| Event { at_us: at(i), step: i as u32 % 5, item: 0, attempt: 1, kind: kind(i) })
            .collect()
    }

    #[test]
    fn events_come_back_and_are_small() {
        let given = events(300);
        let (bytes, dropped) = encode_events(&given, usize::MAX);
        assert_eq!(dropped, 0);
        assert!(bytes.len() < 300 * 12, "{} bytes", bytes.len());
        assert_eq!(decode_events(&bytes).expect("what was encoded"), given);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let given = events(300);
        let (bytes, dropped) = encode_events(&given, 1000);
        let back = decode_events(&bytes).expect("whole events only");
        assert!(bytes.len() <= 1000 && dropped > 0);
        assert_eq!(back, given[..300 - dropped as usize]);
    }

    #[test]
    fn garbage_is_told() {
        assert!(decode_events(&[0xff; 40]).is_err());
        assert!(decode::<String>(&[200, 1, b'x']).is_err());
    }
}
