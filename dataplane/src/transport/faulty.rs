//! A transport that fails on purpose, over any other.
//!
//! Faults come from a seed: completions that turn into errors, completions and messages that are held back, and
//! connections that break after so many bytes. The laws hold for it as for every transport: what it delays or
//! spoils still completes exactly once.

use super::{
    Capabilities, ConnectionId, Event, NodeId, Op, OpError, OpId, OpenError, Path, PollError, Refused,
    Region, Stats, Transport, Wake,
};
use dflow_proto::Tick;
use dflow_shm::segment::Map;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// How often what goes wrong.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Decides which.
    pub seed: u64,
    /// Of a thousand reads that succeed, so many are reported as failed.
    pub errors_per_mille: u32,
    /// Of a thousand events, so many are held back, and all that follow of that connection with them.
    pub stalls_per_mille: u32,
    /// For how long, microseconds at most.
    pub stall_us_max: u64,
    /// Of a thousand connections, so many break.
    pub breaks_per_mille: u32,
    /// After how many bytes, at most.
    pub break_bytes_max: u64,
}

impl Faults {
    /// No faults.
    pub const fn none(seed: u64) -> Faults {
        Faults {
            seed,
            errors_per_mille: 0,
            stalls_per_mille: 0,
            stall_us_max: 0,
            breaks_per_mille: 0,
            break_bytes_max: 0,
        }
    }

    /// Held back completions only: everything still succeeds, later.
    pub const fn stalls(seed: u64) -> Faults {
        Faults { stalls_per_mille: 100, stall_us_max: 2_000, ..Faults::none(seed) }
    }

    /// All kinds, often.
    pub const fn storm(seed: u64) -> Faults {
        Faults {
            seed,
            errors_per_mille: 50,
            stalls_per_mille: 50,
            stall_us_max: 2_000,
            breaks_per_mille: 500,
            break_bytes_max: 8 << 20,
        }
    }
}

/// See the [module](self).
pub struct Faulty<T: Transport> {
    inner: T,
    faults: Faults,
    random: u64,
    /// Held back until the time given; in order of arrival.
    held: VecDeque<(Tick, Event)>,
    scratch: Vec<Event>,
}

impl<T: Transport> Faulty<T> {
    /// Lets `inner` fail.
    pub fn new(inner: T, faults: Faults) -> Faulty<T> {
        Faulty { inner, faults, random: faults.seed, held: VecDeque::new(), scratch: Vec::new() }
    }

    fn below(&mut self, bound: u64) -> u64 {
        // xorshift64*, never at 0.
        let mut x = self.random | 1;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random = x;
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound.max(1)
    }

    fn strikes(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.below(1000) < u64::from(per_mille)
    }

    fn connection(event: &Event) -> ConnectionId {
        match event {
            Event::Connected { connection, .. }
            | Event::Disconnected { connection, .. }
            | Event::Message { connection, .. } => *connection,
            Event::Completed(completion) => completion.connection,
        }
    }

    /// When the next event may go. Only the first of each connection counts: the others wait for it.
    fn next_release(&self) -> Option<Tick> {
        let mut seen = Vec::new();
        let mut next = None;
        for (until, event) in &self.held {
            let connection = Self::connection(event);
            if !seen.contains(&connection) {
                seen.push(connection);
                next = Some(next.map_or(*until, |next: Tick| next.min(*until)));
            }
        }
        next
    }

    fn spoil(&mut self, event: &mut Event) {
        match event {
            Event::Completed(completion)
                if completion.result.is_ok()
                    && completion.lease.is_some()
                    && self.strikes(self.faults.errors_per_mille) =>
            {
                completion.result = Err(OpError::Injected);
                completion.done_bytes = self.below(completion.done_bytes as u64 + 1) as usize;
            }
            Event::Connected { connection, .. } if self.strikes(self.faults.breaks_per_mille) => {
                let after = 1 + self.below(self.faults.break_bytes_max);
                self.inner.sever(*connection, after);
            }
            _ => {}
        }
    }
}

impl<T: Transport> Transport for Faulty<T> {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn now(&self) -> Tick {
        self.inner.now()
    }

    fn address(&self) -> Option<SocketAddr> {
        self.inner.address()
    }

    fn register(&mut self, map: &Arc<Map>) -> Region {
        self.inner.register(map)
    }

    fn deregister(&mut self, region: Region) -> bool {
        self.inner.deregister(region)
    }

    fn connect(&mut self, address: SocketAddr, node: Option<NodeId>, deadline: Tick) -> ConnectionId {
        self.inner.connect(address, node, deadline)
    }

    fn submit(&mut self, op: Op) -> Result<OpId, Refused> {
        self.inner.submit(op)
    }

    fn cancel(&mut self, op: OpId) {
        self.inner.cancel(op);
    }

    fn poll(&mut self, events: &mut Vec<Event>, wait: Duration) -> Result<(), PollError> {
        let now = self.inner.now();
        let first = self.next_release();
        let wait = first.map_or(wait, |until| wait.min(Duration::from_micros(until.since_us(now))));
        let mut found = std::mem::take(&mut self.scratch);
        self.inner.poll(&mut found, wait)?;
        let now = self.inner.now();
        // Connections of which something is still held back: what follows must not overtake it.
        let mut blocked = Vec::new();
        for (until, event) in std::mem::take(&mut self.held) {
            let connection = Self::connection(&event);
            if until > now || blocked.contains(&connection) {
                blocked.push(connection);
                self.held.push_back((until, event));
            } else {
                events.push(event);
            }
        }
        for mut event in found.drain(..) {
            self.spoil(&mut event);
            let connection = Self::connection(&event);
            if self.strikes(self.faults.stalls_per_mille) {
                let until = Tick(now.0 + 1 + self.below(self.faults.stall_us_max));
                blocked.push(connection);
                self.held.push_back((until, event));
            } else if blocked.contains(&connection) {
                self.held.push_back((now, event));
            } else {
                events.push(event);
            }
        }
        self.scratch = found;
        Ok(())
    }

    fn close(&mut self, connection: ConnectionId) {
        self.inner.close(connection);
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.inner.waker()
    }

    fn watch(&mut self, fd: OwnedFd) -> Result<(), OpenError> {
        self.inner.watch(fd)
    }

    fn sever(&mut self, connection: ConnectionId, after_bytes: u64) {
        self.inner.sever(connection, after_bytes);
    }

    fn path(&self, connection: ConnectionId) -> Option<Path> {
        self.inner.path(connection)
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}
