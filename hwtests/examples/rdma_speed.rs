//! The figures of the RDMA transport between two nodes, for `hwtests/guest/perftest`, which sets perftest's beside them.
//!
//! `serve ADDRESS` owns memory that others read, and answers messages. The others measure against it, each in a process
//! of its own as perftest does, and print one line of `name value` pairs. All look for `SPIN_US` microseconds before they
//! sleep, if that is set.

#![expect(clippy::print_stdout, reason = "its figures go to a script")]

use anyhow::{Context, Result, bail, ensure};
use dflow_dataplane::transport::{
    Backend, Completion, Config, ConnectionId, Epoch, Event, Lease, NodeId, Op, Region, Secret, Transport,
    open,
};
use dflow_proto::ids::{Extent, SegmentId};
use dflow_shm::segment::{Map, Segment};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The served memory.
const SERVED_BYTES: u64 = 64 << 20;
/// What the owner answers with its processor's time instead of an echo.
const ASK_TIME: &[u8] = b"time";
const PATIENCE_MS: u64 = 120_000;
const OWNER: NodeId = NodeId(2);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", address] => serve(address),
        ["read", from, to, bytes, depth, count] => {
            Reader::connect(from, to)?.read(bytes.parse()?, depth.parse()?, count.parse()?)
        }
        ["send", from, to, bytes, count] => Reader::connect(from, to)?.send(bytes.parse()?, count.parse()?),
        ["open", from, count] => time_to_open(from, count.parse()?),
        _ => bail!(
            "usage: rdma_speed serve ADDRESS | read FROM TO BYTES DEPTH COUNT | send FROM TO BYTES COUNT | open FROM COUNT"
        ),
    }
}

fn config(node: NodeId, listen: &str) -> Result<Config> {
    let mut config = Config::new("speed", node, Epoch(1), Secret::new("for measurements"));
    if let Ok(spin_us) = std::env::var("SPIN_US") {
        config.spin_us = spin_us.parse().context("SPIN_US is a number of microseconds")?;
    }
    config.listen = Some(listen.parse().with_context(|| format!("the address {listen}"))?);
    Ok(config)
}

fn filled(id: u32, bytes: u64) -> Result<Arc<Map>> {
    let map = Segment::create(SegmentId(id), "speed", bytes)?.map_node()?;
    let part = map.part_mut(Extent { segment: map.segment(), offset: 0, bytes })?;
    let page = vec![id as u8; 1 << 20];
    for at in (0..bytes as usize).step_by(page.len()) {
        part.copy_in(at, &page[..page.len().min(bytes as usize - at)]);
    }
    Ok(map)
}

/// User and system time of this process, in clock ticks.
fn processor_ticks() -> Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = text.rsplit_once(')').context("/proc/self/stat has a name")?.1;
    let field = |at: usize| after_name.split_whitespace().nth(at).and_then(|word| word.parse().ok());
    Ok((field(11).context("utime")?, field(12).context("stime")?))
}

fn serve(address: &str) -> Result<()> {
    let (mut transport, chosen) = open(config(OWNER, address)?, Backend::Rdma)?;
    let map = filled(2, SERVED_BYTES)?;
    let region = transport.register(&map);
    println!("serving over {}", chosen.reason);
    loop {
        let mut events = Vec::new();
        transport.poll(&mut events, Duration::from_secs(1))?;
        for event in events {
            let (connection, message) = match event {
                Event::Connected { connection, .. } => {
                    let mut message = region.id.to_le_bytes().to_vec();
                    message.extend_from_slice(&region.generation.to_le_bytes());
                    (connection, message)
                }
                Event::Message { connection, bytes } if bytes == ASK_TIME => {
                    let (user, system) = processor_ticks()?;
                    let words = [user, system, transport.stats().registrations];
                    (connection, words.iter().flat_map(|word| word.to_le_bytes()).collect())
                }
                Event::Message { connection, bytes } => (connection, bytes),
                _ => continue,
            };
            let deadline = transport.now().after_ms(PATIENCE_MS);
            // A reader that is gone needs no answer.
            let _ = transport.submit(Op::Send { connection, message, deadline, tag: 0 });
        }
    }
}

