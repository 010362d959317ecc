//! How operations, streams and connections end.

use super::Engine;
use super::state::{Operation, Phase, Stage, Task};
use crate::transport::streams::{StreamId, Streams};
use crate::transport::{Broken, Completion, ConnectionId, Event, OpError, OpId};
use dflow_proto::Tick;
use dflow_proto::wire::handshake::HandshakeError;
use dflow_proto::wire::{Frame, READ_BYTES_MAX};

/// How long a goodbye may take to leave. Milliseconds.
const GOODBYE_MS_MAX: u64 = 1000;
/// A lane that brings fewer bytes a millisecond than this is as good as dead.
const LANE_BYTES_PER_MS_MIN: u64 = 64;

impl<S: Streams> Engine<S> {
    /// Tells the caller that an operation has ended.
    pub(super) fn complete(&mut self, op: u64, operation: Operation, result: Result<(), OpError>) {
        let lease = match operation.task {
            Task::Read { lease, .. } => Some(lease.expect("an operation ends after its lease is back")),
            Task::Send { .. } => None,
        };
        let result = match result {
            Err(OpError::TimedOut { .. }) => {
                Err(OpError::TimedOut { done_bytes: operation.done_bytes, bytes: operation.bytes })
            }
            other => other,
        };
        if lease.is_some() {
            self.stats.read_bytes += operation.done_bytes as u64;
            if let Some(c) = self.connections.get_mut(operation.connection) {
                c.read_bytes += operation.done_bytes as u64;
            }
        }
        self.stats.completed += 1;
        self.found.push_back(Event::Completed(Completion {
            op: OpId(op),
            tag: operation.tag,
            connection: ConnectionId(operation.connection),
            result,
            done_bytes: operation.done_bytes,
            lease,
        }));
    }

    /// Completes a read whose answer is still to come: its number stays taken until then.
    pub(super) fn finish_as_ghost(&mut self, op: u64, why: OpError) {
        let Some(operation) = self.ops.get_mut(op) else { return };
        operation.ghost = true;
        let Task::Read { region, offset, lease } = &mut operation.task else {
            unreachable!("only reads are answered")
        };
        let task = Task::Read { region: *region, offset: *offset, lease: lease.take() };
        let mut over =
            Operation::new(operation.connection, operation.tag, operation.deadline, operation.bytes, task);
        over.done_bytes = operation.done_bytes;
        self.complete(op, over, Err(why));
    }

    /// Ends an operation early.
    pub(super) fn stop_operation(&mut self, op: u64, why: OpError) {
        let Some(operation) = self.ops.get_mut(op) else { return };
        if operation.ghost || operation.stop.is_some() {
            return;
        }
        let key = operation.connection;
        match (operation.stage, &operation.task) {
            (Stage::Queued, _) => self.finish(op, Err(why)),
            (Stage::Asked { .. }, Task::Send { .. }) => {
                // It is in the kernel's hands: a cancel comes too late, a deadline does not wait.
                if matches!(why, OpError::TimedOut { .. }) {
                    self.finish(op, Err(why));
                }
            }
            (Stage::Asked { .. }, Task::Read { .. }) => {
                if let Some(c) = self.connections.get_mut(key) {
                    Frame::Cancel { op }.encode(&mut c.urgent);
                }
                self.finish_as_ghost(op, why);
                self.mark(key);
            }
            (Stage::Filling { lane }, _) => {
                operation.stop = Some(why);
                let connection = self.connections.get(key);
                let lane = connection.and_then(|c| c.lanes.get(usize::from(lane) - 1));
                if let Some(stream) = lane.and_then(|lane| lane.stream) {
                    self.streams.interrupt(stream);
                }
            }
        }
    }

    /// Ends a connection. Its operations end now, or as soon as the driver gives their memory back.
    pub(super) fn drop_connection(&mut self, key: u64, why: Broken, abort: bool) {
        let Some(c) = self.connections.get_mut(key) else { return };
        if c.ending.is_some() {
            return;
        }
        if matches!(
            why,
            Broken::Malformed(_) | Broken::Misbehaved(_) | Broken::Handshake(HandshakeError::OutOfOrder)
        ) {
            self.stats.misbehaved += 1;
        }
        tracing::debug!(connection = key, %why, "connection ends");
        let result = if why == Broken::Closed { OpError::Cancelled } else { OpError::Disconnected };
        c.ending = Some(why);
        c.answers.clear();
        c.lanes.iter_mut().for_each(|lane| lane.answers.clear());
        if let Some(agreed) = &c.agreed
            && c.dialled.is_none()
        {
            self.sessions.remove(&agreed.session);
        }
        let (ops, streams) = (std::mem::take(&mut c.ops), c.streams.clone());
        for op in ops {
            let Some(operation) = self.ops.get_mut(op) else { continue };
            match operation.stage {
                _ if operation.ghost => drop(self.ops.remove(op)),
                Stage::Filling { .. } => {
                    operation.stop.get_or_insert(result.clone());
                }
                Stage::Queued | Stage::Asked { .. } => self.finish(op, Err(result.clone())),
            }
        }
        for id in streams {
            if let Some(stream) = self.sockets.get_mut(&id)
                && !stream.closing
            {
                stream.closing = true;
                self.streams.close(id, abort);
            }
        }
    }

