//! RDMA between two nodes that are processes of their own, and what happens when its parts are taken away while
//! transfers are under way. The faults are real, so they need a guest of their own; `DFLOW_GUEST` names one.

#![expect(clippy::print_stdout, reason = "its two processes tell each other and the test on their stdout")]
#![cfg(feature = "rdma")]

use dflow_dataplane::transport::rdma::{CardError, look, try_out};
use dflow_dataplane::transport::{
    Backend, Completion, Config, ConnectionId, Epoch, Event, Lease, NodeId, Op, OpError, Region, Secret,
    Transport, open,
};
use dflow_hwtests::conformance::{assert_bytes, expected};
use dflow_hwtests::guest::{Place, is_guest, place};
use dflow_proto::ids::{Extent, SegmentId};
use dflow_shm::segment::{Map, Segment};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the owner's process is asked to be.
const ROLE: &str = "DFLOW_TEST_RDMA_ROLE";
const OWNER: NodeId = NodeId(2);
const BYTES: u64 = 32 << 20;
const PIECE: u64 = 1 << 20;
/// Where the owner listens: node 1 of the guest.
const ADDRESS: &str = "10.77.0.2:7711";

fn config(node: u64, listen: Option<&str>) -> Config {
    let mut config = Config::new("faults", NodeId(node), Epoch(1), Secret::new("for tests"));
    config.listen = listen.map(|address| address.parse().expect("an address"));
    config
}

fn segment(id: u32, bytes: u64) -> Arc<Map> {
    Segment::create(SegmentId(id), "faults", bytes).expect("a memfd").map_node().expect("maps")
}

