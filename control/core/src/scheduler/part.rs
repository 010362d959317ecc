//! One node's share of a run: what is decided, executed and read here, and who is told of it.
//!
//! A run that lies on one node has no share: all answers are then "here", and nobody is told.

use super::plan::{Keep, NONE, PortReader, Role};
use super::run::{Cx, Run};
use super::{Effect, RunError, Word};
use crate::placement::{HOME, NodeIndex, Part};
use alloc::{string::String, vec, vec::Vec};
use dflow_proto::{InvocationId, ObjectKey};

/// What a run knows of its own distribution.
pub(super) struct Share {
    pub(super) part: Part,
    /// Per step: who is told of it, this node left out. Empty for steps that others lead and execute.
    audience: Vec<Vec<NodeIndex>>,
    /// Steps whose end this node waits for.
    counted: Vec<bool>,
    /// The home's view of each part.
    parts: Vec<PartState>,
    /// A participant was told to end, has said that it is done, has said that it is gone, was told to forget.
    end_heard: bool,
    done_told: bool,
    gone_told: bool,
    pub(super) closed: bool,
}

#[derive(Clone, Copy, Default)]
struct PartState {
    done: bool,
    gone: bool,
}

impl Share {
    pub(super) fn is_home(&self) -> bool {
        self.part.me == HOME
    }
}

impl Run {
    /// Takes up this node's share, before anything has happened.
    pub(super) fn share_out(&mut self, part: Part, cx: &mut Cx<'_>) {
        let me = part.me;
        let steps = self.plan.steps.len() as u32;
        let nodes = part.placement.nodes as usize;
        let mut parts = vec![PartState::default(); nodes];
        parts[HOME as usize] = PartState { done: true, gone: true };
        self.share = Some(alloc::boxed::Box::new(Share {
            audience: vec![Vec::new(); steps as usize],
            counted: vec![false; steps as usize],
            parts,
            part,
            end_heard: false,
            done_told: false,
            gone_told: false,
            closed: false,
        }));
        let mut audiences = vec![Vec::new(); steps as usize];
        let mut counted = vec![false; steps as usize];
        for step in 0..steps {
            // A part is done when the home can be told all of what happened here: hosts wait for the lead's word.
            counted[step as usize] =
                self.leads(step) || self.hosts(step) || (me == HOME && self.is_handed_on(step));
            if self.leads(step) || self.hosts(step) {
                let mut audience = self.audience_of(step);
                audience.sort_unstable();
                audience.dedup();
                audience.retain(|&node| node != me);
                audiences[step as usize] = audience;
            }
        }
        self.unresolved = counted.iter().filter(|&&counts| counts).count() as u32;
        if let Some(share) = &mut self.share {
            (share.audience, share.counted) = (audiences, counted);
        }
        let plan = self.plan.clone();
        for (p, port) in plan.ports.iter().enumerate() {
            let here = |role: fn(&Role) -> bool| {
                let readers = plan.readers(p as u32).iter();
                readers.filter(|r| role(&r.role) && self.reads_here(r)).count() as u32
            };
            let holds = here(|role| *role != Role::Items);
            let item_holds = here(|role| *role == Role::Items);
            (self.ports[p].holds, self.ports[p].item_holds) = (holds, item_holds);
            if let Keep::RunInput(i) = port.keep
                && me == HOME
            {
                let to = self.readers_elsewhere(p as u32, 0);
                if !to.is_empty() {
                    self.inputs[i as usize].away = true;
                    let key = ObjectKey::input(self.id, i);
                    cx.effects.push(Effect::Publish { key, attempt: 0, to });
                }
            }
        }
    }

    /// Whether this node decides for the step.
    pub(super) fn leads(&self, step: u32) -> bool {
        self.share.as_ref().is_none_or(|s| s.part.placement.of(step).lead() == s.part.me)
    }

