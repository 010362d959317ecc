//! A simulated node: function processes that read, block, put, crash and hang; a store with a byte budget;
//! and the laws that hold at every moment. It drives the real [`Scheduler`].
//!
//! A process knows its inputs only from the table it was given at start and after each `Relink`, as a
//! real one does, so a missing `Relink` shows as a hang and a premature `Release` as a missing object.

use super::rng::Rng;
use super::truth::{self, Value};
use dflow_core::graph::*;
use dflow_core::scheduler::*;
use dflow_proto::{InvocationId, ObjectKey, RunId, Tick};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What the world throws at a run.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// CPU tokens and slots.
    pub capacity: Capacity,
    /// Percent of actions at which a process crashes, while it has retries left.
    pub crash: u64,
    /// Percent of actions at which a process with a timeout hangs for ever, while it has retries left.
    pub hang: u64,
    /// Bytes the store takes before puts have to wait for a spill.
    pub store_bytes: u64,
    /// Overrides the start policy of all steps.
    pub start: Option<StartPolicy>,
    /// Prints events and effects to stderr, for a replay.
    pub trace: bool,
}

/// How a run came out.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the scheduler said.
    pub result: Result<(), RunError>,
    /// Hash of all effects in order.
    pub hash: u64,
    /// Steps noted as skipped.
    pub skipped: BTreeSet<u32>,
    /// Nonces of the attempts that ended well and counted.
    pub nonces: BTreeMap<(u32, u32), u64>,
    /// Invocations that failed for good.
    pub failed: BTreeSet<(u32, u32)>,
    /// Values of the run outputs (empty unless it succeeded).
    pub outputs: Vec<Value>,
    /// Attempts started.
    pub attempts: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Happens {
    /// The process takes its next action.
    Act(u32, u32, u32),
    /// The driver answers an evaluation, or a measurement.
    Decide(u32),
    Measure(u32),
    /// A stopped process is gone.
    Gone(u32, u32, u32),
    /// The store has made room.
    Spilled,
}

pub(super) struct Process {
    pub(super) attempt: u32,
    pub(super) early: bool,
    pub(super) tables: Vec<Resolved>,
    pub(super) read: Vec<Value>,
    pub(super) nonce: u64,
    pub(super) blocked: bool,
    pub(super) doomed: bool,
    pub(super) hung: bool,
    pub(super) wrote_first: bool,
    pub(super) lingers: bool,
    /// Objects it has announced.
    pub(super) begun: BTreeSet<ObjectKey>,
    /// Ports done, items of the present one done.
    pub(super) port: usize,
    pub(super) element: u32,
}

/// An object in the store.
pub(super) struct Stored {
    pub(super) attempt: u32,
    pub(super) value: u64,
    pub(super) bytes: u64,
}

/// The simulated node with one or several runs of one graph.
pub struct World<'a> {
    pub(super) graph: &'a Arc<Graph>,
    pub(super) seed: u64,
    pub(super) run: RunId,
    pub(super) conditions: &'a Conditions,
    pub(super) rng: Rng,
    pub(super) now: Tick,
    pub(super) sequence: u64,
    pub(super) agenda: BTreeMap<(Tick, u64), Happens>,
    pub(super) scheduler: Scheduler,
    pub(super) effects: Vec<Effect>,
    pub(super) processes: BTreeMap<(u32, u32), Process>,
    pub(super) store: BTreeMap<ObjectKey, Stored>,
    pub(super) lists: BTreeMap<(u32, u16), (u32, u32)>,
    pub(super) started: BTreeMap<(u32, u32), u32>,
    pub(super) faults: BTreeMap<(u32, u32), u32>,
    pub(super) evaluated: BTreeSet<u32>,
    pub(super) stored_bytes: u64,
    pub(super) spilling: bool,
    pub(super) report: Report,
    pub(super) over: bool,
}

