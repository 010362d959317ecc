//! The segments a worker knows: what the node has sent over the worker's socket.

use crate::fault::{Code, Fault};
use dflow_proto::ids::{Extent, SegmentId};
use dflow_proto::zygote::{FromWorker, ToWorker};
use dflow_shm::pass::{Channel, PassError};
use dflow_shm::segment::{Map, Maps, PartMut, Segment, Window};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a segment may stay unannounced after something has named it. The node announces first
/// or at once after a producer it does not control has published an object in a new segment.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(10);

/// Locks, also after a panic of another thread: each critical section here leaves its data whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Known {
    segment: Segment,
    writable: bool,
    read: Option<Arc<Map>>,
    window: Option<Arc<Window>>,
}

/// All segments of one worker.
#[derive(Debug)]
pub(crate) struct Segments {
    socket: Channel,
    known: Mutex<BTreeMap<SegmentId, Known>>,
    gone: Mutex<Vec<SegmentId>>,
    /// Segment 0 is in every invocation: found without the lock.
    main: OnceLock<Arc<Map>>,
}

impl Segments {
    pub(crate) fn new(socket: Channel) -> Segments {
        Segments {
            socket,
            known: Mutex::new(BTreeMap::new()),
            gone: Mutex::new(Vec::new()),
            main: OnceLock::new(),
        }
    }

    /// The read map of a segment; waits for its announcement if need be.
    pub(crate) fn read(&self, id: SegmentId) -> Result<Arc<Map>, Fault> {
        if id == SegmentId(0)
            && let Some(main) = self.main.get()
        {
            return Ok(main.clone());
        }
        let map = self.with(id, |known| {
            if let Some(map) = &known.read {
                return Ok(map.clone());
            }
            let map = known.segment.map_readonly().map_err(|e| Fault::new(Code::Node, e.to_string()))?;
            known.read = Some(map.clone());
            Ok(map)
        })?;
        if id == SegmentId(0) {
            self.main.get_or_init(|| map.clone());
        }
        Ok(map)
    }

    /// Where `extent` begins in this process, for reading.
    pub(crate) fn pointer(&self, extent: Extent) -> Result<NonNull<u8>, Fault> {
        self.read(extent.segment)?.pointer(extent).map_err(|e| Fault::new(Code::Node, e.to_string()))
    }

    fn window(&self, id: SegmentId) -> Result<Arc<Window>, Fault> {
        self.with(id, |known| {
            if let Some(window) = &known.window {
                return Ok(window.clone());
            }
            if !known.writable {
                return Err(Fault::new(Code::Node, format!("segment {} was granted but is read-only", id.0)));
            }
            let window = known.segment.window().map_err(|e| Fault::new(Code::Node, e.to_string()))?;
            let window = Arc::new(window);
            known.window = Some(window.clone());
            Ok(window)
        })
    }

    /// Makes a granted extent writable.
    pub(crate) fn open(&self, extent: Extent) -> Result<PartMut, Fault> {
        self.window(extent.segment)?.open(extent).map_err(|e| memory("open", extent, &e))
    }

    /// Takes the writable mapping of an extent's pages away.
    pub(crate) fn close(&self, extent: Extent) -> Result<(), Fault> {
        self.window(extent.segment)?.close(extent).map_err(|e| memory("close", extent, &e))
    }

    /// Faults in pages of an open extent. Failing to do it ahead of time is not an error: the first
    /// write does it again.
    pub(crate) fn populate(&self, extent: Extent) {
        if let Ok(window) = self.window(extent.segment) {
            let _ = window.populate(extent);
        }
    }

    /// Cuts a dedicated segment to the length of its object.
    pub(crate) fn cut(&self, extent: Extent) -> Result<(), Fault> {
        self.with(extent.segment, |known| {
            known.segment.cut(extent.bytes).map_err(|e| memory("cut", extent, &e))
        })
    }

