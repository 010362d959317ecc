//! Choosing nodes: list scheduling by critical path, over links that carry one transfer after the other.
//!
//! Steps are taken in the order of their rank (the time from a step's start to the end of the run), and each
//! goes to the node where it would end first: when its inputs are there and a core is free. What lies on the same node
//! costs nothing; what lies on another has to be moved, once for each node, and waits until the source's link and the
//! target's have done what was given to them before. So a chain stays where its data is, and branches spread when one
//! node has no core left for them. All of it stays at the run's home if it would end there about as soon.
//!
//! Times and sizes are as wild as whoever gave them: sums stay at the largest number instead of going past it.
//!
//! Cores that are busy with earlier runs are free when these have taken what they were expected to.
//!
//! A foreach step is led where its list lies. Of a known number of items, each is dealt to where it would end first, unless
//! all of them would end sooner on one node. Items of which nothing is known are dealt out over all nodes by their cores.

use super::{HOME, Load, NodeIndex, Place, Placement};
use crate::graph::{Graph, GraphError, Source, Step, StepIndex};
use alloc::collections::{BTreeMap, BTreeSet, BinaryHeap};
use alloc::{boxed::Box, vec, vec::Vec};
use core::cmp::Reverse;

/// What is assumed of a step without an estimate, in microseconds: as much as moving a small object costs a few times
/// over, so that short chains are not torn apart.
const UNKNOWN_US: u64 = 1_000;
/// What a hand-over to another node costs besides its bytes, in microseconds.
const HOP_US: u64 = 200;
/// Cores of one node that are told apart.
const CORES_MAX: u32 = 1024;
/// How much more of a foreach's items one node may be given than another, if nothing is known of them.
const SHARE_MAX: u32 = 64;
/// Items that are dealt each by itself; those beyond follow their pattern.
const DEALT_MAX: u64 = 1024;
/// A run is spread only if that ends it before this many hundredths of the time at its home: estimates are rough, and
/// what crosses takes links and processors from other runs.
const SPREAD_PERCENT_MAX: u64 = 80;

/// What a node offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// CPU tokens in thousandths of a core.
    pub cpu_milli: u32,
    /// What it has to do for earlier runs.
    pub load: Load,
}

/// Where a step may lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Where it ends first; the items of a foreach are dealt out where that pays.
    #[default]
    Anywhere,
    /// The same, and all items of a foreach together.
    Together,
    /// On one of these; items are dealt out over them. Not empty.
    Among(Box<[NodeIndex]>),
}

/// What a step is expected to cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Busy time of one invocation in microseconds, waits for data left out; 0 if nothing is known.
    pub run_us: u64,
    /// Invocations; 0 if nothing is known.
    pub items: u64,
    /// Bytes that all of them together put to each output port.
    pub bytes: Box<[u64]>,
}

impl Cost {
    /// By the hints of the workflow's file.
    pub fn hinted(step: &Step) -> Cost {
        let bytes = step.outputs.iter().map(|port| port.hint_bytes).collect();
        Cost { run_us: step.estimate_us, items: u64::from(step.foreach.is_none()), bytes }
    }

    /// Of all steps of a graph: what is known, and what their file hints at.
    pub(super) fn completed(graph: &Graph, known: &[Cost]) -> Vec<Cost> {
        let mut costs: Vec<Cost> = known.iter().take(graph.steps.len()).cloned().collect();
        costs.extend(graph.steps[costs.len()..].iter().map(Cost::hinted));
        costs
    }

    /// How long `cores` take for so many of its invocations.
    pub(super) fn busy_us(&self, items: u64, cores: usize) -> u64 {
        let run_us = if self.run_us == 0 { UNKNOWN_US } else { self.run_us };
        run_us.saturating_mul(items.div_ceil(cores.max(1) as u64))
    }
}

/// What is known before a run, beside its graph.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// Of the steps, in their order; what is missing is [`Cost::hinted`].
    pub costs: &'a [Cost],
    /// Sizes of the run's inputs, which lie at its home. Bytes.
    pub inputs: &'a [u64],
    /// Of the steps, in their order; what is missing is [`Wish::Anywhere`].
    pub wishes: &'a [Wish],
}