/// Runs `graph` once under `conditions` and holds the laws at every step. Panics on a violation.
pub fn simulate(graph: &Arc<Graph>, seed: u64, conditions: &Conditions) -> Report {
    let run = RunId(1 + seed % 1000);
    let mut world = World {
        graph,
        seed,
        run,
        conditions,
        rng: Rng::new(seed ^ 0x5eed),
        now: Tick(0),
        sequence: 0,
        agenda: BTreeMap::new(),
        scheduler: Scheduler::new(conditions.capacity),
        effects: Vec::new(),
        processes: BTreeMap::new(),
        store: BTreeMap::new(),
        lists: BTreeMap::new(),
        started: BTreeMap::new(),
        faults: BTreeMap::new(),
        evaluated: BTreeSet::new(),
        stored_bytes: 0,
        spilling: false,
        over: false,
        report: Report {
            result: Ok(()),
            hash: 0,
            skipped: BTreeSet::new(),
            nonces: BTreeMap::new(),
            failed: BTreeSet::new(),
            outputs: Vec::new(),
            attempts: 0,
        },
    };
    for i in 0..graph.inputs.len() as u16 {
        let stored = Stored { attempt: 0, value: truth::input(i), bytes: 1 };
        world.store.insert(ObjectKey::input(run, i), stored);
        world.stored_bytes += 1;
    }
    world.tell(Event::Submit { run, graph: graph.clone(), start: conditions.start });
    world.live();
    world.report
}

