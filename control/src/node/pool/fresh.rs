//! A runtime for each worker: what a system without fork servers pays for every process that it starts.
//! Only the imitations of such systems have it, for measurements.
//!
//! ```text
//!   (spawned) ──Loaded──▶ forks its one worker ──Exited──▶ hung up
//!       └──LoadFailed, late, gone──▶ (away)
//! ```

use super::launch::{self, Zygote};
use super::{BROKEN_MS, PoolEvent, PoolId, Pools, State, Worker, ZygoteState};
use crate::node::baseline::Processes;
use dflow_proto::zygote::{Exit, FromZygote};
use dflow_proto::{Tick, WorkerId};
use rustix::event::epoll;
use std::collections::BTreeMap;
use std::process::Child;

/// Marks of these runtimes begin here; the numbers of pools end below.
const MARKS: u64 = 1 << 32;

/// A process that has loaded a function for one worker.
struct Runtime {
    pool: PoolId,
    zygote: Zygote,
    late: Tick,
    worker: Option<WorkerId>,
}

/// Those of a node.
#[derive(Default)]
pub(super) struct Runtimes {
    by_mark: BTreeMap<u64, Runtime>,
    made: u64,
    /// Told to end.
    ending: Vec<Child>,
}

impl Runtimes {
    /// Whether a mark in epoll is one of theirs.
    pub(super) const fn owns(mark: u64) -> bool {
        mark >= MARKS
    }

    /// The runtime of a worker.
    pub(super) fn of(&self, worker: WorkerId) -> Option<&Zygote> {
        self.by_mark.values().find(|r| r.worker == Some(worker)).map(|r| &r.zygote)
    }

    pub(super) fn serve(&self, pool: PoolId) -> bool {
        self.by_mark.values().any(|r| r.pool == pool)
    }

    pub(super) fn count(&self) -> u32 {
        self.by_mark.len() as u32
    }

    /// When the first of them is late.
    pub(super) fn deadline(&self) -> Option<Tick> {
        self.by_mark.values().filter(|r| r.worker.is_none()).map(|r| r.late).min()
    }

    /// All processes, each of which has been told to end.
    pub(super) fn hang_up(&mut self) -> Vec<Child> {
        let runtimes = std::mem::take(&mut self.by_mark).into_values();
        self.ending.drain(..).chain(runtimes.map(|r| r.zygote.hang_up())).collect()
    }
}

impl Pools {
    /// Whether each worker has a runtime of its own.
    pub(super) fn has_fresh_runtimes(&self) -> bool {
        self.config.baseline.as_ref().is_some_and(|b| b.processes == Processes::Runtimes)
    }

    /// Starts runtimes, each for one worker.
    pub(super) fn spawn_fresh(&mut self, id: PoolId, workers: u32) {
        for _ in 0..workers {
            let mark = MARKS + self.runtimes.made;
            self.runtimes.made += 1;
            let pool = &mut self.pools[id.0 as usize];
            pool.zygote = ZygoteState::None;
            let spawned = Zygote::spawn(&pool.spec, &pool.dir, &self.config, mark, self.node, &self.logs)
                .and_then(|zygote| {
                    let data = epoll::EventData::new_u64(mark);
                    epoll::add(&self.epoll, zygote.socket(), data, epoll::EventFlags::IN)
                        .map_err(|e| format!("cannot watch a runtime: {e}"))?;
                    Ok(zygote)
                });
            match spawned {
                Ok(zygote) => {
                    pool.alive += 1;
                    pool.coming += 1;
                    let late = self.now.after_ms(self.config.load_timeout_s * 1000);
                    self.runtimes.by_mark.insert(mark, Runtime { pool: id, zygote, late, worker: None });
                }
                Err(message) => return self.break_fresh(id, &message),
            }
        }
    }

    /// A runtime's socket can be read.
    pub(super) fn fresh_readable(&mut self, mark: u64) {
        loop {
            let Some(runtime) = self.runtimes.by_mark.get_mut(&mark) else { return };
            let pool = runtime.pool;
            match runtime.zygote.receive() {
                Ok(Some(FromZygote::Loaded { .. })) => self.fork_fresh(mark),
                Ok(Some(FromZygote::LoadFailed { message, traceback })) => {
                    self.end_fresh(mark);
                    let name = &self.pools[pool.0 as usize].spec.name;
                    let message = format!("function {name} cannot be loaded: {message}\n{traceback}");
                    self.break_fresh(pool, message.trim_end());
                }
                Ok(Some(message)) => {
                    let over = matches!(message, FromZygote::Exited { .. } | FromZygote::ForkFailed { .. });
                    self.zygote_says(pool, message);
                    if over {
                        self.end_fresh(mark);
                    }
                }
                Ok(None) => return,
                Err(why) => {
                    let words = runtime.zygote.last_words(&self.logs);
                    let died = self.end_fresh(mark);
                    if !died {
                        let name = &self.pools[pool.0 as usize].spec.name;
                        self.break_fresh(
                            pool,
                            &format!("the runtime of function {name} died ({why}): {words}"),
                        );
                    }
                }
            }
        }
    }

