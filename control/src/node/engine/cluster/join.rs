//! How a run begins on several nodes.
//!
//! ```text
//!   home                                  each other node
//!   submitted ──Join──▶                   finds the workflow among those it has read
//!             ◀──Unread──                 or else asks for its text,
//!             ──Join, with the text──▶    and reads it; finds its functions
//!             ◀──Joined, or Refused──     invited
//!   all have joined: begins, publishes its inputs
//!             ──Begin──▶                  begins when the inputs that it reads are here
//! ```
//! Nothing starts anywhere unless every node can do its part. What a node is told by one that has begun, words and
//! objects, it keeps until it begins itself.

use super::super::Engine;
use super::Shared;
use crate::node::Done;
use crate::node::cluster::Spread;
use crate::node::error::SubmitError;
use crate::node::net::{Facts, Join, Message, Reading};
use crate::node::stage::Staged;
use crate::node::view::Watch;
use crate::workflow::{self, Placement as Prefer, PythonModule, Runtime, StepSpec, TemplatePart, Workflow};
use crossbeam::channel::Sender;
use dflow_core::graph::{StartPolicy, StepKind};
use dflow_core::placement::{HOME, Known, Load, NodeFacts, NodeIndex, Placement, Wish, loads, place};
use dflow_core::scheduler::Word;
use dflow_dataplane::transfer::Moved;
use dflow_dataplane::transport::NodeId;
use dflow_proto::ids::ObjectKey;
use dflow_proto::{RunId, Tick};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// A node must have answered by then. Milliseconds.
const JOIN_MS_MAX: u64 = 10_000;
/// Words and news of objects that are kept for a run that has not begun here,
const EARLY_MAX: usize = 1 << 20;
/// and bytes of objects with them.
const EARLY_BYTES_MAX: usize = 64 << 20;
/// Runs of others that may wait to begin here.
const INVITED_MAX: usize = 4096;

/// A run that is about to be submitted.
pub(in crate::node) struct Submission {
    pub(in crate::node) workflow: Arc<Workflow>,
    pub(in crate::node) start: Option<StartPolicy>,
    pub(in crate::node) spread: Spread,
    pub(in crate::node) staged: Staged,
    pub(in crate::node) done: Done,
    pub(in crate::node) reply: Sender<Result<Watch, SubmitError>>,
}

/// At the home: not all have joined yet.
pub(super) struct Joining {
    submission: Submission,
    nodes: Vec<NodeId>,
    placement: Arc<Placement>,
    loads: Vec<Load>,
    missing: BTreeSet<NodeIndex>,
    pub(super) deadline: Tick,
}

/// Where a run is to lie.
struct Spreading {
    /// By their number in the run; the home is the first.
    nodes: Vec<NodeId>,
    placement: Placement,
    /// What each is given to do.
    loads: Vec<Load>,
}

/// At a participant: joined and not begun.
pub(super) struct Invited {
    pub(super) workflow: Arc<Workflow>,
    join: Join,
    /// What came from those who have begun.
    early: Vec<Early>,
    early_bytes: usize,
    /// Inputs that must come first, once that is known.
    awaited: Option<BTreeSet<u16>>,
    came: BTreeSet<u16>,
}

/// Something for a run that has not begun.
enum Early {
    Word(NodeIndex, Word),
    Moved(Moved),
}

impl Joining {
    pub(super) fn is_with(&self, node: NodeId) -> bool {
        self.nodes.contains(&node)
    }

    fn digest(&self) -> [u8; 32] {
        self.submission.workflow.digest
    }

    fn invitation(&self, me: NodeIndex, with_text: bool) -> Join {
        let workflow = &self.submission.workflow;
        let reading = || Reading {
            text: workflow.text.to_string(),
            file: workflow.file.clone(),
            source_dir: workflow.source_dir.clone(),
        };
        Join {
            run: self.submission.staged.run,
            nodes: self.nodes.clone(),
            me,
            placement: (*self.placement).clone(),
            load: self.loads[usize::from(me)],
            digest: workflow.digest,
            reading: with_text.then(reading),
            start: self.submission.start,
        }
    }
}

impl Invited {
    pub(super) fn home(&self) -> NodeId {
        self.join.nodes[usize::from(HOME)]
    }

    pub(super) fn is_with(&self, node: NodeId) -> bool {
        self.home() == node
    }

    /// Keeps words for the beginning; false if there is too much.
    pub(super) fn keep_words(&mut self, from: NodeId, words: Vec<Word>) -> bool {
        if let Some(index) = self.join.nodes.iter().position(|node| *node == from) {
            self.early.extend(words.into_iter().map(|word| Early::Word(index as NodeIndex, word)));
        }
        self.has_room()
    }

