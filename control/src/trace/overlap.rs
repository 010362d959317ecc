//! What happened early that control flow would have done later: DFlow's four overlaps.

use super::Timeline;
use super::attempts::{Attempt, Phase, PhaseKind};
use crate::history::RunRecord;

/// Shades that are kept; of more only the sums are.
const SHADES_MAX: usize = 200_000;

/// How much of one overlap a run shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Attempts (for hand-overs: waits) that show it.
    pub count: u64,
    /// Summed over attempts.
    pub total_us: u64,
    /// How long at least one attempt showed it.
    pub wall_us: u64,
}

/// A stretch of an attempt that control flow would not have had at this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shade {
    /// Which overlap: 0 to 3, as in [`Overlaps::NAMES`].
    pub overlap: usize,
    /// The attempt.
    pub attempt: u32,
    /// When it begins.
    pub from_us: u64,
    /// When it ends; the same moment for a hand-over.
    pub until_us: u64,
}

/// The four overlaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlaps {
    /// How much of each there is.
    pub shares: [Share; 4],
    /// Where.
    pub shades: Vec<Shade>,
}

impl Overlaps {
    /// What each of the four is.
    pub const NAMES: [&'static str; 4] = [
        "started while its inputs were still being made",
        "worked on inputs while others were still being made",
        "read an object while it was still being written",
        "went on at the seal, without the scheduler",
    ];
}

/// Finds them.
pub(super) fn find(record: &RunRecord, timeline: &Timeline) -> Overlaps {
    let mut found: [Vec<Shade>; 4] = Default::default();
    for (index, attempt) in timeline.attempts.iter().enumerate() {
        of_attempt(record, timeline, index as u32, attempt, &mut found);
    }
    let mut overlaps = Overlaps::default();
    for (share, shades) in overlaps.shares.iter_mut().zip(&mut found) {
        shades.sort_by_key(|s| (s.from_us, s.until_us));
        let (mut reached, mut attempts) = (0, std::collections::HashSet::new());
        for shade in shades.iter() {
            attempts.insert(shade.attempt);
            share.total_us += shade.until_us - shade.from_us;
            share.wall_us += shade.until_us.saturating_sub(shade.from_us.max(reached));
            reached = reached.max(shade.until_us);
        }
        share.count = attempts.len() as u64;
    }
    overlaps.shares[3].count = found[3].len() as u64;
    overlaps.shades = found.into_iter().flatten().take(SHADES_MAX).collect();
    overlaps
}

fn of_attempt(
    record: &RunRecord,
    timeline: &Timeline,
    index: u32,
    attempt: &Attempt,
    found: &mut [Vec<Shade>; 4],
) {
    let lists = &timeline.lists;
    let read: Vec<_> = attempt.reads.iter().map(|r| (r, lists.of(r))).collect();
    let complete_us = read.iter().filter_map(|(_, l)| l.last).map(|o| lists.object(o).sealed_us).max();
    let Some(complete_us) = complete_us else { return };
    let mut shade = |overlap: usize, from_us: u64, until_us: u64| {
        if until_us > from_us || overlap == 3 {
            found[overlap].push(Shade { overlap, attempt: index, from_us, until_us });
        }
    };
    let began_us = attempt.began_us.unwrap_or(attempt.ended_us);
    shade(0, attempt.started_us, began_us.min(complete_us));
    let active = |phase: &&Phase| matches!(phase.kind, PhaseKind::Compute | PhaseKind::Put);
    let growing = read.iter().filter(|(_, l)| l.objects.len() == 1 && is_stream(record, l.step, l.port));
    let growing: Vec<_> = growing.map(|(_, l)| *lists.object(l.objects[0])).collect();
    let objects: usize = read.iter().map(|(_, l)| l.objects.len()).sum();
    for phase in attempt.phases.iter().filter(active) {
        for object in &growing {
            shade(2, phase.from_us.max(object.first_us), phase.until_us.min(object.sealed_us));
        }
        if objects > 1 {
            shade(1, phase.from_us, phase.until_us.min(complete_us));
        }
    }
    for wait in &attempt.waits {
        let object = wait.input.and_then(|input| lists.waited_for(attempt, input, wait.item));
        if object.is_some() {
            shade(3, wait.until_us, wait.until_us);
        }
    }
}

fn is_stream(record: &RunRecord, step: u32, port: u16) -> bool {
    let step = record.graph.steps.get(step as usize);
    step.and_then(|s| s.outputs.get(usize::from(port))).is_some_and(|p| p.stream)
}
