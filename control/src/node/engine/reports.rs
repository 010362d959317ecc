//! What function processes report. Nothing they claim is trusted: an extent is taken only if the
//! store finds it inside a grant of that very attempt.

use super::{Engine, Waiter};
use crate::node::pool::{Job, PoolEvent, State};
use crate::node::view::{Record, What};
use dflow_core::graph::ErrorClass;
use dflow_core::scheduler::{Event, Failure, Outcome, Put};
use dflow_proto::ids::Extent;
use dflow_proto::limits::{ALLOTMENT_BYTES_MAX, WAITS_MAX};
use dflow_proto::link::{self, Command, Report};
use dflow_proto::store::{Owner, Purpose, Reserve};
use dflow_proto::zygote::Exit;
use dflow_proto::{ObjectKey, WorkerId};

impl Engine {
    /// Takes in what all workers have reported.
    pub(super) fn take_reports(&mut self) {
        let mut workers = std::mem::take(&mut self.reporting);
        self.pools.ids(&mut workers);
        for worker in &workers {
            self.take_reports_of(*worker);
        }
        self.reporting = workers;
    }

    fn take_reports_of(&mut self, id: WorkerId) {
        loop {
            let Some(worker) = self.pools.worker(id) else { return };
            let job = worker.job();
            match worker.link.receive() {
                Ok(None) => return,
                Ok(Some(report)) => self.report(id, job, report),
                Err(corrupt) => {
                    self.misbehaved(id, &corrupt.to_string());
                    return;
                }
            }
        }
    }

    fn report(&mut self, worker: WorkerId, job: Option<Job>, report: Report) {
        if let Report::Ready { pid } = report {
            self.pools.ready(worker, pid);
            return self.watch_memory(worker);
        }
        let Some((run, invocation)) = job else { return };
        let Some(attempt) = self.attempts.get_mut(&(run, invocation)) else { return };
        let number = attempt.attempt;
        let owner = Owner { run, invocation, attempt: number };
        let key = |port, item| ObjectKey { run, invocation, port, item };
        let what = match report {
            Report::Ready { .. } => return,
            Report::Began => What::Began,
            Report::Blocked => {
                attempt.blocked = true;
                self.events.push_back(Event::Blocked { run, invocation, attempt: number });
                What::Blocked
            }
            Report::Resumed => {
                attempt.blocked = false;
                self.events.push_back(Event::Resumed { run, invocation, attempt: number });
                What::Resumed
            }
            Report::Reserve { ticket, port: _, bytes, file } => {
                let purpose = if file { Purpose::File } else { Purpose::Output };
                return self.reserve_for(worker, owner, ticket, bytes, purpose);
            }
            Report::Extend { ticket, bytes } => {
                let bytes = bytes.min(ALLOTMENT_BYTES_MAX);
                return self.reserve_for(worker, owner, ticket, bytes, Purpose::Allotment);
            }
            Report::Adopt { ticket, bytes } => {
                self.adopt(worker, owner, ticket, bytes);
                return;
            }
            Report::FirstByte { port, item, extent } => {
                self.share_segment(extent, (run, invocation));
                let put = Put { key: key(port, item), attempt: number, bytes: 0 };
                self.tell((run, invocation), Event::FirstByte(put));
                What::FirstByte { port, item }
            }
            Report::Sealed { port, item, extent } => match self.sealed(owner, key(port, item), extent) {
                Ok(()) => What::Sealed { port, item, bytes: extent.bytes },
                Err(message) => return self.misbehaved(worker, &message),
            },
            Report::Pinned { port, count } => {
                let pinned = Event::Pinned { run, invocation, attempt: number, port, count };
                self.tell((run, invocation), pinned);
                return;
            }
            Report::Unused { extent } => {
                if let Err(error) = self.store.give_back(owner, extent) {
                    self.misbehaved(worker, &error.to_string());
                }
                return;
            }
            Report::Waited { waits } => {
                if let Some(state) = self.runs.get(&run) {
                    let at = self.now();
                    let record = |wait| Record { at, invocation, attempt: number, what: What::Waited(wait) };
                    waits.into_iter().take(WAITS_MAX).for_each(|wait| state.watch.record(record(wait)));
                }
                return;
            }
            Report::Ended { outcome, times, tainted } => {
                attempt.times = times;
                return self.finished(worker, (run, invocation), outcome, tainted);
            }
        };
        if let Some(state) = self.runs.get(&run) {
            state.watch.record(Record { at: self.now(), invocation, attempt: number, what });
        }
    }

