//! One queue pair without a transport: what each verb takes, and what a memory window keeps out.
//!
//! A transport reads. What the other ways would take is measured here, with the same card, queue pair and
//! registrations: bytes that are *read* by who wants them, *written* into a window by who has them, or *sent* into a receive
//! buffer and copied to their place. It is for measurements and tests, whose two ends trust each other.

use super::card::{Card, Done, Memory, Purpose, QUEUE_DEPTH, Receives, Waking};
use super::discover::ChosenPort;
use super::queue::{Admits, QueuePair, Work};
use super::window::Window;
use super::{BUFFER_BYTES, CardError};
use crate::transport::Lease;
use dflow_proto::ids::Extent;
use dflow_proto::wire::pairing::{Aside, LANES_MAX};
use dflow_shm::segment::Map;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One read or write moves at most so much, as a transport's does. Bytes.
pub const PIECE_BYTES: usize = super::carry::PIECE_BYTES;
/// Receive buffers, and bytes of all of them: registering is slow where pages are.
const RECEIVES_MIN: usize = 32;
const RECEIVES_MAX: usize = 256;
const RECEIVES_BYTES: usize = 32 << 20;
/// The longest message, so long that the number of messages is not what is measured. Bytes.
pub const SENT_BYTES_MAX: usize = 1 << 20;
/// Requests under way at a time.
pub const REQUESTS_MAX: usize = QUEUE_DEPTH;
/// The mark of its work.
const MARK: u64 = 1 << 32;

/// Why no more is measured.
#[derive(Debug, thiserror::Error)]
pub enum BareError {
    /// The card refused.
    #[error(transparent)]
    Card(#[from] CardError),
    /// The card did not take a request.
    #[error("the card took no more work: {0}")]
    Post(#[from] std::io::Error),
    /// A request failed, and with it the queue pair.
    #[error("the queue pair broke: {0}")]
    Broken(String),
    /// What the other end said of itself is not an end.
    #[error("the other end does not say where it is")]
    NoEnd,
    /// Memory cannot be used.
    #[error("the memory cannot be used: {0}")]
    Memory(String),
    /// The card has no windows of type 2.
    #[error(
        "this card has no memory windows of type 2: nobody can be let write; measure reads and sends instead"
    )]
    NoWindows,
}

/// Bytes that the other end may read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Address of the first, as the owner's card knows it.
    pub address: u64,
    /// How many.
    pub bytes: u64,
    /// The owner's card asks for it.
    pub key: u32,
}

/// What happened.
#[derive(Debug)]
pub enum News {
    /// The oldest request that was not done is.
    Done,
    /// The other end wrote to this one's window, with this word.
    Written(u32),
    /// A message came.
    Message(Received),
}

/// A message, which holds one of the receive buffers until it is given back.
#[derive(Debug)]
pub struct Received {
    buffer: u64,
    /// Its length.
    pub bytes: usize,
    /// What was sent beside it.
    pub word: Option<u32>,
}

/// A registered segment, all of it one lease.
struct Store {
    memory: Memory,
    lease: Rc<Lease>,
}

impl Store {
    fn new(card: &Card, map: &Arc<Map>, purpose: Purpose) -> Result<Store, BareError> {
        let whole = Extent { segment: map.segment(), offset: 0, bytes: map.bytes() };
        let lease = Lease::of(map, whole).map_err(|error| BareError::Memory(error.to_string()))?;
        Ok(Store { memory: card.register(map, purpose)?, lease: Rc::new(lease) })
    }
}

/// See the [module](self).
pub struct Bare {
    // In this order they end.
    window: Option<Window>,
    queue: QueuePair,
    source: Store,
    target: Store,
    card: Card,
    done: VecDeque<Done>,
    /// Buffers with messages that were not given back.
    held: Vec<bool>,
}

impl Bare {
    /// An end on `port`: bytes go from `source`, and come to `target`. Nobody reaches the target before
    /// [`grant`](Bare::grant). Messages may be as long as the target, up to [`SENT_BYTES_MAX`].
    pub fn open(port: &ChosenPort, source: &Arc<Map>, target: &Arc<Map>) -> Result<Bare, BareError> {
        let bytes = (target.bytes() as usize).clamp(BUFFER_BYTES, SENT_BYTES_MAX);
        let count = (RECEIVES_BYTES / bytes).clamp(RECEIVES_MIN, RECEIVES_MAX);
        let card = Card::open(port, [0; 32], &Rc::default(), Receives { count, bytes })?;
        let source = Store::new(&card, source, Purpose::Read)?;
        let purpose = if card.limits.windows { Purpose::Windows } else { Purpose::Read };
        let target = Store::new(&card, target, purpose)?;
        let window = if card.limits.windows { Some(Window::new(&card)?) } else { None };
        let queue = QueuePair::new(&card, 1, MARK, 1, Admits::ReadsAndWrites)?;
        Ok(Bare {
            queue,
            window,
            source,
            target,
            card,
            done: VecDeque::new(),
            held: vec![false; RECEIVES_MAX],
        })
    }

    /// What the other end needs to [`connect`](Bare::connect).
    pub fn end(&self) -> Vec<u8> {
        let mut ends = [None; LANES_MAX];
        ends[0] = Some(self.queue.end);
        Aside::Offer { attempt: 0, ends }.encode()
    }

