//! Pools of pre-forked function processes.
//!
//! A pool belongs to one function: a *zygote* that has loaded its code, and the *workers* it forked.
//!
//! ```text
//!   zygote:  none ──spawn──▶ loading ──Loaded──▶ serving ──gone──▶ none
//!                              └──LoadFailed, late──▶ broken ──a second──▶ none
//!
//!   worker:  forking ──Ready──▶ idle ◀──job──▶ busy ──tainted, killed──▶ dying ──Exited──▶ (gone)
//!                                 └──kept too long, used up──────────────▲
//! ```
//!
//! A job that finds no idle worker waits in its pool's queue; the pool forks for the queue.

mod crew;
mod fresh;
mod launch;
mod serve;
mod worker;

pub(crate) use worker::{State, Worker};

use super::baseline::Processes;
use super::config::NodeConfig;
use super::error::StartError;
use super::logs::Logs;
use super::sweep::sweep;
use super::view::PoolView;
use crate::workflow::FunctionSpec;
use crew::Crew;
use dflow_dataplane::Arena;
use dflow_proto::zygote::{Exit, ToZygote};
use dflow_proto::{InvocationId, RunId, SegmentId, Tick, WorkerId};
use dflow_shm::link::NodePageWriter;
use fresh::{Runtimes, await_all};
use launch::Zygote;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a broken pool answers with its error before it is tried anew.
const BROKEN_MS: u64 = 1000;
/// How often idle workers are looked at.
const IDLE_EVERY_MS: u64 = 50;
/// How long a worker that was told to retire may take.
const RETIRE_MS: u64 = 2000;
/// How long zygotes may take to end their workers at shutdown.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// What a worker executes: one attempt of this invocation.
pub(crate) type Job = (RunId, InvocationId);

/// Names a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PoolId(u32);

/// What happened in the pools.
#[derive(Debug)]
pub(crate) enum PoolEvent {
    /// A worker is there for a job that waited.
    Ready { worker: WorkerId, job: Job },
    /// A job that waited cannot be executed.
    Broken { job: Job, message: String },
    /// A worker's process is gone. Its last reports may still be in its ring: take them, then
    /// [`Pools::bury`] it.
    Exited { worker: WorkerId, exit: Exit },
}

struct Pool {
    spec: Arc<FunctionSpec>,
    dir: PathBuf,
    zygote: ZygoteState,
    /// Last used first: it is the one whose caches and page tables are warm.
    idle: Vec<WorkerId>,
    queue: VecDeque<Job>,
    /// Workers that exist or are being made, dying ones excepted.
    alive: u32,
    /// Workers being made.
    coming: u32,
    /// Zygotes that died since the last one that made a worker.
    deaths: u32,
}

enum ZygoteState {
    None,
    Loading { zygote: Zygote, late: Tick, forks: u32 },
    Serving(Zygote),
    Broken { message: String, until: Tick },
}

/// All pools of a node.
pub(crate) struct Pools {
    pools: Vec<Pool>,
    workers: Crew,
    /// In place of the pools' fork servers, where each worker is to have a runtime of its own.
    runtimes: Runtimes,
    events: VecDeque<PoolEvent>,
    next_worker: u64,
    now: Tick,
    /// When idle workers are looked at next.
    idle_due: Tick,
    config: NodeConfig,
    /// Tells this node from others of the same process.
    node: u32,
    arena: Arc<Arena>,
    page: NodePageWriter,
    epoll: OwnedFd,
    doorbell: Arc<OwnedFd>,
    logs: Logs,
}

impl Pools {
    /// No pools yet. Sockets of zygotes are added to `epoll`, marked for [`Pools::readable`].
    pub(crate) fn new(
        config: &NodeConfig,
        arena: &Arc<Arena>,
        epoll: &OwnedFd,
        doorbell: Arc<OwnedFd>,
        logs: Logs,
    ) -> Result<Self, StartError> {
        static NODES: AtomicU32 = AtomicU32::new(0);
        let system = |source| StartError::System { what: "share the epoll set", source };
        if let Err(error) = sweep(Path::new(launch::SCRATCH_ROOT), launch::SCRATCH_PREFIX) {
            tracing::warn!(%error, "scratch directories of dead nodes could not be removed");
        }
        let page = NodePageWriter::new(arena.map()).map_err(|e| StartError::System {
            what: "use the node page",
            source: std::io::Error::other(e),
        })?;
        Ok(Pools {
            pools: Vec::new(),
            workers: Crew::default(),
            runtimes: Runtimes::default(),
            events: VecDeque::new(),
            next_worker: 1,
            now: Tick(0),
            idle_due: Tick(0),
            config: config.clone(),
            node: NODES.fetch_add(1, Ordering::Relaxed),
            arena: arena.clone(),
            page,
            epoll: epoll.try_clone().map_err(system)?,
            doorbell,
            logs,
        })
    }

