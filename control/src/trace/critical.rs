//! Why the run took as long as it did: the chain of causes, and how short it could have been.

use super::Timeline;
use super::attempts::Attempt;
use super::reads::{Lists, start_inputs};
use crate::history::{RunRecord, SourceFacts, StartFacts};
use std::collections::HashMap;

/// Stretches of a path at most; a longer chain is told from its end.
const STRETCHES_MAX: usize = 100_000;

/// What a stretch of the critical path is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StretchKind {
    /// A slot or a token was missing.
    Queue,
    /// Between an attempt's start and its function's first line.
    Start,
    /// The function was at work.
    Work,
    /// It waited, and nothing tells for what.
    Wait,
}

impl StretchKind {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            StretchKind::Queue => "queue",
            StretchKind::Start => "start",
            StretchKind::Work => "work",
            StretchKind::Wait => "wait",
        }
    }
}

/// A part of the critical path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Index of the attempt.
    pub attempt: u32,
    /// What it is spent on.
    pub kind: StretchKind,
    /// When it begins.
    pub from_us: u64,
    /// When it ends.
    pub until_us: u64,
}

/// How short a run of the same work could have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// The longest chain of work, where what can be read partly is read as it comes.
    pub path_us: u64,
    /// All work, spread over all CPU tokens without a gap.
    pub work_us: u64,
}

impl Bound {
    /// No run of this work on this node is shorter.
    pub fn us(&self) -> u64 {
        self.path_us.max(self.work_us)
    }
}

/// A moment, and the attempt that brought it about.
type Cause = (u64, Option<u32>);

/// When nothing but a slot or a token was missing to an attempt, and what came last.
pub(super) fn ready(record: &RunRecord, attempts: &[Attempt], lists: &Lists, index: usize) -> Cause {
    let attempt = &attempts[index];
    if attempt.attempt > 1
        && let Some(before) = lists.attempt(attempt.step, attempt.item, attempt.attempt - 1)
    {
        return (attempts[before as usize].ended_us, Some(before));
    }
    let mut latest: Cause = (0, None);
    let mut needs = |cause: Cause| {
        // What is later than the start cannot have been needed for it.
        if cause.0 > latest.0 && cause.0 <= attempt.started_us {
            latest = cause;
        }
    };
    let (policy, has_item, inputs) = start_inputs(record, lists, attempt);
    if let Some(item) = lists.own_item(attempt.step, attempt.item) {
        let at_us = if policy == StartFacts::AllReady { item.sealed_us } else { item.first_us };
        needs((at_us, Some(item.producer)));
    }
    let sealed = |o: Option<u32>| o.map(|o| lists.object(o)).map(|o| (o.sealed_us, Some(o.producer)));
    match policy {
        StartFacts::Eager => {}
        StartFacts::FirstByte if has_item => {}
        StartFacts::FirstByte => {
            let firsts = inputs.iter().filter_map(|l| l.first).map(|o| lists.object(o));
            if let Some(first) = firsts.min_by_key(|o| o.first_us) {
                needs((first.first_us, Some(first.producer)));
            }
        }
        StartFacts::First(k) => {
            let mut complete: Vec<Cause> = inputs.iter().filter_map(|l| sealed(l.last)).collect();
            complete.sort_unstable();
            let nth = (k as usize).min(complete.len());
            complete.get(nth.wrapping_sub(1)).copied().into_iter().for_each(&mut needs);
        }
        StartFacts::AllReady => inputs.iter().filter_map(|l| sealed(l.last)).for_each(&mut needs),
    }
    if let Some(step) = record.graph.steps.get(attempt.step as usize) {
        for after in &step.after {
            if let Some(last) = lists.last_of(*after) {
                needs((attempts[last as usize].ended_us, Some(last)));
            }
        }
        for condition in &step.conditions {
            if let Some(cause) = lists.known_list(condition).and_then(|l| sealed(l.last)) {
                needs(cause);
            }
        }
    }
    latest
}

