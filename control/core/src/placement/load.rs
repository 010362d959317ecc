//! How busy a node is with what was given to it before.

use super::Placement;
use super::place::Cost;
use crate::graph::Graph;
use alloc::{vec, vec::Vec};
use serde::{Deserialize, Serialize};

/// What a node still has to do, as a rectangle: so much work, so wide. A chain keeps one core busy for long, a fan-out all
/// of them for a short time; the same work means something else for who comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// What it takes on one core. Microseconds.
    pub work_us: u64,
    /// Thousandths of cores that work on it side by side, were there enough.
    pub width_milli: u64,
}

impl Load {
    /// Both together.
    pub fn and(self, other: Load) -> Load {
        Load {
            work_us: self.work_us.saturating_add(other.work_us),
            width_milli: self.width_milli.saturating_add(other.width_milli),
        }
    }

    /// What is left when the other is over.
    pub fn without(self, other: Load) -> Load {
        Load {
            work_us: self.work_us.saturating_sub(other.work_us),
            width_milli: self.width_milli.saturating_sub(other.width_milli),
        }
    }

    /// What is left after so much time on a node of so many cores, if nothing is added.
    pub fn after(self, us: u64, cpu_milli: u32) -> Load {
        let done_us = u128::from(us) * u128::from(self.width_milli.min(cpu_milli.into())) / 1000;
        Load { work_us: self.work_us.saturating_sub(u64::try_from(done_us).unwrap_or(u64::MAX)), ..self }
    }

    /// How many of a node's cores are busy with it, and for how long. Microseconds.
    pub fn busy(self, cores: usize) -> (usize, u64) {
        if self.work_us == 0 {
            return (0, 0);
        }
        let wide = usize::try_from(self.width_milli.saturating_add(500) / 1000).unwrap_or(usize::MAX);
        let busy = wide.clamp(1, cores.max(1));
        (busy, self.work_us / busy as u64)
    }
}

/// What each node of a placement is given to do, if the steps cost what is said (by default what their file hints at).
/// Nothing of a graph with a cycle.
pub fn loads(graph: &Graph, costs: &[Cost], placement: &Placement) -> Vec<Load> {
    let mut loads = vec![Load::default(); usize::from(placement.nodes)];
    let costs = Cost::completed(graph, costs);
    let Ok(ways) = graph.longest_ways(|step| costs[step as usize].busy_us(1, 1)) else { return loads };
    let longest_us = ways.into_iter().max().unwrap_or(0).max(1);
    for ((step, cost), place) in graph.steps.iter().zip(&costs).zip(&placement.steps) {
        if step.function().is_none() {
            continue;
        }
        let work_us = cost.busy_us(cost.items.max(1), 1);
        let hosts = place.hosts();
        let part_us = work_us / hosts.len().max(1) as u64;
        for node in hosts {
            let load = &mut loads[usize::from(*node)];
            load.work_us = load.work_us.saturating_add(part_us);
        }
    }
    for load in &mut loads {
        load.width_milli = load.work_us.saturating_mul(1000) / longest_us;
    }
    loads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_leaves_the_other_cores_free_and_a_fan_out_does_not() {
        let (chain, fan) =
            (Load { work_us: 80, width_milli: 1000 }, Load { work_us: 80, width_milli: 8_000 });
        assert_eq!(chain.busy(4), (1, 80));
        assert_eq!(fan.busy(4), (4, 20));
        assert_eq!(fan.busy(16), (8, 10));
        assert_eq!(chain.and(chain).busy(1), (1, 160));
        assert_eq!(Load::default().busy(4), (0, 0));
    }

    #[test]
    fn it_is_worked_off_as_wide_as_it_and_its_node_are() {
        let load = Load { work_us: 80, width_milli: 8_000 };
        assert_eq!(load.after(5, 4_000).work_us, 60);
        assert_eq!(load.after(5, 16_000).work_us, 40);
        assert_eq!(load.after(u64::MAX, 16_000).work_us, 0);
        assert_eq!(load.and(load).without(load), load);
    }
}