/// A placement, and when each step would run by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Where each step lies.
    pub placement: Placement,
    /// When each step would start and end, in microseconds from the run's start.
    pub times_us: Vec<(u64, u64)>,
    /// When the last output of the run would be at its home.
    pub delivered_us: u64,
    /// Bytes that cross between nodes.
    pub moved_bytes: u64,
}

impl Draft {
    /// When the last step would have ended and the last output come home.
    pub fn ends_us(&self) -> u64 {
        self.times_us.iter().map(|(_, end)| *end).max().unwrap_or(0).max(self.delivered_us)
    }
}

/// Places `graph` over `nodes`, the home first, whose links carry `bandwidth` bytes a microsecond each way (0: any
/// number).
///
/// # Errors
/// If the graph has a cycle.
pub fn place(
    graph: &Graph,
    nodes: &[NodeFacts],
    bandwidth: u64,
    known: Known<'_>,
) -> Result<Draft, GraphError> {
    let costs = Cost::completed(graph, known.costs);
    let rank = graph.longest_ways(|step| {
        let cost = &costs[step as usize];
        cost.run_us.max(1).saturating_add(total(&cost.bytes).checked_div(bandwidth).unwrap_or(0))
    })?;
    let mut order = graph.topological()?;
    // A step's rank is larger than that of any step behind it, but for switches, which cost nothing: the sort is
    // stable, so that these stay where they are.
    order.sort_by_key(|&step| Reverse(rank[step as usize]));
    let over = |nodes: &[NodeFacts]| {
        let mut planner = Planner::new(graph, &costs, known.inputs, nodes, bandwidth);
        let turns = turns(nodes);
        for step in &order {
            planner.step(*step, known.wishes.get(*step as usize).unwrap_or(&Wish::Anywhere), &turns);
        }
        planner.deliver();
        planner.draft
    };
    let spread = over(nodes);
    let elsewhere = |wish: &Wish| matches!(wish, Wish::Among(nodes) if !nodes.contains(&HOME));
    if nodes.len() < 2 || known.wishes.iter().any(elsewhere) {
        return Ok(spread);
    }
    // Each step went where it ends first, without a look at what it costs to bring its outputs to where they are read.
    let mut home = over(&nodes[..1]);
    home.placement.nodes = spread.placement.nodes;
    let known_all = costs.iter().all(|cost| cost.items > 0);
    // In wide integers, in which no product of two times can be more than there is.
    let pays =
        u128::from(spread.ends_us()) * 100 < u128::from(home.ends_us()) * u128::from(SPREAD_PERCENT_MAX);
    Ok(if known_all && !pays { home } else { spread })
}

/// Until when the two directions of a node's link are taken.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    out_us: u64,
    in_us: u64,
}

/// An output of a step, or an input of the run (without a step).
type Thing = (Option<StepIndex>, u16);

/// When each core of a node is free, the first on top.
type Cores = BinaryHeap<Reverse<u64>>;

/// Has the core that is free first do something that takes so long and may begin at `ready`; when it has.
fn take_core(cores: &mut Cores, ready: u64, us: u64) -> u64 {
    let Some(mut core) = cores.peek_mut() else { return ready };
    let end = core.0.max(ready).saturating_add(us);
    *core = Reverse(end);
    end
}

struct Planner<'a> {
    graph: &'a Graph,
    costs: &'a [Cost],
    inputs: &'a [u64],
    bandwidth: u64,
    /// When each core of each node is free.
    cores: Vec<Vec<u64>>,
    links: Vec<Link>,
    /// What has been moved, and when it is there.
    copies: BTreeMap<(Thing, NodeIndex), u64>,
    draft: Draft,
}

impl<'a> Planner<'a> {
    fn new(
        graph: &'a Graph,
        costs: &'a [Cost],
        inputs: &'a [u64],
        nodes: &[NodeFacts],
        bandwidth: u64,
    ) -> Self {
        let cores = |node: &NodeFacts| {
            let mut free = vec![0; (node.cpu_milli / 1000).clamp(1, CORES_MAX) as usize];
            let (busy, until_us) = node.load.busy(free.len());
            free[..busy].fill(until_us);
            free
        };
        let mut cores: Vec<Vec<u64>> = nodes.iter().map(cores).collect();
        cores.resize(nodes.len().max(1), vec![0]);
        let placement =
            Placement { nodes: cores.len() as u16, steps: vec![Place::On(HOME); graph.steps.len()] };
        Planner {
            graph,
            costs,
            inputs,
            bandwidth,
            links: vec![Link::default(); cores.len()],
            copies: BTreeMap::new(),
            draft: Draft {
                placement,
                times_us: vec![(0, 0); graph.steps.len()],
                delivered_us: 0,
                moved_bytes: 0,
            },
            cores,
        }
    }