    /// The page by which workers know whether to ring.
    pub(crate) fn node_page(&self) -> &NodePageWriter {
        &self.page
    }

    /// The pool of a function; equal functions of the same folder share one.
    pub(crate) fn find(&mut self, spec: &FunctionSpec, dir: &Path) -> PoolId {
        let known = |p: &Pool| *p.spec == *spec && p.dir == dir;
        if let Some(index) = self.pools.iter().position(known) {
            return PoolId(index as u32);
        }
        let id = PoolId(self.pools.len() as u32);
        self.pools.push(Pool {
            spec: Arc::new(spec.clone()),
            dir: dir.to_path_buf(),
            zygote: ZygoteState::None,
            idle: Vec::new(),
            queue: VecDeque::new(),
            alive: 0,
            coming: 0,
            deaths: 0,
        });
        id
    }

    /// An idle worker, now busy with `job`; or `None`, and the job waits for
    /// [`PoolEvent::Ready`] or [`PoolEvent::Broken`].
    pub(crate) fn request(&mut self, id: PoolId, job: Job) -> Option<WorkerId> {
        let pool = &mut self.pools[id.0 as usize];
        if let Some(worker) = pool.idle.pop() {
            self.occupy(worker, job);
            return Some(worker);
        }
        pool.queue.push_back(job);
        self.grow(id, 0);
        None
    }

    /// Whether a job would get a process at once.
    pub(crate) fn has_idle(&self, id: PoolId) -> bool {
        !self.pools[id.0 as usize].idle.is_empty()
    }

    /// Ends the fork servers, and with them the workers, of pools in which nobody is at work.
    pub(crate) fn cool(&mut self) {
        let late = Instant::now() + SHUTDOWN;
        let mut ending = Vec::new();
        for index in 0..self.pools.len() {
            let id = PoolId(index as u32);
            if self.is_busy(id) {
                continue;
            }
            ending.extend(self.cool_fresh(id));
            let pool = &mut self.pools[index];
            if !matches!(pool.zygote, ZygoteState::Serving(_)) {
                continue;
            }
            if let ZygoteState::Serving(zygote) = std::mem::replace(&mut pool.zygote, ZygoteState::None) {
                ending.push(zygote.hang_up());
            }
            let workers = self.workers.iter().filter(|(_, w)| w.pool == id).map(|(id, _)| id);
            let exited = |worker| PoolEvent::Exited { worker, exit: Exit::Signal(9) };
            self.events.extend(workers.map(exited));
        }
        await_all(ending, late);
    }

    /// Takes a waiting job back.
    pub(crate) fn withdraw(&mut self, job: Job) {
        for pool in &mut self.pools {
            pool.queue.retain(|j| *j != job);
        }
        self.events.retain(|e| !matches!(e, PoolEvent::Broken { job: j, .. } if *j == job));
        // A worker that was already found for it is free again.
        let found =
            self.events.iter().position(|e| matches!(e, PoolEvent::Ready { job: j, .. } if *j == job));
        if let Some(PoolEvent::Ready { worker, .. }) = found.and_then(|i| self.events.remove(i)) {
            self.free(worker);
        }
    }

    /// Has at least `workers` exist (idle, busy or being made), within the pool's maximum.
    pub(crate) fn warm(&mut self, id: PoolId, workers: u32) {
        if workers > 0 {
            self.grow(id, workers);
        }
    }

    /// Forks for the queue, and up to `warm` workers in all.
    fn grow(&mut self, id: PoolId, warm: u32) {
        let pool = &mut self.pools[id.0 as usize];
        let queued = (pool.queue.len() as u32).saturating_sub(pool.coming);
        let missing =
            queued.max(warm.saturating_sub(pool.alive)).min(pool.spec.pool.max.saturating_sub(pool.alive));
        if missing == 0 {
            return;
        }
        match &mut pool.zygote {
            ZygoteState::Broken { message, until } if *until > self.now => {
                let message = message.clone();
                let broken =
                    pool.queue.drain(..).map(|job| PoolEvent::Broken { job, message: message.clone() });
                self.events.extend(broken);
                return;
            }
            ZygoteState::Loading { forks, .. } => {
                *forks += missing;
                pool.alive += missing;
                pool.coming += missing;
                return;
            }
            ZygoteState::Serving(_) => {}
            ZygoteState::None | ZygoteState::Broken { .. } => {
                if self.has_fresh_runtimes() {
                    self.spawn_fresh(id, missing);
                } else {
                    self.spawn(id, missing);
                }
                return;
            }
        }
        pool.alive += missing;
        pool.coming += missing;
        for _ in 0..missing {
            self.fork(id);
        }
    }

