//! What the simulated functions compute, and a naive model of what a run must come to.
//!
//! A function's outputs are hashes of its inputs. One that is not deterministic mixes in a nonce of the
//! attempt, so that a reader of a dead attempt cannot go unnoticed: the model recomputes everything from the nonces of
//! the attempts that counted in the end.

use super::rng::mix;
use dflow_core::graph::*;
use std::collections::{BTreeMap, BTreeSet};

/// A value; `None` is null.
pub type Value = Option<u64>;

/// The value of a list.
pub fn list(items: &[u64]) -> u64 {
    mix(&[&[77, items.len() as u64], items].concat())
}
/// Element `index` of a JSON list.
pub fn element(list: u64, index: u32) -> u64 {
    mix(&[list, u64::from(index)])
}
/// Length of the JSON list that a value stands for.
pub const fn json_length(value: u64) -> u32 {
    (value % 4) as u32
}
/// A literal of the file.
pub fn constant(index: u32) -> u64 {
    mix(&[1, index as u64])
}
/// A run input.
pub fn input(index: u16) -> u64 {
    mix(&[2, index as u64])
}
/// What an invocation makes of its inputs, before ports.
pub fn digest(step: u32, item: u32, inputs: &[Value], nonce: u64) -> u64 {
    let words: Vec<u64> = inputs.iter().map(|v| v.map_or(3, |v| mix(&[4, v]))).collect();
    mix(&[&[u64::from(step), u64::from(item), nonce], &words[..]].concat())
}
/// The bytes of one object.
pub fn object(digest: u64, port: u16, element: u32) -> u64 {
    mix(&[digest, u64::from(port), u64::from(element)])
}
/// Items of a `many` port.
pub fn count(digest: u64, port: u16) -> u32 {
    (mix(&[digest, u64::from(port), 9]) % 4) as u32
}
/// Whether an invocation fails at every attempt.
pub fn is_broken(seed: u64, step: u32, item: u32) -> bool {
    mix(&[seed, u64::from(step), u64::from(item), 5]).is_multiple_of(30)
}
/// Whether a condition holds; one that reads a skipped value does not.
pub fn holds(id: u32, reads: &[Value], skipped: &[bool]) -> bool {
    let mut words = vec![u64::from(id)];
    for read in reads {
        let Some(read) = read else { return false };
        words.push(*read);
    }
    words.extend(skipped.iter().map(|&s| u64::from(s)));
    !mix(&words).is_multiple_of(3)
}

/// What became of a step.
#[derive(Clone, Debug)]
enum Made {
    Skipped,
    /// Digest of its one invocation.
    One(u64),
    /// Digests of its items; `None` for one left out.
    Each(Vec<Option<u64>>),
    Alias(Source),
}

/// What a successful run must have come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Steps skipped.
    pub skipped: BTreeSet<u32>,
    /// Invocations that ended well: (step, item).
    pub ended: BTreeSet<(u32, u32)>,
    /// Number of invocations of each step, those left out included.
    pub items: Vec<u32>,
    /// Items of a foreach that failed or whose own item did.
    pub left_out: BTreeSet<(u32, u32)>,
    /// Values of the run outputs.
    pub outputs: Vec<Value>,
}

/// Recomputes a run step by step in topological order. `nonces` has those of the attempts that counted, `failed`
/// the invocations that failed for good; `Err` says which step must fail the run, or which invocation should have
/// run and has not.
pub fn expect(
    graph: &Graph,
    nonces: &BTreeMap<(u32, u32), u64>,
    failed: &BTreeSet<(u32, u32)>,
) -> Result<Outcome, String> {
    let mut model =
        Model { graph, failed, nonces, made: vec![Made::Skipped; graph.steps.len()], ended: BTreeSet::new() };
    for step in graph.topological().map_err(|e| e.to_string())? {
        model.made[step as usize] = model.step(step)?;
    }
    let skipped =
        (0..graph.steps.len() as u32).filter(|&s| matches!(model.made[s as usize], Made::Skipped)).collect();
    let outputs = graph.outputs.iter().map(|output| model.value(&output.source)).collect();
    let items = model.made.iter().map(|made| match made {
        Made::Skipped | Made::Alias(_) => 0,
        Made::One(_) => 1,
        Made::Each(items) => items.len() as u32,
    });
    let mut left_out = BTreeSet::new();
    for (step, made) in model.made.iter().enumerate() {
        if let Made::Each(items) = made {
            let out = items.iter().enumerate().filter(|(_, made)| made.is_none());
            left_out.extend(out.map(|(item, _)| (step as u32, item as u32)));
        }
    }
    Ok(Outcome { skipped, left_out, items: items.collect(), ended: model.ended, outputs })
}

