//! The link between a node and one worker: two rings in one memfd, and the node page that tells
//! workers when the node must be woken.

use crate::futex::{self, Bell};
use crate::ring::{Consumer, Corrupt, Memory, Producer, PushError, layout};
use crate::segment::{Map, OutOfBounds, PartMut, Segment, SegmentError};
use crate::sync::{AtomicU32, Ordering, fence};
use dflow_proto::ids::{Extent, SegmentId};
use dflow_proto::limits::{MESSAGE_BYTES_MAX, RING_BYTES};
use dflow_proto::link::{Command, Report};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Length of a link's segment in bytes.
pub const LINK_BYTES: u64 = 2 * RING_STRIDE;

const RING_STRIDE: u64 = layout::DATA as u64 + RING_BYTES as u64;

/// Links have segments of their own that no extent ever names; this stands in for their id.
const LINK_SEGMENT: SegmentId = SegmentId(u32::MAX);

/// Why a link could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No memory for it.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// Its segment is too short.
    #[error(transparent)]
    Bounds(#[from] OutOfBounds),
    /// The other side broke the protocol; end it.
    #[error("the other side of a link broke the protocol: {0}")]
    Corrupt(#[from] Corrupt),
    /// A message was not sent.
    #[error(transparent)]
    Push(#[from] PushError),
}

#[derive(Debug)]
struct Shared {
    part: PartMut,
}

impl Shared {
    fn new(map: &Arc<Map>, index: u64) -> Result<Shared, OutOfBounds> {
        let extent = Extent { segment: LINK_SEGMENT, offset: index * RING_STRIDE, bytes: RING_STRIDE };
        Ok(Shared { part: map.part_mut(extent)? })
    }
}

impl Memory for Shared {
    fn head(&self) -> &AtomicU32 {
        self.part.word(layout::HEAD)
    }
    fn tail(&self) -> &AtomicU32 {
        self.part.word(layout::TAIL)
    }
    fn sleeping(&self) -> &AtomicU32 {
        self.part.word(layout::SLEEPING)
    }
    fn write(&self, at: usize, from: &[u8]) {
        self.part.copy_in(layout::DATA + at, from);
    }
    fn read(&self, at: usize, into: &mut [u8]) {
        self.part.copy_out(layout::DATA + at, into);
    }
}

/// The node's end of a link: commands go in, reports come out.
#[derive(Debug)]
pub struct NodeEnd {
    down: Producer<Shared>,
    up: Consumer<Shared>,
    encoded: Vec<u8>,
    received: Vec<u8>,
}

impl NodeEnd {
    /// A fresh link and its segment, whose descriptor goes to the worker
    /// ([`ToZygote::Fork`](dflow_proto::zygote::ToZygote::Fork)) and may be closed after that.
    pub fn create() -> Result<(Segment, NodeEnd), LinkError> {
        let mut segment = Segment::create(LINK_SEGMENT, "dflow-link", LINK_BYTES)?;
        // A worker that truncates its link must not make the node fault.
        segment.fix_size(LINK_BYTES).map_err(|source| SegmentError::Os {
            id: LINK_SEGMENT,
            what: "fix the size of",
            bytes: LINK_BYTES,
            source,
        })?;
        let map = segment.map_node()?;
        let end = NodeEnd {
            down: Producer::new(Shared::new(&map, 0)?, RING_BYTES, MESSAGE_BYTES_MAX),
            up: Consumer::new(Shared::new(&map, 1)?, RING_BYTES, MESSAGE_BYTES_MAX),
            encoded: vec![0; MESSAGE_BYTES_MAX],
            received: Vec::new(),
        };
        Ok((segment, end))
    }

    /// Sends a command and wakes the worker if it sleeps. `PushError::Full` is pressure: the worker
    /// has not read 64 KiB of commands. `PushError::TooLong` is an invocation with too many
    /// or too long inputs for one message.
    pub fn send(&mut self, command: &Command) -> Result<(), PushError> {
        let message = encode(command, &mut self.encoded)?;
        if self.down.push(message)? {
            futex::wake(self.down.memory().tail(), 1);
        }
        Ok(())
    }

    /// The next report, if there is one. An error means the worker broke the protocol: kill it.
    pub fn receive(&mut self) -> Result<Option<Report>, Corrupt> {
        if !self.up.pop(&mut self.received)? {
            return Ok(None);
        }
        postcard::from_bytes(&self.received).map(Some).map_err(|_| Corrupt::Message)
    }

    /// Whether a report waits. For the last look before the node sleeps ([`NodePage::sleep`]).
    pub fn is_empty(&self) -> bool {
        self.up.is_empty()
    }
}

/// The worker's end of a link: commands come out, reports go in.
#[derive(Debug)]
pub struct WorkerEnd {
    /// Commands.
    pub commands: Commands,
    /// Reports.
    pub reports: Reports,
}

impl WorkerEnd {
    /// Attaches to the link whose segment came with the fork.
    pub fn attach(fd: OwnedFd) -> Result<WorkerEnd, LinkError> {
        let map = Segment::from_fd(LINK_SEGMENT, fd, LINK_BYTES)?.map_node()?;
        Ok(WorkerEnd {
            commands: Commands {
                ring: Consumer::new(Shared::new(&map, 0)?, RING_BYTES, MESSAGE_BYTES_MAX),
                received: Vec::new(),
            },
            reports: Reports {
                ring: Producer::new(Shared::new(&map, 1)?, RING_BYTES, MESSAGE_BYTES_MAX),
                encoded: vec![0; MESSAGE_BYTES_MAX],
            },
        })
    }
}

/// The receiving half of a [`WorkerEnd`].
#[derive(Debug)]
pub struct Commands {
    ring: Consumer<Shared>,
    received: Vec<u8>,
}

impl Commands {
    /// The next command: spins up to `spin_us`, then sleeps up to `timeout`. `None` if none came.
    pub fn receive(&mut self, spin_us: u32, timeout: Duration) -> Result<Option<Command>, Corrupt> {
        if let Some(command) = self.take()? {
            return Ok(Some(command));
        }
        if !futex::spin(spin_us, || !self.ring.is_empty())
            && let Some(tail) = self.ring.prepare_sleep()
        {
            futex::wait(self.ring.memory().tail(), tail, timeout);
            self.ring.awake();
        }
        self.take()
    }

    fn take(&mut self) -> Result<Option<Command>, Corrupt> {
        if !self.ring.pop(&mut self.received)? {
            return Ok(None);
        }
        postcard::from_bytes(&self.received).map(Some).map_err(|_| Corrupt::Message)
    }
}

/// The sending half of a [`WorkerEnd`].
#[derive(Debug)]
pub struct Reports {
    ring: Producer<Shared>,
    encoded: Vec<u8>,
}

impl Reports {
    /// Puts a report in the ring without waking the node; the caller rings ([`NodePage::ring`])
    /// if the report is worth it. `Full` means: ring, wait, try again.
    pub fn push(&mut self, report: &Report) -> Result<(), PushError> {
        let message = encode(report, &mut self.encoded)?;
        // The node's sleep is announced on the node page for all links at once; the flag of this
        // ring is not used.
        self.ring.push(message).map(|_| ())
    }
}

fn encode<'a, T: serde::Serialize>(message: &T, into: &'a mut [u8]) -> Result<&'a [u8], PushError> {
    let bytes_max = into.len();
    match postcard::to_slice(message, into) {
        Ok(encoded) => Ok(encoded),
        // Only a full buffer can fail here: the message types serialize unconditionally.
        Err(_) => Err(PushError::TooLong { bytes: bytes_max + 1, bytes_max }),
    }
}

