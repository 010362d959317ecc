//! A simulated node: function processes that read, block, put, crash and hang; a store with a byte budget;
//! and the laws that hold at every moment. It drives the real [`Scheduler`].
//!
//! A process knows its inputs only from the table it was given at start and after each `Relink`, as a
//! real one does, so a missing `Relink` shows as a hang and a premature `Release` as a missing object.

use super::rng::Rng;
use super::truth::{self, Value};
use super::wire::{self, Wire};
use dflow_core::graph::*;
use dflow_core::placement::{NodeIndex, Part, Placement};
use dflow_core::scheduler::*;
use dflow_proto::{InvocationId, ObjectKey, RunId, Tick};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What the world throws at a run.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// Number of nodes.
    pub nodes: u16,
    /// CPU tokens and slots of each.
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

/// What is to happen; the first number says on which node.
pub(super) enum Happens {
    /// The process takes its next action.
    Act(usize, u32, u32, u32),
    /// The driver answers an evaluation, or a measurement.
    Decide(usize, u32),
    Measure(usize, u32),
    /// A stopped process is gone.
    Gone(usize, u32, u32, u32),
    /// The store has made room.
    Spilled(usize),
    /// A word arrives from a node.
    Word(usize, NodeIndex, Word),
    /// An object arrives from the node that put it.
    Object(usize, NodeIndex, ObjectKey, Stored),
    /// Words about an invocation may be waiting for nothing.
    Unhold(usize, InvocationId),
    /// All that were to fetch an attempt's object have it.
    Delivered(usize, ObjectKey, u32),
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
#[derive(Clone, Copy)]
pub(super) struct Stored {
    pub(super) attempt: u32,
    pub(super) value: u64,
    pub(super) bytes: u64,
}

/// One simulated node.
pub(super) struct Node {
    pub(super) scheduler: Scheduler,
    pub(super) effects: Vec<Effect>,
    pub(super) processes: BTreeMap<(u32, u32), Process>,
    pub(super) store: BTreeMap<ObjectKey, Stored>,
    pub(super) lists: BTreeMap<(u32, u16), (u32, u32)>,
    pub(super) evaluated: BTreeSet<u32>,
    pub(super) stored_bytes: u64,
    pub(super) spilling: bool,
    pub(super) wire: Wire,
    /// What was released while a process whose lead is elsewhere could still read it.
    pub(super) leased: BTreeMap<ObjectKey, Stored>,
    /// The run has ended here.
    pub(super) over: bool,
}

/// The simulated nodes with a run of one graph.
pub struct World<'a> {
    pub(super) graph: &'a Arc<Graph>,
    pub(super) seed: u64,
    pub(super) run: RunId,
    pub(super) conditions: &'a Conditions,
    pub(super) placement: Arc<Placement>,
    pub(super) rng: Rng,
    pub(super) now: Tick,
    pub(super) sequence: u64,
    pub(super) agenda: BTreeMap<(Tick, u64), Happens>,
    pub(super) nodes: Vec<Node>,
    /// When the last word between two nodes arrives.
    pub(super) streams: BTreeMap<(usize, NodeIndex), Tick>,
    pub(super) started: BTreeMap<(u32, u32), u32>,
    pub(super) faults: BTreeMap<(u32, u32), u32>,
    pub(super) report: Report,
}

