//! What comes in.

use super::state::{Answer, CONTROL_BUFFER_BYTES, Expect, LANE_BUFFER_BYTES, Phase, Stage, Task};
use super::{Engine, is_small};
use crate::transport::memory::Source;
use crate::transport::streams::{StreamEvent, StreamId, Streams, Target};
use crate::transport::{Broken, ConnectionId, Event, OpError};
use dflow_proto::wire::handshake::{AcceptStep, DialStep};
use dflow_proto::wire::{
    ErrorCode, Frame, HEADER_BYTES, Header, Kind, ReadRequest, WIRE_MESSAGE_BYTES_MAX, next_frame,
};
use std::io;

/// What a message costs of the credit: its bytes and its frame, so that empty ones are not free.
pub(super) const fn message_cost(bytes: usize) -> u64 {
    (bytes + HEADER_BYTES) as u64
}

impl<S: Streams> Engine<S> {
    /// Handles what happened to a stream.
    pub(super) fn take_in(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Accepted(stream) => self.accepted(stream),
            StreamEvent::Dialled(stream, Ok(())) => {
                self.kick(stream);
                self.receive(stream);
            }
            StreamEvent::Dialled(stream, Err(error)) => {
                let Some(connection) = self.sockets.get(&stream).and_then(|s| s.connection) else { return };
                let address = self.connections.get(connection).and_then(|c| c.dialled);
                let address = address.map(|address| address.to_string()).unwrap_or_default();
                self.drop_connection(connection, Broken::Dial { address, kind: error.kind() }, true);
            }
            StreamEvent::Received { stream, target, bytes, result } => {
                self.received(stream, target, bytes, result);
            }
            StreamEvent::Sent { stream, outgoing: _, result } => self.sent(stream, result),
            StreamEvent::Woken => self.woken = true,
            StreamEvent::Watched => self.watched = true,
            StreamEvent::Closed(stream) => self.stream_closed(stream),
        }
    }

    fn received(&mut self, id: StreamId, target: Target, bytes: usize, result: io::Result<()>) {
        let Some(stream) = self.sockets.get_mut(&id) else { return };
        stream.receiving = false;
        let (key, lane) = (stream.connection, stream.lane);
        let mut filled = None;
        match target {
            Target::Buffer { buffer, at, .. } => {
                stream.buffer = buffer;
                stream.end = at + bytes;
            }
            Target::Memory { lease, at, .. } => {
                let Expect::Payload { op, .. } = stream.expect else {
                    unreachable!("memory is received into only for a payload")
                };
                let operation = self.ops.get_mut(op).expect("an operation lives while its lease is out");
                let Task::Read { lease: slot, .. } = &mut operation.task else { unreachable!("it reads") };
                *slot = Some(lease);
                operation.done_bytes = at + bytes;
                operation.stage = Stage::Asked { lane };
                filled = Some(op);
            }
        }
        let now = self.clock;
        let mut severed = false;
        if let Some(c) = key.and_then(|key| self.connections.get_mut(key)) {
            if bytes > 0 {
                c.heard = now;
                c.pinged = false;
                if lane > 0 {
                    c.lanes[usize::from(lane) - 1].moved = now;
                }
            }
            if let Some(left) = &mut c.sever_after {
                *left = left.saturating_sub(bytes as u64);
                severed = *left == 0;
            }
            if c.ending.is_some() {
                if let Some(op) = filled {
                    let why = self.ops.get_mut(op).and_then(|op| op.stop.take());
                    self.finish(op, Err(why.unwrap_or(OpError::Disconnected)));
                }
                return;
            }
        }
        if severed {
            return self.end_stream(id, Broken::Severed);
        }
        if let Err(broken) = self.digest(id) {
            return self.end_stream(id, broken);
        }
        if let Err(error) = result {
            let broken = match error.kind() {
                io::ErrorKind::UnexpectedEof => Broken::Hangup,
                kind => Broken::Io(kind),
            };
            return self.end_stream(id, broken);
        }
        self.receive(id);
    }

    /// A stream cannot go on, and with it its connection, if it has one.
    pub(super) fn end_stream(&mut self, id: StreamId, why: Broken) {
        let Some(stream) = self.sockets.get_mut(&id) else { return };
        match stream.connection {
            Some(connection) => self.drop_connection(connection, why, true),
            None if !stream.closing => {
                stream.closing = true;
                self.streams.close(id, true);
            }
            None => {}
        }
    }

    /// Uses what has been received, as far as it goes.
    fn digest(&mut self, id: StreamId) -> Result<(), Broken> {
        loop {
            let Some(stream) = self.sockets.get_mut(&id) else { return Ok(()) };
            if stream.closing || matches!(stream.phase, Phase::Refusing) {
                return Ok(());
            }
            let (lane, connection) = (stream.lane, stream.connection);
            match (&stream.phase, &mut stream.expect) {
                (_, Expect::Payload { op, check }) => {
                    let (op, check) = (*op, *check);
                    if !self.payload_moved(id, op, check) {
                        return Ok(());
                    }
                }
                (_, Expect::Unwanted { bytes, op }) => {
                    *bytes -= stream.end;
                    (stream.start, stream.end) = (0, 0);
                    if *bytes > 0 {
                        return Ok(());
                    }
                    let op = *op;
                    stream.expect = Expect::Frame;
                    self.answered(op);
                    self.ops.remove(op);
                }
                (Phase::Open, Expect::Frame) if lane > 0 => {
                    let have = &stream.buffer[stream.start..stream.end];
                    let Some((header, rest)) = have.split_first_chunk::<HEADER_BYTES>() else {
                        return Ok(());
                    };
                    debug_assert!(rest.is_empty(), "a lane's header is received exactly");
                    let header = Header::decode(header)?;
                    (stream.start, stream.end) = (0, 0);
                    let connection = connection.expect("an open stream has a connection");
                    self.lane_data(id, connection, lane, &header)?;
                }
                (_, Expect::Frame) => {
                    let buffer = std::mem::take(&mut stream.buffer);
                    let (start, end) = (stream.start, stream.end);
                    let outcome = self.one_frame(id, &buffer[start..end]);
                    let Some(stream) = self.sockets.get_mut(&id) else { return Ok(()) };
                    stream.buffer = buffer;
                    match outcome? {
                        Some(used) => stream.start += used,
                        None => return Ok(()),
                    }
                }
            }
        }
    }

    /// Handles the frame at the front of `bytes`, if it is complete; answers how long it was.
    fn one_frame(&mut self, id: StreamId, bytes: &[u8]) -> Result<Option<usize>, Broken> {
        let Some((frame, used)) = next_frame(bytes)? else { return Ok(None) };
        let stream = self.sockets.get_mut(&id).expect("the caller holds it");
        match &mut stream.phase {
            Phase::Dialling(dialer) => {
                let step = dialer.receive(&frame, &self.config.secret)?;
                match step {
                    DialStep::Send(frame) => {
                        frame.encode(&mut stream.greeting);
                        self.kick(id);
                    }
                    DialStep::Open(agreed) => {
                        stream.phase = Phase::Open;
                        self.stream_dialled(id, agreed)?;
                    }
                }
            }
            Phase::Accepting(acceptor) => {
                let step = acceptor.receive(&frame, &self.config.secret)?;
                let refusal = match step {
                    AcceptStep::Send(frame) => {
                        frame.encode(&mut stream.greeting);
                        None
                    }
                    AcceptStep::Refuse(refusal) => Some(refusal),
                    AcceptStep::Proven => self.admit(id).err(),
                };
                if let Some(refusal) = refusal {
                    let stream = self.sockets.get_mut(&id).expect("the caller holds it");
                    Frame::Refuse(refusal).encode(&mut stream.greeting);
                    stream.phase = Phase::Refusing;
                }
                self.kick(id);
            }
            Phase::Open => {
                let connection = stream.connection.expect("an open stream has a connection");
                self.control_frame(connection, frame)?;
            }
            Phase::Refusing => {}
        }
        Ok(Some(used))
    }

    /// A frame on an open control stream.
    fn control_frame(&mut self, key: u64, frame: Frame<'_>) -> Result<(), Broken> {
        match frame {
            Frame::Read(request) => self.serve(key, request)?,
            Frame::Data { op, offset, check, payload } => {
                let header = Frame::data_header(op, offset, check, payload.len() as u32);
                let wanted = self.awaited(key, 0, &header)?;
                if wanted {
                    let operation = self.ops.get_mut(op).expect("awaited");
                    let Task::Read { lease: Some(lease), .. } = &operation.task else {
                        unreachable!("awaited")
                    };
                    lease.copy_in(0, payload);
                    operation.done_bytes = payload.len();
                    self.answered(op);
                    self.check_and_finish(op, check);
                } else {
                    self.answered(op);
                    self.ops.remove(op);
                }
            }
            Frame::Error { op, code } => {
                let Some(operation) = self.ops.get(op).filter(|operation| operation.connection == key) else {
                    return Err(Broken::Misbehaved("an answer to nothing that was asked"));
                };
                if !matches!(operation.stage, Stage::Asked { .. }) || self.is_filling(op) {
                    return Err(Broken::Misbehaved("an answer to nothing that was asked"));
                }
                let ghost = operation.ghost;
                self.answered(op);
                match ghost {
                    true => drop(self.ops.remove(op)),
                    false => self.finish(op, Err(OpError::Remote(code))),
                }
            }
            Frame::Cancel { op } => self.cancel_answer(key, op),
            Frame::Message(bytes) => {
                self.talked = self.clock;
                let c = self.connections.get_mut(key).expect("its stream is alive");
                let credit = c.agreed.map_or(0, |agreed| u64::from(agreed.message_credit_bytes));
                c.taken += message_cost(bytes.len());
                if c.taken > credit {
                    return Err(Broken::Misbehaved("more messages than it had credit for"));
                }
                if !c.open {
                    c.early.push(bytes.to_vec());
                    return Ok(());
                }
                self.found.push_back(Event::Message { connection: ConnectionId(key), bytes: bytes.to_vec() });
                self.give_credit(key);
            }
            Frame::Credit { bytes } => {
                let c = self.connections.get_mut(key).expect("its stream is alive");
                c.credit = c.credit.saturating_add(bytes);
                if c.agreed.is_none_or(|agreed| c.credit > agreed.message_credit_bytes.into()) {
                    return Err(Broken::Misbehaved("more credit than was used"));
                }
                self.mark(key);
            }
            Frame::Ping { cookie } => {
                let c = self.connections.get_mut(key).expect("its stream is alive");
                if c.urgent.len() > WIRE_MESSAGE_BYTES_MAX {
                    return Err(Broken::Misbehaved("more pings than answers it takes"));
                }
                Frame::Pong { cookie }.encode(&mut c.urgent);
                self.mark(key);
            }
            Frame::Pong { .. } => {}
            Frame::Goodbye => self.drop_connection(key, Broken::Goodbye, false),
            Frame::Hello(_)
            | Frame::Challenge(_)
            | Frame::Proof(_)
            | Frame::Welcome(_)
            | Frame::Refuse(_) => {
                return Err(Broken::Misbehaved("a handshake on an open stream"));
            }
        }
        Ok(())
    }

    /// Lets the peer send as much again as the application was handed, once that is worth a frame.
    pub(super) fn give_credit(&mut self, key: u64) {
        let Some(c) = self.connections.get_mut(key) else { return };
        let credit = c.agreed.map_or(0, |agreed| u64::from(agreed.message_credit_bytes));
        if c.taken > 0 && c.taken >= credit / 2 {
            Frame::Credit { bytes: c.taken }.encode(&mut c.urgent);
            c.taken = 0;
            self.mark(key);
        }
    }

    /// Checks that `header` answers a read that was asked for there. Whether its lease is still waiting.
    fn awaited(&self, key: u64, lane: u16, header: &Header) -> Result<bool, Broken> {
        let operation = self.ops.get(header.op).filter(|operation| operation.connection == key);
        let operation = operation.ok_or(Broken::Misbehaved("data that was not asked for"))?;
        let Task::Read { offset, .. } = operation.task else {
            return Err(Broken::Misbehaved("data in answer to a message"));
        };
        let fits = operation.bytes == header.body_bytes as usize && offset == header.offset;
        if operation.stage != (Stage::Asked { lane }) || !fits {
            return Err(Broken::Misbehaved("data other than was asked for"));
        }
        Ok(!operation.ghost)
    }

    /// Whether a lane is in the middle of this read's payload.
    fn is_filling(&self, op: u64) -> bool {
        let connection = self.ops.get(op).and_then(|op| self.connections.get(op.connection));
        let mut streams = connection.into_iter().flat_map(|c| &c.streams);
        streams.any(|stream| {
            self.sockets.get(stream).is_some_and(|stream| match stream.expect {
                Expect::Payload { op: filling, .. } | Expect::Unwanted { op: filling, .. } => filling == op,
                Expect::Frame => false,
            })
        })
    }

    /// The header of a payload has come on a lane.
    fn lane_data(&mut self, id: StreamId, key: u64, lane: u16, header: &Header) -> Result<(), Broken> {
        if header.kind != Kind::Data {
            return Err(Broken::Misbehaved("a lane carries nothing but data"));
        }
        let wanted = self.awaited(key, lane, header)?;
        let check = (header.flags & Header::CHECKED != 0).then_some(header.check);
        let stream = self.sockets.get_mut(&id).expect("the caller holds it");
        stream.expect = match wanted {
            true => Expect::Payload { op: header.op, check },
            false => Expect::Unwanted { bytes: header.body_bytes as usize, op: header.op },
        };
        Ok(())
    }

    /// Some of a payload has come (or none yet). Whether the lane is free for what follows.
    fn payload_moved(&mut self, id: StreamId, op: u64, check: Option<u32>) -> bool {
        let operation = self.ops.get_mut(op).expect("an operation lives while its payload comes");
        let rest = operation.bytes - operation.done_bytes;
        if rest > 0 && operation.stop.is_none() {
            return false;
        }
        let stop = operation.stop.take();
        let stream = self.sockets.get_mut(&id).expect("the caller holds it");
        if rest == 0 {
            stream.expect = Expect::Frame;
            self.answered(op);
            self.check_and_finish(op, check);
        } else {
            stream.expect = Expect::Unwanted { bytes: rest, op };
            self.finish_as_ghost(op, stop.expect("checked above"));
        }
        true
    }

    fn check_and_finish(&mut self, op: u64, check: Option<u32>) {
        let operation = self.ops.get(op).expect("the caller holds it");
        let mut result = Ok(());
        if let (Some(want), Task::Read { lease: Some(lease), .. }) = (check, &operation.task) {
            let have = lease.crc32c();
            if have != want {
                result = Err(OpError::Corrupt { have, want });
            }
        }
        self.finish(op, result);
    }

    /// A read by the peer.
    fn serve(&mut self, key: u64, request: ReadRequest) -> Result<(), Broken> {
        let epoch = self.config.epoch;
        let c = self.connections.get_mut(key).expect("its stream is alive");
        c.serving += 1;
        if c.serving > c.agreed.map_or(0, |agreed| agreed.requests_max) {
            return Err(Broken::Misbehaved("more reads at a time than were agreed"));
        }
        if is_small(request.bytes as usize) != (request.lane == 0)
            || usize::from(request.lane) > c.lanes.len()
        {
            return Err(Broken::Misbehaved("a read that asks for the wrong stream"));
        }
        let region = request.region;
        let slot = self.regions.get(region.id as usize).filter(|slot| slot.0 == region.generation);
        let source = match slot.and_then(|slot| slot.1.as_ref()) {
            _ if region.epoch != epoch => Err(ErrorCode::StaleEpoch(epoch.0)),
            _ if c.goodbye.is_some() => Err(ErrorCode::Closing),
            None => Err(ErrorCode::NoRegion),
            Some(map) => Source::new(map, request.offset, request.bytes.into())
                .ok_or(ErrorCode::OutOfRange(map.bytes())),
        };
        match source {
            Ok(source) => {
                self.stats.served_bytes += source.bytes() as u64;
                let answer = Answer { op: request.op, offset: request.offset, source };
                match request.lane {
                    0 => c.answers.push_back(answer),
                    lane => c.lanes[usize::from(lane) - 1].answers.push_back(answer),
                }
            }
            Err(code) => {
                c.serving -= 1;
                Frame::Error { op: request.op, code }.encode(&mut c.urgent);
            }
        }
        self.mark(key);
        Ok(())
    }

    /// The peer does not want a read any more. What is already being sent goes on.
    fn cancel_answer(&mut self, key: u64, op: u64) {
        let c = self.connections.get_mut(key).expect("its stream is alive");
        let found = {
            let mut queues = c.lanes.iter_mut().map(|lane| &mut lane.answers).chain([&mut c.answers]);
            queues.find_map(|queue| {
                let at = queue.iter().position(|answer| answer.op == op)?;
                queue.remove(at)
            })
        };
        if found.is_some() {
            c.serving -= 1;
            Frame::Error { op, code: ErrorCode::Cancelled }.encode(&mut c.urgent);
            self.mark(key);
        }
    }

    /// Asks the driver for what comes next on a stream.
    pub(super) fn receive(&mut self, id: StreamId) {
        let Some(stream) = self.sockets.get_mut(&id) else { return };
        if stream.receiving || stream.closing {
            return;
        }
        let allowed =
            stream.connection.and_then(|key| self.connections.get(key)).map_or(usize::MAX, |c| c.allowed());
        let is_open_lane = stream.lane > 0 && matches!(stream.phase, Phase::Open);
        let target = match stream.expect {
            Expect::Payload { op, .. } => {
                let operation = self.ops.get_mut(op).expect("an operation lives while its payload comes");
                let (at, to) = (operation.done_bytes, operation.bytes);
                operation.stage = Stage::Filling { lane: stream.lane };
                let Task::Read { lease, .. } = &mut operation.task else { unreachable!("it reads") };
                let lease = lease.take().expect("between receives the lease is here");
                Target::Memory { lease, at, to: to.min(at.saturating_add(allowed)) }
            }
            Expect::Unwanted { bytes, .. } => {
                let buffer = std::mem::take(&mut stream.buffer);
                let to = bytes.min(buffer.len()).min(allowed);
                Target::Buffer { buffer, at: 0, to }
            }
            Expect::Frame => {
                let is_control = stream.lane == 0 && stream.connection.is_some();
                let bytes = if is_control { CONTROL_BUFFER_BYTES } else { LANE_BUFFER_BYTES };
                let mut buffer = std::mem::take(&mut stream.buffer);
                buffer.resize(bytes, 0);
                if stream.start == stream.end {
                    (stream.start, stream.end) = (0, 0);
                } else if buffer.len() - stream.end < HEADER_BYTES + WIRE_MESSAGE_BYTES_MAX {
                    buffer.copy_within(stream.start..stream.end, 0);
                    (stream.start, stream.end) = (0, stream.end - stream.start);
                }
                let have = &buffer[stream.start..stream.end];
                // What follows a handshake on a lane is payload, so nothing beyond it may be received here.
                let exact = is_open_lane || stream.lane > 0 || stream.connection.is_none();
                let mut to = if exact { stream.end + missing(have) } else { buffer.len() };
                to = to.min(stream.end.saturating_add(allowed));
                Target::Buffer { buffer, at: stream.end, to }
            }
        };
        stream.receiving = true;
        self.streams.receive(id, target);
    }
}

/// How many bytes complete the header, or the frame whose header is there.
fn missing(have: &[u8]) -> usize {
    match have.split_first_chunk::<HEADER_BYTES>() {
        None => HEADER_BYTES - have.len(),
        Some((header, body)) => {
            let length = Header::decode(header).map_or(0, |header| header.body_bytes as usize);
            // A header that does not decode has already ended the stream.
            length.saturating_sub(body.len()).max(1)
        }
    }
}