impl World<'_> {
    pub(super) fn later(&mut self, delay_us: u64, what: Happens) {
        self.sequence += 1;
        self.agenda.insert((Tick(self.now.0 + delay_us), self.sequence), what);
    }

    pub(super) fn live(&mut self) {
        for _ in 0..1_000_000u32 {
            if self.over {
                return self.finish();
            }
            let next = self.agenda.first_key_value().map(|(k, _)| k.0);
            match (next, self.scheduler.deadline()) {
                (Some(at), deadline) if deadline.is_none_or(|d| at <= d) => {
                    self.now = self.now.max(at);
                    if let Some((_, what)) = self.agenda.pop_first() {
                        self.happen(what);
                    }
                }
                (_, Some(deadline)) => {
                    self.now = self.now.max(deadline);
                    self.tell(Event::Wake);
                }
                (_, None) => break,
            }
        }
        panic!("the run hangs at {:?}:\n{}", self.now, self.describe());
    }

    pub(super) fn describe(&self) -> String {
        let processes = self.processes.iter().map(|(id, p)| {
            format!(
                "{id:?} attempt {} read {} of {:?} blocked {} doomed {}\n",
                p.attempt,
                p.read.len(),
                p.tables,
                p.blocked,
                p.doomed
            )
        });
        format!("{:?}\n{}{:#?}", self.scheduler.load(), processes.collect::<String>(), self.graph)
    }

    pub(super) fn tell(&mut self, event: Event) {
        // Strangers must not disturb anything.
        if self.rng.chance(3) {
            let invocation = InvocationId { step: self.rng.below(14) as u32, item: self.rng.below(9) as u32 };
            let stale = match self.rng.below(3) {
                0 => Event::Ended { run: self.run, invocation, attempt: 0, outcome: Outcome::Ok },
                1 => Event::Blocked { run: RunId(0), invocation, attempt: 1 },
                _ => Event::Pinned { run: self.run, invocation, attempt: 99_999, port: 9, count: 1 },
            };
            self.scheduler.handle(self.now, stale, &mut self.effects);
        }
        if self.conditions.trace {
            eprintln!("{:>9} {event:?}", self.now.0);
        }
        self.scheduler.handle(self.now, event, &mut self.effects);
        for effect in std::mem::take(&mut self.effects) {
            let text = format!("{effect:?}");
            if self.conditions.trace {
                eprintln!("          -> {text}");
            }
            self.report.hash = text.bytes().fold(self.report.hash ^ 0xcbf2_9ce4_8422_2325, |h, b| {
                (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
            });
            assert!(!self.over, "an effect after RunEnded: {effect:?}");
            self.execute(effect);
        }
    }

    pub(super) fn execute(&mut self, effect: Effect) {
        match effect {
            Effect::Start { invocation, attempt, early, .. } => self.start(invocation, attempt, early),
            Effect::Warm { function, workers, .. } => {
                assert!(workers >= 1 && workers <= self.graph.functions[function as usize].workers_max);
            }
            Effect::Evaluate { step, .. } => {
                assert!(self.evaluated.insert(step), "step {step} is decided twice");
                self.later(5, Happens::Decide(step));
            }
            Effect::MeasureList { step, .. } => self.later(5, Happens::Measure(step)),
            Effect::Relink { invocation, input, .. } => {
                let resolved = self.scheduler.resolve(self.run, invocation, input);
                let key = (invocation.step, invocation.item);
                let Some(process) = self.processes.get_mut(&key) else {
                    panic!("relink of {key:?}, which does not run")
                };
                process.tables[input as usize] = resolved;
                let attempt = process.attempt;
                self.later(1, Happens::Act(key.0, key.1, attempt));
            }
            Effect::Stop { invocation, attempt, .. } => {
                let key = (invocation.step, invocation.item);
                let Some(process) = self.processes.get_mut(&key) else {
                    panic!("stop of {key:?}, which does not run")
                };
                assert_eq!(process.attempt, attempt, "stop of another attempt of {key:?}");
                process.doomed = true;
                let delay = self.rng.below(300);
                self.later(delay, Happens::Gone(key.0, key.1, attempt));
            }
            Effect::Release(key) => self.release(key),
            Effect::Note { note, .. } => self.noted(note),
            Effect::RunEnded { result, .. } => {
                assert!(
                    self.processes.is_empty(),
                    "the run ended while {} processes run",
                    self.processes.len()
                );
                self.report.result = result;
                self.over = true;
            }
        }
    }

    pub(super) fn noted(&mut self, note: Note) {
        match note {
            Note::Skipped { step } => {
                assert!(self.report.skipped.insert(step), "step {step} is skipped twice")
            }
            Note::Failed { invocation: InvocationId { step, item }, .. } => {
                self.report.failed.insert((step, item));
            }
            Note::Expanded { .. } | Note::Retrying { .. } | Note::StepDone { .. } => {}
        }
    }

    pub(super) fn release(&mut self, key: ObjectKey) {
        let Some(stored) = self.store.remove(&key) else {
            panic!("release of {key:?}, which is not in the store")
        };
        self.stored_bytes -= stored.bytes;
        for (id, process) in self.processes.iter().filter(|(_, p)| !p.doomed) {
            let names = |object: &ObjectRef| object.key == key && object.state == ObjectState::Sealed;
            for table in &process.tables {
                let read = match table {
                    Resolved::Object(object) => names(object),
                    Resolved::List { items, .. } => items.iter().any(names),
                    _ => false,
                };
                assert!(!read, "{key:?} is released while {id:?} reads it");
            }
        }
    }

    pub(super) fn start(&mut self, id: InvocationId, attempt: u32, early: bool) {
        let (key, step) = ((id.step, id.item), &self.graph.steps[id.step as usize]);
        let before = self.started.insert(key, attempt).unwrap_or(0);
        assert_eq!(attempt, before + 1, "attempts of {key:?} are not in order");
        assert!(!self.processes.contains_key(&key), "{key:?} is started twice");
        let tables: Vec<_> =
            (0..step.inputs.len()).map(|i| self.scheduler.resolve(self.run, id, i as u16)).collect();
        // Effects are executed after the scheduler has moved on; what it resolves now includes later changes.
        let deterministic = step.function().is_some_and(|f| self.graph.functions[f as usize].deterministic);
        let nonce = if deterministic { 0 } else { self.rng.bits() };
        self.check_policy(id, &tables, early);
        let process = Process {
            attempt,
            early,
            tables,
            read: Vec::new(),
            nonce,
            blocked: false,
            doomed: false,
            hung: false,
            wrote_first: false,
            lingers: false,
            begun: BTreeSet::new(),
            port: 0,
            element: 0,
        };
        self.processes.insert(key, process);
        self.check_means(id);
        self.report.attempts += 1;
        let delay = 10 + self.rng.below(50);
        self.later(delay, Happens::Act(key.0, key.1, attempt));
    }

    pub(super) fn is_deterministic(&self, step: u32) -> bool {
        let function = self.graph.steps.get(step as usize).and_then(Step::function);
        function.is_some_and(|f| self.graph.functions[f as usize].deterministic)
    }

    pub(super) fn happen(&mut self, what: Happens) {
        match what {
            Happens::Act(step, item, attempt) => self.act((step, item), attempt),
            Happens::Gone(step, item, attempt) => self.gone((step, item), attempt),
            // Nobody waits for the answer any more, and what it would read may be gone.
            Happens::Decide(step) | Happens::Measure(step) if self.report.skipped.contains(&step) => {}
            Happens::Decide(step) => {
                let result = Ok(self.decide(step));
                self.tell(Event::Evaluated { run: self.run, step, result });
            }
            Happens::Measure(step) => {
                let over = self.graph.steps[step as usize].foreach.as_ref().map(|each| each.over.clone());
                let Some(value) = over.and_then(|over| self.value(&over)) else { return };
                let result = Ok(truth::json_length(value));
                self.tell(Event::ListLength { run: self.run, step, result });
            }
            Happens::Spilled => {
                self.spilling = false;
                self.stored_bytes = 0;
                self.store.values_mut().for_each(|stored| stored.bytes = 0);
                let waiting: Vec<_> = self.processes.iter().map(|(k, p)| (*k, p.attempt)).collect();
                for ((step, item), attempt) in waiting {
                    self.later(1, Happens::Act(step, item, attempt));
                }
            }
        }
    }

    pub(super) fn value(&self, source: &Source) -> Value {
        self.read_table(&self.scheduler.resolve_source(self.run, source)).flatten()
    }

    pub(super) fn decide(&self, step: u32) -> u32 {
        let holds = |condition: &Condition| {
            let reads: Vec<Value> = condition.reads.iter().map(|read| self.value(read)).collect();
            let skipped: Vec<bool> =
                condition.asks.iter().map(|&s| self.scheduler.skipped(self.run, s)).collect();
            truth::holds(condition.id, &reads, &skipped)
        };
        match &self.graph.steps[step as usize].kind {
            StepKind::Switch(cases) => {
                let chosen = cases.iter().position(|case| case.when.as_ref().is_none_or(holds));
                chosen.map_or(u32::MAX, |i| i as u32)
            }
            StepKind::Call(_) => u32::from(self.graph.steps[step as usize].when.as_ref().is_none_or(holds)),
        }
    }

    pub(super) fn key(&self, invocation: InvocationId, port: u16, item: u32) -> ObjectKey {
        ObjectKey { run: self.run, invocation, port, item }
    }

    pub(super) fn gone(&mut self, key: (u32, u32), attempt: u32) {
        if self.processes.get(&key).is_none_or(|p| p.attempt != attempt) {
            return;
        }
        self.end(key, Outcome::Stopped);
    }

    pub(super) fn end(&mut self, key: (u32, u32), outcome: Outcome) {
        let Some(process) = self.processes.remove(&key) else { return };
        if outcome == Outcome::Ok && !process.doomed {
            self.report.nonces.insert(key, process.nonce);
            self.report.failed.remove(&key);
        } else {
            self.report.nonces.remove(&key);
            self.lists.retain(|&(step, _), _| step != key.0);
        }
        let invocation = InvocationId { step: key.0, item: key.1 };
        let attempt = process.attempt;
        self.tell(Event::Ended { run: self.run, invocation, attempt, outcome });
    }

    /// The run is over: outputs are read, the run is forgotten, and nothing may be left.
    pub(super) fn finish(&mut self) {
        if self.report.result.is_ok() {
            self.report.outputs =
                self.graph.outputs.iter().map(|output| self.value(&output.source)).collect();
        }
        self.over = false;
        let mut effects = Vec::new();
        self.scheduler.forget(self.run, &mut effects);
        effects.into_iter().for_each(|effect| self.execute(effect));
        let left: Vec<_> = self.store.keys().collect();
        assert!(left.is_empty(), "left in the store: {left:?}\n{:#?}", self.graph);
        let load = self.scheduler.load();
        assert_eq!(load, Load::default(), "something is still in use");
        assert_eq!(self.scheduler.deadline(), None, "a timer is left");
    }
}
