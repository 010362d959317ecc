//! What pools tell their fork servers and hear from them.

use super::fresh::Runtimes;
use super::launch::Zygote;
use super::{BROKEN_MS, PoolEvent, PoolId, Pools, State, Worker, ZygoteState};
use dflow_proto::WorkerId;
use dflow_proto::zygote::{Exit, FromZygote};
use rustix::event::epoll;

/// Zygotes that may die in a row before the pool is given up for a while.
const ZYGOTE_DEATHS_MAX: u32 = 3;

impl Pools {
    pub(super) fn spawn(&mut self, id: PoolId, forks: u32) {
        let pool = &mut self.pools[id.0 as usize];
        let mark = u64::from(id.0);
        match Zygote::spawn(&pool.spec, &pool.dir, &self.config, mark, self.node, &self.logs) {
            Ok(zygote) => {
                if let Err(error) = epoll::add(
                    &self.epoll,
                    zygote.socket(),
                    epoll::EventData::new_u64(mark),
                    epoll::EventFlags::IN,
                ) {
                    self.break_pool(id, format!("cannot watch the fork server: {error}"));
                    return;
                }
                pool.alive += forks;
                pool.coming += forks;
                let late = self.now.after_ms(self.config.load_timeout_s * 1000);
                pool.zygote = ZygoteState::Loading { zygote, late, forks };
            }
            Err(message) => self.break_pool(id, message),
        }
    }

    pub(super) fn fork(&mut self, id: PoolId) {
        let worker = WorkerId(self.next_worker);
        self.next_worker += 1;
        let pool = &mut self.pools[id.0 as usize];
        let ZygoteState::Serving(zygote) = &pool.zygote else { return };
        let strict = self.config.strict || pool.spec.strict;
        match Worker::fork(worker, id, zygote, &self.arena, &self.doorbell, &self.logs, strict) {
            Ok(state) => {
                self.workers.insert(worker, state);
                self.engage(worker);
            }
            Err(message) => {
                pool.alive -= 1;
                pool.coming -= 1;
                self.fail_queue(id, &message);
            }
        }
    }

    /// The pool cannot make workers: all that waits for one fails with `message`.
    pub(super) fn break_pool(&mut self, id: PoolId, message: String) {
        self.drop_promised(id);
        let pool = &mut self.pools[id.0 as usize];
        let broken = ZygoteState::Broken { message: message.clone(), until: self.now.after_ms(BROKEN_MS) };
        if let ZygoteState::Loading { zygote, .. } = std::mem::replace(&mut pool.zygote, broken) {
            zygote.kill(&self.logs);
        }
        self.fail_queue(id, &message);
    }

    /// Workers that were to be forked will not be; those that are being forked are buried one by one. How many that
    /// were.
    pub(super) fn drop_promised(&mut self, id: PoolId) -> u32 {
        let forking = |w: &&Worker| w.pool == id && w.state == State::Forking;
        let forking = self.workers.astir().map(|(_, w)| w).filter(forking).count() as u32;
        let pool = &mut self.pools[id.0 as usize];
        let promised = pool.coming.saturating_sub(forking);
        pool.alive -= promised;
        pool.coming -= promised;
        promised
    }

    pub(super) fn fail_queue(&mut self, id: PoolId, message: &str) {
        let queue = std::mem::take(&mut self.pools[id.0 as usize].queue);
        self.events.extend(queue.into_iter().map(|job| PoolEvent::Broken { job, message: message.into() }));
    }

    /// A zygote's socket can be read.
    pub(crate) fn readable(&mut self, mark: u64) {
        if Runtimes::owns(mark) {
            return self.fresh_readable(mark);
        }
        let id = PoolId(mark as u32);
        loop {
            let Some(pool) = self.pools.get_mut(id.0 as usize) else { return };
            let (ZygoteState::Loading { zygote, .. } | ZygoteState::Serving(zygote)) = &mut pool.zygote
            else {
                return;
            };
            match zygote.receive() {
                Ok(Some(message)) => self.zygote_says(id, message),
                Ok(None) => return,
                Err(gone) => return self.zygote_gone(id, &gone),
            }
        }
    }

    pub(super) fn zygote_says(&mut self, id: PoolId, message: FromZygote) {
        let pool = &mut self.pools[id.0 as usize];
        match message {
            FromZygote::Loaded { us } => {
                tracing::debug!(function = pool.spec.name, us, "loaded");
                match std::mem::replace(&mut pool.zygote, ZygoteState::None) {
                    ZygoteState::Loading { zygote, forks, .. } => {
                        pool.zygote = ZygoteState::Serving(zygote);
                        (0..forks).for_each(|_| self.fork(id));
                    }
                    other => pool.zygote = other,
                }
            }
            FromZygote::LoadFailed { message, traceback } => {
                let name = &pool.spec.name;
                let trace =
                    if traceback.is_empty() { String::new() } else { format!("\n{}", traceback.trim_end()) };
                let message = format!("function {name} cannot be loaded: {message}{trace}");
                self.break_pool(id, message);
            }
            FromZygote::Forked { worker, pid, us } => {
                tracing::trace!(?worker, pid, us, "forked");
                if let Some(worker) = self.workers.get_mut(worker) {
                    worker.pid = pid;
                }
            }
            FromZygote::ForkFailed { worker, message } => {
                self.let_go(worker);
                let job = self.workers.remove(worker).and_then(|w| w.job());
                let name = &self.pools[id.0 as usize].spec.name;
                let message = format!(
                    "cannot fork a worker of function {name}: {message}; lower the slots or raise the limit of processes"
                );
                self.events.extend(job.map(|job| PoolEvent::Broken { job, message: message.clone() }));
                self.fail_queue(id, &message);
            }
            FromZygote::Exited { worker, exit, .. } => {
                self.events.push_back(PoolEvent::Exited { worker, exit })
            }
        }
    }

    /// The zygote is dead, and by the kernel's hand so are its workers.
    fn zygote_gone(&mut self, id: PoolId, why: &str) {
        let pool = &mut self.pools[id.0 as usize];
        pool.deaths += 1;
        let old = std::mem::replace(&mut pool.zygote, ZygoteState::None);
        let loading = matches!(old, ZygoteState::Loading { .. });
        let promised = if loading { self.drop_promised(id) } else { 0 };
        let words = match old {
            ZygoteState::Loading { zygote, .. } | ZygoteState::Serving(zygote) => {
                zygote.last_words(&self.logs)
            }
            ZygoteState::None | ZygoteState::Broken { .. } => String::new(),
        };
        let pool = &self.pools[id.0 as usize];
        let name = &pool.spec.name;
        tracing::warn!(function = name, why, "fork server gone");
        let give_up = pool.deaths >= ZYGOTE_DEATHS_MAX || promised > 0;
        let message = format!(
            "the fork server of function {name} died ({why}){}{words}",
            if words.is_empty() { "" } else { ": " }
        );
        let dead: Vec<_> = self.workers.iter().filter(|(_, w)| w.pool == id).map(|(w, _)| w).collect();
        self.events
            .extend(dead.into_iter().map(|worker| PoolEvent::Exited { worker, exit: Exit::Signal(9) }));
        if give_up {
            self.break_pool(id, message);
        }
    }
}