/// From the run's end back: what each moment waited for. The last stretch comes first.
pub(super) fn path(record: &RunRecord, timeline: &Timeline) -> Vec<Stretch> {
    let Timeline { attempts, lists, .. } = timeline;
    // Shorter ones are the cost of a hand-over, and would cut the path into crumbs.
    let least_us = (timeline.makespan_us / 2000).max(20);
    let mut stretches = Vec::new();
    let last = (0..attempts.len()).max_by_key(|i| attempts[*i].ended_us);
    let Some(mut index) = last else { return stretches };
    let mut at_us = attempts[index].ended_us;
    while stretches.len() < STRETCHES_MAX {
        let attempt = &attempts[index];
        let mut push = |kind, from_us: u64, until_us: u64| {
            if until_us > from_us {
                stretches.push(Stretch { attempt: index as u32, kind, from_us, until_us });
            }
        };
        let began_us = attempt.began_us.unwrap_or(attempt.ended_us);
        let waits = attempt.waits.iter().rev();
        let wait = waits.filter(|w| w.until_us - w.from_us >= least_us).find(|w| w.until_us <= at_us);
        if let Some(wait) = wait {
            push(StretchKind::Work, wait.until_us, at_us);
            let object = wait.input.and_then(|input| lists.waited_for(attempt, input, wait.item));
            let producer = object.map(|o| o.producer as usize).filter(|p| *p != index);
            match producer.filter(|p| attempts[*p].started_us < wait.until_us) {
                Some(producer) => {
                    at_us = wait.until_us.min(attempts[producer].ended_us);
                    index = producer;
                }
                None => {
                    push(StretchKind::Wait, wait.from_us, wait.until_us);
                    at_us = wait.from_us;
                }
            }
            continue;
        }
        push(StretchKind::Work, began_us, at_us);
        push(StretchKind::Start, attempt.started_us, began_us.min(at_us));
        let (ready_us, cause) = ready(record, attempts, lists, index);
        let started_us = attempt.started_us.min(at_us);
        if started_us.saturating_sub(ready_us) >= least_us {
            push(StretchKind::Queue, ready_us, started_us);
        }
        let Some(cause) = cause.map(|c| c as usize).filter(|c| *c != index) else { break };
        // Each step back goes to something that started earlier, so the chain ends.
        if attempts[cause].started_us >= attempt.started_us {
            break;
        }
        at_us = ready_us.min(attempts[cause].ended_us);
        index = cause;
    }
    stretches
}

/// What an invocation could not do without: so much of its work was done before it needed this, which could
/// have been there then.
#[derive(Clone, Copy)]
struct Need {
    work_us: u64,
    there_us: u64,
}

/// When an invocation could have done its work, had only data and work counted.
#[derive(Clone, Default)]
struct Done {
    needs: Vec<Need>,
}

impl Done {
    /// The soonest moment at which so much of its work is done.
    fn soonest_us(&self, work_us: u64) -> u64 {
        let needs = self.needs.iter().filter(|need| need.work_us <= work_us);
        needs.map(|need| need.there_us + (work_us - need.work_us)).max().unwrap_or(0).max(work_us)
    }
}

