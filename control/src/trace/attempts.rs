//! From events to attempts and objects.

use super::reads::Read;
use crate::history::{Event, EventKind, RunRecord};
use std::collections::BTreeMap;

/// One try of an invocation. Times in microseconds since the run was submitted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attempt {
    /// The step.
    pub step: u32,
    /// The item of a foreach, else 0.
    pub item: u32,
    /// The try, from 1.
    pub attempt: u32,
    /// When nothing but a slot or a token was missing.
    pub ready_us: u64,
    /// When it got both.
    pub started_us: u64,
    /// When it had its memory, if it had to wait for that.
    pub memory_us: Option<u64>,
    /// When a process took it.
    pub dispatched_us: Option<u64>,
    /// The function's first line.
    pub began_us: Option<u64>,
    /// When it was over; the run's end if nothing tells.
    pub ended_us: u64,
    /// `None` if nothing tells how it ended.
    pub ok: Option<bool>,
    /// It had to wait for a process.
    pub cold: bool,
    /// It started before its inputs were complete.
    pub early: bool,
    /// From taking the command to the first line.
    pub setup_us: u64,
    /// In gets, by the worker's clock.
    pub wait_us: u64,
    /// In puts, by the worker's clock.
    pub put_us: u64,
    /// CPU time.
    pub cpu_us: u64,
    /// Its longest waits, in order, without overlap.
    pub waits: Vec<Wait>,
    /// What it put.
    pub puts: Vec<Put>,
    /// What it read.
    pub reads: Vec<Read>,
    /// What it spent its time on, without gaps, from `ready_us` to `ended_us`.
    pub phases: Vec<Phase>,
}

/// A wait for an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// When it began.
    pub from_us: u64,
    /// When it was over.
    pub until_us: u64,
    /// Index of the input, if the worker told.
    pub input: Option<u16>,
    /// Item of a list; `None` for a single object or a list's length.
    pub item: Option<u32>,
}

/// An object being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// Index in [`Timeline::objects`](super::Timeline::objects) if it was sealed by this attempt for good.
    pub object: Option<u32>,
    /// Its first byte.
    pub first_us: u64,
    /// Its seal; `None` if that never came.
    pub sealed_us: Option<u64>,
    /// Output port.
    pub port: u16,
    /// Item of a list, else 0.
    pub item: u32,
    /// Its size.
    pub bytes: u64,
}

/// An object that was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Index of its producer in [`Timeline::attempts`](super::Timeline::attempts).
    pub producer: u32,
    /// The step that put it.
    pub step: u32,
    /// The item of the foreach that put it, else 0.
    pub invocation: u32,
    /// Output port.
    pub port: u16,
    /// Item of a list, else 0.
    pub item: u32,
    /// Its first byte.
    pub first_us: u64,
    /// Its seal.
    pub sealed_us: u64,
    /// Its size.
    pub bytes: u64,
}

/// What an attempt spends time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PhaseKind {
    /// For a slot or a token.
    Queue,
    /// For memory of the store.
    Memory,
    /// For a process to be forked or a function to be loaded.
    Cold,
    /// From a process at hand to the function's first line.
    Start,
    /// For data.
    Wait,
    /// In the function.
    Compute,
    /// Writing outputs. The worker tells how long all puts took; they are drawn before the seals.
    Put,
}

impl PhaseKind {
    /// All of them, in the order in which they come first.
    pub const ALL: [PhaseKind; 7] = [
        PhaseKind::Queue,
        PhaseKind::Memory,
        PhaseKind::Cold,
        PhaseKind::Start,
        PhaseKind::Wait,
        PhaseKind::Compute,
        PhaseKind::Put,
    ];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            PhaseKind::Queue => "queue",
            PhaseKind::Memory => "waiting for memory",
            PhaseKind::Cold => "cold start",
            PhaseKind::Start => "start",
            PhaseKind::Wait => "waiting for data",
            PhaseKind::Compute => "compute",
            PhaseKind::Put => "put",
        }
    }
}

/// A part of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What it is spent on.
    pub kind: PhaseKind,
    /// When it begins.
    pub from_us: u64,
    /// When it ends.
    pub until_us: u64,
}

/// (step, item, attempt)
type Key = (u32, u32, u32);

#[derive(Default)]
struct Building {
    attempt: Attempt,
    began_heard_us: Option<u64>,
    total_us: u64,
    ended: bool,
    /// By the worker's clock, since its first line.
    waited: Vec<Wait>,
    /// As the node heard of them.
    blocked: Vec<(u64, u64)>,
    asleep_since: Option<u64>,
    puts: BTreeMap<(u16, u32), Put>,
}

/// The choice of each step that had to be decided.
pub(super) type Decided = BTreeMap<u32, u32>;