/// The first page of segment 0: written by the node, read by all workers.
#[derive(Debug)]
pub struct NodePage {
    part: crate::segment::Part,
}

/// The node's own handle of its [`NodePage`].
#[derive(Debug)]
pub struct NodePageWriter {
    part: PartMut,
}

/// Length of the node page in bytes; extents of segment 0 begin after it.
pub const NODE_PAGE_BYTES: u64 = 4096;

const NODE_SLEEPING: usize = 0;
const TOKENS_WANTED: usize = 64;

fn node_page_extent() -> Extent {
    Extent { segment: SegmentId(0), offset: 0, bytes: NODE_PAGE_BYTES }
}

impl NodePage {
    /// In a worker's map of segment 0.
    pub fn attach(map: &Arc<Map>) -> Result<NodePage, OutOfBounds> {
        Ok(NodePage { part: map.part(node_page_extent())? })
    }

    /// Wakes the node by `bell` (its eventfd) if it sleeps. Called after pushing a report that
    /// the node should act on now.
    pub fn ring(&self, bell: &Bell) {
        fence(Ordering::SeqCst);
        if self.part.word(NODE_SLEEPING).load(Ordering::Relaxed) != 0 {
            bell.ring();
        }
    }

    /// As [`NodePage::ring`], for reports that only matter if someone waits for a CPU token
    /// (`Blocked`, `Resumed`); else they stay in the ring until the next one is rung.
    pub fn ring_if_tokens_wanted(&self, bell: &Bell) {
        fence(Ordering::SeqCst);
        if self.part.word(TOKENS_WANTED).load(Ordering::Relaxed) != 0 {
            self.ring(bell);
        }
    }
}