    /// Gives a worker that is being made its first job, if one waits: the command is in its ring
    /// before it looks, so a cold start has no further round trip.
    fn engage(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(id) else { return };
        let pool = &mut self.pools[worker.pool.0 as usize];
        if let Some(job) = pool.queue.pop_front() {
            pool.coming -= 1;
            self.occupy(id, job);
            self.events.push_back(PoolEvent::Ready { worker: id, job });
        }
    }

    fn occupy(&mut self, worker: WorkerId, job: Job) {
        self.workers.set(worker, State::Busy(job));
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.uses += 1;
        }
    }

    /// The worker has nothing to do: the next job in its queue, or idle.
    fn free(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(id) else { return };
        let pool = &mut self.pools[worker.pool.0 as usize];
        if let Some(job) = pool.queue.pop_front() {
            self.occupy(id, job);
            self.events.push_back(PoolEvent::Ready { worker: id, job });
        } else {
            pool.idle.push(id);
            self.workers.set(id, State::Idle { since: self.now });
        }
    }

    /// The worker has said that it is up.
    pub(crate) fn ready(&mut self, id: WorkerId, pid: u32) {
        let Some(worker) = self.workers.get_mut(id) else { return };
        if worker.pid == 0 {
            // The zygote's own word is still on its way.
            worker.pid = pid;
        }
        let pool = &mut self.pools[worker.pool.0 as usize];
        pool.deaths = 0;
        if worker.state == State::Forking {
            pool.coming -= 1;
            self.free(id);
        }
    }

    /// The worker's job is done; it may have the next one unless it is used up or tainted.
    pub(crate) fn done(&mut self, id: WorkerId, tainted: bool) {
        let Some(worker) = self.workers.get(id) else { return };
        let one_each = self.config.baseline.as_ref().is_some_and(|b| b.processes == Processes::OneEach);
        let uses_max = if one_each { 1 } else { self.pools[worker.pool.0 as usize].spec.pool.max_uses };
        if tainted {
            self.kill(id);
        } else if uses_max > 0 && worker.uses >= uses_max {
            self.retire(id);
        } else {
            self.free(id);
        }
    }

    /// Ends the worker's process group at once. [`PoolEvent::Exited`] follows.
    pub(crate) fn kill(&mut self, id: WorkerId) {
        self.let_go(id);
        let Some(worker) = self.workers.get(id) else { return };
        let of_pool = match &self.pools[worker.pool.0 as usize].zygote {
            ZygoteState::Serving(zygote) => Some(zygote),
            _ => None,
        };
        if let Some(zygote) = of_pool.or_else(|| self.runtimes.of(id)) {
            // A zygote that cannot be told is dying, and takes its workers with it.
            let _ = zygote.send(&ToZygote::Kill { worker: id }, &[]);
        }
    }

    /// Asks an idle worker to end.
    fn retire(&mut self, id: WorkerId) {
        self.let_go(id);
        let late = self.now.after_ms(RETIRE_MS);
        self.workers.set(id, State::Dying { job: None, kill_at: Some(late) });
        let Some(worker) = self.workers.get_mut(id) else { return };
        if worker.link.send(&dflow_proto::link::Command::Retire).is_err() {
            self.kill(id);
        }
    }

    /// Counts the worker out of its pool; its process goes on until [`Pools::bury`].
    fn let_go(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(id) else { return };
        let pool = &mut self.pools[worker.pool.0 as usize];
        match worker.state {
            State::Dying { .. } => return,
            State::Forking => pool.coming -= 1,
            State::Idle { .. } => pool.idle.retain(|w| *w != id),
            State::Busy(_) => {}
        }
        pool.alive -= 1;
        let job = worker.job();
        self.workers.set(id, State::Dying { job, kill_at: None });
    }

    /// Takes a worker whose process is gone out of the books. Returns the job it had and the end of
    /// what it printed.
    pub(crate) fn bury(&mut self, id: WorkerId) -> Option<(Option<Job>, String)> {
        self.let_go(id);
        let worker = self.workers.remove(id)?;
        self.logs.flush(id.0);
        let text = worker.tail.text();
        self.logs.remove(id.0);
        self.grow(worker.pool, self.pools[worker.pool.0 as usize].spec.pool.min_warm.min(1));
        match worker.state {
            State::Dying { job, .. } => Some((job, text)),
            // `let_go` has just made it `Dying`.
            State::Forking | State::Idle { .. } | State::Busy(_) => None,
        }
    }

    /// What happened since the last call.
    pub(crate) fn next_event(&mut self) -> Option<PoolEvent> {
        self.events.pop_front()
    }

    /// Looks at the clock: late zygotes, workers kept too long.
    pub(crate) fn tick(&mut self, now: Tick) {
        self.now = now;
        for index in 0..self.pools.len() {
            let id = PoolId(index as u32);
            if let ZygoteState::Loading { late, .. } = &self.pools[index].zygote
                && *late <= now
            {
                let name = &self.pools[index].spec.name;
                let seconds = self.config.load_timeout_s;
                self.break_pool(id, format!("function {name} was not loaded within {seconds} s"));
            }
        }
        let due: Vec<_> = self.workers.astir().filter(|(_, w)| w.kill_due(now)).map(|(id, _)| id).collect();
        for id in due {
            self.workers.set(id, State::Dying { job: None, kill_at: None });
            self.kill(id);
        }
        self.tick_fresh();
        if self.idle_due <= now {
            self.idle_due = now.after_ms(IDLE_EVERY_MS);
            self.retire_idle(now);
        }
    }

    /// Ends idle workers that have been kept too long, and those unused for longest beyond what the node keeps.
    fn retire_idle(&mut self, now: Tick) {
        let mut idle: Vec<(Tick, WorkerId)> = Vec::new();
        let mut kept_too_long = Vec::new();
        for pool in &self.pools {
            let spare = pool.idle.len().saturating_sub(pool.spec.pool.min_warm as usize);
            // The front of the list is what was used longest ago.
            for worker in pool.idle.iter().take(spare) {
                let Some(State::Idle { since }) = self.workers.get(*worker).map(|w| w.state) else {
                    continue;
                };
                if now.since_us(since) >= pool.spec.pool.keep_warm_ms * 1000 {
                    kept_too_long.push(*worker);
                } else {
                    idle.push((since, *worker));
                }
            }
        }
        let excess = idle.len().saturating_sub(self.config.idle_max as usize);
        if excess > 0 {
            idle.sort_unstable();
            kept_too_long.extend(idle.into_iter().take(excess).map(|(_, w)| w));
        }
        kept_too_long.into_iter().for_each(|worker| self.retire(worker));
    }

    /// When [`Pools::tick`] has something to do at the latest.
    pub(crate) fn deadline(&self) -> Option<Tick> {
        self.pools
            .iter()
            .filter_map(|p| match &p.zygote {
                ZygoteState::Loading { late, .. } => Some(*late),
                _ => None,
            })
            .chain(self.runtimes.deadline())
            .min()
    }

    /// Workers to take reports from.
    pub(crate) fn ids(&self, into: &mut Vec<WorkerId>) {
        into.clear();
        into.extend(self.workers.astir().filter(|(_, w)| !w.link.is_empty()).map(|(id, _)| id));
    }

    /// Whether some worker has reported.
    pub(crate) fn any_report(&self) -> bool {
        self.workers.astir().any(|(_, w)| !w.link.is_empty())
    }

    /// A worker by name.
    pub(crate) fn worker(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.workers.get_mut(id)
    }

    /// Takes a segment's descriptor back from all workers, so that its memory can go.
    pub(crate) fn hide_segment(&mut self, segment: SegmentId) {
        self.workers.iter_mut().for_each(|worker| worker.hide(segment));
    }

    /// Each pool as it is now.
    pub(crate) fn list(&self) -> Vec<PoolView> {
        let view = |(index, pool): (usize, &Pool)| PoolView {
            function: pool.spec.name.clone(),
            runtime: pool.spec.runtime.name(),
            dir: pool.dir.clone(),
            state: match pool.zygote {
                ZygoteState::None if self.runtimes.serve(PoolId(index as u32)) => "serving",
                ZygoteState::None => "cold",
                ZygoteState::Loading { .. } => "loading",
                ZygoteState::Serving(_) => "serving",
                ZygoteState::Broken { .. } => "broken",
            },
            workers: pool.alive,
            idle: pool.idle.len() as u32,
            queued: pool.queue.len() as u32,
        };
        self.pools.iter().enumerate().map(view).collect()
    }

    /// Workers and zygotes alive.
    pub(crate) fn count(&self) -> (u32, u32) {
        let alive = |p: &&Pool| matches!(p.zygote, ZygoteState::Loading { .. } | ZygoteState::Serving(_));
        (self.workers.len() as u32, self.pools.iter().filter(alive).count() as u32 + self.runtimes.count())
    }

    /// Ends all function processes and waits for their zygotes.
    pub(crate) fn shutdown(mut self) {
        let mut children = self.runtimes.hang_up();
        children.extend(self.pools.into_iter().filter_map(|pool| match pool.zygote {
            ZygoteState::Loading { zygote, .. } | ZygoteState::Serving(zygote) => Some(zygote.hang_up()),
            ZygoteState::None | ZygoteState::Broken { .. } => None,
        }));
        await_all(children, Instant::now() + SHUTDOWN);
    }
}