    fn step(&mut self, step: StepIndex, wish: &Wish, turns: &[NodeIndex]) {
        let may = |node: NodeIndex| match wish {
            Wish::Among(nodes) => nodes.contains(&node),
            Wish::Anywhere | Wish::Together => true,
        };
        let each = self.graph.steps[step as usize].foreach.is_some();
        let nodes = (0..self.cores.len() as NodeIndex).filter(|node| may(*node));
        let together: Vec<_> = nodes
            .map(|node| {
                let (ready, moved) = self.arrive(step, node, false);
                (self.run(step, node, ready, self.items(step), false).1, moved, node)
            })
            .collect();
        let Some((end, _, lead)) = together.into_iter().min() else { return };
        let mut hosts: Box<[NodeIndex]> = turns.iter().copied().filter(|host| may(*host)).collect();
        let mut dealt = each && self.cores.len() > 1 && *wish != Wish::Together && !hosts.is_empty();
        if dealt && self.costs[step as usize].items > 0 {
            hosts = self.deal_each(step, lead, &hosts);
            dealt = self.deal(step, lead, &hosts, false) < end;
        }
        let (ready, moved) = self.arrive(step, lead, true);
        self.draft.moved_bytes = self.draft.moved_bytes.saturating_add(moved);
        if dealt {
            self.draft.placement.steps[step as usize] = Place::Spread { lead, hosts: hosts.clone() };
            let end = self.deal(step, lead, &hosts, true);
            self.draft.times_us[step as usize] = (ready, end);
        } else {
            self.draft.placement.steps[step as usize] = Place::On(lead);
            self.draft.times_us[step as usize] = self.run(step, lead, ready, self.items(step), true);
        }
    }

    fn items(&self, step: StepIndex) -> u64 {
        self.costs[step as usize].items.max(1)
    }

    /// When so many invocations of a step start and end on a node, if they may at `ready`.
    fn run(
        &mut self,
        step: StepIndex,
        node: NodeIndex,
        ready: u64,
        items: u64,
        for_good: bool,
    ) -> (u64, u64) {
        if self.graph.steps[step as usize].function().is_none() {
            return (ready, ready);
        }
        let cost = &self.costs[step as usize];
        let cores = &mut self.cores[usize::from(node)];
        let Some((core, free)) = cores.iter().copied().enumerate().min_by_key(|&(core, at)| (at, core))
        else {
            return (ready, ready);
        };
        let start = ready.max(free);
        if items == 1 || items > DEALT_MAX {
            let end = start.saturating_add(cost.busy_us(items, cores.len()));
            if for_good && items == 1 {
                cores[core] = end;
            } else if for_good {
                cores.iter_mut().for_each(|at| *at = end.max(*at));
            }
            return (start, end);
        }
        let mut heap = Cores::from_iter(cores.iter().copied().map(Reverse));
        let mut last = start;
        for _ in 0..items {
            last = last.max(take_core(&mut heap, ready, cost.busy_us(1, 1)));
        }
        if for_good {
            *cores = heap.into_iter().map(|Reverse(at)| at).collect();
        }
        (start, last)
    }

