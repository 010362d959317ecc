//! CPU tokens, slots and workers: which of the ready invocations starts next.
//!
//! # Why early starters never starve what they wait for
//!
//! An invocation is *early* while some input of it is incomplete. An early one may sleep in a get for
//! as long as its precursors need, holding a slot, a worker of its function and a place among its
//! step's parallel instances, but no token: a blocked worker gives its token back and takes it on
//! credit when it wakes. Three rules keep the sleepers from locking out those they wait for:
//!
//! 1. **Slots.** At most `slots - 1` slots are held by early invocations. With one slot nothing starts
//!    early, which is control flow.
//! 2. **Workers.** Draw an arrow from function f to g if a step of f waits directly for a step of g. Of a
//!    function on a cycle of arrows (a loop to itself included) early invocations hold at most
//!    `workers_max - 1` workers. Of the others they may hold all.
//! 3. **Promotion.** The moment its last input completes, a running invocation stops counting as early.
//!    It never turns early again: an input that is taken back poisons it, and a poisoned one is stopped.
//!
//! *Claim:* as long as a run has unfinished steps, some invocation is running that waits for nobody,
//! or a timer is set. *Proof.* Take any unfinished run and its first unfinished step s in topological
//! order. All that s waits for is resolved, so no unfinished invocation of s is early, and each is
//! running (then it waits for nobody), backing off (a timer), or ready. Let m be the one of highest
//! priority among the ready. Its step's places are held by siblings only, which are not early: if there is
//! no place, one of them runs and waits for nobody. A *slot* is free unless all are held, by rule 1 one of
//! them by an invocation that is not early and waits for nobody. *Tokens* in use belong to invocations that
//! are awake; if all are asleep all tokens are there, and no step asks for more than all. Its *function's
//! workers*, if all are held: were one holder not early, it waits for nobody. Else all holders are early, so by
//! rule 2 the function f lies on no cycle. A holder x waits for something unfinished; the first unfinished
//! step of x's run among those x waits for is again all ready inputs, and its function g is reached from f
//! by arrows. Repeat the argument with g. The functions visited are distinct, since f, g, … lie on no
//! cycle as long as their workers are all held by early ones, and there are finitely many: the walk ends
//! at an invocation that runs or can start. What waits for nobody ends by itself, by its timeout or by
//! the run's deadline. ∎ (`hwtests/tests/oracle.rs` tries the claim on random graphs with one to three slots.)

use super::plan::Plan;
use super::{Capacity, Load};
use crate::graph::Graph;
use alloc::{collections::BinaryHeap, sync::Arc, vec::Vec};
use core::cmp::Ordering;

/// A ready invocation in line. It is void once the invocation's ticket has changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Microseconds of the run behind it: more goes first.
    pub(super) rank: u64,
    /// Number of the run in order of submission: older goes first.
    pub(super) seq: u64,
    pub(super) step: u32,
    pub(super) item: u32,
    pub(super) ticket: u32,
    /// Where the run is kept.
    pub(super) slot: u32,
    /// Where the function is kept.
    pub(super) graph: u32,
    pub(super) function: u32,
    pub(super) cpu_milli: u32,
    pub(super) early: bool,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        let later = (other.seq, other.step, other.item, other.ticket);
        self.rank.cmp(&other.rank).then_with(|| later.cmp(&(self.seq, self.step, self.item, self.ticket)))
    }
}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Where entries wait that a limit of their own (a function's workers, a step's parallel instances) keeps
/// back, so that they hold up nobody else.
#[derive(Default)]
pub(super) struct Gate {
    parked: [BinaryHeap<Entry>; 2],
}

impl Gate {
    pub(super) fn park(&mut self, entry: Entry) {
        self.parked[usize::from(entry.early)].push(entry);
    }
    /// Lets the first of each kind back in line.
    pub(super) fn unpark(&mut self, line: &mut Line) {
        for parked in &mut self.parked {
            if let Some(entry) = parked.pop() {
                line.push(entry);
            }
        }
    }
}

/// The ready invocations, by whether they need a token and whether they are early.
#[derive(Default)]
pub(super) struct Line {
    heaps: [BinaryHeap<Entry>; 4],
}

impl Line {
    pub(super) fn push(&mut self, entry: Entry) {
        self.heaps[Self::heap(entry.cpu_milli > 0, entry.early)].push(entry);
    }
    const fn heap(cpu: bool, early: bool) -> usize {
        (cpu as usize) << 1 | early as usize
    }
    /// The first in line among those allowed, and its heap.
    fn first(&self, cpu: bool, early: bool) -> Option<(usize, &Entry)> {
        let allowed = |&h: &usize| (cpu || h & 2 == 0) && (early || h & 1 == 0);
        (0..4).filter(allowed).filter_map(|h| Some((h, self.heaps[h].peek()?))).max_by(|a, b| a.1.cmp(b.1))
    }
}

/// Workers of one function.
pub(super) struct Workers {
    max: u32,
    early_max: u32,
    running: u32,
    early: u32,
    gate: Gate,
}

/// A graph with runs, or one that the driver still holds and may submit again.
pub(super) struct Known {
    pub(super) graph: Arc<Graph>,
    pub(super) plan: Arc<Plan>,
    pub(super) runs: u32,
    functions: Vec<Workers>,
}

/// The shared means of all runs of a node.
pub(super) struct Pool {
    capacity: Capacity,
    tokens_free: i64,
    slots_used: u32,
    early: u32,
    pub(super) blocked: u32,
    pub(super) ready: u32,
    pub(super) line: Line,
    pub(super) graphs: Vec<Option<Known>>,
}

