//! Strict mode: for functions that may be hostile to their own tenant.
//!
//! Such a function can write only to segments of its own, which no other function is given. What it
//! seals is copied into the arena before anyone hears of it, so neither a later write nor a race
//! with the copy can change what a reader sees. The price is one copy and the node between producer
//! and reader; nothing is read while it grows.

use super::{Attempt, Engine, Waiter};
use crate::node::pool::Job;
use dflow_core::scheduler::{Event, Outcome, Put};
use dflow_proto::ObjectKey;
use dflow_proto::ids::Extent;
use dflow_proto::store::{Owner, Purpose, Reserve};

impl Engine {
    /// Whether the step's function runs in strict mode.
    pub(super) fn is_strict(&self, job: Job) -> bool {
        self.attempts.get(&job).is_some_and(|a| a.strict)
    }

    /// Copies what a strict function has sealed into the arena and seals it there.
    ///
    /// # Errors
    /// The extent is not memory of that attempt.
    pub(super) fn copy_and_seal(&mut self, owner: Owner, key: ObjectKey, from: Extent) -> Result<(), String> {
        let job = (owner.run, owner.invocation);
        let Some(attempt) = self.attempts.get_mut(&job) else { return Ok(()) };
        if !attempt.private.iter().any(|own| own.contains(&from)) {
            return Err(format!("it sealed {from:?}, which is not memory it was granted"));
        }
        match self.store.reserve(owner, from.bytes, Purpose::Output) {
            Reserve::Granted(to) => self.copied(owner, key, from, to),
            Reserve::Refused(error) => return Err(error.to_string()),
            Reserve::Waiting(ticket) => {
                attempt.copies += 1;
                self.waiting.insert(ticket, Waiter::Copy { owner, key, from });
            }
        }
        Ok(())
    }

    /// There is memory for a copy that had to wait.
    pub(super) fn copy_later(&mut self, owner: Owner, key: ObjectKey, from: Extent, to: Extent) {
        self.copied(owner, key, from, to);
        let job = (owner.run, owner.invocation);
        let Some(attempt) = self.attempts.get_mut(&job) else { return };
        attempt.copies -= 1;
        if attempt.copies == 0
            && let Some(outcome) = attempt.finish.take()
        {
            self.ended(job.0, job.1, outcome);
        }
    }

    fn copied(&mut self, owner: Owner, key: ObjectKey, from: Extent, to: Extent) {
        let to = Extent { bytes: from.bytes, ..to };
        let done = self.store.arena().copy(from, to).map_err(|e| e.to_string());
        let done = done.and_then(|()| self.store.seal(key, owner, to).map_err(|e| e.to_string()).map(drop));
        match done {
            Ok(()) => {
                self.sealed_here(key, from.bytes);
                let put = Put { key, attempt: owner.attempt, bytes: from.bytes };
                self.tell((owner.run, owner.invocation), Event::Sealed(put));
            }
            // It took its own memory away, or sealed twice: its output will be missing, which fails it.
            Err(error) => tracing::warn!(error, ?key, "an output could not be copied"),
        }
    }

    /// The end of an attempt, once its copies are done.
    pub(super) fn end_when_copied(&mut self, job: Job, outcome: Outcome) {
        match self.attempts.get_mut(&job) {
            Some(Attempt { copies: 1.., finish, .. }) => *finish = Some(outcome),
            _ => self.ended(job.0, job.1, outcome),
        }
    }
}