    /// Keeps news of an object for the beginning: who reads it here is not known before. False if there is too much.
    pub(super) fn keep_moved(&mut self, moved: Moved) -> bool {
        if let Moved::Inline { bytes, .. } = &moved {
            self.early_bytes += bytes.len();
        }
        self.early.push(Early::Moved(moved));
        self.has_room()
    }

    fn has_room(&self) -> bool {
        self.early.len() <= EARLY_MAX && self.early_bytes <= EARLY_BYTES_MAX
    }
}

impl Engine {
    /// Begins a run here alone, or asks others to take part.
    pub(in super::super) fn submit_over(&mut self, submission: Submission) {
        if self.cluster.is_none() && matches!(submission.spread, Spread::Auto | Spread::Home) {
            return self.begin_here(submission, None, Load::default());
        }
        let run = submission.staged.run;
        let inputs: Vec<u64> = submission.staged.inputs.iter().map(|extent| extent.bytes).collect();
        match self.spread_over(&submission.workflow, &submission.spread, &inputs) {
            Err(why) => self.cannot_spread(submission, SubmitError::Spread { why }),
            Ok(Spreading { nodes, loads, .. }) if nodes.len() == 1 => {
                self.begin_here(submission, None, loads[usize::from(HOME)]);
            }
            Ok(Spreading { nodes, placement, loads }) => {
                let now = self.now();
                let Some(cluster) = &mut self.cluster else { return };
                for (node, load) in nodes.iter().zip(&loads).skip(1) {
                    // It will tell so itself, and the next run may be submitted before.
                    cluster.add_load(*node, *load, now);
                }
                let missing = (1..nodes.len() as NodeIndex).collect();
                let (placement, deadline) = (Arc::new(placement), now.after_ms(JOIN_MS_MAX));
                let joining = Joining { submission, nodes, placement, loads, missing, deadline };
                for (index, node) in joining.nodes.iter().enumerate().skip(1) {
                    let has = cluster.peers.get(node).is_some_and(|peer| peer.has_read(&joining.digest()));
                    cluster
                        .say(*node, &Message::Join(Box::new(joining.invitation(index as NodeIndex, !has))));
                }
                cluster.joining.insert(run, joining);
            }
        }
    }

    fn begin_here(&mut self, submission: Submission, shared: Option<Box<Shared>>, load: Load) {
        let Submission { workflow, start, staged, done, reply, .. } = submission;
        let watch = self.submit(workflow, start, staged, done, shared, load);
        let _ = reply.send(Ok(watch));
    }

    fn cannot_spread(&mut self, submission: Submission, error: SubmitError) {
        self.forgotten.push(submission.staged.run);
        let _ = submission.reply.send(Err(error));
    }

    /// The nodes of a run and what each does.
    fn spread_over(
        &mut self,
        workflow: &Workflow,
        spread: &Spread,
        inputs: &[u64],
    ) -> Result<Spreading, String> {
        let (own, now) = (self.facts(), self.now());
        let steps = workflow.graph.steps.len();
        let Some(cluster) = &mut self.cluster else {
            return Err("this node belongs to no cluster; start it as one node of several".into());
        };
        let here = (cluster.config.node, own);
        let named = |name: &String| {
            if *name == cluster.config.name {
                return Ok(here.clone());
            }
            let found = cluster.peers.iter().find(|(_, peer)| peer.name == *name);
            let known = || {
                let names = cluster.peers.values().map(|peer| peer.name.as_str());
                [cluster.config.name.as_str()].into_iter().chain(names).collect::<Vec<_>>().join(", ")
            };
            let (node, peer) =
                found.ok_or_else(|| format!("no node is named {name}; there are {}", known()))?;
            let facts = peer.facts.clone().filter(|_| peer.up);
            Ok((*node, facts.ok_or_else(|| format!("node {name} is not connected"))?))
        };
        let (nodes, placement): (Vec<NodeId>, Placement) = match spread {
            Spread::Home => (vec![here.0], Placement::alone(steps)),
            Spread::Given { nodes, placement } => {
                let found: Result<Vec<_>, String> = nodes.iter().map(named).collect();
                let nodes: Vec<NodeId> = found?.into_iter().map(|(node, _)| node).collect();
                let distinct = nodes.iter().collect::<BTreeSet<_>>().len() == nodes.len();
                if nodes.first() != Some(&here.0) || !distinct {
                    return Err("the first node of a placement is the one it is submitted to, and none is named twice".into());
                }
                if !placement.fits(steps) || usize::from(placement.nodes) != nodes.len() {
                    return Err(format!(
                        "the placement does not fit {steps} steps and {} nodes",
                        nodes.len()
                    ));
                }
                (nodes, placement.clone())
            }
            Spread::Auto | Spread::Over(_) => {
                let mut nodes = vec![here.clone()];
                match spread {
                    Spread::Over(names) => {
                        for name in names {
                            let (node, facts) = named(name)?;
                            if nodes.iter().all(|(other, _)| *other != node) {
                                nodes.push((node, facts));
                            }
                        }
                    }
                    _ => nodes.extend(
                        cluster
                            .peers
                            .iter()
                            .filter(|(_, peer)| peer.up)
                            .filter_map(|(node, peer)| Some((*node, peer.facts.clone()?))),
                    ),
                }
                let facts = |(node, facts): &(NodeId, Facts)| {
                    let cpu_milli = facts.cpu_milli;
                    NodeFacts { cpu_milli, load: cluster.load_of(*node, cpu_milli, now) }
                };
                let facts: Vec<NodeFacts> = nodes.iter().map(facts).collect();
                let wishes = wishes(workflow, &nodes, |node| cluster.name(node))?;
                let costs = cluster.experience.of(workflow);
                let known = Known { costs, inputs, wishes: &wishes };
                let bytes_per_us = cluster.config.link_bytes_per_s / 1_000_000;
                let draft = place(&workflow.graph, &facts, bytes_per_us, known);
                let placement = draft.map_err(|error| error.to_string())?.placement;
                (nodes.into_iter().map(|(node, _)| node).collect(), placement)
            }
        };
        let (nodes, placement) = only_used(nodes, placement);
        let loads = loads(&workflow.graph, cluster.experience.of(workflow), &placement);
        Ok(Spreading { nodes, placement, loads })
    }

