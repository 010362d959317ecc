//! Touches pages of the arena before a function has to.
//!
//! A fresh page is zeroed by the kernel at the first write, which makes that write several times slower than
//! one to a page that was used before. A thread of low priority does it ahead of time: first as much as was
//! asked for, then always a piece beyond what has been granted.

use dflow_proto::ids::Extent;
use dflow_proto::limits::HUGE_BYTES;
use dflow_shm::segment::Map;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Touched at a time: one huge page, so that ending does not wait long. Bytes.
const STEP_BYTES: u64 = HUGE_BYTES;
/// Priority of the thread: functions come first.
const NICE: i32 = 10;

#[derive(Debug)]
struct Shared {
    /// Pages below this are to be touched.
    wanted: AtomicU64,
    /// Pages below this have been.
    done: AtomicU64,
    stop: AtomicBool,
}

/// The thread; ends when dropped.
#[derive(Debug)]
pub(crate) struct Prefaulter {
    shared: Arc<Shared>,
    ahead_bytes: u64,
    arena_bytes: u64,
    worker: Thread,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Prefaulter {
    /// Starts touching the first `ahead_bytes` of the main segment.
    pub(crate) fn start(map: Arc<Map>, ahead_bytes: u64) -> io::Result<Self> {
        let arena_bytes = map.bytes();
        let shared = Arc::new(Shared {
            wanted: AtomicU64::new(ahead_bytes.min(arena_bytes)),
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let own = shared.clone();
        let thread = thread::Builder::new().name("dflow-prefault".into()).spawn(move || work(&map, &own))?;
        let worker = thread.thread().clone();
        Ok(Prefaulter { shared, ahead_bytes, arena_bytes, worker, thread: Mutex::new(Some(thread)) })
    }

    /// Memory below `high_water` has been granted: see to it that the next piece is ready.
    pub(crate) fn keep_ahead(&self, high_water: u64) {
        if self.ahead_bytes == 0 {
            return;
        }
        let wanted = high_water.saturating_add(self.ahead_bytes).min(self.arena_bytes);
        // In steps, so that a small grant does not wake the thread each time.
        let wanted = wanted - wanted % STEP_BYTES;
        if self.shared.wanted.fetch_max(wanted, Ordering::Relaxed) < wanted {
            self.worker.unpark();
        }
    }

    /// Pages below this have been touched.
    pub(crate) fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Pages from `end` on have been returned to the system.
    pub(crate) fn trimmed(&self, end: u64) {
        self.shared.wanted.fetch_min(end, Ordering::Relaxed);
        self.shared.done.fetch_min(end, Ordering::Relaxed);
    }
}

impl Drop for Prefaulter {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.worker.unpark();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // The thread touches memory and nothing else; if it has panicked there is nothing to undo.
            let _ = thread.join();
        }
    }
}

fn work(map: &Arc<Map>, shared: &Shared) {
    // SAFETY: setpriority changes a number of this thread (0 means the caller) and touches no memory; if the
    // kernel refuses, the thread merely competes more than it should.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    while !shared.stop.load(Ordering::Relaxed) {
        let done = shared.done.load(Ordering::Relaxed);
        let wanted = shared.wanted.load(Ordering::Relaxed);
        if done >= wanted {
            thread::park();
            continue;
        }
        let bytes = STEP_BYTES.min(wanted - done);
        let extent = Extent { segment: map.segment(), offset: done, bytes };
        if let Err(error) = map.populate(extent) {
            // Memory is short, or the kernel is older than MADV_POPULATE_WRITE: pages are touched when they
            // are first written, as without this thread.
            tracing::debug!(%error, done, "prefaulting stops");
            return;
        }
        // A trim in between has lowered `done`; then this step does not count.
        let _ = shared.done.compare_exchange(done, done + bytes, Ordering::Relaxed, Ordering::Relaxed);
    }
}
