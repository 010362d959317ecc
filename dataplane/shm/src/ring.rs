//! A single-producer single-consumer ring of messages in memory that two processes share.
//!
//! A message is its length (`u32`, little-endian) and its bytes, padded to four. `tail` counts
//! bytes ever pushed, `head` bytes ever popped, both modulo 2^32. Each side keeps its own index in
//! private memory and only *publishes* it; of the shared memory it trusts nothing: the other's
//! index is copied once and checked against the own one, a length against what is there. A peer
//! that breaks the protocol gets [`Corrupt`] out of the other side, never a wild read.
//!
//! The consumer may sleep on `tail`. It sets `sleeping`, and then looks once more; the producer
//! publishes `tail`, and then looks at `sleeping`. With a sequentially consistent fence between
//! the two steps on both sides one of them sees the other (Dekker), so no wake is lost, and a
//! producer whose consumer is awake makes no system call.

use crate::sync::{AtomicU32, Ordering, fence};

/// Where the parts of a ring lie, from its first byte. The indices have a cache line (pair) each.
pub(crate) mod layout {
    /// `head`, written by the consumer.
    pub(crate) const HEAD: usize = 0;
    /// `tail`, written by the producer; the word the consumer sleeps on.
    pub(crate) const TAIL: usize = 128;
    /// `sleeping`, written by the consumer.
    pub(crate) const SLEEPING: usize = 256;
    /// The messages.
    pub(crate) const DATA: usize = 384;
}

/// The other side broke the protocol; the link is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// Its index is ahead of or behind what is possible.
    #[error("a ring's index moved from {own} to {peer}, beyond its {capacity} bytes")]
    Index {
        /// This side's index.
        own: u32,
        /// The other's, as read.
        peer: u32,
        /// Bytes in the ring.
        capacity: u32,
    },
    /// A message's length cannot be right.
    #[error("a ring holds a message of {bytes} bytes where {available} are readable")]
    Length {
        /// As read.
        bytes: u32,
        /// What the indices allow.
        available: u32,
    },
    /// A message does not decode.
    #[error("a ring holds a message that cannot be decoded")]
    Message,
}

/// Why a message was not pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// No room now: the consumer is slow.
    #[error("the ring is full")]
    Full,
    /// No room ever.
    #[error("a message of {bytes} bytes exceeds the limit of {bytes_max}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The other side broke the protocol.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// The memory a ring lives in: real (a part of a map) or a model (loom).
pub(crate) trait Memory {
    fn head(&self) -> &AtomicU32;
    fn tail(&self) -> &AtomicU32;
    fn sleeping(&self) -> &AtomicU32;
    /// Copies to byte `at` of the data, which with the length stays inside of it.
    fn write(&self, at: usize, from: &[u8]);
    /// Copies from byte `at` of the data, which with the length stays inside of it.
    fn read(&self, at: usize, into: &mut [u8]);
}

fn padded(bytes: u32) -> u32 {
    4 + bytes.next_multiple_of(4)
}

/// The pushing side.
#[derive(Debug)]
pub(crate) struct Producer<M> {
    memory: M,
    capacity: u32,
    bytes_max: usize,
    tail: u32,
    head_seen: u32,
}

impl<M: Memory> Producer<M> {
    /// `capacity` is a power of two. Both sides begin on zeroed memory.
    pub(crate) fn new(memory: M, capacity: u32, bytes_max: usize) -> Self {
        assert!(capacity.is_power_of_two() && bytes_max + 8 <= capacity as usize);
        Producer { memory, capacity, bytes_max, tail: 0, head_seen: 0 }
    }

    /// Pushes one message. `Ok(true)` means that the consumer sleeps (or is about to) and must be
    /// woken.
    pub(crate) fn push(&mut self, message: &[u8]) -> Result<bool, PushError> {
        if message.len() > self.bytes_max {
            return Err(PushError::TooLong { bytes: message.len(), bytes_max: self.bytes_max });
        }
        let need = padded(message.len() as u32);
        if self.free()? < need {
            self.head_seen = self.memory.head().load(Ordering::Acquire);
            if self.free()? < need {
                return Err(PushError::Full);
            }
        }
        self.write(self.tail, &(message.len() as u32).to_le_bytes());
        self.write(self.tail.wrapping_add(4), message);
        self.tail = self.tail.wrapping_add(need);
        self.memory.tail().store(self.tail, Ordering::Release);
        fence(Ordering::SeqCst);
        Ok(self.memory.sleeping().load(Ordering::Relaxed) != 0)
    }

    fn free(&self) -> Result<u32, Corrupt> {
        let used = self.tail.wrapping_sub(self.head_seen);
        let error = Corrupt::Index { own: self.tail, peer: self.head_seen, capacity: self.capacity };
        self.capacity.checked_sub(used).ok_or(error)
    }

    fn write(&self, index: u32, bytes: &[u8]) {
        let at = (index & (self.capacity - 1)) as usize;
        let first = bytes.len().min(self.capacity as usize - at);
        self.memory.write(at, &bytes[..first]);
        self.memory.write(0, &bytes[first..]);
    }

    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }
}

/// The popping side.
#[derive(Debug)]
pub(crate) struct Consumer<M> {
    memory: M,
    capacity: u32,
    bytes_max: usize,
    head: u32,
    tail_seen: u32,
}

impl<M: Memory> Consumer<M> {
    pub(crate) fn new(memory: M, capacity: u32, bytes_max: usize) -> Self {
        assert!(capacity.is_power_of_two() && bytes_max + 8 <= capacity as usize);
        Consumer { memory, capacity, bytes_max, head: 0, tail_seen: 0 }
    }

