//! Which objects an invocation read: its references, resolved by what the run put.

use super::attempts::{Attempt, Decided, Object};
use super::{Timeline, policy};
use crate::history::{GraphFacts, RunRecord, SourceFacts, StartFacts};
use std::collections::{BTreeMap, HashMap};

/// Switches that a reference may lead through.
const SWITCHES_MAX: u32 = 1000;

/// One input of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Index of the input in its step.
    pub input: u16,
    /// The objects behind it; inputs that read the same have the same.
    pub list: u32,
}

/// Bytes that one step read of an output of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeBytes {
    /// The producing step.
    pub from: u32,
    /// Its output port.
    pub port: u16,
    /// The reading step.
    pub to: u32,
    /// Different objects read.
    pub objects: u64,
    /// Invocations that read.
    pub readers: u64,
    /// Bytes read, counted once for each reader. On one node none of them is copied.
    pub bytes: u64,
}

/// What a reference leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Target {
    /// All objects of a port.
    Port(u32, u16),
    /// One item of a list.
    Item(u32, u16, u32),
    /// What one invocation of a foreach step put.
    Invocation(u32, u16, u32),
}

/// Objects read together.
#[derive(Clone, Debug)]
pub(crate) struct List {
    /// Indices of objects, by invocation and item.
    pub(super) objects: Vec<u32>,
    /// It can be read before it is complete: a list, or an object that grows.
    pub(super) partly: bool,
    /// The step and port they are of.
    pub(super) step: u32,
    pub(super) port: u16,
    /// The object whose first byte came first, and the one sealed last.
    pub(super) first: Option<u32>,
    pub(super) last: Option<u32>,
    pub(super) bytes: u64,
}

/// All lists, each once, however many read it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lists {
    graph: GraphFacts,
    decided: Decided,
    /// Objects of each port, by invocation and item.
    ports: BTreeMap<(u32, u16), Vec<u32>>,
    objects: Vec<Object>,
    lists: Vec<List>,
    known: HashMap<Target, u32>,
    /// Index of each attempt.
    attempts: HashMap<(u32, u32, u32), u32>,
    /// The attempt of each step that ended last.
    ends: HashMap<u32, u32>,
}

impl Lists {
    pub(super) fn new(
        graph: &GraphFacts,
        attempts: &[Attempt],
        objects: &[Object],
        decided: Decided,
    ) -> Lists {
        let mut lists = Lists {
            graph: GraphFacts { drawing: String::new(), ..graph.clone() },
            decided,
            objects: objects.to_vec(),
            ..Lists::default()
        };
        for (index, object) in objects.iter().enumerate() {
            lists.ports.entry((object.step, object.port)).or_default().push(index as u32);
        }
        for port in lists.ports.values_mut() {
            port.sort_by_key(|o| (objects[*o as usize].invocation, objects[*o as usize].item));
        }
        for (index, attempt) in attempts.iter().enumerate() {
            lists.attempts.insert((attempt.step, attempt.item, attempt.attempt), index as u32);
            let last = lists.ends.entry(attempt.step).or_insert(index as u32);
            if attempts[*last as usize].ended_us < attempt.ended_us {
                *last = index as u32;
            }
        }
        for step in &graph.steps {
            for condition in &step.conditions {
                let target = lists.target(condition, None);
                if let Some(target) = target {
                    lists.list(target);
                }
            }
        }
        lists
    }

    /// What an invocation reads, input by input.
    pub(super) fn reads_of(&mut self, step: u32, item: u32) -> Vec<Read> {
        let inputs = self.graph.steps.get(step as usize).map_or(0, |s| s.inputs.len());
        let mut reads = Vec::new();
        for input in 0..inputs {
            let source = self.graph.steps[step as usize].inputs[input].1.clone();
            let list = self.target(&source, Some((step, item))).map(|target| self.list(target));
            reads.extend(list.map(|list| Read { input: input as u16, list }));
        }
        reads
    }

    /// The objects a reference of an invocation, or of no invocation in particular, leads to.
    fn target(&self, source: &SourceFacts, of: Option<(u32, u32)>) -> Option<Target> {
        let mut source = source;
        for _ in 0..SWITCHES_MAX {
            match source {
                SourceFacts::Const | SourceFacts::Input(_) => return None,
                SourceFacts::Gather { step, port } => return Some(Target::Port(*step, *port)),
                SourceFacts::Output { step, port } => {
                    let facts = self.graph.steps.get(*step as usize)?;
                    if facts.cases.is_empty() {
                        return Some(Target::Port(*step, *port));
                    }
                    source = facts.cases.get(*self.decided.get(step)? as usize)?;
                }
                SourceFacts::Item => {
                    let (step, item) = of?;
                    let foreach = self.graph.steps.get(step as usize)?.foreach.as_ref()?;
                    let over = self.target(&foreach.over, None)?;
                    return Some(match (over, &foreach.over) {
                        _ if foreach.json => over,
                        (Target::Port(step, port), SourceFacts::Gather { .. }) => {
                            Target::Invocation(step, port, item)
                        }
                        (Target::Port(step, port), _) => Target::Item(step, port, item),
                        (other, _) => other,
                    });
                }
            }
        }
        None
    }

