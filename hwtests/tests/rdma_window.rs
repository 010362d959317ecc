//! What a memory window keeps out: a peer that writes where it was not let; and `dflow bench`, which measures it. On this machine's card, or on Soft-RoCE in a
//! guest kernel.

#![cfg(feature = "rdma")]

use dflow_dataplane::transport::rdma::bare::{Bare, BareError, News, Reach};
use dflow_dataplane::transport::rdma::discover::ChosenPort;
use dflow_hwtests::guest::{Place, is_guest, place};
use dflow_hwtests::run::Scene;
use dflow_proto::ids::{Extent, SegmentId};
use dflow_shm::segment::{Map, Segment};
use std::sync::Arc;
use std::time::Duration;

const STORE_BYTES: u64 = 1 << 20;
/// What is granted of it.
const AT: u64 = 256 << 10;
const GRANTED: u64 = 64 << 10;
const SENT: u8 = 0xA5;
const UNTOUCHED: u8 = 0xEE;
const PATIENCE: Duration = Duration::from_secs(10);

fn store(id: u32, byte: u8) -> Arc<Map> {
    let segment = Segment::create(SegmentId(id), "window", STORE_BYTES).expect("memory");
    let map = segment.map_node().expect("memory");
    let all = Extent { segment: map.segment(), offset: 0, bytes: STORE_BYTES };
    map.part_mut(all).expect("it is ours").copy_in(0, &vec![byte; STORE_BYTES as usize]);
    map
}

/// A queue pair with both its ends: one that writes, one that grants.
struct Both {
    writer: Bare,
    owner: Bare,
    target: Arc<Map>,
}

impl Both {
    fn new(port: &ChosenPort) -> Both {
        let target = store(4, UNTOUCHED);
        let mut writer = Bare::open(port, &store(1, SENT), &store(2, UNTOUCHED)).expect("the card opens");
        let mut owner = Bare::open(port, &store(3, UNTOUCHED), &target).expect("the card opens");
        let ends = [writer.end(), owner.end()];
        writer.connect(&ends[1]).expect("it is there");
        owner.connect(&ends[0]).expect("it is there");
        Both { writer, owner, target }
    }

    fn grant(&mut self, at: u64) -> Reach {
        let reach = self.owner.grant(at, GRANTED).expect("the card takes it");
        done(&mut self.owner).expect("the window opens");
        reach
    }

    /// Writes `bytes` bytes to byte `there` of what can be reached.
    fn write(&mut self, reach: Reach, there: u64, bytes: u64) -> Result<(), String> {
        self.writer.write(reach, there, 0, bytes as usize, Some(7)).map_err(|error| error.to_string())?;
        done(&mut self.writer)
    }

    /// Which bytes of the target were written: the first, and how many.
    fn written(&self) -> Option<(u64, u64)> {
        let mut bytes = vec![0; STORE_BYTES as usize];
        let all = Extent { segment: self.target.segment(), offset: 0, bytes: STORE_BYTES };
        self.target.part(all).expect("it is ours").copy_out(0, &mut bytes);
        let first = bytes.iter().position(|byte| *byte != UNTOUCHED)?;
        let count = bytes.iter().filter(|byte| **byte != UNTOUCHED).count();
        let run = &bytes[first..first + count];
        assert!(run.iter().all(|byte| *byte == SENT), "what was written is in one piece, and right");
        Some((first as u64, count as u64))
    }
}

/// Waits until a request is done.
fn done(bare: &mut Bare) -> Result<(), String> {
    match bare.next(PATIENCE) {
        Ok(Some(News::Done)) => Ok(()),
        Ok(other) => panic!("{other:?} instead of what was asked for"),
        Err(error) => Err(error.to_string()),
    }
}

#[derive(Clone, Copy, Debug)]
enum Trespass {
    /// One byte more than was granted.
    PastTheEnd,
    /// One byte before it.
    BeforeTheStart,
    /// All of it is elsewhere in the registration.
    Elsewhere,
    /// By the key of a grant that has ended.
    Ended,
    /// By the key that the window had for the grant before this one.
    Stale,
    /// By a key that nobody has.
    Invented,
    /// By the key of what may only be read.
    ReadOnly,
    /// By the key of a window that another queue pair has opened.
    Others,
}

impl Trespass {
    /// It has a key, and goes beyond what that was granted for. Soft-RoCE looks only whether it stays in the registration.
    fn is_beyond(self) -> bool {
        matches!(self, Trespass::PastTheEnd | Trespass::BeforeTheStart | Trespass::Elsewhere)
    }
}

