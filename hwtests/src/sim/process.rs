//! What function processes do: read, block, put, crash and hang.

use super::truth::{self, Value};
use super::world::{Happens, Stored, World};
use dflow_core::graph::*;
use dflow_core::scheduler::*;
use dflow_proto::{InvocationId, ObjectKey};

impl World<'_> {
    /// The value behind a table as a process sees it, `None` while something of it is missing.
    pub(super) fn read_table(&self, at: usize, table: &Resolved) -> Option<Value> {
        let object = |object: &ObjectRef| match object.state {
            ObjectState::Pending => None,
            ObjectState::Sealed => match self.nodes[at].find(&object.key) {
                Some(stored) => Some(stored.value),
                None => panic!("{:?} is called sealed and is not in the store", object.key),
            },
            ObjectState::Running { attempt } => self.nodes[at]
                .store
                .get(&object.key)
                .filter(|stored| stored.attempt == attempt)
                .map(|stored| stored.value),
        };
        match table {
            Resolved::Const(c) => Some(Some(truth::constant(*c))),
            Resolved::Null => Some(None),
            Resolved::Pending => None,
            Resolved::Object(o) => object(o).map(Some),
            Resolved::List { items, pinned: true } => {
                let items: Option<Vec<u64>> = items.iter().map(object).collect();
                items.map(|items| Some(truth::list(&items)))
            }
            Resolved::List { pinned: false, .. } => None,
            Resolved::Follow { producer, attempt, port } => {
                let pinned = self.nodes[at].lists.get(&(producer.step, *port));
                let &(count, _) = pinned.filter(|&&(_, by)| by == *attempt)?;
                let items: Option<Vec<u64>> = (0..count)
                    .map(|e| self.nodes[at].store.get(&self.key(*producer, *port, e)).map(|s| s.value))
                    .collect();
                items.map(|items| Some(truth::list(&items)))
            }
            Resolved::Element { list, index } => {
                let value = self.value(at, list)?;
                Some(Some(truth::element(value, *index)))
            }
        }
    }

    /// Whether a fault may still be thrown at it: retries are left.
    pub(super) fn may_fault(&self, key: (u32, u32)) -> bool {
        let retries = self.graph.steps[key.0 as usize].retry.retries_max;
        self.faults.get(&key).copied().unwrap_or(0) < retries && !truth::is_broken(self.seed, key.0, key.1)
    }

    /// The process does the next thing that its function would do.
    pub(super) fn act(&mut self, at: usize, key: (u32, u32), attempt: u32) {
        let Some(process) = self.nodes[at].processes.get(&key) else { return };
        if process.attempt != attempt || process.doomed || process.hung {
            return;
        }
        let step = &self.graph.steps[key.0 as usize];
        if self.may_fault(key) {
            let hangs = step.timeout_ms > 0 && self.rng.chance(self.conditions.hang);
            if hangs || self.rng.chance(self.conditions.crash) {
                *self.faults.entry(key).or_default() += 1;
                if hangs {
                    self.nodes[at].processes.entry(key).and_modify(|p| p.hung = true);
                    return;
                }
                let failure = Failure { class: ErrorClass::Crash, message: "simulated".into() };
                return self.end(at, key, Outcome::Failed(failure));
            }
        }
        let Some(process) = self.nodes[at].processes.get(&key) else { return };
        if !process.wrote_first && self.rng.chance(40) {
            return self.first_bytes(at, key);
        }
        if process.read.len() < step.inputs.len() {
            match self.read_table(at, &process.tables[process.read.len()]) {
                Some(value) => {
                    self.set_blocked(at, key, false);
                    self.nodes[at].processes.entry(key).and_modify(|p| p.read.push(value));
                    let delay = self.rng.below(30);
                    self.later(delay, Happens::Act(at, key.0, key.1, attempt));
                }
                None => {
                    // What it reads may be void already, and the word of its lead on its way.
                    let led_here = usize::from(self.placement.of(key.0).lead()) == at;
                    assert!(
                        process.early || !led_here,
                        "{key:?} waits for data and was not called early: {:?}",
                        process.tables
                    );
                    self.set_blocked(at, key, true);
                }
            }
            return;
        }
        self.put(at, key);
    }

    pub(super) fn set_blocked(&mut self, at: usize, key: (u32, u32), blocked: bool) {
        let Some(process) = self.nodes[at].processes.get_mut(&key) else { return };
        if process.blocked == blocked {
            return;
        }
        process.blocked = blocked;
        let (attempt, run) = (process.attempt, self.run);
        let invocation = InvocationId { step: key.0, item: key.1 };
        self.tell(
            at,
            match blocked {
                true => Event::Blocked { run, invocation, attempt },
                false => Event::Resumed { run, invocation, attempt },
            },
        );
    }

    /// The process begins all of its outputs before it has read its inputs, as a pipeline stage does.
    pub(super) fn first_bytes(&mut self, at: usize, key: (u32, u32)) {
        let Some(process) = self.nodes[at].processes.get_mut(&key) else { return };
        process.wrote_first = true;
        let attempt = process.attempt;
        let invocation = InvocationId { step: key.0, item: key.1 };
        for port in 0..self.graph.steps[key.0 as usize].outputs.len() as u16 {
            if self.graph.steps[key.0 as usize].outputs[port as usize].kind != PortKind::Many {
                self.announce(at, key, self.key(invocation, port, 0), attempt);
            }
        }
        self.later(5, Happens::Act(at, key.0, key.1, attempt));
    }

    pub(super) fn announce(&mut self, at: usize, key: (u32, u32), object: ObjectKey, attempt: u32) {
        if let Some(process) = self.nodes[at].processes.get_mut(&key) {
            process.begun.insert(object);
            self.tell(at, Event::FirstByte(Put { key: object, attempt, bytes: 1 }));
        }
    }

    pub(super) fn put(&mut self, at: usize, key: (u32, u32)) {
        let Some(process) = self.nodes[at].processes.get(&key) else { return };
        let (step, attempt, port, element) =
            (&self.graph.steps[key.0 as usize], process.attempt, process.port, process.element);
        let invocation = InvocationId { step: key.0, item: key.1 };
        if truth::is_broken(self.seed, key.0, key.1) && (port > 0 || step.outputs.len() == 1) {
            let failure = Failure { class: ErrorClass::Error("Bug".into()), message: "simulated".into() };
            return self.end(at, key, Outcome::Failed(failure));
        }
        let Some(out) = step.outputs.get(port) else {
            // Some take their time after the last put, and may die yet, when others have read it all.
            let lingers = self.rng.chance(30) && !process.lingers;
            if !lingers {
                return self.end(at, key, Outcome::Ok);
            }
            self.nodes[at].processes.entry(key).and_modify(|p| p.lingers = true);
            let delay = self.rng.below(2_000);
            return self.later(delay, Happens::Act(at, key.0, key.1, attempt));
        };
        let digest = truth::digest(key.0, key.1, &process.read, process.nonce);
        let port = port as u16;
        if out.kind == PortKind::Many && element == truth::count(digest, port) {
            let kept = step.foreach.is_none();
            if kept {
                self.nodes[at].lists.insert((key.0, port), (element, attempt));
            }
            self.nodes[at].processes.entry(key).and_modify(|p| (p.port, p.element) = (p.port + 1, 0));
            self.tell(at, Event::Pinned { run: self.run, invocation, attempt, port, count: element });
            self.wake_followers(at, invocation);
            return self.later(5, Happens::Act(at, key.0, key.1, attempt));
        }
        let bytes = 1 + self.rng.below(1000);
        if self.nodes[at].stored_bytes + bytes > self.conditions.store_bytes {
            self.set_blocked(at, key, true);
            if !std::mem::replace(&mut self.nodes[at].spilling, true) {
                self.later(200, Happens::Spilled(at));
            }
            return;
        }
        self.set_blocked(at, key, false);
        let object = self.key(invocation, port, element);
        let value = truth::object(digest, port, element);
        match out.kind {
            PortKind::Many => self.nodes[at].processes.entry(key).and_modify(|p| p.element += 1),
            _ => self.nodes[at].processes.entry(key).and_modify(|p| p.port += 1),
        };
        if self.rng.chance(30) {
            self.announce(at, key, object, attempt);
            if self.nodes[at].processes.get(&key).is_none_or(|p| p.attempt != attempt || p.doomed) {
                return;
            }
        }
        if let std::collections::btree_map::Entry::Vacant(entry) = self.nodes[at].store.entry(object) {
            entry.insert(Stored { attempt, value, bytes });
            self.nodes[at].stored_bytes += bytes;
            self.tell(at, Event::Sealed(Put { key: object, attempt, bytes }));
            self.send(at, object);
        } else {
            assert!(
                self.is_deterministic(key.0),
                "{object:?} is put by attempt {attempt} and is still there"
            );
            self.tell(at, Event::Sealed(Put { key: object, attempt, bytes }));
        }
        self.wake_followers(at, invocation);
        let delay = self.rng.below(40);
        self.later(delay, Happens::Act(at, key.0, key.1, attempt));
    }

    /// The pages of a process wake those that read them, without the scheduler.
    pub(super) fn wake_followers(&mut self, at: usize, producer: InvocationId) {
        let names = |table: &Resolved| match table {
            Resolved::Object(object) => object.key.invocation == producer,
            Resolved::List { items, .. } => items.iter().any(|item| item.key.invocation == producer),
            Resolved::Follow { producer: of, .. } => *of == producer,
            _ => false,
        };
        let followers: Vec<_> = self.nodes[at]
            .processes
            .iter()
            .filter(|(_, p)| p.blocked && p.tables.iter().any(names))
            .map(|(key, p)| (*key, p.attempt))
            .collect();
        for ((step, item), attempt) in followers {
            self.later(1, Happens::Act(at, step, item, attempt));
        }
    }
}