impl NodePageWriter {
    /// In the node's map of segment 0.
    pub fn new(map: &Arc<Map>) -> Result<NodePageWriter, OutOfBounds> {
        Ok(NodePageWriter { part: map.part_mut(node_page_extent())? })
    }

    /// Announces that the node is about to sleep in epoll. The node must look at all links
    /// ([`NodeEnd::is_empty`]) *after* this and must not sleep if any has a report.
    pub fn sleep(&self) {
        self.part.word(NODE_SLEEPING).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The node is awake: workers need not ring.
    pub fn awake(&self) {
        self.part.word(NODE_SLEEPING).store(0, Ordering::Relaxed);
    }

    /// Some invocation waits for a CPU token, so `Blocked` and `Resumed` should ring. After
    /// setting it the node must look at all links once: reports pushed before are silent.
    pub fn want_tokens(&self, wanted: bool) {
        self.part.word(TOKENS_WANTED).store(u32::from(wanted), Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dflow_proto::link::{Outcome, Times};
    use std::os::fd::AsFd;

    #[test]
    fn commands_and_reports_cross() {
        let (segment, mut node) = NodeEnd::create().expect("a link");
        let fd = segment.as_fd().try_clone_to_owned().expect("dup");
        let mut worker = WorkerEnd::attach(fd).expect("attaches");
        assert_eq!(worker.commands.receive(0, Duration::from_millis(1)), Ok(None));
        let thread = std::thread::spawn(move || {
            let command = worker.commands.receive(0, Duration::from_secs(10)).expect("well-formed");
            worker.reports.push(&Report::Ready { pid: 7 }).expect("room");
            (command, worker)
        });
        node.send(&Command::Retire).expect("room");
        let (command, mut worker) = thread.join().expect("no panic");
        assert_eq!(command, Some(Command::Retire));
        let ended = Report::Ended {
            outcome: Outcome::Error { name: "E".into(), message: "m".repeat(100) },
            times: Times::default(),
            tainted: false,
        };
        worker.reports.push(&ended).expect("room");
        assert_eq!(node.receive(), Ok(Some(Report::Ready { pid: 7 })));
        assert_eq!(node.receive(), Ok(Some(ended)));
        assert_eq!(node.receive(), Ok(None));
        assert!(segment.as_fd().try_clone_to_owned().is_ok());
    }

    #[test]
    fn the_bell_rings_only_for_a_sleeper() {
        let segment = Segment::create(SegmentId(0), "arena", 8192).expect("a memfd");
        let node = NodePageWriter::new(&segment.map_node().expect("maps")).expect("fits");
        let worker = NodePage::attach(&segment.map_readonly().expect("maps")).expect("fits");
        let bell = Bell::new().expect("an eventfd");
        worker.ring(&bell);
        assert!(!bell.drain(), "the node is awake");
        node.sleep();
        worker.ring_if_tokens_wanted(&bell);
        assert!(!bell.drain(), "nobody wants tokens");
        worker.ring(&bell);
        assert!(bell.drain());
        node.want_tokens(true);
        worker.ring_if_tokens_wanted(&bell);
        assert!(bell.drain());
    }
}