    /// Connects to the other end. Both must have, before either sends anything.
    pub fn connect(&mut self, end: &[u8]) -> Result<(), BareError> {
        match Aside::decode(end) {
            Ok(Aside::Offer { ends: [Some(end), ..], .. }) => Ok(self.queue.connect(&self.card, &end)?),
            _ => Err(BareError::NoEnd),
        }
    }

    /// The source, for the other end to read.
    pub fn readable(&self) -> Reach {
        let memory = &self.source.memory;
        Reach { address: memory.address(), bytes: self.source.lease.bytes() as u64, key: memory.remote_key }
    }

    /// Lets the other end write to `bytes` bytes from byte `at` of the target, once this request is done; with Soft-RoCE to
    /// all of it. There is one grant at a time.
    pub fn grant(&mut self, at: u64, bytes: u64) -> Result<Reach, BareError> {
        let window = self.window.as_mut().ok_or(BareError::NoWindows)?;
        let address = self.target.memory.address() + at;
        let key = self.queue.open_window(window, &self.target.memory, address, bytes as usize)?;
        Ok(Reach { address, bytes, key })
    }

    /// Ends the grant, once this request is done.
    pub fn revoke(&mut self) -> Result<(), BareError> {
        let window = self.window.as_ref().ok_or(BareError::NoWindows)?;
        Ok(self.queue.close_window(window)?)
    }

    /// Reads bytes from byte `there` of `from` to byte `at` of the target.
    pub fn read(&mut self, from: Reach, there: u64, at: usize, bytes: usize) -> Result<(), BareError> {
        let Store { memory, lease } = &self.target;
        Ok(self.queue.read(0, lease, (at, bytes), memory, (from.address + there, from.key))?)
    }

    /// Writes bytes from byte `at` of the source to byte `there` of `to`. With a `word`, the other end is told.
    pub fn write(
        &mut self,
        to: Reach,
        there: u64,
        at: usize,
        bytes: usize,
        word: Option<u32>,
    ) -> Result<(), BareError> {
        let Store { memory, lease } = &self.source;
        Ok(self.queue.write(lease, (at, bytes), memory, (to.address + there, to.key), word)?)
    }

    /// Sends at most [`SENT_BYTES_MAX`] bytes from byte `at` of the source, and a `word`.
    pub fn send(&mut self, at: usize, bytes: usize, word: u32) -> Result<(), BareError> {
        let Store { memory, lease } = &self.source;
        Ok(self.queue.send_from(lease, (at, bytes), memory, word)?)
    }

    /// Sends a message of at most 8 KiB.
    pub fn say(&mut self, message: Vec<u8>) -> Result<(), BareError> {
        let full = || BareError::Post(std::io::Error::from_raw_os_error(libc::ENOMEM));
        if message.len() > BUFFER_BYTES {
            return Err(full());
        }
        self.queue.send(&mut self.card, 0, message).map_err(|_| full())
    }

    /// Requests that are not done.
    pub fn under_way(&self) -> usize {
        self.queue.posted()
    }

    /// What happens next, or has; asleep until then. Nothing, if `wait` passes before.
    pub fn next(&mut self, wait: Duration) -> Result<Option<News>, BareError> {
        let until = Instant::now() + wait;
        loop {
            if let Some(done) = self.done.pop_front() {
                return self.news(&done).map(Some);
            }
            let mut done = Vec::new();
            if !self.card.poll(&mut done) {
                self.card.arm(Waking::All);
                // What came before the card was asked to tell is not told.
                if !self.card.poll(&mut done) {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    self.sleep(left)?;
                }
            }
            self.done.extend(done);
        }
    }

    fn sleep(&self, wait: Duration) -> Result<(), BareError> {
        let [completions, _] = self.card.descriptors();
        let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&completions, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(BareError::Post(error.into())),
        }
        self.card.take_wake();
        Ok(())
    }

    fn news(&mut self, done: &Done) -> Result<News, BareError> {
        if let Err(status) = &done.result {
            return Err(BareError::Broken(status.clone()));
        }
        if !done.received {
            if let Some(Work::Send { slot: Some(slot), .. }) = self.queue.reported() {
                self.card.give_back(slot);
            }
            return Ok(News::Done);
        }
        let received = Received { buffer: done.mark, bytes: done.bytes, word: done.word };
        self.held[received.buffer as usize] = true;
        if done.written {
            self.give_back(received)?;
            return Ok(News::Written(done.word.unwrap_or(0)));
        }
        Ok(News::Message(received))
    }

    /// A message's bytes.
    ///
    /// # Panics
    /// This, and whatever else takes a message, if it came to another end.
    pub fn text(&self, received: &Received) -> Vec<u8> {
        assert!(self.held[received.buffer as usize], "the card may write there");
        self.card.message(received.buffer, received.bytes)
    }

    /// Copies a message to byte `at` of the target, and gives it back.
    pub fn place(&mut self, received: Received, at: usize) -> Result<(), BareError> {
        assert!(self.held[received.buffer as usize], "the card may write there");
        let lease = &self.target.lease;
        self.card.with_message(received.buffer, received.bytes, |bytes| lease.copy_in(at, bytes));
        self.give_back(received)
    }

    /// Gives a message's buffer back to the card.
    pub fn give_back(&mut self, received: Received) -> Result<(), BareError> {
        let held = std::mem::take(&mut self.held[received.buffer as usize]);
        assert!(held, "the card has it");
        Ok(self.card.wait_for_message(received.buffer as usize)?)
    }
}
