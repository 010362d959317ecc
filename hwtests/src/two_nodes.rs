//! Two nodes that are processes of their own in a guest, one of which reads the other's bytes while the network
//! between them is changed.

use crate::conformance::{assert_bytes, expected};
use dflow_dataplane::transport::{
    Backend, Chosen, Completion, Config, ConnectionId, Epoch, Event, Lease, NodeId, Op, Region, Secret,
    Transport, open,
};
use dflow_proto::ids::{Extent, SegmentId};
use dflow_shm::segment::{Map, Segment};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Names, in its environment, what a process of a test is asked to be.
pub const ROLE: &str = "DFLOW_TEST_RDMA_ROLE";
/// The node that is read.
pub const OWNER: NodeId = NodeId(2);
/// How much of it.
pub const BYTES: u64 = 32 << 20;
/// In reads of this length, if the reader is told no other.
pub const PIECE: u64 = 1 << 20;
/// Where the owner listens: node 1 of the guest.
const ADDRESS: &str = "10.77.0.2:7711";

fn config(node: u64, listen: Option<&str>) -> Config {
    let mut config = Config::new("faults", NodeId(node), Epoch(1), Secret::new("for tests"));
    config.listen = listen.map(|address| address.parse().expect("an address"));
    config
}

/// A segment of its own.
pub fn segment(id: u32, bytes: u64) -> Arc<Map> {
    Segment::create(SegmentId(id), "faults", bytes).expect("a memfd").map_node().expect("maps")
}

/// Serves its bytes until it is killed; tells whoever connects where they are.
pub fn be_the_owner() {
    let (mut transport, _) = open(config(OWNER.0, Some(ADDRESS)), Backend::Auto).expect("opens");
    let map = segment(2, BYTES);
    let part = map.part_mut(Extent { segment: map.segment(), offset: 0, bytes: BYTES }).expect("inside");
    for at in (0..BYTES).step_by(PIECE as usize) {
        let bytes: Vec<u8> = (at..at + PIECE).map(|at| expected(OWNER.0, at)).collect();
        part.copy_in(at as usize, &bytes);
    }
    let region = transport.register(&map);
    let end = Instant::now() + Duration::from_secs(200);
    while Instant::now() < end {
        let mut events = Vec::new();
        transport.poll(&mut events, Duration::from_millis(100)).expect("polls");
        for event in events {
            if let Event::Connected { connection, .. } = event {
                let mut message = Vec::new();
                message.extend_from_slice(&region.id.to_le_bytes());
                message.extend_from_slice(&region.generation.to_le_bytes());
                let deadline = transport.now().after_ms(20_000);
                transport.submit(Op::Send { connection, message, deadline, tag: 0 }).expect("there is room");
            }
        }
    }
}

/// The owner's process, killed when it is dropped.
pub struct Owner(Child);

