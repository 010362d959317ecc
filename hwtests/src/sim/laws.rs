//! What must hold whenever an invocation starts, reckoned from the world and not from the scheduler.

use super::world::World;
use dflow_core::graph::*;
use dflow_core::scheduler::*;
use dflow_proto::InvocationId;

impl World<'_> {
    /// No start violates its policy, reckoned from the store and the tables.
    pub(super) fn check_policy(&self, at: usize, id: InvocationId, tables: &[Resolved], early: bool) {
        let step = &self.graph.steps[id.step as usize];
        assert!(step.function().is_some(), "a switch was started");
        // A host may not have heard yet what its lead has decided.
        let led_here = usize::from(self.placement.of(id.step).lead()) == at;
        let skipped = led_here && self.report.skipped.contains(&id.step);
        assert!(!skipped, "the skipped step {} was started", id.step);
        let policy = self.conditions.start.unwrap_or(step.start);
        let (mut inputs, mut begun, mut complete) = (0u32, 0u32, 0u32);
        for (input, table) in step.inputs.iter().zip(tables) {
            let json_item = matches!(table, Resolved::Element { .. });
            if matches!(table, Resolved::Null)
                || !(input.source.step().is_some() || input.source == Source::Item)
            {
                assert!(
                    // What a switch elsewhere chose may be known here to be skipped before the switch is.
                    input.optional || self.nodes.len() > 1 || !matches!(table, Resolved::Null),
                    "a required input of {id:?} is null"
                );
                continue;
            }
            inputs += 1;
            // What has begun on another node is known by word alone.
            begun += u32::from(json_item || self.nodes.len() > 1 || self.has_begun(at, table));
            complete += u32::from(json_item || self.read_table(at, table).is_some());
        }
        // The foreach's list may be no input; an item must exist all the same.
        let holds = match policy {
            StartPolicy::Eager => true,
            StartPolicy::FirstByte => inputs == 0 || begun > 0,
            StartPolicy::First(k) => complete >= k.min(inputs),
            StartPolicy::AllReady => complete == inputs,
        };
        assert!(
            holds,
            "{id:?} starts against {policy:?}: {begun} begun, {complete} complete of {inputs}: {tables:?}"
        );
        assert!(early || complete == inputs, "{id:?} starts with inputs missing and is not called early");
        for &after in &step.after {
            let running = self.nodes[at].processes.keys().any(|&(s, _)| s == after);
            assert!(!running, "{id:?} starts while step {after} runs, which it is after");
        }
    }

    pub(super) fn has_begun(&self, at: usize, table: &Resolved) -> bool {
        match table {
            Resolved::Object(object) => match object.state {
                ObjectState::Sealed => true,
                ObjectState::Running { .. } => {
                    let id = object.key.invocation;
                    self.nodes[at]
                        .processes
                        .get(&(id.step, id.item))
                        .is_some_and(|p| p.begun.contains(&object.key))
                        || self.nodes[at].store.contains_key(&object.key)
                        || self.is_deterministic(id.step)
                }
                // A deterministic function's object may have begun in an attempt before.
                ObjectState::Pending => self.is_deterministic(object.key.invocation.step),
            },
            Resolved::List { items, pinned } => {
                (*pinned && items.is_empty())
                    || items.iter().any(|i| self.has_begun(at, &Resolved::Object(*i)))
            }
            Resolved::Follow { producer, port, .. } => {
                let first = self.key(*producer, *port, 0);
                self.nodes[at].store.contains_key(&first)
                    || self.nodes[at].lists.contains_key(&(producer.step, *port))
                    || self.nodes[at]
                        .processes
                        .get(&(producer.step, producer.item))
                        .is_some_and(|p| p.begun.contains(&first))
                    || self.is_deterministic(producer.step)
            }
            Resolved::Const(_) | Resolved::Null | Resolved::Element { .. } => true,
            Resolved::Pending => false,
        }
    }

    pub(super) fn check_means(&self, at: usize, id: InvocationId) {
        let capacity = self.conditions.capacity;
        let slots = capacity.slots.max(1) as usize;
        assert!(
            self.nodes[at].processes.len() <= slots,
            "{} processes in {slots} slots",
            self.nodes[at].processes.len()
        );
        let tokens = |step: u32| self.graph.steps[step as usize].cpu_milli.min(capacity.cpu_milli);
        let awake = self.nodes[at].processes.iter().filter(|(_, p)| !p.blocked);
        let used: u32 = awake.map(|(&(step, _), _)| tokens(step)).sum();
        let own = tokens(id.step);
        assert!(
            own == 0 || used <= capacity.cpu_milli,
            "{id:?} starts on credit: {used} of {}",
            capacity.cpu_milli
        );
        let function = self.graph.steps[id.step as usize].function();
        let same = |&&(s, _): &&(u32, u32)| self.graph.steps[s as usize].function() == function;
        let workers = self.nodes[at].processes.keys().filter(same).count();
        let most = function.map_or(0, |f| self.graph.functions[f as usize].workers_max) as usize;
        assert!(workers <= most, "{workers} workers of {most}");
        if let Some(each) = &self.graph.steps[id.step as usize].foreach {
            let instances = self.nodes[at].processes.keys().filter(|k| k.0 == id.step).count();
            assert!(
                instances <= each.parallel_max as usize,
                "{instances} instances of {}",
                each.parallel_max
            );
        }
        let early = self.nodes[at].scheduler.load().early as usize;
        assert!(early < slots, "{early} early in {slots} slots");
        let load = self.nodes[at].scheduler.load();
        assert!(load.slots_used as usize >= self.nodes[at].processes.len(), "{load:?}");
    }
}