    /// Who executes each of a foreach's items, as they are known: whoever of `among` would end it first, which is worked on
    /// as it arrives.
    fn deal_each(&mut self, step: StepIndex, lead: NodeIndex, among: &[NodeIndex]) -> Box<[NodeIndex]> {
        let (ready, _) = self.arrive(step, lead, false);
        let items = self.items(step);
        let item_us = self.costs[step as usize].busy_us(1, 1);
        let carry_us = self.carry_us(self.list_bytes(step) / items);
        let among: BTreeSet<NodeIndex> = among.iter().copied().collect();
        // Of each node: when its cores are free, the first of them first.
        let cores = |node: NodeIndex| self.cores[usize::from(node)].iter().copied().map(Reverse);
        let mut free: BTreeMap<NodeIndex, Cores> =
            among.into_iter().map(|node| (node, cores(node).collect())).collect();
        let mut dealt: BTreeMap<NodeIndex, u64> = BTreeMap::new();
        // When the next item is there, if it is moved.
        let mut there = ready.saturating_add(HOP_US).saturating_add(carry_us);
        let mut hosts = Vec::new();
        for _ in 0..items.min(DEALT_MAX) {
            let arrives = |node: NodeIndex| if node == lead { ready } else { there };
            let starts = |(node, free): (&NodeIndex, &Cores)| {
                let start = free.peek().map_or(0, |Reverse(at)| *at).max(arrives(*node));
                // Of those that are as good, the one with the fewest.
                (start, dealt.get(node).copied().unwrap_or(0), *node)
            };
            let Some((_, _, node)) = free.iter().map(starts).min() else { break };
            if let Some(cores) = free.get_mut(&node) {
                take_core(cores, arrives(node), item_us);
            }
            if node != lead {
                there = there.saturating_add(carry_us);
            }
            *dealt.entry(node).or_insert(0) += 1;
            hosts.push(node);
        }
        hosts.truncate(period(&hosts));
        hosts.into()
    }

    /// When a foreach's items would have ended, dealt out over `hosts`, and what they put gathered on one node.
    fn deal(&mut self, step: StepIndex, lead: NodeIndex, hosts: &[NodeIndex], for_good: bool) -> u64 {
        let (ready, _) = self.arrive(step, lead, false);
        let list_bytes = self.list_bytes(step);
        let put_bytes = total(&self.costs[step as usize].bytes);
        let parts = hosts.len() as u64;
        let part = |node: NodeIndex| hosts.iter().filter(|host| **host == node).count() as u64;
        let away = parts - part(lead);
        // Items are worked on as they arrive, and gathered as they end: the first piece is waited for, and the last.
        let items = self.items(step);
        let hop_us = if away > 0 { HOP_US } else { 0 };
        let start = ready.saturating_add(hop_us);
        let first = start.saturating_add(self.carry_us(list_bytes / items));
        let there = start.saturating_add(self.carry_us(list_bytes / parts * away));
        let back_us = hop_us.saturating_add(self.carry_us(put_bytes / items));
        if for_good {
            let link = &mut self.links[usize::from(lead)];
            link.out_us = link.out_us.max(there);
            self.draft.moved_bytes = self.draft.moved_bytes.saturating_add(list_bytes / parts * away);
        }
        let mut end = ready;
        for node in 0..self.cores.len() as NodeIndex {
            let share = items.saturating_mul(part(node)).div_ceil(parts);
            if share > 0 && node == lead {
                end = end.max(self.run(step, node, ready, share, for_good).1);
            } else if share > 0 {
                let worked = self.run(step, node, first, share, for_good).1;
                end = end.max(worked).max(there.saturating_add(self.costs[step as usize].busy_us(1, 1)));
            }
        }
        // Whoever gathers it waits for that by itself.
        if for_good { end } else { end.saturating_add(back_us) }
    }

    /// Of what a foreach iterates.
    fn list_bytes(&self, step: StepIndex) -> u64 {
        let over = self.graph.steps[step as usize].foreach.as_ref().and_then(|each| thing(&each.over));
        over.map_or(0, |of| self.bytes(of))
    }

    fn carry_us(&self, bytes: u64) -> u64 {
        bytes.checked_div(self.bandwidth).unwrap_or(0)
    }

    fn bytes(&self, (of, port): Thing) -> u64 {
        let sizes = of.map_or(self.inputs, |step| &self.costs[step as usize].bytes);
        sizes.get(usize::from(port)).copied().unwrap_or(0)
    }

    /// When all that `step` reads could be on `node`, and how many bytes would have to be moved there.
    fn arrive(&mut self, step: StepIndex, node: NodeIndex, for_good: bool) -> (u64, u64) {
        let own = &self.graph.steps[step as usize];
        let after = own.after.iter().map(|of| self.draft.times_us[*of as usize].1).max().unwrap_or(0);
        let mut things: Vec<Thing> = Vec::new();
        own.sources(|source| things.extend(thing(source)));
        let (ready, moved) = self.bring(things, node, for_good);
        (ready.max(after), moved)
    }