    fn sealed(&mut self, owner: Owner, key: ObjectKey, extent: Extent) -> Result<(), String> {
        if self.is_strict((owner.run, owner.invocation)) {
            return self.copy_and_seal(owner, key, extent);
        }
        self.share_segment(extent, (key.run, key.invocation));
        self.store.seal(key, owner, extent).map_err(|e| e.to_string())?;
        self.lease_for_readers((key.run, key.invocation), key);
        self.sealed_here(key, extent.bytes);
        if let Some(state) = self.runs.get_mut(&key.run) {
            let wrote = &mut state.wrote[key.invocation.step as usize];
            *wrote = (*wrote).max(extent.bytes);
        }
        let put = Put { key, attempt: owner.attempt, bytes: extent.bytes };
        self.tell((owner.run, owner.invocation), Event::Sealed(put));
        Ok(())
    }

    /// A worker needs more memory than its allotment.
    fn reserve_for(&mut self, worker: WorkerId, owner: Owner, ticket: u32, bytes: u64, purpose: Purpose) {
        let strict = self.is_strict((owner.run, owner.invocation));
        let purpose = if strict { Purpose::File } else { purpose };
        match self.store.reserve(owner, bytes, purpose) {
            Reserve::Granted(extent) => self.grant(worker, ticket, extent),
            Reserve::Refused(error) => {
                self.command(worker, &Command::Refused { ticket, why: error.to_string() })
            }
            Reserve::Waiting(waiting) => {
                self.waiting.insert(waiting, Waiter::Worker { worker, ticket });
            }
        }
    }

    /// Tells a worker where it may write.
    pub(super) fn grant(&mut self, worker: WorkerId, ticket: u32, extent: Extent) {
        if let Some(job) = self.pools.worker(worker).and_then(|w| w.job())
            && let Some(attempt) = self.attempts.get_mut(&job).filter(|a| a.strict)
        {
            attempt.private.push(extent);
        }
        self.show_segment(worker, extent.segment, true);
        self.command(worker, &Command::Granted { ticket, extent });
    }

    /// A worker made a file that becomes an object as it is.
    fn adopt(&mut self, worker: WorkerId, owner: Owner, ticket: u32, bytes: u64) {
        let Some(fd) = self.pools.worker(worker).and_then(|w| w.take_file(ticket)) else {
            return self.misbehaved(worker, "it announced a file and sent none");
        };
        match self.store.adopt(owner, fd, bytes) {
            Ok(extent) => self.grant(worker, ticket, extent),
            Err(error) => self.command(worker, &Command::Refused { ticket, why: error.to_string() }),
        }
    }

    /// Sends a command; a worker that does not take them is stuck and is ended.
    pub(super) fn command(&mut self, id: WorkerId, command: &Command) {
        let Some(worker) = self.pools.worker(id) else { return };
        if let Err(error) = worker.link.send(command) {
            self.misbehaved(id, &error.to_string());
        }
    }

    /// The worker broke the protocol or its limits: it is ended, and its invocation has crashed.
    fn misbehaved(&mut self, id: WorkerId, what: &str) {
        tracing::warn!(?id, what, "worker misbehaved");
        if let Some(job) = self.pools.worker(id).and_then(|w| w.job())
            && let Some(attempt) = self.attempts.get_mut(&job)
        {
            attempt.misbehaved.get_or_insert_with(|| what.to_string());
        }
        self.pools.kill(id);
    }

    /// The watchdog caught a function above its limit.
    pub(super) fn over_memory(&mut self, id: WorkerId, used_bytes: u64, limit_bytes: u64) {
        let Some(job) = self.pools.worker(id).and_then(|w| w.job()) else { return };
        let Some(attempt) = self.attempts.get_mut(&job) else { return };
        attempt.over_memory = Some((used_bytes, limit_bytes));
        self.pools.kill(id);
    }