impl Owner {
    /// Starts it: the calling test binary's test `name`, which is told by [`ROLE`] to [be the owner](be_the_owner).
    pub fn start(name: &str) -> Owner {
        let test = std::env::current_exe().expect("the path of this test");
        let child = Command::new("on")
            .arg("1")
            .arg(test)
            .args([name, "--exact", "--nocapture"])
            .env(ROLE, "owner")
            .spawn()
            .expect("the guest has `on`");
        Owner(child)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The reading node.
pub struct Reader {
    /// Its own.
    pub transport: Box<dyn Transport>,
    map: Arc<Map>,
    /// To the owner.
    pub connection: ConnectionId,
    region: Region,
    /// The length of its reads.
    pub piece: u64,
    /// What has been read since the reads began.
    pub completions: Vec<Completion>,
    /// The connection has ended.
    pub ended: bool,
    /// The longest time without a completion.
    pub gap: Duration,
    moved: Instant,
}

impl Reader {
    /// Opens a transport, which must choose RDMA, and connects to the owner.
    pub fn connect() -> Reader {
        let (reader, chosen) = Reader::connect_as_chosen();
        assert_eq!(chosen.name, "rdma", "{}", chosen.reason);
        assert!(chosen.reason.contains("the address that peers dial"), "{}", chosen.reason);
        println!("rdma: chosen {}", chosen.reason);
        reader
    }

    /// Opens whatever transport is chosen, and connects to the owner.
    pub fn connect_as_chosen() -> (Reader, Chosen) {
        let (mut transport, chosen) = open(config(1, Some("10.77.0.1:0")), Backend::Auto).expect("opens");
        let map = segment(1, BYTES);
        transport.register(&map);
        let mut reader = Reader {
            transport,
            map,
            connection: ConnectionId(0),
            region: Region { id: 0, generation: 0, epoch: Epoch(1), bytes: BYTES },
            piece: PIECE,
            completions: Vec::new(),
            ended: true,
            gap: Duration::ZERO,
            moved: Instant::now(),
        };
        let end = Instant::now() + Duration::from_secs(30);
        while reader.region.generation == 0 {
            assert!(Instant::now() < end, "no connection to the owner");
            if reader.ended {
                // It may not listen yet.
                std::thread::sleep(Duration::from_millis(50));
                let deadline = reader.transport.now().after_ms(5_000);
                let address = ADDRESS.parse().expect("an address");
                reader.connection = reader.transport.connect(address, Some(OWNER), deadline);
                reader.ended = false;
            }
            reader.poll();
        }
        (reader, chosen)
    }

    /// Moves everything along.
    pub fn poll(&mut self) {
        let mut events = Vec::new();
        self.transport.poll(&mut events, Duration::from_millis(20)).expect("polls");
        for event in events {
            match event {
                Event::Completed(completion) => {
                    self.gap = self.gap.max(self.moved.elapsed());
                    self.moved = Instant::now();
                    self.completions.push(completion);
                }
                Event::Message { bytes, .. } => {
                    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
                    (self.region.id, self.region.generation) = (word(0), word(4));
                }
                Event::Disconnected { connection, .. } => self.ended |= connection == self.connection,
                Event::Connected { .. } => {}
            }
        }
    }

    /// Asks for all bytes of the owner.
    pub fn start_reads(&mut self) {
        self.completions.clear();
        (self.gap, self.moved) = (Duration::ZERO, Instant::now());
        for offset in (0..BYTES).step_by(self.piece as usize) {
            let extent = Extent { segment: self.map.segment(), offset, bytes: self.piece };
            let into = Lease::of(&self.map, extent).expect("inside");
            into.copy_in(0, &vec![0xEE; self.piece as usize]);
            let deadline = self.transport.now().after_ms(60_000);
            let op = Op::Read {
                connection: self.connection,
                region: self.region,
                offset,
                into,
                deadline,
                tag: offset,
            };
            self.transport.submit(op).expect("there is room");
        }
    }

    /// Polls until `count` reads have ended.
    pub fn until_completed(&mut self, count: usize) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.completions.len() < count {
            assert!(Instant::now() < end, "{} of {count} reads ended", self.completions.len());
            self.poll();
        }
    }

    /// Reads everything while `fault` happens in between; all must arrive. Bytes by RDMA and by streams.
    pub fn read_through(&mut self, what: &str, fault: impl FnOnce() -> Option<Child>) -> (u64, u64) {
        let before = self.transport.path(self.connection).expect("connected");
        let reads = (BYTES / self.piece) as usize;
        self.start_reads();
        self.until_completed(3.min(reads - 1));
        let child = fault();
        self.until_completed(reads);
        for completion in &self.completions {
            assert_eq!(completion.result, Ok(()), "{what}");
            let lease = completion.lease.as_ref().expect("a read has a lease");
            assert_bytes(lease, OWNER, completion.tag, self.piece as usize);
        }
        let after = self.transport.path(self.connection).expect("connected");
        let (card, streams) =
            (after.rdma_bytes - before.rdma_bytes, after.stream_bytes - before.stream_bytes);
        assert_eq!(card + streams, BYTES, "{what}: each byte came once");
        println!(
            "rdma: {what}: {card} bytes by RDMA, {streams} by streams, longest gap {} ms; now {}: {}",
            self.gap.as_millis(),
            after.transport,
            after.why
        );
        if let Some(mut child) = child {
            assert!(child.wait().expect("it ends").success(), "{what}");
        }
        (card, streams)
    }

    /// Polls until RDMA carries the data.
    pub fn until_on_rdma(&mut self) {
        let end = Instant::now() + Duration::from_secs(40);
        while self.path() != "rdma" {
            assert!(
                Instant::now() < end,
                "RDMA does not come back: {:?}",
                self.transport.path(self.connection)
            );
            self.poll();
        }
    }

    /// What carries the data.
    pub fn path(&self) -> &'static str {
        self.transport.path(self.connection).expect("connected").transport
    }
}

/// Starts a script.
pub fn start_shell(script: &str) -> Child {
    Command::new("sh").args(["-c", script]).spawn().expect("a shell")
}

/// Runs a script, which must succeed.
pub fn shell(script: &str) {
    assert!(start_shell(script).wait().expect("it ends").success(), "{script}");
}