/// Attempts in the order of their starts, objects in the order of their first bytes, decisions.
pub(super) fn read(record: &RunRecord) -> (Vec<Attempt>, Vec<Object>, Decided) {
    let end_us = record.summary.makespan_us;
    let mut building: BTreeMap<Key, Building> = BTreeMap::new();
    let mut decided = Decided::new();
    for event in &record.events {
        if let EventKind::Decided { choice } = event.kind {
            decided.insert(event.step, choice);
            continue;
        }
        let key = (event.step, event.item, event.attempt);
        building.entry(key).or_default().take(event);
    }
    let mut attempts: Vec<Attempt> =
        building.into_iter().map(|(key, building)| building.finish(key, end_us)).collect();
    attempts.sort_by_key(|a| (a.started_us, a.step, a.item, a.attempt));
    let objects = objects(&mut attempts);
    (attempts, objects, decided)
}

/// The objects that were sealed last under their keys: those that readers got in the end.
fn objects(attempts: &mut [Attempt]) -> Vec<Object> {
    // By key: the attempt's number, the place in its puts, the object.
    type Last = (u32, usize, Object);
    let mut last: BTreeMap<(u32, u32, u16, u32), Last> = BTreeMap::new();
    for (index, attempt) in attempts.iter().enumerate() {
        for (at, put) in attempt.puts.iter().enumerate() {
            let Some(sealed_us) = put.sealed_us else { continue };
            let object = Object {
                producer: index as u32,
                step: attempt.step,
                invocation: attempt.item,
                port: put.port,
                item: put.item,
                first_us: put.first_us,
                sealed_us,
                bytes: put.bytes,
            };
            let key = (attempt.step, attempt.item, put.port, put.item);
            let newer = last.get(&key).is_none_or(|(number, ..)| *number < attempt.attempt);
            if newer {
                last.insert(key, (attempt.attempt, at, object));
            }
        }
    }
    let mut found: Vec<(usize, Object)> = last.into_values().map(|(_, at, object)| (at, object)).collect();
    found.sort_by_key(|(_, o)| (o.first_us, o.step, o.invocation, o.port, o.item));
    for (index, (at, object)) in found.iter().enumerate() {
        attempts[object.producer as usize].puts[*at].object = Some(index as u32);
    }
    found.into_iter().map(|(_, object)| object).collect()
}

impl Building {
    fn take(&mut self, event: &Event) {
        let at_us = event.at_us;
        let attempt = &mut self.attempt;
        match event.kind {
            EventKind::Started { early } => {
                attempt.started_us = at_us;
                attempt.early = early;
            }
            EventKind::Dispatched { cold } => {
                attempt.dispatched_us = Some(at_us);
                attempt.cold = cold;
            }
            EventKind::Began => self.began_heard_us = Some(at_us),
            EventKind::Memory => attempt.memory_us = Some(at_us),
            EventKind::Blocked => self.asleep_since = Some(at_us),
            EventKind::Resumed => {
                self.blocked.extend(self.asleep_since.take().map(|from| (from, at_us)));
            }
            EventKind::Waited { input, item, from_us, until_us } => {
                self.waited.push(Wait { from_us, until_us, input: Some(input), item });
            }
            EventKind::FirstByte { port, item } => {
                let put = Put { object: None, first_us: at_us, sealed_us: None, port, item, bytes: 0 };
                self.puts.entry((port, item)).or_insert(put);
            }
            EventKind::Sealed { port, item, bytes } => {
                let fresh = Put { object: None, first_us: at_us, sealed_us: None, port, item, bytes: 0 };
                let put = self.puts.entry((port, item)).or_insert(fresh);
                put.sealed_us = Some(at_us);
                put.bytes = bytes;
            }
            EventKind::Ended { ok, setup_us, wait_us, put_us, total_us, cpu_us } => {
                attempt.ended_us = at_us;
                attempt.ok = Some(ok);
                (attempt.setup_us, attempt.wait_us, attempt.put_us, attempt.cpu_us) =
                    (setup_us, wait_us, put_us, cpu_us);
                self.total_us = total_us;
                self.ended = true;
            }
            EventKind::Decided { .. } => {}
        }
    }