    fn list(&mut self, target: Target) -> u32 {
        if let Some(list) = self.known.get(&target) {
            return *list;
        }
        let (Target::Port(step, port) | Target::Item(step, port, _) | Target::Invocation(step, port, _)) =
            target;
        let objects = &self.objects;
        let all = self.ports.get(&(step, port)).map_or(&[][..], Vec::as_slice);
        let chosen: Vec<u32> = match target {
            Target::Port(..) => all.to_vec(),
            Target::Item(_, _, item) => one(all, |o| objects[o as usize].item.cmp(&item)),
            Target::Invocation(_, _, item) => one(all, |o| objects[o as usize].invocation.cmp(&item)),
        };
        let facts = self.graph.steps.get(step as usize);
        let many = facts
            .is_some_and(|s| s.foreach.is_some() || s.outputs.get(usize::from(port)).is_some_and(|p| p.many));
        let grows = facts.and_then(|s| s.outputs.get(usize::from(port))).is_some_and(|p| p.stream);
        let at = |o: &&u32| &objects[**o as usize];
        let list = List {
            first: chosen.iter().min_by_key(|o| at(o).first_us).copied(),
            last: chosen.iter().max_by_key(|o| at(o).sealed_us).copied(),
            bytes: chosen.iter().map(|o| objects[*o as usize].bytes).sum(),
            partly: grows || (many && matches!(target, Target::Port(..))),
            step,
            port,
            objects: chosen,
        };
        let index = self.lists.len() as u32;
        self.lists.push(list);
        self.known.insert(target, index);
        index
    }

    pub(crate) fn objects(&self, list: u32) -> &[u32] {
        &self.lists[list as usize].objects
    }

    pub(super) fn of(&self, read: &Read) -> &List {
        &self.lists[read.list as usize]
    }

    pub(super) fn object(&self, index: u32) -> &Object {
        &self.objects[index as usize]
    }

    /// The object that a wait of an attempt was for.
    pub(super) fn waited_for(&self, attempt: &Attempt, input: u16, item: Option<u32>) -> Option<&Object> {
        let list = self.of(attempt.reads.iter().find(|r| r.input == input)?);
        let object = match item {
            Some(item) if list.partly && list.objects.len() > 1 => list.objects.get(item as usize).copied(),
            _ => None,
        };
        Some(self.object(object.or(list.last)?))
    }

    /// All lists that a reference outside of any invocation leads to.
    pub(super) fn known_list(&self, source: &SourceFacts) -> Option<&List> {
        let target = self.target(source, None)?;
        self.known.get(&target).map(|list| &self.lists[*list as usize])
    }

    /// What an invocation of a foreach step iterates.
    pub(super) fn own_item(&self, step: u32, item: u32) -> Option<&Object> {
        self.graph.steps.get(step as usize)?.foreach.as_ref()?;
        let target = self.target(&SourceFacts::Item, Some((step, item)))?;
        let (step, port, wanted, by_item) = match target {
            Target::Port(step, port) => (step, port, 0, true),
            Target::Item(step, port, item) => (step, port, item, true),
            Target::Invocation(step, port, item) => (step, port, item, false),
        };
        let all = self.ports.get(&(step, port))?;
        let key = |o: u32| if by_item { self.object(o).item } else { self.object(o).invocation };
        one(all, |o| key(o).cmp(&wanted)).first().map(|o| self.object(*o))
    }

    pub(super) fn attempt(&self, step: u32, item: u32, attempt: u32) -> Option<u32> {
        self.attempts.get(&(step, item, attempt)).copied()
    }

    /// The attempt of a step that ended last.
    pub(super) fn last_of(&self, step: u32) -> Option<u32> {
        self.ends.get(&step).copied()
    }
}

/// The objects of a sorted slice that compare equal: one, or none.
fn one(sorted: &[u32], compare: impl Fn(u32) -> std::cmp::Ordering) -> Vec<u32> {
    sorted.binary_search_by(|o| compare(*o)).map(|at| vec![sorted[at]]).unwrap_or_default()
}

/// The edges along which data went, by steps.
pub(super) fn edges(timeline: &Timeline) -> Vec<EdgeBytes> {
    let mut edges: BTreeMap<(u32, u16, u32), (EdgeBytes, std::collections::HashSet<u32>)> = BTreeMap::new();
    for attempt in timeline.attempts.iter().filter(|a| a.ok == Some(true)) {
        for read in &attempt.reads {
            let list = timeline.lists.of(read);
            let key = (list.step, list.port, attempt.step);
            let fresh = EdgeBytes {
                from: list.step,
                port: list.port,
                to: attempt.step,
                objects: 0,
                readers: 0,
                bytes: 0,
            };
            let (edge, lists) = edges.entry(key).or_insert_with(|| (fresh, Default::default()));
            edge.readers += 1;
            edge.bytes += list.bytes;
            if lists.insert(read.list) {
                edge.objects += list.objects.len() as u64;
            }
        }
    }
    edges.into_values().map(|(edge, _)| edge).collect()
}

/// The inputs that count for a start: those from steps, as the policy of the step sees them.
pub(super) fn start_inputs<'t>(
    record: &RunRecord,
    lists: &'t Lists,
    attempt: &Attempt,
) -> (StartFacts, bool, Vec<&'t List>) {
    let step = record.graph.steps.get(attempt.step as usize);
    let from_item = |input: u16| {
        step.and_then(|s| s.inputs.get(usize::from(input)))
            .is_some_and(|(_, source)| *source == SourceFacts::Item)
    };
    let has_item = attempt.reads.iter().any(|r| from_item(r.input));
    let inputs = attempt.reads.iter().filter(|r| !from_item(r.input)).map(|r| lists.of(r)).collect();
    (policy(record, attempt.step), has_item, inputs)
}
