//! The workers of all pools.

use super::worker::{State, Worker};
use dflow_proto::WorkerId;
use std::collections::{BTreeMap, BTreeSet};

/// All workers, and which of them are astir. An idle one has nothing to say, so that a node which keeps many of them
/// looks at none of their rings.
#[derive(Default)]
pub(super) struct Crew {
    workers: BTreeMap<WorkerId, Worker>,
    /// Those that are not idle.
    astir: BTreeSet<WorkerId>,
}

impl Crew {
    /// Takes in a worker that is being made.
    pub(super) fn insert(&mut self, id: WorkerId, worker: Worker) {
        self.astir.insert(id);
        self.workers.insert(id, worker);
    }

    pub(super) fn remove(&mut self, id: WorkerId) -> Option<Worker> {
        self.astir.remove(&id);
        self.workers.remove(&id)
    }

    pub(super) fn get(&self, id: WorkerId) -> Option<&Worker> {
        self.workers.get(&id)
    }

    /// For all but its state.
    pub(super) fn get_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.workers.get_mut(&id)
    }

    pub(super) fn set(&mut self, id: WorkerId, state: State) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.state = state;
        if matches!(state, State::Idle { .. }) {
            self.astir.remove(&id);
        } else {
            self.astir.insert(id);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        self.workers.iter().map(|(id, worker)| (*id, worker))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Worker> {
        self.workers.values_mut()
    }

    /// Those that are not idle.
    pub(super) fn astir(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        self.astir.iter().filter_map(|id| Some((*id, self.workers.get(id)?)))
    }

    pub(super) fn len(&self) -> usize {
        self.workers.len()
    }
}