    /// Another node wants this one to take part.
    pub(super) fn asked_to_join(&mut self, from: NodeId, join: Join) {
        let run = join.run;
        let answer = match self.can_join(from, &join) {
            Err(why) => Message::Refused { run, why },
            Ok(None) => Message::Unread { run },
            Ok(Some(workflow)) => {
                let (awaited, came, early, early_bytes) = Default::default();
                let invited = Invited { workflow: workflow.clone(), join, early, early_bytes, awaited, came };
                if let Some(cluster) = &mut self.cluster {
                    cluster.library.find_or(workflow.digest, workflow);
                    cluster.invited.insert(run, invited);
                }
                Message::Joined { run }
            }
        };
        if let Some(cluster) = &mut self.cluster {
            cluster.say(from, &answer);
        }
    }

    /// The workflow, if it is known here and can be executed.
    fn can_join(&mut self, from: NodeId, join: &Join) -> Result<Option<Arc<Workflow>>, String> {
        let Some(cluster) = &mut self.cluster else { return Err("it belongs to no cluster".into()) };
        if cluster.invited.len() >= INVITED_MAX {
            return Err(format!("{INVITED_MAX} runs wait to begin there already; try again later"));
        }
        let is_me = join.nodes.get(usize::from(join.me)) == Some(&cluster.config.node);
        let known = self.runs.contains_key(&join.run) || cluster.invited.contains_key(&join.run);
        if join.nodes.first() != Some(&from) || !is_me || join.me == HOME || known {
            return Err("what it was told contradicts itself; do all nodes have numbers of their own?".into());
        }
        if let Some(node) =
            join.nodes.iter().find(|n| **n != cluster.config.node && !cluster.peers.contains_key(n))
        {
            return Err(format!("it does not know node number {}; add it to its peers", node.0));
        }
        let workflow = match (&join.reading, cluster.library.find(&join.digest)) {
            (_, Some(workflow)) => workflow.clone(),
            (None, None) => return Ok(None),
            (Some(Reading { text, file, source_dir }), None) => {
                let read = workflow::parse(text, file, source_dir);
                Arc::new(read.map_err(|report| format!("the workflow cannot be read there: {report}"))?)
            }
        };
        if !join.placement.fits(workflow.graph.steps.len())
            || usize::from(join.placement.nodes) != join.nodes.len()
        {
            return Err("it reads the workflow as another graph; do all nodes run the same version?".into());
        }
        for (step, place) in workflow.graph.steps.iter().zip(&join.placement.steps) {
            if let StepKind::Call(function) = step.kind
                && place.hosts().contains(&join.me)
            {
                let function = &workflow.functions[function as usize];
                if let Some(path) = code_of(&function.runtime).filter(|path| !path.exists()) {
                    let (name, path) = (&function.name, path.display());
                    return Err(format!("function {name} cannot be executed there: {path} does not exist"));
                }
            }
        }
        Ok(Some(workflow))
    }