struct Reader {
    transport: Box<dyn Transport>,
    connection: ConnectionId,
    region: Region,
    completions: VecDeque<Completion>,
    messages: VecDeque<Vec<u8>>,
    ended: bool,
}

impl Reader {
    /// Connects to the owner, which need not be there yet, and waits until RDMA carries the data.
    fn connect(from: &str, to: &str) -> Result<Reader> {
        let (transport, _) = open(config(NodeId(1), from)?, Backend::Rdma)?;
        let region = Region { id: 0, generation: 0, epoch: Epoch(1), bytes: SERVED_BYTES };
        let (completions, messages) = Default::default();
        let connection = ConnectionId(0);
        let mut reader = Reader { transport, connection, region, completions, messages, ended: true };
        let end = Instant::now() + Duration::from_secs(30);
        while reader.messages.is_empty() {
            ensure!(Instant::now() < end, "no connection to {to}");
            if std::mem::take(&mut reader.ended) {
                std::thread::sleep(Duration::from_millis(20));
                let deadline = reader.transport.now().after_ms(5_000);
                reader.connection = reader.transport.connect(to.parse()?, Some(OWNER), deadline);
            }
            reader.poll()?;
        }
        let place = reader.messages.pop_front().context("just seen")?;
        ensure!(place.len() == 8, "the owner says where its memory is");
        let word = |at: usize| u32::from_le_bytes([place[at], place[at + 1], place[at + 2], place[at + 3]]);
        (reader.region.id, reader.region.generation) = (word(0), word(4));
        let path = reader.transport.path(reader.connection).context("connected")?;
        ensure!(path.transport == "rdma", "{}: {}", path.transport, path.why);
        Ok(reader)
    }

    fn poll(&mut self) -> Result<()> {
        let mut events = Vec::new();
        self.transport.poll(&mut events, Duration::from_millis(100))?;
        for event in events {
            match event {
                Event::Completed(completion) => self.completions.push_back(completion),
                Event::Message { bytes, .. } => self.messages.push_back(bytes),
                Event::Disconnected { connection, .. } => self.ended |= connection == self.connection,
                Event::Connected { .. } => {}
            }
        }
        Ok(())
    }

    fn say(&mut self, message: Vec<u8>) -> Result<()> {
        let deadline = self.transport.now().after_ms(PATIENCE_MS);
        self.transport.submit(Op::Send { connection: self.connection, message, deadline, tag: 0 })?;
        Ok(())
    }