    /// The outputs of the run come home.
    fn deliver(&mut self) {
        let things = self.graph.outputs.iter().filter_map(|output| thing(&output.source)).collect();
        let (there, moved) = self.bring(things, HOME, true);
        self.draft.delivered_us = there;
        self.draft.moved_bytes = self.draft.moved_bytes.saturating_add(moved);
    }

    /// When all these could be on `node`, and how many bytes would have to be moved there.
    fn bring(&mut self, mut things: Vec<Thing>, node: NodeIndex, for_good: bool) -> (u64, u64) {
        let mut ready = 0;
        things.sort_unstable();
        things.dedup();
        // When it is there to be sent, by whom, how much, and what.
        let mut sends: Vec<(u64, NodeIndex, u64, Thing)> = Vec::new();
        for of in things {
            if let Some(at) = self.copies.get(&(of, node)) {
                ready = ready.max(*at);
                continue;
            }
            let ended = of.0.map_or(0, |step| self.draft.times_us[step as usize].1);
            let home = Place::On(HOME);
            let place = of.0.map_or(&home, |step| &self.draft.placement.steps[step as usize]);
            let hosts = place.hosts();
            let mut distinct = hosts.to_vec();
            distinct.sort_unstable();
            distinct.dedup();
            for host in distinct {
                let part = hosts.iter().filter(|other| **other == host).count() as u64;
                let bytes = self.bytes(of) / hosts.len() as u64 * part;
                if host == node {
                    ready = ready.max(ended);
                } else {
                    sends.push((ended, host, bytes, of));
                }
            }
        }
        sends.sort_unstable();
        let mut moved = 0_u64;
        let mut in_us = self.links[usize::from(node)].in_us;
        let mut out_us: BTreeMap<NodeIndex, u64> = BTreeMap::new();
        for (ended, host, bytes, of) in sends {
            moved = moved.saturating_add(bytes);
            let carry_us = self.carry_us(bytes);
            let out = out_us.entry(host).or_insert(self.links[usize::from(host)].out_us);
            let mut there = ended;
            if carry_us > 0 {
                there = ended.max(in_us).max(*out).saturating_add(carry_us);
                (in_us, *out) = (there, there);
            }
            let usable = there.saturating_add(HOP_US);
            ready = ready.max(usable);
            if for_good {
                let at = self.copies.entry((of, node)).or_insert(0);
                *at = usable.max(*at);
            }
        }
        if for_good {
            self.links[usize::from(node)].in_us = in_us;
            out_us.into_iter().for_each(|(host, at)| self.links[usize::from(host)].out_us = at);
        }
        (ready, moved)
    }
}

/// A sum that stays at the most there is.
fn total(bytes: &[u64]) -> u64 {
    bytes.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
}

/// Length of the shortest beginning that goes on as the whole does when it is repeated.
fn period(hosts: &[NodeIndex]) -> usize {
    let repeats = |length: &usize| hosts.iter().zip(&hosts[*length..]).all(|(one, other)| one == other);
    (1..hosts.len()).find(repeats).unwrap_or(hosts.len())
}

/// What a reference is to, if not to what lies everywhere.
fn thing(source: &Source) -> Option<Thing> {
    match *source {
        Source::Output { step, port } | Source::Gather { step, port } => Some((Some(step), port)),
        Source::Input(input) => Some((None, input)),
        Source::Const(_) | Source::Item => None,
    }
}

/// Nodes in turn, each as often as it is larger than the smallest.
fn turns(nodes: &[NodeFacts]) -> Box<[NodeIndex]> {
    let unit = nodes.iter().map(|node| node.cpu_milli).min().unwrap_or(0).max(1);
    let share = |node: &NodeFacts| (node.cpu_milli / unit).clamp(1, SHARE_MAX);
    let turns = (0..SHARE_MAX).flat_map(|turn| {
        let takes = nodes.iter().enumerate().filter(move |(_, node)| share(node) > turn);
        takes.map(|(node, _)| node as NodeIndex)
    });
    turns.collect()
}

#[cfg(test)]
mod tests;
