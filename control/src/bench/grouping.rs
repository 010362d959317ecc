//! Which virtual worker each step belongs to in FaaSFlow's imitation: its grouping along the critical
//! path, from one run's times and sizes.

use crate::history::RunRecord;
use crate::trace::Timeline;
use std::collections::BTreeMap;

/// An edge inside a worker is taken to be so much faster than one between two.
const LOCAL_GAIN: f64 = 15.0;

/// What is known of a workflow.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Profile {
    /// Of each step: seconds of its longest invocation, and most invocations at one time.
    pub(super) steps: Vec<(f64, u32)>,
    /// Bytes from step to step.
    pub(super) edges: BTreeMap<(u32, u32), u64>,
}

impl Profile {
    /// From a run.
    pub(super) fn of(record: &RunRecord, timeline: &Timeline) -> Profile {
        let mut steps = vec![(0.0, 1); record.graph.steps.len()];
        for attempt in &timeline.attempts {
            let Some((busy_s, width)) = steps.get_mut(attempt.step as usize) else { continue };
            let began_us = attempt.began_us.unwrap_or(attempt.ended_us);
            let busy_us = (attempt.ended_us - began_us).saturating_sub(attempt.wait_us);
            *busy_s = f64::max(*busy_s, busy_us as f64 / 1e6);
            *width = (*width).max(attempt.item + 1);
        }
        let mut edges = BTreeMap::new();
        for edge in &timeline.edges {
            *edges.entry((edge.from, edge.to)).or_insert(0) += edge.bytes;
        }
        Profile { steps, edges }
    }

    /// A worker for each step: groups of one at first, each on the worker its number falls to; then, along
    /// the longest path, the two ends of the heaviest edge join on the fullest worker that has room for
    /// both, until no edge of the path can be joined. `slots`: invocations that a worker has room for.
    pub(super) fn place(&self, workers: u32, slots: u32, link_bytes_per_s: f64) -> Vec<u32> {
        let count = self.steps.len();
        let mut group: Vec<usize> = (0..count).collect();
        let mut home: Vec<u32> = (0..count).map(|step| step as u32 % workers.max(1)).collect();
        let width = |group: &[usize], wanted: usize| -> u32 {
            let members = self.steps.iter().zip(group).filter(|(_, g)| **g == wanted);
            members.map(|((_, width), _)| *width).sum()
        };
        // Each joining leaves one group less.
        for _ in 0..count {
            let mut path = self.longest_path(&group, link_bytes_per_s);
            path.sort_by(|a, b| self.edges[b].cmp(&self.edges[a]).then(a.cmp(b)));
            let joined = path.into_iter().find_map(|(from, to)| {
                let (a, b) = (group[from as usize], group[to as usize]);
                let wanted = width(&group, a) + width(&group, b);
                let room = |worker: u32| {
                    let others =
                        (0..count).filter(|s| home[*s] == worker && group[*s] != a && group[*s] != b);
                    slots.saturating_sub(others.map(|s| self.steps[s].1).sum())
                };
                let fits = (0..workers).filter(|worker| room(*worker) >= wanted);
                let fullest = fits.min_by_key(|worker| room(*worker)).filter(|_| a != b)?;
                Some((a, b, fullest))
            });
            let Some((a, b, worker)) = joined else { break };
            for step in (0..count).filter(|step| [a, b].contains(&group[*step])).collect::<Vec<_>>() {
                group[step] = a;
                home[step] = worker;
            }
        }
        home
    }

    /// The edges of the longest path.
    fn longest_path(&self, group: &[usize], link_bytes_per_s: f64) -> Vec<(u32, u32)> {
        let count = self.steps.len();
        let mut best: Vec<(f64, Option<u32>)> = self.steps.iter().map(|(s, _)| (*s, None)).collect();
        // Relaxed until nothing changes; a graph without cycles is done after as many rounds as it is deep.
        for _ in 0..count {
            let mut changed = false;
            for (&(from, to), &bytes) in &self.edges {
                let local = group[from as usize] == group[to as usize];
                let edge_s = bytes as f64 / link_bytes_per_s / if local { LOCAL_GAIN } else { 1.0 };
                let reach_s = best[from as usize].0 + edge_s + self.steps[to as usize].0;
                if reach_s > best[to as usize].0 + 1e-12 {
                    best[to as usize] = (reach_s, Some(from));
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        let Some(last) = (0..count).max_by(|a, b| best[*a].0.total_cmp(&best[*b].0)) else {
            return Vec::new();
        };
        let mut path = Vec::new();
        let mut at = last as u32;
        while let Some(from) = best[at as usize].1.filter(|_| path.len() < count) {
            path.push((from, at));
            at = from;
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_edges_of_the_path_stay_inside_a_worker() {
        // 0 -> 1 -> 3 carries much, 0 -> 2 -> 3 little.
        let edges = BTreeMap::from([((0, 1), 1 << 30), ((1, 3), 1 << 29), ((0, 2), 10), ((2, 3), 10)]);
        let profile = Profile { steps: vec![(1.0, 1); 4], edges };
        let wide = profile.place(4, 8, 50e6);
        assert_eq!((wide[0], wide[1]), (wide[1], wide[3]), "{wide:?}");
        // With room for two, only the heaviest edge is inside.
        let narrow = profile.place(4, 2, 50e6);
        assert_eq!(narrow[0], narrow[1], "{narrow:?}");
        assert_ne!(narrow[1], narrow[3], "{narrow:?}");
        // With room for one, everybody is alone.
        assert_eq!(profile.place(4, 1, 50e6), [0, 1, 2, 3]);
    }
}