    fn next_message(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Ok(message);
            }
            ensure!(!self.ended, "the owner is gone");
            self.poll()?;
        }
    }

    fn owner(&mut self) -> Result<[u64; 3]> {
        self.say(ASK_TIME.to_vec())?;
        let message = self.next_message()?;
        let word = |at: usize| {
            message.get(8 * at..8 * at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes)
        };
        let mut words = [0; 3];
        for (at, place) in words.iter_mut().enumerate() {
            *place = word(at).context("three words")?;
        }
        Ok(words)
    }

    /// Reads `count` objects of `bytes`, `depth` at a time, all into the same memory, as perftest does: what differs
    /// is then not a cache.
    fn read(mut self, bytes: u64, depth: u64, count: u64) -> Result<()> {
        ensure!(0 < bytes && bytes <= SERVED_BYTES && depth > 0 && count > 0, "nothing to read");
        let map = filled(1, bytes)?;
        self.transport.register(&map);
        // What is still to come of each object under way.
        let mut parts = vec![0; depth as usize];
        // The first one of each place is not measured: page faults, the owner's key.
        for place in 0..depth {
            parts[place as usize] = self.submit(&map, bytes, place)?;
        }
        for _ in 0..depth {
            self.next_read(&mut parts)?;
        }
        let before = self.transport.stats();
        let owner_before = self.owner()?;
        let begin = Instant::now();
        for place in 0..depth.min(count) {
            parts[place as usize] = self.submit(&map, bytes, place)?;
        }
        for read in 0..count {
            let place = self.next_read(&mut parts)?;
            if read + depth < count {
                parts[place as usize] = self.submit(&map, bytes, place)?;
            }
        }
        let took = begin.elapsed().as_secs_f64();
        let owner_after = self.owner()?;
        let after = self.transport.stats();
        ensure!(after.rdma_bytes - before.rdma_bytes == bytes * count, "all came by RDMA");
        let mib = (bytes * count) as f64 / f64::from(1 << 20);
        let owner = |at: usize| owner_after[at] - owner_before[at];
        println!(
            "mib_s {:.2} seconds {took:.3} owner_user_ticks {} owner_system_ticks {} registrations {}",
            mib / took,
            owner(0),
            owner(1),
            owner(2) + after.registrations - before.registrations,
        );
        Ok(())
    }

    /// Asks for an object, in as many reads as one may be long; how many those are.
    fn submit(&mut self, map: &Arc<Map>, bytes: u64, place: u64) -> Result<u64> {
        let deadline = self.transport.now().after_ms(PATIENCE_MS);
        let (connection, region) = (self.connection, self.region);
        let most = self.transport.capabilities().read_bytes_max as u64;
        for offset in (0..bytes).step_by(most as usize) {
            let extent = Extent { segment: map.segment(), offset, bytes: most.min(bytes - offset) };
            let into = Lease::of(map, extent).context("inside")?;
            self.transport.submit(Op::Read { connection, region, offset, into, deadline, tag: place })?;
        }
        Ok(bytes.div_ceil(most))
    }

    /// The place of the next object that is whole.
    fn next_read(&mut self, parts: &mut [u64]) -> Result<u64> {
        loop {
            while let Some(completion) = self.completions.pop_front() {
                completion.result.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
                if completion.lease.is_some() {
                    let left = &mut parts[completion.tag as usize];
                    *left -= 1;
                    if *left == 0 {
                        return Ok(completion.tag);
                    }
                }
            }
            ensure!(!self.ended, "the owner is gone");
            self.poll()?;
        }
    }

    /// Sends `count` messages of `bytes`, each when the one before has come back.
    fn send(mut self, bytes: usize, count: usize) -> Result<()> {
        ensure!(bytes > ASK_TIME.len() && count > 0, "nothing to send");
        let mut took = Vec::new();
        let begin = Instant::now();
        for _ in 0..count {
            let one = Instant::now();
            self.say(vec![7; bytes])?;
            ensure!(self.next_message()?.len() == bytes, "it comes back whole");
            took.push(one.elapsed().as_secs_f64() * 5e5);
            self.completions.clear();
        }
        let mean = begin.elapsed().as_secs_f64() * 5e5 / count as f64;
        took.sort_by(f64::total_cmp);
        println!("one_way_us_mean {mean:.1} one_way_us_median {:.1}", took[count / 2]);
        Ok(())
    }
}

/// How long it takes to choose and open a transport.
fn time_to_open(from: &str, count: usize) -> Result<()> {
    let mut took = Vec::new();
    for _ in 0..count {
        let begin = Instant::now();
        let (transport, chosen) = open(config(NodeId(1), from)?, Backend::Auto)?;
        took.push(begin.elapsed().as_secs_f64() * 1e3);
        ensure!(chosen.name == "rdma", "{}", chosen.reason);
        drop(transport);
    }
    took.sort_by(f64::total_cmp);
    let worst = took.last().context("at least one")?;
    println!("open_ms_median {:.2} open_ms_max {worst:.2}", took[took.len() / 2]);
    Ok(())
}