impl Pool {
    pub(super) fn new(capacity: Capacity) -> Self {
        let capacity = Capacity { slots: capacity.slots.max(1), ..capacity };
        Pool {
            capacity,
            tokens_free: i64::from(capacity.cpu_milli),
            slots_used: 0,
            early: 0,
            blocked: 0,
            ready: 0,
            line: Line::default(),
            graphs: Vec::new(),
        }
    }

    pub(super) fn load(&self, runs: u32) -> Load {
        Load {
            cpu_milli_used: i64::from(self.capacity.cpu_milli) - self.tokens_free,
            slots_used: self.slots_used,
            early: self.early,
            blocked: self.blocked,
            ready: self.ready,
            runs,
        }
    }

    /// Tokens that a step asking for `cpu_milli` gets: no more than there are.
    pub(super) fn clamp(&self, cpu_milli: u32) -> u32 {
        cpu_milli.min(self.capacity.cpu_milli)
    }

    /// Where the graph is kept; its plan is made if it is new. `make` fails for an invalid graph.
    pub(super) fn intern<E>(
        &mut self,
        graph: &Arc<Graph>,
        make: impl FnOnce(&Graph) -> Result<Plan, E>,
    ) -> Result<u32, E> {
        let same = |known: &Option<Known>| known.as_ref().is_some_and(|k| Arc::ptr_eq(&k.graph, graph));
        if let Some(at) = self.graphs.iter().position(same) {
            return Ok(at as u32);
        }
        let plan = make(graph)?;
        let functions = graph.functions.iter().zip(&plan.cyclic).map(|(function, &cyclic)| Workers {
            max: function.workers_max,
            early_max: function.workers_max - u32::from(cyclic),
            running: 0,
            early: 0,
            gate: Gate::default(),
        });
        let known =
            Known { graph: graph.clone(), functions: functions.collect(), plan: Arc::new(plan), runs: 0 };
        let free = self.graphs.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.graphs.push(None);
            self.graphs.len() - 1
        });
        self.graphs[at] = Some(known);
        Ok(at as u32)
    }

    /// Forgets graphs without runs that nobody else holds.
    pub(super) fn prune(&mut self) {
        for known in &mut self.graphs {
            if known.as_ref().is_some_and(|k| k.runs == 0 && Arc::strong_count(&k.graph) == 1) {
                *known = None;
            }
        }
    }

    fn workers(&mut self, graph: u32, function: u32) -> Option<&mut Workers> {
        self.graphs.get_mut(graph as usize)?.as_mut()?.functions.get_mut(function as usize)
    }

    /// The entry that would start next if its own limits allow it. Whether its tokens are there is
    /// looked at last, by [`Pool::affords`], so that a void entry never holds up the line.
    pub(super) fn first(&self, without_cpu: bool) -> Option<Entry> {
        if self.slots_used >= self.capacity.slots {
            return None;
        }
        let early = self.early + 1 < self.capacity.slots;
        self.line.first(!without_cpu, early).map(|(_, entry)| *entry)
    }

    /// Takes `entry`, which [`Pool::first`] has just named, out of the line.
    pub(super) fn pop(&mut self, entry: &Entry) {
        self.line.heaps[Line::heap(entry.cpu_milli > 0, entry.early)].pop();
    }

    pub(super) fn affords(&self, entry: &Entry) -> bool {
        entry.cpu_milli == 0 || self.tokens_free >= i64::from(entry.cpu_milli)
    }

    /// Whether the function has a worker for it; else it is parked until one is free.
    pub(super) fn has_worker(&mut self, entry: &Entry) -> bool {
        let Some(workers) = self.workers(entry.graph, entry.function) else { return false };
        if workers.running < workers.max && (!entry.early || workers.early < workers.early_max) {
            return true;
        }
        workers.gate.park(*entry);
        false
    }

    /// Lets the next of the function's parked entries try, since one that could have started did not.
    pub(super) fn unpark(&mut self, graph: u32, function: u32) {
        let Self { graphs, line, .. } = self;
        if let Some(Some(known)) = graphs.get_mut(graph as usize)
            && let Some(workers) = known.functions.get_mut(function as usize)
        {
            workers.gate.unpark(line);
        }
    }

    /// An attempt starts: slot, worker and tokens are taken.
    pub(super) fn take(&mut self, graph: u32, function: u32, cpu_milli: u32, early: bool) {
        self.slots_used += 1;
        self.early += u32::from(early);
        self.tokens_free -= i64::from(cpu_milli);
        if let Some(workers) = self.workers(graph, function) {
            workers.running += 1;
            workers.early += u32::from(early);
        }
    }

    /// An attempt has ended: slot and worker are given back. Tokens are given back by [`Pool::give`].
    pub(super) fn leave(&mut self, graph: u32, function: u32, early: bool) {
        self.slots_used -= 1;
        self.early -= u32::from(early);
        if let Some(workers) = self.workers(graph, function) {
            workers.running -= 1;
            workers.early -= u32::from(early);
        }
        self.unpark(graph, function);
    }

    /// A running attempt has all of its inputs now.
    pub(super) fn promote(&mut self, graph: u32, function: u32) {
        self.early -= 1;
        if let Some(workers) = self.workers(graph, function) {
            workers.early -= 1;
        }
        self.unpark(graph, function);
    }

    pub(super) fn give(&mut self, cpu_milli: u32) {
        self.tokens_free += i64::from(cpu_milli);
    }

    /// Takes tokens on credit: whoever wakes from a get never waits for them.
    pub(super) fn borrow(&mut self, cpu_milli: u32) {
        self.tokens_free -= i64::from(cpu_milli);
    }
}
