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
enum Happens {
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

struct Process {
    attempt: u32,
    early: bool,
    tables: Vec<Resolved>,
    read: Vec<Value>,
    nonce: u64,
    blocked: bool,
    doomed: bool,
    hung: bool,
    wrote_first: bool,
    /// Objects it has announced.
    begun: BTreeSet<ObjectKey>,
    /// Ports done, items of the present one done.
    port: usize,
    element: u32,
}

/// An object in the store.
struct Stored {
    attempt: u32,
    value: u64,
    bytes: u64,
}

/// The simulated node with one or several runs of one graph.
pub struct World<'a> {
    graph: &'a Arc<Graph>,
    seed: u64,
    run: RunId,
    conditions: &'a Conditions,
    rng: Rng,
    now: Tick,
    sequence: u64,
    agenda: BTreeMap<(Tick, u64), Happens>,
    scheduler: Scheduler,
    effects: Vec<Effect>,
    processes: BTreeMap<(u32, u32), Process>,
    store: BTreeMap<ObjectKey, Stored>,
    lists: BTreeMap<(u32, u16), (u32, u32)>,
    started: BTreeMap<(u32, u32), u32>,
    faults: BTreeMap<(u32, u32), u32>,
    evaluated: BTreeSet<u32>,
    stored_bytes: u64,
    spilling: bool,
    report: Report,
    over: bool,
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
    fn later(&mut self, delay_us: u64, what: Happens) {
        self.sequence += 1;
        self.agenda.insert((Tick(self.now.0 + delay_us), self.sequence), what);
    }