    fn fork_fresh(&mut self, mark: u64) {
        let Some(runtime) = self.runtimes.by_mark.get_mut(&mark) else { return };
        let (worker, id) = (WorkerId(self.next_worker), runtime.pool);
        self.next_worker += 1;
        let strict = self.config.strict || self.pools[id.0 as usize].spec.strict;
        let zygote = &runtime.zygote;
        match Worker::fork(worker, id, zygote, &self.arena, &self.doorbell, &self.logs, strict) {
            Ok(state) => {
                runtime.worker = Some(worker);
                self.workers.insert(worker, state);
                self.engage(worker);
            }
            Err(message) => {
                self.end_fresh(mark);
                self.fail_queue(id, &message);
            }
        }
    }

    /// Lets a runtime go. What it was to make no longer comes; its worker, if it had one that was not known
    /// to be gone, has exited: then `true`.
    fn end_fresh(&mut self, mark: u64) -> bool {
        let Some(runtime) = self.runtimes.by_mark.remove(&mark) else { return false };
        let pool = &mut self.pools[runtime.pool.0 as usize];
        let had = runtime.worker;
        match had {
            None => {
                pool.alive -= 1;
                pool.coming -= 1;
            }
            Some(worker) => {
                let known =
                    |e: &PoolEvent| matches!(e, PoolEvent::Exited { worker: gone, .. } if *gone == worker);
                if self.workers.get(worker).is_some() && !self.events.iter().any(known) {
                    self.events.push_back(PoolEvent::Exited { worker, exit: Exit::Signal(9) });
                }
            }
        }
        self.runtimes.ending.push(runtime.zygote.hang_up());
        had.is_some()
    }

    /// The pool cannot make workers for now.
    fn break_fresh(&mut self, id: PoolId, message: &str) {
        let until = self.now.after_ms(BROKEN_MS);
        self.pools[id.0 as usize].zygote = ZygoteState::Broken { message: message.into(), until };
        self.fail_queue(id, message);
    }

    /// Lets the runtimes of a pool go in which nobody is at work.
    pub(super) fn cool_fresh(&mut self, id: PoolId) -> Vec<Child> {
        let of_pool = self.runtimes.by_mark.iter().filter(|(_, r)| r.pool == id);
        let marks: Vec<u64> = of_pool.map(|(mark, _)| *mark).collect();
        marks.into_iter().for_each(|mark| {
            self.end_fresh(mark);
        });
        std::mem::take(&mut self.runtimes.ending)
    }

    /// Looks at the clock: runtimes that load for too long, processes that have ended.
    pub(super) fn tick_fresh(&mut self) {
        self.runtimes.ending.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let late = |r: &Runtime| r.worker.is_none() && r.late <= self.now;
        let late: Vec<u64> =
            self.runtimes.by_mark.iter().filter(|(_, r)| late(r)).map(|(mark, _)| *mark).collect();
        for mark in late {
            let Some(runtime) = self.runtimes.by_mark.remove(&mark) else { continue };
            let pool = &mut self.pools[runtime.pool.0 as usize];
            pool.alive -= 1;
            pool.coming -= 1;
            runtime.zygote.kill(&self.logs);
            let (name, seconds) = (&pool.spec.name, self.config.load_timeout_s);
            let message = format!("function {name} was not loaded within {seconds} s");
            self.break_fresh(runtime.pool, &message);
        }
    }

    /// Whether somebody of the pool is at work, or will be.
    pub(super) fn is_busy(&self, id: PoolId) -> bool {
        let busy = |w: &&Worker| w.pool == id && matches!(w.state, State::Busy(_));
        self.workers.astir().any(|(_, w)| busy(&w)) || !self.pools[id.0 as usize].queue.is_empty()
    }
}

/// Waits until all have ended, but no longer than `late`.
pub(super) fn await_all(children: Vec<Child>, late: std::time::Instant) {
    children.into_iter().for_each(|child| launch::await_end(child, late));
}