    /// Whether this node executes the invocation.
    pub(super) fn is_here(&self, step: u32, item: u32) -> bool {
        self.share.as_ref().is_none_or(|s| s.part.placement.of(step).host(item) == s.part.me)
    }

    /// Whether this node executes some invocation of the step.
    pub(super) fn hosts(&self, step: u32) -> bool {
        self.share.as_ref().is_none_or(|s| s.part.placement.of(step).hosts().contains(&s.part.me))
    }

    /// Whether the run ends here.
    pub(super) fn is_home(&self) -> bool {
        self.share.as_ref().is_none_or(|share| share.is_home())
    }

    /// Whether anybody else is told of the step.
    pub(super) fn has_audience(&self, step: u32) -> bool {
        self.share.as_ref().is_some_and(|share| !share.audience[step as usize].is_empty())
    }

    /// Whether this node waits for the end of the step.
    pub(super) fn counts(&self, step: u32) -> bool {
        self.share.as_ref().is_none_or(|share| share.counted[step as usize])
    }

    /// Whether what `reader` reads is read on this node, which then holds it.
    pub(super) fn reads_here(&self, reader: &PortReader) -> bool {
        let Some(share) = &self.share else { return true };
        match reader.role {
            Role::Output => share.is_home(),
            Role::Input(_) | Role::Items => self.hosts(reader.step),
            Role::Condition => self.leads(reader.step),
            Role::List => self.leads(reader.step) || self.hosts(reader.step),
            // A switch hands on what it chose without touching it. As deep as switches are chained, which
            // the graph's check bounds.
            Role::Case(_) => {
                self.plan.readers(self.plan.port(reader.step, 0)).iter().any(|r| self.reads_here(r))
            }
        }
    }

    /// One reader of the whole port is done, if it is one of this node's.
    pub(super) fn drop_hold_of(&mut self, p: u32, step: u32, role: Role) {
        if self.reads_here(&PortReader { step, role }) {
            self.drop_hold(p);
        }
    }

    /// The nodes that read an object of port `p`, this one left out. `item` is the foreach item that reads it.
    pub(super) fn readers_elsewhere(&self, p: u32, item: u32) -> Vec<NodeIndex> {
        let Some(share) = &self.share else { return Vec::new() };
        let mut nodes = Vec::new();
        self.readers_of(p, item, &mut nodes);
        nodes.sort_unstable();
        nodes.dedup();
        nodes.retain(|&node| node != share.part.me);
        nodes
    }

    fn readers_of(&self, p: u32, item: u32, nodes: &mut Vec<NodeIndex>) {
        let Some(share) = &self.share else { return };
        for reader in self.plan.readers(p) {
            if reader.role == Role::Output {
                nodes.push(HOME);
                continue;
            }
            let place = share.part.placement.of(reader.step);
            match reader.role {
                Role::Output => {}
                Role::Input(_) => nodes.extend_from_slice(place.hosts()),
                Role::Items => nodes.push(place.host(item)),
                Role::Condition => nodes.push(place.lead()),
                Role::List => {
                    nodes.push(place.lead());
                    nodes.extend_from_slice(place.hosts());
                }
                Role::Case(_) => self.readers_of(self.plan.port(reader.step, 0), item, nodes),
            }
        }
    }

    /// Whether an object that another node puts is fetched to this one.
    pub(super) fn wants(&self, key: ObjectKey) -> bool {
        let Some(share) = &self.share else { return false };
        if key.invocation.step == ObjectKey::INPUT_STEP {
            let Some(p) = self.plan.run_inputs().nth(key.port.into()) else { return false };
            return !share.is_home() && self.plan.readers(p).iter().any(|r| self.reads_here(r));
        }
        let InvocationId { step, item } = key.invocation;
        let known = (step as usize) < self.plan.steps.len();
        if !known || self.is_here(step, item) {
            return false;
        }
        let p = self.plan.port(step, key.port);
        if !self.plan.ports_of(step).contains(&p) {
            return false;
        }
        let reading = if matches!(self.plan.ports[p as usize].keep, Keep::List(_)) { key.item } else { item };
        let mut nodes = Vec::new();
        self.readers_of(p, reading, &mut nodes);
        nodes.contains(&share.part.me)
    }

