//! Reading objects over a transport, as a get does: in chunks, several under way.

use super::{PATIENCE_MS, TransferError};
use dflow_dataplane::transport::{ConnectionId, Event, Lease, Op, Region, Transport};
use dflow_proto::ids::Extent;
use dflow_proto::transfer::TransferLimits;
use dflow_shm::segment::Map;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where objects come from and go to.
pub(super) struct Pull<'a> {
    pub transport: &'a mut dyn Transport,
    pub connection: ConnectionId,
    pub region: Region,
    pub target: &'a Arc<Map>,
    /// Size of each object.
    pub bytes: u64,
    /// Objects under way, each with a place of its own in the target.
    pub depth: u64,
    /// What the peer said meanwhile.
    pub heard: Vec<Vec<u8>>,
}

struct Object {
    begun: Instant,
    asked: u64,
    done: u64,
}

impl Pull<'_> {
    /// Reads `times` objects; nanoseconds of each.
    pub(super) fn round(&mut self, times: u64) -> Result<Vec<u64>, TransferError> {
        let mut places: Vec<Option<Object>> = (0..self.depth).map(|_| None).collect();
        let mut nanos = Vec::with_capacity(times as usize);
        let (mut begun, mut events, mut under_way) = (0, Vec::new(), 0);
        let limits = TransferLimits::default();
        let chunk = limits.chunk_bytes.min(self.transport.capabilities().read_bytes_max as u64);
        while (nanos.len() as u64) < times {
            for (place, object) in places.iter_mut().enumerate() {
                if object.is_none() && begun < times {
                    *object = Some(Object { begun: Instant::now(), asked: 0, done: 0 });
                    begun += 1;
                }
                let Some(object) = object else { continue };
                while object.asked < self.bytes && object.asked - object.done < limits.peer_window_bytes {
                    let n = chunk.min(self.bytes - object.asked);
                    self.read(place as u64, object.asked, n)?;
                    object.asked += n;
                    under_way += 1;
                }
            }
            self.transport.poll(&mut events, Duration::from_secs(1))?;
            for event in events.drain(..) {
                match event {
                    Event::Completed(completion) => {
                        completion.result?;
                        let Some(lease) = completion.lease else { continue };
                        drop(lease);
                        under_way -= 1;
                        let place = &mut places[completion.tag as usize];
                        let Some(object) = place else { continue };
                        object.done += completion.done_bytes as u64;
                        if object.done == self.bytes {
                            nanos.push(object.begun.elapsed().as_nanos() as u64);
                            *place = None;
                        }
                    }
                    Event::Disconnected { why, .. } => return Err(why.into()),
                    Event::Message { bytes, .. } => self.heard.push(bytes),
                    Event::Connected { .. } => {}
                }
            }
        }
        debug_assert_eq!(under_way, 0);
        Ok(nanos)
    }

    fn read(&mut self, place: u64, offset: u64, bytes: u64) -> Result<(), TransferError> {
        let at = place * stride(self.bytes) + offset;
        let extent = Extent { segment: self.target.segment(), offset: at, bytes };
        let into = Lease::of(self.target, extent)
            .map_err(|e| TransferError::Memory { bytes, why: e.to_string() })?;
        let deadline = self.transport.now().after_ms(PATIENCE_MS);
        let (connection, region) = (self.connection, self.region);
        self.transport
            .submit(Op::Read { connection, region, offset, into, deadline, tag: place })
            .map_err(|refused| TransferError::Refused(refused.why))?;
        Ok(())
    }
}

/// From the start of one object in the target to that of the next.
pub(super) fn stride(bytes: u64) -> u64 {
    bytes.next_multiple_of(64)
}
