//! What goes out.

use super::receive::message_cost;
use super::state::{Phase, Stage, Task};
use super::{Engine, is_small};
use crate::transport::streams::{Outgoing, StreamId, Streams};
use crate::transport::{Broken, OpError};
use dflow_proto::wire::{Frame, HEADER_BYTES, ReadRequest, capability};
use std::io;

/// Frames that go in one send of a control stream: enough to amortise the system call, little enough that an
/// urgent frame behind them waits microseconds.
const BATCH_BYTES: usize = 256 << 10;

impl<S: Streams> Engine<S> {
    /// Sends handshake frames of a stream, if it is idle.
    pub(super) fn kick(&mut self, id: StreamId) {
        let Some(stream) = self.sockets.get_mut(&id) else { return };
        if stream.sending || stream.closing || stream.greeting.is_empty() {
            return;
        }
        stream.sending = true;
        let head = std::mem::take(&mut stream.greeting);
        self.streams.send(id, Outgoing { head, body: None });
    }

    /// A send is over.
    pub(super) fn sent(&mut self, id: StreamId, result: io::Result<()>) {
        let Some(stream) = self.sockets.get_mut(&id) else { return };
        stream.sending = false;
        if stream.closing {
            return;
        }
        if let Err(error) = result {
            return self.end_stream(id, Broken::Io(error.kind()));
        }
        if !stream.greeting.is_empty() {
            return self.kick(id);
        }
        if matches!(stream.phase, Phase::Refusing) {
            stream.closing = true;
            return self.streams.close(id, false);
        }
        let (Some(key), lane) = (stream.connection, stream.lane) else { return };
        let Some(c) = self.connections.get_mut(key) else { return };
        if lane > 0 {
            if matches!(stream.phase, Phase::Open) {
                let lane = &mut c.lanes[usize::from(lane) - 1];
                if lane.sending {
                    lane.sending = false;
                    c.serving -= 1;
                }
            }
        } else {
            c.serving -= std::mem::take(&mut c.sending_answers);
            let over = c.goodbye.is_some() && c.urgent.is_empty();
            for op in std::mem::take(&mut c.sending) {
                if let Some(operation) = self.ops.get_mut(op) {
                    operation.done_bytes = operation.bytes;
                    self.finish(op, Ok(()));
                }
            }
            if over {
                return self.drop_connection(key, Broken::Closed, false);
            }
        }
        self.mark(key);
    }

    /// Gives the driver all that can go now.
    pub(super) fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for key in dirty.drain(..) {
            let Some(c) = self.connections.get_mut(key) else { continue };
            c.dirty = false;
            if c.is_alive() {
                self.flush_control(key);
                self.flush_lanes(key);
            }
        }
        // Nothing is marked meanwhile; the allocation is kept.
        debug_assert!(self.dirty.is_empty());
        self.dirty = dirty;
    }

    fn flush_control(&mut self, key: u64) {
        let now = self.clock;
        let c = self.connections.get_mut(key).expect("the caller holds it");
        let Some((&id, agreed)) = c.streams.first().zip(c.agreed) else { return };
        let Some(stream) = self.sockets.get_mut(&id) else { return };
        if stream.sending || stream.closing || !matches!(stream.phase, Phase::Open) {
            return;
        }
        let mut head = std::mem::take(&mut stream.greeting);
        head.append(&mut c.urgent);
        while c.asked < agreed.requests_max && head.len() < BATCH_BYTES {
            let Some(op) = c.requests.pop_front() else { break };
            // Operations that ended in the queue left their number there.
            let Some(operation) = self.ops.get_mut(op) else { continue };
            let Task::Read { region, offset, .. } = operation.task else { unreachable!("a queue of reads") };
            let bytes = operation.bytes as u32;
            let mut number = 0;
            if is_small(operation.bytes) {
                self.talked = now;
            } else {
                let (at, lane) = c
                    .lanes
                    .iter_mut()
                    .enumerate()
                    .min_by_key(|(_, lane)| lane.awaited_bytes)
                    .expect("one at least");
                if lane.awaited_bytes == 0 {
                    lane.moved = now;
                }
                lane.awaited_bytes += operation.bytes as u64;
                number = at as u16 + 1;
            }
            operation.stage = Stage::Asked { lane: number };
            c.asked += 1;
            Frame::Read(ReadRequest { op, region, offset, bytes, lane: number }).encode(&mut head);
        }
        let checks = agreed.capabilities & capability::CHECKSUM != 0;
        while head.len() < BATCH_BYTES {
            let Some(answer) = c.answers.pop_front() else { break };
            let check = checks.then(|| answer.source.crc32c());
            let bytes = answer.source.bytes() as u32;
            head.extend_from_slice(&Frame::data_header(answer.op, answer.offset, check, bytes).encode());
            answer.source.append_to(&mut head);
            c.sending_answers += 1;
            self.talked = now;
        }
        while head.len() < BATCH_BYTES {
            let Some(&op) = c.messages.front() else { break };
            let Some(operation) = self.ops.get_mut(op) else {
                c.messages.pop_front();
                continue;
            };
            let Task::Send { message } = &operation.task else { unreachable!("a queue of messages") };
            if message_cost(message.len()) > c.credit {
                break;
            }
            c.credit -= message_cost(message.len());
            Frame::Message(message).encode(&mut head);
            operation.stage = Stage::Asked { lane: 0 };
            c.messages.pop_front();
            c.sending.push(op);
            self.talked = now;
        }
        if !head.is_empty() {
            stream.sending = true;
            self.streams.send(id, Outgoing { head, body: None });
        }
    }

    fn flush_lanes(&mut self, key: u64) {
        let c = self.connections.get_mut(key).expect("the caller holds it");
        let checks = c.agreed.is_some_and(|agreed| agreed.capabilities & capability::CHECKSUM != 0);
        for lane in &mut c.lanes {
            let Some(id) = lane.stream else { continue };
            let Some(stream) = self.sockets.get_mut(&id) else { continue };
            if stream.sending || stream.closing || !stream.greeting.is_empty() {
                continue;
            }
            let Some(answer) = lane.answers.pop_front() else { continue };
            let check = checks.then(|| answer.source.crc32c());
            let header = Frame::data_header(answer.op, answer.offset, check, answer.source.bytes() as u32);
            let mut head = Vec::with_capacity(HEADER_BYTES);
            head.extend_from_slice(&header.encode());
            lane.sending = true;
            stream.sending = true;
            self.streams.send(id, Outgoing { head, body: Some(answer.source) });
        }
    }

    /// The peer's answer to a read has come, or will never.
    pub(super) fn answered(&mut self, op: u64) {
        let Some(operation) = self.ops.get(op) else { return };
        let (key, bytes) = (operation.connection, operation.bytes as u64);
        let lane = match operation.stage {
            Stage::Asked { lane } | Stage::Filling { lane } => lane,
            Stage::Queued => return,
        };
        let ghost = operation.ghost;
        let Some(c) = self.connections.get_mut(key) else { return };
        c.asked -= 1;
        if lane > 0 {
            c.lanes[usize::from(lane) - 1].awaited_bytes -= bytes;
        }
        if ghost {
            c.ops.remove(&op);
        }
        if !c.requests.is_empty() {
            self.mark(key);
        }
    }

    /// Completes an operation.
    pub(super) fn finish(&mut self, op: u64, result: Result<(), OpError>) {
        let Some(operation) = self.ops.remove(op) else { return };
        if let Some(c) = self.connections.get_mut(operation.connection) {
            c.ops.remove(&op);
        }
        self.complete(op, operation, result);
    }
}
