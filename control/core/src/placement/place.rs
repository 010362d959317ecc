//! Choosing nodes: list scheduling by critical path.
//!
//! Steps are taken in the order of their rank (the time from a step's start to the end of the run), and each
//! goes to the node where it would end first: when its inputs are there (what lies on another node has to be moved,
//! what lies on the same costs nothing) and a core is free. So a chain stays where its data is, and branches
//! spread when one node has no core left for them. A foreach step is led where its list lies, and its items are
//! dealt out over all nodes by their cores, since their number is not known yet.

use super::{HOME, NodeIndex, Place, Placement};
use crate::graph::{Graph, GraphError, StepIndex};
use alloc::{boxed::Box, vec, vec::Vec};

/// What is assumed of a step without an estimate, in microseconds: as much as moving a small object costs a few times
/// over, so that short chains are not torn apart.
const UNKNOWN_US: u64 = 1_000;
/// What a hand-over to another node costs besides its bytes, in microseconds.
const HOP_US: u64 = 200;
/// Cores of one node that are told apart.
const CORES_MAX: u32 = 1024;
/// How much more of a foreach's items one node may be given than another.
const SHARE_MAX: u32 = 64;

/// What a node offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// CPU tokens in thousandths of a core.
    pub cpu_milli: u32,
}

/// Where a step may lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Where it ends first; the items of a foreach are dealt out.
    #[default]
    Anywhere,
    /// The same, and all items of a foreach together.
    Together,
    /// On one of these; items are dealt out over them. Not empty.
    Among(Box<[NodeIndex]>),
}

/// A placement, and when each step would run by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Where each step lies.
    pub placement: Placement,
    /// When each step would start and end, in microseconds from the run's start.
    pub times_us: Vec<(u64, u64)>,
    /// Bytes that cross between nodes, by the hints of the outputs.
    pub moved_bytes: u64,
}

/// Places `graph` over `nodes`, the home first, whose links carry `bandwidth` bytes a microsecond (0: any number).
/// `wishes` are those of the steps, in their order; what is missing is [`Wish::Anywhere`].
///
/// # Errors
/// If the graph has a cycle.
pub fn place(
    graph: &Graph,
    nodes: &[NodeFacts],
    bandwidth: u64,
    wishes: &[Wish],
) -> Result<Draft, GraphError> {
    let rank = graph.critical_path(bandwidth)?;
    let mut order = graph.topological()?;
    // A step's rank is larger than that of any step behind it, but for switches, which cost nothing: the sort is
    // stable, so that these stay where they are.
    order.sort_by_key(|&step| core::cmp::Reverse(rank[step as usize]));
    let mut cores: Vec<Vec<u64>> =
        nodes.iter().map(|n| vec![0; (n.cpu_milli / 1000).clamp(1, CORES_MAX) as usize]).collect();
    let mut draft = Draft {
        placement: Placement {
            nodes: nodes.len().max(1) as u16,
            steps: vec![Place::On(HOME); graph.steps.len()],
        },
        times_us: vec![(0, 0); graph.steps.len()],
        moved_bytes: 0,
    };
    if nodes.len() < 2 {
        cores.resize(1, vec![0]);
    }
    let hosts = shares(nodes);
    for step in order {
        let wish = wishes.get(step as usize).unwrap_or(&Wish::Anywhere);
        let may = |node: NodeIndex| match wish {
            Wish::Among(nodes) => nodes.contains(&node),
            Wish::Anywhere | Wish::Together => true,
        };
        let free = |node: usize| cores[node].iter().copied().enumerate().min_by_key(|&(core, at)| (at, core));
        let own = &graph.steps[step as usize];
        let run_us = if own.function().is_none() { 0 } else { own.estimate_us.max(1) };
        let run_us = if own.function().is_some() && own.estimate_us == 0 { UNKNOWN_US } else { run_us };
        let options = (0..cores.len()).filter(|node| may(*node as NodeIndex)).map(|node| {
            let (ready, moved) = arrival(graph, &draft, step, node as NodeIndex, bandwidth);
            let (core, at) = free(node).unwrap_or((0, 0));
            let start = if run_us == 0 { ready } else { ready.max(at) };
            (start + run_us, moved, node, core, start)
        });
        let Some((end, moved, node, core, start)) = options.min() else { continue };
        if run_us > 0 {
            cores[node][core] = end;
        }
        draft.times_us[step as usize] = (start, end);
        draft.moved_bytes += moved;
        let lead = node as NodeIndex;
        draft.placement.steps[step as usize] = match &own.foreach {
            Some(_) if nodes.len() > 1 && *wish != Wish::Together => {
                Place::Spread { lead, hosts: hosts.iter().copied().filter(|host| may(*host)).collect() }
            }
            _ => Place::On(lead),
        };
    }
    Ok(draft)
}

/// When all that `step` reads could be on `node`, and how many bytes would have to be moved there.
fn arrival(graph: &Graph, draft: &Draft, step: StepIndex, node: NodeIndex, bandwidth: u64) -> (u64, u64) {
    let (mut ready, mut moved) = (0, 0);
    let own = &graph.steps[step as usize];
    own.sources(|source| {
        let Some(of) = source.step() else {
            // Run inputs lie at the home; constants everywhere.
            if matches!(source, crate::graph::Source::Input(_)) && node != HOME {
                ready = ready.max(HOP_US);
            }
            return;
        };
        let ended = draft.times_us[of as usize].1;
        if draft.placement.of(of).lead() == node {
            ready = ready.max(ended);
            return;
        }
        let bytes = graph.steps[of as usize].outputs.iter().map(|port| port.hint_bytes).max().unwrap_or(0);
        moved += bytes;
        ready = ready.max(ended + HOP_US + bytes.checked_div(bandwidth).unwrap_or(0));
    });
    for &of in &own.after {
        ready = ready.max(draft.times_us[of as usize].1);
    }
    (ready, moved)
}

