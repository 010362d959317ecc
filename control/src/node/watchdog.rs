//! Holds functions to their `resources.memory`, by looking at what they and their descendants use.
//!
//! Private memory is counted, not the store's shared pages: a function that reads a large input has
//! not eaten it. A kernel-side limit per process (`RLIMIT_DATA`) cannot see children, and memory
//! cgroups are not there on every host; looking is, and tells the two causes of death apart.

use dflow_proto::WorkerId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// How often processes are looked at: a function that fills 1 GB/s overshoots by some 20 MB.
const PERIOD: Duration = Duration::from_millis(20);

/// Descendants looked at per worker; a fork bomb is the business of `RLIMIT_NPROC`.
const DESCENDANTS_MAX: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Watched {
    pid: u32,
    limit_bytes: u64,
}

type Table = Mutex<BTreeMap<WorkerId, Watched>>;

/// The list of processes with a limit.
#[derive(Clone, Debug)]
pub(crate) struct Watchdog(Arc<Table>);

impl Watchdog {
    /// Starts the thread; it ends within a period of the last handle's end. `over` is called once
    /// for a worker that uses more than its limit (bytes used, bytes allowed).
    pub(crate) fn start(over: impl Fn(WorkerId, u64, u64) + Send + 'static) -> std::io::Result<Self> {
        let table: Arc<Table> = Arc::default();
        let weak: Weak<Table> = Arc::downgrade(&table);
        std::thread::Builder::new().name("dflow-watchdog".into()).spawn(move || {
            while let Some(table) = weak.upgrade() {
                let now: Vec<_> = lock(&table).iter().map(|(w, p)| (*w, *p)).collect();
                for (worker, watched) in now {
                    let used = tree_private_bytes(watched.pid);
                    if used > watched.limit_bytes && lock(&table).remove(&worker).is_some() {
                        over(worker, used, watched.limit_bytes);
                    }
                }
                drop(table);
                std::thread::sleep(PERIOD);
            }
        })?;
        Ok(Watchdog(table))
    }

    /// From now on `worker` may use this much private memory, its descendants included.
    pub(crate) fn watch(&self, worker: WorkerId, pid: u32, limit_bytes: u64) {
        lock(&self.0).insert(worker, Watched { pid, limit_bytes });
    }

    /// The invocation is over.
    pub(crate) fn forget(&self, worker: WorkerId) {
        lock(&self.0).remove(&worker);
    }
}

fn lock(table: &Table) -> std::sync::MutexGuard<'_, BTreeMap<WorkerId, Watched>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Private resident bytes of a process and its descendants; what has gone meanwhile counts nothing.
fn tree_private_bytes(pid: u32) -> u64 {
    let mut queue = vec![pid];
    let mut total = 0;
    let mut next = 0;
    while next < queue.len() && next < DESCENDANTS_MAX {
        let pid = queue[next];
        next += 1;
        total += private_bytes(pid).unwrap_or(0);
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        queue.extend(children.split_whitespace().filter_map(|c| c.parse::<u32>().ok()));
    }
    total
}

/// `resident - shared` of `/proc/PID/statm`, which are pages.
fn private_bytes(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut fields = text.split_whitespace().skip(1).map(|f| f.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (fields.next()?, fields.next()?);
    Some(resident.saturating_sub(shared) * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn tells_who_exceeds_once() {
        let (tx, rx) = mpsc::sync_channel(8);
        let report = move |worker, used, limit| tx.send((worker, used > limit)).expect("the test waits");
        let dog = Watchdog::start(report).expect("thread");
        dog.watch(WorkerId(1), std::process::id(), 1 << 40);
        dog.watch(WorkerId(2), std::process::id(), 4096);
        assert_eq!(rx.recv_timeout(Duration::from_secs(5)), Ok((WorkerId(2), true)));
        assert!(
            rx.recv_timeout(3 * PERIOD).is_err(),
            "the generous one must not be reported, nor the other twice"
        );
    }
}