/// Runs `graph` once under `conditions` and holds the laws at every step. Panics on a violation.
pub fn simulate(graph: &Arc<Graph>, seed: u64, conditions: &Conditions) -> Report {
    let run = RunId(1 + seed % 1000);
    let mut rng = Rng::new(seed ^ 0x5eed);
    let placement = Arc::new(wire::placement(&mut rng, graph, conditions.nodes));
    let node = || Node {
        scheduler: Scheduler::new(conditions.capacity),
        effects: Vec::new(),
        processes: BTreeMap::new(),
        store: BTreeMap::new(),
        lists: BTreeMap::new(),
        evaluated: BTreeSet::new(),
        stored_bytes: 0,
        spilling: false,
        wire: Wire::default(),
        leased: BTreeMap::new(),
        over: false,
    };
    let mut world = World {
        graph,
        seed,
        run,
        conditions,
        rng,
        now: Tick(0),
        sequence: 0,
        agenda: BTreeMap::new(),
        nodes: (0..placement.nodes).map(|_| node()).collect(),
        placement,
        streams: BTreeMap::new(),
        started: BTreeMap::new(),
        faults: BTreeMap::new(),
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
    for at in 0..world.nodes.len() {
        for i in 0..graph.inputs.len() as u16 {
            // A participant begins when it has the inputs.
            let stored = Stored { attempt: 0, value: truth::input(i), bytes: 1 };
            world.nodes[at].store.insert(ObjectKey::input(run, i), stored);
            world.nodes[at].stored_bytes += 1;
        }
    }
    for at in 0..world.nodes.len() {
        let part = Some(Part { placement: world.placement.clone(), me: at as NodeIndex });
        world.tell(at, Event::Submit { run, graph: graph.clone(), start: conditions.start, part });
    }
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
            if self.nodes.iter().all(|node| node.over) {
                return self.finish();
            }
            let next = self.agenda.first_key_value().map(|(k, _)| k.0);
            let deadlines = self.nodes.iter().enumerate();
            let deadline = deadlines.filter_map(|(at, n)| Some((n.scheduler.deadline()?, at))).min();
            match (next, deadline) {
                (Some(moment), deadline) if deadline.is_none_or(|(d, _)| moment <= d) => {
                    self.now = self.now.max(moment);
                    if let Some((_, what)) = self.agenda.pop_first() {
                        self.happen(what);
                    }
                }
                (_, Some((deadline, at))) => {
                    self.now = self.now.max(deadline);
                    self.tell(at, Event::Wake);
                }
                (_, None) => break,
            }
        }
        panic!("the run hangs at {:?}:\n{}", self.now, self.describe());
    }

    pub(super) fn describe(&self) -> String {
        let mut text = format!("{:?}\n", self.placement);
        for (at, node) in self.nodes.iter().enumerate() {
            text += &format!("node {at}: over {} {:?}\n", node.over, node.scheduler.load());
            for (id, p) in &node.processes {
                text += &format!(
                    "  {id:?} attempt {} read {} of {:?} blocked {} doomed {}\n",
                    p.attempt,
                    p.read.len(),
                    p.tables,
                    p.blocked,
                    p.doomed
                );
            }
        }
        format!("{text}{:#?}", self.graph)
    }

    pub(super) fn tell(&mut self, at: usize, event: Event) {
        // Strangers must not disturb anything.
        if self.rng.chance(3) {
            let invocation = InvocationId { step: self.rng.below(14) as u32, item: self.rng.below(9) as u32 };
            let stale = match self.rng.below(3) {
                0 => Event::Ended { run: self.run, invocation, attempt: 0, outcome: Outcome::Ok },
                1 => Event::Blocked { run: RunId(0), invocation, attempt: 1 },
                _ => Event::Pinned { run: self.run, invocation, attempt: 99_999, port: 9, count: 1 },
            };
            let node = &mut self.nodes[at];
            node.scheduler.handle(self.now, stale, &mut node.effects);
        }
        if self.conditions.trace {
            eprintln!("{:>9} {at} {event:?}", self.now.0);
        }
        let node = &mut self.nodes[at];
        node.scheduler.handle(self.now, event, &mut node.effects);
        for effect in std::mem::take(&mut self.nodes[at].effects) {
            let text = format!("{effect:?}");
            if self.conditions.trace {
                eprintln!("          -> {text}");
            }
            self.report.hash = text.bytes().fold(self.report.hash ^ 0xcbf2_9ce4_8422_2325, |h, b| {
                (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
            });
            assert!(!self.nodes[at].over, "an effect after RunEnded: {effect:?}");
            self.execute(at, effect);
        }
    }

    pub(super) fn execute(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::Start { invocation, attempt, early, .. } => self.start(at, invocation, attempt, early),
            Effect::Warm { function, workers, .. } => {
                assert!(workers >= 1 && workers <= self.graph.functions[function as usize].workers_max);
            }
            Effect::Evaluate { step, .. } => {
                assert!(self.nodes[at].evaluated.insert(step), "step {step} is decided twice");
                self.later(5, Happens::Decide(at, step));
            }
            Effect::MeasureList { step, .. } => self.later(5, Happens::Measure(at, step)),
            Effect::Relink { invocation, input, .. } => {
                let resolved = self.nodes[at].scheduler.resolve(self.run, invocation, input);
                let key = (invocation.step, invocation.item);
                let Some(process) = self.nodes[at].processes.get_mut(&key) else {
                    panic!("relink of {key:?}, which does not run")
                };
                process.tables[input as usize] = resolved;
                let attempt = process.attempt;
                self.later(1, Happens::Act(at, key.0, key.1, attempt));
            }
            Effect::Stop { invocation, attempt, .. } => {
                let key = (invocation.step, invocation.item);
                let Some(process) = self.nodes[at].processes.get_mut(&key) else {
                    panic!("stop of {key:?}, which does not run")
                };
                assert_eq!(process.attempt, attempt, "stop of another attempt of {key:?}");
                process.doomed = true;
                let delay = self.rng.below(300);
                self.later(delay, Happens::Gone(at, key.0, key.1, attempt));
            }
            Effect::Release(key) => self.release(at, key),
            Effect::Note { note, .. } => self.noted(at, note),
            Effect::RunEnded { result, .. } => {
                // What a skipped step still has elsewhere is stopped there before its node says that it is over.
                let running: Vec<_> = self.nodes[at].processes.keys().collect();
                assert!(running.is_empty(), "the run ended while {running:?} run");
                if at == 0 {
                    self.report.result = result;
                } else {
                    self.nodes[at].store.clear();
                }
                self.nodes[at].over = true;
            }
            Effect::Tell { to, word, .. } => self.say(at, to, word),
            Effect::Publish { key, attempt, to } => self.publish(at, key, attempt, to),
        }
    }

    pub(super) fn noted(&mut self, at: usize, note: Note) {
        match note {
            Note::Skipped { step } if usize::from(self.placement.of(step).lead()) != at => {}
            Note::Skipped { step } => {
                assert!(self.report.skipped.insert(step), "step {step} is skipped twice")
            }
            Note::Failed { invocation: InvocationId { step, item }, .. } => {
                self.report.failed.insert((step, item));
            }
            Note::Expanded { .. } | Note::Retrying { .. } | Note::StepDone { .. } => {}
        }
    }

    pub(super) fn release(&mut self, at: usize, key: ObjectKey) {
        self.nodes[at].wire.published.remove(&key);
        let Some(stored) = self.nodes[at].store.remove(&key) else {
            // A mirror need not have what its node does not read.
            assert!(!self.is_put_at(at, key), "release of {key:?}, which is not in the store");
            return;
        };
        self.nodes[at].stored_bytes -= stored.bytes;
        for (id, process) in self.nodes[at].processes.iter().filter(|(_, p)| !p.doomed) {
            let names = |object: &ObjectRef| object.key == key && object.state == ObjectState::Sealed;
            for table in &process.tables {
                let read = match table {
                    Resolved::Object(object) => names(object),
                    Resolved::List { items, .. } => items.iter().any(names),
                    _ => false,
                };
                // Its lead hears of the loss as well, and stops it; until then it has its lease.
                let led_here = usize::from(self.placement.of(id.0).lead()) == at;
                assert!(!read || !led_here, "{key:?} is released while {id:?} reads it");
            }
        }
        if self.nodes.len() > 1 {
            self.nodes[at].leased.insert(key, stored);
        }
    }

    pub(super) fn start(&mut self, at: usize, id: InvocationId, attempt: u32, early: bool) {
        let (key, step) = ((id.step, id.item), &self.graph.steps[id.step as usize]);
        let before = self.started.insert(key, attempt).unwrap_or(0);
        // A lead may take an attempt back before its host has started it.
        let alone = self.nodes.len() == 1;
        assert!(
            attempt == before + 1 || (!alone && attempt > before),
            "attempts of {key:?} are not in order"
        );
        assert!(self.is_put_at(at, self.key(id, 0, 0)), "{key:?} is started on node {at}");
        assert!(!self.nodes.iter().any(|n| n.processes.contains_key(&key)), "{key:?} is started twice");
        let tables: Vec<_> = (0..step.inputs.len())
            .map(|i| self.nodes[at].scheduler.resolve(self.run, id, i as u16))
            .collect();
        // Effects are executed after the scheduler has moved on; what it resolves now includes later changes.
        let deterministic = step.function().is_some_and(|f| self.graph.functions[f as usize].deterministic);
        let nonce = if deterministic { 0 } else { self.rng.bits() };
        self.check_policy(at, id, &tables, early);
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
        self.nodes[at].processes.insert(key, process);
        self.check_means(at, id);
        self.report.attempts += 1;
        let delay = 10 + self.rng.below(50);
        self.later(delay, Happens::Act(at, key.0, key.1, attempt));
    }

    pub(super) fn is_deterministic(&self, step: u32) -> bool {
        let function = self.graph.steps.get(step as usize).and_then(Step::function);
        function.is_some_and(|f| self.graph.functions[f as usize].deterministic)
    }

    pub(super) fn happen(&mut self, what: Happens) {
        match what {
            _ if self.nodes[what.at()].over => {}
            Happens::Act(at, step, item, attempt) => self.act(at, (step, item), attempt),
            Happens::Gone(at, step, item, attempt) => self.gone(at, (step, item), attempt),
            // Nobody waits for the answer any more, and what it would read may be gone.
            Happens::Decide(_, step) | Happens::Measure(_, step) if self.report.skipped.contains(&step) => {}
            Happens::Decide(at, step) => {
                let result = Ok(self.decide(at, step));
                self.tell(at, Event::Evaluated { run: self.run, step, result });
            }
            Happens::Measure(at, step) => {
                let over = self.graph.steps[step as usize].foreach.as_ref().map(|each| each.over.clone());
                let Some(value) = over.and_then(|over| self.value(at, &over)) else { return };
                let result = Ok(truth::json_length(value));
                self.tell(at, Event::ListLength { run: self.run, step, result });
            }
            Happens::Word(at, from, word) => self.word(at, from, word),
            Happens::Object(at, from, key, stored) => self.arrive(at, from, key, stored),
            Happens::Unhold(at, id) => self.unhold(at, id),
            Happens::Delivered(at, key, attempt) => self.delivered(at, key, attempt),
            Happens::Spilled(at) => {
                self.nodes[at].spilling = false;
                self.nodes[at].stored_bytes = 0;
                self.nodes[at].store.values_mut().for_each(|stored| stored.bytes = 0);
                let waiting: Vec<_> = self.nodes[at].processes.iter().map(|(k, p)| (*k, p.attempt)).collect();
                for ((step, item), attempt) in waiting {
                    self.later(1, Happens::Act(at, step, item, attempt));
                }
            }
        }
    }

    pub(super) fn value(&self, at: usize, source: &Source) -> Value {
        self.read_table(at, &self.nodes[at].scheduler.resolve_source(self.run, source)).flatten()
    }

    pub(super) fn decide(&self, at: usize, step: u32) -> u32 {
        let holds = |condition: &Condition| {
            let reads: Vec<Value> = condition.reads.iter().map(|read| self.value(at, read)).collect();
            let skipped: Vec<bool> =
                condition.asks.iter().map(|&s| self.nodes[at].scheduler.skipped(self.run, s)).collect();
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

    pub(super) fn gone(&mut self, at: usize, key: (u32, u32), attempt: u32) {
        if self.nodes[at].processes.get(&key).is_none_or(|p| p.attempt != attempt) {
            return;
        }
        self.end(at, key, Outcome::Stopped);
    }

    pub(super) fn end(&mut self, at: usize, key: (u32, u32), outcome: Outcome) {
        let Some(process) = self.nodes[at].processes.remove(&key) else { return };
        if outcome == Outcome::Ok && !process.doomed {
            self.report.nonces.insert(key, process.nonce);
            self.report.failed.remove(&key);
        } else {
            self.report.nonces.remove(&key);
            self.nodes[at].lists.retain(|&(step, _), _| step != key.0);
        }
        let invocation = InvocationId { step: key.0, item: key.1 };
        let attempt = process.attempt;
        self.tell(at, Event::Ended { run: self.run, invocation, attempt, outcome });
    }

    /// The run is over: outputs are read, the run is forgotten, and nothing may be left.
    pub(super) fn finish(&mut self) {
        if self.report.result.is_ok() {
            self.report.outputs =
                self.graph.outputs.iter().map(|output| self.value(0, &output.source)).collect();
        }
        let mut effects = Vec::new();
        self.nodes[0].scheduler.forget(self.run, &mut effects);
        effects.into_iter().for_each(|effect| self.execute(0, effect));
        for node in &self.nodes {
            // With the last word of a run on several nodes its stores drop all that is left of it.
            let left: Vec<_> = node.store.keys().filter(|_| self.nodes.len() == 1).collect();
            assert!(left.is_empty(), "left in the store: {left:?}\n{:#?}", self.graph);
            let load = node.scheduler.load();
            assert_eq!(load, Load::default(), "something is still in use");
            assert_eq!(node.scheduler.deadline(), None, "a timer is left");
        }
    }
}

impl Node {
    /// An object that is in the store, or was when a process was told of it.
    pub(super) fn find(&self, key: &ObjectKey) -> Option<&Stored> {
        self.store.get(key).or_else(|| self.leased.get(key))
    }
}

impl Happens {
    /// Where it happens.
    fn at(&self) -> usize {
        match *self {
            Happens::Act(at, ..)
            | Happens::Decide(at, _)
            | Happens::Measure(at, _)
            | Happens::Gone(at, ..)
            | Happens::Spilled(at)
            | Happens::Word(at, ..)
            | Happens::Object(at, ..)
            | Happens::Unhold(at, _)
            | Happens::Delivered(at, ..) => at,
        }
    }
}