/// Nodes in turn, each as often as it is larger than the smallest.
fn shares(nodes: &[NodeFacts]) -> Box<[NodeIndex]> {
    let unit = nodes.iter().map(|node| node.cpu_milli).min().unwrap_or(0).max(1);
    let share = |node: &NodeFacts| (node.cpu_milli / unit).clamp(1, SHARE_MAX);
    let turns = (0..SHARE_MAX).flat_map(|turn| {
        let takes = nodes.iter().enumerate().filter(move |(_, node)| share(node) > turn);
        takes.map(|(node, _)| node as NodeIndex)
    });
    turns.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::*;
    use alloc::{format, string::String};

    const TWO: [NodeFacts; 2] = [NodeFacts { cpu_milli: 1000 }, NodeFacts { cpu_milli: 1000 }];

    fn step(name: usize, reads: &[u32], estimate_us: u64, hint_bytes: u64) -> Step {
        let input = |&of: &u32| InputPort {
            name: format!("i{of}"),
            ty: PortType::Bytes,
            source: Source::Output { step: of, port: 0 },
            optional: false,
        };
        let output = OutputPort {
            name: String::from("o"),
            ty: PortType::Bytes,
            kind: PortKind::Plain,
            hint_bytes,
            bytes_max: 0,
            items_max: 0,
            file: false,
        };
        Step {
            name: format!("s{name}"),
            kind: StepKind::Call(0),
            inputs: reads.iter().map(input).collect(),
            outputs: vec![output],
            when: None,
            foreach: None,
            after: Vec::new(),
            start: StartPolicy::FirstByte,
            retry: Retry::default(),
            timeout_ms: 0,
            cpu_milli: 1000,
            estimate_us,
            on_failure: OnFailure::Fail,
        }
    }

    fn graph(steps: &[(&[u32], u64, u64)]) -> Graph {
        let function = Function { name: String::from("f"), workers_max: 8, deterministic: false };
        let steps = steps.iter().enumerate().map(|(i, (reads, us, bytes))| step(i, reads, *us, *bytes));
        Graph { functions: vec![function], steps: steps.collect(), ..Graph::default() }
    }

    fn leads(draft: &Draft) -> Vec<NodeIndex> {
        draft.placement.steps.iter().map(Place::lead).collect()
    }

    #[test]
    fn a_chain_stays_where_its_data_is() {
        let chain = graph(&[(&[], 0, 0), (&[0], 0, 0), (&[1], 0, 0), (&[2], 0, 0)]);
        let draft = place(&chain, &TWO, 50, &[]).unwrap();
        assert_eq!(leads(&draft), [0, 0, 0, 0]);
        assert_eq!(draft.times_us[3], (3 * UNKNOWN_US, 4 * UNKNOWN_US));
    }

    #[test]
    fn branches_spread_when_that_ends_sooner() {
        let fan = graph(&[(&[], 1_000, 1_000), (&[0], 50_000, 0), (&[0], 50_000, 0), (&[1, 2], 1_000, 0)]);
        let draft = place(&fan, &TWO, 50, &[]).unwrap();
        let nodes = leads(&draft);
        assert_ne!(nodes[1], nodes[2], "{draft:?}");
        assert!(draft.times_us[3].1 < 100_000, "{draft:?}");
    }

    #[test]
    fn large_data_keeps_branches_together() {
        let fan = graph(&[(&[], 1_000, 100_000_000), (&[0], 50_000, 0), (&[0], 50_000, 0)]);
        let draft = place(&fan, &TWO, 50, &[]).unwrap();
        assert_eq!(leads(&draft), [0, 0, 0]);
        assert_eq!(draft.moved_bytes, 0);
    }

    #[test]
    fn larger_nodes_get_more_turns() {
        let nodes = |cpus: &[u32]| cpus.iter().map(|&cpu_milli| NodeFacts { cpu_milli }).collect::<Vec<_>>();
        assert_eq!(*shares(&nodes(&[2000, 4000, 1000])), [0, 1, 2, 0, 1, 1, 1]);
        assert_eq!(*shares(&nodes(&[0, 0])), [0, 1]);
    }

    #[test]
    fn wishes_bind() {
        let chain = graph(&[(&[], 0, 0), (&[0], 0, 0), (&[1], 0, 0)]);
        let on = |node| Wish::Among(Box::new([node]));
        let draft = place(&chain, &TWO, 50, &[on(1), Wish::Anywhere, on(0)]).unwrap();
        assert_eq!(leads(&draft), [1, 1, 0]);

        let mut wide = graph(&[(&[], 0, 0), (&[0], 0, 0)]);
        wide.steps[1].foreach = Some(Foreach {
            over: Source::Output { step: 0, port: 0 },
            json: false,
            parallel_max: 0,
            items_max: 0,
            tolerate: Tolerate::Count(0),
        });
        let hosts = |wish| {
            place(&wide, &TWO, 50, &[Wish::Anywhere, wish]).unwrap().placement.steps[1].hosts().to_vec()
        };
        assert_eq!(hosts(Wish::Anywhere), [0, 1]);
        assert_eq!(hosts(Wish::Together), [0]);
        assert_eq!(hosts(on(1)), [1]);
    }
}