    fn finish(self, (step, item, number): Key, end_us: u64) -> Attempt {
        let mut attempt = self.attempt;
        (attempt.step, attempt.item, attempt.attempt) = (step, item, number);
        if !self.ended {
            attempt.ended_us = end_us.max(attempt.started_us);
        }
        attempt.ended_us = attempt.ended_us.max(attempt.started_us);
        let (started_us, ended_us) = (attempt.started_us, attempt.ended_us);
        let within = |us: u64| us.clamp(started_us, ended_us);
        attempt.dispatched_us = attempt.dispatched_us.map(within);
        attempt.memory_us = attempt.memory_us.map(within);
        if let Some(dispatched_us) = attempt.dispatched_us {
            // The end is known by both clocks: the first line lies before it by what the worker measured.
            let told = (self.total_us > 0).then(|| ended_us.saturating_sub(self.total_us));
            let began = told.or(self.began_heard_us).map(|us| us.clamp(dispatched_us, ended_us));
            attempt.began_us = began;
        }
        if let Some(began_us) = attempt.began_us {
            let told = |w: &Wait| Wait {
                from_us: began_us.saturating_add(w.from_us).min(ended_us),
                until_us: began_us.saturating_add(w.until_us).min(ended_us),
                ..*w
            };
            let heard = |(from, until): &(u64, u64)| Wait {
                from_us: *from,
                until_us: *until,
                input: None,
                item: None,
            };
            // An attempt that died could not tell of its waits.
            let mut waits: Vec<Wait> = if self.total_us > 0 {
                self.waited.iter().map(told).collect()
            } else {
                let last = self.asleep_since.map(|from| (from, ended_us));
                self.blocked.iter().chain(last.iter()).map(heard).collect()
            };
            waits.iter_mut().for_each(|w| w.from_us = w.from_us.max(began_us));
            waits.retain(|w| w.until_us > w.from_us);
            waits.sort_by_key(|w| (w.from_us, w.until_us));
            waits.dedup_by(|next, kept| {
                next.from_us = next.from_us.max(kept.until_us);
                next.until_us <= next.from_us
            });
            attempt.waits = waits;
        }
        attempt.puts = self.puts.into_values().collect();
        for put in &mut attempt.puts {
            put.first_us = within(put.first_us);
            put.sealed_us = put.sealed_us.map(|us| within(us).max(put.first_us));
        }
        attempt.puts.sort_by_key(|p| (p.sealed_us.unwrap_or(u64::MAX), p.port, p.item));
        attempt
    }
}

/// The parts of an attempt, without gaps or overlaps.
pub(super) fn phases(attempt: &Attempt) -> Vec<Phase> {
    let mut phases: Vec<Phase> = Vec::new();
    let mut at_us = attempt.ready_us;
    let mut push = |kind, until_us: u64| {
        if until_us <= at_us {
            return;
        }
        match phases.last_mut().filter(|last| last.kind == kind) {
            Some(last) => last.until_us = until_us,
            None => phases.push(Phase { kind, from_us: at_us, until_us }),
        }
        at_us = until_us;
    };
    push(PhaseKind::Queue, attempt.started_us);
    if let Some(memory_us) = attempt.memory_us {
        push(PhaseKind::Memory, memory_us);
    }
    let cold = if attempt.cold { PhaseKind::Cold } else { PhaseKind::Start };
    let Some(dispatched_us) = attempt.dispatched_us else {
        push(cold, attempt.ended_us);
        return phases;
    };
    push(cold, dispatched_us);
    push(PhaseKind::Start, attempt.began_us.unwrap_or(attempt.ended_us));
    for wait in &attempt.waits {
        push(PhaseKind::Compute, wait.from_us);
        push(PhaseKind::Wait, wait.until_us);
    }
    push(PhaseKind::Compute, attempt.ended_us);
    split_puts(&phases, &put_spans(attempt))
}

/// Where the time in puts is drawn: before each seal, in proportion to bytes.
fn put_spans(attempt: &Attempt) -> Vec<(u64, u64)> {
    let sealed: Vec<(u64, u64)> =
        attempt.puts.iter().filter_map(|p| Some((p.sealed_us?, p.bytes.max(1)))).collect();
    let bytes: u64 = sealed.iter().map(|(_, bytes)| bytes).sum();
    let mut before = attempt.began_us.unwrap_or(attempt.started_us);
    let mut spans = Vec::new();
    for (sealed_us, part) in sealed {
        let us = (u128::from(attempt.put_us) * u128::from(part) / u128::from(bytes.max(1))) as u64;
        let from = sealed_us.saturating_sub(us).max(before);
        if us > 0 && from < sealed_us {
            spans.push((from, sealed_us));
        }
        before = before.max(sealed_us);
    }
    spans
}

/// Cuts spans, which are in order, out of the computing phases.
fn split_puts(phases: &[Phase], spans: &[(u64, u64)]) -> Vec<Phase> {
    let mut out = Vec::with_capacity(phases.len() + 2 * spans.len());
    let mut next = 0;
    for phase in phases {
        let mut at_us = phase.from_us;
        if phase.kind == PhaseKind::Compute {
            while next < spans.len() && spans[next].1 <= phase.from_us {
                next += 1;
            }
            for (from, until) in spans[next..].iter().take_while(|(from, _)| *from < phase.until_us) {
                let (from, until) = ((*from).max(at_us), (*until).min(phase.until_us));
                if from > at_us {
                    out.push(Phase { kind: PhaseKind::Compute, from_us: at_us, until_us: from });
                }
                if until > from {
                    out.push(Phase { kind: PhaseKind::Put, from_us: from, until_us: until });
                }
                at_us = at_us.max(until);
            }
        }
        if phase.until_us > at_us {
            out.push(Phase { from_us: at_us, ..*phase });
        }
    }
    out
}