    /// A node does not know the workflow of a run.
    pub(super) fn unread_by(&mut self, from: NodeId, run: RunId) {
        let Some(cluster) = &mut self.cluster else { return };
        let Some(joining) = cluster.joining.get(&run) else { return };
        let index = joining.nodes.iter().position(|node| *node == from);
        if let Some(index) = index.filter(|index| joining.missing.contains(&(*index as NodeIndex))) {
            let join = joining.invitation(index as NodeIndex, true);
            cluster.say(from, &Message::Join(Box::new(join)));
        }
    }

    pub(super) fn joined(&mut self, from: NodeId, run: RunId) {
        let Some(cluster) = &mut self.cluster else { return };
        let Some(joining) = cluster.joining.get_mut(&run) else { return };
        if let Some(index) = joining.nodes.iter().position(|node| *node == from) {
            joining.missing.remove(&(index as NodeIndex));
            if let Some(peer) = cluster.peers.get_mut(&from) {
                peer.note_read(joining.digest());
            }
        }
        if joining.missing.is_empty()
            && let Some(Joining { submission, nodes, placement, loads, .. }) = cluster.joining.remove(&run)
        {
            let shared = Shared::new(nodes, HOME, placement, self.now());
            self.begin_here(submission, Some(shared), loads[usize::from(HOME)]);
        }
    }

    pub(super) fn refused_by(&mut self, from: NodeId, run: RunId, why: &str) {
        let Some(cluster) = &mut self.cluster else { return };
        if !cluster.joining.get(&run).is_some_and(|joining| joining.is_with(from)) {
            return;
        }
        let node = cluster.name(from);
        self.end_joining(run, SubmitError::Refused { node, why: why.into() });
    }

    /// Those that do not answer hold up nobody.
    pub(super) fn give_up_joining(&mut self, now: Tick) {
        let Some(cluster) = &self.cluster else { return };
        let over = cluster.joining.iter().filter(|(_, joining)| joining.deadline <= now);
        let over: Vec<_> = over
            .filter_map(|(run, joining)| Some((*run, joining.nodes[usize::from(*joining.missing.first()?)])))
            .map(|(run, node)| (run, cluster.name(node)))
            .collect();
        for (run, node) in over {
            self.end_joining(run, SubmitError::Silent { node, waited_ms: JOIN_MS_MAX });
        }
    }

    fn end_joining(&mut self, run: RunId, error: SubmitError) {
        let Some(cluster) = &mut self.cluster else { return };
        if let Some(joining) = cluster.joining.remove(&run) {
            for node in &joining.nodes[1..] {
                cluster.say(*node, &Message::Leave { run });
            }
            self.cannot_spread(joining.submission, error);
        }
    }

    pub(super) fn leave(&mut self, from: NodeId, run: RunId) {
        let Some(cluster) = &mut self.cluster else { return };
        if cluster.invited.get(&run).is_some_and(|invited| invited.home() == from) {
            cluster.invited.remove(&run);
            self.forget_shared(run);
            self.forgotten.push(run);
        }
    }

    /// A run has ended well: the next of its workflow is placed by what it took.
    pub(in super::super) fn learn_of(&mut self, run: RunId) {
        let (Some(state), Some(cluster)) = (self.runs.get(&run), &mut self.cluster) else { return };
        state.watch.with_records(|records| cluster.experience.learn(&state.workflow, records));
    }

    /// The home's scheduler knows the run: the others may begin.
    pub(in super::super) fn tell_to_begin(&mut self, run: RunId) {
        let Some(shared) = self.runs.get_mut(&run).and_then(|state| state.shared.as_mut()) else { return };
        let Some(cluster) = self.cluster.as_deref_mut().filter(|_| shared.is_home()) else { return };
        let mut inputs = std::mem::take(&mut shared.inputs);
        for (index, node) in shared.nodes.iter().enumerate().skip(1) {
            let inputs = inputs.remove(&(index as NodeIndex)).unwrap_or_default();
            cluster.say(*node, &Message::Begin { run, inputs });
        }
    }

    pub(super) fn told_to_begin(&mut self, from: NodeId, run: RunId, inputs: &[u16]) {
        let Some(cluster) = &mut self.cluster else { return };
        let Some(invited) = cluster.invited.get_mut(&run).filter(|invited| invited.home() == from) else {
            return;
        };
        let awaited = inputs.iter().filter(|port| !invited.came.contains(port)).copied();
        invited.awaited = Some(awaited.collect());
        self.begin_if_complete(run);
    }