    fn live(&mut self) {
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

    fn describe(&self) -> String {
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

    fn tell(&mut self, event: Event) {
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

    fn execute(&mut self, effect: Effect) {
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

    fn noted(&mut self, note: Note) {
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

    fn release(&mut self, key: ObjectKey) {
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

    fn start(&mut self, id: InvocationId, attempt: u32, early: bool) {
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

    /// No start violates its policy, reckoned from the store and the tables.
    fn check_policy(&self, id: InvocationId, tables: &[Resolved], early: bool) {
        let step = &self.graph.steps[id.step as usize];
        assert!(step.function().is_some(), "a switch was started");
        assert!(!self.report.skipped.contains(&id.step), "the skipped step {} was started", id.step);
        let policy = self.conditions.start.unwrap_or(step.start);
        let (mut inputs, mut begun, mut complete) = (0u32, 0u32, 0u32);
        for (input, table) in step.inputs.iter().zip(tables) {
            let json_item = matches!(table, Resolved::Element { .. });
            if matches!(table, Resolved::Null)
                || !(input.source.step().is_some() || input.source == Source::Item)
            {
                assert!(
                    input.optional || !matches!(table, Resolved::Null),
                    "a required input of {id:?} is null"
                );
                continue;
            }
            inputs += 1;
            begun += u32::from(json_item || self.has_begun(table));
            complete += u32::from(json_item || self.read_table(table).is_some());
        }
        // The foreach's list may be no input; an item must exist all the same.
        let holds = match policy {
            StartPolicy::Eager => true,
            StartPolicy::FirstByte => inputs == 0 || begun > 0,
            StartPolicy::First(k) => complete >= k.min(inputs),
            StartPolicy::AllReady => complete == inputs,
        };
        assert!(
            holds,
            "{id:?} starts against {policy:?}: {begun} begun, {complete} complete of {inputs}: {tables:?}"
        );
        assert!(early || complete == inputs, "{id:?} starts with inputs missing and is not called early");
        for &after in &step.after {
            let running = self.processes.keys().any(|&(s, _)| s == after);
            assert!(!running, "{id:?} starts while step {after} runs, which it is after");
        }
    }

    fn has_begun(&self, table: &Resolved) -> bool {
        match table {
            Resolved::Object(object) => match object.state {
                ObjectState::Sealed => true,
                ObjectState::Running { .. } => {
                    let id = object.key.invocation;
                    self.processes.get(&(id.step, id.item)).is_some_and(|p| p.begun.contains(&object.key))
                        || self.store.contains_key(&object.key)
                        || self.is_deterministic(id.step)
                }
                // A deterministic function's object may have begun in an attempt before.
                ObjectState::Pending => self.is_deterministic(object.key.invocation.step),
            },
            Resolved::List { items, pinned } => {
                (*pinned && items.is_empty()) || items.iter().any(|i| self.has_begun(&Resolved::Object(*i)))
            }
            Resolved::Follow { producer, port, .. } => {
                let first = self.key(*producer, *port, 0);
                self.store.contains_key(&first)
                    || self.lists.contains_key(&(producer.step, *port))
                    || self
                        .processes
                        .get(&(producer.step, producer.item))
                        .is_some_and(|p| p.begun.contains(&first))
                    || self.is_deterministic(producer.step)
            }
            Resolved::Const(_) | Resolved::Null | Resolved::Element { .. } => true,
            Resolved::Pending => false,
        }
    }

    fn is_deterministic(&self, step: u32) -> bool {
        let function = self.graph.steps.get(step as usize).and_then(Step::function);
        function.is_some_and(|f| self.graph.functions[f as usize].deterministic)
    }

    fn check_means(&self, id: InvocationId) {
        let capacity = self.conditions.capacity;
        let slots = capacity.slots.max(1) as usize;
        assert!(self.processes.len() <= slots, "{} processes in {slots} slots", self.processes.len());
        let tokens = |step: u32| self.graph.steps[step as usize].cpu_milli.min(capacity.cpu_milli);
        let awake = self.processes.iter().filter(|(_, p)| !p.blocked);
        let used: u32 = awake.map(|(&(step, _), _)| tokens(step)).sum();
        let own = tokens(id.step);
        assert!(
            own == 0 || used <= capacity.cpu_milli,
            "{id:?} starts on credit: {used} of {}",
            capacity.cpu_milli
        );
        let function = self.graph.steps[id.step as usize].function();
        let same = |&&(s, _): &&(u32, u32)| self.graph.steps[s as usize].function() == function;
        let workers = self.processes.keys().filter(same).count();
        let most = function.map_or(0, |f| self.graph.functions[f as usize].workers_max) as usize;
        assert!(workers <= most, "{workers} workers of {most}");
        if let Some(each) = &self.graph.steps[id.step as usize].foreach {
            let instances = self.processes.keys().filter(|k| k.0 == id.step).count();
            assert!(
                instances <= each.parallel_max as usize,
                "{instances} instances of {}",
                each.parallel_max
            );
        }
        let early = self.scheduler.load().early as usize;
        assert!(early < slots, "{early} early in {slots} slots");
        let load = self.scheduler.load();
        assert!(load.slots_used as usize >= self.processes.len(), "{load:?}");
    }

    fn happen(&mut self, what: Happens) {
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

    fn value(&self, source: &Source) -> Value {
        self.read_table(&self.scheduler.resolve_source(self.run, source)).flatten()
    }

    fn decide(&self, step: u32) -> u32 {
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

    fn key(&self, invocation: InvocationId, port: u16, item: u32) -> ObjectKey {
        ObjectKey { run: self.run, invocation, port, item }
    }

    fn gone(&mut self, key: (u32, u32), attempt: u32) {
        if self.processes.get(&key).is_none_or(|p| p.attempt != attempt) {
            return;
        }
        self.end(key, Outcome::Stopped);
    }

    fn end(&mut self, key: (u32, u32), outcome: Outcome) {
        let Some(process) = self.processes.remove(&key) else { return };
        if outcome == Outcome::Ok && !process.doomed {
            self.report.nonces.insert(key, process.nonce);
            self.report.failed.remove(&key);
        } else {
            self.report.nonces.remove(&key);
            if !self.is_deterministic(key.0) {
                self.lists.retain(|&(step, _), _| step != key.0);
            }
        }
        let invocation = InvocationId { step: key.0, item: key.1 };
        let attempt = process.attempt;
        self.tell(Event::Ended { run: self.run, invocation, attempt, outcome });
    }

    /// The value behind a table as a process sees it, `None` while something of it is missing.
    fn read_table(&self, table: &Resolved) -> Option<Value> {
        let object = |object: &ObjectRef| match object.state {
            ObjectState::Pending => None,
            ObjectState::Sealed => match self.store.get(&object.key) {
                Some(stored) => Some(stored.value),
                None => panic!("{:?} is called sealed and is not in the store", object.key),
            },
            ObjectState::Running { attempt } => self
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
                let &(count, _) = self
                    .lists
                    .get(&(producer.step, *port))
                    .filter(|&&(_, a)| a == *attempt || self.is_deterministic(producer.step))?;
                let items: Option<Vec<u64>> = (0..count)
                    .map(|e| self.store.get(&self.key(*producer, *port, e)).map(|s| s.value))
                    .collect();
                items.map(|items| Some(truth::list(&items)))
            }
            Resolved::Element { list, index } => {
                let value = self.value(list)?;
                Some(Some(truth::element(value, *index)))
            }
        }
    }

    /// Whether a fault may still be thrown at it: retries are left.
    fn may_fault(&self, key: (u32, u32)) -> bool {
        let retries = self.graph.steps[key.0 as usize].retry.retries_max;
        self.faults.get(&key).copied().unwrap_or(0) < retries && !truth::is_broken(self.seed, key.0, key.1)
    }

    /// The process does the next thing that its function would do.
    fn act(&mut self, key: (u32, u32), attempt: u32) {
        let Some(process) = self.processes.get(&key) else { return };
        if process.attempt != attempt || process.doomed || process.hung {
            return;
        }
        let step = &self.graph.steps[key.0 as usize];
        if self.may_fault(key) {
            let hangs = step.timeout_ms > 0 && self.rng.chance(self.conditions.hang);
            if hangs || self.rng.chance(self.conditions.crash) {
                *self.faults.entry(key).or_default() += 1;
                if hangs {
                    self.processes.entry(key).and_modify(|p| p.hung = true);
                    return;
                }
                let failure = Failure { class: ErrorClass::Crash, message: "simulated".into() };
                return self.end(key, Outcome::Failed(failure));
            }
        }
        let Some(process) = self.processes.get(&key) else { return };
        if !process.wrote_first && self.rng.chance(40) {
            return self.first_bytes(key);
        }
        if process.read.len() < step.inputs.len() {
            match self.read_table(&process.tables[process.read.len()]) {
                Some(value) => {
                    self.set_blocked(key, false);
                    self.processes.entry(key).and_modify(|p| p.read.push(value));
                    let delay = self.rng.below(30);
                    self.later(delay, Happens::Act(key.0, key.1, attempt));
                }
                None => {
                    assert!(
                        process.early,
                        "{key:?} waits for data and was not called early: {:?}",
                        process.tables
                    );
                    self.set_blocked(key, true);
                }
            }
            return;
        }
        self.put(key);
    }

    fn set_blocked(&mut self, key: (u32, u32), blocked: bool) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        if process.blocked == blocked {
            return;
        }
        process.blocked = blocked;
        let (attempt, run) = (process.attempt, self.run);
        let invocation = InvocationId { step: key.0, item: key.1 };
        self.tell(match blocked {
            true => Event::Blocked { run, invocation, attempt },
            false => Event::Resumed { run, invocation, attempt },
        });
    }

    /// The process begins all of its outputs before it has read its inputs, as a pipeline stage does.
    fn first_bytes(&mut self, key: (u32, u32)) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        process.wrote_first = true;
        let attempt = process.attempt;
        let invocation = InvocationId { step: key.0, item: key.1 };
        for port in 0..self.graph.steps[key.0 as usize].outputs.len() as u16 {
            if self.graph.steps[key.0 as usize].outputs[port as usize].kind != PortKind::Many {
                self.announce(key, self.key(invocation, port, 0), attempt);
            }
        }
        self.later(5, Happens::Act(key.0, key.1, attempt));
    }

    fn announce(&mut self, key: (u32, u32), object: ObjectKey, attempt: u32) {
        if let Some(process) = self.processes.get_mut(&key) {
            process.begun.insert(object);
            self.tell(Event::FirstByte(Put { key: object, attempt, bytes: 1 }));
        }
    }

    fn put(&mut self, key: (u32, u32)) {
        let Some(process) = self.processes.get(&key) else { return };
        let (step, attempt, port, element) =
            (&self.graph.steps[key.0 as usize], process.attempt, process.port, process.element);
        let invocation = InvocationId { step: key.0, item: key.1 };
        if truth::is_broken(self.seed, key.0, key.1) && (port > 0 || step.outputs.len() == 1) {
            let failure = Failure { class: ErrorClass::Error("Bug".into()), message: "simulated".into() };
            return self.end(key, Outcome::Failed(failure));
        }
        let Some(out) = step.outputs.get(port) else { return self.end(key, Outcome::Ok) };
        let digest = truth::digest(key.0, key.1, &process.read, process.nonce);
        let port = port as u16;
        if out.kind == PortKind::Many && element == truth::count(digest, port) {
            let kept = step.foreach.is_none();
            if kept {
                self.lists.insert((key.0, port), (element, attempt));
            }
            self.processes.entry(key).and_modify(|p| (p.port, p.element) = (p.port + 1, 0));
            self.tell(Event::Pinned { run: self.run, invocation, attempt, port, count: element });
            self.wake_followers(invocation);
            return self.later(5, Happens::Act(key.0, key.1, attempt));
        }
        let bytes = 1 + self.rng.below(1000);
        if self.stored_bytes + bytes > self.conditions.store_bytes {
            self.set_blocked(key, true);
            if !std::mem::replace(&mut self.spilling, true) {
                self.later(200, Happens::Spilled);
            }
            return;
        }
        self.set_blocked(key, false);
        let object = self.key(invocation, port, element);
        let value = truth::object(digest, port, element);
        match out.kind {
            PortKind::Many => self.processes.entry(key).and_modify(|p| p.element += 1),
            _ => self.processes.entry(key).and_modify(|p| p.port += 1),
        };
        if self.rng.chance(30) {
            self.announce(key, object, attempt);
            if self.processes.get(&key).is_none_or(|p| p.attempt != attempt || p.doomed) {
                return;
            }
        }
        if let std::collections::btree_map::Entry::Vacant(entry) = self.store.entry(object) {
            entry.insert(Stored { attempt, value, bytes });
            self.stored_bytes += bytes;
            self.tell(Event::Sealed(Put { key: object, attempt, bytes }));
        } else {
            assert!(
                self.is_deterministic(key.0),
                "{object:?} is put by attempt {attempt} and is still there"
            );
            self.tell(Event::Sealed(Put { key: object, attempt, bytes }));
        }
        self.wake_followers(invocation);
        let delay = self.rng.below(40);
        self.later(delay, Happens::Act(key.0, key.1, attempt));
    }

    /// The pages of a process wake those that read them, without the scheduler.
    fn wake_followers(&mut self, producer: InvocationId) {
        let names = |table: &Resolved| match table {
            Resolved::Object(object) => object.key.invocation == producer,
            Resolved::List { items, .. } => items.iter().any(|item| item.key.invocation == producer),
            Resolved::Follow { producer: of, .. } => *of == producer,
            _ => false,
        };
        let followers: Vec<_> = self
            .processes
            .iter()
            .filter(|(_, p)| p.blocked && p.tables.iter().any(names))
            .map(|(key, p)| (*key, p.attempt))
            .collect();
        for ((step, item), attempt) in followers {
            self.later(1, Happens::Act(step, item, attempt));
        }
    }

    /// The run is over: outputs are read, the run is forgotten, and nothing may be left.
    fn finish(&mut self) {
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