    /// The last that is heard of a stream.
    pub(super) fn stream_closed(&mut self, id: StreamId) {
        let Some(stream) = self.sockets.remove(&id) else { return };
        let Some(key) = stream.connection else { return };
        let Some(c) = self.connections.get_mut(key) else { return };
        c.streams.retain(|other| *other != id);
        if !c.streams.is_empty() {
            return;
        }
        let c = self.connections.remove(key).expect("looked up above");
        let why = c.ending.unwrap_or(Broken::Hangup);
        self.found.push_back(Event::Disconnected { connection: ConnectionId(key), why });
    }

    /// Ends a connection in good order: operations are cancelled, the peer is told.
    pub(super) fn say_goodbye(&mut self, key: u64) {
        let until = self.streams.now().after_ms(GOODBYE_MS_MAX);
        let Some(c) = self.connections.get_mut(key) else { return };
        if !c.is_open() {
            return self.drop_connection(key, Broken::Closed, true);
        }
        c.goodbye = Some(until);
        let ops: Vec<u64> = c.ops.iter().copied().collect();
        ops.into_iter().for_each(|op| self.stop_operation(op, OpError::Cancelled));
        if let Some(c) = self.connections.get_mut(key) {
            Frame::Goodbye.encode(&mut c.urgent);
        }
        self.note_deadline(until);
        self.mark(key);
    }

    /// Ends what has had its time.
    pub(super) fn expire(&mut self) {
        let now = self.clock;
        if now < self.deadline_min {
            return;
        }
        let mut next = Tick(u64::MAX);
        let mut due = Vec::new();
        for (op, operation) in self.ops.iter() {
            match () {
                () if operation.ghost || operation.stop.is_some() => {}
                () if operation.deadline <= now => due.push(op),
                () => next = next.min(operation.deadline),
            }
        }
        due.into_iter().for_each(|op| self.stop_operation(op, OpError::TimedOut { done_bytes: 0, bytes: 0 }));
        for key in self.connections.keys() {
            next = next.min(self.expire_connection(key, now));
        }
        let mut late = Vec::new();
        for (id, stream) in &self.sockets {
            if !stream.closing && !matches!(stream.phase, Phase::Open) {
                match stream.deadline <= now {
                    true => late.push(*id),
                    false => next = next.min(stream.deadline),
                }
            }
        }
        late.into_iter().for_each(|id| self.end_stream(id, Broken::DialTimedOut));
        self.deadline_min = next;
    }

    /// Looks after one connection's times; answers when to look again.
    fn expire_connection(&mut self, key: u64, now: Tick) -> Tick {
        let (ping_ms, silence_ms) = (self.config.ping_ms, self.config.silence_ms_max);
        let never = Tick(u64::MAX);
        let Some(c) = self.connections.get_mut(key) else { return never };
        if c.ending.is_some() {
            return never;
        }
        if !c.open {
            if c.deadline <= now {
                self.drop_connection(key, Broken::DialTimedOut, true);
            }
            return self.connections.get(key).map_or(never, |c| c.deadline);
        }
        if c.goodbye.is_some_and(|until| until <= now) {
            self.drop_connection(key, Broken::Closed, true);
            return never;
        }
        if c.heard.after_ms(silence_ms) <= now {
            self.drop_connection(key, Broken::Silent { ms: silence_ms }, true);
            return never;
        }
        let mut next = c.heard.after_ms(silence_ms).min(c.goodbye.unwrap_or(never));
        // A receive into memory is reported when it is whole, so a slow lane is given time by its bytes.
        for lane in c.lanes.iter().filter(|lane| lane.awaited_bytes > 0) {
            let ms = silence_ms + lane.awaited_bytes.min(READ_BYTES_MAX as u64) / LANE_BYTES_PER_MS_MIN;
            if lane.moved.after_ms(ms) <= now {
                self.drop_connection(key, Broken::Silent { ms }, true);
                return never;
            }
            next = next.min(lane.moved.after_ms(ms));
        }
        match c.heard.after_ms(ping_ms) {
            ping if ping > now => next.min(ping),
            _ if c.pinged => next,
            _ => {
                c.pinged = true;
                Frame::Ping { cookie: now.0 }.encode(&mut c.urgent);
                self.mark(key);
                next
            }
        }
    }
}