/// Serves its bytes until it is killed; tells whoever connects where they are.
fn be_the_owner() {
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
struct Owner(Child);

impl Owner {
    fn start() -> Owner {
        let test = std::env::current_exe().expect("the path of this test");
        let child = Command::new("on")
            .arg("1")
            .arg(test)
            .args(["faults", "--exact", "--nocapture"])
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
struct Reader {
    transport: Box<dyn Transport>,
    map: Arc<Map>,
    connection: ConnectionId,
    region: Region,
    completions: Vec<Completion>,
    ended: bool,
    /// The longest time without a completion.
    gap: Duration,
    moved: Instant,
}

impl Reader {
    fn connect() -> Reader {
        let (mut transport, chosen) = open(config(1, Some("10.77.0.1:7711")), Backend::Auto).expect("opens");
        assert_eq!(chosen.name, "rdma", "{}", chosen.reason);
        assert!(chosen.reason.contains("the address that peers dial"), "{}", chosen.reason);
        println!("rdma: chosen {}", chosen.reason);
        let map = segment(1, BYTES);
        transport.register(&map);
        let mut reader = Reader {
            transport,
            map,
            connection: ConnectionId(0),
            region: Region { id: 0, generation: 0, epoch: Epoch(1), bytes: BYTES },
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
        reader
    }

    fn poll(&mut self) {
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

    fn start_reads(&mut self) {
        self.completions.clear();
        (self.gap, self.moved) = (Duration::ZERO, Instant::now());
        for offset in (0..BYTES).step_by(PIECE as usize) {
            let extent = Extent { segment: self.map.segment(), offset, bytes: PIECE };
            let into = Lease::of(&self.map, extent).expect("inside");
            into.copy_in(0, &vec![0xEE; PIECE as usize]);
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

    fn until_completed(&mut self, count: usize) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.completions.len() < count {
            assert!(Instant::now() < end, "{} of {count} reads ended", self.completions.len());
            self.poll();
        }
    }

    /// Reads everything while `fault` happens in between; all must arrive. Bytes by RDMA and by streams.
    fn read_through(&mut self, what: &str, fault: impl FnOnce() -> Option<Child>) -> (u64, u64) {
        let before = self.transport.path(self.connection).expect("connected");
        let reads = (BYTES / PIECE) as usize;
        self.start_reads();
        self.until_completed(3);
        let child = fault();
        self.until_completed(reads);
        for completion in &self.completions {
            assert_eq!(completion.result, Ok(()), "{what}");
            let lease = completion.lease.as_ref().expect("a read has a lease");
            assert_bytes(lease, OWNER, completion.tag, PIECE as usize);
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

    fn until_on_rdma(&mut self) {
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

    fn path(&self) -> &'static str {
        self.transport.path(self.connection).expect("connected").transport
    }
}

fn shell(script: &str) -> Option<Child> {
    Some(Command::new("sh").args(["-c", script]).spawn().expect("a shell"))
}

#[test]
fn faults() {
    match std::env::var(ROLE).as_deref() {
        Ok("owner") => return be_the_owner(),
        Ok("little-memory") => return have_little_memory(),
        _ => {}
    }
    let Place::Here(_) = place("faults", 2) else { return };
    if !is_guest() {
        println!("SKIP rdma faults: they would take this machine's network down; a guest is needed");
        return;
    }
    let owner = Owner::start();
    let mut reader = Reader::connect();
    assert_eq!(reader.path(), "rdma", "{:?}", reader.transport.path(reader.connection));

    let (card, _) = reader.read_through("undisturbed", || None);
    assert_eq!(card, BYTES);

    let loss = "for n in 0 1; do on $n tc qdisc add dev eth0 root netem loss 1% delay 200us; done";
    let (card, _) = reader.read_through("with 1% of packets lost", || shell(loss));
    assert!(card > 0);
    assert!(
        shell("for n in 0 1; do on $n tc qdisc del dev eth0 root; done")
            .expect("starts")
            .wait()
            .expect("ends")
            .success()
    );
    reader.until_on_rdma();

    let (_, streams) = reader.read_through("card removed", || shell("rdma link delete rxe0"));
    assert!(streams > 0 && reader.path() != "rdma");
    assert!(reader.gap < Duration::from_secs(5), "no deadline of the test was near: {:?}", reader.gap);

    assert!(
        shell("rdma link add rxe0 type rxe netdev eth0").expect("starts").wait().expect("ends").success()
    );
    reader.until_on_rdma();
    let (card, _) = reader.read_through("card added again", || None);
    assert_eq!(card, BYTES);

    reader.read_through("port down for a while", || {
        shell("ip link set eth0 down; sleep 0.3; ip link set eth0 up")
    });
    reader.until_on_rdma();
    assert!(reader.transport.stats().downgrades >= 2);

    reader.start_reads();
    reader.until_completed(3);
    drop(owner);
    reader.until_completed((BYTES / PIECE) as usize);
    let lost = reader.completions.iter().filter(|completion| completion.result == Err(OpError::Disconnected));
    println!("rdma: peer killed: {} of {} reads were lost with it", lost.count(), reader.completions.len());
    assert!(reader.completions.iter().all(|completion| completion.lease.is_some()), "each lease comes back");
    let end = Instant::now() + Duration::from_secs(30);
    while !reader.ended {
        assert!(Instant::now() < end, "its end is told");
        reader.poll();
    }
    drop(reader);
    starve();
}

/// Starts this test with little lockable memory, as a user with the usual limit would.
fn starve() {
    let test = std::env::current_exe().expect("the path of this test");
    let script = r#"ulimit -l 64; exec setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock "$0" "$@""#;
    let child = Command::new("bash")
        .args(["-c", script])
        .arg(test)
        .args(["faults", "--exact", "--nocapture"])
        .env(ROLE, "little-memory")
        .output()
        .expect("a shell");
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{text}{}", String::from_utf8_lossy(&child.stderr));
    text.lines().filter(|line| line.starts_with("rdma:")).for_each(|line| println!("{line}"));
}

fn have_little_memory() {
    let choice = look(None, None).expect("the card is there");
    let error = try_out(&choice, &segment(1, BYTES)).expect_err("it cannot be locked");
    println!("\nrdma: little memory: {error}");
    assert!(
        matches!(error, CardError::MemLock { have_bytes: 65_536, need_bytes } if need_bytes > 65_536),
        "{error}"
    );
    assert!(error.to_string().contains("ulimit -l unlimited"), "{error}");
}