    /// Pops one message into `into` (cleared first); false if there is none.
    pub(crate) fn pop(&mut self, into: &mut Vec<u8>) -> Result<bool, Corrupt> {
        into.clear();
        if self.tail_seen == self.head {
            self.tail_seen = self.memory.tail().load(Ordering::Acquire);
            if self.tail_seen == self.head {
                return Ok(false);
            }
        }
        let available = self.tail_seen.wrapping_sub(self.head);
        if available > self.capacity || available < 4 {
            return Err(Corrupt::Index { own: self.head, peer: self.tail_seen, capacity: self.capacity });
        }
        let mut length = [0; 4];
        self.read(self.head, &mut length);
        let bytes = u32::from_le_bytes(length);
        if bytes as usize > self.bytes_max || padded(bytes) > available {
            return Err(Corrupt::Length { bytes, available });
        }
        into.resize(bytes as usize, 0);
        self.read(self.head.wrapping_add(4), into);
        self.head = self.head.wrapping_add(padded(bytes));
        self.memory.head().store(self.head, Ordering::Release);
        Ok(true)
    }

    /// Whether a message is there.
    pub(crate) fn is_empty(&self) -> bool {
        self.memory.tail().load(Ordering::Acquire) == self.head
    }

    /// Announces sleep. If it returns `Some(tail)` the ring is empty and the caller may sleep on
    /// the tail word while it holds that value; it calls [`Consumer::awake`] afterwards.
    pub(crate) fn prepare_sleep(&self) -> Option<u32> {
        self.memory.sleeping().store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.is_empty() {
            return Some(self.head);
        }
        self.awake();
        None
    }

    /// Takes the announcement back.
    pub(crate) fn awake(&self) {
        self.memory.sleeping().store(0, Ordering::Relaxed);
    }

    fn read(&self, index: u32, into: &mut [u8]) {
        let at = (index & (self.capacity - 1)) as usize;
        let first = into.len().min(self.capacity as usize - at);
        let (before, after) = into.split_at_mut(first);
        self.memory.read(at, before);
        self.memory.read(0, after);
    }

    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[derive(Default)]
    struct Words {
        head: AtomicU32,
        tail: AtomicU32,
        sleeping: AtomicU32,
        data: RefCell<Vec<u8>>,
    }

    impl Memory for Rc<Words> {
        fn head(&self) -> &AtomicU32 {
            &self.head
        }
        fn tail(&self) -> &AtomicU32 {
            &self.tail
        }
        fn sleeping(&self) -> &AtomicU32 {
            &self.sleeping
        }
        fn write(&self, at: usize, from: &[u8]) {
            self.data.borrow_mut()[at..at + from.len()].copy_from_slice(from);
        }
        fn read(&self, at: usize, into: &mut [u8]) {
            into.copy_from_slice(&self.data.borrow()[at..at + into.len()]);
        }
    }

    fn ring() -> (Rc<Words>, Producer<Rc<Words>>, Consumer<Rc<Words>>) {
        let words = Rc::new(Words { data: RefCell::new(vec![0; 64]), ..Words::default() });
        (words.clone(), Producer::new(words.clone(), 64, 40), Consumer::new(words, 64, 40))
    }

    #[test]
    fn messages_come_out_in_order_across_many_wraps() {
        let (_, mut producer, mut consumer) = ring();
        let mut into = Vec::new();
        let mut pushed = 0_u32;
        let mut popped = 0_u32;
        for _ in 0..1000 {
            loop {
                let message = vec![pushed as u8; (pushed % 23) as usize];
                match producer.push(&message) {
                    Ok(wake) => assert!(!wake, "nobody sleeps"),
                    Err(PushError::Full) => break,
                    Err(other) => panic!("{other}"),
                }
                pushed += 1;
            }
            while consumer.pop(&mut into).expect("well-formed") {
                assert_eq!(into, vec![popped as u8; (popped % 23) as usize]);
                popped += 1;
            }
            assert_eq!(pushed, popped);
        }
        assert!(matches!(producer.push(&[0; 41]), Err(PushError::TooLong { bytes: 41, bytes_max: 40 })));
    }

    #[test]
    fn a_sleeper_is_announced() {
        let (_, mut producer, mut consumer) = ring();
        assert_eq!(consumer.prepare_sleep(), Some(0));
        assert_eq!(producer.push(b"x"), Ok(true));
        assert_eq!(consumer.prepare_sleep(), None, "there is a message");
        assert!(consumer.pop(&mut Vec::new()).expect("well-formed"));
        assert_eq!(producer.push(b"x"), Ok(false));
    }

    #[test]
    fn a_hostile_peer_gets_an_error() {
        let (words, _, mut consumer) = ring();
        words.tail.store(1000, Ordering::Relaxed);
        assert!(matches!(consumer.pop(&mut Vec::new()), Err(Corrupt::Index { .. })));
        let (words, _, mut consumer) = ring();
        words.tail.store(8, Ordering::Relaxed);
        words.write(0, &u32::MAX.to_le_bytes());
        assert!(matches!(consumer.pop(&mut Vec::new()), Err(Corrupt::Length { .. })));
        let (words, mut producer, _) = ring();
        words.head.store(1000, Ordering::Relaxed);
        for _ in 0..2 {
            let _ = producer.push(&[0; 40]);
        }
        assert!(matches!(producer.push(&[0; 40]), Err(PushError::Corrupt(Corrupt::Index { .. }))));
    }
}