    /// Whether this node is of the audience of a step that another leads.
    pub(super) fn is_told_of(&self, step: u32) -> bool {
        let Some(share) = &self.share else { return false };
        !self.leads(step) && self.audience_of(step).contains(&share.part.me)
    }

    fn audience_of(&self, step: u32) -> Vec<NodeIndex> {
        let mut nodes = Vec::new();
        self.listeners(step, &mut nodes);
        if self.is_handed_on(step) {
            nodes.push(HOME);
        }
        nodes
    }

    fn listeners(&self, step: u32, nodes: &mut Vec<NodeIndex>) {
        let Some(share) = &self.share else { return };
        let place = share.part.placement.of(step);
        nodes.push(place.lead());
        nodes.extend_from_slice(place.hosts());
        for dependent in self.plan.dependents(step) {
            if self.plan.steps[dependent.step as usize].function == NONE {
                // Whoever reads from a switch reads from what it may choose.
                self.listeners(dependent.step, nodes);
            } else {
                let place = share.part.placement.of(dependent.step);
                nodes.push(place.lead());
                nodes.extend_from_slice(place.hosts());
            }
        }
    }

    /// Whether an output of the run comes from the step, if only through a switch.
    fn is_handed_on(&self, step: u32) -> bool {
        self.plan.ports_of(step).any(|p| self.is_output(p))
    }

    /// Whether an output of the run comes from the port, if only through a switch.
    fn is_output(&self, p: u32) -> bool {
        self.plan.readers(p).iter().any(|reader| match reader.role {
            Role::Output => true,
            Role::Case(_) => self.is_handed_on(reader.step),
            _ => false,
        })
    }

    /// Tells the step's audience, if this node may speak for the step.
    pub(super) fn tell(&self, step: u32, word: &Word, cx: &mut Cx<'_>) {
        let Some(share) = &self.share else { return };
        for &to in &share.audience[step as usize] {
            cx.effects.push(Effect::Tell { run: self.id, to, word: word.clone() });
        }
    }

    /// What the lead alone tells.
    pub(super) fn tell_as_lead(&mut self, step: u32, word: &Word, cx: &mut Cx<'_>) {
        if self.share.is_some() && self.leads(step) {
            self.count_taken_back(word);
            self.tell(step, word, cx);
        }
    }

    /// What the host alone tells.
    pub(super) fn tell_as_host(&self, id: InvocationId, word: &Word, cx: &mut Cx<'_>) {
        if self.share.is_some() && self.is_here(id.step, id.item) {
            self.tell(id.step, word, cx);
        }
    }

    /// Tells the step's lead, which is another node.
    pub(super) fn tell_lead(&self, step: u32, word: Word, cx: &mut Cx<'_>) {
        let Some(share) = &self.share else { return };
        let to = share.part.placement.of(step).lead();
        cx.effects.push(Effect::Tell { run: self.id, to, word });
    }

    /// Tells the invocation's host, which is another node.
    pub(super) fn tell_host(&self, id: InvocationId, word: Word, cx: &mut Cx<'_>) {
        let Some(share) = &self.share else { return };
        let to = share.part.placement.of(id.step).host(id.item);
        cx.effects.push(Effect::Tell { run: self.id, to, word });
    }

    /// The home tells every participant.
    pub(super) fn tell_all(&self, word: &Word, cx: &mut Cx<'_>) {
        let Some(share) = &self.share else { return };
        for to in 1..share.part.placement.nodes {
            cx.effects.push(Effect::Tell { run: self.id, to, word: word.clone() });
        }
    }