/// How short a run of the same work could have been.
pub(super) fn bound(record: &RunRecord, timeline: &Timeline) -> Bound {
    let Timeline { attempts, lists, .. } = timeline;
    let ranks = ranks(record);
    let mut order: Vec<usize> = (0..attempts.len()).filter(|i| attempts[*i].ok == Some(true)).collect();
    order.sort_by_key(|i| ranks.get(attempts[*i].step as usize).copied().unwrap_or(0));
    let mut done = vec![Done::default(); attempts.len()];
    // When the first byte of a list, and when all of it, could have been there.
    let mut known: HashMap<u32, (u64, u64)> = HashMap::new();
    let mut ends: HashMap<u32, u64> = HashMap::new();
    let mut work = 0u128;
    let mut finish_max_us = 0;
    for index in order {
        let attempt = &attempts[index];
        let step = record.graph.steps.get(attempt.step as usize);
        let busy_us = busy_us(attempt);
        work += u128::from(busy_us) * u128::from(step.map_or(1000, |s| s.cpu_milli));
        let mut needs = Vec::new();
        let mut last_us = 0;
        for after in step.iter().flat_map(|s| &s.after) {
            needs.push(Need { work_us: 0, there_us: ends.get(after).copied().unwrap_or(0) });
        }
        // As soon as its producer had done as much work as it had when it did.
        let soonest_us = |producer: u32, us: u64| {
            done[producer as usize].soonest_us(busy_until_us(&attempts[producer as usize], us))
        };
        for read in &attempt.reads {
            let list = lists.of(read);
            let (first, all) = *known.entry(read.list).or_insert_with(|| {
                let objects = || list.objects.iter().map(|o| lists.object(*o));
                let first = objects().map(|o| soonest_us(o.producer, o.first_us)).min();
                let all = objects().map(|o| soonest_us(o.producer, o.sealed_us)).max();
                (first.unwrap_or(0), all.unwrap_or(0))
            });
            last_us = last_us.max(all);
            // What it did before this was there, or before it waited for it, needs nothing of it.
            let waited = attempt.waits.iter().any(|w| w.input == Some(read.input));
            let (came, there_us) = if list.partly {
                (list.first.map(|o| lists.object(o).first_us), first)
            } else {
                (list.last.map(|o| lists.object(o).sealed_us), all)
            };
            if !waited && let Some(came_us) = came {
                needs.push(Need { work_us: busy_until_us(attempt, came_us), there_us });
            }
        }
        for wait in &attempt.waits {
            let Some(input) = wait.input else { continue };
            let Some(object) = lists.waited_for(attempt, input, wait.item) else { continue };
            // Of an object that grows, what it waited for was not all.
            let there_us = soonest_us(object.producer, object.sealed_us.min(wait.until_us));
            needs.push(Need { work_us: busy_until_us(attempt, wait.until_us), there_us });
        }
        done[index] = Done { needs };
        let finish_us = done[index].soonest_us(busy_us).max(last_us);
        finish_max_us = finish_max_us.max(finish_us);
        let end = ends.entry(attempt.step).or_default();
        *end = (*end).max(finish_us);
    }
    let cpu_milli = u128::from(record.node.cpu_milli.max(1));
    let work_us = u64::try_from(work / cpu_milli).unwrap_or(u64::MAX);
    // What was done in this time can be done in it: two clocks, and tokens on credit, may say otherwise
    // by a little.
    Bound { path_us: finish_max_us.min(timeline.makespan_us), work_us: work_us.min(timeline.makespan_us) }
}

/// How long the function had been at work at a moment.
fn busy_until_us(attempt: &Attempt, us: u64) -> u64 {
    let Some(began_us) = attempt.began_us else { return 0 };
    let us = us.clamp(began_us, attempt.ended_us);
    let waited = attempt.waits.iter().map(|w| w.until_us.min(us).saturating_sub(w.from_us)).sum();
    (us - began_us).saturating_sub(waited).min(busy_us(attempt))
}

/// How long the function of an attempt was at work.
pub(super) fn busy_us(attempt: &Attempt) -> u64 {
    let Some(began_us) = attempt.began_us else { return 0 };
    let ran_us = attempt.ended_us - began_us;
    let shown: u64 = attempt.waits.iter().map(|w| w.until_us - w.from_us).sum();
    // Of more waits than are kept, the worker told the sum.
    ran_us.saturating_sub(shown.max(attempt.wait_us.min(ran_us)))
}

/// The length of the longest path to each step.
fn ranks(record: &RunRecord) -> Vec<u32> {
    let steps = &record.graph.steps;
    let mut next: Vec<Vec<u32>> = vec![Vec::new(); steps.len()];
    let mut open = vec![0u32; steps.len()];
    for (to, step) in steps.iter().enumerate() {
        let foreach = step.foreach.iter().map(|f| &f.over);
        let sources =
            step.inputs.iter().map(|(_, s)| s).chain(foreach).chain(&step.cases).chain(&step.conditions);
        let from = sources.filter_map(|s| match s {
            SourceFacts::Output { step, .. } | SourceFacts::Gather { step, .. } => Some(*step),
            SourceFacts::Const | SourceFacts::Input(_) | SourceFacts::Item => None,
        });
        for from in from.chain(step.after.iter().copied()) {
            if let Some(next) = next.get_mut(from as usize) {
                next.push(to as u32);
                open[to] += 1;
            }
        }
    }
    let mut ranks = vec![0; steps.len()];
    let mut free: Vec<u32> = (0..steps.len() as u32).filter(|s| open[*s as usize] == 0).collect();
    while let Some(from) = free.pop() {
        for &to in &next[from as usize] {
            ranks[to as usize] = ranks[to as usize].max(ranks[from as usize] + 1);
            open[to as usize] -= 1;
            if open[to as usize] == 0 {
                free.push(to);
            }
        }
    }
    ranks
}