    /// The descriptor of a segment that holds nothing but this extent, for a program to open by its
    /// path. `None` if it holds more.
    pub(crate) fn file_of(&self, extent: Extent) -> Result<Option<RawFd>, Fault> {
        self.with(extent.segment, |known| {
            let whole = extent.segment != SegmentId(0)
                && extent.offset == 0
                && known.segment.file_bytes().is_ok_and(|bytes| bytes == extent.bytes);
            Ok(whole.then(|| known.segment.as_fd().as_raw_fd()))
        })
    }

    /// Sends a file that is to be adopted under `ticket`.
    pub(crate) fn send_file(&self, ticket: u32, file: BorrowedFd<'_>) -> Result<(), Fault> {
        self.socket.send(&FromWorker::File { ticket }, &[file], true).map_err(|e| broken(&e))
    }

    /// Forgets what the node has taken back. Between invocations, when nothing points there.
    pub(crate) fn tidy(&self) -> Result<(), Fault> {
        while self.socket.wait(Duration::ZERO).map_err(|e| broken(&PassError::Os(e)))? {
            self.receive()?;
        }
        let gone = std::mem::take(&mut *lock(&self.gone));
        let mut known = lock(&self.known);
        for id in gone {
            known.remove(&id);
        }
        Ok(())
    }

    fn with<T>(
        &self,
        id: SegmentId,
        mut use_it: impl FnMut(&mut Known) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let end = Instant::now() + ANNOUNCE_TIMEOUT;
        loop {
            // The lock is held while receiving too, so that of two threads that miss the same
            // segment one receives it and the other then finds it.
            let mut all = lock(&self.known);
            if let Some(known) = all.get_mut(&id) {
                return use_it(known);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let message = format!("segment {} was named by the node but never sent", id.0);
                return Err(Fault::new(Code::Node, message));
            }
            if self.socket.wait(left).map_err(|e| broken(&PassError::Os(e)))? {
                self.take(&mut all)?;
            }
        }
    }

    fn receive(&self) -> Result<(), Fault> {
        self.take(&mut lock(&self.known))
    }

    fn take(&self, known: &mut BTreeMap<SegmentId, Known>) -> Result<(), Fault> {
        match self.socket.receive::<ToWorker>(false) {
            Ok((ToWorker::Segment { id, bytes, writable }, fds)) => {
                let Some(fd) = fds.into_iter().next() else {
                    return Err(Fault::new(
                        Code::Node,
                        format!("segment {} came without a descriptor", id.0),
                    ));
                };
                // The object in it may have been sealed since this was sent: the file has then been
                // cut to its length, and what was cut off is named by nobody.
                let file = std::fs::File::from(fd);
                let bytes = file.metadata().map_or(bytes, |found| found.len().min(bytes));
                let segment = Segment::from_fd(id, file.into(), bytes)
                    .map_err(|e| Fault::new(Code::Node, e.to_string()))?;
                // A segment shown read-only before may be granted later: what is mapped stays.
                let before = known.remove(&id);
                let (read, window) = before.map_or((None, None), |k| (k.read, k.window));
                known.insert(id, Known { segment, writable, read, window });
                Ok(())
            }
            Ok((ToWorker::Gone { id }, _)) => {
                lock(&self.gone).push(id);
                Ok(())
            }
            Err(PassError::NotReady) => Ok(()),
            Err(error) => Err(broken(&error)),
        }
    }
}

impl Maps for Segments {
    fn map(&self, id: SegmentId) -> Option<Arc<Map>> {
        self.read(id).ok()
    }
}

fn broken(error: &PassError) -> Fault {
    Fault::new(Code::Node, format!("the connection to the node is broken: {error}"))
}

fn memory(what: &str, extent: Extent, error: &io::Error) -> Fault {
    let message = format!("cannot {what} {} bytes of shared memory: {error}", extent.bytes);
    Fault::new(Code::NoMemory, message)
}