    /// An input of a run has come.
    pub(super) fn input_came(&mut self, key: ObjectKey) {
        let Some(cluster) = &mut self.cluster else { return };
        let Some(invited) = cluster.invited.get_mut(&key.run) else { return };
        invited.came.insert(key.port);
        if let Some(awaited) = &mut invited.awaited {
            awaited.remove(&key.port);
        }
        self.begin_if_complete(key.run);
    }

    fn begin_if_complete(&mut self, run: RunId) {
        let now = self.now();
        let Some(cluster) = &mut self.cluster else { return };
        let complete = |invited: &Invited| invited.awaited.as_ref().is_some_and(BTreeSet::is_empty);
        if !cluster.invited.get(&run).is_some_and(complete) {
            return;
        }
        let Some(Invited { workflow, join, early, .. }) = cluster.invited.remove(&run) else { return };
        let shared = Shared::new(join.nodes, join.me, Arc::new(join.placement), now);
        self.take_part(run, workflow, join.start, shared, join.load);
        // The scheduler must know the run before it is asked what is read of it.
        self.settle();
        for early in early {
            match early {
                Early::Word(from, word) => self.hear(run, from, word),
                Early::Moved(moved) => self.moved(moved),
            }
        }
    }
}

/// The file that a function's process loads, where that is known before it runs.
fn code_of(runtime: &Runtime) -> Option<&Path> {
    match runtime {
        Runtime::Python { module: PythonModule::File(path), .. } => Some(path),
        Runtime::Native { library, .. } => Some(library),
        Runtime::Exec { command, .. } => match command.first()?.parts.as_slice() {
            [TemplatePart::Text(program)] if program.contains('/') => Some(Path::new(program)),
            _ => None,
        },
        Runtime::Python { .. } | Runtime::Builtin { .. } => None,
    }
}

/// What the steps ask for, among these nodes.
fn wishes(
    workflow: &Workflow,
    nodes: &[(NodeId, Facts)],
    name: impl Fn(NodeId) -> String,
) -> Result<Vec<Wish>, String> {
    let has = |(node, facts): &(NodeId, Facts), label: &str| {
        facts.labels.iter().any(|own| own == label) || name(*node) == label
    };
    let wish = |(at, step): (usize, &StepSpec)| match &step.placement {
        Prefer::Data | Prefer::Spread => Ok(Wish::Anywhere),
        Prefer::Pack => Ok(Wish::Together),
        Prefer::Label(label) => {
            let found = nodes.iter().enumerate().filter(|(_, node)| has(node, label));
            let found: Box<[NodeIndex]> = found.map(|(index, _)| index as NodeIndex).collect();
            if found.is_empty() {
                let known = nodes.iter().map(|(node, _)| name(*node)).collect::<Vec<_>>().join(", ");
                let step = &workflow.graph.steps[at].name;
                return Err(format!(
                    "step {step} asks for a node labelled {label}, and none of {known} is; give one that label (`labels`), or change the step's `placement`"
                ));
            }
            Ok(Wish::Among(found))
        }
    };
    workflow.steps.iter().enumerate().map(wish).collect()
}

/// Leaves out nodes that have nothing to do. The home stays.
fn only_used(nodes: Vec<NodeId>, mut placement: Placement) -> (Vec<NodeId>, Placement) {
    use dflow_core::placement::Place;
    let mut numbers = BTreeMap::from([(HOME, HOME)]);
    let mut used = vec![nodes[usize::from(HOME)]];
    let mut renumber = |node: &mut NodeIndex| {
        *node = *numbers.entry(*node).or_insert_with(|| {
            used.push(nodes[usize::from(*node)]);
            used.len() as NodeIndex - 1
        });
    };
    for place in &mut placement.steps {
        match place {
            Place::On(node) => renumber(node),
            Place::Spread { lead, hosts } => {
                renumber(lead);
                hosts.iter_mut().for_each(&mut renumber);
            }
        }
    }
    placement.nodes = used.len() as u16;
    (used, placement)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dflow_core::placement::Place;

    #[test]
    fn idle_nodes_take_no_part() {
        let steps = vec![Place::On(3), Place::Spread { lead: 0, hosts: [3, 1, 3].into() }, Place::On(0)];
        let (nodes, placement) =
            only_used((10..14).map(NodeId).collect(), Placement { nodes: 4, steps: steps.clone() });
        assert_eq!(nodes, [NodeId(10), NodeId(13), NodeId(11)]);
        let steps = vec![Place::On(1), Place::Spread { lead: 0, hosts: [1, 2, 1].into() }, Place::On(0)];
        assert_eq!(placement, Placement { nodes: 3, steps });
    }
}