struct Model<'a> {
    graph: &'a Graph,
    failed: &'a BTreeSet<(u32, u32)>,
    nonces: &'a BTreeMap<(u32, u32), u64>,
    made: Vec<Made>,
    ended: BTreeSet<(u32, u32)>,
}

impl Model<'_> {
    fn value(&self, source: &Source) -> Value {
        match *source {
            Source::Const(c) => Some(constant(c)),
            Source::Input(i) => Some(input(i)),
            Source::Item => None,
            Source::Output { step, port } | Source::Gather { step, port } => {
                match &self.made[step as usize] {
                    Made::Skipped => None,
                    Made::Alias(source) => self.value(source),
                    Made::One(d) => match self.graph.steps[step as usize].outputs[port as usize].kind {
                        PortKind::Many => Some(list(&many(*d, port))),
                        _ => Some(object(*d, port, 0)),
                    },
                    Made::Each(items) => {
                        Some(list(&items.iter().flatten().map(|&d| object(d, port, 0)).collect::<Vec<_>>()))
                    }
                }
            }
        }
    }

    fn holds(&self, condition: &Condition) -> bool {
        let reads: Vec<Value> = condition.reads.iter().map(|read| self.value(read)).collect();
        let skipped: Vec<bool> =
            condition.asks.iter().map(|&s| matches!(self.made[s as usize], Made::Skipped)).collect();
        holds(condition.id, &reads, &skipped)
    }

    fn invoke(&mut self, step: u32, item: u32, element: Value) -> Result<u64, String> {
        let inputs: Vec<Value> = self.graph.steps[step as usize]
            .inputs
            .iter()
            .map(|input| if input.source == Source::Item { element } else { self.value(&input.source) })
            .collect();
        let nonce =
            self.nonces.get(&(step, item)).ok_or(format!("step {step} item {item} should have run"))?;
        self.ended.insert((step, item));
        Ok(digest(step, item, &inputs, *nonce))
    }

    fn step(&mut self, s: u32) -> Result<Made, String> {
        let graph = self.graph;
        let step = &graph.steps[s as usize];
        if let StepKind::Switch(cases) = &step.kind {
            let chosen = cases.iter().find(|case| case.when.as_ref().is_none_or(|c| self.holds(c)));
            return Ok(match chosen {
                Some(case) if self.value(&case.value).is_some() => Made::Alias(case.value.clone()),
                _ => Made::Skipped,
            });
        }
        let absent = |input: &InputPort| {
            !input.optional && input.source != Source::Item && self.value(&input.source).is_none()
        };
        let over = step.foreach.as_ref().map(|each| (each, self.value(&each.over)));
        if step.inputs.iter().any(absent)
            || over.is_some_and(|(_, value)| value.is_none())
            || step.when.as_ref().is_some_and(|when| !self.holds(when))
        {
            return Ok(Made::Skipped);
        }
        let failed = || match step.on_failure {
            OnFailure::Ignore => Ok(Made::Skipped),
            OnFailure::Fail => Err(format!("step {s} must fail the run")),
        };
        let Some(each) = &step.foreach else {
            return if self.failed.contains(&(s, 0)) {
                failed()
            } else {
                Ok(Made::One(self.invoke(s, 0, None)?))
            };
        };
        let items: Vec<Value> = match (&each.over, each.json) {
            (over, true) => {
                let value = self.value(over).unwrap_or(0);
                (0..json_length(value)).map(|i| Some(element(value, i))).collect()
            }
            (Source::Gather { step: of, port }, _) => match &self.made[*of as usize] {
                Made::Each(items) => items.iter().map(|d| d.map(|d| object(d, *port, 0))).collect(),
                _ => Vec::new(),
            },
            (Source::Output { step: of, port }, _) => match self.made[*of as usize] {
                Made::One(d) => many(d, *port).into_iter().map(Some).collect(),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        let broken =
            (0..items.len()).filter(|&i| items[i].is_some() && self.failed.contains(&(s, i as u32))).count();
        let too_many = match each.tolerate {
            Tolerate::Count(most) => broken > most as usize,
            Tolerate::Percent(share) => broken * 100 > share as usize * items.len(),
        };
        if too_many || items.len() > each.items_max as usize {
            return failed();
        }
        let mut made = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let runs = item.is_some() && !self.failed.contains(&(s, i as u32));
            made.push(if runs { Some(self.invoke(s, i as u32, *item)?) } else { None });
        }
        Ok(Made::Each(made))
    }
}

fn many(digest: u64, port: u16) -> Vec<u64> {
    (0..count(digest, port)).map(|e| object(digest, port, e)).collect()
}