    /// The run has begun to fail here: the others must know.
    pub(super) fn tell_end(&self, error: &RunError, finish: bool, cx: &mut Cx<'_>) {
        match &self.share {
            Some(share) if share.is_home() => self.tell_all(&Word::End { finish }, cx),
            Some(share) if !share.end_heard && !share.closed => {
                let word = Word::PartFailed { error: error.clone(), finish };
                cx.effects.push(Effect::Tell { run: self.id, to: HOME, word });
            }
            _ => {}
        }
    }

    /// A word about the run as a whole.
    pub(super) fn heard_of_run(&mut self, from: NodeIndex, word: Word, cx: &mut Cx<'_>) {
        let Some(share) = &mut self.share else { return };
        let home = share.is_home();
        match word {
            Word::PartDone if home => {
                if let Some(part) = share.parts.get_mut(from as usize) {
                    part.done = true;
                }
            }
            Word::PartFailed { error, finish } if home => self.end(error, finish, cx),
            Word::Gone if home => {
                if let Some(part) = share.parts.get_mut(from as usize) {
                    part.gone = true;
                }
            }
            Word::End { finish } if from == HOME => {
                share.end_heard = true;
                self.end(RunError::Cancelled(String::from("its home has ended it")), finish, cx);
            }
            Word::Close if from == HOME => self.close(RunError::Cancelled(String::from("closed")), cx),
            _ => {}
        }
    }

    /// A node is gone: without its share the run cannot succeed.
    pub(super) fn lost(&mut self, node: NodeIndex, why: String, cx: &mut Cx<'_>) {
        let Some(share) = &mut self.share else { return };
        if share.is_home() {
            if let Some(part) = share.parts.get_mut(node as usize) {
                *part = PartState { done: true, gone: true };
            }
            self.end(RunError::NodeLost(why), false, cx);
        } else if node == HOME {
            self.close(RunError::NodeLost(why), cx);
        }
    }

    /// Nobody waits for this participant any more.
    fn close(&mut self, error: RunError, cx: &mut Cx<'_>) {
        if let Some(share) = &mut self.share {
            share.closed = true;
        }
        if self.running > 0 {
            self.end(error, false, cx);
        }
    }

    /// The run is over: at its home, all are told, and nobody fetches any more.
    pub(super) fn close_parts(&mut self, cx: &mut Cx<'_>) {
        let Some(share) = self.share.as_mut().filter(|share| share.is_home()) else { return };
        share.closed = true;
        self.tell_all(&Word::Close, cx);
        for p in 0..self.ports.len() as u32 {
            // A step that is over may not have been heard to be, where the run does not wait for that.
            if !self.is_output(p) {
                (self.ports[p as usize].holds, self.ports[p as usize].item_holds) = (0, 0);
            }
            if self.plan.ports[p as usize].keep != Keep::Alias {
                self.free(p, cx);
            }
        }
    }

    /// Whether nothing of the run is left to wait for; says what a participant has to say meanwhile.
    pub(super) fn is_finished(&mut self, cx: &mut Cx<'_>) -> bool {
        let (ending, unresolved) = (self.ending.is_some(), self.unresolved);
        if self.running > 0 {
            return false;
        }
        let Some(share) = &mut self.share else { return ending || unresolved == 0 };
        if share.is_home() {
            let parts = &share.parts;
            return match ending {
                true => parts.iter().all(|part| part.gone),
                false => unresolved == 0 && parts.iter().all(|part| part.done),
            };
        }
        if share.closed {
            return true;
        }
        let word = match ending {
            true if share.end_heard && !share.gone_told => {
                share.gone_told = true;
                Word::Gone
            }
            false if unresolved == 0 && !share.done_told => {
                share.done_told = true;
                Word::PartDone
            }
            _ => return false,
        };
        cx.effects.push(Effect::Tell { run: self.id, to: HOME, word });
        false
    }
}