#[test]
fn a_window_bounds_what_a_peer_writes() {
    let Place::Here(choice) = place("a_window_bounds_what_a_peer_writes", 1) else { return };
    let port = &choice.ports[0];
    let mut bystanders = Both::new(port);
    match bystanders.owner.grant(AT, GRANTED) {
        Err(BareError::NoWindows) => return println!("SKIP rdma: this card has no memory windows of type 2"),
        granted => drop(granted.expect("the card takes it")),
    }
    done(&mut bystanders.owner).expect("the window opens");
    bystanders.owner.revoke().expect("the card takes it");
    done(&mut bystanders.owner).expect("the window closes");
    let theirs = bystanders.grant(AT);

    let mut honest = Both::new(port);
    let reach = honest.grant(AT);
    assert_eq!(honest.write(reach, 0, GRANTED), Ok(()));
    assert!(matches!(honest.owner.next(PATIENCE), Ok(Some(News::Written(7)))), "the owner is told");
    assert_eq!(honest.written(), Some((AT, GRANTED)), "all that was granted, and nothing else");

    for trespass in [
        Trespass::PastTheEnd,
        Trespass::BeforeTheStart,
        Trespass::Elsewhere,
        Trespass::Ended,
        Trespass::Stale,
        Trespass::Invented,
        Trespass::ReadOnly,
        Trespass::Others,
    ] {
        let mut both = Both::new(port);
        let reach = both.grant(AT);
        let (reach, there, bytes) = match trespass {
            Trespass::PastTheEnd => (reach, 0, GRANTED + 1),
            Trespass::BeforeTheStart => (Reach { address: reach.address - 1, ..reach }, 0, GRANTED),
            Trespass::Elsewhere => (reach, GRANTED, 8),
            Trespass::Ended | Trespass::Stale => {
                both.owner.revoke().expect("the card takes it");
                done(&mut both.owner).expect("the window closes");
                if matches!(trespass, Trespass::Stale) {
                    let again = both.grant(AT);
                    assert_ne!(again.key, reach.key);
                }
                (reach, 0, 8)
            }
            Trespass::Invented => (Reach { key: reach.key ^ 0x5a17_3c00, ..reach }, 0, 8),
            Trespass::ReadOnly => (both.owner.readable(), 0, 8),
            Trespass::Others => (theirs, 0, 8),
        };
        let refused = both.write(reach, there, bytes);
        println!("rdma: {trespass:?}: {refused:?}");
        if is_guest() && trespass.is_beyond() && refused.is_ok() {
            println!("SKIP rdma: {trespass:?}: Soft-RoCE does not bound what a window opens");
            continue;
        }
        let why = refused.expect_err("it was not let");
        assert!(why.contains("remote access error"), "{trespass:?}: {why}");
        assert_eq!(both.written(), None, "{trespass:?}: not a byte of it arrives");
        // Nobody else is disturbed, on the same card and at the same time.
        assert_eq!(bystanders.write(theirs, 0, 64), Ok(()), "{trespass:?}");
        assert!(matches!(bystanders.owner.next(PATIENCE), Ok(Some(News::Written(7)))), "{trespass:?}");
    }
    assert_eq!(bystanders.written(), Some((AT, 64)));
}

#[test]
fn each_way_is_measured() {
    let Place::Here(_) = place("each_way_is_measured", 1) else { return };
    let scene = Scene::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    let at = free.to_string();
    let rdma = ["--transport", "rdma"];
    let server = scene.start(&[&["bench", "transfer", "--listen", &at][..], &rdma].concat());
    let measure = ["--mode", "read,write,send", "--size", "3MiB", "-n", "5", "-q", "2", "-o", "json"];
    let client = [&["bench", "transfer", &at][..], &rdma, &measure].concat();
    let figures = loop {
        let ended = scene.start(&client).end();
        if ended.code == 3 && ended.stderr.contains("cannot connect") {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        ended.expect(0, &[]);
        break serde_json::from_str::<serde_json::Value>(&ended.text()).expect("JSON");
    };
    assert_eq!(figures["stopped"], serde_json::Value::Null, "{figures}");
    let rows = figures["verbs"].as_array().expect("a list");
    assert_eq!(rows.iter().map(|row| &row["mode"]).collect::<Vec<_>>(), ["read", "write", "send"]);
    for row in rows {
        assert_eq!((&row["one_way_ns"]["samples"], &row["data"]), (&5.into(), &"ok".into()), "{row}");
        assert!(row["gb_per_s_median"].as_f64() > Some(0.0), "{row}");
        // Processor time is counted in ticks, of which a READ that the card does may see none.
        assert!(row["cpu_s_per_gb"].as_f64() >= Some(0.0), "{row}");
    }
    assert!(figures["window"]["open_ns"]["p50"].as_f64() > Some(0.0), "{figures}");
    let mut server = server;
    server.child.kill().expect("its own child");
    server.end();
}