    /// A worker says that its invocation is over.
    fn finished(&mut self, worker: WorkerId, job: Job, outcome: link::Outcome, tainted: bool) {
        let stopping = self.attempts.get(&job).is_none_or(|a| a.stopping);
        // What it printed is its own, and not that of the invocation the process executes next.
        self.logs.flush(worker.0);
        let tail = match outcome {
            link::Outcome::Ok | link::Outcome::Poisoned => String::new(),
            _ => self.tail(worker),
        };
        self.watchdog.forget(worker);
        if self.pools.worker(worker).is_some_and(|w| matches!(w.state, State::Busy(_))) {
            self.pools.done(worker, tainted);
        }
        let outcome = if stopping { Outcome::Stopped } else { scheduler_outcome(outcome, &tail) };
        self.store_remotely(job, &outcome);
        self.end_when_copied(job, outcome);
    }

    fn tail(&mut self, worker: WorkerId) -> String {
        self.logs.flush(worker.0);
        self.pools.worker(worker).map(|w| w.tail.text()).unwrap_or_default()
    }

    /// Takes in what happened in the pools; false if nothing did.
    pub(super) fn take_pool_events(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.pools.next_event() {
            any = true;
            match event {
                PoolEvent::Ready { worker, job } => self.dispatch(worker, job),
                PoolEvent::Broken { job, message } => self.fail(job.0, job.1, "LoadFailed", message),
                PoolEvent::Exited { worker, exit } => {
                    // Its last words may be `Ended`.
                    self.take_reports_of(worker);
                    self.exited(worker, exit);
                }
            }
        }
        any
    }

    fn exited(&mut self, worker: WorkerId, exit: Exit) {
        self.watchdog.forget(worker);
        self.waiting.retain(|_, w| !matches!(w, Waiter::Worker { worker: of, .. } if *of == worker));
        let Some((job, tail)) = self.pools.bury(worker) else { return };
        let Some((run, invocation)) = job else { return };
        // An attempt that reported its end is gone from the table, and this was only its process.
        let Some(attempt) = self.attempts.get(&(run, invocation)) else { return };
        if attempt.phase != super::Phase::Running(worker) {
            return;
        }
        let outcome = if let Some((used, limit)) = attempt.over_memory {
            let message = format!(
                "used {} MiB of memory where resources.memory allows {} MiB; raise it or read the input in parts",
                used >> 20,
                limit >> 20
            );
            Outcome::Failed(Failure { class: ErrorClass::Oom, message })
        } else if attempt.stopping {
            Outcome::Stopped
        } else if let Some(what) = &attempt.misbehaved {
            let message = with_tail(format!("its process was ended: {what}"), &tail);
            Outcome::Failed(Failure { class: ErrorClass::Crash, message })
        } else {
            let how = match exit {
                Exit::Code(code) => format!("the function's process ended by itself with status {code}"),
                Exit::Signal(signal) => {
                    format!("the function's process was killed by {}", signal_name(signal))
                }
            };
            Outcome::Failed(Failure { class: ErrorClass::Crash, message: with_tail(how, &tail) })
        };
        self.ended(run, invocation, outcome);
    }
}

/// A worker's word for how it went, in the scheduler's terms.
fn scheduler_outcome(outcome: link::Outcome, tail: &str) -> Outcome {
    let (class, message) = match outcome {
        link::Outcome::Ok => return Outcome::Ok,
        // The scheduler poisons by `Stop`; a worker that notices first has only been stopped earlier.
        link::Outcome::Poisoned => return Outcome::Stopped,
        link::Outcome::Error { name, message } => {
            let class = if name == "MemoryError" { ErrorClass::Oom } else { ErrorClass::Error(name.clone()) };
            // What a function raised explains itself; what it printed before may still help.
            (class, with_tail(format!("{name}: {message}"), tail))
        }
        link::Outcome::Exit { code } => {
            (ErrorClass::Exit(code), with_tail(format!("it ended with status {code}"), tail))
        }
        link::Outcome::Signal { signal } => {
            (ErrorClass::Crash, with_tail(format!("its program was killed by {}", signal_name(signal)), tail))
        }
    };
    Outcome::Failed(Failure { class, message })
}

fn with_tail(message: String, tail: &str) -> String {
    if tail.is_empty() { message } else { format!("{message}\n--- the last it printed ---\n{tail}") }
}

/// `SIGSEGV (11)`; the number alone for the rare ones.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGHUP => "SIGHUP",
        libc::SIGILL => "SIGILL",
        libc::SIGINT => "SIGINT",
        libc::SIGKILL => "SIGKILL",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGSYS => "SIGSYS",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        _ => return format!("signal {signal}"),
    };
    format!("{name} ({signal})")
}
