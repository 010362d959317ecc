//! The ring under loom: every interleaving of a producer and a sleeping consumer.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p dflow-shm --release --lib`

use crate::ring::{Consumer, Memory, Producer, PushError};
use crate::sync::{AtomicU32, Ordering};
use loom::cell::UnsafeCell;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

const CAPACITY: usize = 16;
const BYTES_MAX: usize = 8;

/// A ring's memory in which loom sees each access to each byte.
struct Model {
    head: AtomicU32,
    tail: AtomicU32,
    sleeping: AtomicU32,
    data: Vec<UnsafeCell<u8>>,
}

impl Model {
    fn new() -> Arc<Model> {
        Arc::new(Model {
            head: AtomicU32::new(0),
            tail: AtomicU32::new(0),
            sleeping: AtomicU32::new(0),
            data: (0..CAPACITY).map(|_| UnsafeCell::new(0)).collect(),
        })
    }
}

impl Memory for Arc<Model> {
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
        for (cell, byte) in self.data[at..at + from.len()].iter().zip(from) {
            // SAFETY: loom checks that no other thread accesses this byte now: that is what the test
            // is for.
            cell.with_mut(|pointer| unsafe { *pointer = *byte });
        }
    }
    fn read(&self, at: usize, into: &mut [u8]) {
        for (cell, byte) in self.data[at..at + into.len()].iter().zip(into) {
            // SAFETY: as in `write`.
            *byte = cell.with(|pointer| unsafe { *pointer });
        }
    }
}

/// The kernel's futex on the tail: the check of the word and the falling asleep are one step.
#[derive(Clone)]
struct Futex(Arc<(Mutex<()>, Condvar)>);

impl Futex {
    fn wait(&self, model: &Model, tail: u32) {
        let guard = self.0.0.lock().expect("not poisoned");
        if model.tail.load(Ordering::SeqCst) == tail {
            drop(self.0.1.wait(guard).expect("not poisoned"));
        }
    }
    fn wake(&self) {
        let _guard = self.0.0.lock().expect("not poisoned");
        self.0.1.notify_one();
    }
}

/// A lost wake shows as a deadlock, which loom reports; a torn or reordered message as a wrong byte
/// or a concurrent access.
#[test]
fn no_message_and_no_wake_is_lost() {
    loom::model(|| {
        let model = Model::new();
        let futex = Futex(Arc::new((Mutex::new(()), Condvar::new())));
        let mut producer = Producer::new(model.clone(), CAPACITY as u32, BYTES_MAX);
        let bell = futex.clone();
        let pusher = thread::spawn(move || {
            for n in [1_u8, 2] {
                if producer.push(&[n, n, n]).expect("room for both") {
                    bell.wake();
                }
            }
        });
        let mut consumer = Consumer::new(model.clone(), CAPACITY as u32, BYTES_MAX);
        let mut message = Vec::new();
        let mut next = 1;
        while next <= 2 {
            if consumer.pop(&mut message).expect("well-formed") {
                assert_eq!(message, [next; 3]);
                next += 1;
            } else if let Some(tail) = consumer.prepare_sleep() {
                futex.wait(&model, tail);
                consumer.awake();
            }
        }
        pusher.join().expect("no panic");
    });
}

/// A producer that meets a full ring only goes on in bytes that the consumer has left.
#[test]
fn a_full_ring_is_not_overwritten() {
    loom::model(|| {
        let model = Model::new();
        let mut producer = Producer::new(model.clone(), CAPACITY as u32, BYTES_MAX);
        let mut consumer = Consumer::new(model, CAPACITY as u32, BYTES_MAX);
        assert_eq!(producer.push(&[1; 8]), Ok(false));
        let pusher = thread::spawn(move || match producer.push(&[2; 8]) {
            Ok(_) => true,
            Err(PushError::Full) => false,
            Err(other) => panic!("{other}"),
        });
        let mut message = Vec::new();
        assert!(consumer.pop(&mut message).expect("well-formed"));
        assert_eq!(message, [1; 8]);
        let pushed = pusher.join().expect("no panic");
        assert_eq!(consumer.pop(&mut message).expect("well-formed"), pushed);
        assert!(!pushed || message == [2; 8]);
    });
}
